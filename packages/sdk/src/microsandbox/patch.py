"""Changes to a sandbox's root that are made once, before anything of its image runs.

They travel as a spool: a file of MessagePack maps, one per request to the agent, each with at most
`CHUNK` bytes of content. Its existence in a sandbox's directory says that they are still to be made.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import msgpack

from microsandbox import _guest
from microsandbox.errors import ConfigError, StateError

CHUNK = 1 << 19
"""Bytes of content in one request."""

_DEPTH_LIMIT = 256

Request = dict[str, Any]


class Patch:
    """One change, made by one of the class methods; a list of them is given to `Sandbox.create`.

    Paths are absolute. Parent directories that are missing are made. Symbolic links of the image are
    followed inside its root; /proc, /sys, /dev and /tmp are not of the root and refused. A file or link
    that is there already is an error without `replace`. Everything belongs to root.
    """

    def __init__(self, operation: str, path: str, **details: Any) -> None:
        """For the class methods."""
        self._operation = operation
        self.path = _guest.check_path(path, f"patch {operation}")
        self._details = details

    def __repr__(self) -> str:
        """Without the content, which may be long, or secret."""
        return f"Patch.{self._operation}({self.path!r})"

    @classmethod
    def text(cls, path: str, content: str, *, mode: int | None = None, replace: bool = False) -> Self:
        """A file with this text, as UTF-8. `mode`: its permissions, 0o644 by default."""
        return cls("text", path, content=content.encode(), mode=_mode(mode), replace=replace)

    @classmethod
    def file(cls, path: str, content: bytes, *, mode: int | None = None, replace: bool = False) -> Self:
        """A file with these bytes."""
        return cls("file", path, content=bytes(content), mode=_mode(mode), replace=replace)

    @classmethod
    def copy_file(
        cls, source: str | os.PathLike[str], path: str, *, mode: int | None = None, replace: bool = False
    ) -> Self:
        """A copy of a file of the host, with its permissions unless `mode` has others."""
        return cls("copy_file", path, source=Path(source), mode=_mode(mode), replace=replace)

    @classmethod
    def copy_dir(cls, source: str | os.PathLike[str], path: str, *, replace: bool = False) -> Self:
        """The content of a directory of the host, with permissions; symbolic links stay links.

        A directory that is there already gets it in addition to what it has. Sockets, devices and FIFOs
        are left out.
        """
        return cls("copy_dir", path, source=Path(source), replace=replace)

    @classmethod
    def mkdir(cls, path: str, *, mode: int | None = None) -> Self:
        """A directory; one that is there gets the `mode`, if one is given."""
        return cls("mkdir", path, mode=_mode(mode))

    @classmethod
    def append(cls, path: str, content: str | bytes) -> Self:
        """This, at the end of a file that is there."""
        return cls("append", path, content=content.encode() if isinstance(content, str) else bytes(content))

    @classmethod
    def symlink(cls, target: str, path: str, *, replace: bool = False) -> Self:
        """A symbolic link at `path` that says `target`."""
        if not target or "\0" in target:
            raise ConfigError(f"patch symlink: {target!r} cannot be a link's target", hint="give it a path")
        return cls("symlink", path, target=target, replace=replace)

    @classmethod
    def remove(cls, path: str) -> Self:
        """Remove what is there; of a directory everything in it."""
        return cls("remove", path)

    def requests(self) -> Iterator[Request]:
        """As the agent is told of it. Raises `ConfigError` when the host's files cannot be read."""
        details = self._details
        try:
            match self._operation:
                case "text" | "file":
                    chunks = _chunks(details["content"])
                    yield from _file(self.path, chunks, details["mode"], details["replace"])
                case "append":
                    for chunk in _chunks(details["content"]):
                        yield {"operation": "append", "path": os.fsencode(self.path), "data": chunk}
                case "copy_file":
                    yield from _copied(details["source"], self.path, details["mode"], details["replace"])
                case "copy_dir":
                    yield from _tree(details["source"], self.path, details["replace"], 0)
                case "mkdir":
                    yield _directory(self.path, details["mode"])
                case "symlink":
                    yield _link(self.path, details["target"], details["replace"])
                case _:
                    yield {"operation": self._operation, "path": os.fsencode(self.path)}
        except OSError as error:
            raise ConfigError(
                f"{self!r}: cannot read {error.filename or details.get('source')}: {error.strerror}",
                hint="name what is on this machine and may be read",
            ) from error


