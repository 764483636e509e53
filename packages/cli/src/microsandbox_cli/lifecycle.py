"""`msb start`, `stop`, `pause`, `resume`, `restart`, `rm`, `wait`: one verb for several."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import NoReturn

from microsandbox._config import parse_duration
from microsandbox._life import exit_code_of
from microsandbox.errors import MicrosandboxError, SandboxNotFound
from microsandbox.handle import SandboxHandle
from microsandbox.info import Status
from microsandbox.sandbox import Sandbox

from microsandbox_cli import report
from microsandbox_cli.attached import run_in_loop
from microsandbox_cli.chosen import chosen, exit_code

GRACE = "10s"
"""What processes get to end by themselves when nothing else is said."""


def start(names: Sequence[str], *, label: Sequence[str] = (), cold: bool = False) -> None:
    """Start stopped sandboxes."""

    async def one(name: str) -> str:
        sandbox = await Sandbox.start(name, cold=cold)
        await sandbox.detach()
        return sandbox.name

    _each(chosen("start", names, label, lambda status: not status.active), one)


def stop(
    names: Sequence[str], *, label: Sequence[str] = (), force: bool = False, timeout: str = GRACE
) -> None:
    """Stop sandboxes; one that has stopped already counts as stopped."""
    grace = parse_duration(timeout, "--timeout")

    async def one(name: str) -> str:
        handle = await SandboxHandle.get(name)
        await (handle.kill() if force else handle.stop(grace))
        return name

    _each(chosen("stop", names, label), one)


def pause(names: Sequence[str], *, label: Sequence[str] = ()) -> None:
    """Halt sandboxes; one that is paused already counts as paused."""

    async def one(name: str) -> str:
        await (await SandboxHandle.get(name)).pause()
        return name

    _each(chosen("pause", names, label, lambda status: status is Status.RUNNING), one)


def resume(names: Sequence[str], *, label: Sequence[str] = ()) -> None:
    """Let sandboxes go on; one that runs counts as resumed."""

    async def one(name: str) -> str:
        await (await SandboxHandle.get(name)).resume()
        return name

    _each(chosen("resume", names, label, lambda status: status is Status.PAUSED), one)


def restart(
    names: Sequence[str], *, label: Sequence[str] = (), timeout: str = GRACE, cold: bool = False
) -> None:
    """Stop sandboxes, if they run, and start them."""
    grace = parse_duration(timeout, "--timeout")

    async def one(name: str) -> str:
        sandbox = await (await SandboxHandle.get(name)).restart(grace, cold=cold)
        await sandbox.detach()
        return name

    _each(chosen("restart", names, label), one)


def remove(names: Sequence[str], *, label: Sequence[str] = (), force: bool = False) -> None:
    """Remove sandboxes."""

    async def one(name: str) -> str:
        try:
            await Sandbox.remove(name, force=force)
        except SandboxNotFound:
            if not force:
                raise
        return name

    _each(chosen("rm", names, label), one)


def wait(names: Sequence[str], *, label: Sequence[str] = (), session: int | None = None) -> None:
    """Wait until sandboxes do not run, and print how each of them ended, in the order of their ends.

    If only one was named, and it was there for a command, exit with the exit code of that. `session`: wait
    for a command that was left in the one that is named.
    """
    if session is not None:
        _wait_for_command(names, label, session)
    waited_for = chosen("wait", names, label)
    codes: list[int] = []

    async def one(name: str) -> str:
        handle = await SandboxHandle.get(name)
        end = await handle.wait_until_stopped()
        status = handle.status if handle.exists else "removed"
        if end is None:
            return f"{name}: {status}"
        if len(waited_for) == 1 and end.exit_code is not None:
            codes.append(end.exit_code)
        exited = "" if end.vmm_exit in (None, 0) else f" (VMM exit {end.vmm_exit})"
        return f"{name}: {status}: {end.reason}{exited}"

    _each(waited_for, one, at_once=True, codes=codes)


def _wait_for_command(names: Sequence[str], label: Sequence[str], session: int) -> NoReturn:
    """Wait until a command that was left in a sandbox has ended, print how, and exit with its code."""
    if len(names) != 1 or label:
        report.error("--session is of one sandbox", f"msb wait NAME --session {session}")
        sys.exit(report.EXIT_USAGE)
    codes: list[int] = []

    async def one(name: str) -> str:
        sandbox = await Sandbox.connect(name)
        try:
            end = await sandbox.wait_for(session)
        finally:
            await sandbox.detach()
        code = exit_code_of(end.exit_code, end.signal, timed_out=end.timed_out)
        codes.append(code or 0)
        how = "its time was up" if end.timed_out else f"it was killed by signal {end.signal}"
        return f"{name}: session {session}: " + (f"exit code {code}" if end.signal is None else how)

    _each(names, one, codes=codes)


def _each(
    names: Sequence[str],
    action: Callable[[str], Awaitable[str]],
    *,
    at_once: bool = False,
    codes: Sequence[int] = (),
) -> NoReturn:
    """Do it to every one and print what is said of it, go on after a failure, and exit 1 if there was one.

    125 if only one was named, and it is the sandbox itself that failed. `codes`: filled by `action` with what
    to exit with if nothing failed.
    """

    async def one(name: str) -> int:
        try:
            said = await action(name)
        except MicrosandboxError as failed:
            report.failure(failed)
            return exit_code(failed, alone=len(names) == 1)
        sys.stdout.write(said + "\n")
        sys.stdout.flush()
        return 0

    async def main() -> int:
        if at_once:
            failures = await asyncio.gather(*(one(name) for name in names))
        else:
            failures = [await one(name) for name in names]
        return max((*failures, *codes), default=0)

    run_in_loop(main)
