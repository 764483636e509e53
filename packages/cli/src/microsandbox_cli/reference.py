"""Every command with its arguments and options, as data: what completion scripts and reference pages say."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import typer
from typer.models import ArgumentInfo, OptionInfo

FILES = "@files"
"""An offer of `Parameter.offers`: files of the host. Others are `@sandboxes`, `@running`, `@stopped`,
`@images`, `@commands`, `@volumes` and `@places` (files, and sandboxes with a colon)."""


@dataclass(frozen=True)
class Parameter:
    """What an argument and an option have in common.

    `metavar`: empty for a flag. `offers`: words a shell completes, among them kinds like `FILES`.
    """

    metavar: str
    help: str
    default: str | None
    offers: tuple[str, ...]
    repeated: bool


@dataclass(frozen=True)
class Option(Parameter):
    """An option; `names` has the long one first."""

    names: tuple[str, ...]
    required: bool

    @property
    def flag(self) -> bool:
        """Whether it takes no value."""
        return not self.metavar


@dataclass(frozen=True)
class Argument(Parameter):
    """What is given by its position."""

    required: bool


@dataclass(frozen=True)
class Command:
    """A command, or with `commands` a group of them. `path`: `image ls`; empty for `msb` itself."""

    path: str
    summary: str
    paragraphs: tuple[str, ...]
    examples: tuple[str, ...]
    epilog: str
    arguments: tuple[Argument, ...]
    options: tuple[Option, ...]
    commands: tuple[Command, ...]

    @property
    def usage(self) -> str:
        """The command line in one line."""
        words = ["msb", *self.path.split()]
        required = [option for option in self.options if option.required]
        words += [f"{option.names[0]} {option.metavar}" for option in required]
        words.append("[OPTIONS]")
        if self.commands:
            words.append("COMMAND ...")
        for argument in self.arguments:
            name = argument.metavar.strip("[]").removesuffix("...") + ("..." if argument.repeated else "")
            if name == "COMMAND":
                words.append("[-- COMMAND...]")
            else:
                words.append(name if argument.required else f"[{name}]")
        return " ".join(words)


HELP = Option("", "Show this message and exit.", None, (), False, ("--help", "-h"), False)


def tree() -> Command:
    """`msb` with everything below it."""
    from microsandbox_cli.app import app

    return _group("", app)


def leaves(command: Command) -> Iterator[Command]:
    """The commands that do something, in the order of the help."""
    if not command.commands:
        yield command
    for below in command.commands:
        yield from leaves(below)


def _group(path: str, app: typer.Typer) -> Command:
    below = [
        _command(f"{path} {_name(info.name, info.callback)}".strip(), info.callback, str(info.epilog or ""))
        for info in app.registered_commands
        if info.callback is not None and not info.hidden
    ]
    for group in app.registered_groups:
        if group.typer_instance is not None and not group.hidden:
            below.append(_group(f"{path} {group.name}".strip(), group.typer_instance))
    callback = app.registered_callback
    _, options = ((), (HELP,)) if callback is None else _parameters(callback.callback)
    return Command(path, str(app.info.help), (), (), str(app.info.epilog or ""), (), options, tuple(below))


def _name(given: str | None, callback: Callable[..., Any] | None) -> str:
    return given or getattr(callback, "__name__", "").replace("_", "-")


def _command(path: str, callback: Callable[..., Any], epilog: str) -> Command:
    summary, *more = inspect.cleandoc(callback.__doc__ or "").split("\n\n")
    examples = tuple(_joined(text).removeprefix("Example: ") for text in more if text.startswith("Example: "))
    paragraphs = tuple(_joined(text) for text in more if not text.startswith("Example: "))
    arguments, options = _parameters(callback)
    return Command(path, _joined(summary), paragraphs, examples, epilog, arguments, options, ())


def _joined(text: str) -> str:
    return " ".join(text.split())


def _parameters(callback: Callable[..., Any] | None) -> tuple[tuple[Argument, ...], tuple[Option, ...]]:
    assert callback is not None
    arguments, options = [], []
    defaults = inspect.signature(callback).parameters
    for name, hint in typing.get_type_hints(callback, include_extras=True).items():
        if name == "return" or not hasattr(hint, "__metadata__"):
            continue
        info, default = hint.__metadata__[0], defaults[name].default
        kind, repeated = _kind(hint.__origin__)
        if isinstance(info, ArgumentInfo):
            required = default is inspect.Parameter.empty
            shown = info.metavar or name.upper()
            arguments.append(
                Argument(shown, info.help or "", _shown(default), _offers(kind, info), repeated, required)
            )
        elif isinstance(info, OptionInfo) and not info.hidden:
            options.append(_option(name, info, kind, repeated, default))
    return tuple(arguments), (*options, HELP)


def _option(name: str, info: OptionInfo, kind: Any, repeated: bool, default: Any) -> Option:
    # In `Annotated[...]` Typer takes the first name for what is elsewhere the default.
    given = [decl for decl in (info.default, *(info.param_decls or ())) if isinstance(decl, str)]
    names = tuple(
        sorted(given or [f"--{name.replace('_', '-')}"], key=lambda decl: not decl.startswith("--"))
    )
    offers = _offers(kind, info)
    metavar = "" if kind is bool else info.metavar or "|".join(offers) or "TEXT"
    required = default is inspect.Parameter.empty
    return Option(metavar, info.help or "", _shown(default), offers, repeated, names, required)


def _kind(hint: Any) -> tuple[Any, bool]:
    """The type without `None`, and of a list that of its elements; whether it is a list."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is list:
        return typing.get_args(hint)[0], True
    return hint, False


def _offers(kind: Any, info: ArgumentInfo | OptionInfo) -> tuple[str, ...]:
    if info.autocompletion is not None:
        return tuple(info.autocompletion(""))
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return tuple(kind)
    return (FILES,) if kind is Path else ()


def _shown(default: Any) -> str | None:
    return None if default in (inspect.Parameter.empty, None, False, "") else str(default)
