"""Volumes that belong to one sandbox: made with it, and gone with it.

They lie in its directory, and so go with that however it goes: `owned-N/` has `data/` or `disk.ext4`, as a
named volume has, N being the place among the sandbox's mounts. Their names are those of sandbox and
place: ``dev:/data``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from microsandbox_core.artifacts import copy_sparse
from microsandbox_core.errors import StorageError
from microsandbox_core.upper import create_disk

from microsandbox import _trees
from microsandbox._config import MountConfig, SandboxConfig
from microsandbox._state import Record, State
from microsandbox._volumes import DATA, DISK, VolumeKind, VolumeRecord
from microsandbox.errors import VolumeNotFound, translated


def make(directory: Path, mounts: Sequence[MountConfig]) -> None:
    """Make those among the mounts of a new sandbox, whose `directory` it is. Raises `StateError`."""
    with translated():
        for place, mount in _places(directory, mounts):
            try:
                place.mkdir(mode=0o700)
                if mount.kind == "disk":
                    assert mount.size is not None
                    create_disk(place / DISK, mount.size, PurePosixPath(mount.target).name)
                else:
                    (place / DATA).mkdir(mode=0o700)
            except OSError as error:
                raise StorageError.from_os("create", place, error) from error


def resolve(directory: Path, sandbox: str, mounts: Sequence[MountConfig]) -> tuple[MountConfig, ...]:
    """`mounts`, those of a sandbox's own volumes with where they are."""
    found = list(mounts)
    for number, mount in enumerate(mounts):
        if not mount.owned:
            continue
        place = _place(directory, number)
        mount = mount._replace(volume=_name(sandbox, mount))
        if mount.kind == "disk":
            found[number] = mount._replace(source=str(place / DISK), fstype="ext4", format="raw")
        else:
            found[number] = mount._replace(source=str(place / DATA))
    return tuple(found)


def copy(source: Path, target: Path, mounts: Sequence[MountConfig]) -> None:
    """Give a fork copies, from directory to directory; neither sandbox runs. Raises `OSError`."""
    for place, mount in _places(source, mounts):
        other = target / place.name
        other.mkdir(mode=0o700)
        if mount.kind == "disk":
            copy_sparse(place / DISK, other / DISK)
        else:
            _trees.copy(place / DATA, other / DATA)


def every(home: Path) -> list[VolumeRecord]:
    """Those of all sandboxes. Raises `StateError`."""
    state = State(home)
    if not state.path.exists():
        return []  # looking must not make a database
    try:
        return [volume for record in state.all() for volume in _of(home, record)]
    finally:
        state.close()


def find(home: Path, name: str) -> VolumeRecord:
    """The one of that name. Raises `VolumeNotFound`, `StateError`."""
    for volume in every(home):
        if volume.name == name:
            return volume
    raise VolumeNotFound(f"there is no volume named {name!r}", hint="msb volume ls shows those there are")


def _of(home: Path, record: Record) -> Iterator[VolumeRecord]:
    directory = home / "sandboxes" / record.id
    for place, mount in _places(directory, SandboxConfig.unpack(record.config).mounts):
        kind = VolumeKind.DISK if mount.kind == "disk" else VolumeKind.DIRECTORY
        yield VolumeRecord(
            _name(record.name, mount),
            place,
            kind,
            mount.size,
            mount.quota,
            (),
            record.created_ns,
            record.name,
        )


def _name(sandbox: str, mount: MountConfig) -> str:
    return f"{sandbox}:{mount.target}"


def _places(directory: Path, mounts: Sequence[MountConfig]) -> Iterator[tuple[Path, MountConfig]]:
    for number, mount in enumerate(mounts):
        if mount.owned:
            yield _place(directory, number), mount


def _place(directory: Path, number: int) -> Path:
    return directory / f"owned-{number}"
