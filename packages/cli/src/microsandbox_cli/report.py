"""How `msb` ends when something goes wrong: one line, a hint, an exit code."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from microsandbox_cli.text import printable

EXIT_FAILED = 1
"""A listing or bulk command that did not fully succeed."""
EXIT_USAGE = 2
EXIT_TIMEOUT = 124
EXIT_SANDBOX = 125
"""The sandbox itself failed: image, boot, state."""
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127
EXIT_INTERRUPTED = 130

_level = "info"


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Those that end a command in good order."""


def hold_signals() -> None:
    """Let SIGNALS wait until `release_signals`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def release_signals() -> None:
    """Let SIGNALS come, also those that waited."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def set_log_level(level: str) -> None:
    """``error``: no remarks. ``info``: remarks and errors. ``debug``: errors with console and traceback."""
    global _level
    _level = level


def error(message: str, hint: str | None = None) -> None:
    """Print an error, and what to do about it, to stderr."""
    _stderr(f"error: {printable(message)}\n" + (f"hint: {printable(hint)}\n" if hint else ""))


def debug(message: str) -> None:
    """Print a remark that only `--log-level debug` shows."""
    if _level == "debug":
        sys.stderr.write(f"debug: {message}\n")


def note(message: str) -> None:
    """Print a remark to stderr, unless only errors are wanted."""
    if _level != "error":
        _stderr(printable(message, keep="\n") + "\n")


def _stderr(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError):
        pass  # nobody reads stderr any more, and there is no other place to say it


@contextmanager
def guarded() -> Iterator[None]:
    """Turn what is raised inside into the message and exit code that CLI users get."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output is gone, as in `msb ls | head -1`. Python would complain once more
        # when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + 13)
    except OSError as failure:
        if _level == "debug":
            raise
        error(str(failure))
        sys.exit(EXIT_SANDBOX)
    except _known_errors() as failure:
        if _level == "debug":
            console = getattr(failure, "console", "")
            if console:
                note(f"the end of the console:\n{console}")
            raise
        error(str(failure), getattr(failure, "hint", None))
        sys.exit(EXIT_SANDBOX)


def _known_errors() -> tuple[type[Exception], ...]:
    from microsandbox.errors import MicrosandboxError

    return (MicrosandboxError,)
