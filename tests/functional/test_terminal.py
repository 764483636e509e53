"""A14: commands at a terminal: what a user types, sees, resizes, and finds afterwards."""

from __future__ import annotations

import hashlib
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from microsandbox_oci import ImageConfig

from tests.support.host import Host
from tests.support.images import write_layout
from tests.support.msb import PROGRAM, Msb
from tests.support.terminal import Terminal
from tests.support.tmux import Tmux
from tests.support.waiting import eventually

pytestmark = pytest.mark.vm

SHELL = (PROGRAM, "run", "-q", "-e", "PS1=$ ", "busybox")
"""The image's CMD is a shell."""


@pytest.fixture
def dev(msb: Msb) -> Iterator[str]:
    """A named sandbox that runs."""
    msb("create", "busybox", "--name", "dev").succeeded()
    yield "dev"
    msb("rm", "--force", "dev").succeeded()


def in_dev(*command: str) -> tuple[str | Path, ...]:
    return (PROGRAM, "exec", "-e", "PS1=$ ", "dev", "--", *command)


# ------------------------------------------------------------------------------------------------- a shell


def test_a_shell_with_job_control(msb: Msb, host: Host) -> None:
    with Terminal(SHELL, {**msb.environ, "TERM": "vt220"}) as terminal:
        shown = terminal.expect(b"$ ")
        assert b"job control" not in shown
        terminal.type(b"tty; echo $TERM; [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo all''three\r")
        assert b"/dev/pts/0\r\nvt220\r\n" in terminal.expect(b"allthree\r\n")
        # Ctrl-C is a byte for the guest: the sleep ends, the shell and msb do not.
        sleeping = b"sh -c 'echo sleep''ing; exec sleep 600'\r"
        terminal.type(sleeping)
        terminal.expect(b"sleeping\r\n")
        terminal.type(b"\x03")
        terminal.expect(b"^C")
        terminal.expect(b"$ ")
        terminal.type(b"echo code''=$?\r")
        terminal.expect(b"code=130\r\n")
        terminal.type(sleeping)
        terminal.expect(b"sleeping\r\n")
        terminal.type(b"\x1a")
        terminal.expect(b"Stopped")
        terminal.type(b"kill -9 %1; fg %1; exit 7\r")
        done = terminal.finish()
        assert done.code == 7
        assert terminal.attributes() == terminal.before
    assert host.leftovers() == []


@pytest.mark.parametrize("option", [(), ("-q",)])
def test_a_boot_is_shown_while_it_takes_and_gone_afterwards(msb: Msb, option: tuple[str, ...]) -> None:
    command: list[str | Path] = [
        PROGRAM,
        "run",
        *option,
        "--cold",
        "--no-stdin",
        "busybox",
        "--",
        "echo",
        "up",
    ]
    with Terminal(command, msb.environ) as terminal:
        shown = terminal.expect(b"up\r\n")
        assert terminal.finish().code == 0
    *progress, last = shown.split(b"\r")[:-1]
    if option:
        assert (progress, last) == ([], b"up")
    else:
        # Each time in the place of the one before; in the end nothing is left of it.
        assert progress.pop(0) == b""
        assert all(re.fullmatch(rb"booting the guest kernel: \d+\.\d s\x1b\[J", each) for each in progress)
        assert progress
        assert last == b"\x1b[Jup"


def test_ctrl_d_ends_the_shell(msb: Msb) -> None:
    with Terminal(SHELL, msb.environ) as terminal:
        terminal.expect(b"$ ")
        terminal.type(b"\x04")
        assert terminal.finish().code == 0


def test_without_any_command_there_is_a_shell_at_a_terminal_and_an_error_elsewhere(
    msb: Msb, tmp_path: Path
) -> None:
    layout = write_layout(tmp_path / "bare", ImageConfig(env=("PATH=/bin", "PS1=$ ")))
    assert "no command to run" in msb("run", f"oci:{layout}").failed(125)
    with Terminal((PROGRAM, "run", "-q", f"oci:{layout}"), msb.environ) as terminal:
        terminal.expect(b"$ ")
        terminal.type(b"exit 9\r")
        assert terminal.finish().code == 9


@pytest.mark.usefixtures("dev")
def test_exec_without_a_command_is_a_shell(msb: Msb) -> None:
    assert "no command" in msb("exec", "dev").failed(2)
    with Terminal((PROGRAM, "exec", "-e", "PS1=$ ", "dev"), msb.environ) as terminal:
        terminal.expect(b"$ ")
        terminal.type(b"exit 8\r")
        assert terminal.finish().code == 8


def test_the_size_follows_the_window(msb: Msb) -> None:
    script = "trap 'stty size' WINCH; stty size; while :; do sleep 600 & wait $!; done"
    with Terminal((*SHELL, "--", "sh", "-c", script), msb.environ) as terminal:
        terminal.expect(b"24 80\r\n")
        terminal.resize(50, 132)
        terminal.expect(b"50 132\r\n")
        terminal.resize(20, 40)
        terminal.expect(b"20 40\r\n")
        terminal.type(b"\x03")
        assert terminal.finish().code == 130


