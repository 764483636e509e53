"""What a sandbox has changed in its version of a host's directory, and the ways to the host and back."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from microsandbox import _workspace_base
from microsandbox._config import MountConfig, SandboxConfig
from microsandbox.errors import ConfigError, FilesystemError, WorkspaceConflict
from microsandbox.files import _plan
from microsandbox.files._copy import operation
from microsandbox.files._extract import failure
from microsandbox.files._host_tree import HostTree
from microsandbox.files._plan import ChangeKind, FileChange, Obstacle
from microsandbox.files._records import Entry, Parser, StreamInvalid, is_name
from microsandbox.files._sandbox import _KINDS, FileKind, SandboxFiles

if TYPE_CHECKING:
    from microsandbox_core.agent import AgentClient

_LISTING_MAX: Final = 1 << 28
"""Bytes of a list of changes."""
_CHANGES: Final = {b"A": ChangeKind.ADDED, b"M": ChangeKind.MODIFIED, b"D": ChangeKind.DELETED}
_OWN: Final = b".msb"
"""A directory of the root that is agentd's."""


@dataclass(slots=True)
class ApplyResult:
    """What was brought to the host, or would be; `refused` never is, `conflicts` were not heeded, or will not
    be."""

    applied: list[FileChange] = field(default_factory=list)
    conflicts: list[Obstacle] = field(default_factory=list)
    refused: list[Obstacle] = field(default_factory=list)


class Workspaces:
    """The workspaces of one sandbox, which runs."""

    def __init__(self, client: AgentClient, name: str, config: SandboxConfig, directory: Path) -> None:
        self._client = client
        self._name = name
        self._directory = directory
        self._files = SandboxFiles(client, name)
        shares = [mount for mount in config.mounts if mount.kind != "disk"]
        self._mounts = [(number, mount) for number, mount in enumerate(shares) if mount.mode != "share"]

    async def diff(self, mount: str | None) -> list[FileChange]:
        """See `Sandbox.diff`."""
        if mount is not None and mount != "/":
            return await self._changes(*self._at(mount))
        changes = [
            change for change in await self._told("/", None) if not _plan.is_below(change.below, [_OWN])
        ]
        for number, known in [] if mount == "/" else self._mounts:
            changes += await self._changes(number, known)
        return changes

    async def apply(self, paths: Sequence[str], *, force: bool, dry_run: bool) -> ApplyResult:
        """See `Sandbox.apply`."""
        result = ApplyResult()
        todo = []
        for number, mount, chosen in await self._chosen(paths):
            known = self._base(number)
            host = self._host(mount)
            try:
                plan = await asyncio.to_thread(_plan.plan, chosen, known, host)
            except OSError as error:
                raise failure(error, mount.source) from error
            finally:
                host.close()
            result.conflicts += plan.conflicts
            result.refused += plan.refused
            todo.append((number, mount, known, plan.changes))
        if dry_run:
            result.applied = [change for *_, changes in todo for change in changes]
            return result
        if result.conflicts and not force:
            raise WorkspaceConflict(self._name, [(path, reason) for path, reason in result.conflicts])
        for number, mount, known, changes in todo:
            await self._bring(number, mount, known, changes, result)
        return result

    async def discard(self, paths: Sequence[str]) -> list[FileChange]:
        """See `Sandbox.discard`."""
        discarded = []
        for number, _, chosen in await self._chosen(paths):
            lower = f"/.msb/lower/{number}"
            for change in sorted(chosen, key=lambda change: change.below, reverse=True):
                if change.change is ChangeKind.ADDED:
                    await self._files.remove(change.path)
            for change in sorted(chosen, key=lambda change: change.below):
                if change.change is not ChangeKind.ADDED:
                    await self._restore(f"{lower}/{os.fsdecode(change.below)}", change)
            path = _workspace_base.path_of(self._directory, number)
            known = self._base(number)
            for change in chosen:
                known.applied.pop(change.below, None)
            await asyncio.to_thread(_workspace_base.save, path, known)
            discarded += chosen
        return discarded

    # ------------------------------------------------------------------------------------------ the guest

    async def _changes(self, number: int, mount: MountConfig) -> list[FileChange]:
        guest = [os.fsencode(path) for path in mount.guest]
        told = await self._told(mount.target, str(number))
        known = self._base(number)
        return _plan.not_applied(
            (change for change in told if not _plan.is_below(change.below, guest)), known.applied
        )

    async def _told(self, mount: str, workspace: str | None) -> list[FileChange]:
        """What the guest says of one overlay, checked, by path."""
        parser = Parser()
        found: dict[tuple[bytes, bool], FileChange] = {}
        taken = 0
        async with (
            operation(self._client, self._name, "changes", mount, {"workspace": workspace}) as listing,
            aclosing(listing.output()) as output,
        ):
            async for data in output:
                taken += len(data)
                if taken > _LISTING_MAX:
                    raise FilesystemError(
                        f"{self._name}:{mount}: more changes than can be listed", code="too_large"
                    )
                try:
                    for record in parser.feed(data):
                        if isinstance(record, Entry):
                            change = _checked(record, mount)
                            found[record.target, change.change is ChangeKind.DELETED] = change
                except StreamInvalid as error:
                    raise FilesystemError(
                        f"{self._name}:{mount}: the sandbox sent what is no list of changes: {error}",
                        code="invalid_stream",
                    ) from None
        return [found[key] for key in sorted(found, key=lambda key: (key[0], not key[1]))]

    async def _restore(self, lower: str, change: FileChange) -> None:
        found = await self._files.stat(lower, follow_symlinks=False)
        if found.kind is FileKind.DIRECTORY:
            if change.change is ChangeKind.DELETED:
                await self._files.mkdir(change.path)
        else:
            if change.change is ChangeKind.MODIFIED and change.kind is not FileKind.FILE:
                await self._files.remove(change.path)  # a copy would go where it leads
            await self._files.copy(lower, change.path)
        if found.kind is not FileKind.SYMLINK:
            await self._files.chown(change.path, found.uid, found.gid)
            await self._files.chmod(change.path, found.mode)

    # ------------------------------------------------------------------------------------------- the host

    async def _bring(
        self,
        number: int,
        mount: MountConfig,
        known: _workspace_base.Base,
        changes: list[FileChange],
        to: ApplyResult,
    ) -> None:
        host = self._host(mount)
        directories = []
        try:
            for change in changes:
                try:
                    await self._bring_one(host, change)
                except OSError as error:
                    to.refused.append(_not_brought(mount, change, error))
                    continue
                except FilesystemError as error:
                    to.refused.append(Obstacle(change.path, str(error)))
                    continue
                to.applied.append(change)
                if change.change is not ChangeKind.DELETED and change.kind is FileKind.DIRECTORY:
                    directories.append(change)
                known.applied[change.below] = _plan.applied_facts(change)
                now = host.facts(change.below)
                if now is None:
                    known.base.pop(change.below, None)
                else:
                    known.base[change.below] = now
            for change in reversed(directories):
                # Not before: it may take the right to write from the user as well.
                try:
                    host.set_mode(change.below, change.mode)
                except OSError as error:  # the host has taken it away again
                    to.refused.append(_not_brought(mount, change, error))
        finally:
            host.close()
            path = _workspace_base.path_of(self._directory, number)
            await asyncio.to_thread(_workspace_base.save, path, known)

    async def _bring_one(self, host: HostTree, change: FileChange) -> None:
        path = change.below
        if change.change is ChangeKind.DELETED:
            now = host.facts(path)
            if now is not None:
                host.remove(path, directory=stat.S_ISDIR(now[0]))
        elif change.kind is FileKind.DIRECTORY:
            now = host.facts(path)
            if now is not None and not stat.S_ISDIR(now[0]):
                host.remove(path, directory=False)  # a conflict, and the sandbox's version is wanted
            host.make_directory(path)
        elif change.kind is FileKind.SYMLINK:
            found = await self._files.stat(change.path, follow_symlinks=False)
            if found.target is None:
                raise self._unsteady(change)
            host.link(path, os.fsencode(found.target))
        else:
            await self._bring_file(host, change)

    async def _bring_file(self, host: HostTree, change: FileChange) -> None:
        with host.replacing(change.below, change.mode, change.mtime_ns) as descriptor:
            taken = 0
            async with aclosing(self._files.read_stream(change.path)) as pieces:
                async for piece in pieces:
                    taken += len(piece)
                    if taken > change.size:
                        break
                    await asyncio.to_thread(_write_all, descriptor, piece)
            if taken != change.size:
                raise self._unsteady(change)

    def _unsteady(self, change: FileChange) -> FilesystemError:
        return FilesystemError(
            f"{self._name}:{change.path}: it has changed while it was read",
            code="changed",
            hint="try it again when nobody writes to it",
        )

    def _host(self, mount: MountConfig) -> HostTree:
        try:
            return HostTree(mount.source)
        except OSError as error:
            raise failure(error, mount.source) from error

    def _base(self, number: int) -> _workspace_base.Base:
        return _workspace_base.load(_workspace_base.path_of(self._directory, number))

    # -------------------------------------------------------------------------------------------- choices

    def _at(self, target: str) -> tuple[int, MountConfig]:
        for number, mount in self._mounts:
            if mount.target == target.rstrip("/"):
                return number, mount
        there = ", ".join(mount.target for _, mount in self._mounts)
        raise ConfigError(
            f"{self._name}: {target} is no workspace",
            hint=f"there are: {there}" if there else "they are made by: msb run -v ./src:/app:overlay",
        )

    async def _chosen(self, paths: Sequence[str]) -> list[tuple[int, MountConfig, list[FileChange]]]:
        """The changes at and below `paths`, or all. Raises `ConfigError` for a path without any."""
        if not self._mounts:
            self._at("/")
        wanted: dict[int, set[bytes]] = {}
        for path in paths:
            number, below = self._locate(path)
            wanted.setdefault(number, set()).add(below)
        chosen = []
        for number, mount in self._mounts:
            if wanted and number not in wanted:
                continue
            changes: Collection[FileChange] = await self._changes(number, mount)
            for below in wanted.get(number, ()):
                if below and not any(_plan.is_below(change.below, [below]) for change in changes):
                    raise ConfigError(
                        f"{self._name}:{mount.target}/{os.fsdecode(below)}: nothing has changed there",
                        hint=f"msb diff {self._name} lists what has",
                    )
            below_any = wanted.get(number, set())
            everything = not below_any or b"" in below_any
            chosen.append((number, mount, list(changes) if everything else _plan.select(changes, below_any)))
        return chosen

    def _locate(self, path: str) -> tuple[int, bytes]:
        """The workspace of a path, and the path below it; a relative one is below the only one."""
        if not path:
            # Of a variable that is not set, most likely, and not all that there is.
            raise ConfigError("the path is empty", hint="give a path in the sandbox, or none for everything")
        if not path.startswith("/"):
            if len(self._mounts) > 1:
                raise ConfigError(
                    f"{path}: the sandbox {self._name!r} has more than one workspace",
                    hint=f"write it whole: {self._mounts[0][1].target}/{path}",
                )
            path = f"{self._mounts[0][1].target}/{path}"
        names = [name for name in path.split("/") if name not in ("", ".")]
        if ".." in names:
            raise ConfigError(f"{path}: '..' has no place in it", hint="write the path without")
        path = "/" + "/".join(names)
        inside = [
            (len(mount.target), number, path[len(mount.target) + 1 :])
            for number, mount in self._mounts
            if f"{path}/".startswith(f"{mount.target}/")
        ]
        if not inside:
            self._at(path)
        _, number, below = max(inside)
        return number, os.fsencode(below)


def _not_brought(mount: MountConfig, change: FileChange, error: OSError) -> Obstacle:
    where = f"{mount.source}/{os.fsdecode(change.below)}"
    return Obstacle(change.path, f"{where}: {error.strerror or error}")


def _checked(entry: Entry, mount: str) -> FileChange:
    """A change, as a line of the stream. Raises `StreamInvalid`."""
    change = _CHANGES.get(entry.name)
    if entry.kind != b"I" or change is None:
        raise StreamInvalid(f"a change {entry.name!r}")
    if not all(is_name(name) for name in entry.target.split(b"/")):
        raise StreamInvalid(f"the path {entry.target!r}")
    return FileChange(
        change=change,
        path=f"{mount.rstrip('/')}/{os.fsdecode(entry.target)}",
        mount=mount,
        kind=_KINDS.get(stat.S_IFMT(entry.mode), FileKind.OTHER),
        size=entry.size,
        mode=stat.S_IMODE(entry.mode),
        mtime_ns=entry.seconds * 10**9 + entry.nanoseconds,
    )


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
