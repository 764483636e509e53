"""Running commands: what is given to one, what comes back."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Literal, NamedTuple

from microsandbox_core.agent import Finished, Stderr, StdinClosed, Stdout, TerminalSize
from microsandbox_core.agent import Stdin as ProcessStdin
from microsandbox_core.channel import ChannelError, ConnectionLost, RequestFailed
from microsandbox_core.channel import OutcomeUnknown as ChannelOutcomeUnknown

from microsandbox._denials import Window
from microsandbox.errors import ExecError, ExecFailed, ExecTimeout, NetworkLost, NotRunning, OutcomeUnknown

if TYPE_CHECKING:
    from microsandbox_core.agent import AgentClient, Process, ProcessEvent

    from microsandbox.audit import AuditRecord

_CHUNK = 1 << 16

COLLECT_LIMIT = 64 << 20
"""Bytes of each kind of output that `ExecHandle.collect` keeps: a command must not fill the host's memory."""

_FAILURE_HINTS = {
    "not_found": "check the spelling, and that the image has it; a path is looked up inside the sandbox",
    "permission_denied": "make the file executable, or run it by its interpreter",
    "bad_cwd": "choose a working directory that exists in the sandbox",
    "user_not_found": "use a user of the image's /etc/passwd, or a number",
}


@dataclass(frozen=True, slots=True)
class Stdin:
    """What a command reads on its standard input: make one with `null`, `pipe`, `bytes` or `file`."""

    kind: str
    data: bytes = field(default=b"", repr=False)
    path: Path | None = None

    @classmethod
    def null(cls) -> Stdin:
        """/dev/null."""
        return cls("null")

    @classmethod
    def pipe(cls) -> Stdin:
        """A pipe that the caller writes to; see `ExecHandle.take_stdin`."""
        return cls("pipe")

    @classmethod
    def bytes(cls, data: bytes) -> Stdin:
        """These bytes, then the end."""
        return cls("bytes", data=data)

    @classmethod
    def file(cls, path: str | os.PathLike[str]) -> Stdin:
        """The content of a file of the host, then the end."""
        return cls("file", path=Path(path))


@dataclass(frozen=True, slots=True)
class Terminal:
    """The terminal of a command: its size in characters, and what it is, for the variable TERM."""

    rows: int = 24
    cols: int = 80
    term: str = "xterm"


@dataclass(frozen=True, slots=True)
class ExecOutput:
    """What a finished command left: `exit_code`, or `signal` if one killed it, its output, and
    `duration` in seconds as seen from here. `oom_killed`: the guest ran out of memory and killed it.
    `truncated`: there was more output than `COLLECT_LIMIT`, of which this is the beginning. `denied`: what
    the sandbox's network denied while the command ran, to whomever in it; at most the last thousand."""

    exit_code: int | None
    signal: int | None
    timed_out: bool
    oom_killed: bool
    stdout_bytes: bytes
    stderr_bytes: bytes
    duration: float
    truncated: bool = False
    denied: tuple[AuditRecord, ...] = ()

    @property
    def success(self) -> bool:
        """Exit code 0, within the time limit."""
        return self.exit_code == 0 and not self.timed_out

    @property
    def stdout_text(self) -> str:
        """Standard output as UTF-8; what is not is replaced."""
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr_text(self) -> str:
        """Standard error as UTF-8; what is not is replaced."""
        return self.stderr_bytes.decode(errors="replace")


class ExecStarted(NamedTuple):
    """The first event: the command runs, as this process in the sandbox."""

    pid: int
    kind: Literal["started"] = "started"


class ExecStdout(NamedTuple):
    """A piece of standard output, or of what is written to the terminal; it ends where the command happened
    to write."""

    data: bytes
    kind: Literal["stdout"] = "stdout"


class ExecStderr(NamedTuple):
    """A piece of standard error."""

    data: bytes
    kind: Literal["stderr"] = "stderr"


class ExecStdinError(NamedTuple):
    """No more input reaches the command. `reason`: ``closed``, it has closed its standard input, which many
    do that have read enough; ``unreadable``, the file that it was to read could not be read."""

    reason: Literal["closed", "unreadable"]
    message: str
    kind: Literal["stdin_error"] = "stdin_error"


class ExecExited(NamedTuple):
    """The last event: the command has ended, with `exit_code` or by `signal`, and its output is complete.
    `oom_killed`: the guest ran out of memory and killed it."""

    exit_code: int | None
    signal: int | None
    timed_out: bool = False
    oom_killed: bool = False
    kind: Literal["exited"] = "exited"


ExecEvent = ExecStarted | ExecStdout | ExecStderr | ExecStdinError | ExecExited
"""What a command does, in the order in which it does it. A command that cannot be started has no events:
`exec_stream` raises `ExecFailed`."""


