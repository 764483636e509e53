"""Trees of files between the host and sandboxes, and between two of these, as streams."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from functools import partial
from posixpath import normpath
from typing import TYPE_CHECKING, Final, TypeVar

from microsandbox_core.agent import Finished, Process, Stderr, Stdout
from microsandbox_core.channel import (
    ChannelError,
    ConnectionLost,
    Control,
    RequestFailed,
    StreamClosed,
    decode_control,
)

from microsandbox.errors import FilesystemError, NotRunning, OutcomeUnknown, paused
from microsandbox.files._extract import CopyResult, Extractor, failure_of, not_regular
from microsandbox.files._pack import pack

if TYPE_CHECKING:
    from microsandbox_core.agent import AgentClient

CopyProgress = Callable[[int], None]
"""Called with the bytes of the stream that have passed."""

_Found = TypeVar("_Found")
_RESULT_MAX: Final = 1 << 16
_GRACE: Final = 2.0
"""Seconds that an operation which is given up gets to remove what is not complete."""


class Operation:
    """An operation on files of one sandbox, from its request to its result. `where` names the sandbox."""

    def __init__(self, process: Process, where: str, path: str) -> None:
        self._process = process
        self._where = where
        self._path = path
        self._report = bytearray()

    async def output(self) -> AsyncGenerator[bytes, None]:
        """What it sends, to its end. Raises `FilesystemError` if it did not succeed, `OutcomeUnknown`."""
        with self._translated():
            async for event in self._process:
                if isinstance(event, Stdout):
                    yield event.data
                elif isinstance(event, Stderr):
                    self._report += event.data[: _RESULT_MAX - len(self._report)]
                elif isinstance(event, Finished):
                    self._finish(event)

    async def result(self) -> Control:
        """Wait for its end; what it found. Raises as `output` does."""
        async for _ in self.output():
            pass
        try:
            return decode_control(bytes(self._report))
        except ChannelError:
            path = f"{self._where}:{self._path}"
            raise FilesystemError(f"{path}: the operation left no result", code="invalid_reply") from None

    async def write(self, data: bytes) -> bool:
        """Send input. False: it takes no more, and its result says why."""
        assert self._process.stdin is not None
        with self._translated():
            try:
                await self._process.stdin.write(data)
            except StreamClosed:
                return False
        return True

    async def close_input(self) -> None:
        """Nothing more comes."""
        assert self._process.stdin is not None
        with self._translated():
            await self._process.stdin.close()

    async def give_up(self) -> None:
        """End it, and let it clean up: an input that ends too early tells it so."""
        try:
            self._process.close_output(1)
            async with asyncio.timeout(_GRACE):
                await self.close_input()
                await self._process.wait()
        except (TimeoutError, ChannelError, FilesystemError, NotRunning, OutcomeUnknown):
            pass  # it is ended by force, or has ended
        finally:
            self._process.cancel()

    def _finish(self, event: Finished) -> None:
        if event.status.success:
            return
        path = f"{self._where}:{self._path}"
        if event.status.code is None:
            reason = "the guest ran out of memory" if event.status.oom_killed else "it was killed there"
            raise FilesystemError(
                f"{path}: the operation did not end: {reason}", code="killed", hint="try it again"
            )
        try:
            error = decode_control(bytes(self._report)).get("error")
        except ChannelError:
            error = None
        if not isinstance(error, dict):
            raise FilesystemError(f"{path}: the operation failed and did not say why", code="invalid_reply")
        named, number, message = error.get("path"), error.get("errno"), error.get("message")
        if isinstance(named, bytes):
            path = f"{self._where}:{os.fsdecode(named)}"
        if error.get("kind") == "not_regular":
            raise not_regular(path)
        raise failure_of(
            number if type(number) is int else 0, path, message[:200] if type(message) is str else "failed"
        )

    def _translated(self) -> _Translated:
        return _Translated(self._where)


class _Translated:
    """Raises the errors of the channel as the SDK's."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, ConnectionLost):
            raise NotRunning(f"the sandbox {self._where!r} is not running any more") from error
        if isinstance(error, RequestFailed) and error.kind == "paused":
            raise paused(self._where) from error
        if isinstance(error, RequestFailed):
            raise FilesystemError(f"the sandbox {self._where!r}: {error}", code=error.kind) from error
        if isinstance(error, ChannelError) and not isinstance(error, StreamClosed):
            raise OutcomeUnknown(f"the sandbox {self._where!r}: {error}") from error


