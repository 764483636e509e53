"""create, exec, stop, start, rm, ls: sandboxes that outlive a command."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.host import Host
from tests.support.msb import Msb
from tests.support.waiting import eventually

pytestmark = pytest.mark.vm


@pytest.fixture
def dev(msb: Msb) -> Iterator[str]:
    """The name of a running sandbox."""
    msb("create", "busybox", "--name", "dev", "-m", "256M", "-e", "SET=at creation").succeeded()
    yield "dev"
    msb("rm", "--force", "dev").succeeded()


def test_create_leaves_a_sandbox_running_and_ls_shows_it(msb: Msb, dev: str) -> None:
    (shown,) = json.loads(msb("ls", "--format", "json").succeeded().out)
    assert (shown["name"], shown["status"], shown["image"]) == ("dev", "running", "busybox")
    assert (shown["cpus"], shown["memory_mib"], shown["ephemeral"]) == (1, 256, False)
    assert msb("ls", "-q").succeeded().text == "dev\n"
    header, row = msb("ls").succeeded().text.splitlines()
    assert header.split()[:3] == ["NAME", "STATUS", "IMAGE"]
    assert row.split()[:3] == ["dev", "running", "busybox"]
    (running,) = msb.host.running()
    assert running.id == shown["id"]


def test_exec_has_the_same_contract_as_run(msb: Msb, dev: str) -> None:
    done = msb("exec", dev, "--", "sh", "-c", "cat; echo err >&2; echo $SET; exit 9", stdin=b"in\n")
    assert (done.out, done.err, done.code) == (b"in\nat creation\n", b"err\n", 9)
    done = msb(
        "exec", "-e", "SET=now", "-w", "/etc", "-u", "demo", dev, "--", "sh", "-c", "echo $SET; pwd; id -u"
    )
    assert done.succeeded().text.split() == ["now", "/etc", "1000"]
    msb("exec", dev, "--", "no-such-command").failed(127)
    msb("exec", dev, "--", "/etc/passwd").failed(126)
    assert msb("exec", dev, "--", "sh", "-c", "kill -15 $$").code == 143
    done = msb("exec", "--timeout", "5s", dev, "--", "sh", "-c", "echo part; sleep 600")
    done.failed(124, hint=False)
    assert done.out == b"part\n"
    assert msb("exec", dev).code == 2


def test_a_user_is_a_name_or_a_number_and_may_have_a_group(msb: Msb, dev: str) -> None:
    for user, shown in (
        ("1234", "1234 0"),
        ("65534:1000", "65534 1000"),
        ("demo:0", "1000 0"),
        ("nobody", "65534 65534"),
    ):
        done = msb("exec", "-u", user, dev, "--", "sh", "-c", "echo $(id -u) $(id -g)")
        assert done.succeeded().text.strip() == shown


def test_several_execs_at_once_do_not_mix(msb: Msb, dev: str) -> None:
    script = "i=0; while [ $i -lt 200 ]; do echo $0 $i; i=$((i+1)); done; cat"
    commands = [msb.start("exec", dev, "--", "sh", "-c", script, str(number)) for number in range(5)]
    for number, command in enumerate(commands):
        with command:
            done = command.finish(f"end {number}".encode()).succeeded()
            assert done.text == "".join(f"{number} {i}\n" for i in range(200)) + f"end {number}"


def test_exec_start_stop_and_rm_of_what_is_not_there(msb: Msb) -> None:
    assert "nobody" in msb("exec", "nobody", "--", "true").failed(125)
    for arguments in (["start", "nobody"], ["stop", "nobody"], ["rm", "nobody"]):
        assert "nobody" in msb(*arguments).failed(1)
    msb("rm", "--force", "nobody").succeeded()


def test_exec_in_a_stopped_sandbox_starts_it_and_stops_it_again(msb: Msb, dev: str, host: Host) -> None:
    msb("stop", dev).succeeded()
    done = msb("exec", dev, "--", "sh", "-c", "echo kept > /root/note; cat; exit 3", stdin=b"input\n")
    assert (done.code, done.text) == (3, "input\n")
    assert (host.processes(), host.sockets(), host.locks()) == ([], [], [])
    assert json.loads(msb("ls", "--format", "json").out)[0]["status"] == "stopped"
    assert msb("exec", dev, "--", "cat", "/root/note").succeeded().text == "kept\n"
    # What cannot be run is stopped after, too.
    msb("exec", dev, "--", "no-such-command").failed(127)
    assert (host.processes(), host.sockets(), host.locks()) == ([], [], [])


def test_a_sandbox_that_runs_goes_on_after_an_exec(msb: Msb, dev: str) -> None:
    msb("exec", dev, "--", "true").succeeded()
    assert json.loads(msb("ls", "--format", "json").out)[0]["status"] == "running"


def test_an_exec_that_is_killed_takes_the_sandbox_that_it_started_along(
    msb: Msb, dev: str, host: Host
) -> None:
    msb("stop", dev).succeeded()
    with msb.start("exec", dev, "--", "sh", "-c", "echo up; cat") as command:
        assert command.line() == b"up\n"
        supervisor = host.sandbox().supervisor
        command.process.kill()
        supervisor.wait_gone(within=60)
    assert msb("exec", dev, "--", "echo", "again").succeeded().text == "again\n"


def test_stop_and_start_twice_say_so_or_do_nothing(msb: Msb, dev: str, host: Host) -> None:
    assert "running" in msb("start", dev).failed(1)
    assert "msb stop dev" in msb("rm", dev).failed(1)
    msb("stop", dev).succeeded()
    assert (host.processes(), host.sockets(), host.locks()) == ([], [], [])
    msb("stop", dev).succeeded()
    assert json.loads(msb("ls", "--format", "json").out)[0]["status"] == "stopped"
    assert msb("ls", "--running", "-q").succeeded().out == b""


@pytest.mark.parametrize("end", ["", "; sync"], ids=["not synced", "synced"])
def test_what_is_written_survives_stop_and_start(msb: Msb, dev: str, host: Host, end: str) -> None:
    script = "mkdir -p /srv/a && head -c 3000000 /dev/urandom > /srv/a/data && sha256sum /srv/a/data" + end
    written = msb("exec", dev, "--", "sh", "-c", script).succeeded()
    msb("exec", dev, "--", "rm", "/usr/local/bin/tour").succeeded()
    msb("stop", dev).succeeded()
    _assert_clean(host)
    msb("start", dev).succeeded()
    assert msb("exec", dev, "--", "sha256sum", "/srv/a/data").succeeded().out == written.out
    assert msb("exec", dev, "--", "ls", "/usr/local/bin").succeeded().out == b""


def test_a_sandbox_that_switches_itself_off_has_stopped(msb: Msb, dev: str, host: Host) -> None:
    running = host.sandbox()
    msb("exec", dev, "--", "sh", "-c", "echo kept > /root/note; reboot -f")
    running.supervisor.wait_gone(within=60)
    running.vmm.wait_gone(within=0)
    assert msb("ls", "--running", "-q").succeeded().out == b""
    msb("start", dev).succeeded()


def test_several_names_are_worked_off_and_one_failure_is_told(msb: Msb, dev: str) -> None:
    msb("create", "busybox", "--name", "second").succeeded()
    done = msb("stop", "nobody", dev, "second")
    assert (done.code, done.text.split()) == (1, [dev, "second"])
    assert msb("rm", "second", dev).succeeded().text.split() == ["second", dev]
    msb("create", "busybox", "--name", dev).succeeded()


def test_rm_force_ends_what_runs_and_takes_everything(msb: Msb, host: Host) -> None:
    before = host.tree()
    msb("create", "busybox", "--name", "short").succeeded()
    running = host.sandbox()
    msb("rm", "--force", "short").succeeded()
    running.vmm.wait_gone(within=0)
    assert host.leftovers() == []
    assert sorted(set(host.tree()) ^ set(before)) == []


@pytest.mark.slow
def test_a_clock_that_is_wrong_is_set_again(msb: Msb, dev: str) -> None:
    """As after a suspend of the host, in which the guest stands still."""

    def seconds_off() -> float:
        """How far it is from any moment since it was asked."""
        before = time.time()
        shown = int(msb("exec", dev, "--", "date", "+%s").succeeded().text)
        return max(before - shown, shown - time.time())

    msb("exec", dev, "--", "date", "-s", "@1000000000").succeeded()
    eventually(lambda: seconds_off() < 3, within=120, what="the clock is the host's")


def test_a_client_killed_in_the_middle_of_exec_takes_its_command_along(msb: Msb, dev: str) -> None:
    # A12: the command ends, the sandbox goes on
    with msb.start("exec", dev, "--", "sh", "-c", "echo up; exec sleep 7777") as command:
        assert command.line() == b"up\n"
        command.process.kill()
    eventually(
        lambda: msb("exec", dev, "--", "pidof", "sleep").code == 1,
        within=60,
        what="the command's end in the guest",
    )


def _assert_clean(host: Host) -> None:
    """The upper of the one sandbox has nothing for fsck to mend."""
    (identifier,) = host.directories()
    upper = Path(host.home, "sandboxes", identifier, "upper.ext4")
    found = subprocess.run(["/usr/sbin/e2fsck", "-fn", upper], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
