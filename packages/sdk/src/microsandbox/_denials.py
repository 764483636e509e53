"""The time of a command, for what its sandbox's network denied in it. Imported by every command, so small."""

from __future__ import annotations

import os
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from microsandbox.audit import AuditRecord


class Mark(NamedTuple):
    """A place in a file that only grows: the file, by its inode, and an offset."""

    inode: int
    offset: int


def mark(path: Path) -> Mark | None:
    """The end of a file; None if there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116 - half the time of Path.stat
    except OSError:
        return None
    return Mark(found.st_ino, found.st_size)


class Window:
    """Begins when it is made."""

    def __init__(self, log: Path) -> None:
        """`log`: the record of the sandbox's network decisions, see `audit`."""
        self._log = log
        self._begin = mark(log)
        self._time = time()

    @property
    def is_empty(self) -> bool:
        """Whether nothing was decided since it began: one look at the file."""
        return mark(self._log) == self._begin

    def denied(self) -> tuple[AuditRecord, ...]:
        """What was denied since it began. Blocks for the disk. Raises `StateError`."""
        from microsandbox.audit import denied_since

        # Records have whole milliseconds. What is written late was decided before.
        return denied_since(self._log, self._begin, int(self._time * 1000) / 1000)
