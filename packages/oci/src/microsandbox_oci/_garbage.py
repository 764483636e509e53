"""Deleting what nothing refers to any more, safely beside processes that load, start and tag.

An image is garbage when no reference and no packed directory names it; a layer, when no image directory
names it. Each is judged again after its lock was taken exclusively: whoever was about to make use of it
either finished before (and is seen now) or comes later (and finds it gone).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from microsandbox_oci._config_document import parse_config
from microsandbox_oci._digest import PREFIX, is_digest
from microsandbox_oci._errors import ImageError
from microsandbox_oci._limits import Limits
from microsandbox_oci._locks import lock_file
from microsandbox_oci._packed import read_packed
from microsandbox_oci._paths import CONFIG, IN_USE, StorePaths
from microsandbox_oci._progress import Removed
from microsandbox_oci._records import read_layer_ids, read_ref

# Each candidate costs a descriptor while it is judged, and 1024 is the usual limit.
_BATCH = 64


def collect(
    paths: StorePaths,
    work: Path,
    *,
    images: Iterable[str] | None = None,
    layers: Iterable[str] | None = None,
    dry_run: bool = False,
) -> Removed:
    """Delete garbage among ``images`` and ``layers``, or among all that the store has.

    Images in use stay, and so do their layers. With ``dry_run`` nothing is deleted and the result says
    what would be.
    """
    removed_images: list[str] = []
    gone: dict[str, tuple[str, ...]] = {}
    size = 0
    for digest in stored_images(paths) if images is None else images:
        layer_ids = layer_ids_of(paths, digest)
        freed = _remove_image(paths, work, digest, dry_run=dry_run)
        if freed is not None:
            size += freed
            removed_images.append(digest)
            gone[digest] = layer_ids
    if layers is None:
        candidates = (
            set(_stored_layers(paths)) if images is None else {i for ids in gone.values() for i in ids}
        )
    else:
        candidates = set(layers) | {i for ids in gone.values() for i in ids}
    removed_layers, freed_layers = _remove_layers(
        paths, candidates, ignoring=frozenset(gone) if dry_run else frozenset(), dry_run=dry_run
    )
    return Removed(tuple(removed_images), tuple(removed_layers), size + freed_layers)


def stored_images(paths: StorePaths) -> list[str]:
    """Return the digests of all image directories."""
    return _digests(paths.images, "")


def _stored_layers(paths: StorePaths) -> list[str]:
    # Pins without a layer are left by loads that failed: they are garbage of the same kind.
    return sorted({*_digests(paths.layers, ".erofs"), *_digests(paths.locks, ".pin")})


def _digests(directory: Path, suffix: str) -> list[str]:
    names = (path.name.removesuffix(suffix) for path in directory.iterdir() if path.name.endswith(suffix))
    return sorted(PREFIX + name for name in names if is_digest(PREFIX + name))


def named_images(paths: StorePaths) -> set[str]:
    """Return the digests that references and packed directories name."""
    named = set()
    for path in paths.refs.iterdir():
        try:
            ref = read_ref(path)
        except ImageError:
            continue  # a damaged record names nothing that could still be found by it
        if ref is not None:
            named.add(ref[1])
    for path in paths.rootfs.iterdir():
        try:
            packed = read_packed(path)
        except ImageError:
            continue
        if packed is not None:
            named.add(packed.digest)
    return named


def layer_ids_of(paths: StorePaths, digest: str) -> tuple[str, ...]:
    """Return the diff ids of an image; a damaged record is made up for by the configuration."""
    try:
        return read_layer_ids(paths, digest)
    except ImageError:
        pass
    try:
        config = (paths.image(digest) / CONFIG).read_bytes()
        return parse_config(config, max_layers=Limits().layers).diff_ids
    except (FileNotFoundError, ImageError):
        return ()


def _remove_image(paths: StorePaths, work: Path, digest: str, *, dry_run: bool) -> int | None:
    """Delete an image unless it is named or in use; return the bytes freed, None if it stays."""
    directory = paths.image(digest)
    if digest in named_images(paths):
        return None  # the usual case, judged without disturbing anyone
    try:
        lock = lock_file(directory / IN_USE, wait=False)
    except FileNotFoundError:
        return None
    if lock is None:
        return None
    try:
        if digest in named_images(paths):
            return None
        size = sum(path.stat().st_size for path in directory.iterdir())
        if not dry_run:
            # Renamed first: it disappears at once and whole, and a kill leaves only a stale temporary.
            doomed = work / f"removed-{directory.name}"
            directory.rename(doomed)
            shutil.rmtree(doomed)
        return size
    finally:
        os.close(lock)


def _remove_layers(
    paths: StorePaths, candidates: set[str], *, ignoring: frozenset[str], dry_run: bool
) -> tuple[list[str], int]:
    removed: list[str] = []
    size = 0
    doomed = sorted(candidates - _needed_layers(paths, ignoring))
    for start in range(0, len(doomed), _BATCH):
        with ExitStack() as stack:
            free = []
            for diff_id in doomed[start : start + _BATCH]:
                lock = lock_file(paths.pin_lock(diff_id), wait=False)
                if lock is not None:
                    stack.callback(os.close, lock)
                    free.append(diff_id)
            # Again: a load that published before the pin was ours is visible only now.
            needed = _needed_layers(paths, ignoring)
            for diff_id in free:
                if diff_id in needed:
                    continue
                path = paths.layer(diff_id)
                if path.exists():
                    size += path.stat().st_size
                    removed.append(diff_id)
                if not dry_run:
                    path.unlink(missing_ok=True)
                if not dry_run or not path.exists():
                    paths.pin_lock(diff_id).unlink(missing_ok=True)
    return removed, size


def _needed_layers(paths: StorePaths, ignoring: frozenset[str]) -> set[str]:
    return {
        diff_id
        for digest in stored_images(paths)
        if digest not in ignoring
        for diff_id in layer_ids_of(paths, digest)
    }
