"""Completion in the shell: the script of each, and the names it asks for."""

from __future__ import annotations

import sys
from collections.abc import Callable

from microsandbox_core import env

from microsandbox_cli import report

_PLACES = {
    "bash": "msb completion bash > ~/.local/share/bash-completion/completions/msb",
    "zsh": "msb completion zsh > DIR/_msb, for a DIR in $fpath; in .zshrc: autoload -U compinit && compinit",
    "fish": "msb completion fish > ~/.config/fish/completions/msb.fish",
}
"""Where each shell looks for the script by itself."""


def print_script(shell: str) -> None:
    """Print the script for ``bash``, ``zsh`` or ``fish``; to a person, also how to install it."""
    from microsandbox_cli import completion_bash, completion_fish, completion_zsh
    from microsandbox_cli.reference import Command, tree

    script: Callable[[Command], str] = {
        "bash": completion_bash.script,
        "zsh": completion_zsh.script,
        "fish": completion_fish.script,
    }[shell]
    sys.stdout.write(script(tree()))
    if sys.stdout.isatty():
        report.note(f"note: to install it: {_PLACES[shell]}")


def print_names(kind: str) -> None:
    """Print the names of one kind, one a line; none when they cannot be read: a shell has no place for
    errors. Scripts call this as `msb __names KIND` at every press of the key, so it imports little."""
    from microsandbox.errors import MicrosandboxError

    try:
        ways = {"images": _images, "commands": _commands, "volumes": _volumes}
        found = ways[kind]() if kind in ways else _sandboxes(kind)
    except (MicrosandboxError, OSError):
        return
    sys.stdout.write("".join(f"{name}\n" for name in found if name.isprintable()))


def _images() -> list[str]:
    # Names alone: what the images are made of takes ten times as long to read.
    from microsandbox_oci import ImageStore

    return [reference.familiar for reference in ImageStore(env.home() / "cache").references()]


def _commands() -> list[str]:
    from microsandbox_cli.installed import installed

    return [one.name for one in installed()]


def _volumes() -> list[str]:
    from microsandbox._volumes import entries

    return [path.name for path in entries(env.home())]


def _sandboxes(kind: str) -> list[str]:
    from microsandbox.info import Status, list_sandboxes

    return [
        info.name
        for info in list_sandboxes(env.home())
        if kind == "sandboxes"
        or (info.status is Status.RUNNING if kind == "running" else not info.status.active)
    ]
