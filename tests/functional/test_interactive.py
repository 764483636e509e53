"""`msb` from an interactive shell in a real terminal emulator: progress, job control, what is left behind."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from microsandbox_oci import ImageConfig

from tests.support.images import tar_of, write_layout
from tests.support.msb import PROGRAM, Msb
from tests.support.tmux import Tmux
from tests.support.waiting import eventually

_CHUNK = 1 << 14
"""Small, so that between two looks only little passes: a load that takes no time shows no progress."""


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Callable[[Msb], Tmux]]:
    """Opens a window with an interactive bash that has `msb` on its PATH."""
    opened: list[Tmux] = []
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "msb").symlink_to(PROGRAM)

    def open_window(msb: Msb) -> Tmux:
        environ = {**msb.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
        (tmp_path / "rc").write_text("PS1='host> '\n")  # what is inherited the shell of tmux unsets
        tmux = Tmux(tmp_path / "tmux", ("bash", "--rcfile", tmp_path / "rc", "-i"), environ)
        opened.append(tmux)
        tmux.wait_for("host>")
        return tmux

    yield open_window
    for tmux in opened:
        tmux.__exit__()


def run(tmux: Tmux, line: str, *, until: str) -> str:
    """Type a line; the screen when `until` is on it."""
    tmux.type(line, "Enter")
    return tmux.wait_for(until)


def sane(tmux: Tmux) -> None:
    """The shell answers, and its terminal echoes and makes lines as before."""
    tmux.type("clear", "Enter")
    token = os.urandom(4).hex()
    look = "stty -a | grep -qE ' -(echo|icanon|isig|onlcr|opost)( |$)' && echo wrong"
    shown = run(tmux, f"{look}; echo sa''ne-{token}", until=f"\nsane-{token}")
    assert "\nwrong" not in shown


@pytest.fixture
def big_archive(tmp_path: Path) -> Path:
    """An OCI archive that takes a while: 24 MiB that do not compress."""
    entry = tarfile.TarInfo("noise")
    layout = write_layout(
        tmp_path / "big", ImageConfig(cmd=("sh",)), [tar_of([(entry, os.urandom(24 << 20))])]
    )
    with tarfile.open(tmp_path / "big.tar", "w") as tar:
        for path in sorted(layout.rglob("*")):
            tar.add(path, arcname=path.relative_to(layout), recursive=False)
    return tmp_path / "big.tar"


class Feeder:
    """Writes a file into a FIFO bit by bit, as long as the test wants."""

    def __init__(self, fifo: Path, source: Path) -> None:
        self._source = source.open("rb")
        self._fifo = os.open(fifo, os.O_WRONLY)

    def until(self, look: Callable[[], str]) -> str:
        """Go on until `look` finds something."""
        while chunk := self._source.read(_CHUNK):
            os.write(self._fifo, chunk)
            if found := look():
                return found
        raise AssertionError("everything was read, and it was not seen")

    def rest(self) -> None:
        """All of the rest."""
        while chunk := self._source.read(_CHUNK):
            os.write(self._fifo, chunk)

    def __enter__(self) -> Feeder:
        return self

    def __exit__(self, *_: object) -> None:
        """The end of the stream."""
        os.close(self._fifo)
        self._source.close()


def _progress(tmux: Tmux) -> str:
    """The line that tells how far a load is."""
    return next((line for line in tmux.screen().splitlines() if "MiB" in line and ": " in line), "")


def test_a_load_shows_how_far_it_is_and_wipes_it(
    empty_msb: Msb, shell: Callable[[Msb], Tmux], big_archive: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")
    tmux = shell(empty_msb)
    tmux.type(f"msb load -t big < {tmp_path / 'fifo'}; echo code''=$?", "Enter")
    with Feeder(tmp_path / "fifo", big_archive) as feeder:
        feeder.until(lambda: _progress(tmux))
        feeder.rest()
    shown = tmux.wait_for("code=0")
    assert "big:latest" in shown
    assert _progress(tmux) == "", "the line is gone"
    sane(tmux)


def test_ctrl_c_ends_a_load_and_leaves_nothing(
    empty_msb: Msb, shell: Callable[[Msb], Tmux], big_archive: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")
    tmux = shell(empty_msb)
    tmux.type(f"msb load -t big < {tmp_path / 'fifo'}; echo code''=$?", "Enter")
    with Feeder(tmp_path / "fifo", big_archive) as feeder:
        feeder.until(lambda: _progress(tmux))
        tmux.type("C-c")
        shown = tmux.wait_for("code=130")
    assert "Traceback" not in shown
    assert _progress(tmux) == ""
    sane(tmux)
    assert empty_msb("images", "-q").succeeded().out == b""
    assert empty_msb.host.layers() == []


@pytest.mark.vm
@pytest.mark.once
def test_a_command_with_pipes_is_suspended_and_continued(msb: Msb, shell: Callable[[Msb], Tmux]) -> None:
    tmux = shell(msb)
    run(tmux, "msb run -q --no-tty busybox -- sh -c 'echo u''p; cat'", until="\nup")
    tmux.type("C-z")
    tmux.wait_for("Stopped")
    run(tmux, "echo meanwhile", until="\nmeanwhile")
    # The shell says what goes on when the terminal is its own; keys that come before are not shown.
    run(tmux, "fg", until="fg\nmsb run")
    run(tmux, "once more", until="once more\nonce more")
    tmux.type("C-d")
    run(tmux, "echo code=$?", until="\ncode=0")
    sane(tmux)


@pytest.mark.vm
@pytest.mark.once
def test_ctrl_c_ends_a_command_with_pipes(msb: Msb, shell: Callable[[Msb], Tmux]) -> None:
    tmux = shell(msb)
    run(tmux, "msb run -q --no-tty busybox -- sh -c 'echo u''p; sleep 600'", until="\nup")
    tmux.type("C-c")
    # What is typed before it has ended may be its input.
    eventually(lambda: tmux.screen().count("host>") == 2, within=60, what="the prompt")
    run(tmux, "echo code=$?", until="\ncode=130")
    sane(tmux)
    # The shell itself belongs to this home, too.
    eventually(lambda: not msb.host.directories(), within=60, what="the end of the sandbox")


@pytest.mark.vm
@pytest.mark.once
def test_a_shell_and_back(msb: Msb, shell: Callable[[Msb], Tmux]) -> None:
    tmux = shell(msb)
    run(tmux, "msb run -q -e PS1='guest# ' busybox", until="\nguest#")
    # Keys are pressed when the program that they are for says that it has the terminal.
    loop = "trap 'echo ba''ck' CONT; echo u''p; while :; do sleep 1; done"
    run(tmux, f'sh -c "{loop}"', until="\nup")
    tmux.type("C-z")
    tmux.wait_for("Stopped")
    run(tmux, "jobs", until="Stopped")
    run(tmux, "fg", until="\nback")
    tmux.type("C-c")
    run(tmux, "echo code=$?", until="\ncode=130")
    tmux.resize(100, 30)
    eventually(lambda: "30 100" in run(tmux, "stty size", until="stty size"), within=60, what="the new size")
    run(tmux, "exit 5", until="guest# exit 5\nhost>")
    run(tmux, "echo code=$?", until="\ncode=5")
    sane(tmux)


@pytest.mark.vm
@pytest.mark.once
def test_detached_and_looked_at_again(msb: Msb, shell: Callable[[Msb], Tmux]) -> None:
    tmux = shell(msb)
    run(tmux, "msb create -q busybox --name dev", until="dev\nhost>")
    run(tmux, "msb exec dev -- sh -c 'echo u''p; read x; echo $x > /root/x'", until="\nup")
    tmux.type("C-p", "C-q")
    tmux.wait_for("goes on in the sandbox")
    sane(tmux)
    run(tmux, "msb exec -e PS1='guest# ' dev", until="\nguest#")
    shown = run(tmux, "ps | grep -c 'read [x]'", until="\n1")
    assert "\nguest#" in shown
    run(tmux, "exit", until="guest# exit\nhost>")
    sane(tmux)
    run(tmux, "msb rm --force dev", until="\ndev")


@pytest.mark.vm
@pytest.mark.once
def test_a_copy_shows_how_far_it_is(msb: Msb, shell: Callable[[Msb], Tmux], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "stop")
    (tmp_path / "noise").write_bytes(os.urandom(1 << 20) * 192)
    tmux = shell(msb)
    run(tmux, "msb create -q busybox --name dev", until="dev\nhost>")
    run(tmux, f"msb cp {tmp_path / 'noise'} dev:/root/; echo code''=$?", until="copying: ")
    shown = tmux.wait_for("code=0", within=300)
    assert "copying: " not in shown
    sane(tmux)
    run(tmux, "msb rm --force dev", until="\ndev")
