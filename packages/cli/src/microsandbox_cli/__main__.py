"""Entry point of `msb`: exit codes, errors in one line, nothing heavy before it is needed."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its code."""
    if sys.argv[1:] in (["--version"], ["-V"]):
        # Answered here because everything else has to import the parser first.
        from microsandbox_cli import __version__

        sys.stdout.write(f"msb {__version__}\n")
        sys.exit(0)
    from microsandbox_cli.report import guarded

    with guarded():
        if sys.argv[1:2] in (["run"], ["create"]):
            # A sandbox is wanted: its supervisor starts while the arguments are being understood.
            from microsandbox._launch import prepare

            prepare()
        from microsandbox_cli.app import app

        app(prog_name="msb")


if __name__ == "__main__":
    main()
