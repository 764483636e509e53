"""`msb self`: which installer is recognised, what it is asked to do, what is removed and what is not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from importlib.metadata import Distribution
from pathlib import Path

import pytest
from microsandbox_cli import self_commands
from microsandbox_cli.installation import PACKAGE, PACKAGES, Installation, Kind, detect
from microsandbox_cli.report import EXIT_FAILED


def _distribution(prefix: Path, *, installer: str = "", url: object = None) -> Distribution:
    """A package as an installer leaves it."""
    directory = prefix / "site-packages" / "microsandbox_cli-0.1.0.dist-info"
    directory.mkdir(parents=True)
    (directory / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 0.1.0\n")
    if installer:
        (directory / "INSTALLER").write_text(installer + "\n")
    if url is not None:
        (directory / "direct_url.json").write_text(json.dumps(url))
    return Distribution.at(directory)


def _detected(tmp_path: Path, *files: str, installer: str = "", url: object = None) -> Installation:
    found = _distribution(tmp_path, installer=installer, url=url)
    for name in files:
        (tmp_path / name).touch()
    made = detect(found, prefix=tmp_path, python=tmp_path / "bin/python", stdlib=tmp_path)
    assert made is not None
    return made


def test_a_tool_of_uv(tmp_path: Path) -> None:
    found = _detected(tmp_path / "microsandbox-cli", "uv-receipt.toml", installer="uv")
    assert found.kind is Kind.UV_TOOL
    assert found.update_command() == ["uv", "tool", "upgrade", "microsandbox-cli"]
    assert found.removal_command() == ["uv", "tool", "uninstall", "microsandbox-cli"]


def test_pipx(tmp_path: Path) -> None:
    found = _detected(tmp_path / "microsandbox-cli", "pipx_metadata.json", installer="pip")
    assert found.update_command() == ["pipx", "upgrade", "microsandbox-cli"]


def test_environments_of_uv_and_pip(tmp_path: Path) -> None:
    python = str(tmp_path / "a/bin/python")
    found = _detected(tmp_path / "a", installer="uv")
    assert found.update_command() == ["uv", "pip", "install", "--python", python, "--upgrade", PACKAGE]
    found = _detected(tmp_path / "b", installer="pip")
    python = str(tmp_path / "b/bin/python")
    assert found.update_command() == [python, "-m", "pip", "install", "--upgrade", PACKAGE]
    assert found.removal_command() == [python, "-m", "pip", "uninstall", "--yes", *PACKAGES]


@pytest.mark.parametrize(
    ("installer", "files"), [("debian", ()), ("", ()), ("pip", ("EXTERNALLY-MANAGED",))], ids=str
)
def test_the_systems(tmp_path: Path, installer: str, files: tuple[str, ...]) -> None:
    found = _detected(tmp_path, *files, installer=installer)
    assert (found.kind, found.update_command(), found.removal_command()) == (Kind.SYSTEM, None, None)
    assert "package manager" in found.update_advice()


def test_a_checkout(tmp_path: Path) -> None:
    root = tmp_path / "src"
    (root / "packages/cli").mkdir(parents=True)
    (root / "Makefile").touch()
    url = {"url": f"file://{root}/packages/cli", "dir_info": {"editable": True}}
    found = _detected(tmp_path / "venv", installer="uv", url=url)
    assert (found.kind, found.place, found.update_command()) == (Kind.CHECKOUT, root, None)
    assert f"git -C {root} pull" in found.update_advice()
    wheel = {"url": "file:///tmp/x.whl", "archive_info": {}}
    assert _detected(tmp_path / "other", installer="uv", url=wheel).kind is Kind.UV_PIP


def _pip(tmp_path: Path) -> Installation:
    return Installation(Kind.PIP, "0.1.0", Path(sys.executable), tmp_path)


def test_update_runs_the_command_and_tells_of_its_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[Sequence[str]] = []
    self_commands.update(dry_run=True, runner=ran.append, found=_pip(tmp_path))  # type: ignore[arg-type]
    assert ran == []
    assert capsys.readouterr().out.endswith(f"-m pip install --upgrade {PACKAGE}\n")

    def fail(command: Sequence[str]) -> int:
        ran.append(command)
        return 3

    with pytest.raises(SystemExit) as end:
        self_commands.update(dry_run=False, runner=fail, found=_pip(tmp_path))
    assert end.value.code == EXIT_FAILED
    assert ran == [_pip(tmp_path).update_command()]
    assert "error: the update failed with exit code 3\nhint: run it yourself" in capsys.readouterr().err


def test_a_program_that_is_gone_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Installation(Kind.PIPX, "0.1.0", Path(sys.executable), tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit):
        self_commands.update(dry_run=False, found=found)
    assert "pipx is not on PATH" in capsys.readouterr().err


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with something of everything."""
    directory = tmp_path / "home"
    for name in ("sandboxes", "cache", "lib", "bin"):
        (directory / name).mkdir(parents=True)
    (directory / "lib" / "libkrunfw.so.5").write_bytes(b"x" * 5000)
    (directory / "bin" / "py").write_text('#!/bin/sh\n# msb-command 1 {"image": "python", "sandbox": "py"}\n')
    monkeypatch.setenv("MSB_HOME", str(directory))
    monkeypatch.setenv("HOME", str(tmp_path))
    return directory


