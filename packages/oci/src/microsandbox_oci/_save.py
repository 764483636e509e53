"""Writing images out again, byte for byte as they came in, as a tar archive.

Formats: the OCI image layout in a tar file (``oci``), and the same with Docker's ``manifest.json`` beside it
(``docker``), which is what ``docker save`` writes since version 25.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable
from enum import StrEnum
from hashlib import sha256
from typing import Any, BinaryIO

from microsandbox_oci._argument import LAYOUT_MARKER
from microsandbox_oci._digest import PREFIX, digest_of, hex_of
from microsandbox_oci._docker_source import descriptor_json
from microsandbox_oci._errors import DigestMismatch, ImageInvalid, LayerNotKept
from microsandbox_oci._json import dump
from microsandbox_oci._layout_source import INDEX, LAYOUT_VERSION
from microsandbox_oci._limits import Limits
from microsandbox_oci._manifest import (
    ANNOTATION_CONTAINERD_NAME,
    ANNOTATION_REF_NAME,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    parse_document,
)
from microsandbox_oci._model import Image
from microsandbox_oci._paths import CONFIG, MANIFEST, StorePaths


class SaveFormat(StrEnum):
    """What kind of archive is written."""

    OCI = "oci"
    DOCKER = "docker"


def save_images(
    paths: StorePaths, images: Iterable[Image], out: BinaryIO, form: SaveFormat, limits: Limits
) -> None:
    """Write ``images``, which the caller holds, to ``out``, a stream that need not be seekable.

    Raises:
        LayerNotKept: a layer's original bytes are not in the store; nothing has been written then.
        DigestMismatch, ImageInvalid: a file of the store is damaged.
        OSError: ``out`` cannot be written.
    """
    saved = [_Saved(paths, image, limits) for image in images]
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.GNU_FORMAT, bufsize=1 << 20) as tar:
        written: set[str] = set()
        _add(tar, LAYOUT_MARKER, dump({"imageLayoutVersion": LAYOUT_VERSION}))
        for one in saved:
            for data in (one.manifest, one.config):
                if (digest := digest_of(data)) not in written:
                    written.add(digest)
                    _add(tar, _blob_name(digest), data)
            for layer in one.document.layers:
                if layer.digest not in written:
                    written.add(layer.digest)
                    _add_layer(tar, paths, layer)
        entries = [entry for one in saved for entry in one.index_entries()]
        _add(tar, INDEX, dump({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}))
        if form is SaveFormat.DOCKER:
            _add(tar, MANIFEST, dump([one.docker_entry() for one in _by_digest(saved)]))


class _Saved:
    """An image's original documents, verified, and the names it is saved under."""

    def __init__(self, paths: StorePaths, image: Image, limits: Limits) -> None:
        self.digest = image.digest
        self.names = [] if image.reference is None else [image.reference]
        self.manifest = (image.directory / MANIFEST).read_bytes()
        self.config = (image.directory / CONFIG).read_bytes()
        if (seen := digest_of(self.manifest)) != image.digest:
            raise DigestMismatch(f"manifest {image.digest}", expected=image.digest, seen=seen)
        document = parse_document(self.manifest, f"manifest {image.digest}", max_layers=limits.layers)
        if not isinstance(document, Manifest):
            raise ImageInvalid(f"image {image.digest} has an index for a manifest", blob=image.digest)
        self.document = document
        if (seen := digest_of(self.config)) != document.config.digest:
            raise DigestMismatch(
                f"configuration of image {image.digest}", expected=document.config.digest, seen=seen
            )
        for layer in document.layers:
            if not paths.blob(layer.digest).exists():
                raise LayerNotKept(str(image.reference or image.digest), layer.digest)

    def index_entries(self) -> list[dict[str, Any]]:
        kind = DOCKER_MANIFEST if "docker" in self.document.config.media_type else OCI_MANIFEST
        entry: dict[str, Any] = dict(descriptor_json(Descriptor(kind, self.digest, len(self.manifest))))
        named = [
            {
                **entry,
                "annotations": {
                    ANNOTATION_CONTAINERD_NAME: str(name),
                    ANNOTATION_REF_NAME: name.tag or name.digest or "",
                },
            }
            for name in self.names
        ]
        return named or [entry]

    def docker_entry(self) -> dict[str, Any]:
        return {
            "Config": _blob_name(self.document.config.digest),
            "RepoTags": [name.familiar for name in self.names if name.digest is None],
            "Layers": [_blob_name(layer.digest) for layer in self.document.layers],
        }


def _by_digest(saved: list[_Saved]) -> list[_Saved]:
    """Join the names of entries that are one image: the archive lists it once."""
    found: dict[str, _Saved] = {}
    for one in saved:
        first = found.setdefault(one.digest, one)
        if first is not one:
            first.names += one.names
    return list(found.values())


def _blob_name(digest: str) -> str:
    return f"blobs/sha256/{hex_of(digest)}"


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def _add_layer(tar: tarfile.TarFile, paths: StorePaths, layer: Descriptor) -> None:
    with paths.blob(layer.digest).open("rb") as file:
        entry = tarfile.TarInfo(_blob_name(layer.digest))
        entry.size = os.fstat(file.fileno()).st_size
        hashed = _Hashed(file)
        tar.addfile(entry, hashed)
    if hashed.digest != layer.digest:
        # An archive with it would be refused by whoever loads it, long after.
        raise DigestMismatch(f"layer {layer.digest} in the store", expected=layer.digest, seen=hashed.digest)


class _Hashed:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._state = sha256()

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size)
        self._state.update(data)
        return data

    @property
    def digest(self) -> str:
        return PREFIX + self._state.hexdigest()
