"""Files by name in a source, be it a directory or a tar file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Protocol

from microsandbox_oci._blobs import Blob
from microsandbox_oci._errors import ArchiveInvalid
from microsandbox_oci._tarindex import TarIndex


class Tree(Protocol):
    """What a reader of layouts and archives needs of the place they are in."""

    name: str

    def find(self, name: str) -> Blob | None:
        """Return the regular file ``name``, a relative path with ``/``; None if there is none."""
        ...


class DirectoryTree:
    """Files below a directory."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.name = str(root)

    def find(self, name: str) -> Blob | None:
        path = self._root / name
        try:
            with _open_regular(path) as fd:
                size = os.fstat(fd).st_size
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise ArchiveInvalid(f"cannot read {str(path)!r}: {error.strerror}") from error
        return Blob(str(path), 0, size, partial(_open_regular, path))


class ArchiveTree:
    """Files inside a tar file; ``fd`` stays open for as long as the blobs are used."""

    def __init__(self, fd: int, name: str, *, max_entries: int) -> None:
        self._fd = fd
        try:
            self._index = TarIndex.scan(fd, max_entries=max_entries)
        except OSError as error:
            raise ArchiveInvalid(f"cannot be read: {error.strerror or error}") from error
        self.name = name

    def find(self, name: str) -> Blob | None:
        entry = self._index.find(name)
        if entry is None:
            return None
        return Blob(f"{name} in {self.name}", entry.offset, entry.size, self._borrow)

    def _borrow(self) -> AbstractContextManager[int]:
        return nullcontext(self._fd)


@contextmanager
def _open_regular(path: Path) -> Iterator[int]:
    # O_NONBLOCK: a FIFO called like a blob must not hang the load.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ArchiveInvalid(f"{str(path)!r} is not a regular file")
        yield fd
    finally:
        os.close(fd)
