"""What running sandboxes use: `msb metrics`, `msb top`, `msb touch` and the same in Python."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from microsandbox import Sandbox, SandboxHandle, all_sandbox_metrics

from tests.support.host import Host
from tests.support.msb import PROGRAM, Msb
from tests.support.network import GREETING, Listener, host_address
from tests.support.tmux import Tmux
from tests.support.waiting import eventually

pytestmark = pytest.mark.vm

ADDRESS = host_address()


@pytest.fixture
def dev(msb: Msb) -> Iterator[str]:
    """The name of a sandbox that runs."""
    msb("create", "-m", "256M", "--name", "dev", "busybox").succeeded()
    yield "dev"
    msb("rm", "--force", "dev").succeeded()


def _metrics(msb: Msb, *arguments: str) -> dict[str, Any]:
    (found,) = json.loads(msb("metrics", "--format", "json", *arguments).succeeded().out)
    assert isinstance(found, dict)
    return found


def test_what_a_sandbox_uses(msb: Msb, host: Host, dev: str) -> None:
    before = _metrics(msb)
    msb("exec", dev, "--", "dd", "if=/dev/urandom", "of=/file", "bs=1M", "count=16", "conv=fsync").succeeded()
    found = _metrics(msb, dev)
    running = host.sandbox()
    assert (found["name"], found["id"], found["image"]) == ("dev", running.id, "busybox")
    assert (found["cpus"], found["memory"]) == (1, 256 << 20)
    assert (found["vmm"]["pid"], found["supervisor"]["pid"]) == (running.vmm.pid, running.supervisor.pid)
    assert before["cpu_seconds"] < found["cpu_seconds"] < 300
    assert 0 <= found["cpu_percent"] < 1000
    assert 10 << 20 < found["host_memory"] < 1 << 30
    assert found["host_memory"] == found["vmm"]["pss"] + found["supervisor"]["pss"]
    assert found["upper"]["allocated"] - before["upper"]["allocated"] >= 15 << 20
    assert found["upper"]["allocated"] < found["upper"]["size"]
    assert 0 < before["uptime"] < found["uptime"] < 300
    assert found["guest_error"] is None
    guest, earlier = found["guest"], before["guest"]
    assert guest["disk_written"] - earlier["disk_written"] >= 16 << 20
    assert 15 << 20 < guest["upper_used"] - earlier["upper_used"] < 24 << 20
    assert guest["upper_used"] < guest["upper_total"] < found["upper"]["size"]
    assert 0 < guest["memory_available"] < guest["memory_total"] < 256 << 20
    assert guest["execs"] == 0


@pytest.mark.skipif(ADDRESS is None, reason="this machine has no address but loopback ones")
def test_what_has_passed_the_network_card(msb: Msb) -> None:
    assert ADDRESS is not None
    with Listener(ADDRESS) as listener:
        rule = f"allow@{ADDRESS}:tcp:{listener.port}"
        msb(
            "create", "-m", "256M", "--name", "dev", "--network-policy", "none", "--net-rule", rule, "busybox"
        ).succeeded()
        before = _metrics(msb, "dev")["network"]
        asked = f"nc -w 10 {ADDRESS} {listener.port}; nc -w 5 192.0.2.1 80; nslookup denied.example; true"
        msb("exec", "dev", "--", "sh", "-c", asked).succeeded()
        after = _metrics(msb, "dev")["network"]
        msb("stop", "dev").succeeded()
    found = {name: after[name] - before[name] for name in after}
    assert (found["connections_opened"], found["failed"]) == (1, 0)
    assert (found["payload_sent"], found["payload_received"]) == (0, len(GREETING))
    # The address; the other one, and the name.
    assert found["allowed"] >= 1
    assert found["denied"] >= 2
    assert found["questions"] >= 1
    for direction in ("sent", "received"):
        # Of the smallest frames there are, and no larger than the link takes.
        assert 42 <= found[direction] / found[f"packets_{direction}"] < 1 << 16
    # Without a stack there is nothing that could be counted.
    msb("net", "update", "dev", "--network-policy", "none").succeeded()
    msb("start", "dev").succeeded()
    assert _metrics(msb, "dev")["network"] is None
    text = msb("metrics", "--format", "openmetrics").succeeded().text
    assert not [line for line in text.splitlines() if line.startswith("microsandbox_network_")]
    msb("rm", "--force", "dev").succeeded()


def test_a_busy_one_is_told_from_an_idle_one(msb: Msb, dev: str) -> None:
    # One that has just come up has something to do for a moment.
    idle = eventually(lambda: _idle(msb), within=60, what="a sandbox that does nothing")
    assert idle is not None
    with msb.start("exec", dev, "--", "sh", "-c", "echo up; while :; do :; done") as spinning:
        assert spinning.line() == b"up\n"
        busy = _metrics(msb, "--interval", "1s")
        # A part of a processor is had on the busiest machine.
        assert busy["cpu_percent"] > 10
        assert (busy["guest"]["execs"], idle["guest"]["execs"]) == (1, 0)
        assert busy["guest"]["tasks"] == idle["guest"]["tasks"] + 1


def _idle(msb: Msb) -> dict[str, Any] | None:
    """What a sandbox uses in a second, if that is next to nothing."""
    found = _metrics(msb, "--interval", "1s")
    return found if found["cpu_percent"] < 10 else None


def test_the_kernel_of_an_idle_guest_does_not_look_around(msb: Msb, dev: str) -> None:
    """What made it wake up when nothing was to be done; see tests/performance/bench_idle.py."""
    script = "cat /proc/sys/vm/compaction_proactiveness /proc/sys/vm/stat_interval"
    assert msb("exec", dev, "--", "sh", "-c", script).succeeded().out == b"0\n30\n"


def test_a_table_and_a_text_for_scraping(msb: Msb, dev: str) -> None:
    header, row = msb("metrics").succeeded().text.splitlines()
    assert header.split()[0] == "NAME"
    assert row.split()[0] == "dev"
    assert "/ 256 MiB" in row
    text = msb("metrics", "--format", "openmetrics").succeeded().text
    assert 'microsandbox_memory_bytes{id="' in text
    assert text.endswith("# EOF\n")
    assert "--watch" in msb("metrics", "--format", "openmetrics", "--watch").failed(2)
    assert "--interval" in msb("metrics", "--interval", "soon").failed(2)


def test_what_does_not_run_is_said_and_the_others_are_shown(msb: Msb, dev: str) -> None:
    done = msb("metrics", "nobody", "dev")
    assert done.code == 1
    assert "no sandbox named 'nobody'" in done.complaint
    assert done.text.splitlines()[1].split()[0] == "dev"
    msb("stop", dev).succeeded()
    assert "'dev' has no metrics: it is stopped" in msb("metrics", dev).failed(1)
    assert msb("metrics").succeeded().text.splitlines()[1:] == []
    assert json.loads(msb("metrics", "--format", "json").succeeded().out) == []


def test_watching_is_no_activity_and_touching_is(msb: Msb) -> None:
    msb("create", "--idle-timeout", "8s", "--name", "dev", "busybox").succeeded()
    try:
        begun = time.monotonic()
        while time.monotonic() - begun < 10:
            assert msb("touch", "dev").succeeded().out == b"dev\n"
        # Goes on until the sandbox, which nobody touches any more, has been stopped.
        done = msb("metrics", "--watch", "--interval", "100ms", "--format", "json", "dev")
        assert "'dev' has no metrics" in done.failed(1)
        shown = [json.loads(line)[0] for line in done.text.splitlines()]
        assert len(shown) > 5
        assert all(each["guest"] is not None for each in shown[:5])
        (found,) = json.loads(msb("inspect", "dev").succeeded().out)
        assert found["end"]["cause"] == "idle_timeout"
        assert "'dev' does not answer: it is stopped" in msb("touch", "dev").failed(1)
    finally:
        msb("rm", "--force", "dev").succeeded()


def test_top_in_tmux(msb: Msb, dev: str, tmp_path: Path) -> None:
    shell = ["sh", "-c", f"echo before; {PROGRAM} top --interval 300ms; echo code $?; stty -a; exec cat"]
    with Tmux(tmp_path / "tmux", shell, msb.environ) as tmux:
        tmux.wait_for("1 running, CPU")
        shown = tmux.wait_for("/ 256 MiB").splitlines()
        assert shown[1].split()[:2] == ["NAME", "CPU"]
        assert shown[2].split()[0] == "dev"
        assert shown[3].startswith("q: leave")
        tmux.resize(40, 4)
        eventually(
            lambda: "1 running" in tmux.screen() and "UPTIME" not in tmux.screen(),
            within=60, what="a picture of the new size",
        )  # fmt: skip
        tmux.resize(80, 24)
        tmux.wait_for("UPTIME")
        tmux.type("q")
        shown = tmux.wait_for("code 0").splitlines()
        # The screen of before, and the terminal as it was.
        assert shown[0] == "before"
        assert " echo " in tmux.wait_for(" icanon ")


def test_ctrl_c_leaves_top_with_the_terminal_as_it_was(msb: Msb, tmp_path: Path) -> None:
    shell = ["sh", "-c", f"trap : INT; {PROGRAM} top; echo code $?; stty -a; exec cat"]
    with Tmux(tmp_path / "tmux", shell, msb.environ) as tmux:
        tmux.wait_for("0 running, CPU")
        tmux.type("C-c")
        tmux.wait_for("code 130")
        assert " echo " in tmux.wait_for(" icanon ")


def test_top_needs_a_terminal(msb: Msb) -> None:
    assert "msb metrics" in msb("top").failed(2)


@pytest.mark.asyncio
async def test_in_python(msb: Msb, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MSB_HOME": str(msb.home), **settings}.items():
        monkeypatch.setenv(name, value)
    async with await Sandbox.create("dev", image="busybox", memory="128M", ephemeral=True) as sandbox:
        found = await sandbox.metrics()
        assert (found.id, found.memory, found.cpu_percent) == (sandbox.id, 128 << 20, None)
        assert found.guest is not None
        assert found.guest.execs == 0
        measured = []
        async for each in sandbox.metrics_stream("100ms"):
            measured.append(each)
            if len(measured) == 3:
                break
        assert measured[0].cpu_percent is None
        assert all(each.cpu_percent is not None for each in measured[1:])
        assert measured[0].cpu_seconds <= measured[1].cpu_seconds <= measured[2].cpu_seconds
        assert [each.id for each in await all_sandbox_metrics()] == [sandbox.id]
        handle = await SandboxHandle.get("dev")
        assert (await handle.metrics()).vmm.pid == found.vmm.pid
        await handle.touch()
        await sandbox.touch()
        await sandbox.kill()
        assert [each async for each in sandbox.metrics_stream("100ms")] == []
    assert await all_sandbox_metrics() == []
