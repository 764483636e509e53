"""Ending a pull from another thread than the one that waits for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock


class Abort:
    """Given to `ImageStore.pull`; when it is called, that pull ends soon, with whatever error."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._called = False
        self._end: Callable[[], None] | None = None

    def __call__(self) -> None:
        """End the pull that goes on, or the next one when it begins."""
        with self._lock:
            self._called = True
            if self._end is not None:
                self._end()

    @contextmanager
    def ending(self, end: Callable[[], None]) -> Iterator[None]:
        """Have `end` called if need be during the block."""
        with self._lock:
            self._end = end
            if self._called:
                end()
        try:
            yield
        finally:
            with self._lock:
                self._end = None
