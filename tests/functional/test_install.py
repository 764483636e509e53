"""`msb install`: images as commands, called as their users call them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from microsandbox_cli.installation import detect
from microsandbox_cli.installed_run import words
from microsandbox_oci import ImageConfig

from tests.support.images import write_layout
from tests.support.msb import Done, Msb
from tests.support.terminal import Terminal


@pytest.fixture
def bin_directory(msb: Msb) -> Iterator[Path]:
    """Where the commands are; they and their sandboxes are removed afterwards."""
    yield msb.home / "bin"
    for name in msb("install", "--list", "-q").succeeded().text.split():
        msb("uninstall", name).succeeded()
        msb("rm", "--force", name)


def call(msb: Msb, name: str, *arguments: str | bytes, stdin: bytes = b"") -> Done:
    """Call an installed command."""
    done = subprocess.run(
        [msb.home / "bin" / name, *arguments], input=stdin, capture_output=True, env=msb.environ, timeout=120
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.mark.vm
@pytest.mark.once
def test_a_command_keeps_its_sandbox(msb: Msb, bin_directory: Path) -> None:
    done = msb("install", "busybox", "--name", "box").succeeded()
    assert done.text == "box\n"
    assert f"{bin_directory} is not on your PATH" in done.complaint
    assert (bin_directory / "box").stat().st_mode & 0o777 == 0o755
    # Four at once make one sandbox.
    programs = [
        subprocess.Popen(
            [bin_directory / "box", "sh", "-c", "echo x >> /root/f"],
            env=msb.environ,
            stdin=subprocess.DEVNULL,
        )
        for _ in range(4)
    ]
    assert [program.wait(120) for program in programs] == [0, 0, 0, 0]
    assert call(msb, "box", "cat", "/root/f").succeeded().out == b"x\n" * 4
    assert msb("ls", "-q").text.split() == ["box"]
    # It is started again, and made again.
    msb("stop", "box").succeeded()
    assert call(msb, "box", "cat", "/root/f").succeeded().out == b"x\n" * 4
    msb("rm", "-f", "box").succeeded()
    assert call(msb, "box", "cat", "/root/f").code == 1


@pytest.mark.vm
@pytest.mark.once
def test_arguments_input_and_exit_code_pass(msb: Msb, bin_directory: Path) -> None:
    msb("install", "busybox", "--name", "box", "--tmp").succeeded()
    odd = ["", "a b", "--help", "-x", "$HOME", "'", '"', "\\", "*", "\n", "--"]
    done = call(
        msb,
        "box",
        "-c",
        'for a; do printf "<%s>" "$a"; done; cat; echo e >&2; exit 7',
        "sh",
        *odd,
        stdin=b"in",
    )
    assert done.code == 7
    assert done.out == b"".join(f"<{word}>".encode() for word in odd) + b"in"
    assert done.err == b"e\n"
    assert call(msb, "box", "no-such-program").code == 127
    assert call(msb, "box", "sh", "-c", "kill -9 $$").code == 137
    # Nothing is left of a temporary one; the fixture of `msb` looks, too.
    assert call(msb, "box", "test", "-e", "/root/f").code == 1
    assert msb("ls", "-q").out == b""


@pytest.mark.vm
@pytest.mark.once
def test_at_a_terminal_it_is_a_shell(msb: Msb, bin_directory: Path) -> None:
    msb("install", "busybox", "--name", "box", "--tmp").succeeded()
    with Terminal((bin_directory / "box",), msb.environ) as terminal:
        terminal.expect(b"# ")
        terminal.type(b"stty size; exit 9\r")
        terminal.expect(b"24 80")
        assert terminal.finish().code == 9
        assert terminal.attributes() == terminal.before


@pytest.mark.vm
@pytest.mark.once
def test_a_sandbox_of_somebody_elses_is_not_used(msb: Msb, bin_directory: Path) -> None:
    msb("create", "busybox", "--name", "box").succeeded()
    msb("install", "busybox", "--name", "box").succeeded()
    assert "not that of the command box" in call(msb, "box", "true").failed(125)
    msb("stop", "box").succeeded()
    assert "not that of the command box" in call(msb, "box", "true").failed(125)


@pytest.mark.vm
@pytest.mark.once
def test_an_image_with_an_odd_place(msb: Msb, bin_directory: Path, tmp_path: Path) -> None:
    place = tmp_path / 'it\'s $(odd) `ls`\n"x"'
    layout = write_layout(place, ImageConfig(entrypoint=("echo",), cmd=("nothing",), env=("PATH=/bin",)))
    msb("install", f"oci:{os.path.relpath(layout)}", "--name", "say", "--tmp").succeeded()
    assert call(msb, "say").succeeded().out == b"nothing\n"
    assert call(msb, "say", "hello", "$x").succeeded().out == b"hello $x\n"
    (listed,) = json.loads(msb("install", "--list", "--format", "json").succeeded().text)
    assert listed == {
        "name": "say", "image": f"oci:{layout}", "sandbox": None, "path": str(bin_directory / "say"),
    }  # fmt: skip


@pytest.mark.vm
@pytest.mark.once
def test_everything_goes_at_the_end_and_not_while_a_sandbox_runs(own_msb: Msb) -> None:
    found = detect()
    if found is None or found.removal_command() is not None:
        pytest.skip("this would remove the packages that are being tested")
    own_msb("create", "busybox", "--name", "dev").succeeded()
    own_msb("install", "busybox", "--name", "box").succeeded()
    assert "a sandbox is running: dev" in own_msb("self", "uninstall", "--yes").failed(1)
    own_msb.run("true").succeeded()
    own_msb("stop", "dev").succeeded()
    assert "--yes" in own_msb("self", "uninstall").complaint
    assert (own_msb.home / "state.db").exists()
    said = own_msb("self", "uninstall", "--yes").succeeded().complaint
    assert "stopped sandboxes: 1, " in said
    assert "the command box" in said
    assert not own_msb.home.exists()


def test_names_and_foreign_files(empty_msb: Msb, busybox_layout: Path) -> None:
    msb = empty_msb
    msb("load", f"oci:{busybox_layout}", "-t", "tools/box:1.2").succeeded()
    assert msb("install", "tools/box:1.2").succeeded().text == "box\n"
    assert "nothing" in msb("install", "nothing").failed()
    for name in ("../x", "a b", "", "-x", "msb"):
        msb("install", "tools/box:1.2", f"--name={name}").failed(2)
    # A second time replaces our own; what somebody else made stays.
    msb("install", "tools/box:1.2", "--tmp").succeeded()
    foreign = msb.home / "bin" / "mine"
    for content in ("#!/bin/sh\necho mine\n", ""):
        foreign.write_text(content)
        assert "was not made by msb install" in msb("install", "tools/box:1.2", "--name", "mine").failed()
        assert "was not made by msb install" in msb("uninstall", "mine").failed(1)
        assert foreign.read_text() == content
    foreign.unlink()
    foreign.symlink_to("box")
    msb("install", "tools/box:1.2", "--name", "mine").failed()
    assert sorted(path.name for path in foreign.parent.iterdir()) == ["box", "mine"], "nothing temporary"
    done = msb("uninstall", "nope", "box")
    assert (done.code, done.text) == (1, "box\n")
    assert msb("install", "--list", "-q").succeeded().text == ""
    assert "name an image" in msb("install").failed(2)


def test_what_is_on_the_path_already_is_told(empty_msb: Msb, busybox_layout: Path) -> None:
    empty_msb("load", f"oci:{busybox_layout}", "-t", "busybox").succeeded()
    assert "ls on your PATH is /" in empty_msb("install", "busybox", "--name", "ls").succeeded().complaint
    on_path = empty_msb.with_settings(PATH=f"{empty_msb.home / 'bin'}:{os.environ['PATH']}")
    assert on_path("install", "busybox", "--name", "ls").succeeded().complaint == ""


@pytest.mark.parametrize(
    ("entrypoint", "cmd", "arguments", "meant"),
    [
        ((), ("python3",), ("-V",), ["python3", "-V"]),
        ((), ("python3",), ("x.py",), ["python3", "x.py"]),
        ((), ("python3",), (), []),
        ((), ("/bin/sh",), ("ls", "-l"), ["ls", "-l"]),
        ((), ("/bin/sh",), ("-c", "ls"), ["/bin/sh", "-c", "ls"]),
        (("tool",), ("help",), ("x",), ["x"]),
        ((), (), ("ls",), ["ls"]),
    ],
)
def test_what_the_arguments_mean(
    entrypoint: tuple[str, ...], cmd: tuple[str, ...], arguments: tuple[str, ...], meant: list[str]
) -> None:
    assert words(entrypoint, cmd, arguments) == meant
