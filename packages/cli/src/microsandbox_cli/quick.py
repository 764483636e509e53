"""Command lines that mean a command in a sandbox, understood without the parser.

Importing Typer and building its commands takes longer than everything else `msb run` does before the VM is
started. So what is plain is read here, by a table that the tests hold against the commands in `app`. All the
rest, mistakes and `--help` among it, goes to the parser, which has the words for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

FLAG, TEXT, LIST, NUMBER, VMM = range(5)
"""What an option takes: nothing, a text, a text each time it is given, a number, the name of a VMM."""

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
    "--quiet": ("quiet", FLAG), "-q": ("quiet", FLAG),
}  # fmt: skip
_JOINED: Options = {"--timeout": ("timeout", TEXT), "--no-stdin": ("no_stdin", FLAG)}

COMMANDS: Mapping[str, Options] = {
    "run": {**_SANDBOX, **_JOINED},
    "create": _SANDBOX,
    "exec": {**_COMMAND, **_JOINED},
}
"""The options understood here, by command: the parameter and what it takes."""

Value = bool | int | str | list[str]


def understand(arguments: Sequence[str]) -> Callable[[], None] | None:
    """What a command line asks for, to be called; None if the parser has to look at it."""
    options = COMMANDS.get(arguments[0]) if arguments else None
    if options is None or "_MSB_COMPLETE" in os.environ:
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
            elif kind == VMM and given not in ("auto", "qemu"):
                return None
            else:
                values[parameter] = given
    return words, values


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
