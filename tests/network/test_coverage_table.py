"""The table of attacks in README.md names tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_that_the_table_names_is_there() -> None:
    table = Path(__file__).with_name("README.md").read_text().partition("## Which tests")[2]
    rows = "\n".join(line for line in table.splitlines() if line.startswith("| N"))
    named = set(re.findall(r"`([a-z0-9_]+)`", rows))
    sources = [*(ROOT / "packages/net").rglob("*.rs"), *(ROOT / "packages/net/tests").glob("*.py")]
    sources += (ROOT / "tests").rglob("test_*.py")
    there = {
        name for each in sources for name in re.findall(r"\b(?:fn|def) ([a-z0-9_]+)\(", each.read_text())
    }
    assert named - there == set()
    assert len(named) > 50
