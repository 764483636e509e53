"""What the supervisor makes of a guest's console."""

from __future__ import annotations

from pathlib import Path

import pytest
from microsandbox.supervisor._console import Console


@pytest.fixture
def console(tmp_path: Path) -> Console:
    return Console(tmp_path / "console.log")


@pytest.mark.parametrize(
    "line",
    [
        b"[    3.567005] reboot: Power off not available: System halted instead\r\n",
        b"[12345.567005] reboot: System halted\n",
        b"reboot: Power down",
    ],
)
def test_the_last_words_of_a_kernel_that_halts(console: Console, line: bytes) -> None:
    console.feed(b"x" * 20_000 + b"\r\n")
    assert not console.says_halted()
    for place in range(0, len(line), 7):
        console.feed(line[place : place + 7])
    assert console.says_halted()
    console.feed(b"[    9.000000] something else\r\n")
    assert not console.says_halted()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[    3.567005] reboot: Restarting system\r\n",
        b"[    3.567005] it says reboot: System halted\r\n",
        b"[    3.567005] reboot: System halted, or not\r\n",
    ],
)
def test_other_words(console: Console, line: bytes) -> None:
    console.feed(line)
    assert not console.says_halted()
