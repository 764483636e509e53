"""`msb install` and `uninstall`: images as commands, each a small script that calls `msb`."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from microsandbox import _config, _create
from microsandbox.errors import ConfigError, MicrosandboxError, StateError, translated
from microsandbox_core import env

from microsandbox_cli import report
from microsandbox_cli.listing import print_json, print_names, print_table

_MARK = "# msb-command 1 "
"""Begins the second line of every script that is ours; JSON about it follows."""


class Installed(NamedTuple):
    """A command. `sandbox`: the one that it runs in, made at its first use; None: a new one each time."""

    name: str
    image: str
    sandbox: str | None
    path: Path


def directory() -> Path:
    """Where the scripts are."""
    return env.home() / "bin"


def install(image: str, *, name: str | None, temporary: bool) -> None:
    """Write a command's script, and print the command's name."""
    found, default = _known(image)
    command = _config.check_name(default if name is None else name)
    if command == "msb":
        raise ConfigError("msb: this name is taken by the program itself", hint="choose another: --name CMD")
    made = Installed(command, found, None if temporary else command, directory() / command)
    _write(made)
    sys.stdout.write(command + "\n")
    _tell_path(made)


def list_installed(*, quiet: bool, as_json: bool) -> None:
    """Print the commands."""
    found = installed()
    if quiet:
        print_names([one.name for one in found])
    elif as_json:
        print_json([{**one._asdict(), "path": str(one.path)} for one in found])
    else:
        rows = [(one.name, one.image, one.sandbox or "new each time", str(one.path)) for one in found]
        print_table(("COMMAND", "IMAGE", "SANDBOX", "PATH"), rows)


def uninstall(names: Sequence[str]) -> None:
    """Remove commands; go on after a failure and exit 1 at the end."""
    failed = False
    for name in names:
        try:
            removed = _remove(name)
        except MicrosandboxError as failure:
            report.error(str(failure), failure.hint)
            failed = True
            continue
        sys.stdout.write(name + "\n")
        if removed.sandbox and _exists(removed.sandbox):
            report.note(f"note: its sandbox is still there: msb rm {removed.sandbox}")
    if failed:
        sys.exit(report.EXIT_FAILED)


def installed() -> list[Installed]:
    """Every command, by name."""
    try:
        paths = sorted(directory().iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [found for path in paths if (found := _read(path)) is not None]


def _known(image: str) -> tuple[str, str]:
    """The image as it is to be written into a script, and a name for the command. Raises `ImageError`."""
    with translated():
        from microsandbox_oci import Reference, RootfsDirectory, classify_image_argument

        argument = classify_image_argument(image)
        if isinstance(argument, Reference):
            _create.image_store(env.home()).get(argument)
            return argument.familiar, argument.path.rpartition("/")[2]
    # Whoever calls the command may be in another directory.
    path = argument.path.resolve()
    if isinstance(argument, RootfsDirectory):
        return str(path), path.name
    scheme, colon, rest = image.partition(":")
    behind = f":{argument.image}" if argument.image else ""
    prefix = scheme + colon if colon and rest and not image.startswith(("/", ".", "~")) else ""
    return f"{prefix}{path}{behind}", path.name.partition(".")[0]


def _write(made: Installed) -> None:
    """Put the script in its place at once, or leave what is there as it is."""
    about = json.dumps({"image": made.image, "sandbox": made.sandbox})
    program = Path(sysconfig.get_path("scripts"), "msb")
    msb = [str(program)] if program.exists() else [sys.executable, "-m", "microsandbox_cli"]
    words = [*msb, "__installed", made.sandbox or "", made.image]
    home = f"MSB_HOME={shlex.quote(str(env.home()))}; export MSB_HOME\n" if env.value(env.MSB_HOME) else ""
    script = (
        f"#!/bin/sh\n{_MARK}{about}\n# Made by `msb install`; `msb uninstall {made.name}` removes it.\n"
        f'{home}exec {shlex.join(words)} "$@"\n'
    )
    temporary = made.path.with_name(f".{made.name}.{os.getpid()}")
    try:
        for parent in (env.home(), made.path.parent):
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary.write_bytes(os.fsencode(script))
        temporary.chmod(0o755)
        try:
            made.path.hardlink_to(temporary)
        except FileExistsError:
            if _read(made.path) is None:
                raise ConfigError(
                    f"{made.path} exists and was not made by msb install",
                    hint="move it away, or choose another name: --name CMD",
                    code="not_ours",
                ) from None
            temporary.replace(made.path)
    except OSError as error:
        raise StateError(f"cannot write {made.path}: {error.strerror}", hint="check MSB_HOME") from error
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path) -> Installed | None:
    """The command that a script is; None if it is not ours."""
    try:
        if path.is_symlink() or not path.is_file():
            return None
        with path.open("rb") as file:
            lines = file.read(1 << 16).split(b"\n")
        if lines[0] != b"#!/bin/sh" or not lines[1].startswith(_MARK.encode()):
            return None
        about = json.loads(lines[1][len(_MARK) :])
        return Installed(path.name, str(about["image"]), about["sandbox"], path)
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _remove(name: str) -> Installed:
    path = directory() / _config.check_name(name)
    found = _read(path)
    if found is None:
        what = "was not made by msb install" if os.path.lexists(path) else "is not installed"
        raise ConfigError(
            f"the command {name!r} {what}", hint="see: msb install --list", code="not_installed"
        )
    try:
        path.unlink()
        path.with_name(f".{name}.lock").unlink(missing_ok=True)
    except OSError as error:
        raise StateError(f"cannot remove {path}: {error.strerror}", hint="check MSB_HOME") from error
    return found


def _exists(sandbox: str) -> bool:
    from microsandbox.errors import SandboxNotFound

    try:
        _create.find(env.home(), sandbox)
    except SandboxNotFound:
        return False
    return True


def _tell_path(made: Installed) -> None:
    """Say so if a shell will not find the command, or another one of its name."""
    seen = shutil.which(made.name)
    if seen is not None and Path(seen) == made.path:
        return
    add = f'export PATH={shlex.quote(str(directory()))}:"$PATH"'
    if seen is not None:
        report.note(f"note: {made.name} on your PATH is {seen}; to use this one: {add}")
    else:
        report.note(f"note: {directory()} is not on your PATH; for ~/.profile: {add}")
