"""The field names of `--format json` are those of docs/json.md."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from microsandbox import registries

from tests.support.msb import Msb

DOCUMENT = Path(__file__).parents[2] / "docs" / "json.md"
NO_WORDS = ("--format", "json", "busybox", "--dry-run", "example.com:443")
OPEN = {"config.labels"}
"""Objects whose keys are anybody's."""


def _documented(command: str) -> set[str]:
    section = DOCUMENT.read_text().partition(f"\n## msb {command}\n")[2].partition("\n## ")[0]
    rows = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def _fields(value: object, path: str = "") -> Iterator[str]:
    if isinstance(value, list):
        for element in value:
            yield from _fields(element, f"{path}[]")
    elif isinstance(value, dict) and path not in OPEN:
        for name, below in value.items():
            inner = f"{path}.{name}".lstrip(".")
            yield inner
            yield from _fields(below, inner)


@pytest.mark.parametrize(
    "line",
    [
        ("images", "--format", "json"),
        ("image", "inspect", "busybox"),
        ("image", "history", "busybox", "--format", "json"),
        ("image", "prune", "--dry-run", "--format", "json"),
        ("registry", "ls", "--format", "json"),
        ("df", "--format", "json"),
        ("prune", "--dry-run", "--format", "json"),
        ("doctor", "--format", "json"),
        ("install", "--list", "--format", "json"),
        ("net", "explain", "example.com:443", "--format", "json"),
    ],
    ids=lambda line: " ".join(line[:2]),
)
def test_the_fields_are_those_of_the_document(
    empty_msb: Msb, busybox_layout: Path, line: tuple[str, ...]
) -> None:
    empty_msb("load", f"oci:{busybox_layout}", "-t", "busybox").succeeded()
    empty_msb("install", "busybox", "--name", "box").succeeded()
    leftover = empty_msb.home / "sandboxes" / "0123456789abcdef"
    leftover.mkdir(parents=True)
    registries.login(empty_msb.home, "registry.example", "somebody", "a token", check=False)
    done = empty_msb(*line)
    command = " ".join(word for word in line if word not in NO_WORDS)
    assert set(_fields(json.loads(done.text))) == _documented(command)


@pytest.mark.vm
@pytest.mark.once
def test_the_fields_of_commands_that_were_left(msb: Msb) -> None:
    msb("create", "busybox", "--name", "dev").succeeded()
    msb("exec", "-d", "dev", "--", "sleep", "1000").succeeded()
    (shown,) = json.loads(msb("attach", "--list", "--format", "json", "dev").succeeded().text)
    msb("rm", "--force", "dev").succeeded()
    assert {f"[].{name}" for name in shown} == _documented("attach --list")
