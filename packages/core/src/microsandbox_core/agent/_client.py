"""An asyncio client of a guest's agent, over a supervisor's `agent.sock` or a guest's port."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal

from ..channel import (
    ChannelError,
    ConnectionLost,
    Control,
    DataReceived,
    Ended,
    Event,
    Failed,
    HandshakeTimeout,
    HelloReceived,
    HostConnection,
    HostHelloReceived,
    Opened,
    OutcomeUnknown,
    RequestFailed,
)
from ..requests import Configure, Environment, Exec, TerminalSize, Text
from ..unix_socket import connect_unix
from ._process import ExitStatus, Process, failure, status_of

if TYPE_CHECKING:
    from ._sessions import Session

HANDSHAKE_TIMEOUT: Final = 10.0
"""Seconds for connecting and for the peer's HELLO."""
_READ_SIZE: Final = 1 << 18
_CONNECT_RETRY: Final = 0.01

Target = str | bytes | os.PathLike[str] | socket.socket


class _Reply:
    """A stream that has nothing but its end."""

    def __init__(self, method: str, future: asyncio.Future[Control]) -> None:
        self.method = method
        self.future = future
        self.opened = False
        """Whether the peer has said that it is at it."""

    def handle(self, event: Event) -> None:
        if self.future.done():
            return
        if isinstance(event, Ended):
            error: ChannelError | None = failure(event.body)
            if error is None:
                self.future.set_result(event.body)
                return
        elif isinstance(event, Failed):
            error = OutcomeUnknown(
                f"the connection was lost before {self.method} was answered: {event.error}"
            )
        else:
            self.opened = self.opened or isinstance(event, Opened)
            return
        self.future.set_exception(error)


