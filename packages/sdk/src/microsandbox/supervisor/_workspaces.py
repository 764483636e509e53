"""Workspaces at a start: what the directories of the host are like is noted once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from microsandbox import _workspace_base
from microsandbox._config import MountConfig
from microsandbox.errors import StartError, StateError


def record(directory: Path, mounts: Sequence[MountConfig]) -> list[MountConfig]:
    """Note it for the workspaces among `mounts`, all shares of a sandbox, whose `directory` it is; the same
    mounts, with paths for the patterns in `guest`. Raises `StartError`."""
    return [
        _recorded(_workspace_base.path_of(directory, number), mount) for number, mount in enumerate(mounts)
    ]


def _recorded(path: Path, mount: MountConfig) -> MountConfig:
    try:
        if mount.mode != "share" and not path.exists():
            _workspace_base.save(path, _workspace_base.Base(_workspace_base.look(mount.source), {}))
        if not mount.guest:
            return mount
        from microsandbox._guest_directories import is_pattern

        if not any(map(is_pattern, mount.guest)):
            return mount
        return mount._replace(guest=_guest_directories(path.with_name(f"{path.name}.guest"), mount))
    except (OSError, StateError) as error:
        raise StartError(
            f"cannot mount {mount.target}: {error}",
            hint=getattr(error, "hint", None) or "check who may read it, and whether there is room",
            code="mount_source",
        ) from error


def _guest_directories(path: Path, mount: MountConfig) -> tuple[str, ...]:
    """Those that are named; those that have matched at an earlier start, which `path` says; and new ones.

    The place in this list is that on the guest's disk: what has once been found stays where it was.
    """
    from microsandbox._guest_directories import is_pattern, search

    named = [text for text in mount.guest if not is_pattern(text)]
    before = _workspace_base.load_paths(path)
    # What the host has made since is not in a copy.
    if before is None or mount.mode != "clone":
        new = search(mount.source, filter(is_pattern, mount.guest), {*named, *(before or ())})
        if new or before is None:
            before = [*(before or ()), *new]
            _workspace_base.save_paths(path, before)
    return (*named, *before)
