"""A guest without a machine: a network namespace whose TAP is the stack's link, or is bridged to the stream
socket of one. The TCP of Linux talks to the stack as a kernel in a virtual machine does."""

from __future__ import annotations

import os
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from microsandbox_net import Policy, Stack, StackConfig

from tests.support.internet import ROUTER, Internet
from tests.support.namespace import Namespace
from tests.support.programs import compiled

GUEST = ("10.9.0.2", "fd09::2")
GATEWAY = ("10.9.0.1", "fd09::1")
GUEST_MAC = "02:00:00:00:00:02"
GATEWAY_MAC = "02:00:00:00:00:01"

CONFIG = StackConfig(
    guest_mac=GUEST_MAC,
    gateway_mac=GATEWAY_MAC,
    ipv4=(GUEST[0], GATEWAY[0]),
    ipv6=(GUEST[1], GATEWAY[1]),
    nameservers=(ROUTER[0],),
)


class TapGuest:
    """A namespace with one interface, `eth0`, whose frames go through `link`: after 32-bit lengths. Without
    one they are at the TAP itself, which `take_tap` hands over. It has the addresses of `GUEST`, and that of
    IPv6 only where `ipv6` says so."""

    def __init__(self, link: socket.socket | None, *, mtu: int = 1500, ipv6: bool = True) -> None:
        self._closing = ExitStack()
        self.namespace = Namespace()
        self._closing.callback(self.namespace.close)
        self._directory = directory = Path(self._closing.enter_context(TemporaryDirectory()))
        tap = self.namespace.tap("eth0")
        self._tap = ExitStack()
        self._closing.enter_context(self._tap)
        # Whoever holds the descriptor keeps the interface.
        self._tap.callback(os.close, tap)
        if link is None:
            self.tap = tap
        else:
            self._bridge(link.fileno(), tap)
            self.take_tap()
        self.namespace.ip(
            f"""link set lo up
link set eth0 address {GUEST_MAC} mtu {mtu}
link set eth0 addrgenmode none
link set eth0 up
addr add {GUEST[0]}/24 dev eth0
route add default via {GATEWAY[0]}
"""
        )
        if ipv6:
            self.namespace.ip(f"addr add {GUEST[1]}/64 dev eth0 nodad\nroute add default via {GATEWAY[1]}\n")
        self.namespace.switch("ipv4/ping_group_range", "0 2147483647")
        (directory / "resolv.conf").write_text(f"nameserver {GATEWAY[0]}\n")
        (directory / "hosts").write_text("127.0.0.1 localhost\n")
        self.files = {f"/etc/{name}": directory / name for name in ("resolv.conf", "hosts")}

    def _bridge(self, link: int, tap: int) -> None:
        self.bridge_link = link  # the same number there
        self.bridge = subprocess.Popen([self.program("bridge"), str(tap), str(link)], pass_fds=(tap, link))
        self._closing.callback(self._end)

    def take_tap(self) -> None:
        """Keep the interface no longer: whoever was given the descriptor does."""
        self._tap.close()

    def program(self, name: str) -> Path:
        """`NAME.c` of this directory, as a program for `run`."""
        path = self._directory / name
        path.write_bytes(compiled(name))
        path.chmod(0o755)
        return path

    def _end(self) -> None:
        self.bridge.kill()
        self.bridge.wait()

    def run(
        self, *command: str | Path, stdin: str = "", timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of this machine there, with the guest's own resolv.conf."""
        return self.namespace.run(*command, files=self.files, stdin=stdin, timeout=timeout)

    def close(self) -> None:
        self._closing.close()


class LinuxGuest(TapGuest):
    """Such a guest whose link goes to a stack that runs in the host's namespace of `internet`. `direct`: the
    stack has the TAP."""

    def __init__(self, internet: Internet, policy: Policy, *, direct: bool = False, **changed: Any) -> None:
        config = CONFIG._replace(**changed)
        ipv6 = config.ipv6 is not None
        self.records: list[dict[str, Any]] = []
        if direct:
            super().__init__(None, mtu=config.mtu, ipv6=ipv6)
            try:
                self.stack = internet.host.inside(lambda: Stack(self.tap, config, policy))
            except BaseException:
                super().close()
                raise
            self.take_tap()
            return
        near, far = socket.socketpair()
        with near, far:
            self.stack = internet.host.inside(lambda: Stack(far.fileno(), config, policy))
            try:
                super().__init__(near, mtu=config.mtu, ipv6=ipv6)
            except BaseException:
                self.stack.stop()
                raise

    def audit(self) -> list[dict[str, Any]]:
        """All records since the start."""
        self.records += self.stack.audit()
        return self.records

    def close(self) -> None:
        self.stack.stop()
        super().close()
        self.stack.check()

    def __enter__(self) -> LinuxGuest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
