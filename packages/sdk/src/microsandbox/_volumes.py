"""Named volumes: directories and disks that outlive sandboxes.

`$MSB_HOME/volumes/<name>/` holds `volume.json`, and `data/` or `disk.ext4`. A volume appears by a rename,
whole, and goes by one. Who uses it is said by the configurations of sandboxes; whether somebody does at this
moment by a lock on `data` or on the disk, which the supervisors hold: shared, or exclusive by the one writer
of a disk.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from microsandbox_core import artifacts
from microsandbox_core.disk_image import SIZE_LIMIT
from microsandbox_core.errors import StorageError
from microsandbox_core.upper import MINIMUM_SIZE, create_disk

from microsandbox import _config, _trees
from microsandbox._config import MountConfig, SandboxConfig
from microsandbox._state import State
from microsandbox.errors import (
    ConfigError,
    VolumeError,
    VolumeExists,
    VolumeInUse,
    VolumeNotFound,
    translated,
)

_VERSION = 1
_NAME = "[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}"
_RECORD = "volume.json"
DATA, DISK = "data", "disk.ext4"
_RECORD_LIMIT = 1 << 20


class VolumeKind(StrEnum):
    """What a volume is made of."""

    DIRECTORY = "dir"
    """A directory of the host's, which any number of sandboxes share as it changes."""
    DISK = "disk"
    """A disk with an ext4: one sandbox writes to it, or any number read it."""


class VolumeRecord(NamedTuple):
    """A volume. `size`: bytes of a disk; `quota`: bytes that a directory may hold, None for no limit.
    `owner`: the sandbox that it belongs to (see `_owned`); None for a named one."""

    name: str
    path: Path
    kind: VolumeKind
    size: int | None
    quota: int | None
    labels: tuple[tuple[str, str], ...]
    created_ns: int
    owner: str | None = None

    @property
    def content(self) -> Path:
        """What a sandbox gets: the directory, or the disk."""
        return self.path / (DATA if self.kind is VolumeKind.DIRECTORY else DISK)


class VolumeUse(NamedTuple):
    """A sandbox whose configuration names a volume."""

    sandbox: str
    target: str
    read_only: bool


def check_name(name: str) -> str:
    """A volume's name. Raises `ConfigError`, `TypeError`."""
    _config.check_type(name, str, "volume")
    if not re.fullmatch(_NAME, name):
        raise ConfigError(
            f"volume: {_config._shown(name)} cannot name a volume",
            hint="use 1 to 63 letters, digits, '_', '.' and '-', starting with a letter or a digit",
        )
    return name


def create(
    home: Path,
    name: str,
    *,
    kind: VolumeKind,
    size: int | None = None,
    quota: int | None = None,
    labels: tuple[tuple[str, str], ...] = (),
) -> VolumeRecord:
    """Make a volume; `size` is a disk's, `quota` a directory's, both in bytes.

    Raises `ConfigError`, `VolumeExists`, `StateError`.
    """
    check_name(name)
    size = check_limits(kind, size, quota)
    record = VolumeRecord(name, home / "volumes" / name, kind, size, quota, labels, time.time_ns())
    if record.path.exists():
        raise _exists(name)
    with translated():
        sweep(record.path.parent)
        made = artifacts.temporary_for(record.path)
        try:
            made.mkdir(mode=0o700)
            if size is None:
                (made / DATA).mkdir(mode=0o700)
            else:
                create_disk(made / DISK, size, name)
            artifacts.publish(made / _RECORD, _packed(record), mode=0o600)
            made.rename(record.path)
        except OSError as error:
            if record.path.exists():
                raise _exists(name) from error
            raise StorageError.from_os("create", record.path, error) from error
        finally:
            _remove_tree(made)
    return record


