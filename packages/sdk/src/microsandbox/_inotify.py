"""Waiting for changes of files: inotify(7), for which Python has no module."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

MODIFY, MOVED_TO, CREATE = 0x2, 0x80, 0x100
"""A file is written to; a file gets this name; a file is made."""


class Watch:
    """A descriptor that can be read when something has happened to a file, or to one in a directory."""

    def __init__(self) -> None:
        """Raises `OSError`: the user may have used up the watches that the kernel allows."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor = self._checked(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def add(self, path: Path, events: int) -> None:
        """Watch this too, unless it is watched already or is not there. Raises `OSError`."""
        try:
            self._checked(self._libc.inotify_add_watch(self.descriptor, os.fsencode(path), events))
        except FileNotFoundError:
            pass  # the directory it will be in is watched, too

    def clear(self) -> None:
        """Forget what has changed so far."""
        try:
            while os.read(self.descriptor, 1 << 16):
                pass
        except BlockingIOError:
            pass  # that was all

    def close(self) -> None:
        """Let go of the descriptor."""
        os.close(self.descriptor)

    def _checked(self, result: int) -> int:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"inotify: {os.strerror(number)}")
        return result
