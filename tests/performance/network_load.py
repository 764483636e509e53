"""The two ends of the network's benchmark, as programs: a server, and a client with one kind of load.

    network_load.py serve
    network_load.py MODE ADDRESS SECONDS-OR-COUNT       prints a JSON object

download, upload: bytes of one flow in some seconds. downloads: of eight flows. echo: bytes there and back on
one flow, one after the other. connect: a new flow for each byte. idle: flows that rest, until standard input
ends. dns-same, dns-new: that many questions for a name, the same or each another.
"""

from __future__ import annotations

import json
import random
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from socketserver import BaseRequestHandler, ThreadingTCPServer

SOURCE, SINK, ECHO, DNS = 5001, 5002, 5003, 53
PIECE = 1 << 20
# Neither TLS nor HTTP: nobody waits for a name.
BYTE = b"\0"


class _Source(BaseRequestHandler):
    def handle(self) -> None:
        piece = bytes(PIECE)
        try:
            while True:
                self.request.sendall(piece)
        except OSError:
            pass  # the client has enough


class _Sink(BaseRequestHandler):
    def handle(self) -> None:
        space = bytearray(PIECE)
        total = 0
        while count := self.request.recv_into(space):
            total += count
        self.request.sendall(struct.pack(">Q", total))


class _Echo(BaseRequestHandler):
    def handle(self) -> None:
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while data := self.request.recv(4096):
                self.request.sendall(data)
        except OSError:
            pass  # reset


class _Server(ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 4096

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def serve() -> None:
    """Until standard input ends."""
    for port, handler in ((SOURCE, _Source), (SINK, _Sink), (ECHO, _Echo)):
        server = _Server(("::", port), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print("ready", flush=True)
    sys.stdin.read()


def connected(address: str, port: int) -> socket.socket:
    """A connection that waits for nothing."""
    stream = socket.create_connection((address, port), timeout=60)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return stream


def download(address: str, seconds: float) -> dict[str, float]:
    with connected(address, SOURCE) as stream:
        space = bytearray(PIECE)
        # Not the beginning, in which windows grow.
        warm = time.perf_counter() + 0.3
        while time.perf_counter() < warm:
            stream.recv_into(space)
        total, begun = 0, time.perf_counter()
        while (now := time.perf_counter()) - begun < seconds:
            total += stream.recv_into(space)
        return {"bytes": total, "seconds": now - begun}


def downloads(address: str, seconds: float) -> dict[str, float]:
    """Eight flows at once."""
    found: list[dict[str, float]] = []
    threads = [threading.Thread(target=lambda: found.append(download(address, seconds))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"bytes": sum(each["bytes"] for each in found), "seconds": max(each["seconds"] for each in found)}


def upload(address: str, seconds: float) -> dict[str, float]:
    piece = bytes(PIECE)
    with connected(address, SINK) as stream:
        begun = time.perf_counter()
        while time.perf_counter() - begun < seconds:
            stream.sendall(piece)
        stream.shutdown(socket.SHUT_WR)
        (total,) = struct.unpack(">Q", stream.recv(8, socket.MSG_WAITALL))
        return {"bytes": total, "seconds": time.perf_counter() - begun}


def _repeated(action: Callable[[], None], seconds: float) -> dict[str, float]:
    action()
    count, begun = 0, time.perf_counter()
    while (now := time.perf_counter()) - begun < seconds:
        action()
        count += 1
    return {"count": count, "seconds": now - begun}


def echo(address: str, seconds: float) -> dict[str, float]:
    with connected(address, ECHO) as stream:

        def once() -> None:
            stream.sendall(BYTE)
            assert stream.recv(1) == BYTE

        return _repeated(once, seconds)


def connect(address: str, seconds: float) -> dict[str, float]:
    def once() -> None:
        with connected(address, ECHO) as stream:
            stream.sendall(BYTE)
            assert stream.recv(1) == BYTE
            # Reset instead of ended: no port rests in TIME-WAIT, of which there are not enough.
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return _repeated(once, seconds)


def dns(address: str, count: float, name: Callable[[], bytes]) -> dict[str, float]:
    """Some questions only: a resolver that has to keep data from leaking out by them answers no flood."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.settimeout(10)
        asker.connect((address, DNS))
        begun = time.perf_counter()
        for _ in range(int(count)):
            number = random.randrange(1 << 16)
            labels = b"".join(bytes([len(label)]) + label for label in name().split(b"."))
            asker.send(struct.pack(">HHHHHH", number, 0x0100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1")
            assert asker.recv(4096)[:2] == struct.pack(">H", number)
        return {"count": count, "seconds": time.perf_counter() - begun}


def idle(address: str, count: float) -> dict[str, float]:
    streams = [connected(address, ECHO) for _ in range(int(count))]
    for stream in streams:
        stream.sendall(BYTE)
        assert stream.recv(1) == BYTE
    print(json.dumps({"count": len(streams)}), flush=True)
    sys.stdin.read()
    return {}


def main(mode: str, address: str = "", amount: str = "0") -> None:
    """One of the above."""
    same = {
        "dns-same": lambda: b"www.example.com",
        "dns-new": lambda: b"n%d.example.com" % random.getrandbits(60),
    }
    loads = {
        "download": download,
        "downloads": downloads,
        "upload": upload,
        "echo": echo,
        "connect": connect,
        "idle": idle,
    }
    if mode == "serve":
        serve()
    elif mode in same:
        print(json.dumps(dns(address, float(amount), same[mode])))
    elif found := loads[mode](address, float(amount)):
        print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
