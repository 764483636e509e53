"""A program that runs in the guest, seen from an asyncio client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Final, NamedTuple

from ..channel import (
    STDERR,
    STDIN,
    STDOUT,
    ChannelError,
    CreditReceived,
    DataReceived,
    Ended,
    EofReceived,
    Event,
    EventReceived,
    Failed,
    HostConnection,
    Opened,
    OutcomeUnknown,
    RequestFailed,
    StreamClosed,
    Value,
)
from ..channel._chunks import Chunk, ChunkQueue
from ..requests import TerminalSize

COLLECT_LIMIT: Final = 16 << 20
"""Bytes of each output that `collect` keeps unless told otherwise."""


class ExitStatus(NamedTuple):
    """How a program ended: with a code or by a signal; and why, if it was not its own doing."""

    code: int | None
    signal: int | None
    timed_out: bool = False
    oom_killed: bool = False

    @property
    def success(self) -> bool:
        """Whether it exited with code 0 and in time."""
        return self.code == 0 and not self.timed_out

    @property
    def returncode(self) -> int:
        """The code, or 128 plus the signal's number, as shells say it."""
        return self.code if self.code is not None else 128 + (self.signal or 0)


class Stdout(NamedTuple):
    """A piece of standard output."""

    data: bytes


class Stderr(NamedTuple):
    """A piece of standard error."""

    data: bytes


class StdinClosed(NamedTuple):
    """The program has closed its standard input: nothing written will be read."""


class Exited(NamedTuple):
    """The process is gone; output of its descendants may still come."""

    code: int | None
    signal: int | None


class Finished(NamedTuple):
    """The last event: the output is complete."""

    status: ExitStatus


ProcessEvent = Stdout | Stderr | StdinClosed | Exited | Finished


class Output(NamedTuple):
    """All that a program wrote, or the first `limit` bytes of each channel if `truncated`."""

    stdout: bytes
    stderr: bytes
    status: ExitStatus
    truncated: bool


def failure(body: dict[str, Value]) -> RequestFailed | None:
    """The error that an END carries, if it carries one. Text in it is the guest's and untrusted."""
    error = body.get("error")
    if error is None:
        return None
    if not isinstance(error, dict):
        return RequestFailed("invalid_reply", "the guest's error is not a map", None, {})
    kind, message, errno = error.get("kind"), error.get("message"), error.get("errno")
    if type(kind) is not str:
        return RequestFailed("invalid_reply", "the guest's error has no kind", None, dict(error))
    return RequestFailed(
        kind, message if type(message) is str else "", errno if type(errno) is int else None, dict(error)
    )


def _how(body: dict[str, Value]) -> tuple[int | None, int | None] | None:
    """The code and the signal of a result; None if it is no result."""
    code, signal = body.get("code"), body.get("signal")
    if type(code) is int and signal is None and 0 <= code <= 255:
        return code, None
    if type(signal) is int and code is None and 1 <= signal <= 127:
        return None, signal
    return None


def status_of(body: dict[str, Value]) -> ExitStatus | None:
    """How a program ended, from what END says of that; None if that is no result."""
    how = _how(body)
    if how is None:
        return None
    return ExitStatus(
        *how, timed_out=body.get("timed_out") is True, oom_killed=body.get("oom_killed") is True
    )


class Stdin:
    """The writing end of a program's standard input."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._lock = asyncio.Lock()
        self._writable = asyncio.Event()
        self._closed = False

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Returns when all of `data` is on its way, waiting while the program does not read.

        `data` must not change meanwhile. Raises `StreamClosed` if the program has closed its input or has
        ended, `OutcomeUnknown` if the connection is lost.
        """
        async with self._lock:
            rest = memoryview(data).cast("B")
            while len(rest):
                if self._closed:
                    raise StreamClosed("standard input is closed")
                self._process._raise_if_lost()
                accepted = self._process._connection.send_data(self._process.id, STDIN, rest)
                rest = rest[accepted:]
                self._process._flush()
                if len(rest):
                    self._writable.clear()
                    await self._writable.wait()

    async def close(self) -> None:
        """Says that nothing more comes, behind what was written. Does nothing the second time."""
        async with self._lock:
            if not self._closed and self._process._status is None and self._process._error is None:
                self._process._connection.send_eof(self._process.id, STDIN)
                self._process._flush()
            self._closed = True

    def _wake(self) -> None:
        self._writable.set()

    def _shut(self) -> None:
        self._closed = True
        self._writable.set()


