"""The supervisor's socket with a client that breaks the protocol: its own connection ends, no other. (A01)"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest
from microsandbox_core.unix_socket import connect_unix

from tests.support.host import Host, RunningSandbox
from tests.support.msb import Msb, Running
from tests.support.waiting import eventually

pytestmark = pytest.mark.vm

_HEADER = struct.Struct(">IIBBH")
HELLO, OPEN, DATA, CREDIT = 0x01, 0x02, 0x10, 0x12
# {"protocol": [1, 1], "name": "x"} in MessagePack
GREETING = b"\x82\xa8protocol\x92\x01\x01\xa4name\xa1x"


def _frame(
    kind: int, payload: bytes, *, stream: int = 0, channel: int = 0, length: int | None = None
) -> bytes:
    return _HEADER.pack(len(payload) if length is None else length, stream, kind, channel, 0) + payload


@pytest.fixture(scope="module")
def session(shared_home: object, settings: dict[str, str]) -> Iterator[tuple[Running, RunningSandbox]]:
    """A sandbox with an honest client, which must not notice anything."""
    msb = Msb(Host(shared_home).home, settings)  # type: ignore[arg-type]
    with msb.start("run", "busybox", "--", "cat") as command:
        command.stdin.write(b"begin\n")
        assert command.line() == b"begin\n"
        yield command, msb.host.sandbox()
        assert command.finish(b"").code == 0
    msb.host.wait_empty()


PING = b"\x81\xa1m\xa4ping"

# What comes first on a connection.
AT_ONCE = {
    "length 2^32-1": _frame(HELLO, b"", length=0xFFFFFFFF),
    "length 0": _frame(HELLO, b""),
    "unknown kind": _frame(0x7F, b"\x80"),
    "not the protocol": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "before the greeting": _frame(OPEN, PING, stream=1),
    "deep nesting": _frame(HELLO, b"\x81\xa1x" + b"\x91" * 2000 + b"\xc0"),
    "a float": _frame(HELLO, b"\x81\xa1x\xcb\x7f\xf8\0\0\0\0\0\0"),
    "not UTF-8": _frame(HELLO, b"\x81\xa1\xff\xc0"),
}
# What comes after both have said HELLO.
GREETED = {
    "a stream never opened": _frame(DATA, b"x", stream=77),
    "an id used twice": 2 * _frame(OPEN, PING, stream=1),
    "credit of zero": _frame(OPEN, PING, stream=1) + _frame(CREDIT, b"\0\0\0\0", stream=1),
    "a frame of the guest's": _frame(0x05, b"\x80", stream=1),
    "a second greeting": _frame(HELLO, GREETING),
}


@pytest.mark.parametrize("case", [*AT_ONCE, *GREETED])
def test_what_breaks_the_protocol_ends_that_connection_alone(
    session: tuple[Running, RunningSandbox], case: str
) -> None:
    honest, sandbox = session
    with _connected(sandbox) as bad:
        if case in GREETED:
            _greet(bad)
        bad.sendall(AT_ONCE.get(case) or GREETED[case])
        _read_to_the_end(bad)
    honest.stdin.write(case.encode() + b"\n")
    assert honest.line() == case.encode() + b"\n"


def test_a_client_that_says_nothing_is_nobodys_trouble(session: tuple[Running, RunningSandbox]) -> None:
    honest, sandbox = session
    before = len(sandbox.supervisor.descriptors)
    silent = [connect_unix(sandbox.directory / "agent.sock") for _ in range(50)]
    honest.stdin.write(b"line\n")
    assert honest.line() == b"line\n"
    for connection in silent:
        connection.close()
    honest.stdin.write(b"again\n")
    assert honest.line() == b"again\n"
    eventually(
        lambda: len(sandbox.supervisor.descriptors) == before,
        within=60,
        what="the closed clients' descriptors gone",
    )


@pytest.mark.parametrize("method", ["configure", "mount", "patch", "init", "hold"])
def test_what_is_the_owners_is_refused(session: tuple[Running, RunningSandbox], method: str) -> None:
    _, sandbox = session
    with _connected(sandbox) as client:
        _greet(client)
        client.sendall(_frame(OPEN, b"\x81\xa1m" + bytes([0xA0 + len(method)]) + method.encode(), stream=1))
        assert b"not_permitted" in _next_frame(client)


def _connected(sandbox: RunningSandbox) -> socket.socket:
    connection = connect_unix(sandbox.directory / "agent.sock")
    connection.settimeout(60)
    return connection


def _greet(connection: socket.socket) -> None:
    connection.sendall(_frame(HELLO, GREETING))
    assert b"agent_version" in _next_frame(connection)


def _next_frame(connection: socket.socket) -> bytes:
    """The payload of the next frame."""
    header = _exactly(connection, _HEADER.size)
    return _exactly(connection, _HEADER.unpack(header)[0])


def _exactly(connection: socket.socket, count: int) -> bytes:
    """So many bytes, in as many pieces as they come: with a timeout MSG_WAITALL waits for nothing."""
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        assert piece, "the supervisor closed the connection"
        data += piece
    return data


def _read_to_the_end(connection: socket.socket) -> bytes:
    """What the peer still says; fails by a timeout when it does not close."""
    answer = b""
    try:
        while chunk := connection.recv(65536):
            answer += chunk
    except ConnectionResetError:
        pass  # it closed with our bytes unread
    return answer
