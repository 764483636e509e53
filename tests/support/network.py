"""What network tests need beside a guest: a listener of the host, sandboxes with a network of their own."""

from __future__ import annotations

import ctypes
import os
import random
import re
import socket
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import pytest
from microsandbox import Sandbox, _create
from microsandbox._config import NetworkConfig, SandboxConfig
from microsandbox.supervisor._addresses import HostAddresses

from tests.support.host import Host

GREETING = b"from the host\n"


class Listener:
    """Greets whoever connects to a port of its own, and keeps what it was sent until the connection ended."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._socket = socket.create_server((address, 0), family=family)
        self.address = address
        self.port: int = self._socket.getsockname()[1]
        self.connections = 0
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            with connection:
                connection.sendall(GREETING)
                try:
                    while connection.recv(4096):
                        pass
                except ConnectionError:
                    pass
            self.ended.set()

    def __enter__(self) -> Listener:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._socket.close()


def free_port(address: str = "127.0.0.1") -> int:
    """A port of TCP that nobody has, and nobody gets by chance: the kernel hands out others."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    while True:
        port = random.randrange(min(20_000, first // 2), first)
        with suppress(OSError), socket.create_server((address, port), family=family):
            return port


def host_address() -> str | None:
    """An IPv4 address of this machine that is not a loopback one; None if it has none."""
    own = HostAddresses()
    try:
        found = [each for each in own.read() if ":" not in each and not each.startswith("127.")]
    finally:
        own.close()
    return found[0] if found else None


async def started(
    home: Path,
    network: NetworkConfig,
    *,
    cold: bool = False,
    name: str | None = None,
    security: str = "default",
) -> Sandbox:
    """A sandbox of busybox with this network, for the test to destroy."""
    image = _create.resolve_image(home, "busybox")
    config = SandboxConfig(network=network, cold=cold, memory_mib=256, security=security)
    pending = _create.begin(home, image, config, shown_image="busybox", ephemeral=name is None, name=name)
    return await Sandbox.adopt(pending)


def break_link(home: Host) -> None:
    """End the stack of the one sandbox that runs: write what is no frame into the VMM's end of the network
    card."""
    vmm = home.sandbox().vmm
    (number,) = re.findall(r"addr\.type=fd,addr\.str=(\d+)", " ".join(vmm.argv))
    write_no_frame(vmm.pid, int(number))


def write_no_frame(process: int, descriptor: int) -> None:
    """Write what is no frame into the link that a process has as this descriptor."""
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(process)
    try:
        end = libc.syscall(438, pidfd, descriptor, 0)  # pidfd_getfd(2)
        if end < 0:
            pytest.skip(f"pidfd_getfd: {os.strerror(ctypes.get_errno())}")
        os.write(end, b"\xff" * 64)
        os.close(end)
    finally:
        os.close(pidfd)
