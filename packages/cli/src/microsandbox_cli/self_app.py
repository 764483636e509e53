"""The commands of `msb self` and their options. What they do is in `self_commands`."""

from __future__ import annotations

from typing import Annotated

import typer

self_app = typer.Typer(help="Update or remove msb itself.", no_args_is_help=True, rich_markup_mode=None)


@self_app.command("update")
def self_update(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command, run nothing.")] = False,
) -> None:
    """Update msb the way it was installed (uv, pip, pipx), or say how where that is for others to do.

    Example: msb self update --dry-run
    """
    from microsandbox_cli.self_commands import update

    update(dry_run=dry_run)


@self_app.command("uninstall")
def self_uninstall(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    keep_data: Annotated[
        bool, typer.Option("--keep-data", help="Leave sandboxes, images and commands where they are.")
    ] = False,
) -> None:
    """Remove msb: the commands it installed, $MSB_HOME with all sandboxes and images, and the program.

    Says what that is and how large, and asks. Refuses while sandboxes run.

    Example: msb self uninstall --keep-data
    """
    from microsandbox_cli.self_commands import uninstall

    uninstall(yes=yes, keep_data=keep_data)
