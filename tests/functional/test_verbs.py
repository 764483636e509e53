"""The verbs of the lifecycle as a user types them: several names, labels, replacing, waiting, looking."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from tests.support.host import Host
from tests.support.msb import Msb
from tests.support.waiting import eventually

pytestmark = pytest.mark.vm


@pytest.fixture
def dev(msb: Msb) -> Iterator[str]:
    """The name of a running sandbox with two labels."""
    msb("create", "busybox", "--name", "dev", "-m", "128M", "--label", "team=a", "--label", "x=").succeeded()
    yield "dev"
    msb("rm", "--force", "dev").succeeded()


def _inspect(msb: Msb, name: str) -> dict[str, Any]:
    (found,) = json.loads(msb("inspect", name).succeeded().out)
    assert isinstance(found, dict)
    return found


# ---------------------------------------------------------------------------------------------- looking


def test_inspect_shows_what_is_known(msb: Msb, dev: str, host: Host) -> None:
    found = _inspect(msb, dev)
    running = host.sandbox()
    assert (found["id"], found["status"], found["labels"]) == (running.id, "running", {"team": "a", "x": ""})
    assert (found["supervisor_pid"], found["vmm_pid"]) == (running.supervisor.pid, running.vmm.pid)
    assert found["isolation"] in ("kvm", "emulated")
    assert found["end"] is None
    assert found["upper"]["allocated"] < found["upper"]["size"] == 8 << 30
    assert found["paths"]["directory"] == str(running.directory)
    assert found["created_at"] < found["started_at"] < found["since"]

    msb("stop", dev).succeeded()
    stopped = _inspect(msb, dev)
    assert (stopped["status"], stopped["supervisor_pid"], stopped["vmm_pid"]) == ("stopped", None, None)
    assert stopped["end"] == {"cause": "requested", "reason": "it was asked to stop", "vmm_exit": 0}
    assert stopped["since"] > found["since"]
    # Every name of a listing is in here, and means the same.
    (listed,) = json.loads(msb("ls", "--format", "json").succeeded().out)
    assert {name: stopped[name] for name in listed} == listed


def test_the_exit_code_of_the_command_it_was_there_for_is_kept(msb: Msb) -> None:
    def told() -> tuple[object, str, int]:
        waited = msb("wait", "dev")
        shown = msb("ps", "-a").succeeded().text.splitlines()[1].split("  ")
        return _inspect(msb, "dev")["exit_code"], shown[1].strip(), waited.code

    run = ("run", "-q", "--replace", "-n", "dev", "-m", "128M")
    try:
        # One that is over before its client can leave it, and one that nobody watches.
        assert msb(*run, "-d", "busybox", "--", "false").succeeded().text == "dev\n"
        assert told() == (1, "stopped (1)", 1)
        msb(*run, "-d", "busybox", "--", "sh", "-c", "sleep 0.3; kill -9 $$").succeeded()
        assert told() == (137, "stopped (137)", 137)
        assert msb(*run, "--timeout", "200ms", "busybox", "--", "sleep", "1000").code == 124
        assert told() == (124, "stopped (124)", 124)
        # In one that is started for it, exec is what it is there for; in one that runs it is not.
        assert msb("exec", "dev", "--", "sh", "-c", "exit 7").code == 7
        assert told() == (7, "stopped (7)", 7)
        msb("start", "dev").succeeded()
        assert msb("exec", "dev", "--", "false").code == 1
        assert _inspect(msb, "dev")["exit_code"] is None
        msb("stop", "dev").succeeded()
        assert told() == (None, "stopped", 0)
        assert msb("wait", "dev", "nobody").code == 1
    finally:
        msb("rm", "--force", "dev").succeeded()


def test_who_waits_for_one_that_leaves_nothing_hears_of_its_command_or_that_it_is_gone(msb: Msb) -> None:
    script = "until [ -e /go ]; do sleep 0.1; done; exit 5"
    name = msb("run", "-q", "-d", "busybox", "--", "sh", "-c", script).succeeded().text.strip()
    with msb.start("wait", name) as waiting, msb.start("wait", name, "nobody") as of_two:
        for each in (waiting, of_two):
            eventually(
                lambda each=each: _asks_the_agent(each.host_process.descriptors.values()),  # type: ignore[misc]
                within=60,
                what="the wait for the supervisor",
            )
        # They are connected; that their questions have been heard as well shows nowhere. A process begins,
        # connects, and asks as they do, and is answered, three times over.
        for _ in range(3):
            msb("exec", name, "--", "true").succeeded()
        msb("exec", name, "--", "touch", "/go").succeeded()
        done = waiting.finish()
        assert (done.code, done.text) == (5, f"{name}: removed: its command ended with code 5\n")
        assert of_two.finish().code == 1
    assert f"there is no sandbox named {name!r}" in msb("wait", name).failed(1)
    # Whoever comes about the time of its end hears one or the other.
    for _ in range(3):
        name = msb("run", "-q", "-d", "busybox", "--", "sh", "-c", "exit 9").succeeded().text.strip()
        done = msb("wait", name)
        if done.code != 9:
            assert f"there is no sandbox named {name!r}" in done.failed(1)


def _asks_the_agent(descriptors: Iterable[str]) -> bool:
    """Whether there is a connection besides the two ends that wake an event loop."""
    return sum(open_.startswith("socket:") for open_ in descriptors) > 2


def test_inspect_of_several_goes_on_after_one_that_is_not_there(msb: Msb, dev: str) -> None:
    done = msb("inspect", "nobody", dev)
    assert "nobody" in done.failed(1)
    assert [found["name"] for found in json.loads(done.out)] == [dev]


def test_ps_shows_what_runs_and_since_when(msb: Msb, dev: str, host: Host) -> None:
    with msb.start("run", "-m", "128M", "busybox", "--", "sh", "-c", "echo up; cat") as command:
        assert command.line() == b"up\n"
        header, first, second = msb("ps").succeeded().text.splitlines()
        assert header.split() == ["NAME", "STATUS", "SINCE", "PID", "IMAGE", "PORTS", "COMMAND"]
        pids = {str(sandbox.vmm.pid) for sandbox in host.running()}
        assert {first.split()[3], second.split()[3]} == pids
        assert first.split()[:2] == [dev, "running"]
        assert first.split()[4:] == ["busybox", "-", "-"]
        assert second.endswith("busybox  -      sh -c echo up; cat")
        command.finish(b"").succeeded()
    msb("stop", dev).succeeded()
    assert msb("ps", "-q").succeeded().out == b""
    assert msb("ps", "-a", "-q").succeeded().text == "dev\n"
    assert msb("ls", "--running", "-q").succeeded().out == b""


def test_ping_tells_how_long_the_agent_took(msb: Msb, dev: str) -> None:
    name, time, unit = msb("ping", dev).succeeded().text.split()
    assert (name, unit) == ("dev:", "ms")
    assert 0 < float(time) < 10_000
    msb("stop", dev).succeeded()
    assert "it is stopped" in msb("ping", dev).failed(1)


# ------------------------------------------------------------------------------------- names and labels


def test_labels_select(msb: Msb, dev: str) -> None:
    msb("run", "--name", "other", "--label", "team=b", "busybox", "--", "true").succeeded()
    try:
        assert msb("ls", "-q", "--label", "team").succeeded().text == "dev\nother\n"
        assert msb("ls", "-q", "--label", "team=a").succeeded().text == "dev\n"
        assert msb("ls", "-q", "--label", "team", "--label", "x=").succeeded().text == "dev\n"
        assert msb("ps", "-q", "--label", "team=b").succeeded().out == b""
        # Only those that do not run.
        assert msb("start", "--label", "team").succeeded().text == "other\n"
        assert msb("ping", "--label", "team=b").succeeded().text.startswith("other: ")
        assert msb("stop", "--force", "--label", "team").succeeded().text == "dev\nother\n"
        assert msb("stop", "--label", "nobody=has").succeeded().out == b""
        assert msb("rm", "--label", "team=b").succeeded().text == "other\n"
    finally:
        msb("rm", "--force", "other").succeeded()
    assert msb("ls", "-q").succeeded().text == "dev\n"


def test_a_label_that_cannot_be_is_refused_before_anything_is_made(msb: Msb, host: Host) -> None:
    assert "label" in msb("create", "busybox", "--name", "dev", "--label", "=x").failed(2)
    assert host.leftovers() == []


@pytest.mark.parametrize("verb", ["start", "stop", "restart", "rm", "wait", "ping"])
def test_a_verb_goes_on_after_a_failure_and_needs_a_name(msb: Msb, verb: str) -> None:
    done = msb(verb, "nobody", "neither")
    assert done.code == 1
    assert done.complaint.count("error: there is no sandbox named") == 2
    assert "no sandbox was named" in msb(verb).failed(2)


# ------------------------------------------------------------------------------------ restart, wait, stop


def test_restart_keeps_what_was_written(msb: Msb, dev: str, host: Host) -> None:
    msb("exec", dev, "--", "sh", "-c", "echo kept > /root/note").succeeded()
    before = host.sandbox()
    assert msb("restart", dev).succeeded().text == "dev\n"
    assert host.sandbox().supervisor != before.supervisor
    assert msb("exec", dev, "--", "cat", "/root/note").succeeded().text == "kept\n"
    msb("stop", dev).succeeded()
    msb("restart", dev).succeeded()
    assert _inspect(msb, dev)["status"] == "running"


def test_wait_blocks_until_it_has_stopped_and_says_why(msb: Msb, dev: str, host: Host) -> None:
    for verb, said in (
        (["stop", dev], "dev: stopped: it was asked to stop\n"),
        (["stop", "--force", dev], "dev: stopped: it was ended at once\n"),
    ):
        with msb.start("wait", dev) as waiting:
            eventually(
                lambda waiting=waiting: (
                    "anon_inode:[pidfd]"  # type: ignore[misc]
                    in waiting.host_process.descriptors.values()
                ),
                within=60,
                what="the wait for the supervisor",
            )
            msb(*verb).succeeded()
            assert waiting.finish().succeeded().text == said
        assert msb("wait", dev).succeeded().text == said
        msb("start", dev).succeeded()
    host.sandbox().vmm.kill()
    assert msb("wait", dev).succeeded().text.startswith("dev: crashed: the VMM ended by signal 9")


def test_a_stop_asks_the_workload_first(msb: Msb, dev: str) -> None:
    script = "trap 'echo asked > /root/note; exit' TERM; echo up; while :; do sleep 1; done"
    with msb.start("exec", dev, "--", "sh", "-c", script) as workload:
        assert workload.line() == b"up\n"
        msb("stop", "-t", "20", dev).succeeded()
        workload.finish()
    msb("start", dev).succeeded()
    # Written when it was asked to end, never synced by it.
    assert msb("exec", dev, "--", "cat", "/root/note").succeeded().text == "asked\n"


def test_a_workload_that_does_not_go_is_killed_after_its_time(msb: Msb, dev: str) -> None:
    script = "trap '' TERM; echo up; while :; do sleep 1; done"
    with msb.start("exec", dev, "--", "sh", "-c", script) as workload:
        assert workload.line() == b"up\n"
        msb("stop", "-t", "500ms", dev).succeeded()
        workload.finish()
    assert _inspect(msb, dev)["end"]["cause"] == "requested"


def test_who_stops_what_is_being_stopped_waits_for_the_same_end(msb: Msb, dev: str) -> None:
    script = "trap 'read line; echo $line > /root/note; exit' TERM; echo up; while :; do sleep 0.1; done"
    with msb.start("exec", dev, "--", "sh", "-c", script) as workload:
        assert workload.line() == b"up\n"
        with msb.start("stop", "-t", "30", dev) as first, msb.start("stop", "-t", "20", dev) as second:
            eventually(
                lambda: _inspect(msb, dev)["status"] == "stopping", within=60, what="the first of them"
            )
            eventually(
                lambda: all(
                    "anon_inode:[pidfd]" in stop.host_process.descriptors.values() for stop in (first, second)
                ),
                within=60,
                what="both to have found the supervisor",
            )
            workload.finish(b"written\n")
            first.finish().succeeded()
            second.finish().succeeded()
    assert _inspect(msb, dev)["end"] == {
        "cause": "requested",
        "reason": "it was asked to stop",
        "vmm_exit": 0,
    }
    msb("start", dev).succeeded()
    assert msb("exec", dev, "--", "cat", "/root/note").succeeded().text == "written\n"


def test_a_guest_that_switches_itself_off_has_not_crashed(msb: Msb, dev: str, host: Host) -> None:
    running = host.sandbox()
    msb("exec", dev, "--", "sh", "-c", "reboot -f")
    running.supervisor.wait_gone(within=60)
    found = _inspect(msb, dev)
    assert (found["status"], found["end"]["cause"]) == ("stopped", "guest")


@pytest.mark.parametrize("victim", ["supervisor", "vmm"])
def test_what_dies_without_a_word_has_crashed(msb: Msb, dev: str, host: Host, victim: str) -> None:
    running = host.sandbox()
    getattr(running, victim).kill()
    running.supervisor.wait_gone(within=60)
    running.vmm.wait_gone(within=60)
    found = _inspect(msb, dev)
    cause = {"supervisor": "supervisor_died", "vmm": "vmm_died"}[victim]
    assert (found["status"], found["end"]["cause"]) == ("crashed", cause)
    assert msb("ls").succeeded().text.splitlines()[1].split()[:2] == [dev, "crashed"]
    assert msb("ls", "--running", "-q").succeeded().out == b""
    msb("start", dev).succeeded()
    assert _inspect(msb, dev)["end"] is None


def test_a_sandbox_that_is_starting_is_shown_so_and_can_be_stopped(msb: Msb, host: Host) -> None:
    # L06: the stop wins, the creation is told so
    with msb.start("create", "--cold", "busybox", "--name", "dev") as creation:
        # However fast the guest boots, it is not up before this is over.
        os.kill(host.sandbox().vmm.pid, signal.SIGSTOP)
        assert _inspect(msb, "dev")["status"] == "starting"
        assert "starting" in msb("rm", "dev").failed(1)
        msb("stop", "dev").succeeded()
        assert "stopped while it was starting" in creation.finish().failed(125, hint=False)
    host.wait_empty()
    assert host.rows() == []


# --------------------------------------------------------------------------------------------- replacing


def test_replace_makes_a_new_one_in_the_place_of_the_old(msb: Msb, dev: str, host: Host) -> None:
    msb("exec", dev, "--", "touch", "/root/old").succeeded()
    old = host.sandbox()
    assert "--replace" in msb("create", "busybox", "--name", dev).failed(125)
    msb("create", "busybox", "--name", dev, "--replace").succeeded()
    new = host.sandbox()
    assert new.id != old.id
    assert host.directories() == [new.id]
    assert msb("exec", dev, "--", "ls", "/root").succeeded().out == b""
    # One that has stopped, and one that is not there.
    msb("stop", dev).succeeded()
    msb("run", "--replace", "--name", dev, "busybox", "--", "true").succeeded()
    msb("rm", dev).succeeded()
    msb("create", "busybox", "--name", dev, "--replace-with-grace", "5s").succeeded()


def test_replace_with_grace_lets_the_old_one_end_by_itself(msb: Msb, dev: str) -> None:
    script = "trap 'echo asked; exit' TERM; echo up; while :; do sleep 1; done"
    with msb.start("exec", dev, "--", "sh", "-c", script) as workload:
        assert workload.line() == b"up\n"
        msb("create", "busybox", "--name", dev, "--replace-with-grace", "20s").succeeded()
        assert workload.finish().text == "asked\n"


def test_what_cannot_be_made_replaces_nothing(msb: Msb, dev: str, host: Host) -> None:
    before = host.sandbox()
    msb("create", "no-such-image", "--name", dev, "--replace").failed(125)
    msb("run", "busybox", "--replace").failed(2)
    assert host.sandbox() == before


def test_who_is_replaced_while_starting_is_told(msb: Msb, dev: str, host: Host) -> None:
    with msb.start("create", "--cold", "busybox", "--name", dev, "--replace") as first:
        before = host.directories()
        eventually(lambda: host.running() and host.directories() != before, within=60, what="the new VMM")
        msb("create", "busybox", "--name", dev, "--replace").succeeded()
        assert "was replaced" in first.finish().failed(125, hint=False)
    assert len(host.running()) == 1
    assert host.rows() == [dev]
