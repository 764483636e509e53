"""Strict type checkers understand the public interface, and find mistakes in its use."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
@pytest.mark.parametrize("program", ["typed_program.py", "typed_mistakes.py"])
def test_mypy_is_satisfied(program: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "mypy", "--strict", "--warn-unreachable", "--config-file=",
            f"--cache-dir={tmp_path}", HERE / program,
        ],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_the_package_says_that_it_is_typed() -> None:
    found = importlib.util.find_spec("microsandbox")
    assert found is not None
    assert found.origin is not None
    assert (Path(found.origin).parent / "py.typed").is_file()
