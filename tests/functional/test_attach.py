"""`msb attach`: commands that are left running, and gone back to."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.msb import PROGRAM, Msb
from tests.support.terminal import Terminal
from tests.support.tmux import Tmux
from tests.support.waiting import eventually

pytestmark = pytest.mark.vm

LEAVE = b"\x10\x11"


@pytest.fixture
def dev(msb: Msb) -> Iterator[str]:
    """A named sandbox that runs."""
    msb("create", "busybox", "--name", "dev").succeeded()
    yield "dev"
    msb("rm", "--force", "dev").succeeded()


def attach(*words: str) -> tuple[str | Path, ...]:
    return (PROGRAM, "attach", *words)


def sessions(msb: Msb, name: str) -> list[dict[str, object]]:
    found = json.loads(msb("attach", "--list", "--format", "json", name).succeeded().out)
    assert isinstance(found, list)
    return found


def typed(tmux: Tmux, *keys: str, until: str) -> str:
    tmux.type(*keys)
    return tmux.wait_for(until)


@pytest.fixture
def window(msb: Msb, tmp_path: Path) -> Iterator[Tmux]:
    """A window with a shell of the host that has `msb` on its PATH."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "msb").symlink_to(PROGRAM)
    (tmp_path / "rc").write_text("PS1='host> '\n")
    environ = {**msb.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    with Tmux(tmp_path / "tmux", ("bash", "--rcfile", tmp_path / "rc", "-i"), environ) as tmux:
        tmux.wait_for("host>")
        yield tmux


def test_a_shell_is_left_and_gone_back_to(window: Tmux, dev: str) -> None:
    typed(window, f"msb exec -e PS1='guest# ' {dev}", "Enter", until="\nguest#")
    typed(window, "X=kept; echo first''-time", "Enter", until="\nfirst-time\nguest#")
    typed(window, "C-p", "C-q", until="note: detached")
    typed(window, "clear", "Enter", until="host>")
    window.resize(100, 30)
    typed(window, f"msb attach {dev}", "Enter", until="msb attach")
    typed(window, "echo $X-; stty size", "Enter", until="\nkept-\n30 100\nguest#")
    # It hears of a new size, and of a Ctrl-C, as before.
    window.resize(70, 20)
    typed(window, "sleep 1000; echo over''slept", "Enter", until="sleep 1000")
    typed(window, "C-c", until="^C")
    typed(window, "stty size", "Enter", until="\n20 70\nguest#")
    # What comes while nobody looks is there afterwards.
    typed(window, "(while [ ! -e /go ]; do :; done; echo mean''while; touch /gone) &", "Enter", until="&")
    typed(window, "C-p", "C-q", until="note: detached")
    typed(window, f"clear; msb exec {dev} -- touch /go; echo we''nt", "Enter", until="went")
    command = f"while ! msb exec {dev} -- test -e /gone; do :; done; clear; msb attach {dev}"
    typed(window, command, "Enter", until="meanwhile")
    typed(window, "exit 5", "Enter", until="host>")
    typed(window, "echo code''=$?", "Enter", until="\ncode=5")


def test_an_editor_draws_its_screen_again(window: Tmux, msb: Msb, dev: str) -> None:
    typed(window, f"msb exec {dev} -- vi /root/file", "Enter", until="~")
    typed(window, "i", "written before", until="written before")
    typed(window, "C-p", "C-q", until="note: detached")
    typed(window, "clear", "Enter", until="host>")
    typed(window, f"msb attach {dev}", "Enter", until="written before")
    typed(window, ", and after", until="written before, and after")
    window.type("Escape")
    # What follows an Escape at once is one key with it.
    window.wait_for("- /root/file")
    typed(window, ":wq", "Enter", until="host>")
    assert msb("exec", dev, "--", "cat", "/root/file").succeeded().text == "written before, and after\n"


def test_the_command_of_a_sandbox_in_the_background(msb: Msb) -> None:
    msb("run", "-d", "-t", "-n", "dev", "-e", "PS1=$ ", "busybox").succeeded()
    (shown,) = sessions(msb, "dev")
    assert (shown["command"], shown["tty"], shown["stdin"]) == (["sh"], True, True)
    assert (shown["main"], shown["joined"]) == (True, False)
    with Terminal(attach("dev"), msb.environ) as terminal:
        terminal.expect(b"$ ")
        terminal.type(b"echo mine''=$((1+1))\r")
        terminal.expect(b"mine=2")
        # One at a time.
        assert sessions(msb, "dev")[0]["joined"]
        assert "somebody else has joined sh" in msb("attach", "dev").failed()
        # It does not belong to who has joined it.
        terminal.process.kill(signal.SIGKILL)
        terminal.finish()
    eventually(lambda: not sessions(msb, "dev")[0]["joined"], within=60, what="its place to be free")
    with Terminal(attach("dev"), msb.environ) as terminal:
        terminal.type(b"exit 6\r")
        assert terminal.finish().code == 6
        assert terminal.attributes() == terminal.before
    waited = msb("wait", "dev")
    assert (waited.code, waited.text) == (6, "dev: stopped: its command ended with code 6\n")
    msb("rm", "dev").succeeded()


def test_a_sandbox_without_a_name_ends_with_its_command_and_its_code_is_told(msb: Msb) -> None:
    name = msb("run", "-d", "busybox", "--", "sh", "-c", "while [ ! -e /go ]; do :; done; echo last; exit 3")
    with msb.start("attach", name.succeeded().text.strip()) as attached:
        eventually(lambda: sessions(msb, name.text.strip())[0]["joined"], within=60, what="it to be attached")
        msb("exec", name.text.strip(), "--", "touch", "/go")
        done = attached.finish()
    assert (done.code, done.out) == (3, b"last\n")


def test_what_runs_at_a_terminal_is_left_with_its_sandbox(msb: Msb) -> None:
    keys = ("--detach-keys", "ctrl-p,ctrl-q")
    command = (PROGRAM, "run", "-q", "-n", "dev", *keys, "-e", "PS1=$ ", "busybox")
    with Terminal(command, msb.environ) as terminal:
        terminal.expect(b"$ ")
        terminal.type(b"X=4\r")
        terminal.expect(b"$ ")
        terminal.type(LEAVE)
        done = terminal.finish()
        assert done.code == 0
        assert b"sh goes on in the sandbox 'dev', which ends with it; back to it: msb attach dev" in done.out
        assert terminal.attributes() == terminal.before
    with Terminal(attach("dev"), msb.environ) as terminal:
        terminal.type(b"exit $X\r")
        assert terminal.finish().code == 4
    assert msb("wait", "dev").code == 4
    msb("rm", "dev").succeeded()


def test_a_sandbox_that_was_started_for_a_command_ends_with_it(msb: Msb, dev: str) -> None:
    msb("stop", dev).succeeded()
    with Terminal((PROGRAM, "exec", "-e", "PS1=$ ", dev), msb.environ) as terminal:
        terminal.expect(b"$ ")
        terminal.type(LEAVE)
        assert terminal.finish().code == 0
    assert msb("exec", dev, "--", "echo", "still").succeeded().text == "still\n"
    with Terminal(attach(dev), msb.environ) as terminal:
        terminal.type(b"exit\r")
        assert terminal.finish().code == 0
    assert "its command ended" in msb("wait", dev).succeeded().text


def test_which_one_is_said_when_there_are_several(msb: Msb, dev: str) -> None:
    assert "no command was left running" in msb("attach", dev).failed()
    for number in (3, 4):
        msb("exec", "-d", dev, "--", "sh", "-c", f"until [ -e /{number} ]; do :; done; exit {number}")
    assert "2 commands were left running" in msb("attach", dev).failed()
    first, second = (str(number["id"]) for number in sessions(msb, dev))
    assert msb("attach", "--list", "-q", dev).succeeded().text.split() == [first, second]
    header, row, _ = msb("attach", "--list", dev).succeeded().text.splitlines()
    assert header.split() == ["SESSION", "PID", "TERMINAL", "LEFT", "COMMAND"]
    assert row.split()[::2][:2] == [first, "no"]
    msb("exec", dev, "--", "touch", "/4").succeeded()
    done = msb("attach", dev, second)
    # It may have ended before anybody came.
    assert done.code == 4 or f"session {second}: no command" in done.failed()
    with msb.start("attach", dev) as attached:
        eventually(lambda: sessions(msb, dev)[0]["joined"], within=60, what="it to be attached")
        msb("exec", dev, "--", "touch", "/3").succeeded()
        assert attached.finish().code == 3
    assert "session 999999: no command of this number" in msb("attach", dev, "999999").failed()
    assert msb("attach", dev, "0").code == 2


def test_the_exit_code_of_a_command_that_nobody_joined(msb: Msb, dev: str) -> None:
    def listed() -> list[dict[str, object]]:
        found = json.loads(msb("attach", "--list", "--all", "--format", "json", dev).succeeded().out)
        assert isinstance(found, list)
        return found

    # One that may be over before it is left, one that runs, one whose time is up.
    for command in ("exit 7", "until [ -e /go ]; do :; done; kill -9 $$"):
        msb("exec", "-d", dev, "--", "sh", "-c", command).succeeded()
    msb("exec", "-d", "--timeout", "100ms", dev, "--", "sleep", "1000").succeeded()
    fast, slow, late = (str(shown["id"]) for shown in listed())
    done = msb("wait", dev, "--session", fast)
    assert (done.code, done.text) == (7, f"dev: session {fast}: exit code 7\n")
    done = msb("wait", dev, "--session", late)
    assert (done.code, done.text) == (124, f"dev: session {late}: its time was up\n")
    with msb.start("wait", dev, "--session", slow) as waiting:
        msb("exec", dev, "--", "touch", "/go").succeeded()
        ended = waiting.finish()
    assert (ended.code, ended.text) == (137, f"dev: session {slow}: it was killed by signal 9\n")
    assert sessions(msb, dev) == []
    assert [shown["exit_code"] for shown in listed()] == [7, 137, 124]
    assert all(shown["ended_at"] for shown in listed())
    header, row, *_ = msb("attach", "--list", "--all", dev).succeeded().text.splitlines()
    assert header.split() == ["SESSION", "PID", "TERMINAL", "LEFT", "EXIT", "COMMAND"]
    assert " 7 " in row
    assert "no command of this number was left running" in msb("attach", dev, fast).failed()
    assert "no command of this number was left" in msb("wait", dev, "--session", "999999").failed(1)
    assert "--session is of one sandbox" in msb("wait", dev, "other", "--session", fast).failed(2)
    msb("stop", dev).succeeded()
    assert "is not running" in msb("wait", dev, "--session", fast).failed(1)


def test_no_sandbox_reaches_the_commands_of_another(msb: Msb, dev: str) -> None:
    msb("exec", "-d", dev, "--", "sleep", "1000").succeeded()
    (shown,) = sessions(msb, dev)
    msb("create", "busybox", "-n", "other").succeeded()
    assert sessions(msb, "other") == []
    assert "no command of this number" in msb("attach", "other", str(shown["id"])).failed()
    # Nor does a copy: what was left in it goes on without anybody.
    msb("fork", dev, "--name", "copy").succeeded()
    assert sessions(msb, "copy") == []
    msb("exec", "copy", "--", "pidof", "sleep").succeeded()
    msb("rm", "--force", "other", "copy").succeeded()


def test_a_paused_sandbox_is_not_attached_to(msb: Msb, dev: str) -> None:
    msb("exec", "-d", dev, "--", "sleep", "1000").succeeded()
    msb("pause", dev).succeeded()
    assert len(sessions(msb, dev)) == 1
    assert "paused" in msb("attach", dev).failed()
    msb("resume", dev).succeeded()
