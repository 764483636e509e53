"""Entry point of `msb`: exit codes, errors in one line, nothing heavy before it is needed."""

from __future__ import annotations

import gc
import os
import sys

_EXIT_INTERRUPTED = 130  # as in `report`
_EXIT_UNREAD = 128 + 13  # what a shell says of a program that SIGPIPE has killed


def main() -> None:
    """Run the command line and exit with its code; 141 if nobody reads what it prints."""
    try:
        _main()
    except SystemExit:
        _flush()
        raise
    except BrokenPipeError:
        _end_unread()
    _flush()


def _flush() -> None:
    """Write what a short output has left in the buffer: at the interpreter's exit it would be too late to
    say that nobody reads it."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _end_unread()
    except (OSError, ValueError, AttributeError):
        pass  # a full disk, or no stdout at all: the interpreter says so itself


def _end_unread() -> None:
    # Not sys.exit(): the interpreter would try to write the rest once more, and complain.
    os._exit(_EXIT_UNREAD)


def _main() -> None:
    if sys.argv[1:] in (["--version"], ["-V"]):
        # Answered here because everything else has to import the parser first.
        from microsandbox_cli import __version__

        sys.stdout.write(f"msb {__version__}\n")
        sys.exit(0)
    try:
        if sys.argv[1:2] in (["run"], ["create"]):
            # A sandbox is wanted: its supervisor starts while the arguments are being understood.
            from microsandbox._slim import import_pathlib
            from microsandbox._spawn import prepare

            prepare()
            import_pathlib()
            # Until the event loop runs: nothing that is imported is garbage, and looking takes a twelfth of
            # the time.
            gc.disable()
        elif sys.argv[1:2] in (["pull"], ["load"]):
            gc.set_threshold(20_000)  # for the same reason
        from microsandbox_cli.report import guarded

        with guarded():
            _run(sys.argv[1:])
    except KeyboardInterrupt:
        # Outside of what guards the rest: as early as that.
        sys.exit(_EXIT_INTERRUPTED)
    except RuntimeError as error:
        # A class that was being made, which Python 3.11 says in this way.
        if not isinstance(error.__cause__, KeyboardInterrupt):
            raise
        sys.exit(_EXIT_INTERRUPTED)


def _run(arguments: list[str]) -> None:
    from microsandbox_cli.quick import understand

    meant = understand(arguments)
    if meant is not None:
        meant()
    else:
        from microsandbox_cli.app import app
        from microsandbox_cli.usage import parse_and_run

        parse_and_run(app)


if __name__ == "__main__":
    main()
