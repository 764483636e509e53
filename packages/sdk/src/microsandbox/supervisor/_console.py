"""The guest's console: its end kept in memory for error messages, its start and end on disk."""

from __future__ import annotations

import os
import re
from collections import deque
from pathlib import Path

TAIL = 16 << 10
"""Bytes kept in memory."""
FILE_LIMIT = 1 << 20
"""Bytes after which the log starts over, once kept as `.1`: a guest cannot fill the host's disk."""

_LAST_LINE = 200  # bytes in which a kernel's last line is looked for

_HALTED = re.compile(
    rb"(?:^|\n)(?:\[ *[0-9.]+\] )?reboot: (?:System halted|Power down|Power off not available: [^\n]*)\s*\Z"
)
"""The last that a kernel prints which halts its processors."""


class Console:
    """Takes what the kernel and the VMM print."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self._written = 0
        self._tail: deque[bytes] = deque()
        self._held = 0

    def feed(self, data: bytes) -> None:
        """Keep what was printed. A log that cannot be written is given up silently: the sandbox
        does not depend on it, and its end stays in memory."""
        self._tail.append(data)
        self._held += len(data)
        while self._held - len(self._tail[0]) >= TAIL:
            self._held -= len(self._tail.popleft())
        try:
            if self._file is None or self._written + len(data) > FILE_LIMIT:
                self._rotate()
            assert self._file is not None
            self._written += os.write(self._file, data)
        except OSError:
            self._written = FILE_LIMIT  # the next chunk tries a new file

    def tail(self) -> str:
        """The last 16 KiB as text: what is not UTF-8 replaced, control characters left out."""
        text = b"".join(self._tail)[-TAIL:].decode(errors="replace")
        return "".join(c for c in text if c.isprintable() or c in "\n\t").strip()

    def says_halted(self) -> bool:
        """Whether the last line is that of a kernel that halts. Others in the guest may print it as well."""
        end = b""
        for data in reversed(self._tail):
            end = data[-_LAST_LINE:] + end
            if len(end) >= _LAST_LINE:
                break
        return _HALTED.search(end[-_LAST_LINE:]) is not None

    def _rotate(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
            self._path.replace(self._path.with_name(self._path.name + ".1"))
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._written = 0
