"""Pausing and forking: what stands still, what goes on in both, what each has for itself."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.host import Host, RunningSandbox
from tests.support.msb import Msb
from tests.support.waiting import eventually

pytestmark = pytest.mark.vm

COUNTER = "i=0; while true; do i=$((i+1)); echo $i > /root/n; sleep 0.05; done"


@pytest.fixture
def dev(msb: Msb) -> Iterator[str]:
    """The name of a running sandbox, in which a process counts."""
    msb(
        "create", "busybox", "--name", "dev", "-m", "128M", "--label", "team=a", "-e", "KEY=value"
    ).succeeded()
    _sh(msb, "dev", f"({COUNTER}) >/dev/null 2>&1 & echo up > /root/up")
    yield "dev"
    names = msb("ls", "-q").succeeded().text.split()
    msb("rm", "--force", "dev", *names).succeeded()


def _sh(msb: Msb, name: str, script: str) -> str:
    return msb("exec", name, "--", "sh", "-c", script).succeeded().text


def _status(msb: Msb, name: str) -> str:
    (found,) = json.loads(msb("inspect", name).succeeded().out)
    return str(found["status"])


def _fork(msb: Msb, name: str, new: str, *options: str) -> list[dict[str, Any]]:
    begun = time.monotonic()
    done = msb("fork", name, "--name", new, *options, "--format", "json").succeeded()
    taken = (time.monotonic() - begun) * 1000
    found = json.loads(done.out)
    assert isinstance(found, list)
    # The source hardly notices; on a machine that is slow at everything the rest takes longer, too.
    assert all(0 <= made["pause_ms"] < max(500, taken / 4) for made in found), (taken, found)
    return found


def _counts(msb: Msb, name: str) -> bool:
    """Whether the process goes on that counts."""
    read = 'n=$(cat /root/n); while [ "$(cat /root/n)" = "$n" ]; do :; done'
    return msb("exec", "--timeout", "60s", name, "--", "sh", "-c", read).code == 0


def _is_clean(upper: Path) -> bool:
    checked = subprocess.run(["e2fsck", "-fn", upper], capture_output=True, text=True)
    return checked.returncode == 0


# ---------------------------------------------------------------------------------------------- pausing


def test_a_paused_sandbox_does_nothing_and_goes_on_where_it_was(msb: Msb, dev: str, host: Host) -> None:
    assert msb("pause", dev).succeeded().text == "dev\n"
    assert msb("pause", dev).succeeded().text == "dev\n"
    assert _status(msb, dev) == "paused"
    assert "paused" in msb("ps").succeeded().text
    vmm = host.sandbox().vmm
    before = Path(f"/proc/{vmm.pid}/stat").read_text().split()[13]
    for command in (("exec", dev, "--", "true"), ("cp", "dev:/root/n", "-")):
        told = msb(*command)
        assert "the sandbox 'dev' is paused" in told.complaint
        assert "msb resume dev" in told.complaint
        assert told.code != 0
    assert "the sandbox 'dev' is paused" in msb("ping", dev).failed(1)
    assert Path(f"/proc/{vmm.pid}/stat").read_text().split()[13] == before

    assert msb("resume", "--label", "team=a").succeeded().text == "dev\n"
    assert msb("resume", dev).succeeded().text == "dev\n"
    assert _status(msb, dev) == "running"
    assert _counts(msb, dev)
    begun = time.time()
    shown = float(_sh(msb, dev, "date +%s"))
    assert begun - 2 < shown < time.time() + 2


def test_a_command_that_runs_waits_out_a_pause(msb: Msb, dev: str) -> None:
    with msb.start("exec", dev, "--", "cat") as command:
        command.stdin.write(b"before\n")
        assert command.line() == b"before\n"
        msb("pause", dev).succeeded()
        command.stdin.write(b"after\n")
        msb("resume", dev).succeeded()
        assert command.line() == b"after\n"
        assert command.finish(b"").succeeded().out == b""


def test_what_is_paused_can_be_ended(msb: Msb, dev: str, host: Host) -> None:
    _sh(msb, dev, "echo kept > /root/kept")
    msb("pause", dev).succeeded()
    msb("stop", dev).succeeded()
    assert _status(msb, dev) == "stopped"
    assert _is_clean(host.home / "sandboxes" / host.directories()[0] / "upper.ext4")
    msb("start", dev).succeeded()
    assert _sh(msb, dev, "cat /root/kept") == "kept\n"
    msb("pause", dev).succeeded()
    assert "is paused" in msb("rm", dev).failed(1)
    msb("stop", "--force", dev).succeeded()
    assert _status(msb, dev) == "stopped"
    msb("start", dev).succeeded()
    msb("pause", dev).succeeded()
    msb("rm", "--force", dev).succeeded()
    assert msb("ls", "-q").succeeded().out == b""


def test_limits_of_a_paused_sandbox(msb: Msb) -> None:
    # Until it is paused, however long that takes, it prints, and is not idle.
    prints = "(while echo; do sleep 0.1; done) & cat > /dev/null; kill $!; sleep 1000"
    options = ("--name", "idle", "-m", "128M", "--idle-timeout", "4s")
    with msb.start("run", *options, "busybox", "--", "sh", "-c", prints) as printing:
        assert printing.line() == b"\n"
        msb("pause", "idle").succeeded()
        printing.stdin.close()
        msb("create", "busybox", "--name", "short", "-m", "128M", "--max-duration", "12s").succeeded()
        msb("pause", "short").succeeded()
        # The one ends although it is paused, by which time the other would have been idle for long.
        assert "max-duration" in msb("wait", "short").succeeded().text
        assert _status(msb, "idle") == "paused"
        msb("resume", "idle").succeeded()
        assert "idle for 4 s" in msb("wait", "idle").text
        assert printing.process.wait(60) == 124
    msb("rm", "idle", "short").succeeded()


def test_what_does_not_run_cannot_be_paused(msb: Msb, dev: str) -> None:
    msb("stop", dev).succeeded()
    assert "it is stopped" in msb("pause", dev).failed(1)
    assert "it is stopped" in msb("resume", dev).failed(1)
    assert "no sandbox named" in msb("pause", "nobody").failed(1)


# ---------------------------------------------------------------------------------------------- forking


def test_a_fork_goes_on_and_is_somebody_else(msb: Msb, dev: str) -> None:
    (made,) = _fork(msb, dev, "kid")
    assert (made["name"], made["source"]) == ("kid", "dev")
    assert 0 < made["pause_ms"] < 500
    assert made["memory_bytes"] > 0
    assert made["upper_bytes"] >= 0
    who = "hostname; cat /etc/hostname /etc/machine-id; head -c 32 /dev/urandom | od -An -tx8 | tr -d '\\n'"
    ours, theirs = (_sh(msb, name, who).split("\n") for name in ("dev", "kid"))
    assert (ours[:2], theirs[:2]) == (["dev", "dev"], ["kid", "kid"])
    assert ours[2] != theirs[2]
    assert ours[3] != theirs[3]
    assert _counts(msb, "kid")
    assert _counts(msb, "dev")
    # Its settings and labels are the source's, its disk is not.
    assert _sh(msb, "kid", "echo $KEY; cat /root/up; echo kid > /root/mine") == "value\nup\n"
    assert msb("exec", "dev", "--", "test", "-e", "/root/mine").code == 1
    assert msb("ls", "-q", "--label", "team=a").succeeded().text == "dev\nkid\n"
    # It is a sandbox as any other.
    msb("rm", "--force", dev).succeeded()
    msb("restart", "kid").succeeded()
    assert _sh(msb, "kid", "cat /root/mine; hostname") == "kid\nkid\n"


def test_the_clock_of_a_fork_is_right(msb: Msb, dev: str) -> None:
    msb("pause", dev).succeeded()
    _fork(msb, dev, "kid")
    clock = "adjtimex 2>/dev/null | grep -E 'time.tv'; date +%s"
    before = time.time()
    shown = _sh(msb, "kid", clock)
    after = time.time()
    seconds = re.search(r"tv_sec:\s*(\d+)", shown)
    micro = re.search(r"tv_usec:\s*(\d+)", shown)
    if seconds and micro:
        told = int(seconds[1]) + int(micro[1]) / 1e6
        assert before - 0.1 < told < after + 0.1
    else:
        assert before - 1.1 < float(shown.split()[-1]) < after + 0.1


def test_several_forks_at_once(msb: Msb, dev: str, host: Host) -> None:
    made = _fork(msb, dev, "kid", "--count", "3")
    names = [each["name"] for each in made]
    assert names == ["kid-1", "kid-2", "kid-3"]
    random = {_sh(msb, name, "head -c 16 /dev/urandom | od -An -tx8") for name in names}
    machines = {_sh(msb, name, "cat /etc/machine-id") for name in names}
    assert (len(random), len(machines)) == (3, 3)
    assert all(_counts(msb, name) for name in (*names, dev))
    # What they were started from is nowhere any more but in their memory.
    assert not list(host.home.glob("sandboxes/*/fork"))


def test_forks_of_forks_and_of_what_is_paused_or_stopped(msb: Msb, dev: str) -> None:
    msb("pause", dev).succeeded()
    (made,) = _fork(msb, dev, "kid")
    assert made["pause_ms"] == 0
    assert _status(msb, dev) == "paused"
    assert _counts(msb, "kid")
    _sh(msb, "kid", "echo kid > /root/mine")
    _fork(msb, "kid", "grandkid")
    assert _counts(msb, "grandkid")
    assert _sh(msb, "grandkid", "cat /root/mine; hostname") == "kid\ngrandkid\n"
    msb("resume", dev).succeeded()
    assert _counts(msb, dev)
    msb("stop", "kid").succeeded()
    # Of one that does not run there is only the disk.
    _fork(msb, "kid", "twin")
    assert (_status(msb, "kid"), _status(msb, "twin")) == ("stopped", "running")
    assert _sh(msb, "twin", "cat /root/mine; hostname") == "kid\ntwin\n"


def test_a_fork_of_a_sandbox_that_was_booted(msb: Msb, dev: str) -> None:
    msb("create", "busybox", "--cold", "--name", "cold", "-m", "128M").succeeded()
    _sh(msb, "cold", f"({COUNTER}) >/dev/null 2>&1 &")
    _fork(msb, "cold", "kid")
    assert _counts(msb, "kid")
    assert _counts(msb, "cold")


def test_connections_are_the_sources(msb: Msb, dev: str) -> None:
    """A command of a client goes on in both; what it prints in the fork is nobody's."""
    script = "echo up; while read line; do echo $line; done; echo end; echo over > /root/over"
    with msb.start("exec", dev, "--", "sh", "-c", script) as command:
        assert command.line() == b"up\n"
        _fork(msb, dev, "kid")
        # Its input has ended there.
        eventually(
            lambda: msb("exec", "kid", "--", "test", "-e", "/root/over").code == 0,
            within=60,
            what="the end of input",
        )
        assert msb("exec", dev, "--", "test", "-e", "/root/over").code == 1
        command.stdin.write(b"still here\n")
        assert command.line() == b"still here\n"
        assert command.finish(b"").succeeded().out == b"end\n"


