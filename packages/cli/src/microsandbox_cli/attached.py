"""A command of a sandbox joined to this process: its output, our input, signals, exit codes."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import queue
import stat
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NoReturn

from microsandbox._state import leave_open
from microsandbox.errors import ExecError
from microsandbox.execution import ExecEvent, ExecHandle, StdinSink

from microsandbox_cli import report

if TYPE_CHECKING:
    from microsandbox_cli.terminal import DetachKeys

_CHUNK = 1 << 16


def run_in_loop(main: Callable[[], Awaitable[int]]) -> NoReturn:
    """Run `main` in an event loop and exit with its code; 130 on Ctrl-C, 128+N on other signals."""
    leave_open()
    gc.enable()
    with report.guarded():
        asyncio.run(_run_and_exit(main))
    os._exit(report.EXIT_SANDBOX)


async def _run_and_exit(main: Callable[[], Awaitable[int]]) -> None:
    code = await _until_signal(main)
    sys.stdout.flush()
    # Not sys.exit(): a thread may be blocked in writing to a reader that does not read. And from here,
    # because nobody needs what the loop tidies up.
    os._exit(code)


async def _until_signal(main: Callable[[], Awaitable[int]]) -> int:
    """`main`, cancelled by the first signal; its clean-up is awaited, a second signal is not heard."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(main())
    received: list[int] = []

    def on_signal(number: int) -> None:
        if not received:
            received.append(number)
            task.cancel()

    for number in report.SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    report.release_signals()
    try:
        return await task
    except asyncio.CancelledError:
        if not received:
            raise
        return 128 + received[0]


def stdin_is_readable() -> bool:
    """Whether there is a standard input that could hold anything."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return False
    return not (stat.S_ISCHR(mode) and os.stat(0).st_rdev == os.stat(os.devnull).st_rdev)  # noqa: PTH116


async def forward(handle: ExecHandle, *, stdin: bool, keys: DetachKeys | None = None) -> ExecEvent | None:
    """Copy both outputs as they come, and standard input if wanted, until the command has ended.

    None: it has not, but `keys` were pressed, and it was left to itself.
    """
    writers = {"stdout": _Writer(1), "stderr": _Writer(2)}
    feeding = asyncio.create_task(_feed(handle, handle.take_stdin(), keys)) if stdin else None
    try:
        async for event in handle:
            if event.kind in writers:
                if not await writers[event.kind].write(event.data):
                    handle.close_output(event.kind)
            elif event.kind == "stdin_closed" and feeding is not None:
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


class _Writer:
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


async def _feed(handle: ExecHandle, sink: StdinSink, keys: DetachKeys | None) -> None:
    """Copy our standard input into the command's, until either ends or `keys` are pressed."""
    try:
        while data := await _read():
            data, leave = keys.take(data) if keys is not None else (data, False)
            await sink.write(data)
            if leave:
                return await handle.detach()
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