def check(patches: Iterable[Patch], hidden: Sequence[str]) -> None:
    """Refuse patches that nobody would see. `hidden`: where something is mounted over the root."""
    for patch in patches:
        if not isinstance(patch, Patch):
            raise TypeError(f"patches: expected Patch, not {type(patch).__name__}")
        for path in hidden:
            if patch.path == path or patch.path.startswith(f"{path}/"):
                raise ConfigError(
                    f"{patch!r}: the file system in memory at {path} would hide it",
                    hint="leave out one of the two",
                )


def write_spool(path: Path, patches: Sequence[Patch]) -> None:
    """Write down all that is to be done. Raises `ConfigError`, `StateError`."""
    try:
        with path.open("xb") as spool:
            for number, patch in enumerate(patches, 1):
                for request in patch.requests():
                    spool.write(msgpack.packb({"name": f"patch {number}, {patch!r}", "request": request}))
    except OSError as error:
        raise StateError(f"cannot write {path}: {error.strerror}") from error


def read_spool(path: Path) -> Iterator[tuple[str, Request]]:
    """Whose request it is and the request, one after the other."""
    with path.open("rb") as spool:
        for entry in msgpack.Unpacker(spool, max_buffer_size=1 << 24):
            yield entry["name"], entry["request"]


def _file(path: str, chunks: Iterator[bytes], mode: int | None, replace: bool) -> Iterator[Request]:
    name = os.fsencode(path)
    first = next(chunks)
    yield {"operation": "write", "path": name, "data": first, "mode": mode, "replace": replace}
    for chunk in chunks:
        yield {"operation": "append", "path": name, "data": chunk}


def _copied(source: Path, path: str, mode: int | None, replace: bool) -> Iterator[Request]:
    # What is not a regular file may wait, or have no end.
    found = source.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"patch: {source} is not a regular file", hint="a directory: Patch.copy_dir")
    with source.open("rb") as file:
        permissions = found.st_mode & 0o777 if mode is None else mode
        yield from _file(path, _read(file), permissions, replace)


def _tree(source: Path, path: str, replace: bool, depth: int) -> Iterator[Request]:
    if depth > _DEPTH_LIMIT:
        raise ConfigError(f"patch: {source} is nested too deeply", hint="copy a part of it")
    # The directory's permissions come first: root may write to it whatever they are.
    yield _directory(path, source.stat().st_mode & 0o777)
    with os.scandir(source) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        inner = f"{path}/{entry.name}"
        if entry.is_symlink():
            yield _link(inner, str(Path(entry.path).readlink()), replace)
        elif entry.is_dir():
            yield from _tree(Path(entry.path), inner, replace, depth + 1)
        elif entry.is_file():
            yield from _copied(Path(entry.path), inner, None, replace)


def _directory(path: str, mode: int | None) -> Request:
    return {"operation": "mkdir", "path": os.fsencode(path), "mode": mode}


def _link(path: str, target: str, replace: bool) -> Request:
    return {
        "operation": "symlink",
        "path": os.fsencode(path),
        "target": os.fsencode(target),
        "replace": replace,
    }


def _chunks(content: bytes) -> Iterator[bytes]:
    """At least one, which may be empty."""
    for start in range(0, max(1, len(content)), CHUNK):
        yield content[start : start + CHUNK]


def _read(file: Any) -> Iterator[bytes]:
    chunk = file.read(CHUNK)
    yield chunk
    while len(chunk) == CHUNK and (chunk := file.read(CHUNK)):
        yield chunk


def _mode(mode: int | None) -> int | None:
    if mode is not None and not 0 <= mode <= 0o7777:
        raise ConfigError(f"patch: {mode} is not a file's mode", hint="for example: mode=0o644")
    return mode
