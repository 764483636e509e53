"""Images that tests make: busybox with a configuration, layers with given entries."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import busybox_image
from microsandbox_oci import ImageConfig
from microsandbox_oci.layout import LayoutWriter


@cache
def busybox_program() -> bytes:
    """A statically linked busybox."""
    return busybox_image.find_busybox()


@cache
def busybox_layer() -> bytes:
    """The demo's busybox as the tar of one layer."""
    return busybox_image.layer_tar(busybox_program(), busybox_image.applets(busybox_program()))


def write_layout(
    directory: Path, config: ImageConfig, layers: Sequence[bytes] = (), *, name: str = "made:latest"
) -> Path:
    """An OCI layout with busybox and these layers (tars) on top of it."""
    with LayoutWriter(directory) as writer:
        blobs = [writer.add_layer(tar) for tar in (busybox_layer(), *layers)]
        writer.add_image(blobs, config, name=name)
    return directory


def tar_of(entries: Iterable[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """A tar with these entries, names as they are given: also those that no honest tool writes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry, content in entries:
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def blobs_by_size(layout: Path) -> list[Path]:
    """A layout's blobs, the largest first: that is the layer."""
    return sorted((layout / "blobs" / "sha256").iterdir(), key=lambda path: -path.stat().st_size)
