"""Changing a directory of the host as a guest has changed its version of it.

The guest chooses names, kinds and content. No path is handed to the kernel whole: every directory on the way
is opened by its name in the one before, and must be one. No link is followed, and there is no way up.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from microsandbox._workspace_base import Facts, facts_of

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_TIME_MAX = 2**62  # ns that utimensat takes from Python; a hostile time must not be an error


class HostTree:
    """A directory; paths are bytes below it, of single names. Methods raise `OSError`."""

    def __init__(self, root: str) -> None:
        self._root = os.open(root, _DIRECTORY)

    def close(self) -> None:
        """Let go of it."""
        os.close(self._root)

    def facts(self, path: bytes) -> Facts | None:
        """What is there; None if nothing is, or what it would be in is no directory."""
        try:
            with self._inside(path) as (at, name):
                return facts_of(os.stat(name, dir_fd=at, follow_symlinks=False))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def names(self, path: bytes) -> list[bytes]:
        """What is in a directory."""
        with self._inside(path) as (at, name):
            opened = os.open(name, _DIRECTORY, dir_fd=at)
        try:
            return [os.fsencode(name) for name in os.listdir(opened)]  # noqa: PTH208 - names
        finally:
            os.close(opened)

    def remove(self, path: bytes, *, directory: bool) -> None:
        """A directory that is empty, or anything else. What has gone already is no error."""
        try:
            with self._inside(path) as (at, name):
                if directory:
                    os.rmdir(name, dir_fd=at)
                else:
                    os.unlink(name, dir_fd=at)
        except FileNotFoundError:
            pass

    def make_directory(self, path: bytes) -> None:
        """For the user alone until `set_mode`; one that is there is no error."""
        with self._inside(path) as (at, name):
            try:
                os.mkdir(name, 0o700, dir_fd=at)
            except FileExistsError:
                if not stat.S_ISDIR(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
                    raise

    def set_mode(self, path: bytes, mode: int) -> None:
        """The permission bits of a directory."""
        with self._inside(path) as (at, name):
            opened = os.open(name, _DIRECTORY, dir_fd=at)
        try:
            os.fchmod(opened, mode & 0o777)
        finally:
            os.close(opened)

    def link(self, path: bytes, target: bytes) -> None:
        """A symbolic link, in place of what is no directory."""
        with self._inside(path) as (at, name):
            temporary = f".msb-{secrets.token_hex(8)}"
            os.symlink(target, temporary, dir_fd=at)
            _publish(at, temporary, name)

    @contextmanager
    def replacing(self, path: bytes, mode: int, mtime_ns: int) -> Iterator[int]:
        """A descriptor for the content of a file. It takes the place of what is there, which is no directory,
        when the context is left; left by an exception, nothing has changed."""
        with self._inside(path) as (at, name):
            temporary = f".msb-{secrets.token_hex(8)}"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            made = os.open(temporary, flags, 0o600, dir_fd=at)
            try:
                try:
                    yield made
                    os.fchmod(made, mode & 0o777)
                    time = max(-_TIME_MAX, min(mtime_ns, _TIME_MAX))
                    os.utime(made, ns=(time, time))
                finally:
                    os.close(made)
            except BaseException:
                os.unlink(temporary, dir_fd=at)
                raise
            _publish(at, temporary, name)

    @contextmanager
    def _inside(self, path: bytes) -> Iterator[tuple[int, bytes]]:
        """The directory that a path is in, and its last name. Raises `OSError`, `ValueError`."""
        names = path.split(b"/")
        if b"\0" in path or any(name in (b"", b".", b"..") for name in names):
            raise ValueError(f"path: {os.fsdecode(path)!r} is none below the directory")
        at = os.dup(self._root)
        try:
            for name in names[:-1]:
                below = os.open(name, _DIRECTORY, dir_fd=at)
                os.close(at)
                at = below
            yield at, names[-1]
        finally:
            os.close(at)


def _publish(at: int, temporary: str, name: bytes) -> None:
    try:
        os.rename(temporary, name, src_dir_fd=at, dst_dir_fd=at)
    except OSError:
        os.unlink(temporary, dir_fd=at)
        raise
