"""Measures the network stack without a machine, beside passt, pasta and slirp4netns, in own namespaces.

    python tests/performance/bench_network.py [--seconds 2] [--mtu 1500,65520] [--only passt,...]
        [--load all|own|iperf3]

The guest is a network namespace with a TAP. pasta and slirp4netns read it themselves, and so does the stack
where it is compared with them; passt takes frames from a small bridge, and so does the stack beside it. All
are given the same guest, the same servers and the same MTU in the same run; what is not installed is named
and left out. The time of the processor is that of the program that is measured, without the bridge.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from network_contest import (
    IPERF3,
    LOAD,
    OURS,
    OURS_TAP,
    ROOT,
    ROWS,
    Figures,
    chosen,
    hold,
    iperf3_arguments,
    iperf3_figures,
    is_iperf3,
    measure,
    parser,
    processor,
)

from tests.support.internet import ROUTER, WWW, Internet
from tests.support.linux_guest import GATEWAY, GATEWAY_MAC, GUEST, GUEST_MAC, TapGuest
from tests.support.namespace import Namespace

IDLE_FLOWS = 1000


@dataclass
class Contestant:
    """A way out of the guest's namespace that runs."""

    guest: Namespace
    process: subprocess.Popen[bytes]
    nameserver: str

    def load(self, mode: str, address: str, amount: float) -> Figures:
        """What a client in the guest measured."""
        line: list[str | Path] = [sys.executable, "-I", LOAD, mode, address, str(amount)]
        if is_iperf3(mode):
            line = [IPERF3, *iperf3_arguments(mode, address, amount)]
        done = subprocess.run(self.guest.command(*line), capture_output=True, text=True, timeout=120)
        if is_iperf3(mode):
            return iperf3_figures(done.stdout)
        if done.returncode != 0:
            raise RuntimeError(f"{mode}: {done.stderr.splitlines()[-1] if done.stderr else done.returncode}")
        found: Figures = json.loads(done.stdout)
        return found

    def processor(self) -> float:
        """Seconds that the program has used."""
        return processor(self.process.pid)

    def memory(self) -> int:
        """Bytes that are the program's own."""
        for line in Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
        raise RuntimeError("no Pss")

    def memory_per_flow(self) -> float:
        """Bytes that a flow costs which rests."""
        before = self.memory()
        line = self.guest.command(sys.executable, "-I", LOAD, "idle", WWW[0], str(IDLE_FLOWS))
        with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
            assert client.stdout is not None
            if not client.stdout.readline():
                raise RuntimeError("idle: the client ended")
            return (self.memory() - before) / IDLE_FLOWS


def host_process(
    internet: Internet, *command: str, descriptors: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """A contestant's program. `nsenter` becomes it, so that its number is the program's."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    return subprocess.Popen(
        internet.host.command(*command),
        pass_fds=descriptors,
        env=environment,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@contextmanager
def stack(internet: Internet, mtu: int) -> Iterator[Contestant]:
    """Ours."""
    near, far = _link()
    with near, far:
        process = _stack(internet, mtu, far.fileno())
        guest = TapGuest(near, mtu=mtu)
    yield from _running(Contestant(guest.namespace, process, GATEWAY[0]), guest)


@contextmanager
def stack_on_tap(internet: Internet, mtu: int) -> Iterator[Contestant]:
    """Ours, without the bridge."""
    guest = TapGuest(None, mtu=mtu)
    process = _stack(internet, mtu, guest.tap)
    guest.take_tap()
    yield from _running(Contestant(guest.namespace, process, GATEWAY[0]), guest)


def _stack(internet: Internet, mtu: int, link: int) -> subprocess.Popen[bytes]:
    arguments = [str(link), str(mtu), "public-only", ROUTER[0]]
    line = [sys.executable, "-m", "tests.support.stack_process", *arguments]
    return host_process(internet, *line, descriptors=[link])


@contextmanager
def passt(internet: Internet, mtu: int) -> Iterator[Contestant]:
    """For virtual machines: the same frames over the same kind of socket."""
    near, far = _link()
    with near, far:
        process = host_process(
            internet, "passt", "-f", "-F", str(far.fileno()), "-m", str(mtu), *_addresses(),
            "-M", GATEWAY_MAC, descriptors=[far.fileno()],
        )  # fmt: skip
        guest = TapGuest(near, mtu=mtu)
    yield from _running(Contestant(guest.namespace, process, ROUTER[0]), guest)


@contextmanager
def pasta(internet: Internet, mtu: int) -> Iterator[Contestant]:
    """passt with a TAP of its own in the guest's namespace."""
    namespace = Namespace()
    process = host_process(
        internet, "pasta", "-f", "-I", "eth0", "-m", str(mtu), *_addresses(), "--config-net",
        "--ns-mac-addr", GUEST_MAC, "--runas", "0:0", "--netns-only", "--no-netns-quit",
        "--netns", f"/proc/{os.getpid()}/fd/{namespace.descriptor}",
    )  # fmt: skip
    yield from _running(Contestant(namespace, process, ROUTER[0]), namespace)


@contextmanager
def slirp4netns(internet: Internet, mtu: int) -> Iterator[Contestant]:
    """libslirp, which is also QEMU's user networking, with a TAP of its own in the guest's namespace."""
    namespace = Namespace()
    process = host_process(
        internet, "slirp4netns", "-c", "-m", str(mtu), "--netns-type=path",
        f"/proc/{os.getpid()}/fd/{namespace.descriptor}", "eth0",
    )  # fmt: skip
    yield from _running(Contestant(namespace, process, ROUTER[0]), namespace)


def _link() -> tuple[socket.socket, socket.socket]:
    """With room as QEMU and passt give their sockets; SO_SNDBUFFORCE is 32."""
    ends = socket.socketpair()
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, 32, 8 << 20)
    return ends


def _addresses() -> list[str]:
    return ["-a", GUEST[0], "-n", "24", "-g", GATEWAY[0], "-a", GUEST[1], "-g", GATEWAY[1]]


def _running(contestant: Contestant, closing: TapGuest | Namespace) -> Iterator[Contestant]:
    try:
        _wait(contestant)
        yield contestant
    finally:
        contestant.process.kill()
        contestant.process.wait()
        closing.close()


def _wait(contestant: Contestant) -> None:
    """Until a first byte came back."""
    for _ in range(50):
        try:
            contestant.load("echo", WWW[0], 0)
        except RuntimeError:
            if contestant.process.poll() is not None:
                raise RuntimeError(f"it ended with {contestant.process.returncode}") from None
        else:
            return
    raise RuntimeError("no byte came back")


CONTESTANTS = {
    OURS: stack,
    "passt": passt,
    OURS_TAP: stack_on_tap,
    "pasta": pasta,
    "slirp4netns": slirp4netns,
}


def contest(internet: Internet, name: str, mtu: int, load: str, seconds: float) -> Figures:
    """The figures of one of them, with the bytes of a flow that rests."""
    with CONTESTANTS[name](internet, mtu) as contestant:
        modes = chosen(list(ROWS), load)
        figures = measure(modes, contestant.load, contestant.processor, contestant.nameserver, seconds)
        if load != IPERF3:
            figures["idle"] = contestant.memory_per_flow()
        return figures


def main(arguments: list[str] | None = None) -> int:
    """All contestants that there are."""
    options = parser(__doc__, list(CONTESTANTS)).parse_args(arguments)
    programs = {name: name for name in CONTESTANTS if name not in (OURS, OURS_TAP)}
    hold(options, "", programs, contest)
    return 0


if __name__ == "__main__":
    sys.exit(main())
