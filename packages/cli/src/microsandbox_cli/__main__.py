"""Entry point of `msb`: exit codes, errors in one line, nothing heavy before it is needed."""

from __future__ import annotations

import gc
import sys

_EXIT_INTERRUPTED = 130  # as in `report`


def main() -> None:
    """Run the command line and exit with its code."""
    if sys.argv[1:] in (["--version"], ["-V"]):
        # Answered here because everything else has to import the parser first.
        from microsandbox_cli import __version__

        sys.stdout.write(f"msb {__version__}\n")
        sys.exit(0)
    try:
        if sys.argv[1:2] in (["run"], ["create"]):
            # A sandbox is wanted: its supervisor starts while the arguments are being understood.
            from microsandbox._spawn import prepare

            prepare()
            # Until the event loop runs: nothing that is imported is garbage, and looking takes a twelfth of
            # the time.
            gc.disable()
        from microsandbox_cli.report import guarded

        with guarded():
            _run(sys.argv[1:])
    except KeyboardInterrupt:
        # Outside of what guards the rest: as early as that.
        sys.exit(_EXIT_INTERRUPTED)


def _run(arguments: list[str]) -> None:
    from microsandbox_cli.quick import understand

    meant = understand(arguments)
    if meant is not None:
        meant()
    else:
        from microsandbox_cli.app import app

        app(prog_name="msb")


if __name__ == "__main__":
    main()