@asynccontextmanager
async def operation(
    client: AgentClient, where: str, name: str, path: str | bytes, params: Control | None = None
) -> AsyncIterator[Operation]:
    """Begin an operation on an absolute `path`; one that is left before its end is given up."""
    encoded = guest_path(path)
    with _Translated(where):
        process = await client.files(name, {"path": encoded, **(params or {})})
    begun = Operation(process, where, os.fsdecode(encoded))
    try:
        yield begun
    except BaseException:
        await asyncio.shield(begun.give_up())
        raise


def guest_path(path: str | bytes) -> bytes:
    """`path` as the guest has it. Raises `ValueError` if it is not absolute or has a NUL byte."""
    encoded = os.fsencode(path)
    if not encoded.startswith(b"/"):
        raise ValueError(f"path: {os.fsdecode(encoded)!r} is not absolute")
    if b"\0" in encoded:
        raise ValueError(f"path: {os.fsdecode(encoded)!r} has a NUL byte")
    return encoded


def source_name(path: str | bytes) -> bytes | None:
    """What a source is called in a directory that it is copied into.

    None, for the content of the source, if it ends in ``/.`` or has no name, as ``/`` and ``..``.
    """
    name = os.fsencode(path).rstrip(b"/").rpartition(b"/")[2]
    return None if name in (b"", b".", b"..") else name


async def copy_to_host(
    client: AgentClient,
    where: str,
    source: str,
    destination: str | os.PathLike[str],
    *,
    special_bits: bool = False,
    progress: CopyProgress | None = None,
) -> CopyResult:
    """Copy what is at `source` in the sandbox; see `SandboxFiles.copy_to_host`."""
    extractor = Extractor(destination, source_name(source), special_bits=special_bits)
    passed = 0
    try:
        async with operation(client, where, "pack", source) as packing:
            await packing.close_input()
            async with aclosing(packing.output()) as output:
                async for data in output:
                    await _unhurried(partial(extractor.feed, data))
                    passed += len(data)
                    if progress is not None:
                        progress(passed)
        if not extractor.complete:
            raise FilesystemError(
                f"{where}:{source}: the sandbox said that all is sent, and it is not", code="invalid_stream"
            )
    finally:
        extractor.close()
    return extractor.result


async def copy_from_host(
    client: AgentClient,
    where: str,
    source: str | os.PathLike[str],
    destination: str,
    *,
    special_bits: bool = False,
    progress: CopyProgress | None = None,
) -> CopyResult:
    """Copy what is at `source` on the host; see `SandboxFiles.copy_from_host`."""
    result = CopyResult()
    pieces = pack(source, result)
    # Before anything is asked of the guest: most mistakes are in the path.
    piece = await _unhurried(partial(next, pieces, None))
    passed = 0
    place: Control = {"name": source_name(os.fspath(source)), "special_bits": special_bits}
    try:
        async with operation(client, where, "unpack", destination, place) as unpacking:
            while piece is not None and await unpacking.write(piece):
                passed += len(piece)
                if progress is not None:
                    progress(passed)
                piece = await _unhurried(partial(next, pieces, None))
            await unpacking.close_input()
            await unpacking.result()
    finally:
        pieces.close()
    return result


async def copy_between(
    source_client: AgentClient,
    source_where: str,
    source: str,
    client: AgentClient,
    where: str,
    destination: str,
    *,
    special_bits: bool = False,
    progress: CopyProgress | None = None,
) -> None:
    """Copy what is at `source` in one sandbox to another, or to elsewhere in the same one.

    The stream is not looked at: the receiving agent checks it, and its files are the guest's own affair.
    """
    if source_where == where and _is_within(destination, source):
        raise FilesystemError(
            f"{where}:{source}: cannot be copied into itself",
            code="into_itself",
            hint="choose a destination outside of it",
        )
    passed = 0
    place: Control = {"name": source_name(source), "special_bits": special_bits}
    async with (
        operation(source_client, source_where, "pack", source) as packing,
        operation(client, where, "unpack", destination, place) as unpacking,
    ):
        await packing.close_input()
        async with aclosing(packing.output()) as output:
            async for data in output:
                if not await unpacking.write(data):
                    break
                passed += len(data)
                if progress is not None:
                    progress(passed)
        await unpacking.close_input()
        await unpacking.result()


def _is_within(path: str, directory: str) -> bool:
    """By the names alone: links in the sandbox may say otherwise, and then the limit of levels ends it."""
    return f"{normpath(path)}/".startswith(f"{normpath(directory).rstrip('/')}/")


async def _unhurried(call: Callable[[], _Found]) -> _Found:
    """On a thread, because a disk may be slow; what it has begun is waited for also when we are cancelled."""
    running = asyncio.ensure_future(asyncio.to_thread(call))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise
