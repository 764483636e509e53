"""What lies under a home directory, and removing what is not needed there any more."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from microsandbox_core import artifacts
from microsandbox_core.errors import StorageError
from microsandbox_core.templates import TemplateInfo, Templates

from microsandbox import _create
from microsandbox._directory import SandboxDirectory
from microsandbox._state import Record, State
from microsandbox.errors import ImageError, MicrosandboxError, translated

__all__ = ["Kind", "Pruned", "Removed", "Usage", "prune", "usage"]


class Kind(StrEnum):
    """What files under a home directory are there for."""

    IMAGES = "images"
    TEMPLATES = "templates"
    BASE_FILES = "base_files"
    """Kernels, boot disks and formatted uppers: made once, used by every start."""
    RUNNING = "running_sandboxes"
    STOPPED = "stopped_sandboxes"
    LEFTOVERS = "leftovers"
    """Of crashes: sandboxes that belong to nothing, temporary files whose writers are dead."""
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Usage:
    """One kind: how many there are, bytes on disk, and how many of those can go without a sandbox losing
    anything. For images that is what no sandbox is made from, for the rest what `prune` removes."""

    kind: Kind
    count: int
    size: int
    reclaimable: int


@dataclass(frozen=True, slots=True)
class Removed:
    """A thing that `prune` removed, or would. `kind`: ``sandbox``, ``template`` or ``temporary``."""

    kind: str
    name: str
    path: Path
    size: int


@dataclass(frozen=True, slots=True)
class Pruned:
    """What `prune` removed, or would remove, and what it could not."""

    removed: tuple[Removed, ...]
    failures: tuple[MicrosandboxError, ...]

    @property
    def size(self) -> int:
        """Bytes on disk of everything removed."""
        return sum(item.size for item in self.removed)


def usage(home: Path) -> list[Usage]:
    """What is on disk, one entry for each `Kind`; together it is everything. Raises `StateError`."""
    with translated():
        cache = home / "cache"
        templates = [info.path for info in _templates(home)]
        sandboxes = _sandboxes(home)
        leftovers = [*(path for _, path in sandboxes.leftovers), *_temporary(home)]
        images = [path for path in _entries(cache / "images") if len(path.name) == 64]
        base = [cache / name for name in ("kernels", "boot", "uppers")]
        artifact_files = [
            path for part in base for path in _entries(part) if path.suffix in (".elf", ".erofs", ".ext4")
        ]
        store = [cache / name for name in ("images", "layers", "refs", "rootfs")]
        found: list[Usage] = []
        measured: set[Path] = set()

        def add(kind: Kind, count: int, paths: Sequence[Path], reclaimable: int | None = None) -> None:
            size = sum(_allocated(path, measured) for path in paths)
            measured.update(paths)
            found.append(Usage(kind, count, size, size if reclaimable is None else reclaimable))

        # First: they lie in directories of the other kinds and are counted once.
        add(Kind.LEFTOVERS, len(leftovers), leftovers)
        used = {record.image_digest for record in sandboxes.records}
        add(Kind.IMAGES, len(images), store, _unused_images(home, used))
        add(Kind.TEMPLATES, len(templates), templates)
        add(Kind.BASE_FILES, len(artifact_files), base, 0)
        add(Kind.RUNNING, len(sandboxes.running), sandboxes.running, 0)
        add(Kind.STOPPED, len(sandboxes.stopped), sandboxes.stopped, 0)
        add(Kind.OTHER, _count_files(home, measured), [home], 0)
        order = list(Kind)
        return sorted(found, key=lambda entry: order.index(entry.kind))


def prune(home: Path, *, everything: bool = False, dry_run: bool = False) -> Pruned:
    """Remove what crashes have left, and templates that no start can use; with `everything`, all templates.

    Images, running sandboxes and sandboxes that can be started again are not touched. With `dry_run`
    nothing is, and the result says what would be removed.

    Raises `StateError` when what there is cannot be found out; what then cannot be removed is among the
    failures of the result.
    """
    with translated():
        others = [
            Removed("template", info.key, info.path, _allocated(info.path))
            for info in _templates(home)
            if everything or not info.current
        ]
        others += [
            Removed("temporary", path.relative_to(home).as_posix(), path, _allocated(path))
            for path in _temporary(home)
        ]
        sandboxes = [
            Removed("sandbox", name, path, _allocated(path)) for name, path in _sandboxes(home).leftovers
        ]
    if dry_run:
        return Pruned((*sandboxes, *others), ())
    removed: list[Removed] = []
    failures: list[MicrosandboxError] = []
    if sandboxes:
        try:
            _create.reconcile(home)
        except MicrosandboxError as failure:
            failures.append(failure)
        removed += [item for item in sandboxes if not item.path.exists()]
    for item in others:
        try:
            with translated():
                _remove(home, item)
            removed.append(item)
        except MicrosandboxError as failure:
            failures.append(failure)
    return Pruned(tuple(removed), tuple(failures))


def _remove(home: Path, item: Removed) -> None:
    if item.kind == "template":
        Templates(home).remove(item.name)
    elif item.path.parent == home / "cache" / "tmp":
        _create.image_store(home).sweep()
    else:
        try:
            artifacts.remove(item.path)
        except OSError as error:
            raise StorageError.from_os("remove", item.path, error) from error


class _Sandboxes(NamedTuple):
    """Directories of sandboxes; `leftovers` with their names, also of those whose directory is gone."""

    running: list[Path]
    stopped: list[Path]
    leftovers: list[tuple[str, Path]]
    records: list[Record]


def _sandboxes(home: Path) -> _Sandboxes:
    # Locks before records: a creator lets go of the lock only when its record is there, so a directory
    # that is not locked and then has no record never will have one.
    names = [path.name for path in _entries(home / "sandboxes") if path.name[0] != "." and path.is_dir()]
    running = {name for name in names if SandboxDirectory(home, name).is_running()}
    records = _records(home)
    running |= {
        record.id
        for record in records
        if record.id not in names and SandboxDirectory(home, record.id).is_running()
    }
    known = {record.id for record in records}
    leftovers = [(name, name) for name in names if name not in known | running]
    leftovers += [(r.name, r.id) for r in records if r.ephemeral and r.id not in running]
    stopped = [r.id for r in records if not r.ephemeral and r.id not in running]
    directory = home / "sandboxes"
    return _Sandboxes(
        [directory / name for name in sorted(running)],
        [directory / name for name in stopped],
        [(name, directory / identifier) for name, identifier in leftovers],
        records,
    )


def _records(home: Path) -> list[Record]:
    state = State(home)
    if not state.path.exists():
        return []  # looking must not make a database
    try:
        return state.all()
    finally:
        state.close()


def _templates(home: Path) -> list[TemplateInfo]:
    templates = Templates(home)
    # Asked before anything is counted, and not of a home that has none: to find out whether a template can
    # be used, the kernel and the boot disk are made if they are not in the cache.
    return templates.list() if _entries(home / "cache" / "templates") else []


def _temporary(home: Path) -> list[Path]:
    """Temporary files and directories whose writers are dead."""
    cache = home / "cache"
    found = _create.image_store(home).leftovers()
    for directory in (cache, *_entries(cache), home / "lib"):
        if directory.is_dir():
            found += artifacts.leftovers(directory)
    return found


def _unused_images(home: Path, used: Collection[str]) -> int:
    """Bytes of the images that no sandbox is made from, without layers that other images need."""
    store = _create.image_store(home)
    images = [image for image in store.list() if image.digest not in used]
    directories = {image.directory for image in images}
    layers = {layer.path for image in images for layer in image.layers}
    for directory in _entries(home / "cache" / "images"):
        if directory not in directories and len(directory.name) == 64:
            try:
                with translated():
                    layers -= {layer.path for layer in store.get(f"sha256:{directory.name}").layers}
            except ImageError:
                return 0  # which layers a damaged image needs cannot be told
    return sum(_allocated(path) for path in directories | layers)


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _unreadable(directory, error) from error


def _unreadable(path: Path, error: OSError) -> StorageError:
    found = StorageError.from_os("read", path, error)
    found.hint = found.hint or "check MSB_HOME, and its file system"
    return found


def _allocated(path: Path, without: Collection[Path] = ()) -> int:
    """Bytes that a file, or a directory and all below it, take on the disk; 0 if it is gone."""
    if path in without:
        return 0
    try:
        found = path.lstat()
        size = found.st_blocks * 512
        if path.is_dir() and not path.is_symlink():
            size += sum(_allocated(entry, without) for entry in path.iterdir())
        return size
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise _unreadable(path, error) from error


def _count_files(directory: Path, without: Collection[Path]) -> int:
    count = 0
    for path, below, files in os.walk(directory):
        below[:] = [name for name in below if Path(path, name) not in without]
        count += sum(Path(path, name) not in without for name in files)
    return count