def check_limits(kind: VolumeKind, size: int | None, quota: int | None) -> int | None:
    """The size that a volume of that kind is made with, in bytes. Raises `ConfigError`."""
    if kind is VolumeKind.DISK:
        size = _checked_size(size)
    elif size is not None:
        raise ConfigError("volume: a directory has no size", hint="make a disk of that size: --kind disk")
    if quota is not None and (kind is VolumeKind.DISK or not 4096 <= quota <= SIZE_LIMIT):
        told = "a disk has no quota" if kind is VolumeKind.DISK else f"a quota of {quota} bytes is none"
        raise ConfigError(f"volume: {told}", hint="for a directory, for example: --quota 5G")
    return size


def _checked_size(size: int | None) -> int:
    if size is None or not MINIMUM_SIZE <= size <= SIZE_LIMIT:
        told = "a disk needs a size" if size is None else f"{size} bytes are not between 64M and 8T"
        raise ConfigError(f"volume: {told}", hint="for example: --size 5G")
    # As it is made.
    return -(-size // (1 << 20)) << 20


def _exists(name: str) -> VolumeExists:
    return VolumeExists(f"a volume named {name!r} exists", hint=f"use it, or remove it: msb volume rm {name}")


def find(home: Path, name: str) -> VolumeRecord:
    """The volume of that name; ``SANDBOX:/PATH`` is a sandbox's own.

    Raises `VolumeNotFound`, `VolumeError`, `ConfigError`, `StateError`.
    """
    if ":/" in name:
        from microsandbox import _owned

        return _owned.find(home, name)
    path = home / "volumes" / check_name(name)
    try:
        with (path / _RECORD).open("rb") as file:
            packed = file.read(_RECORD_LIMIT + 1)
    except FileNotFoundError:
        raise VolumeNotFound(
            f"there is no volume named {name!r}", hint="msb volume ls shows those there are"
        ) from None
    except OSError as error:
        with translated():
            raise StorageError.from_os("read", path, error) from error
    return _unpacked(packed, name, path)


def every(home: Path) -> list[VolumeRecord]:
    """All volumes, by name, those that belong to sandboxes among them. Raises what `find` raises."""
    from microsandbox import _owned

    found = _owned.every(home)
    for path in entries(home):
        try:
            found.append(find(home, path.name))
        except VolumeNotFound:
            pass  # removed meanwhile
    return sorted(found, key=lambda record: record.name)


def uses(home: Path) -> dict[str, list[VolumeUse]]:
    """The sandboxes that have volumes, running or not, by the volumes' names. Raises `StateError`."""
    found: dict[str, list[VolumeUse]] = {}
    state = State(home)
    if not state.path.exists():
        return found  # looking must not make a database
    try:
        records = state.all()
    finally:
        state.close()
    for record in records:
        for mount in SandboxConfig.unpack(record.config).mounts:
            name = f"{record.name}:{mount.target}" if mount.owned else mount.volume
            if name is not None:
                use = VolumeUse(record.name, mount.target, mount.read_only)
                found.setdefault(name, []).append(use)
    return found


def remove(home: Path, name: str, *, force: bool = False) -> None:
    """Remove a volume with all that is in it. None that a sandbox has; with `force`, none that one runs with,
    or that belongs to one.

    Raises `VolumeNotFound`, `VolumeInUse`, `StateError`.
    """
    record = find(home, name)
    if record.owner is not None:
        raise VolumeInUse(
            f"the volume {name!r} belongs to the sandbox {record.owner!r}",
            hint=f"it goes with that: msb rm {record.owner}",
        )
    users = sorted({use.sandbox for use in uses(home).get(name, ())})
    if users and not force:
        raise VolumeInUse(
            f"the volume {name!r} is used by {_listed(users)}", hint=f"remove that first: msb rm {users[0]}"
        )
    with translated():
        try:
            descriptor = os.open(record.content, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            descriptor = None
        except OSError as error:
            raise StorageError.from_os("open", record.content, error) from error
        try:
            if descriptor is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            aside = artifacts.temporary_for(record.path)
            # Away at once: nobody meets half of it, and what is cut off here is swept later.
            record.path.rename(aside)
            _remove_tree(aside)
        except BlockingIOError:
            raise VolumeInUse(
                f"the volume {name!r} is in use" + (f" by {_listed(users)}" if users else ""),
                hint="stop what uses it first: msb ps",
            ) from None
        except FileNotFoundError:
            raise VolumeNotFound(f"the volume {name!r} has just been removed") from None
        except OSError as error:
            raise StorageError.from_os("remove", record.path, error) from error
        finally:
            if descriptor is not None:
                os.close(descriptor)


def resolve(
    home: Path, mounts: Sequence[MountConfig], *, create_missing: bool = False
) -> tuple[MountConfig, ...]:
    """`mounts`, those of volumes with what they are: the directory, or a disk. With `create_missing` a volume
    that is named for the first time is made, as a directory.

    Raises `VolumeNotFound`, `VolumeError`, `StateError`.
    """
    return tuple(
        mount if mount.volume is None else _resolved(home, mount, mount.volume, create_missing)
        for mount in mounts
    )


def _resolved(home: Path, mount: MountConfig, name: str, create_missing: bool) -> MountConfig:
    try:
        record = find(home, name)
    except VolumeNotFound:
        if not create_missing:
            raise
        try:
            record = create(home, name, kind=VolumeKind.DIRECTORY)
        except VolumeExists:
            record = find(home, name)  # another sandbox was faster
    if record.kind is VolumeKind.DIRECTORY:
        return mount._replace(kind="volume", source=str(record.content), quota=record.quota)
    return mount._replace(kind="disk", source=str(record.content), fstype="ext4", format="raw")


def _packed(record: VolumeRecord) -> bytes:
    values = {
        "version": _VERSION,
        "kind": str(record.kind),
        "size": record.size,
        "quota": record.quota,
        "labels": dict(record.labels),
        "created_ns": record.created_ns,
    }
    return json.dumps(values, indent=1).encode() + b"\n"


def _unpacked(packed: bytes, name: str, path: Path) -> VolumeRecord:
    try:
        values: Any = json.loads(packed)
        version = values["version"]
        if version != _VERSION:
            raise VolumeError(
                f"the volume {name!r} was made by a newer microsandbox (version {version})",
                hint="upgrade microsandbox",
                code="volume_damaged",
            )
        labels = _config.check_labels(values["labels"])
        kind = VolumeKind(values["kind"])
        size, quota, created = values["size"], values["quota"], values["created_ns"]
        numbers = all(isinstance(number, int | None) for number in (size, quota))
        if not numbers or not isinstance(created, int):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise VolumeError(
            f"the volume {name!r} is damaged: {path / _RECORD} is not what it has to be",
            hint=f"what is in it is in {path}: copy it, and remove that directory",
            code="volume_damaged",
        ) from None
    return VolumeRecord(name, path, kind, size, quota, labels, created)


def sweep(directory: Path) -> None:
    """Make the directory of volumes, and remove what was cut off while it was made or removed."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError.from_os("create", directory, error) from error
    for path in artifacts.leftovers(directory):
        _remove_tree(path)


def _remove_tree(path: Path) -> None:
    """What cannot be removed is swept the next time."""
    try:
        _trees.remove(path)
    except OSError:
        pass


def entries(home: Path) -> list[Path]:
    """Where volumes are, damaged ones among them, by name. Raises `StateError`."""
    directory = home / "volumes"
    try:
        return sorted(path for path in directory.iterdir() if re.fullmatch(_NAME, path.name))
    except FileNotFoundError:
        return []
    except OSError as error:
        with translated():
            raise StorageError.from_os("read", directory, error) from error


def _listed(users: Iterable[str]) -> str:
    names = [repr(name) for name in users]
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"the sandbox {shown}" if len(names) == 1 else f"the sandboxes {shown}"
