"""What lies under a home directory, and removing what is not needed there any more."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from microsandbox_core import artifacts
from microsandbox_core.errors import StorageError
from microsandbox_core.templates import Templates

from microsandbox import _create, _derived, _trees, _volumes
from microsandbox._derived import Derived, DerivedKind
from microsandbox._directory import SandboxDirectory, guard
from microsandbox._state import Record, State
from microsandbox.errors import ImageError, MicrosandboxError, translated

__all__ = ["Kind", "Pruned", "Removed", "Usage", "allocated", "prune", "usage"]


class Kind(StrEnum):
    """What files under a home directory are there for."""

    IMAGES = "images"
    TEMPLATES = "templates"
    KERNELS = "kernels"
    BOOT_DISKS = "boot_disks"
    UPPERS = "uppers"
    """Formatted and empty: each sandbox's own is a copy."""
    RECORDS = "records"
    """Of what was found out about the host: whether KVM works, how fast its counter is."""
    RUNNING = "running_sandboxes"
    STOPPED = "stopped_sandboxes"
    VOLUMES = "volumes"
    LEFTOVERS = "leftovers"
    """Of crashes: sandboxes that belong to nothing, temporary files and locks whose owners are dead."""
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Usage:
    """One kind: how many there are, bytes on disk, and how many of those can go without a sandbox losing
    anything. For images that is what no sandbox is made from, for volumes what none has, for the rest what
    `prune` removes unless it is told more."""

    kind: Kind
    count: int
    size: int
    reclaimable: int


@dataclass(frozen=True, slots=True)
class Removed:
    """A thing that `prune` removed, or would. `kind`: ``sandbox``, ``template``, ``kernel``, ``boot_disk``,
    ``upper``, ``record``, ``temporary``, ``lock`` or ``volume``."""

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
        installed = _derived.installation(home)
        templates = [template.path for template in _derived.templates(home, installed)]
        derived = _derived.files(home, installed)
        sandboxes = _sandboxes(home)
        leftovers = [*(path for _, path in sandboxes.leftovers), *_temporary(home), *_dead_locks(home)]
        images = {digest for _, digest in _image_directories(cache)}
        records = [item.path for item in derived if item.path.parent == cache]
        superseded = _superseded(derived, sandboxes)
        store = [cache / name for name in ("images", "layers", "refs", "rootfs", "blobs", "downloads")]
        found: list[Usage] = []
        measured: set[Path] = set()

        def add(kind: Kind, count: int, paths: Sequence[Path], reclaimable: int | None = None) -> None:
            size = sum(allocated(path, measured) for path in paths)
            measured.update(paths)
            found.append(Usage(kind, count, size, size if reclaimable is None else reclaimable))

        def add_derived(kind: Kind, sort: DerivedKind, paths: Sequence[Path]) -> None:
            here = [item for item in derived if item.path in paths or item.path.parent in paths]
            reclaimable = sum(allocated(item.path) for item in here if item in superseded)
            add(kind, sum(item.kind is sort for item in here), paths, reclaimable)

        # First: they lie in directories of the other kinds and are counted once.
        add(Kind.LEFTOVERS, len(leftovers), leftovers)
        used = {record.image_digest for record in sandboxes.records}
        add(Kind.IMAGES, len(images), store, _unused_images(home, used))
        add(Kind.TEMPLATES, len(templates), templates)
        add_derived(Kind.KERNELS, DerivedKind.KERNEL, [cache / "kernels"])
        add_derived(Kind.BOOT_DISKS, DerivedKind.BOOT_DISK, [cache / "boot"])
        add_derived(Kind.UPPERS, DerivedKind.UPPER, [cache / "uppers"])
        add_derived(Kind.RECORDS, DerivedKind.RECORD, records)
        add(Kind.RUNNING, len(sandboxes.running), sandboxes.running, 0)
        add(Kind.STOPPED, len(sandboxes.stopped), sandboxes.stopped, 0)
        named = [path for path in _entries(home / "volumes") if path.name[0] != "."]
        add(Kind.VOLUMES, len(named), named, sum(allocated(path) for path in _unused_volumes(home)))
        add(Kind.OTHER, _count_files(home, measured), [home], 0)
        order = list(Kind)
        return sorted(found, key=lambda entry: order.index(entry.kind))


def prune(home: Path, *, everything: bool = False, volumes: bool = False, dry_run: bool = False) -> Pruned:
    """Remove what crashes have left, templates that no start can use, and what else earlier installations
    have derived; with `everything`, all templates; with `volumes`, all volumes that no sandbox has.

    Kernels, boot disks and uppers are opened by name in the course of a start. So while a sandbox runs or is
    being started, those stay that the present installation does not use. Images, running sandboxes and
    sandboxes that can be started again are not touched. With `dry_run` nothing is, and the result says what
    would be removed.

    Raises `StateError` when what there is cannot be found out; what then cannot be removed is among the
    failures of the result.
    """
    with translated():
        installed = _derived.installation(home)
        found = _sandboxes(home)
        sandboxes = [Removed("sandbox", name, path, allocated(path)) for name, path in found.leftovers]
        others = [
            Removed("template", template.path.name, template.path, allocated(template.path))
            for template in _derived.templates(home, installed)
            if everything or not template.current
        ]
        superseded = _superseded(_derived.files(home, installed), found)
        derived = [_removed(home, item.kind, item.path) for item in superseded]
        others += [_removed(home, "temporary", path) for path in _temporary(home)]
        others += [_removed(home, "lock", path) for path in _dead_locks(home)]
        if volumes:
            unused = _unused_volumes(home)
            others += [Removed("volume", path.name, path, allocated(path)) for path in unused]
    if dry_run:
        return Pruned((*sandboxes, *derived, *others), ())
    removed: list[Removed] = []
    failures: list[MicrosandboxError] = []
    if sandboxes:
        try:
            _create.reconcile(home)
        except MicrosandboxError as failure:
            failures.append(failure)
        removed += [item for item in sandboxes if not item.path.exists()]

    def work_off(items: Sequence[Removed]) -> None:
        for item in items:
            try:
                with translated():
                    _remove(home, item)
            except MicrosandboxError as failure:
                failures.append(failure)
            else:
                if item.kind != "lock" or not item.path.exists():
                    removed.append(item)

    if derived:
        try:
            with _starts_held(home) as nothing_runs:
                work_off(derived if nothing_runs else [])
        except MicrosandboxError as failure:
            failures.append(failure)
    work_off(others)
    return Pruned(tuple(removed), tuple(failures))


