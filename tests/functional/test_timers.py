"""`--max-duration` and `--idle-timeout`: sandboxes that the supervisor stops by itself."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.support.host import Host
from tests.support.msb import Msb
from tests.support.waiting import eventually

pytestmark = pytest.mark.vm


@pytest.mark.parametrize("option", ["--max-duration", "--idle-timeout"])
def test_a_run_that_reaches_a_limit_says_so_and_exits_with_124(msb: Msb, host: Host, option: str) -> None:
    # Both count from before the command has begun, for which a busy machine needs its time.
    done = msb("run", option, "8s", "busybox", "--", "sh", "-c", "echo begun; sleep 600")
    line = done.failed(124, hint=False)
    assert "was stopped" in line
    assert {"--max-duration": "max-duration of 8 s", "--idle-timeout": "idle for 8 s"}[option] in line
    assert done.out == b"begun\n"
    host.wait_empty()


def test_it_is_stopped_as_by_msb_stop(msb: Msb) -> None:
    """The command hears SIGTERM, and what it then writes is on the disk at the next start."""
    script = "trap 'echo last > /kept; echo bye; exit 3' TERM; echo up; while :; do sleep 0.1; done"
    done = msb("run", "--name", "dev", "--max-duration", "12s", "busybox", "--", "sh", "-c", script)
    try:
        assert (done.code, done.out) == (124, b"up\nbye\n")
        shown = _inspect(msb)
        assert shown["status"] == "stopped"
        assert shown["end"] == {
            "cause": "max_duration", "reason": "it ran for its max-duration of 12 s", "vmm_exit": 0,
        }  # fmt: skip
        assert (shown["config"]["max_duration"], shown["config"]["idle_timeout"]) == (12, None)
        msb("start", "dev").succeeded()
        assert msb("exec", "dev", "--", "cat", "/kept").succeeded().out == b"last\n"
        # The limit holds for the next life as well, and counts from its start.
        system = msb("logs", "-f", "--source", "system", "dev").succeeded().text.splitlines()
        assert system.count("ended: it ran for its max-duration of 12 s") == 2
    finally:
        msb("rm", "--force", "dev").succeeded()


def test_a_limit_that_is_not_reached_changes_nothing(msb: Msb) -> None:
    done = msb("run", "--max-duration", "1h", "--idle-timeout", "1h", "busybox", "--", "sh", "-c", "exit 7")
    assert (done.code, done.err) == (7, b"")


def test_a_command_that_goes_wrong_by_itself_keeps_its_code(msb: Msb) -> None:
    done = msb("run", "--max-duration", "1h", "busybox", "--", "sh", "-c", "kill -TERM $$")
    assert (done.code, done.err) == (143, b"")


def test_an_idle_sandbox_is_stopped_and_says_why(msb: Msb) -> None:
    begun = time.monotonic()
    msb("create", "--idle-timeout", "1s", "--name", "dev", "busybox").succeeded()
    try:
        system = msb("logs", "-f", "--source", "system", "dev").succeeded().text.splitlines()
        assert time.monotonic() - begun >= 1
        assert system[-1] == "ended: idle for 1 s"
        assert "idle for 1 s" in msb("inspect", "dev").succeeded().text
    finally:
        msb("rm", "--force", "dev").succeeded()


@pytest.mark.parametrize("script", ["exec sleep 600", "trap 'exit 0' TERM; while :; do :; done"])
def test_an_exec_that_meets_a_limit_says_so_and_exits_with_124(msb: Msb, script: str) -> None:
    msb("create", "--max-duration", "10s", "--name", "dev", "busybox").succeeded()
    try:
        done = msb("exec", "dev", "--", "sh", "-c", f"echo begun; {script}")
        line = done.failed(124, hint=False)
        assert line == "error: the sandbox 'dev' was stopped: it ran for its max-duration of 10 s"
        assert done.out == b"begun\n"
    finally:
        msb("rm", "--force", "dev").succeeded()


def test_an_exec_whose_sandbox_is_stopped_by_hand_says_what_the_signal_was(msb: Msb) -> None:
    msb("create", "--max-duration", "1h", "--name", "dev", "busybox").succeeded()
    try:
        with msb.start("exec", "dev", "--", "sh", "-c", "echo up; exec sleep 600") as command:
            assert command.line() == b"up\n"
            msb("stop", "dev").succeeded()
            assert command.finish(b"").code == 143
    finally:
        msb("rm", "--force", "dev").succeeded()


def test_a_stop_meanwhile_waits_for_the_same_end(msb: Msb) -> None:
    msb("create", "--idle-timeout", "8s", "--name", "dev", "busybox").succeeded()
    try:
        script = "trap 'read line; echo $line > /kept; exit' TERM; echo up; while :; do sleep 0.1; done"
        with msb.start("exec", "dev", "--", "sh", "-c", script) as workload:
            assert workload.line() == b"up\n"
            eventually(lambda: _inspect(msb)["status"] == "stopping", within=60, what="the limit")
            with msb.start("stop", "dev") as stop:
                eventually(
                    lambda: "anon_inode:[pidfd]" in stop.host_process.descriptors.values(),
                    within=60,
                    what="the stop to have found the supervisor",
                )
                workload.finish(b"last\n")
                stop.finish().succeeded()
        assert _inspect(msb)["end"] == {"cause": "idle_timeout", "reason": "idle for 8 s", "vmm_exit": 0}
        msb("start", "dev").succeeded()
        assert msb("exec", "dev", "--", "cat", "/kept").succeeded().out == b"last\n"
    finally:
        msb("rm", "--force", "dev").succeeded()


@pytest.mark.slow
def test_a_stop_does_not_prolong_the_max_duration(msb: Msb) -> None:
    msb("create", "--max-duration", "12s", "--name", "dev", "busybox").succeeded()
    try:
        script = "trap '' TERM; echo up; while :; do sleep 1; done"
        with msb.start("exec", "dev", "--", "sh", "-c", script) as workload:
            assert workload.line() == b"up\n"
            msb("stop", "-t", "10m", "dev").succeeded()
            workload.finish()
        end = {"cause": "max_duration", "reason": "it ran for its max-duration of 12 s", "vmm_exit": None}
        assert _inspect(msb)["end"] == end
    finally:
        msb("rm", "--force", "dev").succeeded()


def _inspect(msb: Msb) -> dict[str, Any]:
    (found,) = json.loads(msb("inspect", "dev").succeeded().out)
    assert isinstance(found, dict)
    return found


def test_output_and_input_are_activity(msb: Msb) -> None:
    # Longer than the limit by both, and each time far from it: a busy machine prolongs every pause.
    script = "for i in 1 2 3 4 5; do sleep 1.6; echo $i; done; cat"
    with msb.start("run", "--idle-timeout", "7s", "busybox", "--", "sh", "-c", script) as running:
        for number in range(1, 6):
            assert running.line() == b"%d\n" % number
        begun = time.monotonic()
        while time.monotonic() - begun < 8:
            running.stdin.write(b"x\n")
            assert running.line() == b"x\n"
        done = running.finish(b"")
        assert (done.code, done.err) == (0, b"")


def test_an_open_command_that_is_silent_is_idle(msb: Msb) -> None:
    msb("create", "--idle-timeout", "6s", "--name", "dev", "busybox").succeeded()
    try:
        # The shutdown's SIGTERM: somebody's command does not keep a sandbox alive by being there.
        said = msb("exec", "dev", "--", "sleep", "600").failed(124, hint=False)
        assert said == "error: the sandbox 'dev' was stopped: idle for 6 s"
    finally:
        msb("rm", "--force", "dev").succeeded()


@pytest.mark.parametrize("option", ["--max-duration", "--idle-timeout"])
@pytest.mark.parametrize("value", ["soon", "0", "-1s"])
def test_what_is_no_duration_is_named(msb: Msb, option: str, value: str) -> None:
    assert option in msb("run", f"{option}={value}", "busybox", "--", "true").failed(2)
