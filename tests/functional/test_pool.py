"""`microsandbox.SandboxPool` in an asyncio program, with real guests."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import time

import pytest
from microsandbox import (
    ConfigError,
    ImageNotFound,
    NotRunning,
    PoolClosed,
    Sandbox,
    SandboxPool,
    Status,
)

from tests.support.host import Host, RunningSandbox
from tests.support.msb import Msb, Running
from tests.support.process import Process
from tests.support.waiting import at_this_pace, eventually

pytestmark = [pytest.mark.vm, pytest.mark.asyncio]

FILLED = 60.0
"""Seconds that filling a small pool may take on a busy machine without KVM."""

OWNER = """
import asyncio
from microsandbox import SandboxPool

async def main():
    async with SandboxPool(image="busybox", size=2, memory="128M") as pool:
        await pool.wait_full()
        print("full", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def home(msb: Msb, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Host:
    """The shared home as this process's, seen from the host."""
    for name, value in {"MSB_HOME": str(msb.home), **settings}.items():
        monkeypatch.setenv(name, value)
    return msb.host


def _pool(size: int) -> SandboxPool:
    return SandboxPool(image="busybox", size=size, memory="128M")


def _owner(msb: Msb) -> Running:
    """A program that says ``full`` when it has a pool of two, and then waits."""
    command = [sys.executable, "-c", OWNER]
    return Running(subprocess.Popen(command, env=msb.environ, stdout=subprocess.PIPE, bufsize=0))


def _all_running(home: Host, count: int) -> list[RunningSandbox]:
    """The sandboxes of the home, when there are `count` of them."""

    def look() -> list[RunningSandbox]:
        found = home.running()
        return found if len(found) == count else []

    return eventually(look, within=60, what=f"{count} running sandboxes")


@pytest.mark.alone(reason="the time of something that takes no time is measured")
async def test_sandboxes_are_handed_out_without_a_start_and_replaced(home: Host) -> None:
    async with _pool(2) as pool:
        await pool.wait_full(FILLED)
        there = {running.id for running in _all_running(home, 2)}
        began = time.monotonic()
        sandbox = await pool.acquire()
        took = time.monotonic() - began
        assert took < at_this_pace(0.05)
        assert sandbox.id in there
        assert (sandbox.status, sandbox.ephemeral, sandbox.owns_lifecycle) == (Status.RUNNING, True, True)
        async with sandbox:
            assert (await sandbox.exec("true")).success
            await pool.wait_full(FILLED)
            assert {running.id for running in _all_running(home, 3)} > {sandbox.id}
        assert sandbox.status is Status.STOPPED
        assert pool.idle == 2
    assert home.leftovers() == []
    assert home.rows() == []


async def test_more_callers_than_sandboxes(home: Host) -> None:
    async def one(pool: SandboxPool, number: int) -> tuple[str, str]:
        async with await pool.acquire(2 * FILLED) as sandbox:
            # Nobody has been here before.
            output = await sandbox.shell(f"cat /root/mark; echo {number} > /root/mark; cat /root/mark")
            return sandbox.id, output.stdout_text

    async with _pool(2) as pool:
        done = await asyncio.gather(*(one(pool, number) for number in range(6)))
    assert len({identifier for identifier, _ in done}) == 6
    assert [text for _, text in done] == [f"{number}\n" for number in range(6)]
    home.wait_empty()  # as below: those that were being started in the places of these


async def test_what_was_handed_out_outlives_the_pool(home: Host) -> None:
    async with _pool(1) as pool:
        sandbox = await pool.acquire(FILLED)
    async with sandbox:
        assert (await sandbox.exec("true")).success
        assert home.sandbox().id == sandbox.id
    with pytest.raises(NotRunning):
        await sandbox.exec("true")
    assert home.leftovers() == []


@pytest.mark.parametrize("victim", ["supervisor", "vmm"])
async def test_an_idle_one_that_is_killed_is_replaced(home: Host, victim: str) -> None:
    async with _pool(2) as pool:
        await pool.wait_full(FILLED)
        before = _all_running(home, 2)
        process: Process = getattr(before[0], victim)
        process.kill()
        before[0].supervisor.wait_gone(within=60)
        async with await pool.acquire(FILLED) as first, await pool.acquire(FILLED) as second:
            assert before[0].id not in (first.id, second.id)
            assert (await first.exec("true")).success
            assert (await second.exec("true")).success
        await pool.wait_full(FILLED)
        assert before[0].id not in {running.id for running in _all_running(home, 2)}
    assert home.leftovers() == []
    assert home.rows() == []


async def test_a_cancelled_caller_costs_no_sandbox(home: Host) -> None:
    async with _pool(1) as pool:
        callers = [asyncio.create_task(pool.acquire(FILLED)) for _ in range(3)]
        await asyncio.wait([callers[1]], timeout=0)
        callers[0].cancel()
        async with await callers[1]:
            assert callers[0].cancelled()
            callers[2].cancel()
            await pool.wait_full(FILLED)
            assert len(_all_running(home, 2)) == 2
    assert home.leftovers() == []


@pytest.mark.parametrize("after", [0.0, 0.05, 0.3, 1.0])
async def test_closing_while_it_fills(home: Host, after: float) -> None:
    got: list[Sandbox] = []

    async def caller(pool: SandboxPool) -> None:
        got.append(await pool.acquire())

    async with _pool(3) as pool:
        waiting = [asyncio.create_task(caller(pool)) for _ in range(4)]
        await asyncio.wait(waiting, timeout=after)
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [type(None)] * len(got) + [PoolClosed] * (4 - len(got))
    assert home.directories() == sorted(sandbox.id for sandbox in got)
    for sandbox in got:
        assert (await sandbox.exec("true")).success
        await sandbox.kill()
    home.wait_empty()  # a VMM whose supervisor was ended before it could look after it takes a moment
    assert home.rows() == []


async def test_a_body_that_is_cancelled_leaves_nothing(home: Host) -> None:
    full = asyncio.Event()

    async def body() -> None:
        async with _pool(2) as pool:
            await pool.wait_full(FILLED)
            full.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(body())
    await full.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert home.leftovers() == []
    assert home.rows() == []


async def test_settings_that_cannot_be(home: Host) -> None:
    before = home.tree()
    with pytest.raises(ImageNotFound):
        await SandboxPool(image="nothing-of-this-name", size=1, pull_policy="never").__aenter__()
    with pytest.raises(ConfigError):
        SandboxPool(image="busybox", size=1, memory="1M")
    assert sorted(set(home.tree()) ^ set(before)) == []


async def test_a_start_that_fails_is_told_and_the_pool_recovers(
    home: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setenv("MSB_LIBKRUNFW", "/nowhere/libkrunfw.so.5")
        broken.setenv("MSB_KERNEL", "/nowhere/vmlinux")
        pool = await _pool(1).__aenter__()
        with pytest.raises(Exception) as caught:  # noqa: PT011 - its class is what is checked
            await pool.acquire(FILLED)
        assert type(caught.value).__module__ == "microsandbox.errors"
    try:
        while True:
            try:
                sandbox = await pool.acquire(FILLED)
            except type(caught.value):
                continue  # the start that was under way when the variables were put right
            break
        async with sandbox:
            assert (await sandbox.exec("true")).success
    finally:
        await pool.close()
    assert home.leftovers() == []


async def test_kill_of_the_owner_leaves_nothing(msb: Msb, host: Host) -> None:
    with _owner(msb) as owner:
        assert owner.line() == b"full\n"
        running = _all_running(host, 2)
        owner.process.kill()
        owner.process.wait()
        host.wait_empty()
    for sandbox in running:
        assert not sandbox.supervisor.argv
        assert not sandbox.vmm.argv
    assert host.rows() == []


@pytest.mark.slow
async def test_a_pool_leaves_no_descriptor(home: Host) -> None:
    async def one() -> None:
        async with _pool(2) as pool:
            await pool.wait_full(FILLED)
            async with await pool.acquire() as sandbox:
                assert (await sandbox.exec("true")).success

    await one()
    gc.collect()
    ours = Process(os.getpid())
    before = len(ours.descriptors)
    for _ in range(3):
        await one()
    gc.collect()
    assert len(ours.descriptors) <= before
