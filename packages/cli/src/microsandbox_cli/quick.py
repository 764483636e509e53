"""Command lines that mean a command in a sandbox, understood without the parser.

Importing Typer and building its commands takes longer than everything else `msb run` does before the VM is
started. So what is plain is read here, by a table that the tests hold against the commands in `app`. All the
rest, mistakes and `--help` among it, goes to the parser, which has the words for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

FLAG, TEXT, LIST, NUMBER, VMM, FORMAT = range(6)
"""What an option takes: nothing, a text, a text each time it is given, a number, the name of a VMM, how a
listing is printed."""

Options = Mapping[str, tuple[str, int]]

_COMMAND: Options = {
    "--env": ("env", LIST), "-e": ("env", LIST),
    "--workdir": ("workdir", TEXT), "-w": ("workdir", TEXT),
    "--user": ("user", TEXT), "-u": ("user", TEXT),
}  # fmt: skip
_SANDBOX: Options = {
    **_COMMAND,
    "--name": ("name", TEXT), "-n": ("name", TEXT),
    "--memory": ("memory", TEXT), "-m": ("memory", TEXT),
    "--cpus": ("cpus", NUMBER), "-c": ("cpus", NUMBER),
    "--hostname": ("hostname", TEXT), "-H": ("hostname", TEXT),
    "--entrypoint": ("entrypoint", TEXT),
    "--vmm": ("vmm", VMM),
    "--require-kvm": ("require_kvm", FLAG),
    "--cold": ("cold", FLAG),
    "--max-duration": ("max_duration", TEXT),
    "--idle-timeout": ("idle_timeout", TEXT),
    "--label": ("label", LIST),
    "--replace": ("replace", FLAG),
    "--replace-with-grace": ("replace_with_grace", TEXT),
    "--quiet": ("quiet", FLAG), "-q": ("quiet", FLAG),
}  # fmt: skip
_JOINED: Options = {
    "--timeout": ("timeout", TEXT),
    "--no-stdin": ("no_stdin", FLAG),
    "--tty": ("tty", FLAG), "-t": ("tty", FLAG),
    "--no-tty": ("no_tty", FLAG),
}  # fmt: skip

COMMANDS: Mapping[str, Options] = {
    "run": {**_SANDBOX, **_JOINED},
    "create": _SANDBOX,
    "exec": {**_COMMAND, **_JOINED, "--detach-keys": ("detach_keys", TEXT)},
}
"""The options understood here, by command: the parameter and what it takes."""

_LISTED: Options = {
    "--label": ("label", LIST),
    "--quiet": ("quiet", FLAG), "-q": ("quiet", FLAG),
    "--format": ("format", FORMAT),
}  # fmt: skip

_CHOICES: Mapping[int, tuple[str, ...]] = {VMM: ("auto", "qemu"), FORMAT: ("table", "json")}

LISTINGS: Mapping[str, Options] = {
    "ls": {"--running": ("running", FLAG), **_LISTED},
    "ps": {"--all": ("all", FLAG), "-a": ("all", FLAG), **_LISTED},
}
"""The same for listings, which take no words."""

Value = bool | int | str | list[str]


def understand(arguments: Sequence[str]) -> Callable[[], None] | None:
    """What a command line asks for, to be called; None if the parser has to look at it."""
    if not arguments or "_MSB_COMPLETE" in os.environ:
        return None
    if arguments[0] in LISTINGS:
        return _listing(arguments[0], _read(arguments[1:], LISTINGS[arguments[0]]))
    options = COMMANDS.get(arguments[0])
    if options is None:
        return None
    read = _read(arguments[1:], options)
    if read is None or not read[0] or not read[0][0]:
        return None
    (subject, *command), values = read
    return _meant(arguments[0], subject, command, values)


def _read(arguments: Sequence[str], options: Options) -> tuple[list[str], dict[str, Value]] | None:
    """What is not an option, and the options' values; None for anything but the plain forms `-o VALUE`,
    `--option VALUE` and `--option=VALUE` of known options."""
    words: list[str] = []
    values: dict[str, Value] = {}
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            words += rest
        elif not argument.startswith("-"):
            words.append(argument)
        else:
            option, equals, text = argument.partition("=")
            parameter, kind = options.get(option, ("", None))
            if kind is None or (equals and (kind == FLAG or not option.startswith("--"))):
                return None
            if kind == FLAG:
                values[parameter] = True
                continue
            given = text if equals else next(rest, None)
            if given is None or (given.startswith("-") and not equals):
                return None
            if kind == LIST:
                before = values.setdefault(parameter, [])
                assert isinstance(before, list)
                before.append(given)
            elif kind == NUMBER:
                if not (given.isascii() and given.isdigit()):
                    return None
                values[parameter] = int(given)
            elif given not in _CHOICES.get(kind, (given,)):
                return None
            else:
                values[parameter] = given
    return words, values


def _listing(name: str, read: tuple[list[str], dict[str, Value]] | None) -> Callable[[], None] | None:
    if read is None or read[0]:
        return None
    from microsandbox_cli import sandboxes

    ways: dict[str, Callable[..., None]] = {"ls": sandboxes.list_all, "ps": sandboxes.list_active}
    return lambda: ways[name](**read[1])


def _meant(
    name: str, subject: str, command: list[str], values: dict[str, Value]
) -> Callable[[], None] | None:
    from microsandbox_cli import run

    ways: dict[str, Callable[..., None]] = {
        "run": run.run_new,
        "create": run.create_detached,
        "exec": run.exec_in,
    }
    if name == "create" and (command or "name" not in values):
        return None
    words = (subject,) if name == "create" else (subject, command)
    return lambda: ways[name](*words, **values)
