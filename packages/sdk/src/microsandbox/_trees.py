"""Directories that guests have filled: removed, copied and measured, however deep they are.

Names are opened in the directory that they are in, because paths may be longer than the system takes, and
no link is followed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Self

from microsandbox_core.artifacts import copy_range

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_HELD = 64  # directories that a descent holds open
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Descent:
    """Directories below an open one, by their paths relative to that, "" being itself. Fast where each is
    near the one before: the last few on the way are held open."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._held: list[tuple[str, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        while self._held:
            os.close(self._held.pop()[1])

    def open(self, path: str) -> int:
        """A descriptor that holds until the next is asked for. Raises `OSError`."""
        while self._held and not f"{path}/".startswith(f"{self._held[-1][0]}/"):
            os.close(self._held.pop()[1])
        at, descriptor = self._held[-1] if self._held else ("", self._root)
        for name in filter(None, path[len(at) :].split("/")):
            descriptor = os.open(name, _DIRECTORY, dir_fd=descriptor)
            at = below(at, name)
            self._held.append((at, descriptor))
            if len(self._held) > _HELD:
                os.close(self._held.pop(0)[1])
        return descriptor


def below(path: str, name: str) -> str:
    """The path of what has this name in the directory at `path`, both relative."""
    return f"{path}/{name}" if path else name


def remove(path: Path) -> None:
    """Remove a directory with all that is in it, also what its owner may not read. Raises `OSError`."""
    top = os.open(path, _DIRECTORY)
    try:
        empty(top)
    finally:
        os.close(top)
    path.rmdir()


def empty(top: int) -> None:
    """Remove all that is in an open directory. Raises `OSError`, also where somebody else fills it meanwhile.

    Every directory is moved up to the top before it is emptied: none is too deep then, and what is cut off is
    a directory that can be removed again.
    """
    waiting = [""]
    while waiting:
        name = waiting.pop()
        descriptor = os.open(name or ".", _DIRECTORY, dir_fd=top)
        try:
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    if not entry.is_dir(follow_symlinks=False):
                        os.unlink(entry.name, dir_fd=descriptor)
                        continue
                    if entry.stat(follow_symlinks=False).st_mode & 0o700 != 0o700:
                        _permit(descriptor, entry.name)
                    moved = os.urandom(16).hex() if name else entry.name
                    os.rename(entry.name, moved, src_dir_fd=descriptor, dst_dir_fd=top)
                    waiting.append(moved)
        finally:
            os.close(descriptor)
        if name:
            os.rmdir(name, dir_fd=top)


def _permit(parent: int, name: str) -> None:
    """Let the owner of a directory read it, and write to it, which is needed to move it too."""
    descriptor = os.open(name, _DIRECTORY | os.O_PATH, dir_fd=parent)
    try:
        # No link can be swapped in here.
        os.chmod(f"/proc/self/fd/{descriptor}", 0o700)  # noqa: PTH101
    finally:
        os.close(descriptor)


def copy(source: Path, target: Path) -> None:
    """Copy a directory to a new one: files with their holes and all their names, links, permissions, times
    and attributes. Devices, FIFOs and sockets, which no guest can make there, are left out.

    For one that nobody changes. Raises `OSError`.
    """
    target.mkdir(mode=0o700)
    reader, writer = os.open(source, _DIRECTORY), os.open(target, _DIRECTORY)
    try:
        with Descent(reader) as old, Descent(writer) as new:
            _copy(old, new, writer)
    finally:
        os.close(reader)
        os.close(writer)


def _copy(source: Descent, target: Descent, root: int) -> None:
    linked: dict[tuple[int, int], tuple[str, str]] = {}
    made = []
    waiting = [""]
    while waiting:
        path = waiting.pop()
        made.append(path)
        old, new = source.open(path), target.open(path)
        with os.scandir(old) as entries:
            for entry in entries:
                name, facts = entry.name, entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(facts.st_mode):
                    os.mkdir(name, 0o700, dir_fd=new)
                    waiting.append(below(path, name))
                elif stat.S_ISLNK(facts.st_mode):
                    os.symlink(os.readlink(name, dir_fd=old), name, dir_fd=new)
                    times = (facts.st_atime_ns, facts.st_mtime_ns)
                    os.utime(name, ns=times, dir_fd=new, follow_symlinks=False)
                elif stat.S_ISREG(facts.st_mode):
                    first = linked.get((facts.st_dev, facts.st_ino))
                    if first is None:
                        _copy_file(old, new, name)
                    else:
                        _link(root, *first, new, name)
                    if facts.st_nlink > 1:
                        linked.setdefault((facts.st_dev, facts.st_ino), (path, name))
    # What is put into a directory changes its time, and what it permits may exclude its owner.
    for path in reversed(made):
        _copy_facts(source.open(path), target.open(path))


def _copy_file(old: int, new: int, name: str) -> None:
    source, target = os.open(name, _READ, dir_fd=old), -1
    try:
        target = os.open(name, _WRITE, 0o600, dir_fd=new)
        copy_range(source, target)
        _copy_facts(source, target)
    finally:
        os.close(source)
        if target >= 0:
            os.close(target)


def _link(root: int, path: str, name: str, new: int, as_name: str) -> None:
    with Descent(root) as first:
        os.link(name, as_name, src_dir_fd=first.open(path), dst_dir_fd=new, follow_symlinks=False)


def _copy_facts(source: int, target: int) -> None:
    for attribute in os.listxattr(source):
        if attribute.startswith("user."):
            os.setxattr(target, attribute, os.getxattr(source, attribute))
    facts = os.fstat(source)
    os.fchmod(target, stat.S_IMODE(facts.st_mode))
    os.utime(target, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def every(path: Path, without: Collection[str] = ()) -> Iterator[os.stat_result]:
    """Facts about all that is below a directory, `without` these paths, relative to it, and what is below
    them. What goes meanwhile, or cannot be read, is left out. Raises `OSError`."""
    root = os.open(path, _DIRECTORY)
    try:
        with Descent(root) as directories:
            yield from _every(directories, without)
    finally:
        os.close(root)


def _every(directories: Descent, without: Collection[str]) -> Iterator[os.stat_result]:
    waiting = [""]
    while waiting:
        path = waiting.pop()
        try:
            descriptor = directories.open(path)
        except (FileNotFoundError, PermissionError):
            continue
        with os.scandir(descriptor) as entries:
            for entry in entries:
                found = below(path, entry.name)
                if found in without:
                    continue
                try:
                    facts = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                yield facts
                if stat.S_ISDIR(facts.st_mode):
                    waiting.append(found)
