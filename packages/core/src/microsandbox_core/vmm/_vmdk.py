"""VMDK descriptors: reading the flat extents that one concatenates.

Only the form that `microsandbox_oci` writes and VMware's "Virtual Disk Format 5.0" calls a
descriptor with FLAT extents: `RW|RDONLY <sectors> FLAT "<file>" <sector offset>`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from microsandbox_core.errors import SpecInvalid

_EXTENT = re.compile(r'^(?:RW|RDONLY) (\d{1,15}) FLAT "([^"\n]{1,4096})" (\d{1,15})$')
_MAX_SIZE = 1 << 20
_HEADER = "# Disk DescriptorFile"


class Extent(NamedTuple):
    """A run of 512-byte sectors in a file of the host."""

    path: Path
    sectors: int
    offset: int


def read_extents(descriptor: Path) -> tuple[Extent, ...]:
    """The extents that the descriptor names, in order. Raises `SpecInvalid`."""
    try:
        with descriptor.open("rb") as file:
            content = file.read(_MAX_SIZE + 1)
        text = content.decode()
    except OSError as error:
        raise SpecInvalid(f"cannot read the disk {descriptor}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SpecInvalid(f"{descriptor} is not a VMDK descriptor") from error
    if len(content) > _MAX_SIZE or not text.startswith(_HEADER):
        raise SpecInvalid(f"{descriptor} is not a VMDK descriptor")
    extents = []
    for line in text.splitlines():
        if found := _EXTENT.match(line.strip()):
            sectors, name, offset = found.groups()
            extents.append(Extent(descriptor.parent / name, int(sectors), int(offset)))
        elif line.startswith(("RW ", "RDONLY ")):
            raise SpecInvalid(f"{descriptor}: an extent of a kind that is not supported: {line!r}")
    if not extents:
        raise SpecInvalid(f"{descriptor} names no extent")
    return tuple(extents)


def write_descriptor(extents: list[tuple[str, int, int]]) -> bytes:
    """A read-only descriptor for (file, sectors, offset) extents."""
    # QEMU skips extents that are not RW; that the disk is read-only is said where it is attached.
    lines = [
        _HEADER,
        "version=1",
        "CID=fffffffe",
        "parentCID=ffffffff",
        'createType="twoGbMaxExtentFlat"',
        *(f'RW {sectors} FLAT "{name}" {offset}' for name, sectors, offset in extents),
        'ddb.adapterType = "ide"',
    ]
    return ("\n".join(lines) + "\n").encode()
