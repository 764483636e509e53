"""The asyncio client against a guest that is played here."""

from __future__ import annotations

import asyncio
import os
import socket
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from microsandbox_core.agent import (
    AgentClient,
    Configure,
    Disk,
    Exited,
    ExitStatus,
    Finished,
    Process,
    Stderr,
    StdinClosed,
    Stdout,
    TerminalSize,
)
from microsandbox_core.channel import (
    STDERR,
    STDIN,
    STDOUT,
    WINDOW_TO_GUEST,
    WINDOW_TO_HOST,
    CancelReceived,
    ConnectionLost,
    CreditReceived,
    DataReceived,
    EofReceived,
    Event,
    Failed,
    GuestConnection,
    HandshakeTimeout,
    HostHelloReceived,
    Kind,
    MessageReceived,
    OpenReceived,
    OutcomeUnknown,
    PeerError,
    ProtocolError,
    RequestFailed,
    StreamClosed,
    Value,
    encode_data,
    encode_frame,
)
from microsandbox_core.unix_socket import listen_unix

pytestmark = pytest.mark.asyncio
EventT = TypeVar("EventT")


class FakeGuest:
    """A guest that does what its test says: `expect` what comes, answer through `connection`."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.connection = GuestConnection()
        self._events: list[Event] = []

    async def expect(self, kind: type[EventT]) -> EventT:
        """The next event, which must be of this kind."""
        event = await self.next()
        assert isinstance(event, kind), event
        return event

    async def next(self) -> Event:
        while not self._events:
            data = await asyncio.get_running_loop().sock_recv(self.socket, 1 << 16)
            if not data:
                pytest.fail("the client closed the connection")
            self._events += self.connection.receive(data)
        return self._events.pop(0)

    async def gone(self) -> None:
        """Waits until the client has closed the connection."""
        try:
            while await asyncio.get_running_loop().sock_recv(self.socket, 1 << 16):
                pass
        except ConnectionResetError:
            pass

    async def flush(self) -> None:
        while pieces := self.connection.output():
            data = b"".join(pieces)
            self.connection.sent(len(data))
            await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def greet(self) -> None:
        await self.expect(HostHelloReceived)
        self.connection.hello(agent_version="7", configured=True)
        await self.flush()

    async def accept(self, pid: int = 42) -> OpenReceived:
        """Takes an exec and says that it runs."""
        opened = await self.expect(OpenReceived)
        self.connection.opened(opened.stream, {"pid": pid})
        await self.flush()
        return opened

    async def write(self, stream: int, channel: int, data: bytes) -> None:
        """Sends all of `data`, waiting for credit; nothing but credit may come meanwhile."""
        view = memoryview(data)
        while len(view):
            view = view[self.connection.send_data(stream, channel, view) :]
            await self.flush()
            if len(view):
                await self.expect(CreditReceived)

    async def end(self, stream: int, **body: Value) -> None:
        self.connection.end(stream, dict(body))
        await self.flush()

    def close(self) -> None:
        self.socket.close()


@asynccontextmanager
async def joined() -> AsyncIterator[tuple[AgentClient, FakeGuest]]:
    ours, theirs = socket.socketpair()
    guest = FakeGuest(theirs)
    try:
        client, _ = await asyncio.gather(AgentClient.connect(ours), guest.greet())
        async with client:
            yield client, guest
    finally:
        guest.close()


async def started(
    client: AgentClient, guest: FakeGuest, *, stdin: bool = False
) -> tuple[Process, OpenReceived]:
    return await asyncio.gather(client.exec([b"cat"], stdin="pipe" if stdin else "null"), guest.accept())


async def both(first: Awaitable[object], second: Awaitable[EventT]) -> EventT:
    return (await asyncio.gather(first, second))[1]


# --------------------------------------------------------------------------------------------- connecting


async def test_the_handshake_tells_what_the_guest_is() -> None:
    async with joined() as (client, _):
        assert client.hello is not None
        assert client.hello.agent_version == "7"
        assert client.hello.configured
        assert not client.closed
    assert client.closed


async def test_a02_a_guest_that_says_nothing_is_given_up() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        with pytest.raises(HandshakeTimeout) as caught:
            await AgentClient.connect(ours, timeout=0.02)
        assert caught.value.code == "handshake_timeout"
        assert caught.value.hint
        await FakeGuest(theirs).gone()


async def test_a02_a_guest_that_drips_bytes_is_given_up() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.send(encode_frame(0, Kind.HELLO, {"protocol": 1})[:9])
        with pytest.raises(HandshakeTimeout):
            await AgentClient.connect(ours, timeout=0.02)


@pytest.mark.parametrize(
    ("bytes_", "expected"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", ProtocolError),
        (encode_frame(0, Kind.ERROR, {"code": "version", "message": "only 2"}), PeerError),
        (encode_frame(1, Kind.END, {}), ProtocolError),
        (b"", ConnectionLost),
    ],
)
async def test_a01_a_handshake_with_something_else_fails(bytes_: bytes, expected: type[Exception]) -> None:
    ours, theirs = socket.socketpair()
    theirs.send(bytes_)
    if not bytes_:
        theirs.close()
    with pytest.raises(expected):
        await AgentClient.connect(ours)
    theirs.close()


async def test_connecting_to_nobody_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConnectionLost, match=r"none\.sock"):
        await AgentClient.connect(tmp_path / "none.sock")


async def test_a_path_longer_than_an_address_is_connected_to(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 120) / ("e" * 120)
    directory.mkdir(parents=True)
    with listen_unix(directory / "agent.sock") as listener:

        async def serve() -> None:
            accepted, _ = await asyncio.get_running_loop().sock_accept(listener)
            with accepted:
                await FakeGuest(accepted).greet()

        client, _ = await asyncio.gather(AgentClient.connect(directory / "agent.sock"), serve())
        await client.close()


async def test_connecting_cancelled_leaves_nothing_open() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        task = asyncio.create_task(AgentClient.connect(ours))
        guest = FakeGuest(theirs)
        await guest.expect(HostHelloReceived)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await guest.gone()


# ---------------------------------------------------------------------------------------------- programs


async def test_a_program_at_a_terminal_is_resized_and_left() -> None:
    async with joined() as (client, guest):
        process, opened = await asyncio.gather(
            client.exec(["sh"], stdin="pipe", tty=TerminalSize(24, 80)), guest.accept(7)
        )
        assert opened.params["tty"] == {"rows": 24, "cols": 80}
        process.resize(TerminalSize(50, 132))
        assert await guest.expect(MessageReceived) == MessageReceived(
            opened.stream, "resize", {"rows": 50, "cols": 132}
        )
        with pytest.raises(ValueError, match="cols: 0"):
            process.resize(TerminalSize(50, 0))
        leaving = asyncio.create_task(process.detach())
        assert (await guest.expect(MessageReceived)).name == "detach"
        await guest.end(opened.stream, detached=True)
        await leaving
        assert process.detached
        assert [event async for event in process] == []
        with pytest.raises(StreamClosed):
            await process.wait()


async def test_programs_that_were_left_are_listed_and_joined() -> None:
    async with joined() as (client, guest):
        told: dict[str, Value] = {"session": 5, "argv": [b"sh"], "tty": True, "stdin": True, "pid": 3}
        listing = asyncio.create_task(client.sessions())
        asked = await guest.expect(OpenReceived)
        assert (asked.method, asked.params) == ("sessions", {"after": 0})
        await guest.end(asked.stream, sessions=[{**told, "since_ns": 9, "joined": True}], more=True)
        asked = await guest.expect(OpenReceived)
        assert asked.params == {"after": 5}
        await guest.end(asked.stream, sessions=[], more=False)
        (session,) = await listing
        assert session == (5, 3, (b"sh",), True, True, False, True, 9, None, None)
        listing = asyncio.create_task(client.sessions(ended=True))
        asked = await guest.expect(OpenReceived)
        assert asked.params == {"after": 0, "ended": True}
        gone: dict[str, Value] = {**told, "since_ns": 9, "ended_ns": 10, "outcome": {"signal": 15}}
        await guest.end(asked.stream, sessions=[gone])
        assert (await listing)[0][7:] == (9, 10, (None, 15, False, False))
        listing = asyncio.create_task(client.sessions(ended=True))
        await guest.end(
            (await guest.expect(OpenReceived)).stream, sessions=[{**gone, "outcome": {"code": -1}}]
        )
        assert (await listing)[0][7:] == (9, 10, None)
        waiting = asyncio.create_task(client.outcome(5))
        asked = await guest.expect(OpenReceived)
        assert (asked.method, asked.params) == ("outcome", {"session": 5})
        await guest.end(asked.stream, code=7, oom_killed=True)
        assert await waiting == (7, None, False, True)
        for heard, lost in ((True, OutcomeUnknown), (False, ConnectionLost)):
            async with joined() as (other, gone_guest):
                waiting = asyncio.create_task(other.outcome())
                asked = await gone_guest.expect(OpenReceived)
                if heard:
                    gone_guest.connection.opened(asked.stream, {})
                    await gone_guest.flush()
                gone_guest.socket.close()
                with pytest.raises(lost):
                    await waiting
        for answer in ({"code": 256}, {"oom_killed": True}):
            waiting = asyncio.create_task(client.outcome())
            asked = await guest.expect(OpenReceived)
            assert asked.params == {}
            await guest.end(asked.stream, **answer)
            with pytest.raises(RequestFailed):
                await waiting
        listing = asyncio.create_task(client.sessions())
        await guest.end((await guest.expect(OpenReceived)).stream, sessions=[told])
        with pytest.raises(RequestFailed):
            await listing

        joining = asyncio.create_task(client.join(5, stdin=True))
        asked = await guest.expect(OpenReceived)
        assert (asked.method, asked.params) == ("attach", {"session": 5})
        guest.connection.opened(asked.stream, {"pid": 3, "printed": [[1, b"$ "], [2, b"!"], [3, b""], 4]})
        await guest.flush()
        process = await joining
        assert process.stdin is not None
        await process.stdin.write(b"exit\n")
        assert await guest.expect(DataReceived) == DataReceived(asked.stream, STDIN, b"exit\n")
        await guest.write(asked.stream, STDOUT, b"bye")
        await guest.end(asked.stream, code=2)
        shown = await process.collect()
        assert (shown.stdout, shown.stderr, shown.status.code) == (b"$ bye", b"!", 2)


async def test_who_does_not_wait_until_he_has_joined_a_program_leaves_it_alone() -> None:
    async with joined() as (client, guest):
        joining = asyncio.create_task(client.join(5, stdin=False))
        asked = await guest.expect(OpenReceived)
        joining.cancel()
        with pytest.raises(asyncio.CancelledError):
            await joining
        # The relay takes the one that comes first.
        assert await guest.expect(MessageReceived) == MessageReceived(asked.stream, "detach", {})


async def test_a_program_that_has_ended_cannot_be_left_nor_leaves_by_itself() -> None:
    async with joined() as (client, guest):
        process, opened = await asyncio.gather(client.exec(["true"]), guest.accept(7))
        await guest.end(opened.stream, code=0)
        with pytest.raises(StreamClosed, match="has ended"):
            await process.detach()
        assert (await process.wait()).success
        process, opened = await asyncio.gather(client.exec(["true"]), guest.accept(7))
        await guest.end(opened.stream, detached=True)
        with pytest.raises(RequestFailed):
            await process.wait()


async def test_a_program_runs_from_its_start_to_its_end() -> None:
    async with joined() as (client, guest):
        process, opened = await asyncio.gather(
            client.exec(
                ["sh", "-c", "x y\n", b"\xff", "\udcfe"],
                env={"A": "b c", "B": "\udc80"},
                cwd="/tmp",
                user="nobody",
                stdin="pipe",
                rlimits=[("nofile", 10, 20)],
                timeout=1.5,
            ),
            guest.accept(77),
        )
        assert opened.params == {
            "argv": [b"sh", b"-c", b"x y\n", b"\xff", b"\xfe"],
            "env": [b"A=b c", b"B=\x80"],
            "cwd": b"/tmp",
            "user": "nobody",
            "stdin": "pipe",
            "tty": None,
            "rlimits": [["nofile", 10, 20]],
            "timeout_ms": 1500,
        }
        assert process.pid == 77
        assert process.stdin is not None
        await process.stdin.write(b"in")
        await process.stdin.close()
        assert (await guest.expect(DataReceived)).data == b"in"
        await guest.expect(EofReceived)
        process.signal(15)
        assert await guest.expect(MessageReceived) == MessageReceived(opened.stream, "signal", {"signal": 15})
        await guest.write(opened.stream, STDOUT, b"out")
        await guest.write(opened.stream, STDERR, b"err")
        guest.connection.event(opened.stream, "exited", {"signal": 15})
        await guest.end(opened.stream, signal=15, timed_out=True, oom_killed=False)
        events = [event async for event in process]
        status = ExitStatus(None, 15, timed_out=True)
        assert events == [Stdout(b"out"), Stderr(b"err"), Exited(None, 15), Finished(status)]
        assert await process.wait() == status
        assert status.returncode == 143
        assert not status.success
        # What comes too late does nothing.
        process.signal(9)
        process.cancel()


@pytest.mark.parametrize("kind", ["not_found", "permission_denied", "bad_cwd", "too_many_streams"])
async def test_a_program_that_cannot_be_started_is_an_error_of_its_kind(kind: str) -> None:
    async with joined() as (client, guest):

        async def refuse() -> None:
            opened = await guest.expect(OpenReceived)
            guest.connection.end_error(opened.stream, kind, "it says", 2)
            await guest.flush()

        with pytest.raises(RequestFailed) as caught:
            await asyncio.gather(client.exec(["x"]), refuse())
        assert (caught.value.kind, caught.value.code, caught.value.errno) == (kind, kind, 2)
        assert caught.value.message == "it says"


@pytest.mark.parametrize(
    "body",
    [{}, {"code": "0"}, {"code": 0, "signal": 1}, {"code": 1 << 40}, {"error": 1}, {"error": {}}],
    ids=str,
)
async def test_a02_an_end_that_is_no_result_is_an_error(body: dict[str, int]) -> None:
    async with joined() as (client, guest):
        process, opened = await started(client, guest)
        guest.connection.end(opened.stream, dict(body))
        await guest.flush()
        with pytest.raises(RequestFailed) as caught:
            await process.wait()
        assert caught.value.kind == "invalid_reply"
        with pytest.raises(RequestFailed):
            await anext(process)


async def test_a02_an_end_before_the_start_is_no_success() -> None:
    async with joined() as (client, guest):

        async def end() -> None:
            await guest.end((await guest.expect(OpenReceived)).stream, code=0)

        with pytest.raises(RequestFailed, match="without a result"):
            await asyncio.gather(client.exec(["x"]), end())


@pytest.mark.parametrize(
    ("call", "error", "parameter"),
    [
        (lambda c: c.exec([]), ValueError, "argv"),
        (lambda c: c.exec("ls"), TypeError, "argv"),
        (lambda c: c.exec(["a\0b"]), ValueError, "argv"),
        (lambda c: c.exec(["\ud800"]), ValueError, "argv"),
        (lambda c: c.exec(["ls"], env={"A=B": "c"}), ValueError, "env"),
        (lambda c: c.exec(["ls"], env=["A"]), ValueError, "env"),
        (lambda c: c.exec(["ls"], env="A=1"), TypeError, "env"),
        (lambda c: c.exec(["ls"], stdin="inherit"), ValueError, "stdin"),
        (lambda c: c.exec(["ls"], timeout=0), ValueError, "timeout"),
        (lambda c: c.exec(["ls"], timeout=float("nan")), ValueError, "timeout"),
        (lambda c: c.exec(["ls"], rlimits=[("nofile", 2, 1)]), ValueError, "rlimits"),
        (lambda c: c.shutdown(-1), ValueError, "grace"),
    ],
)
async def test_a_wrong_parameter_is_named_and_nothing_is_sent(
    call: Callable[[AgentClient], Awaitable[object]], error: type[Exception], parameter: str
) -> None:
    async with joined() as (client, guest):
        with pytest.raises(error, match=parameter):
            await call(client)
        ping = asyncio.create_task(client.ping())
        opened = await guest.expect(OpenReceived)
        assert (opened.stream, opened.method) == (1, "ping")
        await guest.end(opened.stream)
        assert await ping >= 0


async def test_large_arguments_and_environments_arrive_unchanged() -> None:
    argv = [os.urandom(100_000).replace(b"\0", b"0") for _ in range(20)]
    env = {b"V%d" % n: os.urandom(100_000).replace(b"\0", b"0") for n in range(15)}
    async with joined() as (client, guest):
        opened = await both(client.exec(argv, env=env), guest.accept())
        assert opened.params["argv"] == argv
        assert opened.params["env"] == [name + b"=" + value for name, value in env.items()]
        with pytest.raises(ValueError, match="cap"):
            await client.exec(argv * 3)


async def test_exec_cancelled_before_it_started_is_cancelled_in_the_guest() -> None:
    async with joined() as (client, guest):
        task = asyncio.create_task(client.exec(["sleep"]))
        opened = await guest.expect(OpenReceived)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await guest.expect(CancelReceived) == CancelReceived(opened.stream)
        # The guest may have started it: what it says is thrown away, and costs it no credit.
        guest.connection.opened(opened.stream, {"pid": 1})
        await guest.write(opened.stream, STDOUT, bytes(3 * WINDOW_TO_HOST))
        await guest.end(opened.stream, signal=9)
        process, _ = await started(client, guest)
        assert process.id == 2


# ------------------------------------------------------------------------------------------------ output


async def test_a11_credit_goes_back_only_when_output_is_taken() -> None:
    async with joined() as (client, guest):
        process, opened = await started(client, guest)
        stream = opened.stream
        assert guest.connection.send_data(stream, STDOUT, bytes(WINDOW_TO_HOST + 1)) == WINDOW_TO_HOST
        await guest.flush()
        # Once the ping is answered, what was written before it has been handled by the client.
        ping = asyncio.create_task(client.ping())
        await guest.end((await guest.expect(OpenReceived)).stream)
        await ping
        taken = 0
        while taken < WINDOW_TO_HOST:
            event = await anext(process)
            assert isinstance(event, Stdout)
            taken += len(event.data)
        credit = await guest.expect(CreditReceived)
        assert credit == CreditReceived(stream, STDOUT, WINDOW_TO_HOST // 2)


async def test_a11_much_output_costs_constant_memory_and_is_cut_with_a_flag() -> None:
    size = 32 << 20
    async with joined() as (client, guest):
        process, opened = await started(client, guest)

        async def write() -> None:
            await guest.write(opened.stream, STDERR, b"e")
            for _ in range(size // (1 << 20)):
                await guest.write(opened.stream, STDOUT, b"o" * (1 << 20))
            await guest.end(opened.stream, code=0)

        tracemalloc.start()
        try:
            output, _ = await asyncio.gather(process.collect(1000), write())
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert output.truncated
        assert output.stdout == b"o" * 1000
        assert output.stderr == b"e"
        assert output.status.success
        assert peak < 8 << 20


async def test_output_that_fits_is_not_marked_as_cut() -> None:
    async with joined() as (client, guest):
        process, opened = await started(client, guest)
        await guest.write(opened.stream, STDOUT, b"1234")
        await guest.end(opened.stream, code=3)
        assert await process.collect(4) == (b"1234", b"", ExitStatus(3, None), False)


async def test_a_slow_consumer_does_not_hold_up_another_program() -> None:
    async with joined() as (client, guest):
        _, slow = await started(client, guest)
        quick, opened = await started(client, guest)
        guest.connection.send_data(slow.stream, STDOUT, bytes(WINDOW_TO_HOST))
        writing = asyncio.create_task(guest.write(opened.stream, STDOUT, bytes(4 * WINDOW_TO_HOST)))
        received = 0
        while received < 4 * WINDOW_TO_HOST:
            event = await anext(quick)
            assert isinstance(event, Stdout)
            received += len(event.data)
        await writing


async def test_output_that_nobody_wants_is_closed_and_does_not_stand_in_the_way() -> None:
    async with joined() as (client, guest):
        process, opened = await started(client, guest)
        guest.connection.send_data(opened.stream, STDOUT, bytes(WINDOW_TO_HOST))
        guest.connection.send_data(opened.stream, STDERR, b"kept")
        await guest.flush()
        assert isinstance(await anext(process), Stdout)
        process.close_output(STDOUT)
        message = None
        while message is None:
            event = await guest.next()
            assert isinstance(event, CreditReceived | MessageReceived)
            message = event if isinstance(event, MessageReceived) else None
        assert message == MessageReceived(opened.stream, "close", {"channel": STDOUT})
        await guest.write(opened.stream, STDOUT, bytes(WINDOW_TO_HOST))
        await guest.end(opened.stream, signal=13)
        events = [event async for event in process]
        assert events == [Stderr(b"kept"), Finished(ExitStatus(None, 13))]
        with pytest.raises(ValueError, match="channel"):
            process.close_output(STDIN)


async def test_a02_events_beyond_number_cost_nothing() -> None:
    async with joined() as (client, guest):
        process, opened = await started(client, guest)
        loop = asyncio.get_running_loop()
        noise = encode_frame(opened.stream, Kind.EVENT, {"e": "exited", "code": 1}) * 500
        noise += encode_frame(opened.stream, Kind.EVENT, {"e": "unheard of", "x": bytes(9000)}) * 500
        noise += encode_frame(opened.stream, Kind.EVENT, {"e": "stdin_closed"}) * 500
        noise += encode_frame(opened.stream, Kind.EVENT, {"e": "exited", "code": "no number"}) * 500
        for _ in range(3):
            await loop.sock_sendall(guest.socket, noise)
        await guest.end(opened.stream, code=1)
        events = [event async for event in process]
        assert events == [Exited(1, None), StdinClosed(), Finished(ExitStatus(1, None))]


async def test_waiting_and_iterating_at_the_same_time() -> None:
    async with joined() as (client, guest):
        process, opened = await started(client, guest)
        waiting = asyncio.create_task(process.wait())
        writing = asyncio.create_task(guest.write(opened.stream, STDOUT, bytes(2 * WINDOW_TO_HOST)))
        writing.add_done_callback(lambda _: guest.connection.end(opened.stream, {"code": 0}))
        total = 0
        async for event in process:
            if isinstance(event, Stdout):
                total += len(event.data)
            if total == 2 * WINDOW_TO_HOST:
                await writing
                await guest.flush()
        assert total == 2 * WINDOW_TO_HOST
        assert (await waiting).success


# ------------------------------------------------------------------------------------------------- input


async def test_writing_waits_for_the_program_to_read() -> None:
    data = os.urandom(3 * WINDOW_TO_GUEST)
    async with joined() as (client, guest):
        process, opened = await started(client, guest, stdin=True)
        assert process.stdin is not None
        writing = asyncio.create_task(process.stdin.write(data))
        received = b""
        while len(received) < WINDOW_TO_GUEST:
            received += (await guest.expect(DataReceived)).data
        assert not writing.done()
        while len(received) < len(data):
            guest.connection.consumed(opened.stream, STDIN, WINDOW_TO_GUEST)
            await guest.flush()
            wanted = min(len(data), len(received) + WINDOW_TO_GUEST)
            while len(received) < wanted:
                received += (await guest.expect(DataReceived)).data
        await writing
        assert received == data


async def test_a_program_that_closes_its_input_stops_the_writer() -> None:
    async with joined() as (client, guest):
        process, opened = await started(client, guest, stdin=True)
        assert process.stdin is not None
        writing = asyncio.create_task(process.stdin.write(bytes(5 * WINDOW_TO_GUEST)))
        await guest.expect(DataReceived)
        guest.connection.event(opened.stream, "stdin_closed")
        await guest.flush()
        with pytest.raises(StreamClosed):
            await writing
        assert await anext(process) == StdinClosed()
        with pytest.raises(StreamClosed):
            await process.stdin.write(b"x")


async def test_a_program_that_ends_stops_the_writer() -> None:
    async with joined() as (client, guest):
        process, opened = await started(client, guest, stdin=True)
        assert process.stdin is not None
        writing = asyncio.create_task(process.stdin.write(bytes(5 * WINDOW_TO_GUEST)))
        await guest.expect(DataReceived)
        await guest.end(opened.stream, code=0)
        with pytest.raises(StreamClosed):
            await writing
        await process.stdin.close()
        assert (await process.wait()).success


async def test_a_program_without_a_pipe_has_no_stdin() -> None:
    async with joined() as (client, guest):
        process, _ = await started(client, guest)
        assert process.stdin is None


async def test_leaving_a_process_cancels_it() -> None:
    async with joined() as (client, guest):
        process, opened = await started(client, guest, stdin=True)
        async with process:
            pass
        assert await guest.expect(CancelReceived) == CancelReceived(opened.stream)
        await guest.write(opened.stream, STDOUT, bytes(2 * WINDOW_TO_HOST))
        await guest.end(opened.stream, signal=9)
        assert await process.wait() == ExitStatus(None, 9)
        assert process.stdin is not None
        with pytest.raises(StreamClosed):
            await process.stdin.write(b"x")


# -------------------------------------------------------------------------------------- lost connections


async def test_a15_a_connection_lost_after_dispatch_leaves_the_outcome_unknown() -> None:
    async with joined() as (client, guest):
        running, opened = await started(client, guest, stdin=True)
        assert running.stdin is not None
        await guest.write(opened.stream, STDOUT, b"seen")
        starting = asyncio.create_task(client.exec(["rm", "-rf", "/x"]))
        await guest.expect(OpenReceived)
        pinging = asyncio.create_task(client.ping())
        await guest.expect(OpenReceived)
        writing = asyncio.create_task(running.stdin.write(bytes(2 * WINDOW_TO_GUEST)))
        await guest.expect(DataReceived)
        guest.close()
        for task in (starting, pinging, writing):
            with pytest.raises(OutcomeUnknown) as caught:
                await task
            assert caught.value.code == "outcome_unknown"
        # What had come is still there, and then the truth.
        assert await anext(running) == Stdout(b"seen")
        with pytest.raises(OutcomeUnknown):
            await anext(running)
        with pytest.raises(OutcomeUnknown):
            await running.wait()
        with pytest.raises(OutcomeUnknown):
            await running.collect()
        # What was never sent is known not to have happened.
        with pytest.raises(ConnectionLost):
            await client.exec(["x"])
        assert client.closed
        running.signal(9)
        running.cancel()


async def test_a15_a_result_that_came_before_the_loss_is_kept() -> None:
    async with joined() as (client, guest):
        process, opened = await started(client, guest)
        await guest.end(opened.stream, code=5)
        guest.close()
        assert await process.wait() == ExitStatus(5, None)


async def test_a15_nothing_is_sent_again() -> None:
    async with joined() as (client, guest):
        task = asyncio.create_task(client.exec(["once"]))
        await guest.expect(OpenReceived)
        guest.socket.shutdown(socket.SHUT_WR)
        with pytest.raises(OutcomeUnknown):
            await task
        await guest.gone()


async def test_a01_a_guest_that_breaks_the_protocol_is_told_and_left() -> None:
    async with joined() as (client, guest):
        process, opened = await started(client, guest)
        crime = encode_data(opened.stream, STDIN, b"x") + b"x"
        await asyncio.get_running_loop().sock_sendall(guest.socket, crime)
        with pytest.raises(OutcomeUnknown, match="channel 0"):
            await process.wait()
        failed = await guest.expect(Failed)
        assert isinstance(failed.error, PeerError)
        assert failed.error.code == "frame"
        assert client.closed


async def test_closing_the_client_ends_what_it_started() -> None:
    async with joined() as (client, guest):
        process, _ = await started(client, guest)
        await client.close()
        await client.close()
        with pytest.raises(OutcomeUnknown):
            await process.wait()
        with pytest.raises(ConnectionLost):
            await client.ping()
        await guest.gone()


# ------------------------------------------------------------------------------------------ other methods

CONFIGURATION = Configure(
    entropy=b"e" * 64,
    time_ns=1_700_000_000_000_000_000,
    hostname="box",
    machine_id="0123456789abcdef" * 2,
    image=Disk("/dev/vdb", "erofs"),
    upper=Disk("/dev/vdc", "ext4"),
    hosts=[("10.0.0.1", ["a", "b"])],
    resolv_conf=b"nameserver 10.0.0.2\n",
)


async def test_configure_says_everything_and_returns_timings() -> None:
    async with joined() as (client, guest):

        async def configure() -> OpenReceived:
            opened = await guest.expect(OpenReceived)
            guest.connection.end(opened.stream, {"timings": {"entropy": 12, "odd": "x"}})
            await guest.flush()
            return opened

        timings, opened = await asyncio.gather(client.configure(CONFIGURATION), configure())
        assert timings == {"entropy": 12}
        assert opened.method == "configure"
        assert opened.params["image"] == {"device": "/dev/vdb", "fstype": "erofs"}
        assert opened.params["hosts"] == [["10.0.0.1", ["a", "b"]]]
        assert opened.params["entropy"] == b"e" * 64


async def test_configure_that_fails_says_where() -> None:
    async with joined() as (client, guest):

        async def refuse() -> None:
            opened = await guest.expect(OpenReceived)
            guest.connection.end(
                opened.stream, {"error": {"kind": "configure_failed", "message": "", "stage": "upper"}}
            )
            await guest.flush()

        with pytest.raises(RequestFailed) as caught:
            await asyncio.gather(client.configure(CONFIGURATION), refuse())
        assert caught.value.details["stage"] == "upper"


@pytest.mark.parametrize(
    "change",
    [
        {"entropy": b"short"},
        {"hostname": ""},
        {"hostname": "x" * 64},
        {"machine_id": "0" * 31},
        {"machine_id": "G" * 32},
        {"time_ns": -1},
    ],
    ids=str,
)
async def test_a_wrong_configuration_is_not_sent(change: dict[str, str | bytes | int]) -> None:
    (name,) = change
    with pytest.raises(ValueError, match=name):
        CONFIGURATION._replace(**change).params()  # type: ignore[arg-type]  # wrong on purpose


async def test_the_entropy_is_not_printed() -> None:
    assert "eeee" not in repr(CONFIGURATION)


async def test_shutdown_waits_for_the_guest_to_be_done() -> None:
    async with joined() as (client, guest):
        task = asyncio.create_task(client.shutdown(2.5))
        opened = await guest.expect(OpenReceived)
        assert (opened.method, opened.params) == ("shutdown", {"grace_ms": 2500})
        assert not task.done()
        await guest.end(opened.stream)
        await task


async def test_a07_a_thousand_programs_at_once() -> None:
    async with joined() as (client, guest):

        async def run(number: int) -> int:
            process = await client.exec([b"%d" % number])
            output = await process.collect()
            assert output.stdout == b"%d" % number
            return output.status.returncode

        async def answer() -> None:
            for _ in range(1000):
                opened = await guest.expect(OpenReceived)
                argv = opened.params["argv"]
                assert isinstance(argv, list)
                assert isinstance(argv[0], bytes)
                guest.connection.opened(opened.stream, {"pid": 1})
                guest.connection.send_data(opened.stream, STDOUT, argv[0])
                guest.connection.end(opened.stream, {"code": int(argv[0]) % 7})
                await guest.flush()

        codes, _ = await asyncio.gather(asyncio.gather(*map(run, range(1000))), answer())
        assert codes == [number % 7 for number in range(1000)]
