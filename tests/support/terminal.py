"""A program at a terminal of its own, as a user sits before it."""

from __future__ import annotations

import fcntl
import os
import pty
import subprocess
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.msb import Done
from tests.support.process import Process
from tests.support.waiting import readable

Attributes = list[object]


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

    def finish(self, *, within: float = 60) -> Done:
        """Wait for the program's end."""
        code = self._child.wait(within)
        shown = self._read
        while _has_input(self._ours):
            shown += os.read(self._ours, 65536)
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


def _has_input(descriptor: int) -> bool:
    import select

    return bool(select.select([descriptor], [], [], 0)[0])
