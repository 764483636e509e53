"""A program at a terminal of its own, as a user sits before it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.msb import Done
from tests.support.process import Process
from tests.support.waiting import readable

Attributes = list[object]

_END = b"\0what comes after the program's end\0"


class Terminal:
    """A pseudo-terminal and the foreground program on it; a context manager."""

    def __init__(self, command: Sequence[str | Path], environ: Mapping[str, str]) -> None:
        self._ours, self._theirs = pty.openpty()
        self.before = self.attributes()
        self._read = b""
        # Session leader with this terminal: what is typed reaches it as it reaches a shell's child.
        self._child = subprocess.Popen(
            command,
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            env=dict(environ),
            start_new_session=True,
            preexec_fn=self._take,
        )

    @property
    def process(self) -> Process:
        """The program."""
        return Process(self._child.pid)

    def attributes(self) -> Attributes:
        """How the terminal is set: modes, speeds, control characters."""
        return list(termios.tcgetattr(self._theirs))

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._ours, keys)

    def read_until(self, text: bytes, *, within: float = 60) -> bytes:
        """Everything that was shown until `text`, which must come."""
        while text not in self._read:
            readable(self._ours, within=within, what=f"{text!r} on the terminal after {self._read!r}")
            self._read += os.read(self._ours, 65536)
        return self._read

    def expect(self, text: bytes, *, within: float = 60) -> bytes:
        """What was shown up to and with `text`, which must come; the next call looks behind it."""
        end = self.read_until(text, within=within).index(text) + len(text)
        shown, self._read = self._read[:end], self._read[end:]
        return shown

    def resize(self, rows: int, cols: int) -> None:
        """Drag the window's corner."""
        termios.tcsetwinsize(self._theirs, (rows, cols))

    def finish(self, *, within: float = 120) -> Done:
        """Read what the program shows until it has ended."""
        deadline = time.monotonic() + within
        if self._child.poll() is None:
            ended = os.pidfd_open(self._child.pid)
            try:
                # A program that shows more than a terminal holds does not end unless it is read.
                while ended not in (ready := self._ready(self._ours, ended, until=deadline)):
                    assert ready, f"not within {within} s: the program's end, after {self._read!r}"
                    self._read += os.read(self._ours, 65536)
            finally:
                os.close(ended)
        code = self._child.wait()
        # What was written last is on its way through the kernel: it is all here when what we write is.
        while self._ready(self._ours, until=0):
            self._read += os.read(self._ours, 65536)
        os.write(self._theirs, _END)
        shown = self.read_until(_END).removesuffix(_END)
        return Done(128 - code if code < 0 else code, shown, b"")

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self._child.poll() is None:
            self._child.kill()
        self._child.wait()
        os.close(self._ours)
        os.close(self._theirs)

    def _take(self) -> None:
        fcntl.ioctl(self._theirs, termios.TIOCSCTTY, 0)

    @staticmethod
    def _ready(*descriptors: int, until: float) -> list[int]:
        return select.select(descriptors, [], [], max(0, until - time.monotonic()))[0]
