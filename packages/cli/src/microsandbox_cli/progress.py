"""What a load is doing, on a terminal's last line; silent elsewhere and when it is quick."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from microsandbox_oci import Progress

_QUIET_TIME = 0.3
"""Seconds of work before anything is shown."""
_INTERVAL = 0.1
"""Seconds between two updates."""


class LoadProgress:
    """A callback for loads and packs; the line is wiped when the context is left."""

    def __init__(self, *, quiet: bool) -> None:
        self._enabled = not quiet and sys.stderr.isatty()
        self._began = time.monotonic()
        self._shown = 0.0
        self._width = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()

    def __call__(self, progress: Progress) -> None:
        """Show a step."""
        now = time.monotonic()
        if not self._enabled or now - self._began < _QUIET_TIME or now - self._shown < _INTERVAL:
            return
        self._shown = now
        from microsandbox_cli.listing import human_size

        subject = progress.subject.removeprefix("sha256:")[:20]
        amount = human_size(progress.done)
        if progress.total:
            amount += f" of {human_size(progress.total)}"
        line = f"{progress.phase}: {subject} {amount}"
        sys.stderr.write("\r" + line.ljust(self._width))
        sys.stderr.flush()
        self._width = len(line)
