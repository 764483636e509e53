"""Network namespaces of the tests: what runs in one sees its interfaces and no others."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import struct
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from socket import AF_INET, AF_INET6, SOCK_STREAM
from socket import socket as Socket  # noqa: N812 - a method here is called socket
from typing import TypeVar

T = TypeVar("T")

# sched.h and linux/if_tun.h
CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TUN = 0x0001
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000

_PROGRAMS = ("ip", "nsenter", "unshare", "mount", "cc")
_libc = ctypes.CDLL(None, use_errno=True)


def why_not() -> str | None:
    """Why there can be no namespaces on this machine; None if there can."""
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"no network namespace of one's own: not installed: {', '.join(missing)}"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "no network namespace of one's own: /dev/net/tun cannot be opened"
    try:
        Namespace().close()
    except OSError as error:
        return f"no network namespace of one's own: {error} (run as root, or under `unshare -rnm`)"
    return None


class Namespace:
    """A network namespace, for as long as its descriptor is open and something runs in it."""

    def __init__(self) -> None:
        self.descriptor = _thread(self._make)

    @staticmethod
    def _make() -> int:
        _check(_libc.unshare(CLONE_NEWNET))
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    @property
    def identity(self) -> int:
        """What the kernel tells namespaces apart by."""
        return os.fstat(self.descriptor).st_ino

    def inside(self, work: Callable[[], T]) -> T:
        """What `work` returns when a thread in the namespace calls it. Sockets that it makes and threads that
        it starts stay there."""

        def enter() -> T:
            _check(_libc.setns(self.descriptor, CLONE_NEWNET))
            return work()

        return _thread(enter)

    def socket(self, family: int, kind: int, protocol: int = 0) -> Socket:
        """A socket of the namespace."""
        return self.inside(lambda: Socket(family, kind, protocol))

    def connect(self, address: str, port: int, *, timeout: float = 60.0) -> Socket:
        """A TCP connection from the namespace, made with `timeout` seconds for every call."""
        made = self.socket(family_of(address), SOCK_STREAM)
        made.settimeout(timeout)
        try:
            made.connect((address, port))
        except BaseException:
            made.close()
            raise
        return made

    def tap(self, name: str, flags: int = IFF_TAP | IFF_NO_PI) -> int:
        """The descriptor of a new interface that carries Ethernet frames, one each read and write, unless
        `flags` (linux/if_tun.h) say something else."""

        def make() -> int:
            descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
            request = struct.pack("16sH22x", name.encode(), flags)
            fcntl.ioctl(descriptor, TUNSETIFF, request)
            return descriptor

        return self.inside(make)

    def ip(self, lines: str) -> None:
        """Commands of `ip`, one a line, without its name."""
        done = subprocess.run(self.command("ip", "-batch", "-"), input=lines, capture_output=True, text=True)
        assert done.returncode == 0, f"ip: {done.stderr}"

    def switch(self, path: str, value: str) -> None:
        """Set a file below /proc/sys/net."""
        self.inside(lambda: Path("/proc/sys/net", path).write_text(value))

    def command(self, *command: str | Path, files: Mapping[str, Path] | None = None) -> list[str]:
        """The command line that runs `command` here. It finds other contents in `files`, which must exist."""
        line = ["nsenter", f"--net=/proc/{os.getpid()}/fd/{self.descriptor}"]
        if files:
            mounts = "".join(f'mount --bind "${2 * n + 1}" "${2 * n + 2}"; ' for n in range(len(files)))
            script = f'set -e; {mounts}shift {2 * len(files)}; exec "$@"'
            line += ["unshare", "-m", "sh", "-c", script, "sh"]
            for place, content in files.items():
                line += [str(content), place]
        return [*line, *map(str, command)]

    def run(
        self,
        *command: str | Path,
        files: Mapping[str, Path] | None = None,
        stdin: str = "",
        timeout: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command here to its end."""
        line = self.command(*command, files=files)
        return subprocess.run(line, capture_output=True, text=True, timeout=timeout, input=stdin)

    def close(self) -> None:
        os.close(self.descriptor)


def pair(first: Namespace, near: str, second: Namespace, far: str) -> None:
    """A cable between two namespaces, down at both ends."""
    place = f"/proc/{os.getpid()}/fd/{second.descriptor}"
    done = first.run("ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", place)
    assert done.returncode == 0, f"ip: {done.stderr}"


def family_of(address: str) -> int:
    """AF_INET or AF_INET6."""
    return AF_INET6 if ":" in address else AF_INET


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _thread(work: Callable[[], T]) -> T:
    """What `work` returns in a thread that ends with it, so that no other work is done where it went."""
    found: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            failed.append(error)

    thread = threading.Thread(target=run, name="namespace")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]
