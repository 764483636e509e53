"""A table of contents of a tar file: names, kinds and where the bytes are; nothing is extracted.

Reads ustar, GNU long names and sizes, and PAX ``path``, ``linkpath`` and ``size`` (POSIX.1-2001 pax;
GNU tar manual, "Basic Tar Format"). It is for image archives, whose entries are blobs and JSON files:
sparse files and devices are listed as `Kind.OTHER` and never read. Layers are not read here.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from microsandbox_oci._errors import ArchiveInvalid, LimitExceeded

BLOCK = 512
_MAX_EXTENSION = 1 << 20
_MAX_NAME = 4096
_MAX_HOPS = 8


class Kind(Enum):
    """What an entry is."""

    FILE = "file"
    SYMLINK = "symlink"
    HARDLINK = "hardlink"
    OTHER = "other"


_KINDS = {b"0": Kind.FILE, b"\0": Kind.FILE, b"7": Kind.FILE, b"1": Kind.HARDLINK, b"2": Kind.SYMLINK}


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry: ``offset`` and ``size`` say where a file's bytes are, ``target`` what a link names."""

    kind: Kind
    offset: int
    size: int
    target: str


class TarIndex:
    """Entries of a tar file by normalised name; of two with one name the later counts, as in tar itself."""

    def __init__(self, entries: dict[str, Entry]) -> None:
        self._entries = entries

    @classmethod
    def scan(cls, fd: int, *, max_entries: int) -> TarIndex:
        """Read the headers of the tar file behind a seekable descriptor.

        Raises:
            ArchiveInvalid: not a tar file, damaged, or cut off.
            LimitExceeded: more than ``max_entries`` entries, or an extension header above 1 MiB (O09).
        """
        entries: dict[str, Entry] = {}
        for count, (name, entry) in enumerate(_entries(fd, os.fstat(fd).st_size)):
            if count >= max_entries:
                raise LimitExceeded(f"archive has more than {max_entries} entries", expected=str(max_entries))
            if max(len(name), len(entry.target)) > _MAX_NAME:
                raise LimitExceeded(f"archive has a name of {max(len(name), len(entry.target))} characters")
            entries[_normal(name)] = entry
        return cls(entries)

    def find(self, name: str) -> Entry | None:
        """Return the file of that name, following links inside the archive; None if there is none.

        Old ``docker save`` archives store a layer once and link to it from every further image.
        """
        name = _normal(name)
        for _ in range(_MAX_HOPS):
            entry = self._entries.get(name)
            if entry is None or entry.kind is Kind.OTHER:
                return None
            if entry.kind is Kind.FILE:
                return entry
            base = posixpath.dirname(name) if entry.kind is Kind.SYMLINK else ""
            name = _normal(posixpath.join(base, entry.target))
        return None

    def __len__(self) -> int:
        return len(self._entries)


def _normal(name: str) -> str:
    return posixpath.normpath(name).removeprefix("/")


def _entries(fd: int, end: int) -> Iterator[tuple[str, Entry]]:
    offset = 0
    extended: dict[str, str] = {}
    while True:
        header = os.pread(fd, BLOCK, offset)
        if not header and offset:
            return  # no end marker; some writers leave it out
        if len(header) < BLOCK:
            raise ArchiveInvalid("archive is cut off inside a tar header" if offset else "not a tar archive")
        if not any(header):
            return
        if not _checksum_ok(header):
            raise ArchiveInvalid(
                f"archive is damaged: bad tar header at byte {offset}" if offset else "not a tar archive"
            )
        kind = header[156:157]
        size = _number(header[124:136], offset)
        if kind in (b"x", b"g", b"L", b"K"):
            if size > _MAX_EXTENSION:
                raise LimitExceeded(f"archive has an extension header of {size} bytes", seen=str(size))
            data = os.pread(fd, size, offset + BLOCK)
            if len(data) != size:
                raise ArchiveInvalid("archive is cut off inside an extension header")
            # A global header's names would apply to every file, which no writer of archives means.
            if kind == b"x":
                extended.update(_pax_records(data))
            elif kind != b"g":
                extended["path" if kind == b"L" else "linkpath"] = _text(data)
            offset += BLOCK + _padded(size)
            continue
        if "size" in extended:
            if not extended["size"].isascii() or not extended["size"].isdigit() or len(extended["size"]) > 18:
                raise ArchiveInvalid("archive has a PAX size that is no number")
            size = int(extended["size"])
        found = _KINDS.get(kind, Kind.OTHER)
        stored = size if found in (Kind.FILE, Kind.OTHER) else 0
        if offset + BLOCK + stored > end:
            raise ArchiveInvalid(
                f"archive is cut off: {_name(header, extended)!r} needs {stored} bytes, "
                f"{max(0, end - offset - BLOCK)} are there",
                hint="the file was not copied or downloaded completely",
            )
        target = extended.get("linkpath") or _text(header[157:257])
        yield _name(header, extended), Entry(found, offset + BLOCK, stored, target)
        extended = {}
        offset += BLOCK + _padded(stored)


def _name(header: bytes, extended: dict[str, str]) -> str:
    if "path" in extended:
        return extended["path"]
    name, prefix = _text(header[:100]), ""
    if header[257:263] == b"ustar\0":  # GNU's magic is "ustar " and its prefix field means something else
        prefix = _text(header[345:500])
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _padded(size: int) -> int:
    return (size + BLOCK - 1) // BLOCK * BLOCK


def _checksum_ok(header: bytes) -> bool:
    try:
        stated = int(header[148:156].strip(b" \0") or b"x", 8)
    except ValueError:
        return False
    return stated == sum(header[:148]) + sum(header[156:]) + 8 * 0x20


def _number(field: bytes, offset: int) -> int:
    if field[0] & 0x80:  # GNU base-256; a set second bit is a negative number
        value = int.from_bytes(field, "big") - (0x80 << 88)
        if field[0] != 0x80 or value >= 1 << 62:
            raise ArchiveInvalid(f"archive is damaged: impossible size in the tar header at byte {offset}")
        return value
    digits = field.strip(b" \0")
    if not digits:
        return 0
    if not all(0x30 <= digit <= 0x37 for digit in digits):
        raise ArchiveInvalid(f"archive is damaged: impossible size in the tar header at byte {offset}")
    return int(digits, 8)


def _pax_records(data: bytes) -> dict[str, str]:
    """Parse ``<length> <key>=<value>\\n`` records; only the three keys that matter here are kept."""
    records: dict[str, str] = {}
    while data:
        length_text, space, _ = data[:20].partition(b" ")
        if not space or not length_text.isdigit() or len(length_text) > 8:
            raise ArchiveInvalid("archive has a malformed PAX header")
        length = int(length_text)
        record = data[len(length_text) + 1 : length]
        key, equals, value = record.partition(b"=")
        if length > len(data) or not equals or not value.endswith(b"\n"):
            raise ArchiveInvalid("archive has a malformed PAX header")
        data = data[length:]
        if key in (b"path", b"linkpath", b"size"):
            records[key.decode()] = value[:-1].decode("utf-8", "surrogateescape")
    return records
