"""A stream of records from a guest, as a tree of the host's.

The guest is hostile, and so may be whoever else writes below the destination. Nothing here follows a link:
each name is one component, used in the open directory that it belongs to.
"""

# Names are used in open directories, and a slash at the end of a path has a meaning.
# ruff: noqa: PTH112, PTH116, PTH118

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from microsandbox.errors import FilesystemError, PathNotFound
from microsandbox.files._records import Content, Entry, Hole, Mark, Parser, Record, StreamInvalid

DEPTH_MAX: Final = 256
"""Levels of directories below the one that is copied; each holds a descriptor."""
SKIPPED_SHOWN: Final = 10
"""Names of what was skipped that are kept."""

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_TIME_MAX: Final = 2**62  # nanoseconds that utimensat takes from Python; a hostile time must not be an error
_Made = TypeVar("_Made")


@dataclass(slots=True)
class CopyResult:
    """What a copy has done: `entries` files, directories and links, `size` bytes of content.

    `skipped` counts what cannot be copied (devices, FIFOs, sockets, the kernel's file systems), and
    `skipped_names` has the first of them.
    """

    entries: int = 0
    size: int = 0
    skipped: int = 0
    skipped_names: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Level:
    fd: int
    entry: Entry | None
    """None: it was there before, and keeps its mode and time."""
    name: bytes


@dataclass(slots=True)
class _File:
    fd: int
    temporary: str
    entry: Entry
    offset: int = 0


