"""Deleting what nothing refers to any more, safely beside processes that load, start and tag.

An image is garbage when no reference and no packed directory names it; a layer, when no image directory
names it. Each is judged again after its lock was taken exclusively: whoever was about to make use of it
either finished before (and is seen now) or comes later (and finds it gone).
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Collection, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

from microsandbox_oci._config_document import parse_config
from microsandbox_oci._digest import PREFIX, is_digest
from microsandbox_oci._errors import ImageError
from microsandbox_oci._locks import lock_file
from microsandbox_oci._manifest import Descriptor, Manifest, parse_document
from microsandbox_oci._packed import read_packed
from microsandbox_oci._paths import CONFIG, IN_USE, MANIFEST, StorePaths
from microsandbox_oci._progress import Removed
from microsandbox_oci._records import read_layer_ids, read_ref

# A pull that is about to publish its image has its blobs in place already. If it takes longer, the image
# only has to be fetched again before it can be saved.
_NEW_SECONDS = 3600

# Each candidate costs a descriptor while it is judged, and 1024 is the usual limit.
_BATCH = 64


def collect(
    paths: StorePaths,
    work: Path,
    *,
    images: Iterable[str] | None = None,
    layers: Iterable[str] | None = None,
    keep: Collection[str] = (),
    dry_run: bool = False,
) -> Removed:
    """Delete garbage among ``images`` and ``layers``, or among all that the store has.

    Images in use and those in ``keep`` stay, and so do their layers. With ``dry_run`` nothing is deleted
    and the result says what would be.
    """
    images = None if images is None else tuple(images)
    layers = None if layers is None else tuple(layers)
    removed_images: dict[str, None] = {}
    removed_layers: dict[str, None] = {}
    blobs: set[str] = set()
    gone: set[Path] = set()
    size = 0
    for kind in paths.kinds():
        candidates = set(layers or ())
        for digest in stored_images(kind) if images is None else images:
            if digest in keep:
                continue
            layer_ids, originals = layer_ids_of(kind, digest), _manifest_layers(kind, digest)
            freed = _remove_image(kind, work, digest, dry_run=dry_run)
            if freed is not None:
                size += freed
                removed_images[digest] = None
                gone.add(kind.image(digest))
                candidates.update(layer_ids)
                blobs.update(layer.digest for layer in originals)
        if layers is None and images is None:
            candidates = set(_stored_layers(kind))
        ignoring = frozenset(gone) if dry_run else frozenset[Path]()
        freed_ids, freed_layers = _remove_layers(kind, candidates, ignoring=ignoring, dry_run=dry_run)
        removed_layers.update(dict.fromkeys(freed_ids))
        size += freed_layers
    size += remove_blobs(paths, blobs=blobs, ignoring=ignoring, dry_run=dry_run)
    if images is None:
        size += remove_blobs(paths, but=blobs, ignoring=ignoring, dry_run=dry_run)
        size += _remove_downloads(paths, dry_run=dry_run)
    return Removed(tuple(removed_images), tuple(removed_layers), size)


def stored_images(paths: StorePaths) -> list[str]:
    """Return the digests of all image directories of this compression."""
    return _digests(paths.images, paths.suffix)


def _stored_layers(paths: StorePaths) -> list[str]:
    # Pins without a layer are left by loads that failed: they are garbage of the same kind.
    layers = _digests(paths.layers, f"{paths.suffix}.erofs")
    return sorted({*layers, *_digests(paths.locks, f"{paths.suffix}.pin")})


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
        return parse_config(config, max_layers=sys.maxsize).diff_ids
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
    paths: StorePaths, candidates: set[str], *, ignoring: frozenset[Path], dry_run: bool
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


def remove_blobs(
    paths: StorePaths,
    *,
    blobs: Collection[str] | None = None,
    but: Collection[str] = (),
    ignoring: frozenset[Path] = frozenset(),
    dry_run: bool = False,
) -> int:
    """Delete blobs that no image's manifest names and return the bytes freed.

    Among ``blobs``; else among all except ``but`` and the new ones, whose images may be on their way.
    """
    if blobs is not None and not blobs:
        return 0
    needed = {
        layer.digest
        for kind in paths.kinds()
        for digest in stored_images(kind)
        if kind.image(digest) not in ignoring
        for layer in _manifest_layers(kind, digest)
    }
    now = time.time()
    size = 0
    candidates = _digests(paths.blobs, "") if blobs is None else blobs
    for digest in set(candidates) - needed - set(but):
        path = paths.blob(digest)
        with suppress(FileNotFoundError):
            status = path.stat()
            if blobs is None and now - status.st_mtime < _NEW_SECONDS:
                continue
            size += status.st_size
            if not dry_run:
                path.unlink()
    return size


def _remove_downloads(paths: StorePaths, *, dry_run: bool) -> int:
    """Delete what transfers have left that nobody goes on with at the moment."""
    size = 0
    for digest in _digests(paths.downloads, ""):
        # Two: what has arrived is nobody's to take until it is converted, compared and kept.
        with ExitStack() as locks:
            names = (paths.keep_lock(digest), paths.download_lock(digest))
            if not all(_locked_now(name, locks) for name in names):
                continue
            path = paths.download(digest)
            with suppress(FileNotFoundError):
                size += path.stat().st_size
                if not dry_run:
                    path.unlink()
            for name in names:
                name.unlink(missing_ok=True)
    return size


def _locked_now(name: Path, locks: ExitStack) -> bool:
    lock = lock_file(name, wait=False)
    if lock is not None:
        locks.callback(os.close, lock)
    return lock is not None


def _manifest_layers(paths: StorePaths, digest: str) -> tuple[Descriptor, ...]:
    try:
        data = (paths.image(digest) / MANIFEST).read_bytes()
        document = parse_document(data, f"manifest {digest}", max_layers=sys.maxsize)
    except (FileNotFoundError, ImageError):
        return ()
    return document.layers if isinstance(document, Manifest) else ()


def _needed_layers(paths: StorePaths, ignoring: frozenset[Path]) -> set[str]:
    return {
        diff_id
        for digest in stored_images(paths)
        if paths.image(digest) not in ignoring
        for diff_id in layer_ids_of(paths, digest)
    }
