"""How `msb` ends when something goes wrong: one line, a hint, an exit code."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from microsandbox_cli.text import printable

EXIT_FAILED = 1
"""A listing or bulk command that did not fully succeed."""
EXIT_USAGE = 2
"""An option, or the value of one, that is none."""
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


_CONSOLE_LINES = 10
_CONSOLE_WIDTH = 200  # characters of each of them


def failure(failed: Exception) -> None:
    """Print one of our errors, its hint, and what the console had at its end if a machine did not start."""
    error(str(failed), getattr(failed, "hint", None))
    lines = str(getattr(failed, "console", "")).splitlines()
    # A panic is followed by registers and a call trace: what led to it is before.
    panic = next((number for number, line in enumerate(lines) if "Kernel panic" in line), len(lines))
    begin = max(0, min(panic - _CONSOLE_LINES // 2, len(lines) - _CONSOLE_LINES))
    for line in lines[begin : begin + _CONSOLE_LINES]:
        note(f"note: console: {line[:_CONSOLE_WIDTH]}")


def of_system(failed: OSError) -> tuple[str, str]:
    """A failure of the system in words, and a hint."""
    what = failed.strerror or str(failed)
    if failed.errno in (errno.EMFILE, errno.ENFILE):
        return what, "raise the limit of open files: ulimit -n 4096"
    where = "" if failed.filename is None else f"{printable(os.fsdecode(failed.filename))}: "
    return where + what, "`msb doctor` checks this machine and MSB_HOME"


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
    except RuntimeError as failed:
        # So Python 3.11 says it when the interrupt comes while a class is being made, as an import does.
        if not isinstance(failed.__cause__, KeyboardInterrupt):
            raise
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output is gone, as in `msb ls | head -1`. Python would complain once more
        # when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + 13)
    except OSError as failed:
        _trace()
        error(*of_system(failed))
        sys.exit(EXIT_INTERRUPTED if _was_interrupted(failed) else EXIT_SANDBOX)
    except _known_errors() as failed:
        if _level == "debug":
            console = getattr(failed, "console", "")
            if console:
                note(f"the end of the console:\n{console}")
        _trace()
        failure(failed)
        sys.exit(EXIT_INTERRUPTED if _was_interrupted(failed) else _code_of(failed))


def _was_interrupted(failed: BaseException | None) -> bool:
    """Whether it went wrong because of Ctrl-C, or when something was given up after that."""
    while failed is not None and not isinstance(failed, KeyboardInterrupt):
        failed = failed.__cause__ or failed.__context__
    return failed is not None


def _code_of(failed: Exception) -> int:
    """2 for what was asked for and cannot be, whatever there is on this machine; 125 for all else."""
    from microsandbox.errors import ConfigError, NetworkPolicyError

    codes = (ConfigError.code, NetworkPolicyError.code)
    usage = isinstance(failed, ConfigError) and failed.code in codes
    return EXIT_USAGE if usage else EXIT_SANDBOX


def _trace() -> None:
    """Show where the exception that is being handled came from, if that is wanted."""
    if _level == "debug":
        from traceback import format_exc

        _stderr(format_exc())


def _known_errors() -> tuple[type[Exception], ...]:
    from microsandbox.errors import MicrosandboxError

    return (MicrosandboxError,)