def test_a_fork_while_the_guest_writes(msb: Msb, dev: str, host: Host) -> None:
    """P08: both are consistent, and the source has hardly noticed."""
    _sh(
        msb,
        dev,
        "(while true; do dd if=/dev/urandom of=/root/big bs=64k count=100; mkdir -p /root/d/$(cat /root/n); "
        "done) >/dev/null 2>&1 &",
    )
    eventually(
        lambda: int(_sh(msb, dev, "ls /root/d 2>/dev/null | wc -l")) > 1, within=60, what="files in the guest"
    )
    (made,) = _fork(msb, dev, "kid")
    assert 0 < made["pause_ms"] < 500
    assert _counts(msb, "kid")
    assert _counts(msb, dev)
    msb("stop", dev, "kid").succeeded()
    uppers = sorted(host.home.glob("sandboxes/*/upper.ext4"))
    assert len(uppers) == 2
    assert all(_is_clean(upper) for upper in uppers)


@pytest.mark.alone(reason="three machines write and sync without a pause: everybody else waits for the disk")
def test_a_fork_of_one_with_much_on_its_disk(msb: Msb, dev: str, host: Host) -> None:
    """Such a disk is copied while it is written to, and the copy completed in the pause."""
    sums = "md5sum /root/large /dev/shm/large"
    _sh(
        msb,
        dev,
        "for d in /root /dev/shm; do dd if=/dev/urandom of=$d/large bs=1M count=40 2>/dev/null; done; sync; "
        "(while true; do dd if=/dev/urandom of=/root/small bs=64k count=20; sync; done) >/dev/null 2>&1 &",
    )
    (made,) = _fork(msb, dev, "kid")
    assert made["upper_bytes"] == 0
    assert made["memory_bytes"] > 40 << 20
    msb("pause", dev).succeeded()
    (paused,) = _fork(msb, dev, "late")
    assert (paused["pause_ms"], paused["upper_bytes"]) == (0, 0)
    msb("resume", dev).succeeded()
    assert _sh(msb, "kid", sums) == _sh(msb, "late", sums) == _sh(msb, dev, sums)
    names = (dev, "kid", "late")
    assert all(_counts(msb, name) for name in names)
    msb("stop", *names).succeeded()
    assert all(_is_clean(upper) for upper in host.home.glob("sandboxes/*/upper.ext4"))


