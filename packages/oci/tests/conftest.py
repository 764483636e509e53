"""Image sources built in memory, in every form that a load reads, with places to break them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from microsandbox_oci import ImageStore, Platform

HOST = Platform.host()


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def tar_of(files: Mapping[str, bytes], *, links: Mapping[str, str] | None = None) -> bytes:
    """A tar with sorted files and symbolic links, root's, time zero."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
    return buffer.getvalue()


@dataclass
class Built:
    """The parts of one image, before they are put into a source."""

    tars: list[bytes]
    config: bytes
    blobs: list[bytes]
    media_types: list[str]

    @property
    def manifest(self) -> bytes:
        return json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": descriptor("application/vnd.oci.image.config.v1+json", self.config),
                "layers": [
                    descriptor(kind, blob) for kind, blob in zip(self.media_types, self.blobs, strict=True)
                ],
            }
        ).encode()


def descriptor(media_type: str, data: bytes, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": sha256(data), "size": len(data), **more}


@dataclass
class Sources:
    """Builds images and puts them into layouts and archives."""

    root: Path
    count: int = field(default=0)

    def image(
        self,
        *layers: Mapping[str, bytes],
        compression: str = "gzip",
        platform: Platform = HOST,
        config: Mapping[str, Any] | None = None,
        diff_ids: list[str] | None = None,
    ) -> Built:
        tars = [tar_of(files) for files in layers]
        document = {
            "created": "2024-05-06T07:08:09.123456789Z",
            "os": platform.os,
            "architecture": platform.architecture,
            "config": dict(config if config is not None else {"Env": ["PATH=/bin"], "Cmd": ["sh"]}),
            "rootfs": {"type": "layers", "diff_ids": diff_ids or [sha256(tar) for tar in tars]},
        }
        base = "application/vnd.oci.image.layer.v1.tar"
        return Built(
            tars,
            json.dumps(document).encode(),
            [self.compress(tar, compression) for tar in tars],
            [base + (f"+{compression}" if compression else "")] * len(tars),
        )

    @staticmethod
    def compress(data: bytes, how: str) -> bytes:
        if how == "gzip":
            return gzip.compress(data, 6, mtime=0)
        if how == "zstd":
            import zstandard

            return zstandard.ZstdCompressor().compress(data)
        return data

    def layout_files(self, *images: Built, names: Iterable[str] = ("app:1",)) -> dict[str, bytes]:
        """The files of an OCI layout, by relative path."""
        entries = [
            descriptor(
                "application/vnd.oci.image.manifest.v1+json",
                image.manifest,
                annotations={"org.opencontainers.image.ref.name": name} if name else {},
            )
            for image, name in zip(images, names, strict=True)
        ]
        files = self.index_files(entries)
        for image in images:
            files.update(self.blobs(image.manifest, image.config, *image.blobs))
        return files

    @staticmethod
    def blobs(*data: bytes) -> dict[str, bytes]:
        return {f"blobs/sha256/{hashlib.sha256(one).hexdigest()}": one for one in data}

    @staticmethod
    def index_files(entries: list[dict[str, Any]]) -> dict[str, bytes]:
        return {
            "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
            "index.json": json.dumps({"schemaVersion": 2, "manifests": entries}).encode(),
        }

    def directory(self, files: Mapping[str, bytes]) -> Path:
        self.count += 1
        root = self.root / f"layout{self.count}"
        for name, data in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return root

    def archive(
        self, files: Mapping[str, bytes], *, compression: str = "", links: Mapping[str, str] | None = None
    ) -> Path:
        self.count += 1
        path = self.root / f"archive{self.count}.tar"
        path.write_bytes(self.compress(tar_of(files, links=links), compression))
        return path

    @staticmethod
    def docker_old(image: Built, tags: list[str] | None) -> dict[str, bytes]:
        """The files of `docker save` before version 25: layers by image id, the list at the end."""
        config_name = hashlib.sha256(image.config).hexdigest() + ".json"
        layers = {f"{index:064x}/layer.tar": blob for index, blob in enumerate(image.blobs, 1)}
        listing = [{"Config": config_name, "RepoTags": tags, "Layers": list(layers)}]
        return {
            **layers,
            config_name: image.config,
            "manifest.json": json.dumps(listing).encode(),
            "repositories": b"{}",
        }

    def docker_new(self, image: Built, tag: str) -> dict[str, bytes]:
        """The files of `docker save` since version 25: a layout, and the old list pointing into it."""
        entry = descriptor(
            "application/vnd.oci.image.manifest.v1+json",
            image.manifest,
            annotations={
                "io.containerd.image.name": f"docker.io/library/{tag}",
                "org.opencontainers.image.ref.name": tag.partition(":")[2],
            },
        )
        hashes = [hashlib.sha256(blob).hexdigest() for blob in image.blobs]
        listing = [
            {
                "Config": f"blobs/sha256/{hashlib.sha256(image.config).hexdigest()}",
                "RepoTags": [tag],
                "Layers": [f"blobs/sha256/{one}" for one in hashes],
            }
        ]
        return {
            **self.blobs(image.manifest, image.config, *image.blobs),
            **self.index_files([entry]),
            "manifest.json": json.dumps(listing).encode(),
        }


def listing(root: Path) -> list[tuple[str, int]]:
    """Every name below a store and the size of every file."""
    found = []
    for directory, _, names in os.walk(root):
        for name in names:
            path = Path(directory, name)
            found.append((str(path.relative_to(root)), path.stat().st_size))
    return sorted(found)


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    root = tmp_path / "sources"
    root.mkdir()
    return Sources(root)


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "store")


@pytest.fixture
def tree() -> Any:
    """The function that lists a store's files."""
    return listing
