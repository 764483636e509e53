"""Measures the agent relay: bytes a second against a plain copy loop, and the time of a ping.

    python tests/performance/bench_channel.py [--mib 1024] [--pings 5000]

A process plays the guest, one is the relay, and this one is the client; unix sockets join them. The copy
loop has the same three processes and sockets, and its middle does nothing but `recv_into` and `sendall`:
what it reaches is what the machine can do. Both are run in turns, and the best of each is shown.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from microsandbox_core.channel import (
    MAX_DATA,
    STDOUT,
    CreditReceived,
    DataReceived,
    Ended,
    Failed,
    GuestConnection,
    HelloReceived,
    HostConnection,
    HostHelloReceived,
    OpenReceived,
)
from microsandbox_core.relay import Relay
from microsandbox_core.relay_server import RelayServer
from microsandbox_core.unix_socket import connect_unix, listen_unix

CHUNK = 1 << 18


def child(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


def flush(connection: GuestConnection | HostConnection, sock: socket.socket) -> None:
    while pieces := connection.output():
        connection.sent(sock.sendmsg(pieces))


def play_guest(sock: socket.socket) -> None:
    """Answers pings, and writes to every exec's stdout as many bytes as its argument says."""
    connection = GuestConnection()
    payload = bytes(MAX_DATA)
    left: dict[int, int] = {}
    while data := sock.recv(CHUNK):
        for event in connection.receive(data):
            if isinstance(event, HostHelloReceived):
                connection.hello(agent_version="bench", configured=True)
            elif isinstance(event, OpenReceived) and event.method == "exec":
                connection.opened(event.stream, {"pid": 1})
                argv = event.params["argv"]
                assert isinstance(argv, list)
                assert isinstance(argv[0], bytes)
                left[event.stream] = int(argv[0])
            elif isinstance(event, OpenReceived):
                connection.end(event.stream, {"uptime_ns": time.monotonic_ns()})
            elif isinstance(event, Failed):
                raise event.error
        for stream in list(left):
            while left[stream] and (room := connection.writable(stream, STDOUT)) >= min(
                left[stream], MAX_DATA
            ):
                count = min(left[stream], MAX_DATA, room)
                connection.forward_data(stream, STDOUT, payload[:count])
                left[stream] -= count
            if not left[stream]:
                del left[stream]
                connection.end(stream, {"code": 0})
        flush(connection, sock)


class Client:
    """A blocking client that throws data away."""

    def __init__(self, path: Path) -> None:
        self._socket = connect_unix(path)
        self._socket.setblocking(True)
        self._connection = HostConnection()
        self._buffer = memoryview(bytearray(CHUNK))
        self._turn(HelloReceived)

    def _turn(self, until: type) -> int:
        """Handles events until one of a type comes; returns how many bytes of data came before it."""
        connection = self._connection
        received = 0
        while True:
            flush(connection, self._socket)
            count = self._socket.recv_into(self._buffer)
            for event in connection.receive(self._buffer[:count]):
                if isinstance(event, DataReceived):
                    received += len(event.data)
                    connection.consumed(event.stream, event.channel, len(event.data))
                elif isinstance(event, until):
                    flush(connection, self._socket)
                    return received
                elif isinstance(event, Failed):
                    raise event.error
                else:
                    assert not isinstance(event, CreditReceived)

    def throughput(self, size: int) -> float:
        started = time.perf_counter()
        self._connection.open("exec", {"argv": [b"%d" % size]})
        assert self._turn(Ended) == size
        return size / (time.perf_counter() - started)

    def ping(self) -> float:
        started = time.perf_counter()
        self._connection.open("ping")
        self._turn(Ended)
        return time.perf_counter() - started


def copy_throughput(size: int) -> float:
    """The same three processes without any protocol."""
    guest, port = socket.socketpair()
    left, client = socket.socketpair()

    def write() -> None:
        block = bytes(MAX_DATA)
        for _ in range(size // MAX_DATA):
            guest.sendall(block)

    def copy() -> None:
        guest.close()
        buffer = memoryview(bytearray(CHUNK))
        while count := port.recv_into(buffer):
            left.sendall(buffer[:count])

    started = time.perf_counter()
    pids = [child(write), child(copy)]
    for sock in (guest, port, left):
        sock.close()
    buffer = memoryview(bytearray(CHUNK))
    received = 0
    while count := client.recv_into(buffer):
        received += count
    elapsed = time.perf_counter() - started
    for pid in pids:
        os.waitpid(pid, 0)
    client.close()
    assert received == size
    return size / elapsed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mib", type=int, default=512, help="MiB relayed in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pings", type=int, default=5000)
    options = parser.parse_args(arguments)
    size = options.mib << 20
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "agent.sock"
        guest, port = socket.socketpair()
        listener = listen_unix(path)

        def serve() -> None:
            guest.close()
            RelayServer(Relay(), port, listener).run()

        pids = [child(serve)]
        port.close()
        pids.append(child(lambda: play_guest(guest)))
        guest.close()
        listener.close()
        client = Client(path)
        relayed, copied = [], []
        for _ in range(options.rounds):
            copied.append(copy_throughput(size))
            relayed.append(client.throughput(size))
        times = sorted(client.ping() for _ in range(options.pings))
        for pid in pids:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
    best, plain = max(relayed), max(copied)
    print(f"relay        {best / 1e6:8.0f} MB/s   ({', '.join(f'{r / 1e6:.0f}' for r in relayed)})")
    print(f"plain copy   {plain / 1e6:8.0f} MB/s   ({', '.join(f'{r / 1e6:.0f}' for r in copied)})")
    print(f"ratio        {best / plain:8.2f}")
    median, p99 = times[len(times) // 2], times[-len(times) // 100]
    print(f"ping         {median * 1e6:8.0f} us median, {p99 * 1e6:.0f} us p99")
    return 0


if __name__ == "__main__":
    sys.exit(main())