def test_uninstall_removes_what_is_ours_and_then_the_packages(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = home.parent / ".local/share/bash-completion/completions/msb"
    script.parent.mkdir(parents=True)
    script.write_text("# Completion of msb in bash\n")
    there: list[bool] = []

    def look(command: Sequence[str]) -> int:
        there.extend((home.exists(), script.exists()))
        return 0

    self_commands.uninstall(yes=True, keep_data=False, runner=look, found=_pip(home))
    assert there == [False, False], "the packages go last"
    said = capsys.readouterr().err
    assert "the command py" in said
    assert str(home) in said


def test_uninstall_leaves_what_others_keep_there(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # As where MSB_HOME is ~/.local, or worse.
    foreign = [home / name for name in ("thesis.txt", "bin/tool", "lib/libc.so.6", "cache/pip/x")]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    for name in ("cache/images/x", "sandboxes/0123456789abcdef/upper.ext4", "state.db"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(b"")
    self_commands.uninstall(yes=True, keep_data=False, runner=lambda _: 0, found=_pip(home))
    assert sorted(path for path in home.rglob("*") if path.is_file()) == sorted(foreign)
    assert "there is more in it: bin, cache, lib, thesis.txt" in capsys.readouterr().err


def test_uninstall_can_keep_the_data(home: Path) -> None:
    self_commands.uninstall(yes=True, keep_data=True, runner=lambda _: 0, found=_pip(home))
    assert (home / "bin" / "py").exists()


def test_uninstall_asks(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        self_commands.uninstall(yes=False, keep_data=False, runner=lambda _: 0, found=_pip(home))
    assert "hint: to remove all of this: --yes" in capsys.readouterr().err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    answers = iter(["", "n", "no way"])
    for _ in range(3):
        with pytest.raises(SystemExit):
            self_commands.uninstall(
                yes=False, keep_data=False, runner=lambda _: 0, found=_pip(home), ask=lambda _: next(answers)
            )
    assert home.exists()
    self_commands.uninstall(
        yes=False, keep_data=False, runner=lambda _: 0, found=_pip(home), ask=lambda _: "y"
    )
    assert not home.exists()


def test_uninstall_of_a_checkout_says_how(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = Installation(Kind.CHECKOUT, "0.1.0", Path(sys.executable), Path("/src"))
    self_commands.uninstall(yes=True, keep_data=False, runner=lambda _: 1, found=found)
    assert "rm -r /src" in capsys.readouterr().err


def _wheel(directory: Path, version: str) -> None:
    """A wheel of our name with nothing in it."""
    directory.mkdir(exist_ok=True)
    info = f"microsandbox_cli-{version}.dist-info"
    with zipfile.ZipFile(directory / f"microsandbox_cli-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {version}\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


@pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not installed")
def test_a_real_update_and_removal_with_uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv, wheels = tmp_path / "venv", tmp_path / "wheels"
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_FIND_LINKS", str(wheels))
    monkeypatch.setenv("MSB_HOME", str(tmp_path / "home"))
    _wheel(wheels, "0.1.0")
    python = venv / "bin/python"
    for command in (
        ["venv", str(venv), "--python", sys.executable],
        ["pip", "install", "--python", str(python), PACKAGE],
    ):
        subprocess.run(["uv", *command], check=True, capture_output=True)

    def found() -> Installation | None:
        entry = next(venv.glob("lib/python*/site-packages/microsandbox_cli-*.dist-info"), None)
        return None if entry is None else detect(Distribution.at(entry), prefix=venv, python=python)

    before = found()
    assert before is not None
    assert (before.kind, before.version) == (Kind.UV_PIP, "0.1.0")
    _wheel(wheels, "0.2.0")
    self_commands.update(dry_run=False, found=before)
    after = found()
    assert after is not None
    assert after.version == "0.2.0"
    self_commands.uninstall(yes=True, keep_data=True, found=after)
    assert found() is None