def test_the_first_size_is_the_windows(msb: Msb) -> None:
    with Terminal(
        (PROGRAM, "run", "-q", "busybox", "--", "sh", "-c", "read x; stty size"), msb.environ
    ) as terminal:
        terminal.resize(33, 99)
        terminal.type(b"\n")
        assert b"33 99\r\n" in terminal.read_until(b"99")
        assert terminal.finish().code == 0


def test_vi_in_tmux(msb: Msb, dev: str, tmp_path: Path) -> None:
    with Tmux(tmp_path / "tmux", in_dev("sh"), msb.environ) as tmux:
        tmux.wait_for("$")
        tmux.type("vi /root/file", "Enter")
        tmux.wait_for("~")
        tmux.type("i")
        tmux.type("written in vi")
        tmux.wait_for("written in vi")
        tmux.resize(60, 10)
        tmux.type("Escape")
        # What follows an Escape at once is one key with it.
        tmux.wait_for("- /root/file")
        tmux.type(":wq", "Enter")
        # The screen from before vi.
        tmux.wait_for("vi /root/file")
        tmux.type("stty size", "Enter")
        tmux.wait_for("10 60")
    assert msb("exec", dev, "--", "cat", "/root/file").succeeded().out == b"written in vi\n"


# ------------------------------------------------------------------------------------- who gets a terminal


def test_no_terminal_without_one_here_unless_asked_for(msb: Msb) -> None:
    script = "test -t 0; echo $?; test -t 1; echo $?"
    assert msb.run("sh", "-c", script, stdin=b"").succeeded().out == b"1\n1\n"
    assert msb.run("sh", "-c", script, stdin=b"", options=["-t"]).succeeded().out == b"0\r\n0\r\n"
    # Without standard input it is /dev/null, and the rest is a terminal all the same.
    assert msb.run("sh", "-c", script, options=["--tty"]).succeeded().out == b"1\r\n0\r\n"
    assert "exclude" in msb.run("true", options=["-t", "--no-tty"]).failed(2)


def test_no_terminal_if_it_is_not_wanted(msb: Msb) -> None:
    command = (PROGRAM, "run", "-q", "--no-tty", "busybox", "--", "sh", "-c", "test -t 1; echo $?; sleep 600")
    with Terminal(command, msb.environ) as terminal:
        terminal.expect(b"1\r\n")
        assert terminal.attributes() == terminal.before
        terminal.type(b"\x03")
        assert terminal.finish().code == 130


def test_a_terminal_belongs_to_the_user(msb: Msb) -> None:
    script = (
        "echo one > /dev/tty; echo two > /dev/pts/0; echo three > /dev/stdout; stat -c '%u %g %a' /dev/pts/0"
    )
    done = msb.run("sh", "-c", script, options=["-t", "-u", "1000:1000"]).succeeded()
    assert done.out == b"one\r\ntwo\r\nthree\r\n1000 5 620\r\n"


# --------------------------------------------------------------------------------------------------- bytes


def test_ten_megabytes_arrive_whole(msb: Msb) -> None:
    # Random bytes: hardly any of it is UTF-8, and every control character is in it.
    script = "stty -opost <&1; head -c 10485760 /dev/urandom > /root/f; sha256sum < /root/f; cat /root/f"
    shown = msb.run("sh", "-c", script, options=["-t"]).succeeded().out
    digest, _, data = shown.partition(b"  -\n")
    assert len(data) == 10 << 20
    assert hashlib.sha256(data).hexdigest().encode() == digest


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 12000])
def test_what_is_written_last_is_not_lost(msb: Msb, dev: str, size: int) -> None:
    script = f"stty -opost <&1; exec head -c {size} /dev/zero"
    for _ in range(10):
        assert msb("exec", "-t", dev, "--", "sh", "-c", script).succeeded().out == bytes(size)


def test_every_byte_can_be_typed(msb: Msb) -> None:
    every = bytes(range(256))
    command = (
        PROGRAM,
        "run",
        "-q",
        "busybox",
        "--",
        "sh",
        "-c",
        "stty raw -echo; echo up; head -c 256 | hexdump -C",
    )
    with Terminal(command, msb.environ) as terminal:
        terminal.expect(b"up\n")
        terminal.type(every)
        shown = terminal.read_until(b"00000100")
        assert terminal.finish().code == 0
    pairs = b"".join(line[10:58] for line in shown.splitlines() if len(line) > 58)
    assert bytes.fromhex(pairs.decode()) == every


def test_input_from_a_file_arrives_and_ends(msb: Msb) -> None:
    lines = b"".join(b"%06d and so on to some length\n" % number for number in range(10_000))
    # What comes before `stty` has run is echoed.
    script = "stty -echo; cat > /root/f; echo; sha256sum < /root/f"
    done = msb.run("sh", "-c", script, stdin=lines + b"rest", options=["-t"]).succeeded()
    assert done.out.split()[-2].decode() == hashlib.sha256(lines + b"rest").hexdigest()