class Extractor:
    """Puts one tree where `destination` says, as `cp -r` does. Blocking; call `close` in the end.

    `name` is the source's, for a destination that is a directory; None puts the content of the source into
    the destination itself. `special_bits` keeps set-user-ID, set-group-ID and sticky bits.
    """

    def __init__(
        self, destination: str | os.PathLike[str], name: bytes | None, *, special_bits: bool = False
    ) -> None:
        self._destination = os.fspath(destination)
        self._name = name
        self._mask = 0o7777 if special_bits else 0o777
        self._parser = Parser()
        self._levels: list[_Level] = []
        self._file: _File | None = None
        self._base: int | None = None
        self._base_path = ""
        self._begun = False
        self._done = False
        self.result = CopyResult()

    @property
    def complete(self) -> bool:
        """Whether the whole tree has come and is in place."""
        return self._done

    def feed(self, data: bytes) -> None:
        """Take the next part of the stream. Raises `FilesystemError`; then `close` is all that is left."""
        try:
            for record in self._parser.feed(data):
                self._take(record)
        except StreamInvalid as error:
            raise FilesystemError(
                f"the sandbox sent what is not a tree of files: {error}",
                code="invalid_stream",
                hint="what was copied before is still there; do not trust this sandbox",
            ) from None
        except OSError as error:
            raise failure(error, self._path()) from error

    def close(self) -> None:
        """Let go of everything, and remove the file that is not complete."""
        if self._file is not None:
            file, self._file = self._file, None
            os.close(file.fd)
            _quietly_unlink(file.temporary, self._directory())
        for level in self._levels:
            os.close(level.fd)
        self._levels.clear()
        if self._base is not None:
            os.close(self._base)
            self._base = None

    # ------------------------------------------------------------------------------------------- records

    def _take(self, record: Record) -> None:
        if self._done:
            raise StreamInvalid("records after its end")
        if isinstance(record, Content):
            self._content(record)
        elif isinstance(record, Hole):
            file = self._expected_file(record.size)
            file.offset += record.size
        elif isinstance(record, Mark):
            self._mark(record.kind)
        elif self._file is not None:
            raise StreamInvalid("a file without its end")
        else:
            self._entry(record)

    def _mark(self, kind: bytes) -> None:
        if kind == b"E":
            self._finish_file()
        elif kind == b"U":
            if self._file is not None or not self._levels:
                raise StreamInvalid("the end of a directory outside one")
            self._leave()
        elif self._levels or self._file is not None or not self._begun:
            raise StreamInvalid("an end before its time")
        else:
            self._done = True

    def _entry(self, entry: Entry) -> None:
        if not self._begun:
            self._begun = True
            name = self._begin(entry)
            if name is None:
                return
        elif not self._levels:
            raise StreamInvalid("a second tree")
        elif not entry.name:
            raise StreamInvalid("an entry without a name")
        else:
            name = entry.name
        if entry.kind == b"S":
            self.result.skipped += 1
            if len(self.result.skipped_names) < SKIPPED_SHOWN:
                self.result.skipped_names.append(os.fsdecode(name))
            return
        if entry.kind == b"D":
            self._enter(name, entry)
        elif entry.kind == b"F":
            self._open(name, entry)
        elif entry.kind == b"L":
            self._link(name, entry)
        else:
            raise StreamInvalid("a line of a listing")
        self.result.entries += 1

    def _begin(self, entry: Entry) -> bytes | None:
        """Decides where the tree goes. The name in `_base`; None: its content goes into `_base` itself."""
        if entry.name:
            raise StreamInvalid("a tree with a name of its own")
        if entry.kind not in b"DFL":
            raise StreamInvalid("a tree that is none")
        directory, name = resolve(self._destination, self._name, is_directory=entry.kind == b"D")
        self._base_path = directory
        # The user's own path: links in it are theirs.
        self._base = os.open(directory or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if name is None:
            self._levels.append(_Level(os.dup(self._base), None, b""))
        return name

    def _enter(self, name: bytes, entry: Entry) -> None:
        if len(self._levels) > DEPTH_MAX:
            raise FilesystemError(
                f"{self._path(name)}: more than {DEPTH_MAX} directories deep",
                code="too_deep",
                hint="copy the parts of it one by one",
            )
        made: Entry | None = entry
        parent = self._directory()
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            made = None
        except OSError as error:
            raise failure(error, self._path(name)) from error
        try:
            fd = os.open(name, _DIRECTORY, dir_fd=parent)
        except OSError as error:
            # What is in its place may be a link that the guest has sent before: it is not followed.
            raise failure(error, self._path(name)) from error
        self._levels.append(_Level(fd, made, name))

    def _leave(self) -> None:
        level = self._levels.pop()
        try:
            if level.entry is not None:
                os.fchmod(level.fd, level.entry.mode & self._mask)
                _set_time(level.fd, level.entry)
        finally:
            os.close(level.fd)

    def _open(self, name: bytes, entry: Entry) -> None:
        directory = self._directory()

        def make(temporary: str) -> int:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            return os.open(temporary, flags, 0o600, dir_fd=directory)

        try:
            temporary, fd = _named(make)
        except OSError as error:
            raise failure(error, self._path(name)) from error
        self._file = _File(fd, temporary, entry._replace(name=name))

    def _content(self, record: Content) -> None:
        file = self._expected_file(len(record.data))
        rest = record.data
        while len(rest):
            count = os.pwrite(file.fd, rest, file.offset)
            file.offset += count
            rest = rest[count:]
        self.result.size += len(record.data)

    def _expected_file(self, size: int) -> _File:
        if self._file is None:
            raise StreamInvalid("content without a file")
        if self._file.offset + size > self._file.entry.size:
            # F30: what was announced is the most that is taken.
            raise StreamInvalid(f"more content than the {self._file.entry.size} bytes that were announced")
        return self._file

    def _finish_file(self) -> None:
        file = self._expected_file(0)
        os.ftruncate(file.fd, file.offset)
        os.fchmod(file.fd, file.entry.mode & self._mask)
        _set_time(file.fd, file.entry)
        directory = self._directory()
        try:
            os.rename(file.temporary, file.entry.name, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError as error:
            raise failure(error, self._path(file.entry.name)) from error
        self._file = None
        os.close(file.fd)

    def _link(self, name: bytes, entry: Entry) -> None:
        directory = self._directory()
        temporary = ""
        try:
            temporary, _ = _named(lambda name: os.symlink(entry.target, name, dir_fd=directory))
            _set_time(os.fsencode(temporary), entry, directory)
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError as error:
            if temporary:
                _quietly_unlink(temporary, directory)
            raise failure(error, self._path(name)) from error

    def _directory(self) -> int:
        if self._levels:
            return self._levels[-1].fd
        assert self._base is not None
        return self._base

    def _path(self, name: bytes = b"") -> str:
        """The path of the entry at hand, for messages."""
        if not self._begun or self._base is None:
            return self._destination
        if not name and self._file is not None:
            name = self._file.entry.name
        names = [level.name for level in self._levels] + [name]
        return os.path.join(self._base_path, *(os.fsdecode(part) for part in names if part))


def resolve(destination: str, name: bytes | None, *, is_directory: bool) -> tuple[str, bytes | None]:
    """The directory to write into and the name in it, by the rules of `cp -r`; without a name, the directory
    itself. Raises `FilesystemError`."""
    try:
        found = os.stat(destination)  # follows links: the path is the user's
    except FileNotFoundError:
        if destination.endswith("/") and not is_directory:
            raise PathNotFound(
                f"{destination}: no such directory", hint="make it first, or leave the slash out"
            ) from None
        directory, last = os.path.split(destination.rstrip("/"))
        if not last or last in (".", ".."):
            raise PathNotFound(f"{destination}: no such directory", hint="make it first") from None
        if not os.path.isdir(directory or "."):
            raise PathNotFound(f"{directory}: no such directory", hint="make it first") from None
        return directory, os.fsencode(last)
    except OSError as error:
        raise failure(error, destination) from error
    if stat.S_ISDIR(found.st_mode):
        if name is None and not is_directory:
            raise FilesystemError(f"{destination}: is a directory", code="is_a_directory")
        return destination, name
    if is_directory:
        raise FilesystemError(
            f"{destination}: is not a directory, and a directory is copied to it",
            code="not_a_directory",
            hint="choose another destination",
        )
    if not stat.S_ISREG(found.st_mode):
        raise not_regular(destination)
    # A link to a file: its target is what is replaced.
    directory, last = os.path.split(os.path.realpath(destination))
    return directory, os.fsencode(last)


def failure(error: OSError, path: str) -> FilesystemError:
    """An error of the operating system's, with its path and what to do."""
    return failure_of(error.errno or 0, path, error.strerror or str(error))


def not_regular(path: str) -> FilesystemError:
    """The error for a path that is a device, a FIFO or a socket."""
    return FilesystemError(
        f"{path}: is a device, a FIFO or a socket",
        code="not_regular",
        hint="only regular files, directories and symbolic links can be read and written",
    )


_HINTS: Final = {
    errno.ENOENT: "check the path",
    errno.EACCES: "check who may write there",
    errno.EPERM: "check who may write there",
    errno.ENOSPC: "make room, and copy again",
    errno.EDQUOT: "make room, and copy again",
    errno.ENOTDIR: "remove what is in its place, or choose another path",
    errno.EISDIR: "remove what is in its place, or choose another path",
    errno.ELOOP: "a link is not followed here; remove it, or choose another path",
    errno.EROFS: "choose a path that can be written",
    errno.ENAMETOOLONG: "choose a shorter path, or copy the parts one by one",
    errno.ENOTEMPTY: "remove what is in it first, or remove it recursively",
}
_CODES: Final = {
    errno.EACCES: "permission_denied",
    errno.EPERM: "permission_denied",
    errno.ENOSPC: "no_space",
    errno.EDQUOT: "no_space",
    errno.ENOTDIR: "not_a_directory",
    errno.EISDIR: "is_a_directory",
    errno.EEXIST: "path_exists",
    errno.ENOTEMPTY: "not_empty",
}


def failure_of(number: int, path: str, message: str) -> FilesystemError:
    """The error for an errno; `path` says where, the host's or ``NAME:/path``."""
    hint = _HINTS.get(number)
    if number == errno.ENOENT:
        return PathNotFound(f"{path}: no such file or directory", hint=hint, errno=number)
    return FilesystemError(
        f"{path}: {message[:1].lower()}{message[1:]}", hint=hint, code=_CODES.get(number), errno=number
    )


def _named(make: Callable[[str], _Made]) -> tuple[str, _Made]:
    """A name that nobody uses, and what was made by it."""
    while True:
        name = f".msb-{secrets.token_hex(8)}"
        try:
            return name, make(name)
        except FileExistsError:
            continue


def _quietly_unlink(name: str, directory: int) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except OSError:
        pass  # it has gone, or cannot go: the error that led here is the one to tell


def _set_time(file: int | bytes, entry: Entry, directory: int | None = None) -> None:
    moment = entry.seconds * 10**9 + entry.nanoseconds
    moment = max(-_TIME_MAX, min(_TIME_MAX, moment))
    if directory is None:
        os.utime(file, ns=(moment, moment))
    else:
        os.utime(file, ns=(moment, moment), dir_fd=directory, follow_symlinks=False)
