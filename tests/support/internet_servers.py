"""Servers of the tests' own internet: names, HTTP, echo. Each listens on all addresses of its namespace and
notes by which of them it was called."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import NamedTuple

A, PTR, AAAA = 1, 12, 28
ECHO, HTTP, DNS = 7, 80, 53
_IPV6_FREEBIND = 78  # linux/in6.h: answer from addresses that no interface has


def pattern(count: int) -> bytes:
    """`count` bytes in which every shift and every hole shows."""
    block = b"".join(struct.pack(">I", at) for at in range(0, min(count, 1 << 18) + 4, 4))
    return (block * (count // len(block) + 1))[:count]


class Question(NamedTuple):
    """One that the name server was asked."""

    name: str
    kind: int
    over: str


class DnsServer:
    """Answers for a zone over UDP and TCP. What is not in it does not exist.

    Attributes:
        zone: addresses by name.
        ttl: seconds that an answer may be kept.
        crooked: by name, what is answered instead, message by message, given the question's message.
        questions: all that were asked.
    """

    def __init__(self, zone: Mapping[str, tuple[str, ...]]) -> None:
        self.zone = dict(zone)
        self.ttl = 60
        self.crooked: dict[str, Callable[[bytes], list[bytes]]] = {}
        self.questions: list[Question] = []
        self._closed = False
        self._udp = bound(socket.SOCK_DGRAM, DNS)
        self._tcp = bound(socket.SOCK_STREAM, DNS)
        for work in (self._datagrams, self._streams):
            threading.Thread(target=work, name="dns", daemon=True).start()

    def _datagrams(self) -> None:
        while True:
            try:
                message, sender = self._udp.recvfrom(65_536)
            except OSError:
                return
            if self._closed:
                return
            for answer in self.answers(message, "udp"):
                self._udp.sendto(answer, sender)

    def _streams(self) -> None:
        while True:
            try:
                client, _ = self._tcp.accept()
            except OSError:
                return
            threading.Thread(target=self._stream, args=[client], name="dns client", daemon=True).start()

    def _stream(self, client: socket.socket) -> None:
        with client:
            while len(head := client.recv(2, socket.MSG_WAITALL)) == 2:
                message = client.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL)
                for answer in self.answers(message, "tcp"):
                    client.sendall(struct.pack(">H", len(answer)) + answer)

    def answers(self, message: bytes, over: str) -> list[bytes]:
        """What a message with one question is answered by (RFC 1035, 4.1)."""
        labels = []
        at = 12
        while length := message[at]:
            labels.append(message[at + 1 : at + 1 + length].decode("ascii", "replace").lower())
            at += 1 + length
        end = at + 5
        (kind,) = struct.unpack_from(">H", message, at + 1)
        name = ".".join(labels)
        self.questions.append(Question(name, kind, over))
        if name in self.crooked:
            return self.crooked[name](message)
        known = self.zone.get(name)
        family = {A: socket.AF_INET, AAAA: socket.AF_INET6}.get(kind)
        records = [
            socket.inet_pton(family, address)
            for address in known or ()
            if family is not None and (":" in address) == (family == socket.AF_INET6)
        ]
        flags = 0x8180 | (0 if known is not None else 3)
        answer = message[:2] + struct.pack(">HHHHH", flags, 1, len(records), 0, 0) + message[12:end]
        for data in records:
            answer += struct.pack(">HHHIH", 0xC00C, kind, 1, self.ttl, len(data)) + data
        return [answer]

    def close(self) -> None:
        self._closed = True
        for each in (self._udp, self._tcp):
            _end(each)


class Call(NamedTuple):
    """A request that the web server got."""

    address: str
    """By which address the client called it."""
    host: str
    method: str
    path: str


class Servers:
    """A web server for every name (`files` by "HOST/PATH"), and echo over TCP and UDP.

    /size/N: N bytes of `pattern`. /who: the address called, as JSON. /websocket: an echo of messages.
    POST: the SHA-256 of what was sent. The echo of TCP says "end" after the client's end.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.calls: list[Call] = []
        self._closed = False
        self._web = _Web(self)
        self._udp = bound(socket.SOCK_DGRAM, ECHO)
        # The answer has to come from the address that was called, so that the kernel has to tell it.
        self._udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        self._udp.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        self._echo = _Server(ECHO, _Echo)
        for work in (
            self._datagrams,
            lambda: self._echo.serve_forever(0.02),
            lambda: self._web.serve_forever(0.02),
        ):
            threading.Thread(target=work, name="servers", daemon=True).start()

    def _datagrams(self) -> None:
        while True:
            try:
                data, control, _, sender = self._udp.recvmsg(65_536, 1024)
            except OSError:
                return
            if self._closed:
                return
            told = [(level, kind, value) for level, kind, value in control if kind == socket.IPV6_PKTINFO]
            try:
                self._udp.sendmsg([data], told, 0, sender)
            except OSError:
                continue  # nobody is there any more

    def close(self) -> None:
        self._closed = True
        for server in (self._web, self._echo):
            server.shutdown()
            server.server_close()
        _end(self._udp)


class _Server(ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 4096

    def __init__(self, port: int, handler: type[StreamRequestHandler]) -> None:
        super().__init__(("::", port), handler)

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that break off are part of the tests."""


class _Echo(StreamRequestHandler):
    request: socket.socket

    def handle(self) -> None:
        while data := self.request.recv(1 << 16):
            self.request.sendall(data)
        self.request.sendall(b"end")


class _Web(_Server):
    def __init__(self, servers: Servers) -> None:
        self.servers = servers
        super().__init__(HTTP, _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Web

    def do_GET(self) -> None:
        self._note()
        host = self.headers.get("Host", "").partition(":")[0]
        path = self.path.partition("?")[0]
        if path.startswith("/size/"):
            self._say(pattern(int(path.removeprefix("/size/"))))
        elif path == "/who":
            self._say(json.dumps({"address": self._called(), "host": host}).encode())
        elif path == "/websocket":
            self._websocket()
        elif (content := self.server.servers.files.get(host + path)) is not None:
            self._say(content)
        else:
            self._say(b"there is no such file\n", 404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self._note()
        self._say(hashlib.sha256(self.rfile.read(int(self.headers["Content-Length"]))).hexdigest().encode())

    def _called(self) -> str:
        return str(self.connection.getsockname()[0]).removeprefix("::ffff:")

    def _note(self) -> None:
        host = self.headers.get("Host", "")
        self.server.servers.calls.append(Call(self._called(), host, self.command, self.path))

    def _say(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        listing = self.path.endswith("/")
        self.send_header("Content-Type", "text/html" if listing else "application/octet-stream")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _websocket(self) -> None:
        """RFC 6455, as far as messages of less than 126 bytes go."""
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header(
            "Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        )
        self.end_headers()
        self.close_connection = True
        while len(head := self.rfile.read(2)) == 2:
            mask = self.rfile.read(4)
            masked = self.rfile.read(head[1] & 0x7F)
            data = bytes(byte ^ mask[at % 4] for at, byte in enumerate(masked))
            self.wfile.write(bytes([head[0], len(data)]) + data)
            if head[0] & 0x0F == 8:
                return

    def log_message(self, format: str, *arguments: object) -> None:
        """`calls` has it."""


def bound(kind: int, port: int) -> socket.socket:
    """A socket for both families."""
    made = socket.socket(socket.AF_INET6, kind)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("::", port))
    if kind == socket.SOCK_STREAM:
        made.listen(4096)
    return made


def _end(made: socket.socket) -> None:
    """Close a socket in which another thread waits."""
    try:
        made.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # not connected, but the waiting thread has been told
    made.close()
