"""Completion, asked of the shells themselves: what is there after a Tab."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from microsandbox._directory import SandboxDirectory
from microsandbox._state import Record, State

from tests.support.msb import PROGRAM, Msb
from tests.support.terminal import Terminal


def _shell(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@pytest.fixture
def msb(empty_msb: Msb, busybox_layout: Path, tmp_path: Path) -> Msb:
    """A home with two images and two stopped sandboxes, and `msb` as a program on PATH."""
    for name in ("busybox", "tools/box:1.2"):
        empty_msb("load", f"oci:{busybox_layout}", "-t", name).succeeded()
    for identifier, name in (("0" * 16, "prudent"), ("1" * 16, "wild")):
        directory = SandboxDirectory(empty_msb.home, identifier)
        os.close(directory.create())
        state = State(empty_msb.home)
        state.add(Record(identifier, name, False, 1, "busybox:latest", "sha256:" + "0" * 64, b"\x80"))
        state.close()
    (tmp_path / "bin").mkdir()
    # The shells that read their start-up files may set PATH.
    (tmp_path / "bin" / "msb").write_text(f'#!/bin/sh\nexec {PROGRAM} "$@"\n')
    (tmp_path / "bin" / "msb").chmod(0o755)
    (tmp_path / "archive.tar").touch()
    return empty_msb.with_settings(
        PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}", HOME=str(tmp_path), TERM="dumb", PS1="$ "
    )


CASES = [
    ("msb pru", {"prune"}),
    ("msb re", {"registry", "restart", "resume"}),
    ("msb --log-level de", {"debug"}),
    ("msb --log-level debug ima", {"image", "images"}),
    ("msb image ins", {"inspect"}),
    ("msb prune --dr", {"--dry-run"}),
    ("msb run --col", {"--cold"}),
    ("msb run --vmm q", {"qemu"}),
    ("msb ls --format ", {"table", "json"}),
    ("msb completion f", {"fish"}),
    ("msb run -m 1G bus", {"busybox:latest"}),
    ("msb run tools/box:1", {"tools/box:1.2"}),
    ("msb rmi busybox tools", {"tools/box:1.2"}),
    ("msb inspect ", {"prudent", "wild"}),
    ("msb start wild p", {"prudent"}),
    ("msb rm --force w", {"wild"}),
    ("msb load -i arch", {"archive.tar"}),
    ("msb exec ", set()),  # nothing runs
    ("msb stop p", set()),
    ("msb run busybox -- --col", set()),  # the guest's
    ("msb run --name ", set()),
]


@pytest.mark.parametrize(("line", "found"), CASES)
def test_bash(msb: Msb, tmp_path: Path, line: str, found: set[str]) -> None:
    (tmp_path / "script").write_text(msb("completion", "bash").succeeded().text)
    ask = f". ./script; COMP_LINE={shlex.quote(line)} COMP_POINT={len(line)}; _msb msb; "
    ask += 'printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(
        [_shell("bash"), "--norc", "-c", ask], capture_output=True, text=True, cwd=tmp_path, env=msb.environ
    )
    assert done.stderr == ""
    # bash has split at the colon before: only what is behind it is inserted.
    behind = line.split()[-1].rpartition(":")[1] != "" and not line.endswith(" ")
    assert set(done.stdout.split()) == ({name.rpartition(":")[2] for name in found} if behind else found)


@pytest.mark.parametrize(("line", "found"), CASES)
def test_fish(msb: Msb, tmp_path: Path, line: str, found: set[str]) -> None:
    (tmp_path / "script").write_text(msb("completion", "fish").succeeded().text)
    done = subprocess.run(
        [_shell("fish"), "--no-config", "-c", f"source script; complete -C {shlex.quote(line)}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=msb.environ,
    )
    assert done.stderr == ""
    assert {entry.partition("\t")[0] for entry in done.stdout.splitlines()} == found


@pytest.mark.parametrize(("line", "found"), [case for case in CASES if len(case[1]) == 1])
def test_zsh(msb: Msb, tmp_path: Path, line: str, found: set[str]) -> None:
    (tmp_path / "_msb").write_text(msb("completion", "zsh").succeeded().text)
    (word,) = found
    environ = {**msb.environ, "TERM": "xterm"}
    with Terminal([_shell("zsh"), "-f", "-i", "-o", "no_beep"], environ) as terminal:
        terminal.type(f"cd {tmp_path}; fpath=($PWD $fpath); autoload -U compinit; compinit -u -D; ".encode())
        terminal.type(b"PS1='%% '; echo rea''dy\n")
        terminal.expect(b"ready")
        terminal.expect(b"% ")
        terminal.type(line.encode() + b"\t")
        # Up to what a unique completion ends with.
        rest = word.removeprefix(line.split(" ")[-1]).encode()
        terminal.expect(line.encode())
        shown = terminal.read_until(rest, within=60)
        assert b"\n" not in shown.strip(b"\r\n"), "it was inserted, not listed"


def test_bash_at_a_terminal(msb: Msb, tmp_path: Path) -> None:
    (tmp_path / "script").write_text(msb("completion", "bash").succeeded().text)
    with Terminal([_shell("bash"), "--norc", "-i"], msb.environ) as terminal:
        terminal.expect(b"$ ")
        terminal.type(f". {tmp_path}/script\n".encode())
        terminal.expect(b"$ ")
        terminal.type(b"msb insp\t")
        terminal.expect(b"inspect ", within=60)
        terminal.type(b"pru\t")
        terminal.expect(b"prudent ", within=60)
        terminal.type(b"\x15msb rmi tools/box:\t")
        terminal.expect(b"tools/box:1.2", within=60)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_read_without_complaint(msb: Msb, tmp_path: Path, shell: str) -> None:
    (tmp_path / "script").write_text(msb("completion", shell).succeeded().text)
    assert subprocess.run(
        [_shell(shell), "-n", tmp_path / "script"], capture_output=True, text=True, env=msb.environ
    ).stderr == ""  # fmt: skip


def test_a_person_is_told_where_the_script_belongs(msb: Msb) -> None:
    with Terminal((PROGRAM, "completion", "bash"), msb.environ) as terminal:
        terminal.expect(b"bash-completion/completions/msb")
        assert terminal.finish().code == 0


def test_names_come_without_the_parser_and_without_errors(msb: Msb) -> None:
    assert msb("__names", "sandboxes").succeeded().text.split() == ["prudent", "wild"]
    script = "import sys; sys.argv = ['msb', '__names', 'sandboxes']\n"
    script += "from microsandbox_cli.__main__ import main\nmain(); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [PROGRAM.with_name("python"), "-c", script], capture_output=True, text=True, env=msb.environ
    )
    assert {"typer", "asyncio", "pydantic", "microsandbox_oci"} & set(done.stderr.split()) == set()
    (msb.home / "state.db").write_bytes(b"no database" * 1000)
    done_badly = msb("__names", "sandboxes")
    assert (done_badly.code, done_badly.out, done_badly.err) == (0, b"", b"")
