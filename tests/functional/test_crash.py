"""kill -9 of the command line, the supervisor and the VMM: nothing is left, the next command works."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.host import Host, RunningSandbox
from tests.support.msb import Msb, Running
from tests.support.process import Process
from tests.support.waiting import at_this_pace, eventually

pytestmark = pytest.mark.vm

WAITING = ("sh", "-c", "echo up; cat")


def _started(msb: Msb, *options: str) -> Running:
    """`msb run` of a command that has begun and waits for its input."""
    command = msb.start("run", *options, "busybox", "--", *WAITING)
    assert command.line() == b"up\n"
    return command


@pytest.fixture
def promised() -> float:
    """Seconds after a crash in which nothing may be left: two, where the machine has time."""
    return at_this_pace(2.0)


def test_kill_of_the_command_line(msb: Msb, host: Host, promised: float) -> None:
    with _started(msb) as command:
        running = host.sandbox()
        command.process.kill()
        command.process.wait()
        host.wait_empty(within=promised)
    _assert_gone(running, promised)
    msb.run("true").succeeded()


def test_kill_of_the_supervisor(msb: Msb, host: Host, promised: float) -> None:
    with _started(msb) as command:
        running = host.sandbox()
        running.supervisor.kill()
        done = command.finish()
    assert "ended while sh was running" in done.failed(125)
    _assert_gone(running, promised)
    assert host.leftovers() == []
    msb.run("true").succeeded()


def test_kill_of_the_vmm(msb: Msb, host: Host, promised: float) -> None:
    with _started(msb) as command:
        running = host.sandbox()
        running.vmm.kill()
        done = command.finish()
    assert "ended while sh was running" in done.failed(125)
    _assert_gone(running, promised)
    assert host.leftovers() == []
    msb.run("true").succeeded()


def test_kill_of_everything_but_the_vmm(msb: Msb, host: Host, promised: float) -> None:
    with _started(msb) as command:
        running = host.sandbox()
        # Stopped first: none of them may get to do anything once the other is dead.
        for process in (command.host_process, running.supervisor):
            process.kill(signal.SIGSTOP)
        for process in (running.supervisor, command.host_process):
            process.kill()
        running.vmm.wait_gone(within=promised)
        command.process.wait()
    # Nobody was left who could remove the directory; the next command does.
    assert (host.processes(), host.locks()) == ([], [])
    assert msb("ls", "-q").succeeded().out == b""
    assert host.leftovers() == []
    assert host.rows() == []


def test_the_command_that_comes_next_may_be_any(msb: Msb, host: Host) -> None:
    with _started(msb) as command:
        running = host.sandbox()
        for process in (command.host_process, running.supervisor):
            process.kill(signal.SIGSTOP)
        for process in (running.supervisor, command.host_process):
            process.kill()
        running.supervisor.wait_gone(within=60)
    msb.run("true").succeeded()
    host.wait_empty()


@pytest.mark.parametrize("victim", ["vmm", "supervisor"])
def test_a_named_sandbox_starts_again_with_its_data(msb: Msb, host: Host, victim: str) -> None:
    msb("create", "busybox", "--name", "dev").succeeded()
    try:
        msb("exec", "dev", "--", "sh", "-c", "echo kept > /root/note; sync").succeeded()
        running = host.sandbox()
        process: Process = getattr(running, victim)
        with msb.start(
            "exec", "dev", "--", "sh", "-c", "echo up; while :; do date >> /root/log; done"
        ) as writer:
            assert writer.line() == b"up\n"
            process.kill()
            assert "ended while sh was running" in writer.finish().failed(125)
        running.supervisor.wait_gone(within=60)
        running.vmm.wait_gone(within=60)
        assert host.processes() == []
        assert "msb start dev" in msb("exec", "dev", "--", "true").failed(125)

        msb("start", "dev").succeeded()
        assert msb("exec", "dev", "--", "cat", "/root/note").succeeded().text == "kept\n"
        msb("stop", "dev").succeeded()
        upper = running.directory / "upper.ext4"
        found = subprocess.run(["/usr/sbin/e2fsck", "-fn", upper], capture_output=True, text=True)
        assert found.returncode == 0, found.stdout
    finally:
        msb("rm", "--force", "dev").succeeded()


def test_kill_of_the_command_line_leaves_a_detached_sandbox_alone(msb: Msb, host: Host) -> None:
    msb("create", "busybox", "--name", "dev").succeeded()
    try:
        with msb.start("exec", "dev", "--", *WAITING) as command:
            assert command.line() == b"up\n"
            command.process.kill()
        msb("exec", "dev", "--", "true").succeeded()
    finally:
        msb("rm", "--force", "dev").succeeded()


# L03: kill -9 at points of a start. Each names what the host shows at that moment.
POINTS: dict[str, Callable[[Host], object]] = {
    "directory": lambda host: host.directories(),
    "row": lambda host: host.rows(),
    "supervisor": lambda host: [p for p in host.processes() if "microsandbox.supervisor" in p.argv],
    "upper": lambda host: list(host.home.glob("sandboxes/*/upper.ext4")),
    "vmm": lambda host: host.running(),
    "socket": lambda host: host.sockets(),
    "console": lambda host: list(host.home.glob("sandboxes/*/console.log")),
}


USUAL = [("command line", "row"), ("command line", "console"), ("supervisor", "upper"), ("vmm", "socket")]
CASES = [
    *(("command line", point) for point in POINTS),
    *(("supervisor", point) for point in ("supervisor", "upper", "vmm", "socket", "console")),
    *(("vmm", point) for point in ("vmm", "socket", "console")),
]


@pytest.mark.parametrize(
    ("victim", "point"),
    [pytest.param(*case, marks=() if case in USUAL else pytest.mark.slow) for case in CASES],
)
def test_kill_while_it_starts(msb: Msb, host: Host, victim: str, point: str) -> None:
    # Cold: a start from a template has come past these points before they can be seen.
    with msb.start("run", "--cold", "busybox", "--", *WAITING) as command:
        eventually(lambda: POINTS[point](host), within=60, what=point)
        target = _find(victim, command, host)
        target.kill()
        if victim != "command line":
            command.finish(b"", timeout=120).failed(125)
    if point in ("directory", "row"):
        # There may have been no supervisor yet, so nobody who could remove the directory; or one that has to
        # come up before it can notice.
        eventually(lambda: host.processes() == [] and host.locks() == [], within=60, what="no process")
        msb("ls").succeeded()
    host.wait_empty()
    msb("ls").succeeded()
    assert host.rows() == []


def _find(victim: str, command: Running, host: Host) -> Process:
    if victim == "command line":
        return command.host_process
    program = {"supervisor": "microsandbox.supervisor", "vmm": "qemu"}[victim]
    return next(process for process in host.processes() if program in " ".join(process.argv[:4]))


def test_leftovers_of_any_kind_are_swept_by_the_next_command(msb: Msb, host: Host) -> None:
    # What a crash of the machine leaves: a directory without a lock, a stale socket in one with it.
    # L05: a stale socket file is present
    import socket

    for name, files in (("0" * 16, ["upper.ext4"]), ("1" * 16, ["lock", "console.log"]), ("2" * 16, [])):
        directory = Path(host.home, "sandboxes", name)
        directory.mkdir()
        for file in files:
            (directory / file).touch()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(Path(host.home, "sandboxes", "1" * 16, "agent.sock")))
    assert msb("ls", "-q").succeeded().out == b""
    assert host.directories() == []


def test_a_stale_socket_does_not_keep_a_sandbox_from_starting(msb: Msb, host: Host) -> None:
    import socket

    msb.run("true", options=["--name", "dev"]).succeeded()
    try:
        (identifier,) = host.directories()
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(Path(host.home, "sandboxes", identifier, "agent.sock")))
        msb("start", "dev").succeeded()
        msb("exec", "dev", "--", "true").succeeded()
    finally:
        msb("rm", "--force", "dev").succeeded()


def _assert_gone(running: RunningSandbox, promised: float) -> None:
    running.supervisor.wait_gone(within=promised)
    running.vmm.wait_gone(within=promised)
    assert not running.directory.exists()
