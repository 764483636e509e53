"""A supervisor that has not been told anything yet."""

import os
import sys
from pathlib import Path

import pytest
from microsandbox import _spawn


def _ends_well(process: _spawn.Process) -> bool:
    os.close(process.lifeline)
    return os.waitpid(process.pid, 0)[1] == 0


def test_it_goes_with_its_lifeline() -> None:
    assert _ends_well(_spawn.spawn())


def test_it_is_prepared_once_and_taken_once() -> None:
    _spawn.prepare()
    _spawn.prepare()
    process = _spawn.take_prepared()
    assert process is not None
    assert _spawn.take_prepared() is None
    assert _ends_well(process)


def test_modules_beside_the_creators_program_are_not_its(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A program of the user's may lie beside a file called like one of Python's modules.
    for name in ("resource", "socket", "fcntl"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    assert _ends_well(_spawn.spawn())


def test_packages_that_no_directory_has_are_left_to_site(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    process = _spawn.spawn()
    monkeypatch.undo()
    assert _ends_well(process)
