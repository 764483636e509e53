"""The commands of `msb volume` and their options. What they do is in `volumes`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

volume_app = typer.Typer(
    help="Volumes: directories and disks that outlive sandboxes.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


class VolumeSort(StrEnum):
    """What a volume is made of."""

    DIR = "dir"
    DISK = "disk"


class VolumeFormat(StrEnum):
    """How a listing is printed."""

    TABLE = "table"
    JSON = "json"


def _volumes(incomplete: str) -> list[str]:
    return ["@volumes"]


Names = Annotated[
    list[str],
    typer.Argument(metavar="NAME...", help="The volumes.", show_default=False, autocompletion=_volumes),
]


@volume_app.command("create")
def volume_create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name.", show_default=False)],
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="SIZE", help="Make it a disk of this size, with an ext4: 5G."),
    ] = None,
    kind: Annotated[
        VolumeSort | None,
        typer.Option("--kind", help="A directory or a disk. Default: a disk with --size, else a directory."),
    ] = None,
    quota: Annotated[
        str | None,
        typer.Option("--quota", metavar="SIZE", help="What sandboxes may write to a directory: 5G."),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="A label; repeatable.")
    ] = None,
) -> None:
    """Create a volume: a directory that sandboxes share, or a disk that one of them writes to.

    A disk can hold no more than its size, and takes as much of the host's as is written to it.

    Example: msb volume create data --size 5G
    """
    from microsandbox_cli.volumes import create

    create(name, size=size, quota=quota, kind=None if kind is None else kind.value, label=label or [])


@volume_app.command("ls")
def volume_ls(
    label: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="KEY[=VALUE]", help="Those with this label; repeatable."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print names only.")] = False,
    format: Annotated[VolumeFormat, typer.Option("--format", help="How to print it.")] = VolumeFormat.TABLE,
) -> None:
    """List volumes, and which sandboxes use them. SANDBOX:/PATH is one that goes with its sandbox.

    Example: msb volume ls --format json
    """
    from microsandbox_cli.volumes import list_all

    list_all(label=label or [], quiet=quiet, as_json=format is VolumeFormat.JSON)


@volume_app.command("inspect")
def volume_inspect(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="The volume.", show_default=False, autocompletion=_volumes),
    ],
) -> None:
    """Show a volume and what uses it as JSON.

    Example: msb volume inspect data
    """
    from microsandbox_cli.volumes import inspect

    inspect(name)


@volume_app.command("rm")
def volume_rm(
    names: Names,
    force: Annotated[bool, typer.Option("--force", "-f", help="Those of stopped sandboxes, too.")] = False,
) -> None:
    """Remove volumes that no sandbox uses, with all that is in them.

    Example: msb volume rm data
    """
    from microsandbox_cli.volumes import remove

    remove(names, force=force)
