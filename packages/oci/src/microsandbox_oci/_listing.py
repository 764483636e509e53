"""Walking over the store's names: which images there are, and which names an image has."""

from __future__ import annotations

import os
from collections.abc import Callable

from microsandbox_oci._errors import ImageError
from microsandbox_oci._garbage import stored_images
from microsandbox_oci._model import Image
from microsandbox_oci._packed import read_packed
from microsandbox_oci._paths import StorePaths
from microsandbox_oci._records import find_image, named, read_ref
from microsandbox_oci._reference import Reference


def list_images(
    paths: StorePaths, on_damaged: Callable[[Reference | None, ImageError], None] | None
) -> list[Image]:
    """Return one image per reference, then those without any; see `ImageStore.list`."""
    # The root may be there and hold other things: nothing has been stored yet then.
    if not all(directory.is_dir() for directory in (paths.images, paths.refs, paths.rootfs)):
        return []
    found: list[Image] = []

    def add(reference: Reference | None, digest: str) -> None:
        try:
            image = find_image(paths, digest)
        except ImageError as error:
            if on_damaged is not None:
                on_damaged(reference, error)
            return
        if image is not None:
            found.append(named(image, reference))

    refs = _refs(paths, on_damaged)
    for reference, digest in refs:
        add(reference, digest)
    known = {digest for _, digest in refs} | _packed(paths)
    for digest in sorted({digest for kind in paths.kinds() for digest in stored_images(kind)}):
        if digest not in known:
            add(None, digest)
    return found


def references(paths: StorePaths) -> list[Reference]:
    """Return the references, sorted; damaged ones are left out."""
    return [reference for reference, _ in _refs(paths, None)] if paths.refs.is_dir() else []


def names_of(paths: StorePaths, digest: str) -> list[Reference]:
    """Return all references that point to a manifest digest."""
    return [reference for reference, pointed in _refs(paths, None) if pointed == digest]


def drop_stale_packs(paths: StorePaths) -> None:
    """Forget packs of directories that no longer exist, and records that cannot be read."""
    for path in paths.rootfs.iterdir():
        try:
            record = read_packed(path)
        except ImageError:
            path.unlink(missing_ok=True)
            continue
        if record is not None and not os.path.isdir(record.directory):  # noqa: PTH112 - may not be UTF-8
            path.unlink(missing_ok=True)


def _refs(
    paths: StorePaths, on_damaged: Callable[[Reference | None, ImageError], None] | None
) -> list[tuple[Reference, str]]:
    refs = []
    for path in paths.refs.iterdir():
        try:
            ref = read_ref(path)
        except ImageError as error:
            if on_damaged is not None:
                on_damaged(None, error)
            continue
        if ref is not None:
            refs.append(ref)
    return sorted(refs, key=lambda ref: str(ref[0]))


def _packed(paths: StorePaths) -> set[str]:
    packed = set()
    for path in paths.rootfs.iterdir():
        try:
            record = read_packed(path)
        except ImageError:
            continue
        if record is not None:
            packed.add(record.digest)
    return packed
