"""Writes log lines on a thread of its own, and loses them rather than make anybody wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Final

from microsandbox._log_format import encode_event
from microsandbox._log_segments import SegmentWriter

QUEUE_LIMIT: Final = 8 << 20
"""Bytes that may wait for the disk; what comes then is lost, and counted."""
RETRY: Final = 0.25
"""Seconds for which nothing is written after the disk has refused something."""

Lines = tuple[Sequence[bytes], Sequence[int]]
"""Lines, and how many bytes of output are in each."""


class LogWriter:
    """Takes lines from the supervisor's one thread. The first lines start the writing thread."""

    def __init__(self, segments: SegmentWriter) -> None:
        self._segments = segments
        self._queue: SimpleQueue[Lines | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        # Each is changed by one thread alone: the bytes that were put, and those that were taken.
        self._put = 0
        self._taken = 0
        self._overflow = 0
        self._lost = 0
        # Why the last write failed; empty when there is nothing missing that has not been said.
        self._reason = ""
        self._retry_at = 0.0
        self._closing = False

    def write(self, lines: Sequence[bytes], sizes: Sequence[int]) -> None:
        """Hand over lines; `sizes` says how many bytes of output are in each."""
        size = sum(map(len, lines))
        if self._put - self._taken + size > QUEUE_LIMIT:
            self._overflow += sum(sizes)
            return
        if self._overflow:
            lines = [_lost_line(self._overflow, "the disk is too slow"), *lines]
            sizes = [0, *sizes]
            self._overflow = 0
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="log", daemon=True)
            self._thread.start()
        self._put += sum(map(len, lines))
        self._queue.put((lines, sizes))

    def close(self, timeout: float) -> bool:
        """Write what waits, for at most `timeout` seconds. Whether all of it was handed to the disk."""
        if self._thread is None:
            return True
        if self._overflow:
            self.write([], [])
        self._closing = True
        self._queue.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            lines, sizes = item
            self._write(lines, sizes)
            self._taken += sum(map(len, lines))
        if self._reason:
            self._write([], [])
        self._segments.close()

    def _write(self, lines: Sequence[bytes], sizes: Sequence[int]) -> None:
        if self._reason:
            # Not at every piece of output: there would be more holes than log.
            if time.monotonic() < self._retry_at and not self._closing:
                self._lost += sum(sizes)
                return
            kept, error = self._segments.append([_lost_line(self._lost, self._reason)])
            if error is not None:
                self._suspend(sum(sizes), error)
                return
            self._lost, self._reason = 0, ""
        kept, error = self._segments.append(lines)
        if error is not None:
            self._suspend(sum(sizes[kept:]), error)

    def _suspend(self, lost: int, error: OSError) -> None:
        self._lost += lost
        self._reason = error.strerror or str(error)
        self._retry_at = time.monotonic() + RETRY


def _lost_line(count: int, reason: str) -> bytes:
    return encode_event(
        time.time_ns(),
        "lost",
        f"{count} bytes of output were not logged: {reason}",
        details={"bytes": count, "reason": reason},
    )
