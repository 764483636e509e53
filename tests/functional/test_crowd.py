"""Many at once, and much: creations, commands, output; `MSB_TEST_CROWD` says how many sandboxes."""

from __future__ import annotations

import asyncio
import gc
import json
import os

import pytest
from microsandbox import Sandbox
from microsandbox.execution import COLLECT_LIMIT

from tests.support.host import Host
from tests.support.msb import Msb
from tests.support.process import Process
from tests.support.truth import assert_listing_is_true
from tests.support.waiting import eventually

pytestmark = [pytest.mark.vm, pytest.mark.slow]

CROWD = int(os.environ.get("MSB_TEST_CROWD", "12"))
"""The promise is about 50, and has been kept for 100."""


@pytest.mark.once
@pytest.mark.alone(reason="a dozen machines start at once: a load for whoever has a deadline")
def test_as_many_processes_create_as_many_sandboxes(msb: Msb, host: Host) -> None:
    """L02: all start, no lock is held by a sibling, the listing is true, and they go together."""
    options = ("-q", "-m", "128M", "--label", "of=crowd", "busybox")
    commands = [msb.start("create", *options, "--name", f"crowd-{number}") for number in range(CROWD)]
    try:
        for command in commands:
            with command:
                command.finish(b"", timeout=240).succeeded()
        sandboxes = host.running()
        assert len({sandbox.id for sandbox in sandboxes}) == CROWD
        assert_listing_is_true(msb, host)
        for sandbox in sandboxes:
            for process in (sandbox.supervisor, sandbox.vmm):
                places = {part for target in process.descriptors.values() for part in target.split("/")}
                assert not places & {other.id for other in sandboxes if other is not sandbox}
    finally:
        msb("rm", "--force", "--label", "of=crowd").succeeded()
    assert host.leftovers() == []


@pytest.mark.asyncio
async def test_a_thousand_commands_at_once(
    msb: Msb, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A07: all return 0; no zombie in the guest, no descriptor left on the host."""
    for name, value in {"MSB_HOME": str(msb.home), **settings}.items():
        monkeypatch.setenv(name, value)
    async with await Sandbox.create("crowd", image="busybox", memory="1G", ephemeral=True) as sandbox:
        running = msb.host.sandbox()
        await sandbox.exec("true")
        # Its log is opened when the first command has ended, by who writes it.
        eventually(
            lambda: any("/logs/" in place for place in running.supervisor.descriptors.values()),
            within=60,
            what="a log",
        )
        gc.collect()  # what earlier tests have left to it
        processes = (running.supervisor, running.vmm, Process(os.getpid()))
        before = [len(process.descriptors) for process in processes]
        outputs = await asyncio.gather(*(sandbox.exec("true") for _ in range(1000)))
        assert {output.exit_code for output in outputs} == {0}
        await asyncio.to_thread(
            eventually,
            lambda: [len(process.descriptors) for process in processes] == before,
            within=60,
            what=f"{before} descriptors again",
        )
        assert (await sandbox.shell("grep -l '^State:.Z' /proc/[0-9]*/status")).stdout_text == ""


@pytest.mark.asyncio
async def test_more_output_than_is_kept(
    msb: Msb, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A11: constant memory on the host, and a flag that says so."""
    for name, value in {"MSB_HOME": str(msb.home), **settings}.items():
        monkeypatch.setenv(name, value)
    async with await Sandbox.create(image="busybox", memory="128M") as sandbox:
        ours, supervisor = Process(os.getpid()), msb.host.sandbox().supervisor
        peaks = [process.peak_memory for process in (ours, supervisor)]
        output = await sandbox.exec("head", ["-c", str(6 * COLLECT_LIMIT), "/dev/zero"])
        assert (output.exit_code, output.truncated) == (0, True)
        assert len(output.stdout_bytes) == COLLECT_LIMIT
        grown = [process.peak_memory - peak for process, peak in zip((ours, supervisor), peaks, strict=True)]
        assert grown[0] < 4 * COLLECT_LIMIT  # a copy is made at the end
        assert grown[1] < 32 << 20
        assert not (await sandbox.exec("echo", ["little"])).truncated


def test_a_start_that_races_the_end_by_a_limit_has_one_winner(msb: Msb, host: Host) -> None:
    """L06: it starts the sandbox, or is told that it is stopping; what then runs can be entered."""
    # Long enough for a busy machine to enter what has just been started.
    msb("create", "--idle-timeout", "8s", "--name", "dev", "busybox").succeeded()
    try:
        for _ in range(4):
            eventually(lambda: _status(msb) != "running", within=60, what="the limit")
            started = msb("start", "dev")
            if started.code:
                said = started.failed(1)
                assert "is stopping" in said or "is running" in said, said
                eventually(lambda: _status(msb) == "stopped", within=60, what="the end")
                msb("start", "dev").succeeded()
            msb("exec", "dev", "--", "true").succeeded()
    finally:
        msb("rm", "--force", "dev").succeeded()


def _status(msb: Msb) -> str:
    (shown,) = json.loads(msb("inspect", "dev").succeeded().out)
    return str(shown["status"])
