"""The files of one sandbox: `Sandbox.fs`."""

# Names are used in open directories, and a slash at the end of a path has a meaning.
# ruff: noqa: PTH118, PTH119

from __future__ import annotations

import os
import stat
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from microsandbox_core.channel import Control

from microsandbox.errors import FilesystemError, PathNotFound
from microsandbox.files import _copy
from microsandbox.files._copy import CopyProgress, guest_path, operation
from microsandbox.files._extract import CopyResult
from microsandbox.files._records import (
    BYTES_MAX,
    Entry,
    Parser,
    StreamInvalid,
    encode_content,
    encode_mark,
)

if TYPE_CHECKING:
    from microsandbox_core.agent import AgentClient

READ_LIMIT: Final = 1 << 30
"""Bytes that `read` takes unless told otherwise."""
_LISTING_MAX: Final = 1 << 28
"""Bytes of a listing's stream: a million entries with names of the greatest length fit."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class FileKind(StrEnum):
    """What something in a directory is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    OTHER = "other"
    """A device, a FIFO or a socket."""


_KINDS: Final = {
    stat.S_IFREG: FileKind.FILE,
    stat.S_IFDIR: FileKind.DIRECTORY,
    stat.S_IFLNK: FileKind.SYMLINK,
}


@dataclass(frozen=True, slots=True)
class FileInfo:
    """Facts about a file in a sandbox, as the sandbox tells them. `name` may hold any character but ``/``;
    bytes that are not UTF-8 are surrogates, as `os.fsdecode` has it."""

    name: str
    path: str
    kind: FileKind
    size: int
    mode: int
    """Permission bits, with set-user-ID, set-group-ID and sticky: 0o644."""
    mtime_ns: int
    """The last change, in nanoseconds since the epoch."""
    uid: int
    gid: int
    target: str | None = None
    """Where a symbolic link leads."""

    @property
    def modified(self) -> datetime:
        """The last change, in UTC and microseconds. Raises `OverflowError` for times beyond the year 9999."""
        return _EPOCH + timedelta(microseconds=self.mtime_ns // 1000)


class FileSink:
    """Where to write the content of a file; see `SandboxFiles.write_stream`."""

    def __init__(self, writing: _copy.Operation) -> None:
        self._writing = writing

    async def write(self, data: bytes) -> None:
        """Write all of it, waiting while the sandbox's disk does. Raises `FilesystemError`."""
        for offset in range(0, len(data), BYTES_MAX):
            if not await self._writing.write(encode_content(data[offset : offset + BYTES_MAX])):
                await self._writing.result()
                raise FilesystemError("the sandbox ended a write before its time", code="invalid_reply")


class SandboxFiles:
    """Files in a sandbox, by absolute paths inside it; everything is done as its root user.

    Every method raises `FilesystemError` (`PathNotFound` if there is no such file) that names ``NAME:/path``
    and has the `errno`; `NotRunning`; `OutcomeUnknown` if the sandbox ended meanwhile; and `ValueError` for a
    path that is not absolute. What a sandbox tells of its files is untrusted.
    """

    def __init__(self, client: AgentClient, name: str) -> None:
        self._client = client
        self._name = name

    # ------------------------------------------------------------------------------------------- content

    async def read(self, path: str, *, limit: int = READ_LIMIT) -> bytes:
        """The content of a regular file of at most `limit` bytes; for larger ones see `read_stream`."""
        content = bytearray()
        async with aclosing(self.read_stream(path)) as pieces:
            async for piece in pieces:
                content += piece
                if len(content) > limit:
                    # What the file says of its size is the sandbox's word, so what comes is counted.
                    raise FilesystemError(
                        f"{self._name}:{path}: more than {limit} bytes",
                        code="too_large",
                        hint="read it with read_stream, or with a higher limit",
                    )
        return bytes(content)

    async def read_text(self, path: str, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The content of a regular file as text. Raises `UnicodeDecodeError` as well."""
        return (await self.read(path)).decode(encoding, errors)

    async def read_stream(self, path: str) -> AsyncGenerator[bytes, None]:
        """The content of a regular file in pieces, at constant memory; links are followed."""
        async with (
            operation(self._client, self._name, "read", path) as reading,
            aclosing(reading.output()) as output,
        ):
            async for piece in output:
                yield piece

    async def write(self, path: str, data: bytes | str) -> None:
        """Replace the content of a file, or make it with mode 0644; text is written as UTF-8.

        The file has its old content until the new one is complete. It keeps its mode and owner.
        """
        async with self.write_stream(path) as sink:
            await sink.write(data.encode() if isinstance(data, str) else data)

    @asynccontextmanager
    async def write_stream(self, path: str) -> AsyncIterator[FileSink]:
        """As `write`, piece by piece: ``async with fs.write_stream("/f") as sink: await sink.write(data)``.

        The file is in place when the context is left. Left by an exception, nothing has changed.
        """
        async with operation(self._client, self._name, "write", path) as writing:
            yield FileSink(writing)
            await writing.write(encode_mark(b"E") + encode_mark(b"Z"))
            await writing.close_input()
            await writing.result()

    # ------------------------------------------------------------------------------------ the file system

    async def list(self, path: str) -> list[FileInfo]:
        """What is in a directory, by name."""
        parser = Parser()
        found = []
        taken = 0
        async with (
            operation(self._client, self._name, "list", path) as listing,
            aclosing(listing.output()) as output,
        ):
            async for data in output:
                taken += len(data)
                if taken > _LISTING_MAX:
                    raise FilesystemError(
                        f"{self._name}:{path}: more entries than can be listed",
                        code="too_large",
                        hint="list it with a command in the sandbox",
                    )
                try:
                    entries = [record for record in parser.feed(data) if isinstance(record, Entry)]
                except StreamInvalid as error:
                    raise FilesystemError(
                        f"{self._name}:{path}: the sandbox sent what is no listing: {error}",
                        code="invalid_stream",
                    ) from None
                found += [_info(os.path.join(path, os.fsdecode(entry.name)), entry) for entry in entries]
        return sorted(found, key=lambda info: info.name)

    async def stat(self, path: str, *, follow_symlinks: bool = True) -> FileInfo:
        """Facts about what is at `path`."""
        facts = await self._call("stat", path, {"follow": follow_symlinks})

        def number(key: str) -> int:
            value = facts.get(key)
            if type(value) is not int or not -(2**63) <= value < 2**63:
                raise FilesystemError(
                    f"{self._name}:{path}: the sandbox sent no `{key}`", code="invalid_reply"
                )
            return value

        link = facts.get("target")
        target = link if isinstance(link, bytes) else b""
        names = ("mode", "seconds", "nanoseconds", "size", "uid", "gid")
        mode, seconds, nanoseconds, size, uid, gid = (number(name) for name in names)
        return _info(path, Entry(b"I", mode, seconds, nanoseconds, size, uid, gid, b"", target))

    async def exists(self, path: str) -> bool:
        """Whether there is something at `path`; a link that leads nowhere is nothing."""
        try:
            await self.stat(path)
        except PathNotFound:
            return False
        return True

    async def mkdir(self, path: str, *, parents: bool = False) -> None:
        """Make a directory, with mode 0755; with `parents` those above it too, and then it may be there."""
        await self._call("mkdir", path, {"parents": parents})

    async def remove(self, path: str) -> None:
        """Remove a file or a link, or a directory that is empty."""
        await self._call("remove", path, {"recursive": False})

    async def remove_dir(self, path: str) -> None:
        """Remove a directory and everything in it. ``/`` and paths that end in ``..`` are refused."""
        await self._call("remove", path, {"recursive": True})

    async def rename(self, path: str, to: str) -> None:
        """Give it another name on the same file system, as rename(2) does: a file that has it is replaced."""
        await self._call("rename", path, {"to": guest_path(to)})

    async def chmod(self, path: str, mode: int) -> None:
        """Set the permission bits, such as ``0o755``. Raises `ValueError` for others."""
        if not 0 <= mode <= 0o7777:
            raise ValueError(f"mode: {mode:#o} is not within 0 and 0o7777")
        await self._call("chmod", path, {"mode": mode})

    async def chown(self, path: str, uid: int, gid: int) -> None:
        """Set owner and group, by number."""
        for name, value in (("uid", uid), ("gid", gid)):
            if not 0 <= value < 2**32 - 1:
                raise ValueError(f"{name}: {value} is not an id")
        await self._call("chown", path, {"uid": uid, "gid": gid})

    # -------------------------------------------------------------------------------------------- copies

    async def copy(self, source: str, destination: str) -> None:
        """Copy a file or a tree within the sandbox; see `copy_from_host` for what is kept."""
        await _copy.copy_between(
            self._client, self._name, source, self._client, self._name, destination, special_bits=True
        )

    async def copy_from_host(
        self,
        source: str | os.PathLike[str],
        destination: str,
        *,
        special_bits: bool = False,
        progress: CopyProgress | None = None,
    ) -> CopyResult:
        """Copy a file or a tree of the host into the sandbox, where it belongs to root.

        As `cp -r`: a destination that is a directory gets `source` in it by its name; a source that ends in
        ``/.`` has its content copied. Permissions, times of change and holes are kept, set-user-ID,
        set-group-ID and sticky bits with `special_bits`; links are copied as links, hard links become
        files of their own; devices, FIFOs and sockets are skipped. Each file appears when it is complete.
        """
        return await _copy.copy_from_host(
            self._client,
            self._name,
            source,
            destination,
            special_bits=special_bits,
            progress=progress,
        )

    async def copy_to_host(
        self,
        source: str,
        destination: str | os.PathLike[str],
        *,
        special_bits: bool = False,
        progress: CopyProgress | None = None,
    ) -> CopyResult:
        """Copy a file or a tree out of the sandbox; the same rules as `copy_from_host`.

        Nothing is written but at and below the destination, whatever the sandbox sends and whatever links it
        has. How much it sends is the sandbox's choice.
        """
        return await _copy.copy_to_host(
            self._client,
            self._name,
            source,
            destination,
            special_bits=special_bits,
            progress=progress,
        )

    async def copy_to(
        self,
        source: str,
        other: SandboxFiles,
        destination: str,
        *,
        special_bits: bool = False,
        progress: CopyProgress | None = None,
    ) -> None:
        """Copy a file or a tree to another sandbox (its `fs`) by the same rules, past the host's disk."""
        await _copy.copy_between(
            self._client,
            self._name,
            source,
            other._client,
            other._name,
            destination,
            special_bits=special_bits,
            progress=progress,
        )

    async def _call(self, name: str, path: str, params: Control) -> Control:
        async with operation(self._client, self._name, name, path, params) as called:
            return await called.result()


def _info(path: str, entry: Entry) -> FileInfo:
    return FileInfo(
        name=os.path.basename(path.rstrip("/")) or "/",
        path=path,
        kind=_KINDS.get(stat.S_IFMT(entry.mode), FileKind.OTHER),
        size=entry.size,
        mode=stat.S_IMODE(entry.mode),
        mtime_ns=entry.seconds * 10**9 + entry.nanoseconds,
        uid=entry.uid,
        gid=entry.gid,
        target=os.fsdecode(entry.target) if entry.target else None,
    )