def test_refusals(msb: Msb, dev: str, host: Host) -> None:
    assert "exists" in msb("fork", dev, "--name", dev).failed(125)
    assert "no sandbox named" in msb("fork", "nobody", "--name", "kid").failed(125)
    assert "count" in msb("fork", dev, "--name", "kid", "--count", "0").failed(2)
    assert "name" in msb("fork", dev, "--name", "no such/name").failed(2)
    assert len(host.directories()) == 1
    assert _counts(msb, dev)


# --------------------------------------------------------------------------------------------- killing


def test_who_is_killed_while_forking_leaves_nothing_and_the_source_runs(
    msb: Msb, dev: str, host: Host
) -> None:
    (source,) = host.running()
    for moment in range(12):
        with msb.start("fork", dev, "--name", "kid", "--count", "2") as command:
            # At different points: nothing, directories, the memory, the supervisors.
            with suppress(subprocess.TimeoutExpired):
                command.process.wait(moment * 0.1)
            command.process.kill()
            command.process.wait()
        eventually(lambda: _settled(msb, host, source), within=60, what="an end of what was begun")
        assert _status(msb, dev) == "running"
        assert _counts(msb, dev)
        # What has come up before is whole; the rest is gone.
        for name in msb("ls", "-q").succeeded().text.split():
            if name != dev:
                assert _status(msb, name) == "running"
                assert _counts(msb, name)
                msb("rm", "--force", name).succeeded()


def _settled(msb: Msb, host: Host, source: RunningSandbox) -> bool:
    """Whether every sandbox that there is runs, and has come up."""
    # At one look: one that is on its way down may be gone when it is asked for by its name.
    listed = json.loads(msb("ls", "--format", "json").succeeded().out)
    half = list(host.home.glob("sandboxes/*/fork"))
    return not half and {entry["status"] for entry in listed} == {"running"} and source in host.running()


def test_a_fork_whose_supervisor_is_killed_is_gone(msb: Msb, dev: str, host: Host) -> None:
    (source,) = host.running()
    command = msb.start("fork", dev, "--name", "kid")
    with command:
        (supervisor,) = eventually(
            lambda: [p for p in host.processes() if _supervises(p) and p.pid != source.supervisor.pid],
            within=60,
            what="the supervisor of the fork",
        )
        os.kill(supervisor.pid, signal.SIGKILL)
        done = command.finish()
    assert done.code == 125
    assert "Traceback" not in done.complaint
    assert msb("ls", "-q").succeeded().text == "dev\n"
    assert len(host.directories()) == 1
    assert _counts(msb, dev)


def _supervises(process: Any) -> bool:
    return "microsandbox.supervisor" in process.argv
