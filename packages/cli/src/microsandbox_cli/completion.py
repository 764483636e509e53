"""Completion in the shell: the script, and the names it offers."""

from __future__ import annotations

import io
import os
import sys
from contextlib import redirect_stdout

from microsandbox_core import env


def print_script(shell: str) -> None:
    """Print the script for ``bash``, ``zsh`` or ``fish``."""
    from microsandbox_cli.app import app

    # Any program made with Typer answers this variable, and the script asks it the same way.
    os.environ["_MSB_COMPLETE"] = f"source_{shell}"
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            app(prog_name="msb")
    except SystemExit as end:
        if end.code:
            raise
    # zsh looks for `#compdef` in the first line of a file; Typer's script begins with an empty one.
    sys.stdout.write(printed.getvalue().strip() + "\n")


def sandbox_names() -> list[str]:
    """The names of the sandboxes; none when they cannot be read: a shell has no place for errors."""
    from microsandbox._state import State
    from microsandbox.errors import MicrosandboxError

    state = State(env.home())
    try:
        return [record.name for record in state.all()] if state.path.exists() else []
    except MicrosandboxError:
        return []
    finally:
        state.close()


def image_names() -> list[str]:
    """The names of the images; none when they cannot be read."""
    from microsandbox.errors import MicrosandboxError
    from microsandbox.images import list_all

    try:
        return [image.reference.familiar for image in list_all(env.home()) if image.reference is not None]
    except MicrosandboxError:
        return []
