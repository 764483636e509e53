"""Ctrl-C and other signals to `msb`: the terminal as before, nothing left, the right exit code."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tests.support.host import Host
from tests.support.msb import PROGRAM, Msb
from tests.support.terminal import Terminal
from tests.support.waiting import eventually

pytestmark = pytest.mark.vm

RUN = (PROGRAM, "run", "busybox", "--", "sh", "-c", "echo up; sleep 600")


def test_ctrl_c_at_a_terminal(msb: Msb, host: Host) -> None:
    with Terminal(RUN, msb.environ) as terminal:
        terminal.read_until(b"up")
        terminal.type(b"\x03")
        done = terminal.finish()
        assert done.code == 130
        assert b"Traceback" not in done.out
        assert terminal.attributes() == terminal.before
    assert host.leftovers() == []
    assert host.rows() == []


# L10: SIGINT at any point of a run. Each names what the host shows at that moment.
POINTS: dict[str, Callable[[Host], object]] = {
    "directory": lambda host: host.directories(),
    "supervisor": lambda host: [p for p in host.processes() if "microsandbox.supervisor" in p.argv],
    "vmm": lambda host: host.running(),
    "console": lambda host: list(host.home.glob("sandboxes/*/console.log")),
}


@pytest.mark.parametrize("point", POINTS)
def test_ctrl_c_while_it_starts(msb: Msb, host: Host, point: str) -> None:
    # Cold: a start from a template has come past these points before they can be seen.
    with Terminal(RUN, {**msb.environ, "MSB_COLD": "1"}) as terminal:
        eventually(lambda: POINTS[point](host), within=60, what=point)
        terminal.type(b"\x03")
        done = terminal.finish()
        assert (done.code, b"Traceback" in done.out) == (130, False), done.out
        assert terminal.attributes() == terminal.before
    assert host.leftovers() == []
    assert host.rows() == []


def test_ctrl_c_several_times(msb: Msb, host: Host) -> None:
    with Terminal(RUN, msb.environ) as terminal:
        terminal.read_until(b"up")
        for _ in range(5):
            terminal.type(b"\x03")
        assert terminal.finish().code == 130
    assert host.leftovers() == []


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=["INT", "TERM", "HUP"],
)
def test_a_signal_ends_the_run_and_the_sandbox(msb: Msb, host: Host, number: int, code: int) -> None:
    with msb.start(*RUN[1:]) as command:
        assert command.line() == b"up\n"
        command.process.send_signal(number)
        done = command.finish(timeout=120)
    assert (done.code, done.err) == (code, b"")
    assert host.leftovers() == []
    assert host.rows() == []


def test_a_signal_is_heard_while_nobody_reads_the_output(msb: Msb, host: Host) -> None:
    with msb.start("run", "busybox", "--", "yes") as command:
        assert command.line() == b"y\n"
        command.process.send_signal(signal.SIGINT)
        assert command.process.wait(timeout=120) == 130
    assert host.leftovers() == []


def test_ctrl_c_of_exec_ends_its_command_and_not_the_sandbox(msb: Msb) -> None:
    msb("create", "busybox", "--name", "dev").succeeded()
    try:
        command = (PROGRAM, "exec", "dev", "--", "sh", "-c", "echo up; exec sleep 7777")
        with Terminal(command, msb.environ) as terminal:
            terminal.read_until(b"up")
            terminal.type(b"\x03")
            assert terminal.finish().code == 130
        eventually(
            lambda: msb("exec", "dev", "--", "pidof", "sleep").code == 1,
            within=60,
            what="the command's end in the guest",
        )
    finally:
        msb("rm", "--force", "dev").succeeded()


def test_a_terminal_that_hangs_up_ends_the_run(msb: Msb, host: Host) -> None:
    terminal = Terminal(RUN, msb.environ)
    with terminal:
        terminal.read_until(b"up")
        terminal.process.kill(signal.SIGHUP)
        assert terminal.finish().code == 129
    assert host.leftovers() == []


def test_ctrl_c_of_a_load_leaves_the_cache_as_it_was(empty_msb: Msb, busybox_layout: object) -> None:
    # Standard input is the archive: it does not end, so that the load is certainly under way.
    with empty_msb.start("load", "-t", "never") as command:
        command.stdin.write(b"\0" * 4096)
        eventually(lambda: empty_msb.home.exists(), within=60, what="the store's directory")
        command.process.send_signal(signal.SIGINT)
        done = command.finish(timeout=120)
    assert (done.code, b"Traceback" in done.err) == (130, False), done
    assert empty_msb("images", "-q").succeeded().out == b""
    assert [path for path in empty_msb.host.tree("cache") if "tmp/" in path] == []
