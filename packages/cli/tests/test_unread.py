"""What `msb` does when nobody reads what it prints: `msb ls | head -1`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def _unread(line: str, home: Path) -> subprocess.CompletedProcess[bytes]:
    """`msb` with an output whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return subprocess.run(
            [sys.executable, "-m", "microsandbox_cli", *line.split()],
            stdout=writer,
            stderr=subprocess.PIPE,
            env={**os.environ, "MSB_HOME": str(home)},
        )
    finally:
        os.close(writer)


@pytest.mark.parametrize(
    "line", ["--version", "--help", "ls", "run --help", "images", "completion bash", "conf schema"]
)
def test_it_ends_as_if_by_sigpipe_and_says_nothing(line: str, tmp_path: Path) -> None:
    done = _unread(line, tmp_path)
    assert (done.returncode, done.stderr) == (128 + 13, b"")


def test_what_is_wrong_with_the_line_comes_first(tmp_path: Path) -> None:
    done = _unread("run --nonsense", tmp_path)
    assert done.returncode == 2
    assert b"--nonsense" in done.stderr
