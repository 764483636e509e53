"""A file system in memory. Errors are `OSError`s with the numbers that Linux uses, and the path as
`filename`."""

from __future__ import annotations

import errno
import os
import stat
import time
from dataclasses import dataclass, field

_LINKS_MAX = 40  # as Linux has it


@dataclass(slots=True)
class Node:
    """A file, a directory or a symbolic link. `mode` has the bits of the type."""

    mode: int
    content: bytes = b""
    children: dict[bytes, Node] = field(default_factory=dict)
    target: bytes = b""
    uid: int = 0
    gid: int = 0
    mtime_ns: int = field(default_factory=time.time_ns)

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_link(self) -> bool:
        """Whether it is a symbolic link."""
        return stat.S_ISLNK(self.mode)


def directory(mode: int = 0o755) -> Node:
    """An empty directory."""
    return Node(stat.S_IFDIR | mode)


def file(content: bytes = b"", mode: int = 0o644) -> Node:
    """A regular file."""
    return Node(stat.S_IFREG | mode, content)


def link(target: bytes) -> Node:
    """A symbolic link."""
    return Node(stat.S_IFLNK | 0o777, target=target)


class Tree:
    """The root directory and what is below it. Paths are absolute."""

    def __init__(self) -> None:
        self.root = directory()

    def find(self, path: bytes, *, follow: bool = True) -> Node:
        """What is there; `follow`: and not the link, if it is one."""
        return self._walk(path, follow)[-1]

    def read(self, path: bytes) -> bytes:
        """The content of a file."""
        node = self.find(path)
        if node.is_directory:
            raise error(errno.EISDIR, path)
        return node.content

    def write(self, path: bytes, content: bytes) -> None:
        """Replace the content of a file, or make it."""
        try:
            node = self.find(path)
        except FileNotFoundError:
            parent, name = self.place(path)
            parent.children[name] = file(content)
            return
        if not node.is_file:
            raise error(errno.EISDIR, path)
        node.content, node.mtime_ns = content, time.time_ns()

    def make(self, path: bytes, *, parents: bool = False) -> None:
        """Make a directory."""
        if not parents:
            parent, name = self.place(path)
            if name in parent.children:
                raise error(errno.EEXIST, path)
            parent.children[name] = directory()
            return
        walked = b"/"
        for part in _parts(path):
            walked = os.path.join(walked, part)  # noqa: PTH118 - bytes
            try:
                found = self.find(walked)
            except FileNotFoundError:
                self.make(walked)
            else:
                if not found.is_directory:
                    raise error(errno.ENOTDIR, path)

    def remove(self, path: bytes, *, recursive: bool) -> None:
        """Remove a file, a link, or a directory, which without `recursive` must be empty."""
        node = self.find(path, follow=False)
        parent, name = self.place(path)
        if node.is_directory and node.children and not recursive:
            raise error(errno.ENOTEMPTY, path)
        del parent.children[name]

    def rename(self, path: bytes, to: bytes) -> None:
        """As rename(2)."""
        node = self.find(path, follow=False)
        source, source_name = self.place(path)
        target, target_name = self.place(to)
        there = target.children.get(target_name)
        if there is node:
            return
        if there is not None:
            if there.is_directory and not node.is_directory:
                raise error(errno.EISDIR, to)
            if node.is_directory and not there.is_directory:
                raise error(errno.ENOTDIR, to)
            if there.children:
                raise error(errno.ENOTEMPTY, to)
        if node in self._walk(os.path.dirname(to), True):  # noqa: PTH120 - bytes
            raise error(errno.EINVAL, to)
        del source.children[source_name]
        target.children[target_name] = node

    def place(self, path: bytes) -> tuple[Node, bytes]:
        """The directory that has, or would have, what is at `path`, and its name there."""
        parts = [part for part in path.split(b"/") if part]
        if not parts or parts[-1] in (b".", b".."):
            raise error(errno.EBUSY, path)
        parent = self.find(b"/" + b"/".join(parts[:-1]))
        if not parent.is_directory:
            raise error(errno.ENOTDIR, path)
        return parent, parts[-1]

    def _walk(self, path: bytes, follow: bool) -> list[Node]:
        """The directories on the way, and what is at its end."""
        walked = [self.root]
        left = _parts(path)
        links = 0
        while left:
            if not walked[-1].is_directory:
                raise error(errno.ENOTDIR, path)
            part = left.pop(0)
            if part == b"..":
                walked = walked[:-1] or walked
                continue
            node = walked[-1].children.get(part)
            if node is None:
                raise error(errno.ENOENT, path)
            if node.is_link and (left or follow):
                links += 1
                if links > _LINKS_MAX:
                    raise error(errno.ELOOP, path)
                if node.target.startswith(b"/"):
                    walked = [self.root]
                left = _parts(node.target) + left
                continue
            walked.append(node)
        return walked


def error(number: int, path: bytes) -> OSError:
    """The error of a system call at `path`."""
    return OSError(number, os.strerror(number), path)


def _parts(path: bytes) -> list[bytes]:
    return [part for part in path.split(b"/") if part not in (b"", b".")]
