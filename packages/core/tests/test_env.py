"""Environment variables: declared once, read in one way."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from microsandbox_core import env

_PACKAGES = Path(__file__).parents[2]


def test_home_is_below_the_users_home_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MSB_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    assert env.home() == Path("/home/someone/.microsandbox")


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("/srv/msb", "/srv/msb"), ("~/state", "/home/someone/state"), ("", "/home/someone/.microsandbox")],
)
def test_home_follows_the_setting(monkeypatch: pytest.MonkeyPatch, setting: str, expected: str) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("MSB_HOME", setting)
    assert env.home() == Path(expected)


def test_a_relative_home_does_not_move_with_the_working_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MSB_HOME", "state")
    assert env.home() == tmp_path / "state"


def test_an_undeclared_variable_cannot_be_read() -> None:
    with pytest.raises(KeyError, match="MSB_NOT_DECLARED"):
        env.value("MSB_NOT_DECLARED")


def test_every_variable_the_packages_name_is_declared() -> None:
    declared = set(env.VARIABLES)
    for source in _PACKAGES.glob("*/src/**/*.py"):
        named = set(re.findall(r"\b(MSB_[A-Z_]+)\b", source.read_text(encoding="utf-8")))
        assert named <= declared, f"{source.relative_to(_PACKAGES)} names {sorted(named - declared)}"
