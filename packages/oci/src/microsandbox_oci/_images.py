"""Putting an image together from its layers and publishing it as one directory, in one rename."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from microsandbox_oci import _native
from microsandbox_oci._config_document import ConfigDocument
from microsandbox_oci._errors import ImageInvalid, LimitExceeded
from microsandbox_oci._files import (
    PRIVATE_DIR,
    create_file,
    seal,
    store_errors,
    sync_directory,
    write_sealed,
)
from microsandbox_oci._in_use import hold
from microsandbox_oci._layers import LIMIT_CODES, is_sound
from microsandbox_oci._limits import Limits
from microsandbox_oci._locks import lock_file, locked
from microsandbox_oci._model import Image
from microsandbox_oci._paths import CONFIG, DISK, IN_USE, MANIFEST, METADATA, RECORD, StorePaths
from microsandbox_oci._progress import Phase, Progress, ProgressCallback
from microsandbox_oci._records import encode_image, read_image


@dataclass(frozen=True, slots=True)
class ImageDocuments:
    """What identifies an image: its digest and the original bytes behind it."""

    digest: str
    manifest: bytes
    config: bytes
    document: ConfigDocument


@dataclass(frozen=True, slots=True)
class Held:
    """A published image and the descriptor that keeps it from being removed; the receiver closes it."""

    image: Image
    lock: int
    created: bool


def publish_image(
    paths: StorePaths,
    documents: ImageDocuments,
    work: Path,
    ensure_layers: Callable[[], None],
    limits: Limits,
    progress: ProgressCallback,
) -> Held:
    """Make sure that the store has the image, whole, and return it held.

    ``ensure_layers`` is called, with every layer pinned, if the image has to be built.

    Raises:
        ImageInvalid: from ``ensure_layers``, or the layers do not fit together.
        LimitExceeded: the layers together are more than ``limits`` allow an image.
        StoreError: the store is full or not writable.
    """
    directory = paths.image(documents.digest)
    with ExitStack() as undo:
        with store_errors("publishing an image", paths.root):
            lock = hold(directory)
        if lock is not None:
            undo.callback(os.close, lock)
            image = intact(paths, documents)
            if image is not None:
                undo.pop_all()
                return Held(image, lock, created=False)
        with store_errors("publishing an image", paths.root):
            for diff_id in sorted(set(documents.document.diff_ids)):
                undo.enter_context(locked(paths.pin_lock(diff_id), shared=True))
        ensure_layers()
        progress(Progress(Phase.MERGING, documents.digest))
        with store_errors("publishing an image", paths.root):
            sync_directory(paths.layers)
            built = _build(paths, documents, work, limits)
            if lock is None:
                lock = _place(built, directory)
                undo.callback(os.close, lock)
            else:
                _replace_files(built, directory)
        image = read_image(paths, documents.digest)
        if image is None:
            raise ImageInvalid(f"image {documents.digest} vanished while it was published")
        kept = os.dup(lock)  # one lock, two descriptors: the stack closes its own with the pins
        return Held(image, kept, created=True)


def intact(paths: StorePaths, documents: ImageDocuments) -> Image | None:
    """Return the image if every file of it is there and passes its check, else None: it is to be rebuilt."""
    try:
        image = read_image(paths, documents.digest)
    except ImageInvalid:
        return None
    if image is None:
        return None
    expected = {
        MANIFEST: documents.manifest,
        CONFIG: documents.config,
        DISK: _descriptor(paths, image.extents),
    }
    for name, data in expected.items():
        try:
            if (image.directory / name).read_bytes() != data:
                return None
        except FileNotFoundError:
            return None
    return image if all(is_sound(path) for path, _ in image.extents) else None


def _build(paths: StorePaths, documents: ImageDocuments, work: Path, limits: Limits) -> Path:
    directory = work / paths.image(documents.digest).name
    directory.mkdir(mode=PRIVATE_DIR)
    sizes = _merge(paths, documents, directory / METADATA, limits)
    layers = [paths.layer(diff_id) for diff_id in documents.document.diff_ids]
    disk = _descriptor(paths, zip((directory / METADATA, *layers), sizes, strict=True))
    platform = documents.document.platform
    record = encode_image(
        digest=documents.digest,
        config=documents.document.config,
        created=documents.document.created,
        architecture=platform.architecture if platform else "",
        metadata_size=sizes[0],
        disk_size=len(disk),
        layers=tuple(zip(documents.document.diff_ids, sizes[1:], strict=True)),
    )
    write_sealed(directory / DISK, disk)
    write_sealed(directory / MANIFEST, documents.manifest)
    write_sealed(directory / CONFIG, documents.config)
    write_sealed(directory / RECORD, record)
    return directory


def _merge(paths: StorePaths, documents: ImageDocuments, target: Path, limits: Limits) -> list[int]:
    """Write the merged metadata and return its size and the layers' sizes, in bytes."""
    with ExitStack() as stack:
        opened: dict[str, int] = {}
        for diff_id in documents.document.diff_ids:
            if diff_id not in opened:
                opened[diff_id] = os.open(paths.layer(diff_id), os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, opened[diff_id])
        out = create_file(target)
        stack.callback(os.close, out)
        descriptors = [opened[diff_id] for diff_id in documents.document.diff_ids]
        try:
            _native.merge(descriptors, out, limits=limits.for_merge())
        except _native.LayerError as error:
            what = f"image {documents.digest}"
            if error.code in LIMIT_CODES:
                raise LimitExceeded(f"{what} exceeds a limit: {error}", blob=what) from error
            raise ImageInvalid(f"the layers of {what} do not fit together: {error}", blob=what) from error
        seal(out)
        return [os.fstat(fd).st_size for fd in (out, *descriptors)]


def _descriptor(paths: StorePaths, extents: Iterable[tuple[Path, int]]) -> bytes:
    # Paths relative to the descriptor, so that the store can be moved or mounted elsewhere.
    named = [
        (path.name if path.name == METADATA else f"../../{paths.layers.name}/{path.name}", size)
        for path, size in extents
    ]
    return _native.vmdk_descriptor(named).encode()


def _place(built: Path, directory: Path) -> int:
    """Rename the directory into place and return its shared lock, taken while nobody could see it."""
    while True:
        lock = lock_file(built / IN_USE, shared=True)
        if lock is None:
            raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK), str(built))
        try:
            sync_directory(built)
            built.rename(directory)
            sync_directory(directory.parent)
            return lock
        except OSError as error:
            os.close(lock)
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        # Another process published the same image first: same content, so its copy will do. If it is
        # gone again by now, ours goes in after all.
        theirs = hold(directory)
        if theirs is not None:
            return theirs


def _replace_files(built: Path, directory: Path) -> None:
    """Repair a damaged image file by file; the record comes last because it vouches for the others."""
    for name in (METADATA, DISK, MANIFEST, CONFIG, RECORD):
        (built / name).rename(directory / name)
    sync_directory(directory)
    built.rmdir()
