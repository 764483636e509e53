"""The reference, from the commands themselves: `docs/cli.md` and a manual page for each command.

`make docs` writes them; a test compares what is committed with what this makes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from microsandbox_core import env

from microsandbox_cli import __version__
from microsandbox_cli.reference import Command, Option, leaves, tree

_INTRODUCTION = """\
# `msb`: the reference

Made by `make docs` from the commands themselves; do not edit. `msb COMMAND --help` and the manual pages
(`man msb-run`) say the same.

**Exit codes**: 0 done; 1 a listing, or a command for several objects, failed for some of them; 2 the
command line was not understood; 125 the sandbox, the image or the state failed; 130 Ctrl-C. `run` and
`exec` exit with the code of the command in the sandbox: 128+N if signal N killed it, 126 if it cannot be
executed, 127 if it was not found, 124 if it was stopped at a time limit. `wait` of one sandbox exits with the
code of the command that the sandbox was there for. 141: nobody reads the output any more, as in
`msb ls | head -1`.

**Output**: results go to stdout, all else to stderr. An error is one line, `error: ...`, and mostly a
second one, `hint: ...`. Sizes are binary: `512M`, `1G`, `1.5G`. Times: `500ms`, `30s`, `5m`, `1h`. What
`--format json` prints is in [json.md](json.md), the settings of `--conf` in [settings.md](settings.md).
"""


def files(root: Command) -> dict[str, str]:
    """What is made: content by path in the repository."""
    import json

    from microsandbox_cli.conf import schema

    pages = {f"packages/cli/man/{_page(command)}.1": page(command, root) for command in (root, *_below(root))}
    return {
        "docs/cli.md": markdown(root),
        "docs/settings.schema.json": json.dumps(schema(), indent=2) + "\n",
        **pages,
    }


def _below(root: Command) -> Iterator[Command]:
    for command in root.commands:
        yield from ((command, *_below(command)) if command.commands else (command,))


# ------------------------------------------------------------------------------------------------- Markdown


def markdown(root: Command) -> str:
    """The whole reference on one page."""
    parts = [_INTRODUCTION, "\n| command | |\n|---|---|\n"]
    for command in leaves(root):
        anchor = f"msb-{command.path.replace(' ', '-')}"
        parts.append(f"| [`msb {command.path}`](#{anchor}) | {_cell(command.summary)} |\n")
    parts.append("\n## Options before the command\n\n" + _option_table(root))
    for command in leaves(root):
        parts.append(f"\n## msb {command.path}\n\n{command.summary}\n\n```\n{command.usage}\n```\n")
        parts += [f"\n{paragraph}\n" for paragraph in command.paragraphs]
        if command.arguments:
            parts.append("\n| argument | |\n|---|---|\n")
            parts += [f"| `{_cell(a.metavar)}` | {_cell(a.help)} |\n" for a in command.arguments]
        parts.append("\n" + _option_table(command))
        if command.examples:
            parts.append("\n```sh\n" + "\n".join(command.examples) + "\n```\n")
    parts.append("\n## Environment variables\n\n| variable | |\n|---|---|\n")
    parts += [f"| `{name}` | {_cell(text)} |\n" for name, text in env.VARIABLES.items()]
    return "".join(parts)


def _option_table(command: Command) -> str:
    rows = ["| option | | default |\n|---|---|---|\n"]
    for option in command.options:
        names = ", ".join(f"`{name}`" for name in option.names)
        value = "" if option.flag else f" `{_cell(option.metavar)}`"
        repeated = " (may be repeated)" if option.repeated else ""
        default = "required" if option.required else f"`{option.default}`" if option.default else ""
        rows.append(f"| {names}{value}{repeated} | {_cell(option.help)} | {default} |\n")
    return "".join(rows)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


# --------------------------------------------------------------------------------------------- manual pages


def page(command: Command, root: Command) -> str:
    """A manual page in roff, as man(7) has it."""
    name = _page(command)
    parts = [
        f'.\\" Made by `make docs` from the commands themselves; do not edit.\n'
        f'.TH {name.upper()} 1 "" "microsandbox {__version__}" "microsandbox"\n'
        f".SH NAME\n{_roff(name)} \\- {_roff(_lower(command.summary).rstrip('.'))}\n"
        f".SH SYNOPSIS\n.B {_roff(command.usage)}\n.SH DESCRIPTION\n{_line(command.summary)}\n"
    ]
    parts += [f".PP\n{_line(paragraph)}\n" for paragraph in command.paragraphs]
    if command.commands:
        parts.append(".SH COMMANDS\n")
        for below in command.commands:
            parts.append(f".TP\n.BR {_roff(_page(below))} (1)\n{_line(below.summary)}\n")
    if command.arguments:
        parts.append(".SH ARGUMENTS\n")
        parts += [f".TP\n.I {_roff(a.metavar)}\n{_line(a.help)}\n" for a in command.arguments]
    parts.append(".SH OPTIONS\n")
    parts += [f".TP\n{_roff_option(option)}\n{_line(_sentence(option))}\n" for option in command.options]
    if command.examples:
        parts.append(".SH EXAMPLES\n")
        parts += [f".EX\n{_line(example)}\n.EE\n" for example in command.examples]
    codes = command.epilog.partition("Exit codes: ")[2]
    if codes:
        parts.append(".SH EXIT STATUS\n")
        for entry in codes.rstrip(".").split("; "):
            code, _, meaning = entry.partition(" ")
            parts.append(
                f".TP\n.B {_roff(code)}\n{_line(meaning)}\n" if code[0].isdigit() else f"{_line(entry)}\n"
            )
    if not command.path:
        parts.append(".SH ENVIRONMENT\n")
        parts += [f".TP\n.B {name}\n{_line(text)}\n" for name, text in env.VARIABLES.items()]
    parts.append(f".SH SEE ALSO\n{_see_also(command, root)}\n")
    return "".join(parts)


def _page(command: Command) -> str:
    return "-".join(("msb", *command.path.split()))


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _see_also(command: Command, root: Command) -> str:
    others = [root] if command.path else list(leaves(root))
    if " " in command.path:
        others += [group for group in root.commands if group.path == command.path.split()[0]]
    return ",\n".join(f".BR {_roff(_page(other))} (1)" for other in others).replace(",\n", " ,\n")


def _roff_option(option: Option) -> str:
    names = ", ".join(f"\\fB{_roff(name)}\\fR" for name in option.names)
    return names if option.flag else f"{names} \\fI{_roff(option.metavar)}\\fR"


def _sentence(option: Option) -> str:
    text = option.help
    if option.required:
        text += " Required."
    elif option.default and "Default" not in text:
        text += f" Default: {option.default}."
    return f"{text} May be repeated." if option.repeated else text


def _roff(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")


def _line(text: str) -> str:
    """Text that begins a line: a dot there would be a request."""
    return ("\\&" if text.startswith((".", "'")) else "") + _roff(text)


def write(directory: Path, made: Mapping[str, str]) -> None:
    """Write the files, and remove pages of commands that are gone."""
    for old in (directory / "packages/cli/man").glob("*.1"):
        if str(old.relative_to(directory)) not in made:
            old.unlink()
    for name, content in made.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


if __name__ == "__main__":
    write(Path(sys.argv[1]), files(tree()))
