"""The relay's loop with real sockets: clients and a guest that block, vanish and misbehave."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from microsandbox_core import relay_server
from microsandbox_core.channel import (
    STDOUT,
    WINDOW_TO_HOST,
    CancelReceived,
    ChannelError,
    Connection,
    ConnectionLost,
    DataReceived,
    Ended,
    Event,
    Failed,
    GuestConnection,
    HelloReceived,
    HostConnection,
    HostHelloReceived,
    Opened,
    OpenReceived,
    PeerError,
    ProtocolError,
)
from microsandbox_core.relay import Relay
from microsandbox_core.relay_server import RelayServer
from microsandbox_core.unix_socket import connect_unix, listen_unix

TIMEOUT = 60.0


class Peer:
    """A blocking end of a connection."""

    def __init__(self, sock: socket.socket, connection: Connection) -> None:
        sock.settimeout(TIMEOUT)
        self.socket = sock
        self.connection = connection
        self._events: list[Event] = []

    def flush(self) -> None:
        while pieces := self.connection.output():
            self.connection.sent(self.socket.sendmsg(pieces))

    def next(self) -> Event:
        while not self._events:
            self.flush()
            data = self.socket.recv(1 << 18)
            self._events += self.connection.receive(data) if data else self.connection.eof_received()
        return self._events.pop(0)


class Guest(Peer):
    def __init__(self, sock: socket.socket) -> None:
        self.guest = GuestConnection()
        super().__init__(sock, self.guest)

    def greet(self) -> None:
        assert isinstance(self.next(), HostHelloReceived)
        self.guest.hello(agent_version="1", configured=True)
        self.flush()


class Client(Peer):
    def __init__(self, path: Path) -> None:
        self.host = HostConnection()
        super().__init__(connect_unix(path), self.host)
        assert isinstance(self.next(), HelloReceived)

    def run(self, guest: Guest) -> tuple[int, int]:
        stream = self.host.open("exec", {"argv": [b"x"]})
        self.flush()
        opened = guest.next()
        assert isinstance(opened, OpenReceived)
        guest.guest.opened(opened.stream, {"pid": 1})
        guest.flush()
        assert self.next() == Opened(stream, {"pid": 1})
        return stream, opened.stream


class Running:
    """A server on a thread of its own."""

    def __init__(self, path: Path, **options: int) -> None:
        theirs, port = socket.socketpair()
        self.path = path
        self.guest = Guest(theirs)
        self.relay = Relay()
        self.server = RelayServer(self.relay, port, listen_unix(path), **options)
        self.result: list[ChannelError | None] = []
        self._wake, self._woken = os.pipe()
        self._calls: list[Callable[[], None]] = []
        self.server.watch(self._wake, self._called)
        self._thread = threading.Thread(target=lambda: self.result.append(self.server.run()))

    def _called(self) -> None:
        os.read(self._wake, 1)
        self._calls.pop(0)()

    def call(self, function: Callable[[], None]) -> None:
        """Has the server's thread call `function`."""
        self._calls.append(function)
        os.write(self._woken, b"x")

    def start(self) -> None:
        self._thread.start()
        self.guest.greet()

    def join(self) -> ChannelError | None:
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()
        return self.result[0]

    def close(self) -> None:
        if self._thread.is_alive():
            self.call(self.server.stop)
        self._thread.join(TIMEOUT)
        os.close(self._wake)
        os.close(self._woken)
        self.guest.socket.close()


@contextmanager
def serving(path: Path, **options: int) -> Iterator[Running]:
    running = Running(path, **options)
    running.start()
    try:
        yield running
    finally:
        running.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    with serving(tmp_path / "agent.sock") as running:
        yield running


def test_many_megabytes_pass_unchanged(server: Running) -> None:
    client = Client(server.path)
    stream, at_guest = client.run(server.guest)
    data = os.urandom(8 << 20)

    def write() -> None:
        view = memoryview(data)
        guest = server.guest
        while len(view):
            view = view[guest.guest.send_data(at_guest, STDOUT, view) :]
            guest.flush()
            if len(view):
                guest.next()
        guest.guest.end(at_guest, {"code": 0})
        guest.flush()

    writer = threading.Thread(target=write)
    writer.start()
    received = bytearray()
    while not isinstance(event := client.next(), Ended):
        assert isinstance(event, DataReceived)
        received += event.data
        client.host.consumed(stream, STDOUT, len(event.data))
    writer.join(TIMEOUT)
    assert received == data
    client.socket.close()


