"""A program in a window of tmux, which keeps the screen as a real terminal emulator does."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.waiting import eventually


class Tmux:
    """A tmux server of its own with one window; a context manager."""

    def __init__(self, socket: Path, command: Sequence[str | Path], environ: Mapping[str, str]) -> None:
        self._tmux = ["tmux", "-S", str(socket), "-f", "/dev/null"]
        self._environ = dict(environ)
        line = shlex.join(str(word) for word in command)
        # The window stays when the program has ended, so that what it left can be looked at.
        options = ["set", "-g", "remain-on-exit", "on", ";", "new-session", "-d", "-x", "80", "-y", "24"]
        self._call("start-server", ";", *options, line)

    def type(self, *keys: str) -> None:
        """Press keys, by tmux's names (`Enter`, `C-c`, `Escape`) or as text."""
        self._call("send-keys", *keys)

    def resize(self, cols: int, rows: int) -> None:
        """Make the window larger or smaller."""
        self._call("resize-window", "-x", str(cols), "-y", str(rows))

    def screen(self) -> str:
        """What the window shows."""
        return self._call("capture-pane", "-p")

    def wait_for(self, text: str, *, within: float = 60) -> str:
        """The screen, as soon as `text` is on it."""

        def look() -> str:
            shown = self.screen()
            return shown if text in shown else ""

        try:
            return eventually(look, within=within, what=f"{text!r} on the screen")
        except AssertionError as failure:
            raise AssertionError(f"{failure}\n{self.screen()}") from None

    def __enter__(self) -> Tmux:
        return self

    def __exit__(self, *_: object) -> None:
        self._call("kill-server")

    def _call(self, *words: str) -> str:
        done = subprocess.run(
            [*self._tmux, *words], env=self._environ, capture_output=True, text=True, check=True, timeout=120
        )
        return done.stdout
