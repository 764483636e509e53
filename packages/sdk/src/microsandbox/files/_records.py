"""A tree of files as a stream of records: `docs/files.md` is the specification.

The guest writes these streams and is hostile: everything is checked before it is handed on, and no more is
kept than one record that is not content.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

BYTES_MAX: Final = 1 << 17
"""Content in one record."""
NAME_MAX: Final = 255
_ENTRY_MAX: Final = 8192
_TARGET_MAX: Final = 4095

_HEADER: Final = struct.Struct(">cI")
_FIXED: Final = struct.Struct(">IqIQIIH")
_HOLE: Final = struct.Struct(">Q")
_SIZE_MAX: Final = 2**63 - 1  # what a file offset can say

_ENTRIES: Final = b"DFLSI"
_EMPTY: Final = b"UEZ"


class StreamInvalid(Exception):
    """The stream is not what the specification allows; the message says how."""


class Entry(NamedTuple):
    """What is known of a file. `kind`: D directory, F file, L link, S skipped, I item of a listing.

    `name` is empty for the one that is copied, which the receiver names. `mode` has the bits of the type.
    """

    kind: bytes
    mode: int
    seconds: int
    nanoseconds: int
    size: int
    uid: int
    gid: int
    name: bytes
    target: bytes = b""


class Content(NamedTuple):
    """A piece of the file at hand."""

    data: bytes | memoryview


class Hole(NamedTuple):
    """Zeros of the file at hand that need no space."""

    size: int


class Mark(NamedTuple):
    """U: the directory is complete. E: the file is. Z: the stream is."""

    kind: bytes


Record = Entry | Content | Hole | Mark


def encode_entry(entry: Entry) -> bytes:
    """The record of an entry."""
    kind, mode, seconds, nanoseconds, size, uid, gid, name, target = entry
    length = _FIXED.size + len(name) + len(target)
    fixed = _FIXED.pack(mode, seconds, nanoseconds, size, uid, gid, len(name))
    return _HEADER.pack(kind, length) + fixed + name + target


def encode_content(data: bytes) -> bytes:
    """The record of 1 to `BYTES_MAX` bytes."""
    return _HEADER.pack(b"B", len(data)) + data


def encode_hole(size: int) -> bytes:
    """The record of a hole."""
    return _HEADER.pack(b"H", _HOLE.size) + _HOLE.pack(size)


def encode_mark(kind: bytes) -> bytes:
    """The record that ends something."""
    return _HEADER.pack(kind, 0)


def is_name(name: bytes) -> bool:
    """Whether it is one component below the directory that it is in."""
    return 0 < len(name) <= NAME_MAX and name not in (b".", b"..") and b"/" not in name and b"\0" not in name


class Parser:
    """Bytes in, records out. Content is handed on as it comes, in pieces."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._content = 0  # bytes of the content record at hand that are still to come

    def feed(self, data: bytes) -> Iterator[Record]:
        """The records that are complete with `data`. Raises `StreamInvalid`; then it is of no more use."""
        view = memoryview(data)
        while len(view):
            if self._content:
                piece = view[: self._content]
                self._content -= len(piece)
                view = view[len(piece) :]
                yield Content(piece)
                continue
            view = self._take(view, _HEADER.size)
            if len(self._pending) < _HEADER.size:
                return
            kind, length = _HEADER.unpack_from(self._pending)
            _check_length(kind, length)
            if kind == b"B":
                self._pending.clear()
                self._content = length
                continue
            view = self._take(view, _HEADER.size + length)
            if len(self._pending) < _HEADER.size + length:
                return
            payload = bytes(self._pending[_HEADER.size :])
            self._pending.clear()
            yield _record(kind, payload)

    def _take(self, view: memoryview, wanted: int) -> memoryview:
        missing = max(0, wanted - len(self._pending))
        self._pending += view[:missing]
        return view[missing:]


def _check_length(kind: bytes, length: int) -> None:
    if kind in _ENTRIES:
        right = _FIXED.size <= length <= _ENTRY_MAX
    elif kind == b"B":
        right = 1 <= length <= BYTES_MAX
    elif kind == b"H":
        right = length == _HOLE.size
    elif kind in _EMPTY:
        right = length == 0
    else:
        raise StreamInvalid(f"a record of the unknown kind {kind!r}")
    if not right:
        raise StreamInvalid(f"a record of kind {kind.decode()} with {length} bytes")


def _record(kind: bytes, payload: bytes) -> Record:
    if kind in _EMPTY:
        return Mark(kind)
    if kind == b"H":
        (size,) = _HOLE.unpack(payload)
        return Hole(size)
    mode, seconds, nanoseconds, size, uid, gid, length = _FIXED.unpack_from(payload)
    name, target = payload[_FIXED.size : _FIXED.size + length], payload[_FIXED.size + length :]
    if len(name) != length:
        raise StreamInvalid("a name that is longer than its record")
    if name and not is_name(name):
        raise StreamInvalid(f"the name {name!r}")
    if b"\0" in target or len(target) > _TARGET_MAX or (kind == b"L" and not target):
        raise StreamInvalid("a link's target that is none")
    if nanoseconds >= 10**9:
        raise StreamInvalid(f"{nanoseconds} nanoseconds")
    if size > _SIZE_MAX:
        raise StreamInvalid(f"a size of {size} bytes")
    return Entry(kind, mode, seconds, nanoseconds, size, uid, gid, name, target)
