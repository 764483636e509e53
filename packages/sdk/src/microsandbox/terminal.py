"""The terminal that this process was started at: its size, its raw mode, the keys that leave a command."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from tty import setraw
from types import FrameType

from microsandbox.errors import ConfigError
from microsandbox.execution import ExecHandle, Terminal

DETACH_KEYS = "ctrl-p,ctrl-q"
"""The default of `--detach-keys`, as Docker has it."""

_LOOK_INTERVAL = 0.25
"""Seconds between looks at the size of the terminal, where nothing tells of a change."""

# Those that end a process and that a command does not handle already (`report.SIGNALS`).
_DEADLY = (signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)


def here() -> Terminal:
    """The terminal of this process: TERM, and the size of the first of its descriptors that is one."""
    return Terminal(*_size(), os.environ.get("TERM") or "xterm")


def _size() -> tuple[int, int]:
    """Rows and columns; 24 and 80 where there is no terminal, or one that does not know."""
    for descriptor in (1, 0, 2):
        try:
            cols, rows = os.get_terminal_size(descriptor)
        except OSError:
            continue
        if rows and cols:
            return rows, cols
    return 24, 80


@contextmanager
def joined(handle: ExecHandle, opened: Terminal, *, keyboard: bool) -> Iterator[None]:
    """Let the command's terminal, which was `opened` so, have the size of ours, and with `keyboard` every key
    that is pressed. Ours is as before afterwards, however that comes about.

    Signals reach only the main thread: on another one the size is looked at now and then.
    """
    if threading.current_thread() is not threading.main_thread():
        with _joined_aside(handle, opened, keyboard=keyboard):
            yield
        return
    loop = asyncio.get_running_loop()
    raw = _Raw() if keyboard and os.isatty(0) else None

    def on_resize() -> None:
        handle.resize(*_size())

    def on_continue() -> None:
        # Stopped from outside and continued: the shell has set the terminal for itself meanwhile.
        if raw is not None:
            raw.enter()
        on_resize()

    try:
        if raw is not None:
            raw.enter()
            raw.guard()
        loop.add_signal_handler(signal.SIGWINCH, on_resize)
        loop.add_signal_handler(signal.SIGCONT, on_continue)
        if _size() != (opened.rows, opened.cols):
            on_resize()  # it has changed before anybody listened
        yield
    finally:
        if raw is not None:
            raw.leave()
        loop.remove_signal_handler(signal.SIGWINCH)
        loop.remove_signal_handler(signal.SIGCONT)


@contextmanager
def _joined_aside(handle: ExecHandle, opened: Terminal, *, keyboard: bool) -> Iterator[None]:
    raw = _Raw() if keyboard and os.isatty(0) else None

    async def watch() -> None:
        size = (opened.rows, opened.cols)
        while True:
            if _size() != size:
                size = _size()
                handle.resize(*size)
            await asyncio.sleep(_LOOK_INTERVAL)

    watching = asyncio.create_task(watch())
    try:
        if raw is not None:
            raw.enter()
        yield
    finally:
        watching.cancel()
        if raw is not None:
            raw.leave()


class _Raw:
    """Raw mode of standard input: keys are bytes, Ctrl-C among them. What was typed before is kept."""

    def __init__(self) -> None:
        self._before = termios.tcgetattr(0)
        self._guarded = False

    def enter(self) -> None:
        setraw(0, termios.TCSANOW)

    def guard(self) -> None:
        """Leave it also where a signal ends this process."""
        for number in _DEADLY:
            signal.signal(number, self._die)
        self._guarded = True

    def leave(self) -> None:
        try:
            # Not later: output may be stopped, and then nothing is ever written out.
            termios.tcsetattr(0, termios.TCSANOW, self._before)
        except termios.error:
            pass  # it has hung up
        if self._guarded:
            for number in _DEADLY:
                signal.signal(number, signal.SIG_DFL)

    def _die(self, number: int, _frame: FrameType | None) -> None:
        self.leave()
        os.kill(os.getpid(), number)


class DetachKeys:
    """Finds a sequence of keys among those that are pressed."""

    def __init__(self, sequence: bytes) -> None:
        self._sequence = sequence
        self._held = b""

    @classmethod
    def parse(cls, text: str, what: str = "--detach-keys") -> DetachKeys | None:
        """Reads `ctrl-p,ctrl-q`: characters, or `ctrl-` with a letter or one of ``@[\\]^_``.

        None if there are none. Raises `ConfigError`, which says `what` they were for.
        """
        return cls(bytes(_key(key, text, what) for key in text.split(","))) if text else None

    def take(self, data: bytes) -> tuple[bytes, bool]:
        """What of `data`, and of what was held back before, is for the command; and whether the sequence is
        complete, behind which nothing is. The beginning of one is held back until the next key."""
        data = self._held + data
        self._held = b""
        found = data.find(self._sequence)
        if found >= 0:
            return data[:found], True
        for length in range(min(len(self._sequence) - 1, len(data)), 0, -1):
            if data.endswith(self._sequence[:length]):
                self._held = data[-length:]
                return data[:-length], False
        return data, False


def _key(key: str, text: str, what: str) -> int:
    if len(key) == 1 and key.isascii():
        return ord(key)
    if found := re.fullmatch(r"ctrl-([a-zA-Z@\[\\\]^_])", key):
        return ord(found[1].upper()) & 0x1F
    raise ConfigError(
        f"{what}: {text!r} is not a sequence of keys",
        hint="use characters and ctrl-LETTER with commas between them, as in ctrl-p,ctrl-q; '' for none",
    )
