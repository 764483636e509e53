"""Addresses; answers of servers byte by byte: what is read of them, and when a connection serves again."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from microsandbox_oci import Registries, RegistryUnreachable
from microsandbox_oci._transport import Reach, Transport
from microsandbox_oci._url import Url, UrlInvalid


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("HTTPS://Host.Example:443/a?b=c#d", "https://host.example/a?b=c"),
        ("http://h:5000", "http://h:5000/"),
        ("https://[FD00::1]:1/", "https://[fd00::1]:1/"),
        ("https://h/a%2Fb?X=%2B+~|", "https://h/a%2Fb?X=%2B+~%7C"),
        ("https://h/\u00e4 b", "https://h/%C3%A4%20b"),
        ("https://b\u00fccher.example/", "https://xn--bcher-kva.example/"),
    ],
)
def test_addresses_are_spelled_in_one_way(text: str, spelled: str) -> None:
    assert str(Url.parse(text)) == spelled
    assert Url.parse(spelled) == Url.parse(text)


@pytest.mark.parametrize(
    "text",
    ["", "h", "//h/", "http://", "http:///x", "ftp://h/", "file:///etc/passwd", "http://u:p@h/", "http://@h/",
     "http://h:99999/", "http://h:x/", "http://[::1/", "http://a b/", "http://h%00/",
     "http://" + "\u00e4" * 300 + "/"],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UrlInvalid):
        Url.parse(text)


@pytest.mark.parametrize(
    ("reference", "leads"),
    [
        ("/v2/x", "https://h:1/v2/x"),
        ("y?n=1", "https://h:1/a/y?n=1"),
        ("../../../y", "https://h:1/y"),
        ("//other/y", "https://other/y"),
        ("http://other:1/y", "http://other:1/y"),
        ("?last=b", "https://h:1/a/b?last=b"),
    ],
)
def test_where_references_lead(reference: str, leads: str) -> None:
    assert str(Url.parse("https://h:1/a/b?c").join(reference)) == leads


class Server:
    """Answers each request with the next of some bytes; `connections` counts those that were made."""

    def __init__(self, answers: list[bytes]) -> None:
        self.answers = answers
        self.connections = 0
        self.hung_up = threading.Semaphore(0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = Url.parse(f"http://127.0.0.1:{self._listener.getsockname()[1]}/x")
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while self.answers:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with connection:
                while self.answers and _request(connection):
                    answer = self.answers.pop(0)
                    connection.sendall(answer.removesuffix(HANG_UP))
                    if answer.endswith(HANG_UP):
                        break
            self.hung_up.release()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(120)


HANG_UP = b"<then the connection ends>"


def _request(connection: socket.socket) -> bool:
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        chunk = connection.recv(4096)
        if not chunk:
            return False
        data += chunk
    return True


@contextmanager
def answering(*answers: bytes) -> Iterator[tuple[Server, Transport]]:
    server, transport = Server(list(answers)), Transport(Registries(read_timeout=120))
    try:
        yield server, transport
    finally:
        transport.close()
        server.close()


def fetch(server: Server, transport: Transport) -> bytes:
    with transport.request("GET", server.url, {}, registry="here", reach=Reach.ANY) as response:
        return b"".join(response.chunks())


WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcde"


@pytest.mark.parametrize(
    "answer",
    [
        WHOLE,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n3;x=y\r\ncde\r\n0\r\nT: 1\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\nabcde" + HANG_UP,
        b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE,
    ],
)
def test_bodies_are_read_to_their_end(answer: bytes) -> None:
    with answering(answer) as (server, transport):
        assert fetch(server, transport) == b"abcde"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabcde",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
    ],
)
def test_what_is_no_answer_or_is_cut_off_may_be_asked_for_again(answer: bytes) -> None:
    with (
        answering(answer + HANG_UP) as (server, transport),
        pytest.raises(RegistryUnreachable, match=r"^here: the connection to 127\.0\.0\.1 ") as failed,
    ):
        fetch(server, transport)
    assert failed.value.passing


def test_a_connection_serves_again_while_it_is_whole() -> None:
    refusal = b"HTTP/1.1 404 No\r\nContent-Length: 4\r\n\r\nnone"
    closing = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nabcde" + HANG_UP
    with answering(WHOLE, refusal, WHOLE, closing, WHOLE + HANG_UP, WHOLE) as (server, transport):
        assert fetch(server, transport) == b"abcde"
        with transport.request("GET", server.url, {}, registry="here", reach=Reach.ANY) as response:
            assert response.status == 404  # and its body is not read
        assert fetch(server, transport) == b"abcde"
        assert server.connections == 1
        assert fetch(server, transport) == b"abcde"
        assert server.hung_up.acquire(timeout=60)
        assert fetch(server, transport) == b"abcde"
        assert server.connections == 2
        assert server.hung_up.acquire(timeout=60)
        assert fetch(server, transport) == b"abcde"  # the server has hung up meanwhile
        assert server.connections == 3