def test_a_client_that_reads_nothing_holds_nobody_up(server: Running) -> None:
    stuck = Client(server.path)
    for _, at_guest in [stuck.run(server.guest) for _ in range(16)]:
        assert server.guest.guest.send_data(at_guest, STDOUT, bytes(WINDOW_TO_HOST)) == WINDOW_TO_HOST
    server.guest.flush()
    other = Client(server.path)
    stream, at_guest = other.run(server.guest)
    server.guest.guest.end(at_guest, {"code": 0})
    server.guest.flush()
    assert other.next() == Ended(stream, {"code": 0})
    # And nothing of its own was lost.
    received = 0
    while received < 16 * WINDOW_TO_HOST:
        event = stuck.next()
        assert isinstance(event, DataReceived)
        received += len(event.data)
    for client in (stuck, other):
        client.socket.close()


def test_a12_a_client_that_vanishes_has_its_program_cancelled(server: Running) -> None:
    client = Client(server.path)
    _, at_guest = client.run(server.guest)
    client.socket.close()
    assert server.guest.next() == CancelReceived(at_guest)


def test_a01_a_client_that_breaks_the_protocol_is_told_and_closed(server: Running) -> None:
    good = Client(server.path)
    bad = Client(server.path)
    bad.socket.sendall(b"\xff" * 64)
    failed = bad.next()
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, PeerError)
    assert bad.socket.recv(1) == b""
    stream, at_guest = good.run(server.guest)
    server.guest.guest.end(at_guest, {"code": 0})
    server.guest.flush()
    assert good.next() == Ended(stream, {"code": 0})
    for client in (good, bad):
        client.socket.close()


def test_a02_a_guest_that_breaks_the_protocol_ends_the_server(server: Running) -> None:
    client = Client(server.path)
    client.run(server.guest)
    server.guest.socket.sendall(b"\xff" * 64)
    error = server.join()
    assert isinstance(error, ProtocolError)
    failed = client.next()
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, ConnectionLost)
    told = server.guest.next()
    assert isinstance(told, Failed)
    assert isinstance(told.error, PeerError)
    client.socket.close()


def test_what_the_guest_said_last_reaches_a_client_that_reads_late(server: Running) -> None:
    client = Client(server.path)
    streams = [client.run(server.guest) for _ in range(8)]
    for _, at_guest in streams:
        server.guest.guest.send_data(at_guest, STDOUT, bytes(WINDOW_TO_HOST))
        server.guest.guest.end(at_guest, {"code": 0})
    server.guest.flush()
    server.guest.socket.close()
    events: list[Event] = []
    while not events or not isinstance(events[-1], Failed):
        events.append(client.next())
    assert [event.stream for event in events if isinstance(event, Ended)] == [s for s, _ in streams]
    assert sum(len(event.data) for event in events if isinstance(event, DataReceived)) == 8 * WINDOW_TO_HOST
    assert isinstance(server.join(), ConnectionLost)
    client.socket.close()


def test_a_client_that_takes_nothing_does_not_keep_a_dead_guest_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_server, "DRAIN_TIMEOUT", 0.05)
    with serving(tmp_path / "agent.sock") as server:
        client = Client(server.path)
        for _, at_guest in [client.run(server.guest) for _ in range(8)]:
            server.guest.guest.send_data(at_guest, STDOUT, bytes(WINDOW_TO_HOST))
        server.guest.flush()
        server.guest.socket.close()
        assert isinstance(server.join(), ConnectionLost)
        client.socket.close()


def test_one_client_too_many_is_closed(tmp_path: Path) -> None:
    with serving(tmp_path / "agent.sock", max_clients=2) as server:
        clients = [Client(server.path) for _ in range(2)]
        extra = connect_unix(server.path)
        extra.settimeout(TIMEOUT)
        assert extra.recv(1) == b""
        extra.close()
        clients.pop().socket.close()
        # A place is free as soon as the server has seen the other go.
        freed = threading.Event()

        def look() -> None:
            if len(server.relay.clients) < 2:
                freed.set()
            else:
                server.server.call_later(0.001, look)

        server.call(look)
        assert freed.wait(TIMEOUT)
        clients.append(Client(server.path))
        for client in clients:
            client.socket.close()


