"""`msb top`: what the running sandboxes use, on the whole terminal, again and again.

The screen of before is back, and the terminal as it was, however this ends but by SIGKILL.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import termios
from collections.abc import Callable, Sequence
from tty import setcbreak
from types import FrameType

from microsandbox._config import parse_duration
from microsandbox.metrics import Meter, SandboxMetrics
from microsandbox_core import env

from microsandbox_cli import report
from microsandbox_cli.attached import run_in_loop
from microsandbox_cli.listing import human_size
from microsandbox_cli.metrics import HEADER, ONCE, row
from microsandbox_cli.text import printable

# Of xterm and all that follow it: ECMA-48, and the alternate screen of ctlseqs.
_ENTER = "\x1b[?1049h\x1b[?25l"
_LEAVE = "\x1b[?25h\x1b[?1049l"
_HOME = "\x1b[H"
_END_OF_LINE = "\x1b[K"
_END_OF_SCREEN = "\x1b[J"

# Those that end a process and that a command does not handle already (`report.SIGNALS`).
_DEADLY = (signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)

_KEYS = "q: leave  c: by CPU  m: by memory  n: by name"

ORDERS: dict[str, Callable[[SandboxMetrics], tuple[float, str]]] = {
    "c": lambda metrics: (-(metrics.cpu_percent or 0.0), metrics.name),
    "m": lambda metrics: (-(metrics.host_memory or 0), metrics.name),
    "n": lambda metrics: (0, metrics.name),
}
"""Keys that sort, and by what."""


def watch(interval: str) -> None:
    """Until q or Ctrl-C. Needs a terminal."""
    with report.guarded():
        seconds = parse_duration(interval, "--interval")
    if not (os.isatty(0) and os.isatty(1)):
        report.error(
            "msb top needs a terminal", "msb metrics, with --watch or without, prints into files and pipes"
        )
        sys.exit(report.EXIT_USAGE)
    run_in_loop(lambda: _watch(seconds))


async def _watch(seconds: float) -> int:
    loop = asyncio.get_running_loop()
    changed = asyncio.Event()
    found: list[SandboxMetrics] = []
    order, left = "c", False

    async def measure() -> None:
        nonlocal found
        meter = Meter(env.home())
        found = await meter.measure_all(guests=False)
        # Shares of the processor need two measurements; the first come soon.
        pause = min(ONCE, seconds)
        while True:
            changed.set()
            await asyncio.sleep(pause)
            found = await meter.measure_all()
            pause = seconds

    def on_key() -> None:
        nonlocal order, left
        try:
            keys = os.read(0, 64).decode(errors="replace")
        except OSError:
            keys = ""  # it has hung up
        left = left or not keys or "q" in keys
        order = next((key for key in reversed(keys) if key in ORDERS), order)
        changed.set()

    with _Screen() as screen:

        def on_continue() -> None:
            screen.enter()
            changed.set()

        loop.add_reader(0, on_key)
        loop.add_signal_handler(signal.SIGWINCH, changed.set)
        loop.add_signal_handler(signal.SIGTSTP, screen.suspend)
        loop.add_signal_handler(signal.SIGCONT, on_continue)
        measuring = asyncio.ensure_future(measure())
        measuring.add_done_callback(lambda _: changed.set())
        try:
            while not left and not measuring.done():
                await changed.wait()
                changed.clear()
                screen.show(picture(found, order, *os.get_terminal_size(1)))
            if measuring.done():
                measuring.result()
        finally:
            measuring.cancel()
    return 0


def picture(found: Sequence[SandboxMetrics], order: str, cols: int, rows: int) -> list[str]:
    """The lines of a screen of this size: what all use together, then as many sandboxes as fit."""
    ordered = sorted(found, key=ORDERS[order])
    cells = [HEADER, *(row(metrics) for metrics in ordered)]
    shown = [[printable(cell) for cell in line] for line in cells]
    widths = [max(len(line[column]) for line in shown) for column in range(len(HEADER))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in shown]
    cpu = sum(metrics.cpu_percent or 0.0 for metrics in found)
    memory = sum(metrics.host_memory or 0 for metrics in found)
    total = f"{len(found)} running, CPU {cpu:.1f} %, memory {human_size(memory)}"
    room = max(0, rows - 3)  # the total, the header, the keys
    more = len(found) - room
    last = _KEYS + (f"  ({more} more do not fit)" if more > 0 else "")
    lines = [total, table[0], *table[1 : 1 + room], last]
    return [line[:cols].rstrip() for line in lines[:rows]]


class _Screen:
    """The alternate screen of the terminal, and keys without echo or Enter."""

    def __init__(self) -> None:
        self._before = termios.tcgetattr(0)

    def enter(self) -> None:
        setcbreak(0, termios.TCSANOW)
        _write(_ENTER)

    def leave(self) -> None:
        _write(_LEAVE)
        try:
            termios.tcsetattr(0, termios.TCSANOW, self._before)
        except termios.error:
            pass  # it has hung up

    def show(self, lines: Sequence[str]) -> None:
        body = "\r\n".join(line + _END_OF_LINE for line in lines)
        _write(_HOME + body + _END_OF_SCREEN)

    def suspend(self) -> None:
        """What Ctrl-Z does, with the terminal as it was meanwhile."""
        self.leave()
        os.kill(os.getpid(), signal.SIGSTOP)

    def __enter__(self) -> _Screen:
        for number in _DEADLY:
            signal.signal(number, self._die)
        self.enter()
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()
        for number in _DEADLY:
            signal.signal(number, signal.SIG_DFL)

    def _die(self, number: int, _frame: FrameType | None) -> None:
        self.leave()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError:
        pass  # nobody looks any more; a signal says so
