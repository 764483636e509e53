"""Measures what a log costs: bytes a second of a command's output with and without one, in one run.

    python tests/performance/bench_logs.py [--mib 256] [--rounds 5] [--rate 50]

A process plays the guest, one is the relay, and this one is the client, as in bench_channel. First as fast as
it goes, which no guest reaches; then at a guest's rate, where the question is whether output is slowed at
all, and how much of a CPU the supervisor takes. Text, and bytes that are not UTF-8. Both ways in turns; the
best of each is shown.
"""

from __future__ import annotations

import argparse
import os
import select
import socket
import sys
import tempfile
import time
from pathlib import Path

from bench_channel import Client, child, flush
from figures import fact, title
from microsandbox.supervisor._exec_log import open_log
from microsandbox_core.channel import (
    MAX_DATA,
    STDOUT,
    Ended,
    Failed,
    GuestConnection,
    HostHelloReceived,
    OpenReceived,
)
from microsandbox_core.relay import Relay
from microsandbox_core.relay_server import RelayServer
from microsandbox_core.unix_socket import listen_unix

TEXT = (b"2026-05-04 10:20:30 INFO  a line such as programs print: 42 of 1000 done\n" * 1000)[:MAX_DATA]
BINARY = bytes(range(256)) * (MAX_DATA // 256)


def play_guest(sock: socket.socket, payload: bytes) -> None:
    """Writes to every exec's stdout as many bytes as its argument says, at the rate that follows (0: any)."""
    connection = GuestConnection()
    left: dict[int, int] = {}
    rate, begun, written = 0, 0.0, 0
    while True:
        data = None
        if select.select([sock], [], [], 0.001 if left else None)[0]:
            data = sock.recv(1 << 18)
            if not data:
                return
        for event in connection.receive(data) if data else ():
            if isinstance(event, HostHelloReceived):
                connection.hello(agent_version="bench", configured=True)
            elif isinstance(event, OpenReceived):
                connection.opened(event.stream, {"pid": 1})
                argv = event.params["argv"]
                assert isinstance(argv, list)
                size, rate = (int(word) for word in bytes(argv[0]).split())  # type: ignore[arg-type]
                left[event.stream] = size
                begun, written = time.perf_counter(), 0
            elif isinstance(event, Failed):
                raise event.error
        for stream in list(left):
            while left[stream] and connection.writable(stream, STDOUT) >= MAX_DATA:
                if rate and written >= rate * (time.perf_counter() - begun) + MAX_DATA:
                    break
                connection.forward_data(stream, STDOUT, payload)
                left[stream] -= MAX_DATA
                written += MAX_DATA
            if not left[stream]:
                del left[stream]
                connection.end(stream, {"code": 0})
        flush(connection, sock)


class LoggedClient(Client):
    """A client whose guest takes a size and a rate."""

    def run(self, size: int, rate: int) -> float:
        """Bytes a second."""
        started = time.perf_counter()
        self._connection.open("exec", {"argv": [b"%d %d" % (size, rate)]})
        assert self._turn(Ended) == size
        return size / (time.perf_counter() - started)


class Bench:
    """A relay, with a log or without, its guest, and a client."""

    def __init__(self, directory: Path, payload: bytes, *, logged: bool) -> None:
        directory.mkdir()
        path = directory / "agent.sock"
        guest, port = socket.socketpair()
        listener = listen_unix(path)

        def serve() -> None:
            guest.close()
            server = RelayServer(relay := Relay(), port, listener)
            if logged:
                relay.observer = open_log(server, directory / "logs")
            server.run()

        self.relay = child(serve)
        port.close()
        self.guest = child(lambda: play_guest(guest, payload))
        guest.close()
        listener.close()
        self.client = LoggedClient(path)

    def cpu(self) -> float:
        """Seconds of CPU that the relay has used."""
        fields = Path(f"/proc/{self.relay}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        """The relay's resident memory at its highest, in KiB."""
        status = Path(f"/proc/{self.relay}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0])

    def close(self) -> None:
        for pid in (self.relay, self.guest):
            os.kill(pid, 9)
            os.waitpid(pid, 0)


def compare(name: str, payload: bytes, size: int, rounds: int, rate: int) -> None:
    """Print both rates and their ratio."""
    with tempfile.TemporaryDirectory() as directory:
        benches = [Bench(Path(directory, str(logged)), payload, logged=logged) for logged in (False, True)]
        best = [0.0, 0.0]
        cpu = [0.0, 0.0]
        for _ in range(rounds):
            for index, bench in enumerate(benches):
                before = bench.cpu()
                best[index] = max(best[index], bench.client.run(size, rate))
                cpu[index] += bench.cpu() - before
        memory = [bench.memory() for bench in benches]
        for bench in benches:
            bench.close()
    per_gib = [seconds / rounds / size * (1 << 30) for seconds in cpu]
    fact(name, f"{best[0] / 1e6:7.0f} MB/s without, {best[1] / 1e6:7.0f} MB/s with: {best[1] / best[0]:.2f}")
    fact("", f"{per_gib[0]:7.2f} s CPU per GiB without, {per_gib[1]:.2f} with")
    fact("", f"{memory[0] / 1024:7.1f} MiB at most without, {memory[1] / 1024:.1f} with")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mib", type=int, default=256, help="MiB in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", type=int, default=50, help="MB/s of the slower guest")
    options = parser.parse_args(arguments)
    size = options.mib << 20
    for name, payload in (("text", TEXT), ("not UTF-8", BINARY)):
        title(f"Output of commands: {name}")
        compare("as fast as it goes", payload, size, options.rounds, 0)
        compare(f"at {options.rate} MB/s", payload, size, options.rounds, options.rate * 1_000_000)
    return 0


if __name__ == "__main__":
    sys.exit(main())
