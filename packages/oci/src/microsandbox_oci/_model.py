"""The values the store hands out: images and their layers."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from microsandbox_oci._config import ImageConfig
from microsandbox_oci._paths import NOT_COMPRESSED
from microsandbox_oci._reference import Reference


class Layer(NamedTuple):
    """One layer as a file: an EROFS image of ``size`` bytes that every image with this diff id shares."""

    diff_id: str
    path: Path
    size: int


class Image(NamedTuple):
    """An image in the store, ready to be attached to a virtual machine as one read-only disk.

    Attributes:
        reference: the name it was asked for by, or None.
        digest: digest of the manifest, ``sha256:<64 hex>``.
        config: what to run in it and how.
        disk: VMDK descriptor that concatenates `metadata` and the layers, by paths relative to itself.
        metadata: the merged EROFS metadata, first extent of the disk.
        metadata_size: bytes of `metadata`.
        layers: the layers, base first: the further extents of the disk.
        size: bytes of all those files together; layers shared with other images count in each.
        created: RFC 3339 time from the image configuration, or "".
        architecture: in Go's naming (``amd64``), or "".
    """

    reference: Reference | None
    digest: str
    config: ImageConfig
    disk: Path
    metadata: Path
    metadata_size: int
    layers: tuple[Layer, ...]
    size: int
    created: str
    architecture: str

    @property
    def extents(self) -> tuple[tuple[Path, int], ...]:
        """Files and sizes in bytes that, one after the other, are the disk."""
        return ((self.metadata, self.metadata_size), *((layer.path, layer.size) for layer in self.layers))

    @property
    def compression(self) -> str:
        """How the contents of the layers are stored: ``none`` or ``lz4``."""
        return self.directory.suffix[1:] or NOT_COMPRESSED

    @property
    def directory(self) -> Path:
        """Where the image's own files are: manifest, configuration, metadata and descriptor."""
        return self.disk.parent
