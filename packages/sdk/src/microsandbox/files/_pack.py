"""A tree of the host's, as a stream of records."""

# Names are used in open directories, and a slash at the end of a path has a meaning.
# ruff: noqa: PTH118

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator, Iterator
from typing import Final

from microsandbox.errors import FilesystemError
from microsandbox.files._extract import DEPTH_MAX, SKIPPED_SHOWN, CopyResult, failure, not_regular
from microsandbox.files._records import (
    BYTES_MAX,
    Entry,
    encode_content,
    encode_entry,
    encode_hole,
    encode_mark,
)

_CHUNK: Final = 1 << 17
_BLOCK: Final = 512  # the unit of st_blocks
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def pack(source: str | os.PathLike[str], result: CopyResult) -> Generator[bytes, None, None]:
    """The stream of what is at `source`, in pieces of about 128 KiB; counts into `result`.

    A link there is not followed, and neither is any below. Blocking. Raises `FilesystemError`.
    """
    path = os.fspath(source)
    pending = bytearray()
    for piece in _entry(None, path, path, result, 0):
        pending += piece
        if len(pending) >= _CHUNK:
            yield bytes(pending)
            pending.clear()
    yield bytes(pending) + encode_mark(b"Z")


def _entry(directory: int | None, name: str, path: str, result: CopyResult, depth: int) -> Iterator[bytes]:
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError as error:
        if directory is not None:
            return  # gone since its directory was read
        raise failure(error, path) from error
    except OSError as error:
        raise failure(error, path) from error
    shown = b"" if directory is None else os.fsencode(name)
    if stat.S_ISDIR(found.st_mode):
        yield from _tree(directory, name, path, _facts(b"D", found, shown), result, depth)
    elif stat.S_ISREG(found.st_mode):
        yield from _file(directory, name, path, shown, result)
    elif stat.S_ISLNK(found.st_mode):
        try:
            target = os.readlink(name, dir_fd=directory)
        except OSError as error:
            raise failure(error, path) from error
        yield encode_entry(_facts(b"L", found, shown)._replace(target=os.fsencode(target)))
    elif directory is None:
        raise not_regular(path)
    else:
        result.skipped += 1
        if len(result.skipped_names) < SKIPPED_SHOWN:
            result.skipped_names.append(path)
        return
    result.entries += 1


def _facts(kind: bytes, found: os.stat_result, name: bytes) -> Entry:
    seconds, nanoseconds = divmod(found.st_mtime_ns, 10**9)
    size = found.st_size if kind == b"F" else 0
    return Entry(kind, found.st_mode, seconds, nanoseconds, size, found.st_uid, found.st_gid, name)


def _tree(
    directory: int | None, name: str, path: str, entry: Entry, result: CopyResult, depth: int
) -> Iterator[bytes]:
    if depth > DEPTH_MAX:
        raise FilesystemError(
            f"{path}: more than {DEPTH_MAX} directories deep",
            code="too_deep",
            hint="copy the parts of it one by one",
        )
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=directory)
    except OSError as error:
        raise failure(error, path) from error
    try:
        yield encode_entry(entry)
        with os.scandir(fd) as found:
            for item in found:
                yield from _entry(fd, item.name, os.path.join(path, item.name), result, depth + 1)
        yield encode_mark(b"U")
    finally:
        os.close(fd)


def _file(directory: int | None, name: str, path: str, shown: bytes, result: CopyResult) -> Iterator[bytes]:
    try:
        fd = os.open(name, _FILE, dir_fd=directory)
    except OSError as error:
        raise failure(error, path) from error
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise not_regular(path)  # it has become one since
        size = found.st_size
        yield encode_entry(_facts(b"F", found, shown))
        dense = found.st_blocks * _BLOCK >= size
        offset = 0
        # What is appended meanwhile is not copied: a file that grows as fast as it is read would have no end.
        while offset < size:
            data, end = (offset, size) if dense else _extent(fd, offset, size)
            if data > offset:
                yield encode_hole(data - offset)
                offset = data
            while offset < end:
                chunk = os.pread(fd, min(BYTES_MAX, end - offset), offset)
                if not chunk:
                    size = end = offset  # it has been truncated
                    break
                yield encode_content(chunk)
                offset += len(chunk)
                result.size += len(chunk)
        yield encode_mark(b"E")
    except OSError as error:
        raise failure(error, path) from error
    finally:
        os.close(fd)


def _extent(fd: int, offset: int, size: int) -> tuple[int, int]:
    """Where the next data begins and ends; both are `size` if there is none."""
    try:
        data = min(os.lseek(fd, offset, os.SEEK_DATA), size)
        return data, max(min(os.lseek(fd, data, os.SEEK_HOLE), size), data)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size, size
        return offset, size  # a file system that does not know