def _removed(home: Path, kind: str, path: Path) -> Removed:
    return Removed(str(kind), path.relative_to(home).as_posix(), path, allocated(path))


def _remove(home: Path, item: Removed) -> None:
    if item.kind == "template":
        Templates(home).remove(item.name)
    elif item.kind == "lock":
        _remove_lock(item.path)
    elif item.kind == "volume":
        _volumes.remove(home, item.name)
    elif item.path.parent == home / "volumes":
        _volumes.sweep(item.path.parent)
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


def _superseded(derived: Sequence[Derived], sandboxes: _Sandboxes) -> list[Derived]:
    """Those that can go: not used by the present installation, nor by one whose sandboxes run.

    What a running sandbox uses it has open, but which of them is just being started, and is about to open
    what it has found by name, cannot be seen. Times of access do not tell either: many file systems keep
    none.
    """
    return [] if sandboxes.running else [item for item in derived if not item.current]


@contextmanager
def _starts_held(home: Path) -> Iterator[bool]:
    """Keep sandboxes from being started, and tell whether none runs or is being started.

    A start takes the lock of its sandbox first, for which it needs the guard, and only then looks which
    files there are. So if no lock is held while we have the guard, whoever starts next finds what we leave.
    """
    parent = home / "sandboxes"
    with guard(parent, fcntl.LOCK_EX):
        yield not any(SandboxDirectory(home, path.name)._is_locked() for path in _entries(parent))


def _dead_locks(home: Path) -> list[Path]:
    """Locks on templates that nobody makes (a maker removes its own, unless it is killed), and marks of
    those that could not be made."""
    found = [path for path in _entries(home / "cache" / "templates") if path.name[0] == "."]
    return [path for path in found if path.suffix in (".lock", ".failed") and _is_free(path)]


def _is_free(lock: Path) -> bool:
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _remove_lock(lock: Path) -> None:
    """Remove a lock unless somebody holds it. Whoever waits for it looks whether the name is still there."""
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_ino == lock.stat().st_ino:
                lock.unlink()
        finally:
            os.close(descriptor)
    except (BlockingIOError, FileNotFoundError):
        pass  # the template is being made again, or the maker was faster
    except OSError as error:
        raise StorageError.from_os("remove", lock, error) from error


def _temporary(home: Path) -> list[Path]:
    """Temporary files and directories whose writers are dead."""
    cache = home / "cache"
    found = _create.image_store(home).leftovers()
    for directory in (cache, *_entries(cache), home / "lib", home / "volumes"):
        if directory.is_dir():
            found += artifacts.leftovers(directory)
    return found


def _unused_volumes(home: Path) -> list[Path]:
    """The volumes that no sandbox has; damaged ones, of which nothing is known, are not among them."""
    uses = _volumes.uses(home)
    found = []
    for path in _entries(home / "volumes"):
        try:
            record = _volumes.find(home, path.name)
        except MicrosandboxError:
            continue
        if record.name not in uses:
            found.append(path)
    return found


def _unused_images(home: Path, used: Collection[str]) -> int:
    """Bytes of the images that no sandbox is made from, without layers that other images need."""
    store = _create.image_store(home)
    unused = {image.digest for image in store.list() if image.digest not in used}
    directories: set[Path] = set()
    layers: set[Path] = set()
    needed: set[Path] = set()
    for directory, digest in _image_directories(home / "cache"):
        if digest in unused:
            directories.add(directory)
        try:
            with translated():
                found = {layer.path for image in store.forms(digest) for layer in image.layers}
        except ImageError:
            return 0  # which layers a damaged image needs cannot be told
        (layers if digest in unused else needed).update(found)
    layers -= needed
    return sum(allocated(path) for path in directories | layers)


def _image_directories(cache: Path) -> list[tuple[Path, str]]:
    """Every image directory and its digest; an image has one for each compression in which it is there."""
    entries = _entries(cache / "images")
    return [(path, f"sha256:{path.stem}") for path in entries if len(path.stem) == 64]


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


def allocated(path: Path, without: Collection[Path] = ()) -> int:
    """Bytes that a file, or a directory and all below it, take on the disk; 0 if it is gone."""
    if path in without:
        return 0
    try:
        found = path.lstat()
        size = found.st_blocks * 512
        if stat.S_ISDIR(found.st_mode):
            below = {str(other.relative_to(path)) for other in without if path in other.parents}
            size += sum(facts.st_blocks * 512 for facts in _trees.every(path, below))
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
