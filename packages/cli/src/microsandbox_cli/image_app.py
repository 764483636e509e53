"""The commands of `msb image` and their options. What they do is in `images`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from microsandbox_cli import options as opt
from microsandbox_cli.paths import path

image_app = typer.Typer(
    help="Work with the images in the store.", no_args_is_help=True, rich_markup_mode=None
)


@image_app.command("ls")
def image_ls(quiet: opt.NamesOnly = False, format: opt.FormatOption = opt.Format.TABLE) -> None:
    """List the images in the store.

    Example: msb image ls --format json
    """
    from microsandbox_cli.images import list_images

    list_images(quiet=quiet, as_json=format is opt.Format.JSON)


@image_app.command("verify")
def image_verify(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGE...]", help="All without.", show_default=False, autocompletion=opt.complete_images
        ),
    ] = None,
    remove_damaged: Annotated[
        bool,
        typer.Option("--remove-damaged", help="Remove damaged files: pulling the image makes them again."),
    ] = False,
    quiet: opt.Quiet = False,
) -> None:
    """Compare every byte of images with what was pulled or loaded; exit 1 if something is damaged.

    Example: msb image verify busybox
    """
    from microsandbox_cli.images import verify_images

    verify_images(names or (), remove_damaged=remove_damaged, quiet=quiet)


@image_app.command("history")
def image_history(
    image: Annotated[
        str,
        typer.Argument(
            metavar="IMAGE", help="The image.", show_default=False, autocompletion=opt.complete_images
        ),
    ],
    format: opt.FormatOption = opt.Format.TABLE,
) -> None:
    """Show how an image says it was built, the newest step first.

    Example: msb image history busybox
    """
    from microsandbox_cli.images import show_history

    show_history(image, as_json=format is opt.Format.JSON)


@image_app.command("export")
def image_export(
    image: Annotated[
        str,
        typer.Argument(
            metavar="IMAGE", help="The image.", show_default=False, autocompletion=opt.complete_images
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Instead of standard output.",
            show_default=False,
            parser=path,
        ),
    ] = None,
) -> None:
    """Write an image's root file system as one tar: what a sandbox of it sees, all layers applied.

    Example: msb image export busybox | tar -t
    """
    from microsandbox_cli.images import export

    export(image, output)


@image_app.command("prune")
def image_prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    quiet: opt.NamesOnly = False,
    format: opt.FormatOption = opt.Format.TABLE,
) -> None:
    """Remove images without a name that no sandbox is made from, and layers that no image needs.

    What broken pulls have left goes too.

    Example: msb image prune --dry-run
    """
    from microsandbox_cli.images import prune_images

    prune_images(dry_run=dry_run, quiet=quiet, as_json=format is opt.Format.JSON)


@image_app.command("inspect")
def image_inspect(
    image: Annotated[
        str,
        typer.Argument(
            metavar="IMAGE", help="The image.", show_default=False, autocompletion=opt.complete_images
        ),
    ],
    format: opt.JsonOption = opt.JsonFormat.JSON,
) -> None:
    """Show an image's configuration and layers as JSON.

    Example: msb image inspect busybox
    """
    from microsandbox_cli.images import inspect_image

    inspect_image(image)


@image_app.command("rm")
def image_rm(
    names: opt.ImagesArgument,
) -> None:
    """Remove images that no sandbox uses.

    Example: msb image rm busybox
    """
    from microsandbox_cli.images import remove_images

    remove_images(names)
