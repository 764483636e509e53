"""The parser's refusals, told as `msb` tells every error: what is wrong, then what to do."""

from __future__ import annotations

import sys
from difflib import get_close_matches
from typing import Any

import typer

from microsandbox_cli import report

# Typer has its own copy of click, or click itself, and exports only this one of its exceptions.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


def parse_and_run(app: typer.Typer) -> None:
    """Do what the command line says, and exit; 2 if it cannot be understood."""
    try:
        code = app(prog_name="msb", standalone_mode=False)
    except _UsageError as failure:
        message, hint = _told(failure)
        if not message:
            failure.show()  # type: ignore[attr-defined] # no arguments: that is the help
        else:
            report.error(message, hint)
        sys.exit(report.EXIT_USAGE)
    except typer.Abort:
        sys.exit(report.EXIT_INTERRUPTED)
    except SystemExit as ended:
        # Typer's answer to a reader that is gone is 1, without the error.
        if isinstance(ended.__context__, BrokenPipeError):
            raise ended.__context__ from None
        raise
    sys.exit(code if isinstance(code, int) else 0)


def _told(failure: Any) -> tuple[str, str]:
    """The error and the hint; no error if nothing was given at all."""
    context = failure.ctx
    command = "msb" if context is None else str(context.command_path)
    if type(failure).__name__ == "NoArgsIsHelpError":
        return "", ""
    hint = f"see {command} --help"
    option = getattr(failure, "option_name", None)
    if hasattr(failure, "possibilities") and option is not None:
        known = [name for parameter in context.command.get_params(context) for name in parameter.opts]
        message = f"{command} has no option {option}"
        near = get_close_matches(option, known, n=1)
        return message, f"did you mean {near[0]}? {hint}" if near else hint
    message, near_command, names = str(failure.format_message()).partition(" Did you mean ")
    if near_command:
        hint = f"did you mean {names.rstrip('?')}? {hint}"
    return _plain(failure, message[:1].lower() + message[1:].rstrip(".")), hint


def _plain(failure: Any, message: str) -> str:
    """What a value should be, and what it was, without the words of the library that checks it."""
    seen = failure.__cause__ or failure.__context__
    errors = getattr(seen, "errors", None)
    given = errors()[0].get("input") if callable(errors) else None
    message = message.replace("Value error, ", "")
    if "valid integer" in message:
        message = message.partition(": ")[0] + f": {given!r} is not a whole number"
    elif isinstance(given, str) and repr(given) not in message:
        message = message.replace("Input should be", f"{given!r} is not")
    return message
