"""Disk images of the user's: opened, locked, and looked at before the VMM sees them.

An image may come from anywhere, and a guest that has one as a disk can write any bytes to its beginning. So
of qcow2 only what is one file is taken: a header that names others, which QEMU would open as the user, is
refused. Its layout: docs/interop/qcow2.txt in QEMU's sources.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from pathlib import Path
from typing import NamedTuple

from microsandbox_core.errors import DiskInUse, DiskRefused

SIZE_LIMIT = 8 << 40
"""Bytes that a disk may have: the placeholders of templates are larger than any."""

_SECTOR = 512
_MAGIC = b"QFI\xfb"
# version, backing file's offset and length, cluster bits, size, encryption (all numbers are big-endian)
_HEADER = struct.Struct(">4sIQIIQI")
_FEATURES = struct.Struct(">QQQII")  # incompatible, compatible, automatically cleared; refcount order; length
_FEATURES_AT = 72
_EXTENSION = struct.Struct(">II")
_EXTERNAL_DATA = 0x44415441  # "DATA", the name of an external data file

# Bits of the incompatible features that we know: dirty, compression type, extended L2 entries.
_KNOWN = 1 << 0 | 1 << 3 | 1 << 4
_CORRUPT, _DATA_FILE = 1 << 1, 1 << 2
_RAW_DATA_FILE = 1 << 1  # of those automatically cleared


class DiskImage(NamedTuple):
    """An image that is open and locked for as long as a copy of `descriptor` is. `format`: ``raw`` or
    ``qcow2``; `size`: bytes that the guest sees."""

    path: Path
    descriptor: int
    format: str
    size: int
    read_only: bool

    def close(self) -> None:
        """Let go of it."""
        os.close(self.descriptor)


def format_of(path: Path, format: str | None = None) -> str:
    """The format of an image, which somebody may be writing to. Raises `DiskRefused`."""
    image = open_image(path, read_only=True, format=format, locked=False)
    image.close()
    return image.format


def open_image(path: Path, *, read_only: bool, format: str | None = None, locked: bool = True) -> DiskImage:
    """Open an image, of its own format unless one is given. It has one writer, or any number of readers.

    The lock is with the open file, so that whoever inherits the descriptor holds it too: the next user waits
    for the end of a VMM even if nobody else does. Raises `DiskRefused`, `DiskInUse`.
    """
    # A FIFO would wait for somebody at its other end.
    flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        raise _unreadable(path, error, read_only) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DiskRefused(
                f"the disk image {path} is not a regular file", hint="name a file with a raw or qcow2 image"
            )
        try:
            if locked:
                kind = fcntl.LOCK_SH if read_only else fcntl.LOCK_EX
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DiskInUse(
                f"the disk image {path} is " + ("being written to" if read_only else "in use"),
                hint="a disk has one writer, or any number of readers (:ro): stop its other user first",
            ) from None
        found, size = _inspect(descriptor, path, format)
    except OSError as error:
        os.close(descriptor)
        raise _unreadable(path, error, read_only) from error
    except BaseException:
        os.close(descriptor)
        raise
    return DiskImage(path, descriptor, found, size, read_only)


def _inspect(descriptor: int, path: Path, format: str | None) -> tuple[str, int]:
    """Format and size. Raises `DiskRefused`, `OSError`."""
    if format not in (None, "raw", "qcow2"):
        raise DiskRefused(f"the disk image {path}: {format!r} is not a format", hint="raw and qcow2 are")
    first = os.pread(descriptor, 4096, 0)
    if format is None:
        format = "qcow2" if first.startswith(_MAGIC) else "raw"
    size = qcow2_size(first, path) if format == "qcow2" else os.fstat(descriptor).st_size
    if not 0 < size <= SIZE_LIMIT or size % _SECTOR:
        raise DiskRefused(
            f"the disk image {path}: {size} bytes are not a disk's",
            hint=f"a disk has a multiple of {_SECTOR} bytes, at most {SIZE_LIMIT >> 40} TiB",
        )
    return format, size


def qcow2_size(first: bytes, path: Path) -> int:
    """The size of the disk in a qcow2 image, by its first 4 KiB. Raises `DiskRefused` if QEMU would need more
    for it than this one file, or if we do not know what it would."""

    def refused(reason: str, hint: str | None = None) -> DiskRefused:
        return DiskRefused(f"the disk image {path}: {reason}", hint=hint)

    damaged = refused("its qcow2 header is damaged", "check it with `qemu-img check`")
    if len(first) < _FEATURES_AT or not first.startswith(_MAGIC):
        raise damaged
    _, version, backing, backing_length, cluster_bits, size, encryption = _HEADER.unpack_from(first)
    if version not in (2, 3):
        raise refused(
            f"it is of version {version} of the format", "convert it with `qemu-img convert -O qcow2`"
        )
    flat = "flatten it first: qemu-img convert -O qcow2 IMAGE NEW"
    if backing or backing_length:
        raise refused("it has a backing file, another file of this machine", flat)
    if encryption:
        raise refused("it is encrypted", "decrypt it with `qemu-img convert`")
    if not 9 <= cluster_bits <= 21:
        raise damaged
    extensions = _FEATURES_AT
    if version == 3:
        if len(first) < _FEATURES_AT + _FEATURES.size:
            raise damaged
        incompatible, _, cleared, _, extensions = _FEATURES.unpack_from(first, _FEATURES_AT)
        if extensions < _FEATURES_AT + _FEATURES.size or extensions % 8:
            raise damaged
        if incompatible & _DATA_FILE or cleared & _RAW_DATA_FILE:
            raise refused("its data is in another file of this machine", flat)
        if incompatible & _CORRUPT:
            raise refused("it is marked as corrupt", "repair it with `qemu-img check -r all`")
        if incompatible & ~_KNOWN:
            raise refused(f"it needs features that are not known here ({incompatible & ~_KNOWN:#x})", flat)
    kinds = _extensions(first, extensions)
    if kinds is None:
        raise damaged
    if _EXTERNAL_DATA in kinds:
        raise refused("it names another file of this machine", flat)
    return int(size)


def _extensions(first: bytes, position: int) -> set[int] | None:
    """The types of the header's extensions; None if they go on behind the first bytes."""
    kinds: set[int] = set()
    while position + _EXTENSION.size <= len(first):
        kind, length = _EXTENSION.unpack_from(first, position)
        if kind == 0:
            return kinds
        kinds.add(kind)
        position += _EXTENSION.size + -(-length // 8) * 8
    return None


def _unreadable(path: Path, error: OSError, read_only: bool) -> DiskRefused:
    hints = {
        errno.ENOENT: "name a file that is there",
        errno.EROFS: "attach it read-only: :ro",
        errno.EACCES: "attach it read-only: :ro" if not read_only else "make it readable for you",
        errno.ENXIO: "name a file with a raw or qcow2 image",
    }
    return DiskRefused(
        f"cannot open the disk image {path}: {error.strerror}", hint=hints.get(error.errno or 0)
    )