# ------------------------------------------------------------------------------------------------- the end


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGQUIT, 131)],
    ids=["TERM", "INT", "HUP", "QUIT"],
)
def test_the_terminal_is_as_before_after_a_signal(
    msb: Msb, host: Host, number: signal.Signals, code: int
) -> None:
    with Terminal(SHELL, msb.environ) as terminal:
        terminal.expect(b"$ ")
        assert terminal.attributes() != terminal.before
        terminal.process.kill(number)
        assert terminal.finish().code == code
        assert terminal.attributes() == terminal.before
    host.wait_empty()


def test_the_terminal_is_as_before_when_the_sandbox_is_lost(msb: Msb, dev: str) -> None:
    with Terminal(in_dev("sh"), msb.environ) as terminal:
        terminal.expect(b"$ ")
        msb("stop", "--force", dev).succeeded()
        done = terminal.finish()
        assert (done.code, b"Traceback" in done.out) == (125, False)
        assert terminal.attributes() == terminal.before


def test_a_stop_hangs_up_on_an_interactive_shell(msb: Msb, dev: str) -> None:
    # It ignores SIGTERM: without SIGHUP it would be killed at the end of the grace.
    with Terminal(in_dev("sh"), msb.environ) as terminal:
        terminal.expect(b"$ ")
        msb("stop", dev).succeeded()
        assert terminal.finish().code == 129


def test_a_command_that_is_killed_gives_the_terminal_back(msb: Msb) -> None:
    with Terminal((*SHELL, "--", "sh", "-c", "stty raw; kill -9 $$"), msb.environ) as terminal:
        assert terminal.finish(within=60).code == 137
        assert terminal.attributes() == terminal.before


def test_a_command_ends_with_the_terminal_it_is_at(msb: Msb, dev: str) -> None:
    script = "trap '' HUP; echo up; while :; do sleep 5555; done"
    with Terminal(in_dev("sh", "-c", script), msb.environ) as terminal:
        terminal.expect(b"up")
        terminal.process.kill(signal.SIGKILL)
        terminal.finish()
    eventually(
        lambda: msb("exec", dev, "--", "pidof", "sleep").code == 1, within=60, what="the command's end"
    )


def test_a_descendant_does_not_keep_the_command(msb: Msb) -> None:
    done = msb.run("sh", "-c", "sleep 600 & echo started", options=["-t"])
    assert done.succeeded().out == b"started\r\n"


@pytest.mark.usefixtures("dev")
def test_detach_keys_leave_the_command_running(msb: Msb) -> None:
    script = (
        "echo up; read x; echo got $x > /root/x; while [ ! -e /root/go ]; do echo more; done; touch /root/y"
    )
    with Terminal(in_dev("sh", "-c", script), msb.environ) as terminal:
        terminal.expect(b"up")
        # The first alone is for the command.
        terminal.type(b"a\x10b\r")
        terminal.expect(b"more")
        terminal.type(b"\x10\x11")
        done = terminal.finish()
        assert (done.code, b"goes on in the sandbox 'dev'" in done.out) == (0, True)
        assert terminal.attributes() == terminal.before
    assert msb("exec", "dev", "--", "cat", "/root/x").succeeded().out == b"got a\x10b\n"
    # It writes and writes, nobody reads, and it comes to its end.
    msb("exec", "dev", "--", "touch", "/root/go").succeeded()
    eventually(lambda: msb("exec", "dev", "--", "cat", "/root/y").code == 0, within=60, what="its last line")


@pytest.mark.usefixtures("dev")
def test_other_detach_keys(msb: Msb) -> None:
    command = (PROGRAM, "exec", "--detach-keys", "ctrl-],.", "dev", "--", "sh", "-c", "echo up; sleep 600")
    with Terminal(command, msb.environ) as terminal:
        terminal.expect(b"up")
        terminal.type(b"\x10\x11\x1d.")
        assert terminal.finish().code == 0
    assert "--detach-keys" in msb("exec", "--detach-keys", "ctrl-1", "dev", "--", "true").failed(2)


# ------------------------------------------------------------------------------------------- hostile roots


@pytest.mark.usefixtures("dev")
def test_the_workload_cannot_take_the_terminals_away(msb: Msb) -> None:
    script = "umount -l /dev/pts && rm -rf /dev/pts /dev/ptmx && mkdir /dev/pts && mkfifo /dev/pts/ptmx"
    msb("exec", "dev", "--", "sh", "-c", script).succeeded()
    done = msb("exec", "-t", "dev", "--", "sh", "-c", "test -t 1 && echo there").succeeded()
    assert done.out == b"there\r\n"


def test_terminals_are_given_back(msb: Msb, dev: str) -> None:
    for _ in range(20):
        assert msb("exec", "-t", dev, "--", "sh", "-c", "tty <&1").succeeded().out == b"/dev/pts/0\r\n"
    assert msb("exec", dev, "--", "ls", "/dev/pts").succeeded().out == b"ptmx\n"
