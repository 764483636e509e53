"""Paths on a command line: an empty one is a mistake, a variable that is not set, and not this directory."""

from __future__ import annotations

from pathlib import Path

import typer


def given(text: str) -> str:
    """A path as it was written. Raises `typer.BadParameter` if nothing was."""
    if not text:
        raise typer.BadParameter("the path is empty")
    return text


def path(text: str) -> Path:
    """`given`, of a file of the host."""
    return Path(given(text))