class StdinSink:
    """The writing end of a command's standard input."""

    def __init__(self, stdin: ProcessStdin) -> None:
        self._stdin = stdin

    async def write(self, data: bytes) -> None:
        """Write all of it, waiting while the command does not read.

        Raises `ExecError` when the command has closed its standard input or has ended.
        """
        try:
            await self._stdin.write(data)
        except ChannelError as error:
            raise ExecError(
                f"the command's standard input is closed: {error}", code="stdin_closed"
            ) from error

    async def close(self) -> None:
        """Tell the command that no more comes."""
        await self._stdin.close()


class ExecHandle:
    """A command that runs. Iterate for its events, or `collect` all of its output.

    Output that nobody takes stops the command at its next write: nothing is buffered without bound.
    """

    def __init__(
        self,
        process: Process,
        stdin: Stdin,
        began: float,
        command: str,
        *,
        tty: bool,
        window: Window | None = None,
    ) -> None:
        self._process = process
        self._window = window
        self._tty = tty
        self._began = began
        self._command = command
        self._sink = None if process.stdin is None else StdinSink(process.stdin)
        self._feeder: asyncio.Task[None] | None = None
        self._unreadable: ExecError | None = None
        # Events that have happened and that nobody has taken.
        self._ready: deque[ExecEvent] = deque([ExecStarted(process.pid)])
        if stdin.kind in ("bytes", "file"):
            self._feeder = asyncio.create_task(self._feed(stdin))

    @property
    def id(self) -> str:
        """Tells it from the other commands of this connection."""
        return str(self._process.id)

    @property
    def pid(self) -> int:
        """Process id inside the sandbox."""
        return self._process.pid

    @property
    def command(self) -> str:
        """The program, as it was asked for."""
        return self._command

    @property
    def tty(self) -> bool:
        """Whether it has a terminal."""
        return self._tty

    @property
    def has_stdin(self) -> bool:
        """Whether it has an input that `take_stdin` gives."""
        return self._sink is not None and self._feeder is None

    def take_stdin(self) -> StdinSink:
        """The writing end, for a command that was started with `Stdin.pipe()`. Raises `ExecError`."""
        if self._sink is None or self._feeder is not None:
            raise ExecError("the command was not started with stdin=Stdin.pipe()", code="no_stdin")
        return self._sink

    def __aiter__(self) -> AsyncIterator[ExecEvent]:
        """The events that nobody has taken yet, to the last one. Raises `OutcomeUnknown` in its place if the
        sandbox ended before the command."""
        return self

    async def __anext__(self) -> ExecEvent:
        event = await self.recv()
        if event is None:
            raise StopAsyncIteration
        return event

    async def recv(self) -> ExecEvent | None:
        """The next event; None when there are no more. Raises `OutcomeUnknown`."""
        while not self._ready:
            try:
                happened = await anext(self._process, None)
            except ChannelError as error:
                self._stop_feeding()
                raise lost(self._command, error) from error
            if happened is None:
                self._stop_feeding()
                return None
            self._take(happened)
        return self._ready.popleft()

    def _take(self, happened: ProcessEvent) -> None:
        if isinstance(happened, Stdout):
            self._ready.append(ExecStdout(happened.data))
        elif isinstance(happened, Stderr):
            self._ready.append(ExecStderr(happened.data))
        elif isinstance(happened, StdinClosed):
            message = f"{self._command} has closed its standard input"
            self._ready.append(ExecStdinError("closed", message))
        elif isinstance(happened, Finished):
            self._stop_feeding()
            if self._unreadable is not None:
                self._ready.append(ExecStdinError("unreadable", str(self._unreadable)))
            self._ready.append(ExecExited(*happened.status))

    def _stop_feeding(self) -> None:
        if self._feeder is not None:
            self._feeder.cancel()

    async def collect(self) -> ExecOutput:
        """All output that nobody has taken yet, when the command has ended.

        At most `COLLECT_LIMIT` bytes of each kind are kept; what is beyond is read and thrown away. Iterate,
        to have all of more.

        Raises `ExecTimeout`, `OutcomeUnknown`, and `ExecError` if its input could not be read to the end.
        """
        output = {"stdout": bytearray(), "stderr": bytearray()}
        truncated = False
        end: ExecExited | None = None
        async for event in self:
            if event.kind == "stdout" or event.kind == "stderr":
                kept = output[event.kind]
                room = COLLECT_LIMIT - len(kept)
                truncated = truncated or len(event.data) > room
                kept += event.data[:room]
            elif event.kind == "exited":
                end = event
        if end is None:
            raise OutcomeUnknown(f"the end of {self._command} was not reported")
        found = ExecOutput(
            end.exit_code,
            end.signal,
            end.timed_out,
            end.oom_killed,
            bytes(output["stdout"]),
            bytes(output["stderr"]),
            monotonic() - self._began,
            truncated,
            await self._denied(),
        )
        if self._unreadable is not None:
            raise self._unreadable
        if found.timed_out:
            raise ExecTimeout(f"{self._command} was killed at its time limit", output=found)
        return found

    async def _denied(self) -> tuple[AuditRecord, ...]:
        if self._window is None or self._window.is_empty:
            return ()
        return await asyncio.to_thread(self._window.denied)

    async def wait(self) -> ExecExited:
        """Wait for the end, throwing the rest of the output away. Raises `OutcomeUnknown`."""
        end: ExecEvent | None = None
        async for event in self:
            end = event
        if end is None or end.kind != "exited":
            raise OutcomeUnknown(f"the end of {self._command} was not reported")
        return end

    def signal(self, number: int) -> None:
        """Send a signal to the command's process group."""
        self._process.signal(number)

    def kill(self) -> None:
        """SIGKILL to the command's process group."""
        self._process.cancel()

    def resize(self, rows: int, cols: int) -> None:
        """Set the size of the command's terminal; it gets SIGWINCH. Does nothing once it has ended.

        Raises `ExecError` if it was started without one, `ValueError`.
        """
        if not self._tty:
            raise ExecError(f"{self._command} was not started with a terminal", code="no_tty")
        self._process.resize(TerminalSize(rows, cols))

    @property
    def detached(self) -> bool:
        """Whether `detach` has left the command to itself."""
        return self._process.detached

    async def detach(self, *, last: bool = False) -> None:
        """Leave the command to itself: it goes on without this connection, what it writes is in the log, and
        `Sandbox.join` joins it again. `last`: the sandbox is stopped when the command has ended.

        Iterating ends without an ``exited`` event. Raises `ExecError` if the command has ended,
        `OutcomeUnknown` if the sandbox has.
        """
        try:
            await self._process.detach(last=last)
        except ChannelError as error:
            raise lost(self._command, error) from error

    def close_output(self, kind: str) -> None:
        """Take no more of ``stdout`` or ``stderr``: the command's next write there gets SIGPIPE. A terminal
        hangs up."""
        self._process.close_output({"stdout": 1, "stderr": 2}[kind])

    async def _feed(self, stdin: Stdin) -> None:
        assert self._sink is not None
        try:
            if stdin.path is None:
                await self._sink.write(stdin.data)
            else:
                with stdin.path.open("rb") as file:
                    while data := await asyncio.to_thread(file.read, _CHUNK):
                        await self._sink.write(data)
        except ExecError:
            return  # the command does not read all of it, which is its right
        except OSError as error:
            self._unreadable = ExecError(
                f"stdin: {stdin.path} could not be read: {error.strerror}; {self._command} got a part of it",
                hint="check the file, and run the command again",
                code="stdin_unreadable",
            )
        await self._sink.close()


