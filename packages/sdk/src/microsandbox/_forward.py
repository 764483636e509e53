"""A command of a sandbox joined to this process: its output, our input."""

from __future__ import annotations

import asyncio
import errno
import os
import queue
import stat
import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

from microsandbox.errors import ExecError
from microsandbox.execution import ExecExited, ExecHandle, Stdin, StdinSink

if TYPE_CHECKING:
    from microsandbox.sandbox import Sandbox
    from microsandbox.terminal import DetachKeys

_CHUNK = 1 << 16


async def attach(
    sandbox: Sandbox,
    command: Sequence[str],
    *,
    cwd: str | None,
    user: str | None,
    env: Mapping[str, str] | None,
    timeout: float | str | None,
    detach_keys: str,
) -> ExecExited | None:
    """Run a command at our terminal, or on our standard streams; see `Sandbox.attach`."""
    from microsandbox.terminal import DetachKeys, here, joined

    keys = DetachKeys.parse(detach_keys, "detach_keys")
    wanted = stdin_is_readable()
    tty = here() if os.isatty(0) and os.isatty(1) else None
    handle = await sandbox.exec_stream(
        command[0],
        command[1:],
        cwd=cwd,
        user=user,
        env=env,
        timeout=timeout,
        stdin=Stdin.pipe() if wanted else Stdin.null(),
        tty=tty or False,
    )
    with nullcontext() if tty is None else joined(handle, tty, keyboard=wanted):
        # Keys that are not pressed but come from a file are all for the command.
        return await forward(handle, stdin=wanted, keys=keys if os.isatty(0) else None)


def stdin_is_readable() -> bool:
    """Whether there is a standard input that could hold anything."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return False
    return not (stat.S_ISCHR(mode) and os.stat(0).st_rdev == os.stat(os.devnull).st_rdev)  # noqa: PTH116


async def forward(
    handle: ExecHandle, *, stdin: bool, keys: DetachKeys | None = None, last: bool = False
) -> ExecExited | None:
    """Copy both outputs as they come, and standard input if wanted, until the command has ended.

    None: it has not, but `keys` were pressed, and it was left to itself; `last`: the sandbox ends with it.
    """
    writers = {"stdout": Writer(1), "stderr": Writer(2)}
    feeding = asyncio.create_task(_feed(handle, handle.take_stdin(), keys, last)) if stdin else None
    try:
        async for event in handle:
            if event.kind == "stdout" or event.kind == "stderr":
                if not await writers[event.kind].write(event.data):
                    handle.close_output(event.kind)
            elif event.kind == "stdin_error" and feeding is not None:
                feeding.cancel()
            elif event.kind == "exited":
                for kind, writer in writers.items():
                    writer.check(kind)
                return event
    finally:
        if feeding is not None:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
    if handle.detached:
        return None
    raise ExecError("the command's end was not reported")


class Writer:
    """Writes to a descriptor that may block for as long as it likes, on a thread of its own.

    The descriptor is shared with other programs, so it cannot be made non-blocking; and a reader
    that stopped reading must not keep us from hearing Ctrl-C.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._queue: queue.SimpleQueue[tuple[bytes, asyncio.Future[bool]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._dead = False
        self._failure: OSError | None = None

    def check(self, kind: str) -> None:
        """Raise `ExecError` if output was lost, other than because its reader went away."""
        if self._failure is not None and self._failure.errno != errno.EPIPE:
            raise ExecError(
                f"{kind} could not be written: {self._failure.strerror}; the rest of it is lost",
                hint="look at where the output goes: the disk may be full",
                code="output_lost",
            )

    async def write(self, data: bytes) -> bool:
        """Write all of it; False if nobody reads any more."""
        if self._dead:
            return True  # the guest has been told; what was under way is dropped
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[bool] = loop.create_future()
        self._loop = loop
        self._queue.put((data, done))
        if await done:
            return True
        self._dead = True
        return False

    def _run(self) -> None:
        while True:
            data, done = self._queue.get()
            self._failure = _write_all(self._descriptor, data)
            try:
                self._loop.call_soon_threadsafe(_settle, done, self._failure is None)
            except RuntimeError:
                return  # the loop is closed: the command was interrupted


def _settle(done: asyncio.Future[bool], alive: bool) -> None:
    if not done.done():
        done.set_result(alive)


def _write_all(descriptor: int, data: bytes) -> OSError | None:
    """Write all of it; what stopped it, if something did."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            # Someone who shares the description has made it non-blocking.
            import select

            select.select([], [descriptor], [])
        except OSError as error:
            return error
    return None


async def _feed(handle: ExecHandle, sink: StdinSink, keys: DetachKeys | None, last: bool) -> None:
    """Copy our standard input into the command's, until either ends or `keys` are pressed."""
    try:
        while data := await _read():
            data, leave = keys.take(data) if keys is not None else (data, False)
            await sink.write(data)
            if leave:
                return await handle.detach(last=last)
        await sink.close()
    except ExecError:
        pass  # the command does not read any more, or has ended


async def _read() -> bytes:
    """The next bytes of standard input; empty at its end, and when it cannot be read."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    try:
        loop.add_reader(0, readable.set)
    except (PermissionError, FileExistsError):
        # epoll does not take regular files, which are always readable.
        return _read_now()
    try:
        await readable.wait()
        return _read_now()
    finally:
        loop.remove_reader(0)


def _read_now() -> bytes:
    try:
        return os.read(0, _CHUNK)
    except OSError:
        # A terminal that hung up, a broken disk. The command has to see an end, or it waits for ever.
        return b""
