"""Which of a sandbox's changes go to the host, in which order, and what stands against it."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from microsandbox._workspace_base import Base, Facts
from microsandbox.files._host_tree import HostTree
from microsandbox.files._sandbox import FileKind


class ChangeKind(StrEnum):
    """What a sandbox did."""

    ADDED = "added"
    MODIFIED = "modified"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class FileChange:
    """Something that a sandbox changed, as the sandbox tells it; bytes of `path` that are not UTF-8 are
    surrogates. Of what was deleted `kind`, `size` and `mode` are as they were."""

    change: ChangeKind
    path: str
    """In the sandbox, absolute."""
    mount: str
    """The workspace that it is in, or ``/``."""
    kind: FileKind
    size: int
    mode: int
    """Permission bits, with set-user-ID, set-group-ID and sticky."""
    mtime_ns: int

    @property
    def below(self) -> bytes:
        """The path below the mount."""
        return os.fsencode(self.path[len(self.mount.rstrip("/")) + 1 :])


class Obstacle(NamedTuple):
    """Why a change is not brought to the host."""

    path: str
    reason: str


class Plan(NamedTuple):
    """`conflicts`: what the host has changed as well. `refused`: what never reaches the host."""

    changes: list[FileChange]
    conflicts: list[Obstacle]
    refused: list[Obstacle]


def is_below(path: bytes, directories: Iterable[bytes]) -> bool:
    """Whether it is one of them, or in one."""
    return any(path == directory or path.startswith(directory + b"/") for directory in directories)


def select(changes: Collection[FileChange], paths: Collection[bytes]) -> list[FileChange]:
    """Those at and below `paths`, and the new directories that these are in."""
    chosen = {change.below for change in changes if is_below(change.below, paths)}
    above = {path[:end] for path in chosen for end, byte in enumerate(path) if byte == 0x2F}
    return [
        change
        for change in changes
        if change.below in chosen
        or (change.below in above and change.kind is FileKind.DIRECTORY and change.change is ChangeKind.ADDED)
    ]


def not_applied(changes: Iterable[FileChange], applied: Mapping[bytes, Facts | None]) -> list[FileChange]:
    """Without those that the host has already."""
    told = list(changes)
    replaced = {change.below for change in told if change.change is ChangeKind.ADDED}

    def is_applied(change: FileChange) -> bool:
        if change.below not in applied:
            return False
        if change.change is ChangeKind.DELETED and change.below in replaced:
            return True  # what took its place was brought after it had been deleted
        return applied[change.below] == applied_facts(change)

    return [change for change in told if not is_applied(change)]


def applied_facts(change: FileChange) -> Facts | None:
    """What `Base.applied` has of a change."""
    if change.change is ChangeKind.DELETED:
        return None
    size = 0 if change.kind is FileKind.DIRECTORY else change.size
    # A directory's time changes with what is in it.
    return change.mode, size, 0 if change.kind is FileKind.DIRECTORY else change.mtime_ns


def plan(changes: Collection[FileChange], known: Base, host: HostTree) -> Plan:
    """What can be done, in its order: deletions first, what is in a directory before it; then the rest,
    directories before what is in them. Raises `OSError`."""
    deletions = sorted(
        (change for change in changes if change.change is ChangeKind.DELETED),
        key=lambda change: change.below,
        reverse=True,
    )
    others = sorted(
        (change for change in changes if change.change is not ChangeKind.DELETED),
        key=lambda change: change.below,
    )
    deleted = {change.below for change in deletions}
    result = Plan([], [], [])
    missing: list[bytes] = []
    for change in (*deletions, *others):
        reason = _refusal(change)
        if reason is None and is_below(change.below, missing):
            reason = "the directory that it is in is refused"
        if reason is not None:
            result.refused.append(Obstacle(change.path, reason))
            missing.append(change.below)
            continue
        result.changes.append(change)
        conflict = _conflict(change, known.base.get(change.below), deleted, host)
        if conflict is not None:
            result.conflicts.append(Obstacle(change.path, conflict))
    return result


def _refusal(change: FileChange) -> str | None:
    if change.change is ChangeKind.DELETED:
        return None
    if change.kind is FileKind.OTHER:
        return "it is a device, a FIFO or a socket"
    if change.kind is FileKind.FILE and change.mode & 0o6000:
        return "it has a set-user-ID or set-group-ID bit"
    return None


def _conflict(
    change: FileChange, base: Facts | None, deleted: Collection[bytes], host: HostTree
) -> str | None:
    """What the host has done meanwhile, in words."""
    path = change.below
    now = host.facts(path)
    if change.change is ChangeKind.DELETED:
        if now is None or base is None:
            return None if now is None else "it is new on the host"
        if stat.S_ISDIR(now[0]):
            others = [name for name in host.names(path) if path + b"/" + name not in deleted]
            return f"on the host {os.fsdecode(others[0])!r} is new in it" if others else None
        return _changed(base, now)
    if path in deleted:
        return None  # what is there goes first, and was looked at
    if base is None:
        is_same = now is not None and stat.S_ISDIR(now[0]) and change.kind is FileKind.DIRECTORY
        return None if now is None or is_same else "it is new on the host"
    if now is None:
        return "the host has deleted it"
    return _changed(base, now)


def _changed(base: Facts, now: Facts) -> str | None:
    if stat.S_IFMT(base[0]) != stat.S_IFMT(now[0]):
        return "it is something else on the host"
    if stat.S_ISDIR(now[0]) or base == now:
        return None
    return "the host has changed it"
