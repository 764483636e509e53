"""Several commands at once on the same home: one winner, no lock in a sibling, nobody in the way."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.host import Host
from tests.support.msb import PROGRAM, Done, Msb
from tests.support.waiting import eventually

pytestmark = pytest.mark.vm


@pytest.fixture
def stopped(msb: Msb) -> Iterator[str]:
    """The name of a sandbox that does not run."""
    msb.run("true", options=["--name", "dev"]).succeeded()
    yield "dev"
    msb("rm", "--force", "dev").succeeded()


def _at_once(msb: Msb, *commands: tuple[str, ...]) -> list[Done]:
    running = [msb.start(*command) for command in commands]
    ended = []
    for command in running:
        with command:
            ended.append(command.finish(b"", timeout=120))
    return ended


def test_two_starts_of_one_sandbox_have_one_winner(msb: Msb, stopped: str, host: Host) -> None:
    # L01
    for _ in range(2):
        ended = _at_once(msb, ("start", stopped), ("start", stopped), ("start", stopped))
        assert sorted(done.code for done in ended) == [0, 1, 1]
        for done in ended:
            if done.code:
                assert re.search("is (starting|running)", done.failed(1))
        assert len(host.running()) == 1
        assert msb("exec", stopped, "--", "echo", "there").succeeded().text == "there\n"
        msb("stop", stopped).succeeded()


def test_two_creations_of_one_name_have_one_winner(msb: Msb, host: Host) -> None:
    try:
        ended = _at_once(msb, *[("create", "busybox", "--name", "dev")] * 3)
        assert sorted(done.code for done in ended) == [0, 125, 125]
        assert len(host.directories()) == 1
        assert host.rows() == ["dev"]
        msb("exec", "dev", "--", "true").succeeded()
    finally:
        msb("rm", "--force", "dev").succeeded()


@pytest.mark.slow
def test_a_start_is_not_disturbed_by_those_who_look(msb: Msb, stopped: str) -> None:
    # Looking takes a lock for a moment; a start must not mistake that for a sandbox that runs.
    looker = f"while {PROGRAM} ls >/dev/null; do :; done"
    looking = subprocess.Popen(["/bin/sh", "-c", looker], env=msb.environ, stdin=subprocess.DEVNULL)
    try:
        for _ in range(4):
            msb("start", stopped).succeeded()
            msb("stop", "--force", stopped).succeeded()
    finally:
        looking.kill()
        looking.wait()
    eventually(lambda: msb.host.processes() == [], within=60, what="the end of the last look")


def test_six_runs_at_once_all_succeed_and_none_holds_anothers_lock(msb: Msb, host: Host) -> None:
    # L02
    commands = [
        msb.start("run", "-m", "128M", "busybox", "--", "sh", "-c", f"echo up {number}; cat")
        for number in range(6)
    ]
    try:
        for number, command in enumerate(commands):
            assert command.line() == b"up %d\n" % number
        sandboxes = host.running()
        assert len({sandbox.id for sandbox in sandboxes}) == 6
        for sandbox in sandboxes:
            others = [other.id for other in sandboxes if other is not sandbox]
            for process in (sandbox.supervisor, sandbox.vmm):
                held = " ".join(process.descriptors.values())
                assert not [other for other in others if other in held], held
            assert str(sandbox.directory / "lock") in sandbox.supervisor.descriptors.values()
            assert str(sandbox.directory / "lock") not in sandbox.vmm.descriptors.values()
        listed = json.loads(msb("ls", "--format", "json").succeeded().out)
        assert [entry["status"] for entry in listed] == ["running"] * 6
    finally:
        ended = []
        for command in commands:
            with command:
                ended.append(command.finish(b"", timeout=120))
    assert [done.code for done in ended] == [0] * 6
    assert host.leftovers() == []


def test_two_first_starts_of_a_home_do_not_disturb_each_other(own_msb: Msb) -> None:
    # The kernel, the boot disk and the formatted upper are made by whoever needs them first.
    for name in ("kernels", "boot", "uppers"):
        for path in (own_msb.home / "cache" / name).iterdir():
            path.unlink()
    ended = _at_once(own_msb, *[("run", "busybox", "--", "echo", "here")] * 3)
    assert [(done.code, done.text) for done in ended] == [(0, "here\n")] * 3, [
        done.complaint for done in ended
    ]
    assert [path for path in own_msb.host.tree("cache") if path.endswith(".tmp")] == []


@pytest.mark.slow
def test_removal_racing_a_start_has_one_winner(msb: Msb, host: Host) -> None:
    # L06: never "running but unreachable"
    for _ in range(3):
        msb.run("true", options=["--name", "dev"]).succeeded()
        start, rm = _at_once(msb, ("start", "dev"), ("rm", "dev"))
        assert (start.code == 0) != (rm.code == 0), (start, rm)
        if start.code == 0:
            msb("exec", "dev", "--", "true").succeeded()
            msb("rm", "--force", "dev").succeeded()
        else:
            assert "there is no sandbox named 'dev'" in start.failed(1)
            assert host.leftovers() == []
        assert host.rows() == []


def test_loads_of_one_image_at_once_all_succeed(empty_msb: Msb, busybox_layout: object) -> None:
    # O16
    ended = _at_once(empty_msb, *[("load", f"oci:{busybox_layout}", "-t", "busybox")] * 4)
    assert [done.code for done in ended] == [0] * 4, [done.complaint for done in ended]
    assert len(empty_msb.host.layers()) == 1
    empty_msb.run("true").succeeded()
