"""What is being done, on a terminal's last lines; silent elsewhere and when it is quick."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import asyncio

    from microsandbox_oci import Progress

_QUIET_TIME = 0.3
"""Seconds of work before anything is shown."""
_INTERVAL = 0.1
"""Seconds between two updates."""
_BAR = 24
"""Characters of a bar."""


class _Lines:
    """The lines; they are wiped when the context is left."""

    def __init__(self, *, quiet: bool) -> None:
        self._enabled = not quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._began = time.monotonic()
        self._shown = 0.0
        self._height = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._height:
            sys.stderr.write(self._start() + "\x1b[J")
            sys.stderr.flush()
            self._height = 0

    def _due(self) -> bool:
        """Whether it is time to show something."""
        now = time.monotonic()
        if not self._enabled or now - self._began < _QUIET_TIME or now - self._shown < _INTERVAL:
            return False
        self._shown = now
        return True

    def _write(self, lines: Sequence[str]) -> None:
        """Show these lines, at least one, in the place of those before."""
        columns, rows = _size()
        # A line that is broken in two, or has left the screen, could not be wiped.
        fitting = [line[: columns - 1] for line in lines[-(rows - 1) :]]
        sys.stderr.write(self._start() + "\x1b[K\n".join(fitting) + "\x1b[J")
        sys.stderr.flush()
        self._height = len(fitting)

    def _start(self) -> str:
        return "\r" + (f"\x1b[{self._height - 1}A" if self._height > 1 else "")


class LoadProgress(_Lines):
    """A callback for pulls, loads and packs: a line for each layer that is being fetched, and one for all.

    Warnings are printed when the context is left, also where nothing else is shown.
    """

    def __init__(self, *, quiet: bool) -> None:
        super().__init__(quiet=quiet)
        self._name = ""
        self._layers: dict[str, tuple[int, int]] = {}
        self._first: tuple[float, int] | None = None
        self._warnings: list[str] = []

    def __exit__(self, *reason: object) -> None:
        super().__exit__(*reason)
        from microsandbox_cli import report

        for warning in self._warnings:
            report.note(f"warning: {warning}")

    def __call__(self, progress: Progress) -> None:
        """Take note of a step, and show it."""
        if progress.phase == "warning":
            self._warnings.append(progress.subject)
        elif progress.phase == "resolving":
            self._name = progress.subject
        elif progress.phase == "downloading":
            self._layers[progress.subject] = progress.done, progress.total or 0
        elif progress.phase == "converting" and self._layers:
            return  # at the same time as its download
        if self._due():
            self._write(self._downloads() if progress.phase == "downloading" else [_spoken(progress)])

    def _downloads(self) -> list[str]:
        from microsandbox_cli.listing import human_size

        now, arrived = time.monotonic(), sum(done for done, _ in self._layers.values())
        if self._first is None:
            self._first = now, arrived
        since, before = self._first
        lines = []
        for digest, (done, total) in self._layers.items():
            if 0 < done < total:
                bar = ("=" * (done * _BAR // total)).ljust(_BAR)
                identifier = digest.removeprefix("sha256:")[:12]
                lines.append(f"{identifier} [{bar}] {human_size(done)} of {human_size(total)}")
        whole = sum(done >= total for done, total in self._layers.values())
        line = f"{self._name}: {whole} of {len(self._layers)} layers, {human_size(arrived)} of "
        line += human_size(sum(total for _, total in self._layers.values()))
        if now - since > _QUIET_TIME:
            line += f", {human_size(int((arrived - before) / (now - since)))}/s"
        return [*lines[: _size()[1] - 2], line]


class CopyProgress(_Lines):
    """A callback for copies."""

    def __call__(self, passed: int) -> None:
        """Show how many bytes have passed."""
        if self._due():
            from microsandbox_cli.listing import human_size

            speed = human_size(int(passed / (time.monotonic() - self._began)))
            self._write([f"copying: {human_size(passed)}, {speed}/s"])


class StartProgress(_Lines):
    """A callback for the phases of a sandbox's start, in an event loop, which shows how long it takes."""

    _phase = ""
    _timer: asyncio.TimerHandle | None = None

    def __exit__(self, *reason: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().__exit__(*reason)

    def __call__(self, phase: str) -> None:
        """Show this phase from now on, or from when it has taken long enough."""
        self._phase = phase
        if self._enabled and self._timer is None:
            self._show_after(_QUIET_TIME)

    def _show_after(self, seconds: float) -> None:
        import asyncio

        self._timer = asyncio.get_running_loop().call_later(seconds, self._show)

    def _show(self) -> None:
        self._write([f"{self._phase}: {time.monotonic() - self._began:.1f} s"])
        self._show_after(_INTERVAL)


def _spoken(progress: Progress) -> str:
    from microsandbox_cli.listing import human_size

    subject = progress.subject.removeprefix("sha256:")
    line = f"{progress.phase}: {subject if progress.phase == 'resolving' else subject[:20]}"
    if progress.done or progress.total:
        line += f" {human_size(progress.done)}"
    return line + (f" of {human_size(progress.total)}" if progress.total else "")


def _size() -> tuple[int, int]:
    """Columns and rows of the terminal."""
    try:
        columns, rows = os.get_terminal_size(sys.stderr.fileno())
    except OSError:
        columns = rows = 0
    return columns or 80, max(rows or 24, 3)  # 0: a terminal that was never told how large it is
