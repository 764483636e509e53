"""Running commands: what is given to one, what comes back."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from microsandbox_core.agent import Finished, Stderr, StdinClosed, Stdout, TerminalSize
from microsandbox_core.agent import Stdin as ProcessStdin
from microsandbox_core.channel import ChannelError, ConnectionLost, RequestFailed
from microsandbox_core.channel import OutcomeUnknown as ChannelOutcomeUnknown

from microsandbox.errors import ExecError, ExecFailed, ExecTimeout, NotRunning, OutcomeUnknown

if TYPE_CHECKING:
    from microsandbox_core.agent import AgentClient, Process

_CHUNK = 1 << 16

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
    `duration` in seconds as seen from here. `oom_killed`: the guest ran out of memory and killed it."""

    exit_code: int | None
    signal: int | None
    timed_out: bool
    oom_killed: bool
    stdout_bytes: bytes
    stderr_bytes: bytes
    duration: float

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


@dataclass(frozen=True, slots=True)
class ExecEvent:
    """One thing that happened: `kind` is ``stdout``, ``stderr``, ``stdin_closed`` or ``exited``.

    `data` is output; `exit_code` or `signal`, `timed_out` and `oom_killed` tell the end, which is the
    last event and comes when the output is complete.
    """

    kind: str
    data: bytes = b""
    exit_code: int | None = None
    signal: int | None = None
    timed_out: bool = False
    oom_killed: bool = False


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

    def __init__(self, process: Process, stdin: Stdin, began: float, command: str, *, tty: bool) -> None:
        self._process = process
        self._tty = tty
        self._began = began
        self._command = command
        self._sink = None if process.stdin is None else StdinSink(process.stdin)
        self._feeder: asyncio.Task[None] | None = None
        if stdin.kind in ("bytes", "file"):
            self._feeder = asyncio.create_task(self._feed(stdin))

    @property
    def pid(self) -> int:
        """Process id inside the sandbox."""
        return self._process.pid

    def take_stdin(self) -> StdinSink:
        """The writing end, for a command that was started with `Stdin.pipe()`. Raises `ExecError`."""
        if self._sink is None or self._feeder is not None:
            raise ExecError("the command was not started with stdin=Stdin.pipe()", code="no_stdin")
        return self._sink

    def __aiter__(self) -> AsyncIterator[ExecEvent]:
        return self._events()

    async def _events(self) -> AsyncIterator[ExecEvent]:
        try:
            async for event in self._process:
                if isinstance(event, Stdout):
                    yield ExecEvent("stdout", event.data)
                elif isinstance(event, Stderr):
                    yield ExecEvent("stderr", event.data)
                elif isinstance(event, StdinClosed):
                    yield ExecEvent("stdin_closed")
                elif isinstance(event, Finished):
                    status = event.status
                    yield ExecEvent(
                        "exited",
                        exit_code=status.code,
                        signal=status.signal,
                        timed_out=status.timed_out,
                        oom_killed=status.oom_killed,
                    )
        except ChannelError as error:
            raise _lost(self._command, error) from error
        finally:
            if self._feeder is not None:
                self._feeder.cancel()

    async def collect(self) -> ExecOutput:
        """All output, when the command has ended. Raises `ExecTimeout` and `OutcomeUnknown`."""
        output = {"stdout": bytearray(), "stderr": bytearray()}
        end: ExecEvent | None = None
        async for event in self:
            if event.kind in output:
                output[event.kind] += event.data
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
        )
        if found.timed_out:
            raise ExecTimeout(f"{self._command} was killed at its time limit", output=found)
        return found

    async def wait(self) -> ExecEvent:
        """Wait for the end, throwing the rest of the output away."""
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

    async def detach(self) -> None:
        """Leave the command to itself: it goes on without this connection, and what it writes is thrown away.

        Iterating ends without an ``exited`` event. Raises `ExecError` if the command has ended,
        `OutcomeUnknown` if the sandbox has.
        """
        try:
            await self._process.detach()
        except ChannelError as error:
            raise _lost(self._command, error) from error

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
            await self._sink.close()
        except ExecError:
            pass  # the command does not read all of it, which is its right


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
    rlimits: Mapping[str, tuple[int, int]],
) -> ExecHandle:
    """Start a command through the agent; see `Sandbox.exec_stream`."""
    if stdin.path is not None and not stdin.path.is_file():
        raise ExecError(f"stdin: {stdin.path} is not a file", code="no_stdin")
    began = monotonic()
    try:
        process = await client.exec(
            argv,
            env=env,
            cwd=cwd,
            user=user,
            stdin="null" if stdin.kind == "null" else "pipe",
            rlimits=[(name, soft, hard) for name, (soft, hard) in rlimits.items()],
            timeout=timeout,
            tty=None if tty is None else TerminalSize(tty.rows, tty.cols),
        )
    except RequestFailed as error:
        raise _refused(argv[0], cwd, user, error) from error
    except ChannelError as error:
        raise _lost(argv[0], error) from error
    return ExecHandle(process, stdin, began, argv[0], tty=tty is not None)


def _refused(command: str, cwd: str | None, user: str | None, error: RequestFailed) -> ExecFailed:
    what = {
        "not_found": f"{command}: not found in the sandbox",
        "permission_denied": f"{command}: permission denied: it is not executable for this user",
        "bad_cwd": f"the working directory {cwd} cannot be entered in the sandbox",
        "user_not_found": f"the user {user} is not known in the sandbox",
    }.get(error.kind, f"{command}: {error}")
    return ExecFailed(what, kind=error.kind, hint=_FAILURE_HINTS.get(error.kind))


def _lost(command: str, error: ChannelError) -> ExecError | NotRunning:
    if isinstance(error, ConnectionLost):
        return NotRunning(f"the sandbox is not running any more; {command} was not started")
    if isinstance(error, ChannelOutcomeUnknown):
        return OutcomeUnknown(str(error))
    return ExecError(f"{command}: {error}", code=error.code)
