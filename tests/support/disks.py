"""Disk images, made without the tools of QEMU."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

from microsandbox_core.upper import mke2fs

_CLUSTER = 1 << 16


def raw(path: Path, size: int) -> Path:
    """A raw image with an empty ext4."""
    path.touch()
    os.truncate(path, size)
    subprocess.run([mke2fs(), "-q", "-F", "-t", "ext4", path], check=True, capture_output=True)
    return path


def qcow2(path: Path, content: Path, *, backing: bytes = b"") -> Path:
    """A qcow2 image of what a raw one holds: docs/interop/qcow2.txt in QEMU's sources. At most 512 MiB.

    Its clusters are the header, one of the table of reference counts and of these, one of the first-level
    table and of the second-level one, then the data.
    """
    table, counts, first, second, at = (number * _CLUSTER for number in range(1, 6))
    size = content.stat().st_size
    assert size <= _CLUSTER // 8 * _CLUSTER
    with path.open("wb") as image, content.open("rb") as source:
        entries = []
        while cluster := source.read(_CLUSTER):
            if cluster.count(0) == len(cluster):
                entries.append(0)
                continue
            image.seek(at)
            image.write(cluster.ljust(_CLUSTER, b"\0"))
            entries.append(at | 1 << 63)
            at += _CLUSTER
        header = struct.pack(
            ">4sIQIIQIIQQIIQ", b"QFI\xfb", 2, 72 + 8 if backing else 0, len(backing), 16, size, 0,
            1, first, table, 1, 0, 0,
        )  # fmt: skip
        for place, data in (
            (0, header + bytes(8) + backing),
            (table, struct.pack(">Q", counts)),
            (counts, b"\0\1" * (at // _CLUSTER)),
            (first, struct.pack(">Q", second | 1 << 63)),
            (second, struct.pack(f">{len(entries)}Q", *entries)),
        ):
            image.seek(place)
            image.write(data)
        image.truncate(at)
    return path
