"""Fuzzes the table of contents of image archives: what it finds is in the file, or the error says why not."""

from __future__ import annotations

import os
from pathlib import Path

from driver import fuzz, shown
from microsandbox_oci._errors import ImageError
from microsandbox_oci._tarindex import Kind, TarIndex

SEEDS = Path(__file__).resolve().parent / "seeds" / "layer"
NAMES = ["manifest.json", "a", "dir/file", "link", "../a", "/a"]
TOKENS = [
    b"ustar\x0000",
    b"ustar  \0",
    b"\x80" + bytes(11),
    b"77777777777",
    b"20 path=a/../../b\n",
    b"12 size=999\n",
]
FILE = os.memfd_create("fuzz")


def sealed(data: bytes) -> bytes:
    """Put the checksums right, or nothing else would be tested."""
    blocks = bytearray(data)
    for at in range(0, len(blocks) - 511, 512):
        if blocks[at + 257 : at + 262] == b"ustar":
            blocks[at + 148 : at + 156] = b" " * 8
            blocks[at + 148 : at + 156] = b"%06o\0 " % sum(blocks[at : at + 512])
    return bytes(blocks)


def one_input(data: bytes) -> None:
    data = sealed(data)
    os.ftruncate(FILE, 0)
    os.pwrite(FILE, data, 0)
    try:
        index = TarIndex.scan(FILE, max_entries=50)
    except ImageError as error:
        return shown(error)
    assert len(index) <= 50
    for name in NAMES:
        entry = index.find(name)
        if entry is not None:
            assert entry.kind is Kind.FILE
            assert 0 <= entry.offset <= entry.offset + entry.size <= len(data)


if __name__ == "__main__":
    fuzz("archive", one_input, [path.read_bytes() for path in sorted(SEEDS.iterdir())], tokens=TOKENS)
