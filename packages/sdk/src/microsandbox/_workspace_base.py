"""What a workspace's directory on the host was like when the sandbox first started: ``workspace-N`` in the
sandbox's directory, MessagePack.

``base``: paths below it (bytes) with mode, size in bytes and time of the last change in ns. ``applied``: what
the sandbox's own version was like when it was last brought to the host; nil: it was deleted.

``workspace-N.guest``: the directories that patterns have been found to mean, a list of paths.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgpack

from microsandbox.errors import StateError

ENTRIES_MAX = 1_000_000
"""Names in a workspace's directory."""

Facts = tuple[int, int, int]
"""Mode with the bits of the type, size, time of the last change in ns."""


class Base(NamedTuple):
    """See the module."""

    base: dict[bytes, Facts]
    applied: dict[bytes, Facts | None]


def path_of(directory: Path, number: int) -> Path:
    """The file of the mount that is the `number`-th of those with a share."""
    return directory / f"workspace-{number}"


def look(source: str) -> dict[bytes, Facts]:
    """What is below a directory now. No link is followed. Raises `OSError`, and `StateError` for too much."""
    found: dict[bytes, Facts] = {}
    waiting = [b""]
    while waiting:
        below = waiting.pop()
        try:
            entries = os.scandir(os.path.join(os.fsencode(source), below))  # noqa: PTH118 - bytes
        except OSError:
            if not below:
                raise
            continue  # it has gone, or cannot be read: then the guest cannot either
        with entries:
            for entry in entries:
                path = below + b"/" + entry.name if below else entry.name
                try:
                    facts = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                found[path] = facts_of(facts)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(path)
        if len(found) > ENTRIES_MAX:
            raise StateError(
                f"{source}: more than {ENTRIES_MAX} files are too many for a workspace",
                hint="mount a part of it, or mount it as it is: -v ./src:/app",
            )
    return found


def facts_of(found: os.stat_result) -> Facts:
    """Of what stat(2) tells."""
    return found.st_mode, found.st_size, found.st_mtime_ns


def save(path: Path, known: Base) -> None:
    """Replace the record. Raises `OSError`."""
    _replace(path, known._asdict())


def save_paths(path: Path, paths: Sequence[str]) -> None:
    """Note directories that the guest has on its own disk, relative to the share. Raises `OSError`."""
    _replace(path, [os.fsencode(name) for name in paths])


def load_paths(path: Path) -> list[str] | None:
    """What `save_paths` has noted; None if there is nothing. Raises `StateError`."""
    try:
        return [os.fsdecode(name) for name in msgpack.unpackb(path.read_bytes())]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise StateError(
            f"{path}: which directories are the sandbox's own cannot be read: {error}",
            hint="remove the sandbox and create it anew",
        ) from error


def _replace(path: Path, value: object) -> None:
    making = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    packed = msgpack.packb(value)
    assert isinstance(packed, bytes)
    making.write_bytes(packed)
    making.replace(path)


def load(path: Path) -> Base:
    """The record. Raises `StateError`."""
    try:
        values = msgpack.unpackb(path.read_bytes(), use_list=False, strict_map_key=False)
        return Base(values["base"], values["applied"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StateError(
            f"{path}: what the host's directory was like cannot be read: {error}",
            hint="copy what you want to keep: msb cp NAME:/app ./copy",
        ) from error
