"""Commands that were left running, and that can be joined again."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING

from microsandbox_core.channel import ChannelError, RequestFailed

from microsandbox import _life
from microsandbox.errors import ExecError, MicrosandboxError, paused
from microsandbox.execution import ExecExited, ExecHandle, Stdin, lost

if TYPE_CHECKING:
    from microsandbox_core.agent import AgentClient, ExitStatus


@dataclass(frozen=True, slots=True)
class Session:
    """A command that was left running, by `ExecHandle.detach` or by `msb`. `id` tells it from the others of
    its sandbox, and ends the `session` of its lines in the log. `command`: the beginning of its command line.
    `tty`: it has a terminal. `stdin`: it has an input that can be written to. `main`: the sandbox ends with
    it. `joined`: somebody is joined to it. `left_at`: when it was left last. `ended_at` and `exit_code`: when
    it ended, and with what, 128 + N after signal N, 124 if its time was up; None while it runs."""

    id: int
    pid: int
    command: tuple[str, ...]
    tty: bool
    stdin: bool
    main: bool
    joined: bool
    left_at: datetime
    ended_at: datetime | None = None
    exit_code: int | None = None


async def sessions_of(client: AgentClient, *, ended: bool = False) -> list[Session]:
    """The commands that were left in the sandbox, in the order of their start. `ended`: those too that have
    ended. Raises `ChannelError`."""
    return [
        Session(
            id=found.number,
            pid=found.pid,
            command=tuple(os.fsdecode(word) for word in found.argv),
            tty=found.tty,
            stdin=found.stdin,
            main=found.last,
            joined=found.joined,
            left_at=_time(found.since_ns),
            ended_at=None if found.ended_ns is None else _time(found.ended_ns),
            exit_code=None if found.status is None else _exit_code(found.status),
        )
        for found in await client.sessions(ended=ended)
    ]


async def join(client: AgentClient, name: str, number: int) -> ExecHandle:
    """Join one of them in the sandbox `name`; see `Sandbox.join`. Raises `ChannelError` too."""
    found = next((session for session in await sessions_of(client) if session.id == number), None)
    if found is None:
        raise _none(name, number)
    command = found.command[0] if found.command else str(number)
    try:
        process = await client.join(number, stdin=found.stdin)
    except RequestFailed as error:
        raise _refused(name, number, command, error) from error
    except ChannelError as error:
        raise lost(command, error) from error
    stdin = Stdin.pipe() if found.stdin else Stdin.null()
    return ExecHandle(process, stdin, monotonic(), command, tty=found.tty)


async def outcome(client: AgentClient, name: str, number: int) -> ExecExited:
    """How one of them in the sandbox `name` has ended, when it has; see `Sandbox.wait_for`. Raises
    `ChannelError` too."""
    try:
        return ExecExited(*await client.outcome(number))
    except RequestFailed as error:
        if error.kind == "no_session":
            raise _none(name, number) from error
        raise ExecError(f"session {number}: {error}", code=error.kind) from error


def _time(nanoseconds: int) -> datetime:
    return datetime.fromtimestamp(nanoseconds / 1e9, tz=UTC)


def _exit_code(status: ExitStatus) -> int | None:
    return _life.exit_code_of(status.code, status.signal, timed_out=status.timed_out)


def _none(name: str, number: int) -> ExecError:
    return ExecError(
        f"session {number}: no command of this number was left running in the sandbox {name!r}",
        hint=f"see which there are: msb attach --list --all {name}",
        code="no_session",
    )


def _refused(name: str, number: int, command: str, error: RequestFailed) -> MicrosandboxError:
    if error.kind == "no_session":
        return _none(name, number)
    if error.kind == "paused":
        return paused(name)
    if error.kind == "joined":
        return ExecError(
            f"session {number}: somebody else has joined {command} in the sandbox {name!r}",
            hint="leave it there first: press the detach keys, or end that program",
            code="joined",
        )
    return ExecError(f"session {number}: {error}", code=error.kind)