def test_the_supervisor_s_own_streams_timers_and_descriptors(server: Running) -> None:
    heard: list[Event] = []
    order: list[str] = []
    done = threading.Event()

    def work() -> None:
        server.relay.open("ping", None, heard.append)

        def second() -> None:
            order.append("second")
            done.set()

        late = server.server.call_later(0.01, lambda: order.append("cancelled"))
        late.cancel()
        # Far from each other: the process may be held up between the two calls.
        server.server.call_later(0.5, second)
        server.server.call_later(0.01, lambda: order.append("first"))

    server.call(work)
    opened = server.guest.next()
    assert isinstance(opened, OpenReceived)
    server.guest.guest.end(opened.stream, {"uptime_ns": 5})
    server.guest.flush()
    assert done.wait(TIMEOUT)
    assert order == ["first", "second"]
    server.call(server.server.stop)
    assert server.join() is None
    assert heard == [Ended(opened.stream, {"uptime_ns": 5})]


def test_sockets_are_closed_when_a_callback_fails(tmp_path: Path) -> None:
    theirs, port = socket.socketpair()
    server = RelayServer(Relay(), port, listen_unix(tmp_path / "s"))

    def fail() -> None:
        raise RuntimeError("on purpose")

    server.call_later(0, fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        server.run()
    assert port.fileno() == -1
    theirs.close()


@pytest.mark.parametrize("length", [10, 107, 108, 300])
def test_l05_sockets_with_long_paths(tmp_path: Path, length: int) -> None:
    directory = tmp_path
    while len(os.fsencode(directory)) + 10 < length:
        directory = directory / ("d" * min(100, length - len(os.fsencode(directory)) - 9))
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "s.sock"
    with listen_unix(path) as listener:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert not listener.get_inheritable()
        with connect_unix(path) as connection:
            accepted, _ = listener.accept()
            accepted.close()
            assert not connection.getblocking()
    with pytest.raises(OSError, match="in use"):
        listen_unix(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        connect_unix(path)


def test_l05_a_socket_name_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="longer"):
        listen_unix(tmp_path / ("n" * 120))
    with pytest.raises(ValueError, match="NUL"):
        listen_unix("a\0b")


def test_a_full_backlog_is_not_a_hang(tmp_path: Path) -> None:
    with listen_unix(tmp_path / "s", backlog=0):
        waiting = connect_unix(tmp_path / "s")
        with pytest.raises(BlockingIOError):
            connect_unix(tmp_path / "s")
        waiting.close()


def test_a_server_that_is_left_says_first_what_is_somebodys(server: Running) -> None:
    client = Client(server.path)
    stream, at_guest = client.run(server.guest)
    server.relay.on_last = lambda _event: server.server.stop_when_sent()
    client.host.message(stream, "detach", {"last": True})
    assert client.next() == Ended(stream, {"detached": True})
    joined = client.host.open("attach", {"session": at_guest})
    assert client.next() == Opened(joined, {"pid": 1, "printed": []})
    # More than a socket takes at once.
    data = os.urandom(WINDOW_TO_HOST)
    server.guest.guest.send_data(at_guest, STDOUT, data)
    server.guest.guest.end(at_guest, {"code": 3})
    server.guest.flush()
    shown = bytearray()
    while isinstance(event := client.next(), DataReceived):
        shown += event.data
    assert bytes(shown) == data
    assert event == Ended(joined, {"code": 3})
    assert isinstance(client.next(), Failed)
    client.socket.close()


def test_a_server_that_is_left_waits_for_nobody_for_long(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_server, "DRAIN_TIMEOUT", 0.1)
    client = Client(server.path)
    _, at_guest = client.run(server.guest)
    # It takes nothing, and its socket not all of it.
    server.guest.guest.send_data(at_guest, STDOUT, bytes(WINDOW_TO_HOST))
    server.guest.flush()
    server.call(server.server.stop_when_sent)
    assert server.join() is None
    client.socket.close()
