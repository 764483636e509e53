"""Where libkrunfw is looked for, and in which order."""

from __future__ import annotations

from pathlib import Path

import pytest
from microsandbox_core.host import libkrunfw


@pytest.fixture(autouse=True)
def _no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MSB_LIBKRUNFW", raising=False)


def _library(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "libkrunfw.so.5"
    file.touch()
    return file


def test_the_state_directory_comes_before_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = _library(tmp_path / "system")
    monkeypatch.setattr(libkrunfw, "library_directories", lambda: [str(tmp_path / "system")])
    assert libkrunfw.find_libkrunfw(tmp_path) == system
    own = _library(tmp_path / "lib")
    assert libkrunfw.find_libkrunfw(tmp_path) == own


def test_the_setting_comes_before_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _library(tmp_path / "lib")
    named = _library(tmp_path / "named")
    monkeypatch.setenv("MSB_LIBKRUNFW", str(named))
    assert libkrunfw.find_libkrunfw(tmp_path) == named
    argument = _library(tmp_path / "argument")
    assert libkrunfw.find_libkrunfw(tmp_path, argument) == argument


def test_a_setting_that_names_nothing_is_not_replaced_by_another_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _library(tmp_path / "lib")
    monkeypatch.setenv("MSB_LIBKRUNFW", str(tmp_path / "gone.so"))
    assert libkrunfw.find_libkrunfw(tmp_path) is None


def test_nothing_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libkrunfw, "library_directories", lambda: [str(tmp_path / "none")])
    assert libkrunfw.find_libkrunfw(tmp_path) is None


def test_the_loaders_configuration_is_followed(tmp_path: Path) -> None:
    parts = tmp_path / "conf.d"
    parts.mkdir()
    conf = tmp_path / "ld.so.conf"
    conf.write_text("/opt/first  # a comment\n\n  include conf.d/*.conf\nrelative/is/ignored\n/opt/last/\n")
    (parts / "b.conf").write_text("/opt/b\n")
    (parts / "a.conf").write_text("# only a comment\n/opt/a\n/opt/first\n")
    (parts / "ignored.txt").write_text("/opt/ignored\n")
    found = libkrunfw.library_directories(str(conf), defaults=("/lib64", "/opt/a"))
    assert found == ["/opt/first", "/opt/a", "/opt/b", "/opt/last", "/lib64"]


def test_a_configuration_that_includes_itself_ends(tmp_path: Path) -> None:
    conf = tmp_path / "ld.so.conf"
    conf.write_text(f"include {conf}\n/opt/x\n")
    assert libkrunfw.library_directories(str(conf), defaults=()) == ["/opt/x"]


def test_without_a_configuration_the_defaults_remain(tmp_path: Path) -> None:
    assert libkrunfw.library_directories(str(tmp_path / "none"), defaults=("/lib64",)) == ["/lib64"]