async def start_command(
    client: AgentClient,
    argv: Sequence[str],
    *,
    cwd: str | None,
    user: str | None,
    env: Mapping[str, str],
    timeout: float | None,
    stdin: Stdin,
    tty: Terminal | None,
    rlimits: Sequence[tuple[str, int, int]],
    main: bool = False,
    keep: bool = False,
    network_log: Path | None = None,
) -> ExecHandle:
    """Start a command through the agent; see `Sandbox.exec_stream`. `network_log`: where denials are."""
    if stdin.path is not None and not stdin.path.is_file():
        raise ExecError(f"stdin: {stdin.path} is not a file", code="no_stdin")
    began = monotonic()
    window = None if network_log is None else Window(network_log)
    try:
        process = await client.exec(
            argv,
            env=env,
            cwd=cwd,
            user=user,
            stdin="null" if stdin.kind == "null" else "pipe",
            rlimits=rlimits,
            timeout=timeout,
            tty=None if tty is None else TerminalSize(tty.rows, tty.cols),
            main=main,
            keep=keep,
        )
    except RequestFailed as error:
        if error.kind == NetworkLost.code:  # it has ended by the time its start is told
            raise lost(argv[0], error) from error
        raise _refused(argv[0], cwd, user, error) from error
    except ChannelError as error:
        raise lost(argv[0], error) from error
    return ExecHandle(process, stdin, began, argv[0], tty=tty is not None, window=window)


def _refused(command: str, cwd: str | None, user: str | None, error: RequestFailed) -> ExecFailed:
    what = {
        "not_found": f"{command}: not found in the sandbox",
        "permission_denied": f"{command}: permission denied: it is not executable for this user",
        "bad_cwd": f"the working directory {cwd} cannot be entered in the sandbox",
        "user_not_found": f"the user {user} is not known in the sandbox",
    }.get(error.kind, f"{command}: {error}")
    return ExecFailed(what, kind=error.kind, hint=_FAILURE_HINTS.get(error.kind))


def lost(command: str, error: ChannelError) -> ExecError | NotRunning:
    """What the end of a connection means to somebody who has, or wanted to have, a command at it."""
    if isinstance(error, ConnectionLost):
        return NotRunning(f"the sandbox is not running any more; {command} was not started")
    if isinstance(error, ChannelOutcomeUnknown):
        return OutcomeUnknown(str(error))
    if isinstance(error, RequestFailed) and error.kind == NetworkLost.code:
        hint = error.details.get("hint")
        return NetworkLost(error.message, hint=hint if isinstance(hint, str) else None)
    return ExecError(f"{command}: {error}", code=error.code)
