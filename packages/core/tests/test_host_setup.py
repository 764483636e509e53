"""Setup: the plan it makes, what it does and what it leaves alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from microsandbox_core.errors import CoreError, StorageError
from microsandbox_core.host import errors, setup
from microsandbox_core.host.machine import Machine, this_machine

_DEBIAN = Machine(
    system="Linux",
    architecture="x86_64",
    distribution="debian",
    name="Debian GNU/Linux 12 (bookworm)",
    codename="bookworm",
    has_apt=True,
    is_root=True,
)
_FEDORA = replace(_DEBIAN, distribution="fedora", name="Fedora Linux 42", codename="", has_apt=False)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing on it: an empty PATH and no library directories."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    for name in ("MSB_QEMU", "MSB_LIBKRUNFW", "MSB_KERNEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("microsandbox_core.host.libkrunfw.library_directories", list)
    # mke2fs is also looked for outside PATH, where a test machine has one.
    monkeypatch.setattr("microsandbox_core.host.setup.mke2fs", lambda: _find(directory / "mke2fs"))
    return directory


def _find(program: Path) -> str:
    if not program.exists():
        raise CoreError("mke2fs is not installed", hint="run `msb setup`")
    return str(program)


def _program(file: Path) -> None:
    file.write_text("#!/bin/sh\n")
    file.chmod(0o755)


def _complete(home: Path, programs: Path) -> None:
    home.mkdir(mode=0o700)
    _program(programs / "qemu-system-x86_64")
    _program(programs / "mke2fs")
    (home / "lib").mkdir()
    (home / "lib" / "libkrunfw.so.5").touch()


def test_a_bare_machine_needs_all_four(tmp_path: Path, programs: Path) -> None:
    steps = setup.plan(tmp_path / "home", machine=_DEBIAN)
    assert [step.name for step in steps] == ["state directory", "QEMU", "mke2fs", "guest kernel"]
    assert all(step.act is not None for step in steps)
    assert not any(step.done for step in steps)
    assert "qemu-system-x86" in steps[1].says
    assert "e2fsprogs" in steps[2].says


def test_a_complete_machine_is_left_alone(tmp_path: Path, programs: Path) -> None:
    home = tmp_path / "home"
    _complete(home, programs)
    said: list[str] = []
    steps = setup.plan(home, machine=_DEBIAN)
    assert all(step.done for step in steps)
    assert setup.run(steps, report=said.append) == ()
    assert len(said) == 4
    assert all("present" in line for line in said)


def test_a_dry_run_says_everything_and_changes_nothing(tmp_path: Path, programs: Path) -> None:
    home = tmp_path / "home"
    said: list[str] = []
    assert setup.run(setup.plan(home, machine=_DEBIAN), dry_run=True, report=said.append) == ()
    assert sum("to do" in line for line in said) == 4
    assert not home.exists()


def test_steps_are_said_before_the_first_is_taken(tmp_path: Path, programs: Path) -> None:
    home = tmp_path / "home"
    _complete(home, programs)
    home.chmod(0o755)
    said: list[str] = []

    def report(line: str) -> None:
        said.append(f"{home.stat().st_mode & 0o777:o} {line}")

    assert setup.run(setup.plan(home, machine=_DEBIAN), report=report) == ("state directory",)
    assert [line[:3] for line in said] == ["755"] * 4 + ["700"]


def test_the_state_directory_is_private(tmp_path: Path, programs: Path) -> None:
    home = tmp_path / "a" / "home"
    first = setup.plan(home, machine=_DEBIAN)[0]
    assert setup.run((first,), report=lambda _: None) == ("state directory",)
    assert home.stat().st_mode & 0o777 == 0o700
    assert setup.plan(home, machine=_DEBIAN)[0].done


def test_a_file_in_place_of_the_state_directory(tmp_path: Path, programs: Path) -> None:
    home = tmp_path / "home"
    home.touch()
    with pytest.raises(StorageError, match="not a directory") as caught:
        setup.run(setup.plan(home, machine=_DEBIAN), report=lambda _: None)
    assert "MSB_HOME" in str(caught.value.hint)


def test_a_state_directory_that_cannot_be_made(tmp_path: Path, programs: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        setup.run(setup.plan(tmp_path / "file" / "home", machine=_DEBIAN), report=lambda _: None)


def test_without_root_the_rest_is_done_and_one_command_is_left(tmp_path: Path, programs: Path) -> None:
    home = tmp_path / "home"
    said: list[str] = []
    steps = setup.plan(home, machine=replace(_DEBIAN, is_root=False))
    fetched = [replace(s, act=lambda _: "fetched") if s.name == "guest kernel" else s for s in steps]
    with pytest.raises(errors.NeedsRoot, match="QEMU and mke2fs are missing") as caught:
        setup.run(tuple(fetched), report=said.append)
    assert caught.value.hint == "sudo apt-get install --no-install-recommends qemu-system-x86 e2fsprogs"
    assert home.is_dir()
    assert any("fetched" in line for line in said)


def test_root_installs_a_program_and_it_is_looked_for_again(
    tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed: list[str] = []

    def install(packages: list[str]) -> None:
        installed.extend(packages)
        _program(programs / "qemu-system-x86_64")

    monkeypatch.setattr("microsandbox_core.host.apt.install", install)
    steps = setup.plan(tmp_path / "home", machine=_DEBIAN)
    assert setup.run(steps[:2], report=lambda _: None) == ("state directory", "QEMU")
    assert installed == ["qemu-system-x86"]
    assert setup.plan(tmp_path / "home", machine=_DEBIAN)[1].done


def test_another_distribution_is_told_what_to_install(tmp_path: Path, programs: Path) -> None:
    home = tmp_path / "home"
    with pytest.raises(errors.UnsupportedHost, match="Fedora Linux 42") as caught:
        setup.run(setup.plan(home, machine=_FEDORA), report=lambda _: None)
    assert "MSB_LIBKRUNFW" in str(caught.value.hint)
    assert home.is_dir(), "what can be done is done"


def test_another_distribution_with_everything_in_place_needs_nothing(tmp_path: Path, programs: Path) -> None:
    home = tmp_path / "home"
    _complete(home, programs)
    assert setup.run(setup.plan(home, machine=_FEDORA), report=lambda _: None) == ()


@pytest.mark.parametrize(("name", "step"), [("MSB_QEMU", 1), ("MSB_LIBKRUNFW", 3)])
def test_a_setting_that_names_nothing_is_not_papered_over(
    tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch, name: str, step: int
) -> None:
    monkeypatch.setenv(name, str(tmp_path / "gone"))
    planned = setup.plan(tmp_path / "home", machine=_DEBIAN)[step]
    assert planned.act is None
    assert isinstance(planned.blocked, errors.BadSetting)
    assert name in str(planned.blocked)


def test_a_library_that_does_not_load_is_not_kept(
    tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def extract(_package: Path, _soname: str, target: Path) -> None:
        target.parent.mkdir()
        target.write_bytes(b"\x7fELF and nothing behind it")

    monkeypatch.setattr("microsandbox_core.host.apt.download", lambda *_, **__: tmp_path / "some.deb")
    monkeypatch.setattr("microsandbox_core.host.deb.extract_library", extract)
    home = tmp_path / "home"
    steps = setup.plan(home, machine=_DEBIAN)
    with pytest.raises(errors.BadPackage):
        setup.run((steps[0], steps[3]), report=lambda _: None)
    assert not (home / "lib" / "libkrunfw.so.5").exists()


def test_this_machine_is_described() -> None:
    machine = this_machine()
    assert machine.system
    assert machine.architecture
    assert machine.name
