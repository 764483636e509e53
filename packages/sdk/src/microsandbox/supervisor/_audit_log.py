"""The record of what a sandbox's network has decided: JSON lines in a file that is bounded.

Written on a thread of its own, so that a disk that stands still holds up nothing that passes the supervisor.
"""

from __future__ import annotations

import _thread
import os
from _queue import SimpleQueue  # that of `queue`, which imports more
from collections.abc import Sequence
from pathlib import Path
from typing import Final

SIZE_LIMIT = 4 << 20
"""Bytes of the file, after which it becomes the one before, `<name>.1`, and another one begins."""

QUEUE_LIMIT: Final = 1 << 20
"""Characters that may wait for the disk; records that come then are lost, and counted."""

_CLOSE_TIME: Final = 2.0  # seconds for the last records: the end of the sandbox waits for them


class AuditLog:
    """Appends to `path`, which is made with the first record; with that the thread begins.

    What cannot be written, because the disk is full or too slow, is lost and counted in the next line that
    can. All methods are for one thread.
    """

    def __init__(self, path: Path) -> None:
        self._writer = _Writer(path)
        # Of lines and locks: who waits for what is before a lock is woken by its release.
        self._queue: SimpleQueue[tuple[int, Sequence[str]] | _thread.LockType | None] = SimpleQueue()
        self._running: _thread.LockType | None = None
        # Each is changed by one thread alone: the characters that were put, and those that were taken.
        self._put = 0
        self._taken = 0
        self._overflow = 0
        self._late = False

    def append(self, lines: Sequence[str]) -> None:
        """Hand over lines, each without its end."""
        size = sum(map(len, lines))
        if self._put - self._taken + size > QUEUE_LIMIT:
            self._overflow += len(lines)
        elif lines or self._overflow:
            self._put += size
            self._queue.put((self._overflow, lines))
            self._overflow = 0
            if self._running is None:
                self._running = _thread.allocate_lock()
                self._running.acquire()
                _thread.start_new_thread(self._run, (self._running,))

    def settle(self, seconds: float) -> None:
        """Wait until what was handed over is in the file. A disk that was too slow once is not waited for
        again until it has caught up."""
        if self._put == self._taken:
            self._late = False
        elif not self._late:
            reached = _thread.allocate_lock()
            reached.acquire()
            self._queue.put(reached)
            self._late = not reached.acquire(timeout=seconds)

    def close(self, seconds: float = _CLOSE_TIME) -> None:
        """Write what there is, and end the thread; a disk that does not take it is waited for so long."""
        self.append(())
        if self._running is not None:
            self._queue.put(None)
            self._running.acquire(timeout=seconds)
            self._running = None

    def _run(self, running: _thread.LockType) -> None:
        while (item := self._queue.get()) is not None:
            if isinstance(item, tuple):
                lost, lines = item
                self._writer.append(lost, lines)
                self._taken += sum(map(len, lines))
            else:
                item.release()
        self._writer.close()
        running.release()


class _Writer:
    """The file, for the thread that writes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self._size = 0
        self._lost = 0

    def append(self, lost: int, lines: Sequence[str]) -> None:
        """Write lines, before which `lost` others were lost."""
        self._lost += lost
        head = f'{{"lost": {self._lost}}}\n' if self._lost else ""
        data = (head + "".join(f"{line}\n" for line in lines)).encode()
        try:
            self._write(data)
        except OSError:
            self._lost += len(lines)
        else:
            self._lost = 0

    def _write(self, data: bytes) -> None:
        if self._file is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._file = os.open(self._path, flags, 0o600)
            self._size = os.fstat(self._file).st_size
        if self._size and self._size + len(data) > SIZE_LIMIT:
            self._path.rename(f"{self._path}.1")
            self.close()
            self._write(data)
            return
        written = os.write(self._file, data)
        if written < len(data):
            # Half a line would spoil the next one.
            os.ftruncate(self._file, self._size)
            raise OSError("the disk is full")
        self._size += written

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