class Process:
    """A program in the guest: iterate over it for its events, or `collect` all of them.

    Credit for output goes back when an event is taken: a program whose output nobody takes stops at its
    next write, and costs this side at most 256 KiB a channel. As an asynchronous context manager it is
    cancelled if it has not ended.
    """

    def __init__(
        self, connection: HostConnection, stream: int, flush: Callable[[], None], *, stdin: bool
    ) -> None:
        self.id: Final = stream
        self.pid = 0
        """The process's id inside the guest."""
        self.stdin: Final = Stdin(self) if stdin else None
        """Where to write its input; None unless it was started with `stdin="pipe"`."""
        self._connection = connection
        self._flush = flush
        self._queue: ChunkQueue[ProcessEvent] = ChunkQueue()
        self._discarded: set[int] = set()
        self._seen: set[str] = set()
        self._changed = asyncio.Event()
        self._over = asyncio.Event()
        self._accepted = asyncio.Event()
        self._status: ExitStatus | None = None
        self._error: ChannelError | None = None
        self._detaching = False
        self.detached = False
        """Whether it was left to itself; then no more events come."""

    # -------------------------------------------------------------------------------------- for callers

    def __aiter__(self) -> Process:
        return self

    async def __anext__(self) -> ProcessEvent:
        """The next event. Raises `OutcomeUnknown` if the connection was lost, after what came before."""
        while not len(self._queue):
            if self._status is not None or self.detached:
                raise StopAsyncIteration
            if self._error is not None:
                raise self._error
            self._changed.clear()
            await self._changed.wait()
        entry = self._queue.pop()
        if not isinstance(entry, Chunk):
            return entry
        self._connection.consumed(self.id, entry.channel, len(entry.data))
        self._flush()
        data = bytes(entry.data)
        return Stdout(data) if entry.channel == STDOUT else Stderr(data)

    async def wait(self) -> ExitStatus:
        """How the program ended, when its output is complete. Takes no output.

        A program that writes more than 256 KiB does not end until someone iterates, collects or closes
        the output. Raises `OutcomeUnknown` if the connection is lost, and `RequestFailed` for a reply that
        is none.
        """
        await self._over.wait()
        if self._status is None:
            assert self._error is not None
            raise self._error
        return self._status

    async def collect(self, limit: int = COLLECT_LIMIT) -> Output:
        """Takes all output until the end and keeps the first `limit` bytes of each channel.

        What is beyond is read and thrown away, and the result says `truncated`. Raises as `wait` does.
        """
        kept = {STDOUT: bytearray(), STDERR: bytearray()}
        truncated = False
        async for event in self:
            if isinstance(event, Stdout | Stderr):
                buffer = kept[STDOUT if isinstance(event, Stdout) else STDERR]
                room = limit - len(buffer)
                truncated = truncated or len(event.data) > room
                buffer += event.data[:room]
        return Output(bytes(kept[STDOUT]), bytes(kept[STDERR]), await self.wait(), truncated)

    def signal(self, number: int) -> None:
        """Sends a signal to the process group, ahead of any input. Does nothing once it has ended."""
        self._message("signal", {"signal": number})

    def resize(self, size: TerminalSize) -> None:
        """Sets the size of the program's terminal, of which it is told by SIGWINCH. Does nothing once it has
        ended. Raises `ValueError`. A program without a terminal is killed for it."""
        self._message("resize", size.params())

    async def detach(self, *, last: bool = False) -> None:
        """Leaves the program to itself: it goes on when this connection ends, what it writes is thrown away,
        and its input stays open with nothing more to come. No more events come here. `last`: the sandbox
        ends with it.

        It is the supervisor's relay that does this; on a connection to the guest itself it never returns.
        Raises `StreamClosed` if the program has ended first, `OutcomeUnknown` if the connection is lost.
        """
        self._detaching = True
        self._message("detach", {"last": True} if last else {})
        await self._over.wait()
        if not self.detached:
            self._raise_if_lost()
            raise StreamClosed("the program has ended")

    def close_output(self, channel: int) -> None:
        """Takes no more of channel 1 or 2: the program's next write there gets SIGPIPE."""
        if channel not in (STDOUT, STDERR):
            raise ValueError(f"channel: {channel} is neither 1 nor 2")
        self._discard(channel)
        self._message("close", {"channel": channel})

    def cancel(self) -> None:
        """Kills the process group with SIGKILL. Its end is still reported. Does nothing once it has ended."""
        self._connection.cancel(self.id)
        self._flush()
        if self.stdin is not None:
            self.stdin._shut()

    async def __aenter__(self) -> Process:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._over.is_set():
            for channel in (STDOUT, STDERR):
                self._discard(channel)
            self.cancel()

    def _discard(self, channel: int) -> None:
        """Throws away what comes on a channel, and what has come: the stream's end may wait behind it."""
        self._discarded.add(channel)
        kept: ChunkQueue[ProcessEvent] = ChunkQueue()
        while len(self._queue):
            entry = self._queue.pop()
            if not isinstance(entry, Chunk):
                kept.push_mark(entry)
            elif entry.channel == channel:
                self._connection.consumed(self.id, channel, len(entry.data))
            else:
                kept.push(entry.channel, entry.data)
        self._queue = kept

    def _message(self, name: str, body: dict[str, Value]) -> None:
        if not self._over.is_set():
            self._connection.message(self.id, name, body)
            self._flush()

    def _raise_if_lost(self) -> None:
        if self._error is not None:
            raise self._error

    # ----------------------------------------------------------------------------------- for the client

    async def _start(self) -> None:
        """Waits until the program runs. Raises `RequestFailed` or `OutcomeUnknown`."""
        await self._accepted.wait()
        self._raise_if_lost()

    def _handle(self, event: Event) -> None:
        if isinstance(event, DataReceived):
            if event.channel in self._discarded:
                self._connection.consumed(self.id, event.channel, len(event.data))
                return
            self._queue.push(event.channel, event.data)
        elif isinstance(event, CreditReceived):
            self._wake_writer()
            return
        elif isinstance(event, EofReceived):
            return
        elif isinstance(event, Opened):
            pid = event.body.get("pid")
            self.pid = pid if type(pid) is int else 0
            self._take_printed(event.body.get("printed"))
            self._accepted.set()
            return
        elif isinstance(event, EventReceived):
            self._happened(event)
        elif isinstance(event, Ended):
            self._ended(event.body)
        elif isinstance(event, Failed):
            self._end_with(OutcomeUnknown(f"the connection was lost while a program ran: {event.error}"))
        self._changed.set()

    def _take_printed(self, printed: Value) -> None:
        """What a program that is joined printed before: it costs no credit."""
        for item in printed if isinstance(printed, list) else ():
            match item:
                case [1, bytes(data)]:
                    self._queue.push_mark(Stdout(data))
                case [2, bytes(data)]:
                    self._queue.push_mark(Stderr(data))

    def _happened(self, event: EventReceived) -> None:
        # Each at most once, whatever the guest says: events cost it no credit.
        if event.name in self._seen:
            return
        if event.name == "exited":
            how = _how(event.body)
            if how is not None:
                self._seen.add(event.name)
                self._queue.push_mark(Exited(*how))
        elif event.name == "stdin_closed":
            self._seen.add(event.name)
            self._queue.push_mark(StdinClosed())
            if self.stdin is not None:
                self.stdin._shut()

    def _ended(self, body: dict[str, Value]) -> None:
        if self._detaching and body.get("detached") is True:
            self.detached = True
            self._end_with(StreamClosed("the program was left to itself"))
            return
        error = failure(body)
        status = status_of(body)
        if error is None and (status is None or not self._accepted.is_set()):
            error = RequestFailed("invalid_reply", "the guest ended exec without a result", None, dict(body))
        if error is not None:
            self._end_with(error)
            return
        assert status is not None
        self._status = status
        self._queue.push_mark(Finished(self._status))
        self._finish()

    def _end_with(self, error: ChannelError) -> None:
        self._error = error
        self._finish()

    def _finish(self) -> None:
        self._accepted.set()
        self._over.set()
        if self.stdin is not None:
            self.stdin._wake() if isinstance(self._error, OutcomeUnknown) else self.stdin._shut()

    def _wake_writer(self) -> None:
        if self.stdin is not None:
            self.stdin._wake()
