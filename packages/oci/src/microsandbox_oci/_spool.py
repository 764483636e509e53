"""Turning any stream into a seekable, uncompressed file: bounded, and gone when the load is over.

A ``docker save`` stream may have its table of contents at the end, so it cannot be read in one pass.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

from microsandbox_oci._errors import ArchiveInvalid, LimitExceeded
from microsandbox_oci._files import create_file, store_errors
from microsandbox_oci._limits import Limits
from microsandbox_oci._paths import StorePaths

_CHUNK = 1 << 20
_STEP = 4 << 20
_PART = 16 << 10
GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class _Decoder(Protocol):
    def feed(self, data: bytes) -> Iterator[bytes]: ...
    def finish(self) -> None: ...


def is_compressed(head: bytes) -> bool:
    """Say whether a file that begins with ``head`` is compressed with gzip or zstd."""
    return head.startswith((GZIP_MAGIC, ZSTD_MAGIC))


def spool(
    source: BinaryIO,
    paths: StorePaths,
    directory: os.PathLike[str],
    limits: Limits,
    progress: Callable[[int], None],
) -> int:
    """Copy ``source``, decompressed if need be, to an unnamed file and return its descriptor.

    ``progress`` gets the number of bytes read from the source.

    Raises:
        ArchiveInvalid: the compressed stream is damaged or cut off, or the source cannot be read.
        LimitExceeded: more than ``limits.archive_size`` bytes, or a decompression bomb (O08).
        StoreError: the store's file system is full or not writable.
    """
    path = os.path.join(os.fspath(directory), "spool")  # noqa: PTH118 - PathLike, not Path
    with store_errors("spooling an archive", paths.root):
        fd = _unnamed(path)
    try:
        _copy(source, fd, paths, limits, progress)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _unnamed(path: str) -> int:
    from pathlib import Path

    fd = create_file(Path(path))
    os.unlink(path)  # noqa: PTH108
    return fd


def _copy(
    source: BinaryIO, fd: int, paths: StorePaths, limits: Limits, progress: Callable[[int], None]
) -> None:
    decoder: _Decoder | None = None
    read = written = 0
    while True:
        chunk = _read(source)
        if decoder is None:
            while 0 < len(chunk) < len(ZSTD_MAGIC) and (more := _read(source)):
                chunk += more  # a pipe may deliver the first bytes one by one
            decoder = _decoder(chunk, limits)
        if not chunk:
            break
        read += len(chunk)
        for piece in decoder.feed(chunk):
            written += len(piece)
            if written > limits.archive_size:
                raise LimitExceeded(
                    f"archive is larger than {limits.archive_size} bytes", expected=str(limits.archive_size)
                )
            if written > limits.ratio_grace and written > read * limits.decompression_ratio:
                raise LimitExceeded(
                    f"archive grows more than {limits.decompression_ratio} times when decompressed",
                    expected=str(limits.decompression_ratio),
                )
            with store_errors("spooling an archive", paths.root):
                view = memoryview(piece)
                while view:
                    view = view[os.write(fd, view) :]
        progress(read)
    decoder.finish()


def _read(source: BinaryIO) -> bytes:
    try:
        return source.read(_CHUNK) or b""
    except OSError as error:
        raise ArchiveInvalid(f"cannot read the archive: {error.strerror or error}") from error


def _decoder(head: bytes, limits: Limits) -> _Decoder:
    if head.startswith(GZIP_MAGIC):
        return _Gzip()
    if head.startswith(ZSTD_MAGIC):
        return _Zstd(1 << limits.window_log)
    return _Plain()


class _Plain:
    def feed(self, data: bytes) -> Iterator[bytes]:
        yield data

    def finish(self) -> None:
        return


class _Gzip:
    """RFC 1952, members one after the other; zero padding after the last is ignored, as gzip does."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(wbits=31)
        self._begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        # What follows a member is copied when it ends, and the smallest has twenty bytes.
        for start in range(0, len(data), _PART):
            yield from self._feed(data[start : start + _PART])

    def _feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._inflate.eof:
                data = data.lstrip(b"\0")
                if not data:
                    return
                self._inflate = zlib.decompressobj(wbits=31)
            try:
                # Bounded steps: one call must not turn 1 MiB of input into 1 GiB of memory.
                piece = self._inflate.decompress(data, _STEP)
            except zlib.error as error:
                raise ArchiveInvalid(f"archive is damaged: {error}") from error
            data = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail
            if piece:
                yield piece

    def finish(self) -> None:
        if not self._inflate.eof:
            raise ArchiveInvalid("archive is cut off: the gzip stream ends early")


class _Zstd:
    """RFC 8878, frames one after the other."""

    def __init__(self, max_window: int) -> None:
        import zstandard

        self._error = zstandard.ZstdError
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=max_window)
        self._frame = self._decompressor.decompressobj()
        self._mid_frame = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        # A block inflates to at most 128 KiB (RFC 8878, 3.1.1.2.3) but takes as little as four bytes,
        # so small inputs keep each output small.
        for start in range(0, len(data), 512):
            yield from self._feed(data[start : start + 512])

    def _feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._frame.eof:
                self._frame, self._mid_frame = self._decompressor.decompressobj(), False
            try:
                piece = self._frame.decompress(data)
            except self._error as error:
                raise ArchiveInvalid(f"archive is damaged: {error}") from error
            self._mid_frame = not self._frame.eof
            data = self._frame.unused_data if self._frame.eof else b""
            if piece:
                yield piece

    def finish(self) -> None:
        if self._mid_frame:
            raise ArchiveInvalid("archive is cut off: the zstd stream ends early")
