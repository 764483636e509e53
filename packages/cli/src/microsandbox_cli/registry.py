"""`msb pull`, and `msb registry login`, `logout`, `ls`."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Sequence

from microsandbox import registries
from microsandbox.errors import ConfigError, MicrosandboxError
from microsandbox.registries import PullPolicy
from microsandbox_core import env

from microsandbox_cli import report
from microsandbox_cli.listing import print_json, print_names, print_table
from microsandbox_cli.progress import LoadProgress

_MAX_PASSWORD = 64 << 10


def pull(
    names: Sequence[str],
    *,
    policy: str = "always",
    platform: str | None = None,
    insecure: bool = False,
    complete: bool = False,
    compression: str | None = None,
    quiet: bool = False,
) -> None:
    """Pull images; go on after a failure and exit 1 at the end. Prints each one's digest."""
    wanted = None if platform is None else registries.parse_platform(platform)
    failed = False
    for name in names:
        try:
            with LoadProgress(quiet=quiet) as progress:
                image = registries.pull(
                    env.home(),
                    name,
                    policy=PullPolicy(policy),
                    platform=wanted,
                    insecure=insecure,
                    complete=complete,
                    compression=compression,
                    progress=progress,
                )
        except MicrosandboxError as failure:
            report.error(str(failure), failure.hint)
            failed = True
        else:
            reference = "" if image.reference is None else image.reference.familiar
            print_names([reference if quiet else f"{reference} {image.digest}"])
    if failed:
        sys.exit(report.EXIT_FAILED)


def login(registry: str, *, username: str | None, password_stdin: bool, insecure: bool) -> None:
    """Ask for what is missing, check it with the registry and keep it."""
    terminal = sys.stdin.isatty()
    if username is None:
        if password_stdin or not terminal:
            raise ConfigError("no user name was given", hint="msb registry login REGISTRY --username NAME")
        sys.stderr.write("user name: ")
        sys.stderr.flush()
        username = sys.stdin.readline().strip()
    if password_stdin:
        try:
            password = sys.stdin.read(_MAX_PASSWORD).rstrip("\r\n")
        except UnicodeDecodeError:
            raise ConfigError("the password is not text", hint="it is read as UTF-8") from None
    elif terminal:
        password = getpass.getpass("password: ", stream=sys.stderr)
    else:
        raise ConfigError(
            "no password was given and standard input is not a terminal",
            hint="msb registry login REGISTRY --username NAME --password-stdin < FILE",
        )
    if not username or not password:
        raise ConfigError("the user name and the password must not be empty")
    where = registries.login(env.home(), registry, username, password, insecure=insecure)
    kept = "the keyring" if where == "keyring" else f"{where}, readable by this user only"
    report.note(f"logged in; the password is kept in {kept}")


def logout(names: Sequence[str]) -> None:
    """Forget credentials; a registry without any is an error, at the end."""
    failed = False
    for name in names:
        if registries.logout(env.home(), name):
            print_names([name])
        else:
            report.error(f"not logged in to {name}", "msb registry ls")
            failed = True
    if failed:
        sys.exit(report.EXIT_FAILED)


def list_logins(*, quiet: bool, as_json: bool) -> None:
    """Print the registries that were logged in to."""
    found = sorted(registries.logins(env.home()).items())
    if quiet:
        print_names([domain for domain, _ in found])
    elif as_json:
        print_json([{"registry": domain, "username": username} for domain, username in found])
    else:
        print_table(("REGISTRY", "USER"), found)


def list_tags(name: str, *, as_json: bool) -> None:
    """Print the tags that a repository has in its registry."""
    found = registries.tags(env.home(), name)
    if as_json:
        print_json([{"tag": tag} for tag in found])
    else:
        print_names(found)
