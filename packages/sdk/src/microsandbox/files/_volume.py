"""The files of a directory volume, from the host: `Volume.fs`.

A guest may have put anything there, and may change it at this moment. So no path is handed to the kernel
whole: every directory on the way is opened by its name in the one before, and must be one. No link is
followed, and there is no way up.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from microsandbox.errors import FilesystemError, PathNotFound
from microsandbox.files._sandbox import READ_LIMIT, FileInfo, FileKind

_T = TypeVar("_T")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A FIFO would wait for somebody at its other end.
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_KINDS = {
    stat.S_IFREG: FileKind.FILE,
    stat.S_IFDIR: FileKind.DIRECTORY,
    stat.S_IFLNK: FileKind.SYMLINK,
}


class VolumeFiles:
    """Files in a volume, by paths inside it: ``a/b`` or ``/a/b``. As the host has them: owners and modes that
    guests have set are kept beside the files.

    No link is followed, also none that leads elsewhere in the volume. Every method raises `FilesystemError`
    (`PathNotFound` if there is no such file) that names ``VOLUME:/path`` and has the `errno`, and
    `ValueError` for a path with ``..`` or a NUL byte, or one that names the volume itself where that cannot
    be meant.
    """

    def __init__(self, root: Path, name: str) -> None:
        self._root = root
        self._name = name

    async def read(self, path: str, *, limit: int = READ_LIMIT) -> bytes:
        """The content of a regular file of at most `limit` bytes."""
        return await self._do(path, partial(_read, limit=limit))

    async def read_text(self, path: str, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The content of a regular file as text."""
        return (await self.read(path)).decode(encoding, errors)

    async def write(self, path: str, data: bytes | str) -> None:
        """Make `data` the content of a regular file, which is made if there is none."""
        content = data.encode() if isinstance(data, str) else data
        await self._do(path, partial(_write, content=content))

    async def stat(self, path: str) -> FileInfo:
        """Facts about what is at a path, a link itself and not what it leads to."""
        return await self._do(path, partial(_stat, path=_shown(path)), root=True)

    async def exists(self, path: str) -> bool:
        """Whether there is something at a path."""
        try:
            await self.stat(path)
        except PathNotFound:
            return False
        return True

    async def mkdir(self, path: str, *, parents: bool = False) -> None:
        """Make a directory; with `parents` those on the way too, and one that is there is no error."""
        names = _names(path)
        for end in range(1 if parents else len(names), len(names) + 1):
            await self._do("/".join(names[:end]) or path, partial(_mkdir, there=parents))

    async def remove(self, path: str) -> None:
        """Remove a file or a link."""
        await self._do(path, lambda at, name: os.unlink(name, dir_fd=at))

    async def remove_dir(self, path: str) -> None:
        """Remove a directory with everything in it. Never the volume itself."""
        await self._do(path, _remove_tree)

    async def rename(self, path: str, to: str) -> None:
        """Rename, within the volume; a file that is there gives way."""

        def rename(at: int, name: str) -> None:
            with self._inside(to) as (other, new):
                os.rename(name, new, src_dir_fd=at, dst_dir_fd=other)

        await self._do(path, rename)

    async def list(self, path: str = "/") -> list[FileInfo]:
        """What is in a directory, by name."""
        return await self._do(path, partial(_list, path=_shown(path)), root=True)

    async def _do(self, path: str, action: Callable[[int, str], _T], *, root: bool = False) -> _T:
        """`action` with the directory that a path is in, and its last name; with `root` that may be ``.``."""

        def act() -> _T:
            with self._inside(path, root=root) as (at, name):
                return action(at, name)

        try:
            return await asyncio.to_thread(act)
        except OSError as error:
            kind = PathNotFound if isinstance(error, FileNotFoundError) else FilesystemError
            raise kind(
                f"{self._name}:{_shown(path)}: {error.strerror or error}", errno=error.errno
            ) from error

    @contextmanager
    def _inside(self, path: str, *, root: bool = False) -> Iterator[tuple[int, str]]:
        names = _names(path)
        if not names and not root:
            raise ValueError(f"path: {path!r} is the volume {self._name!r} itself")
        at = os.open(self._root, _DIRECTORY)
        try:
            for name in names[:-1]:
                below = os.open(name, _DIRECTORY, dir_fd=at)
                os.close(at)
                at = below
            yield at, names[-1] if names else "."
        finally:
            os.close(at)


def _names(path: str) -> list[str]:
    """The names on the way. Raises `ValueError`."""
    if not isinstance(path, str):
        raise TypeError(f"path: expected str, not {type(path).__name__}")
    names = [name for name in path.split("/") if name not in ("", ".")]
    if ".." in names or "\0" in path:
        raise ValueError(f"path: {path!r} has a '..' or a NUL byte in it")
    return names


def _shown(path: str) -> str:
    return "/" + "/".join(_names(path))


@contextmanager
def _open(at: int, name: str, flags: int) -> Iterator[int]:
    """A regular file. Raises `OSError`."""
    descriptor = os.open(name, flags | _FILE, 0o600, dir_fd=at)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(None, "it is not a regular file")
        yield descriptor
    finally:
        os.close(descriptor)


def _read(at: int, name: str, *, limit: int) -> bytes:
    with _open(at, name, os.O_RDONLY) as descriptor, open(descriptor, "rb", closefd=False) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(None, f"more than {limit} bytes")
    return content


def _write(at: int, name: str, *, content: bytes) -> None:
    with _open(at, name, os.O_WRONLY | os.O_CREAT) as descriptor:
        # Not when it is opened: then it is known what it is.
        os.ftruncate(descriptor, 0)
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)


def _stat(at: int, name: str, *, path: str) -> FileInfo:
    found = os.stat(name, dir_fd=at, follow_symlinks=False)
    kind = _KINDS.get(stat.S_IFMT(found.st_mode), FileKind.OTHER)
    return FileInfo(
        name="/" if name == "." else name,
        path=path,
        kind=kind,
        size=found.st_size,
        mode=stat.S_IMODE(found.st_mode),
        mtime_ns=found.st_mtime_ns,
        uid=found.st_uid,
        gid=found.st_gid,
        target=os.readlink(name, dir_fd=at) if kind is FileKind.SYMLINK else None,
    )


def _list(at: int, name: str, *, path: str) -> list[FileInfo]:
    descriptor = os.open(name, _DIRECTORY, dir_fd=at)
    try:
        found = []
        for below in sorted(os.listdir(descriptor)):  # noqa: PTH208 - names
            try:
                found.append(_stat(descriptor, below, path=f"{path.rstrip('/')}/{below}"))
            except FileNotFoundError:
                pass  # it has gone meanwhile
        return found
    finally:
        os.close(descriptor)


def _mkdir(at: int, name: str, *, there: bool) -> None:
    try:
        os.mkdir(name, 0o700, dir_fd=at)
    except FileExistsError:
        if not there or not stat.S_ISDIR(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
            raise


def _remove_tree(at: int, name: str) -> None:
    from microsandbox import _trees

    top = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
    try:
        _trees.empty(top)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=at)
