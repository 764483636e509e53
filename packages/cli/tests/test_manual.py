"""The committed reference is what the commands say, and says enough of each."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from microsandbox_cli.app import app
from microsandbox_cli.manual import files, page
from microsandbox_cli.reference import Command, leaves, tree
from typer.main import get_command

ROOT = Path(__file__).parents[3]
TREE = tree()
COMMANDS = list(leaves(TREE))


def test_the_committed_reference_is_current() -> None:
    made = files(TREE)
    stale = [name for name, content in made.items() if not _is(ROOT / name, content)]
    gone = [str(p) for p in (ROOT / "packages/cli/man").iterdir() if str(p.relative_to(ROOT)) not in made]
    assert (stale, gone) == ([], []), "run `make docs`"


def _is(path: Path, content: str) -> bool:
    return path.exists() and path.read_text() == content


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: str(command.path))
def test_every_command_has_examples_that_are_understood(command: Command) -> None:
    assert command.examples, f"write `Example: msb {command.path} ...` into its docstring"
    parser = get_command(app)
    for example in command.examples:
        lines = [words for words in _commands(example) if words[0] == "msb"]
        assert any(" ".join(words[1:]).startswith(command.path) for words in lines), example
        for words in lines:
            _understand(parser, words[1:])


def _commands(line: str) -> list[list[str]]:
    """The commands of a line, which are joined by && and |, without redirections."""
    found: list[list[str]] = [[]]
    words = iter(shlex.split(line))
    for word in words:
        if word in ("&&", "|"):
            found.append([])
        elif word == ">":
            next(words)
        else:
            found[-1].append(word)
    return found


def _understand(parser: Any, words: list[str]) -> None:
    """Parse without doing anything."""
    context: Any = None
    while True:
        context = parser.make_context("msb", list(words), parent=context)
        if not getattr(parser, "commands", None):
            return
        rest: list[str] = list(context._protected_args) + list(context.args)
        parser, words = parser.commands[rest[0]], rest[1:]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: str(command.path))
def test_every_option_and_argument_is_explained(command: Command) -> None:
    for parameter in (*command.arguments, *command.options):
        assert parameter.help, parameter
    assert "Exit codes: " in command.epilog


def test_the_schema_is_that_of_the_settings() -> None:
    from microsandbox_cli.conf import Settings

    schema = json.loads((ROOT / "docs/settings.schema.json").read_text())
    assert list(schema["properties"]) == list(Settings.model_fields)
    assert schema["additionalProperties"] is False


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="mandoc is not installed")
def test_manual_pages_are_clean(tmp_path: Path) -> None:
    for command in (TREE, *TREE.commands, *COMMANDS):
        (tmp_path / "page.1").write_text(page(command, TREE))
        done = subprocess.run(
            ["mandoc", "-T", "lint", "-W", "warning", tmp_path / "page.1"], capture_output=True, text=True
        )
        complaints = [line for line in done.stdout.splitlines() if "missing date" not in line]
        assert complaints == []
