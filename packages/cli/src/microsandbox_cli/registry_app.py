"""The commands of `msb registry` and their options. What they do is in `registry`."""

from __future__ import annotations

from typing import Annotated

import typer

from microsandbox_cli import options as opt

registry_app = typer.Typer(
    help="Log in to image registries, and look into them.", no_args_is_help=True, rich_markup_mode=None
)


@registry_app.command("login")
def registry_login(
    registry: opt.RegistryArgument,
    username: Annotated[
        str | None,
        typer.Option("--username", "-u", metavar="NAME", help="Who you are there.", show_default=False),
    ] = None,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password or token from standard input.")
    ] = False,
    insecure: opt.InsecureOption = False,
) -> None:
    """Check a user name and password with a registry and keep them.

    They go to the operating system's keyring if the Python package keyring is installed and finds one,
    else to a file that only this user can read.

    Example: msb registry login registry.example --username me
    """
    from microsandbox_cli.registry import login

    login(registry, username=username, password_stdin=password_stdin, insecure=insecure)


@registry_app.command("logout")
def registry_logout(
    names: Annotated[
        list[str], typer.Argument(metavar="REGISTRY...", help="The registries.", show_default=False)
    ],
) -> None:
    """Forget what `msb registry login` has kept.

    Example: msb registry logout registry.example
    """
    from microsandbox_cli.registry import logout

    logout(names)


@registry_app.command("ls")
def registry_ls(quiet: opt.NamesOnly = False, format: opt.FormatOption = opt.Format.TABLE) -> None:
    """List the registries that were logged in to.

    Example: msb registry ls
    """
    from microsandbox_cli.registry import list_logins

    list_logins(quiet=quiet, as_json=format is opt.Format.JSON)


@registry_app.command("tags")
def registry_tags(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="A repository.", show_default=False)],
    format: opt.FormatOption = opt.Format.TABLE,
) -> None:
    """List the tags that a repository has in its registry.

    Example: msb registry tags registry.example/team/app
    """
    from microsandbox_cli.registry import list_tags

    list_tags(image, as_json=format is opt.Format.JSON)