class AgentClient:
    """A connection to a guest's agent. Made by `connect`; an asynchronous context manager.

    It belongs to the event loop that made it. Every method that talks to the guest raises `ConnectionLost`
    if the connection is already over when it is called, and `OutcomeUnknown` if it ends before the answer.
    """

    def __init__(self, connection: socket.socket, *, name: str = "microsandbox") -> None:
        connection.setblocking(False)
        self._socket = connection
        self._loop = asyncio.get_running_loop()
        self._connection = HostConnection(name)
        self._handlers: dict[int, Callable[[Event], None]] = {}
        # Programs that read from a pipe: those whose writers may wait for us.
        self._writers: dict[int, Process] = {}
        self._buffer = memoryview(bytearray(_READ_SIZE))
        self._greeted = asyncio.Event()
        self._writing = False
        self._open = True
        self._send_failed = False
        self.hello: HelloReceived | None = None
        """What the peer said of itself: untrusted text."""
        self._loop.add_reader(connection.fileno(), self._on_readable)

    @classmethod
    async def connect(
        cls, target: Target, *, timeout: float | None = HANDSHAKE_TIMEOUT, name: str = "microsandbox"
    ) -> AgentClient:
        """Connects to a unix socket's path of any length, or takes over a connected stream socket.

        `timeout` is in seconds and covers the handshake; None: as long as that takes. Raises
        `ConnectionLost`, `HandshakeTimeout`, `ProtocolError` or `PeerError`.
        """
        client: AgentClient | None = None
        try:
            async with asyncio.timeout(timeout):
                client = cls(await _connected(target), name=name)
                client._flush()
                await client._greeted.wait()
        except TimeoutError:
            raise HandshakeTimeout(f"no HELLO within {timeout} seconds") from None
        finally:
            if client is not None and client.hello is None:
                client._close(ConnectionLost("the handshake did not succeed"))
        if client._connection.error is not None and client.hello is None:
            raise client._connection.error
        return client

    # ----------------------------------------------------------------------------------------- requests

    async def exec(
        self,
        argv: Sequence[Text],
        *,
        env: Environment = (),
        cwd: Text | None = None,
        user: str | None = None,
        stdin: Literal["null", "pipe"] = "null",
        rlimits: Sequence[tuple[str, int, int]] = (),
        timeout: float | None = None,
        tty: TerminalSize | None = None,
        main: bool = False,
        keep: bool = False,
    ) -> Process:
        """Runs a program; returns when its image has been loaded.

        `str` arguments are encoded as `os.fsencode` does. `env` is the whole environment. `rlimits` are
        `(name, soft, hard)`. `timeout` is in seconds; the guest keeps it and then kills the process group.
        `tty`: a terminal of this size controls the program and is its standard output and error, which come
        as one, and its standard input if that is a pipe. `main`: the sandbox is there for it, which a
        supervisor's relay notes, and which a guest does not know. `keep`: that remembers how it ends, also if
        it does before it is left.
        Raises `RequestFailed` (`kind`: `not_found`, `permission_denied`, `bad_cwd`, `user_not_found`,
        `exec_failed`, ...), `TooManyStreams`, and `ValueError` or `TypeError` that name a parameter.
        If the calling task is cancelled the program is killed.
        """
        request = Exec(argv, env, cwd, user, stdin, rlimits, timeout, tty, main, keep)
        return await self._start("exec", request.params(), stdin=stdin == "pipe")

    async def files(self, operation: str, params: Control) -> Process:
        """Begins an operation on files of the guest: see `files` in `docs/agent-channel.md`.

        Its input and output are the process's, and what it says of itself at the end comes as standard
        error. Raises `RequestFailed` and `TooManyStreams`. If the calling task is cancelled it is ended.
        """
        return await self._start("files", {"operation": operation, **params}, stdin=True)

    async def _start(self, method: str, params: Control, *, stdin: bool) -> Process:
        stream = self._dispatch(method, params)
        process = Process(self._connection, stream, self._flush, stdin=stdin)
        self._handlers[stream] = process._handle
        if process.stdin is not None:
            self._writers[stream] = process
        self._flush()
        try:
            await process._start()
        except asyncio.CancelledError:
            if method == "attach":
                self._connection.message(stream, "detach")  # it is not to be killed
            self._forget(stream)
            raise
        return process

    async def sessions(self, *, ended: bool = False) -> list[Session]:
        """The programs that were left to themselves and still run, in the order of their start. `ended`:
        those too that have ended, the last hundred.

        Raises `RequestFailed`: it is the supervisor's relay that knows, not a guest.
        """
        from ._sessions import read_session

        more_wanted: Control = {"ended": True} if ended else {}
        found: list[Session] = []
        more = True
        while more:
            body = await self.request("sessions", {"after": found[-1].number if found else 0, **more_wanted})
            told = body.get("sessions")
            added = [read_session(item) for item in told] if isinstance(told, list) else []
            found += added
            more = bool(added) and body.get("more") is True
        return found

    async def outcome(self, number: int | None = None) -> ExitStatus:
        """How one of `sessions` has ended, or has when it does; None: the command that the sandbox is there
        for, whenever that comes.

        Raises `RequestFailed` (`kind`: `no_session`; what kept the command from being started). If the
        connection is lost, `OutcomeUnknown`: until then the command had not ended; or `ConnectionLost` if it
        was lost before the relay had heard of the question.
        """
        reply = _Reply("outcome", self._loop.create_future())
        try:
            body = await self._answer(reply, {} if number is None else {"session": number})
        except OutcomeUnknown as error:
            if reply.opened:
                raise
            raise ConnectionLost(str(error)) from error
        status = status_of(body)
        if status is None:
            raise RequestFailed("invalid_reply", "the end of a command without a result", None, dict(body))
        return status

    async def join(self, number: int, *, stdin: bool) -> Process:
        """Joins one of `sessions`, whose `stdin` is passed on, until it has ended or is left again: by
        `detach`, or by the end of this connection. What it printed last while nobody was joined comes first.

        Raises `RequestFailed` (`kind`: `no_session`, `joined`).
        """
        return await self._start("attach", {"session": number}, stdin=stdin)

    async def request(self, method: str, params: Control | None = None) -> Control:
        """Sends a request that has no data and returns what its END says. Raises `RequestFailed`."""
        return await self._answer(_Reply(method, self._loop.create_future()), params)

    async def _answer(self, reply: _Reply, params: Control | None) -> Control:
        stream = self._dispatch(reply.method, params)
        self._handlers[stream] = reply.handle
        self._flush()
        try:
            return await reply.future
        except asyncio.CancelledError:
            self._forget(stream)
            raise

    async def ping(self) -> float:
        """The time a request to the agent and its answer take, in seconds."""
        started = self._loop.time()
        await self.request("ping")
        return self._loop.time() - started

    async def configure(self, configuration: Configure) -> dict[str, int]:
        """Configures the guest, once. Returns the microseconds that each step took.

        Raises `RequestFailed` of kind `configure_failed`, with the `stage` in its `details`.
        """
        timings = (await self.request("configure", configuration.params())).get("timings")
        if not isinstance(timings, dict):
            return {}
        return {step: taken for step, taken in timings.items() if type(taken) is int}

    async def shutdown(self, grace: float = 5.0) -> None:
        """Ends every process, after `grace` seconds by force, and the guest.

        Returns when file systems are unmounted; the connection ends soon after.
        """
        if not 0 <= grace < 2**40:
            raise ValueError(f"grace: {grace} is not a number of seconds")
        await self.request("shutdown", {"grace_ms": round(grace * 1000)})

    @property
    def closed(self) -> bool:
        """Whether the connection is over."""
        return not self._open

    async def close(self) -> None:
        """Ends the connection: programs that it started are killed, and their outcome is unknown."""
        self._close(ConnectionLost("the client was closed"))

    async def __aenter__(self) -> AgentClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _dispatch(self, method: str, params: Control | None) -> int:
        if not self._open:
            reason = self._connection.error
            raise ConnectionLost(f"{method} was not sent: {reason}")
        return self._connection.open(method, params)

    def _forget(self, stream: int) -> None:
        """Nobody waits for this stream any more: ends it, and lets its frames go nowhere."""
        self._handlers.pop(stream, None)
        self._writers.pop(stream, None)
        self._connection.cancel(stream)
        self._flush()

    # -------------------------------------------------------------------------------------------- bytes

    def _on_readable(self) -> None:
        try:
            count = self._socket.recv_into(self._buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._close(ConnectionLost(f"the connection failed: {error.strerror}"))
            return
        if count:
            self._handle(self._connection.receive(self._buffer[:count]))
            self._flush()
        else:
            self._close(ConnectionLost("the peer closed the connection"))

    def _handle(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, HelloReceived):
                self.hello = event
                self._greeted.set()
            elif isinstance(event, Failed):
                self._fail(event)
            elif not isinstance(event, HostHelloReceived):
                handler = self._handlers.get(event.stream)
                if handler is not None:
                    handler(event)
                elif isinstance(event, DataReceived):
                    self._connection.consumed(event.stream, event.channel, len(event.data))
                if isinstance(event, Ended):
                    self._handlers.pop(event.stream, None)
                    self._writers.pop(event.stream, None)

    def _fail(self, event: Failed) -> None:
        # A last attempt to say why, then nothing is heard any more.
        self._send()
        self._release()
        self._greeted.set()
        handlers, self._handlers = self._handlers, {}
        self._writers.clear()
        for handler in handlers.values():
            handler(event)

    def _close(self, error: ConnectionLost) -> None:
        self._handle(self._connection.give_up(error))

    def _release(self) -> None:
        if self._open:
            self._open = False
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
            self._socket.close()

    def _flush(self) -> None:
        if self._open and not self._writing:
            self._send()

    def _send(self) -> None:
        progress = False
        blocked = False
        while self._open and not self._send_failed and (pieces := self._connection.output()):
            try:
                self._connection.sent(self._socket.sendmsg(pieces))
                progress = True
            except (BlockingIOError, InterruptedError):
                blocked = True
                break
            except OSError:
                # What the peer said last is still to be read; then reading fails too.
                self._send_failed = True
        if blocked != self._writing and self._open:
            self._writing = blocked
            if blocked:
                self._loop.add_writer(self._socket.fileno(), self._send)
            else:
                self._loop.remove_writer(self._socket.fileno())
        if progress:
            for process in self._writers.values():
                process._wake_writer()


async def _connected(target: Target) -> socket.socket:
    if isinstance(target, socket.socket):
        return target
    while True:
        try:
            return connect_unix(target)
        except BlockingIOError:
            # The listener's backlog is full; nothing tells when it is not.
            await asyncio.sleep(_CONNECT_RETRY)
        except OSError as error:
            raise ConnectionLost(f"cannot connect to {os.fsdecode(target)}: {error.strerror}") from error
