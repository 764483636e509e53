"""`msb diff`, `msb apply` and `msb discard`."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from microsandbox.errors import FilesystemError, WorkspaceConflict
from microsandbox.files import FileChange, Obstacle
from microsandbox.sandbox import Sandbox

from microsandbox_cli import report
from microsandbox_cli.attached import run_in_loop
from microsandbox_cli.listing import print_json
from microsandbox_cli.run import end_if_ours, entered
from microsandbox_cli.text import printable

_Result = TypeVar("_Result")


def diff(name: str, mount: str | None, *, as_json: bool) -> None:
    """Print the changes, and exit: 1 if they cannot be told."""

    def show(changes: list[FileChange]) -> int:
        if as_json:
            print_json([_plain(change) for change in changes])
        else:
            _print(changes)
        return 0

    _with(name, lambda sandbox: sandbox.diff(mount), show)


def apply(name: str, paths: Sequence[str], *, force: bool, dry_run: bool) -> None:
    """Bring changes to the host, print them, and exit: 1 for conflicts, and if something stayed behind."""

    async def act(sandbox: Sandbox) -> tuple[list[FileChange], list[Obstacle], list[Obstacle]]:
        try:
            result = await sandbox.apply(paths, force=force, dry_run=dry_run)
        except WorkspaceConflict as conflict:
            return [], [Obstacle(*each) for each in conflict.conflicts], []
        return result.applied, [] if force else result.conflicts, result.refused

    def show(done: tuple[list[FileChange], list[Obstacle], list[Obstacle]]) -> int:
        applied, conflicts, refused = done
        _print(applied)
        for what, obstacles in (("conflict", conflicts), ("stays in the sandbox", refused)):
            for path, reason in obstacles:
                report.note(f"{what}: {printable(path)}: {printable(reason)}")
        if conflicts:
            report.error(
                f"the host has changed meanwhile what {name} has changed"
                + ("" if dry_run else ": nothing was brought to it"),
                f"name the paths to bring, or have the sandbox's version: msb apply --force {name}",
            )
        return report.EXIT_FAILED if conflicts or refused else 0

    _with(name, act, show)


def discard(name: str, paths: Sequence[str]) -> None:
    """Drop changes, print them, and exit."""

    def show(changes: list[FileChange]) -> int:
        _print(changes)
        return 0

    _with(name, lambda sandbox: sandbox.discard(paths), show)


def _with(name: str, act: Callable[[Sandbox], Awaitable[_Result]], show: Callable[[_Result], int]) -> None:
    async def main() -> int:
        async with AsyncExitStack() as stack:
            sandbox = await entered(name, detached=False)
            stack.push_async_callback(end_if_ours, sandbox)
            try:
                done = await act(sandbox)
            except FilesystemError as failure:
                report.error(str(failure), failure.hint)
                return report.EXIT_FAILED
        return show(done)

    run_in_loop(main)


def _print(changes: Iterable[FileChange]) -> None:
    for change in changes:
        slash = "/" if change.kind == "directory" else ""
        sys.stdout.write(f"{change.change[0].upper()} {printable(change.path)}{slash}\n")


def _plain(change: FileChange) -> dict[str, Any]:
    return {
        "change": change.change,
        "path": change.path,
        "mount": change.mount,
        "kind": change.kind,
        "size": change.size,
        "mode": change.mode,
        "mtime_ns": change.mtime_ns,
    }
