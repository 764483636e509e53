"""Writing OCI image layouts: the same layers and configuration always give the same bytes.

Format: OCI image specification 1.1, ``image-layout.md``.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from microsandbox_oci._argument import LAYOUT_MARKER
from microsandbox_oci._config import ImageConfig
from microsandbox_oci._digest import PREFIX, hex_of
from microsandbox_oci._docker_source import build_manifest, descriptor_json
from microsandbox_oci._json import dump
from microsandbox_oci._layout_source import INDEX, LAYOUT_VERSION
from microsandbox_oci._manifest import (
    ANNOTATION_REF_NAME,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
)
from microsandbox_oci._platform import Platform

__all__ = ["Compression", "Descriptor", "LayerBlob", "LayoutWriter"]

_CHUNK = 1 << 20
EPOCH = "1970-01-01T00:00:00Z"


class Compression(StrEnum):
    """How a layer's tar is stored."""

    NONE = ""
    GZIP = "gzip"
    ZSTD = "zstd"


@dataclass(frozen=True, slots=True)
class LayerBlob:
    """A layer in the layout: its descriptor and the digest of its uncompressed tar."""

    descriptor: Descriptor
    diff_id: str


class _Encoder(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


class _Stored:
    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


class LayoutWriter:
    """Writes one image layout directory; a context manager that writes ``index.json`` at a clean end.

    Args:
        directory: created if missing. What is in it already stays, except ``index.json``.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._root = Path(directory)
        self._blobs = self._root / "blobs" / "sha256"
        self._blobs.mkdir(parents=True, exist_ok=True)
        self._manifests: list[dict[str, Any]] = []

    def __enter__(self) -> LayoutWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.finish()

    def add_layer(self, tar: bytes | BinaryIO, *, compression: Compression = Compression.GZIP) -> LayerBlob:
        """Store a layer given as an uncompressed tar, whole or as a stream that is read to its end.

        Raises:
            OSError: the directory cannot be written.
        """
        stream = BytesIO(tar) if isinstance(tar, bytes) else tar
        plain, encoder = sha256(), _encoder(compression)

        def pieces() -> Iterable[bytes]:
            while chunk := stream.read(_CHUNK):
                plain.update(chunk)
                yield encoder.compress(chunk)
            yield encoder.flush()

        digest, size = self._write(pieces)
        suffix = f"+{compression.value}" if compression is not Compression.NONE else ""
        return LayerBlob(Descriptor(OCI_LAYER + suffix, digest, size), PREFIX + plain.hexdigest())

    def add_image(
        self,
        layers: Sequence[LayerBlob],
        config: ImageConfig,
        *,
        name: str | None = None,
        platform: Platform | None = None,
        created: str = EPOCH,
    ) -> Descriptor:
        """Store an image's configuration and manifest, list it in the index and return its descriptor.

        Args:
            layers: base first.
            config: what the image runs.
            name: the index's ``org.opencontainers.image.ref.name``, for example ``busybox:latest``.
            platform: this machine's if None.
            created: RFC 3339 time; constant by default so that the bytes are reproducible.
        """
        target = platform or Platform.host()
        return self.add_document(
            dump(
                {
                    "created": created,
                    **_platform_json(target),
                    "config": config.to_json(),
                    "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
                }
            ),
            tuple(layer.descriptor for layer in layers),
            name=name,
            platform=target,
        )

    def add_document(
        self,
        config: bytes,
        layers: tuple[Descriptor, ...],
        *,
        name: str | None = None,
        platform: Platform | None = None,
    ) -> Descriptor:
        """Store a ready-made configuration document, byte for byte, with layers that are stored already."""
        config_digest = self.add_blob(config)
        manifest = build_manifest(Descriptor(OCI_CONFIG, config_digest, len(config)), layers)
        descriptor = Descriptor(OCI_MANIFEST, self.add_blob(manifest), len(manifest), platform)
        entry: dict[str, Any] = dict(descriptor_json(descriptor))
        if platform is not None:
            entry["platform"] = _platform_json(platform)
        if name is not None:
            entry["annotations"] = {ANNOTATION_REF_NAME: name}
        self._manifests.append(entry)
        return descriptor

    def add_blob(self, data: bytes) -> str:
        """Store ``data`` under its digest and return the digest."""
        digest, _ = self._write(lambda: (data,))
        return digest

    def finish(self) -> None:
        """Write ``oci-layout`` and, last, so that it never lists what is missing, ``index.json``."""
        self._replace(self._root / LAYOUT_MARKER, dump({"imageLayoutVersion": LAYOUT_VERSION}))
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": self._manifests}
        self._replace(self._root / INDEX, dump(index))

    def _write(self, pieces: Callable[[], Iterable[bytes]]) -> tuple[str, int]:
        temporary = self._blobs / f".{os.getpid()}.{os.urandom(4).hex()}"
        state, size = sha256(), 0
        try:
            with temporary.open("xb") as file:
                for piece in pieces():
                    state.update(piece)
                    size += len(piece)
                    file.write(piece)
            digest = PREFIX + state.hexdigest()
            temporary.rename(self._blobs / hex_of(digest))
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return digest, size

    def _replace(self, path: Path, data: bytes) -> None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_bytes(data)
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _platform_json(platform: Platform) -> dict[str, str]:
    members = {"os": platform.os, "architecture": platform.architecture, "variant": platform.variant or ""}
    return {name: value for name, value in members.items() if value}


def _encoder(compression: Compression) -> _Encoder:
    if compression is Compression.GZIP:
        # wbits 31 writes a gzip header whose time is zero: the same tar gives the same bytes.
        return zlib.compressobj(6, zlib.DEFLATED, 31)
    if compression is Compression.ZSTD:
        import zstandard

        return zstandard.ZstdCompressor(level=3).compressobj()
    return _Stored()
