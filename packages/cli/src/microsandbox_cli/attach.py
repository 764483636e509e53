"""`msb attach`: back to a command that was left running."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from microsandbox import Sandbox
from microsandbox._forward import stdin_is_readable
from microsandbox.errors import ExecError
from microsandbox.sessions import Session
from microsandbox.terminal import DETACH_KEYS, DetachKeys, here

from microsandbox_cli.attached import run_in_loop
from microsandbox_cli.listing import age, print_json, print_names, print_table
from microsandbox_cli.run import follow, within_limits


def attach(name: str, session: int | None, *, no_stdin: bool, detach_keys: str | None) -> None:
    """Join a command, until it has ended, whose code is ours then, or is left again."""
    keys = DetachKeys.parse(DETACH_KEYS if detach_keys is None else detach_keys)

    async def main() -> int:
        sandbox = await Sandbox.connect(name)
        try:
            return await within_limits(sandbox, _join(sandbox, session, stdin=not no_stdin, keys=keys))
        finally:
            await sandbox.detach()

    run_in_loop(main)


def show(name: str, *, all: bool, quiet: bool, format: str) -> None:
    """Print the commands that were left running; with `all` those too that have ended, and with what."""

    async def main() -> int:
        sandbox = await Sandbox.connect(name)
        found = await sandbox.sessions(ended=all)
        await sandbox.detach()
        if quiet:
            print_names([str(session.id) for session in found])
        elif format == "json":
            print_json([_as_json(session) for session in found])
        else:
            columns = ("SESSION", "PID", "TERMINAL", "LEFT", *(("EXIT",) if all else ()), "COMMAND")
            print_table(columns, [_row(session, all=all) for session in found])
        return 0

    run_in_loop(main)


async def _join(sandbox: Sandbox, number: int | None, *, stdin: bool, keys: DetachKeys | None) -> int:
    session = _chosen(sandbox.name, await sandbox.sessions()) if number is None else None
    handle = await sandbox.join(session.id if session is not None else number or 0)
    wanted = stdin and handle.has_stdin and stdin_is_readable()
    tty = here() if handle.tty and os.isatty(0) and os.isatty(1) else None
    if tty is not None:
        # A change of size is what makes a program draw its screen again.
        handle.resize(tty.rows, tty.cols % 0xFFFF + 1)
        handle.resize(tty.rows, tty.cols)
    return await follow(sandbox, handle, handle.command, tty=tty, stdin=wanted, keys=keys)


def _chosen(name: str, found: Sequence[Session]) -> Session:
    """The one that the sandbox is there for, else the only one."""
    main = [session for session in found if session.main]
    if main or len(found) == 1:
        return (main or list(found))[0]
    if not found:
        raise ExecError(
            f"no command was left running in the sandbox {name!r}",
            hint=f"run one at this terminal: msb exec -t {name}",
            code="no_session",
        )
    shown = ", ".join(f"{session.id} ({' '.join(session.command)[:30]})" for session in found[:8])
    raise ExecError(
        f"{len(found)} commands were left running in the sandbox {name!r}: {shown}",
        hint=f"name one of them: msb attach {name} {found[-1].id}",
        code="several_sessions",
    )


def _row(session: Session, *, all: bool) -> tuple[str, ...]:
    left = "joined" if session.joined else age(time.time() - session.left_at.timestamp())
    command = " ".join(session.command)
    return (
        str(session.id),
        str(session.pid),
        "yes" if session.tty else "no",
        left,
        *(("-" if session.exit_code is None else str(session.exit_code),) if all else ()),
        command if len(command) <= 40 else command[:37] + "...",
    )


def _as_json(session: Session) -> dict[str, object]:
    return {
        "id": session.id,
        "pid": session.pid,
        "command": session.command,
        "tty": session.tty,
        "stdin": session.stdin,
        "main": session.main,
        "joined": session.joined,
        "left_at": session.left_at.isoformat(),
        "ended_at": None if session.ended_at is None else session.ended_at.isoformat(),
        "exit_code": session.exit_code,
    }
