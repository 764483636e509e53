"""The store's own small documents: the image record and the reference record.

The image record (``image.json``) holds what a sandbox start needs, so that `ImageStore.get` parses one
small file instead of a manifest and a configuration of up to megabytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from microsandbox_oci._config import ImageConfig
from microsandbox_oci._errors import ImageInvalid
from microsandbox_oci._json import Node, dump
from microsandbox_oci._model import Image, Layer
from microsandbox_oci._paths import DISK, METADATA, RECORD, StorePaths
from microsandbox_oci._reference import Reference

VERSION = 1
"""Changes when a record or the layout of the files it speaks of changes: older ones are rebuilt by a load."""

DAMAGED_HINT = "load or pull the image again: damaged files are rebuilt"


def encode_image(
    *,
    digest: str,
    config: ImageConfig,
    created: str,
    architecture: str,
    metadata_size: int,
    disk_size: int,
    layers: tuple[tuple[str, int], ...],
) -> bytes:
    """Return an image record; ``layers`` are diff ids and sizes in bytes, base first."""
    return dump(
        {
            "version": VERSION,
            "digest": digest,
            "created": created,
            "architecture": architecture,
            "config": config.to_json(),
            "metadata_size": metadata_size,
            "disk_size": disk_size,
            "layers": [{"diff_id": diff_id, "size": size} for diff_id, size in layers],
        }
    )


def read_image(paths: StorePaths, digest: str) -> Image | None:
    """Read the record of an image; None if the store has no such image.

    The files are looked at (`check_image`), not read.

    Raises:
        ImageInvalid: the record is damaged or of another version, or a file is missing or has the wrong size.
    """
    directory = paths.image(digest)
    node = _image_node(directory, digest)
    if node is None:
        return None
    config = node.child("config")
    layers = tuple(
        Layer(diff_id := child.digest("diff_id"), paths.layer(diff_id), child.size("size"))
        for child in node.children("layers")
    )
    metadata_size, disk_size = node.size("metadata_size"), node.size("disk_size")
    image = Image(
        reference=None,
        digest=digest,
        config=ImageConfig() if config is None else ImageConfig.from_node(config),
        disk=directory / DISK,
        metadata=directory / METADATA,
        metadata_size=metadata_size,
        layers=layers,
        size=metadata_size + disk_size + sum(layer.size for layer in layers),
        created=node.text("created"),
        architecture=node.text("architecture"),
    )
    _check_size(digest, image.disk, disk_size)
    for path, size in image.extents:
        _check_size(digest, path, size)
    return image


def find_image(paths: StorePaths, digest: str) -> Image | None:
    """Read the record of an image of this compression, or of another if there is none, or a damaged one.

    Raises:
        ImageInvalid: as `read_image`.
    """
    return next(iter(find_forms(paths, digest)), None)


def find_forms(paths: StorePaths, digest: str) -> Iterator[Image]:
    """Read the records of an image in all compressions, this one first; damaged ones are left out.

    Raises:
        ImageInvalid: as `read_image`, if none is left.
    """
    failure, found = None, False
    for kind in paths.kinds():
        try:
            image = read_image(kind, digest)
        except ImageInvalid as error:
            failure = failure or error
            continue
        if image is not None:
            found = True
            yield image
    if failure is not None and not found:
        raise failure


def read_layer_ids(paths: StorePaths, digest: str) -> tuple[str, ...]:
    """Return the diff ids an image's record names, whether or not their files are there.

    Raises:
        ImageInvalid: the record is damaged.
    """
    node = _image_node(paths.image(digest), digest)
    return () if node is None else tuple(child.digest("diff_id") for child in node.children("layers"))


def _image_node(directory: Path, digest: str) -> Node | None:
    try:
        data = (directory / RECORD).read_bytes()
    except FileNotFoundError:
        return None
    node = parse_record(data, f"record of image {digest}")
    if node.members.get("digest") != digest:
        raise ImageInvalid(f"{node.what} speaks of another image", blob=node.what, hint=DAMAGED_HINT)
    return node


def _check_size(digest: str, path: Path, expected: int) -> None:
    # The cheap check of every start: what a crash, a full disk or a stray `rm` does to a file shows here.
    try:
        seen = os.stat(path).st_size  # noqa: PTH116 - counted: on the path of every sandbox start
    except FileNotFoundError:
        raise ImageInvalid(
            f"image {digest} is damaged: {path.name} is missing", blob=path.name, hint=DAMAGED_HINT
        ) from None
    if seen != expected:
        raise ImageInvalid(
            f"image {digest} is damaged: {path.name} has {seen} bytes instead of {expected}",
            blob=path.name,
            expected=str(expected),
            seen=str(seen),
            hint=DAMAGED_HINT,
        )


def encode_ref(reference: Reference, digest: str) -> bytes:
    """Return a reference record."""
    return dump({"version": VERSION, "reference": str(reference), "digest": digest})


def read_ref(path: Path) -> tuple[Reference, str] | None:
    """Read a reference record: the reference and the manifest digest it points to; None if there is none.

    Raises:
        ImageInvalid: the record is damaged.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    node = parse_record(data, f"reference record {path.name}")
    return Reference.parse(node.text("reference")), node.digest("digest")


def named(image: Image, reference: Reference | None) -> Image:
    """Return ``image`` under ``reference``."""
    return image._replace(reference=reference)


def parse_record(data: bytes, what: str) -> Node:
    """Parse a record of this version.

    Raises:
        ImageInvalid: it is damaged or of another version.
    """
    try:
        node = Node.parse(data, what)
    except ImageInvalid as error:
        raise ImageInvalid(str(error), blob=what, hint=DAMAGED_HINT) from error
    if node.members.get("version") != VERSION:
        raise ImageInvalid(f"{what} has an unknown version", blob=what, hint=DAMAGED_HINT)
    return node
