"""Programs against the public interface, for type checkers to look at: see `test_types`. Nothing here is
run."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import assert_type

import microsandbox
import microsandbox.sync as plain
from microsandbox import (
    Cause,
    ExecEvent,
    ExecExited,
    ExecHandle,
    ExecOutput,
    FileInfo,
    Image,
    ImageDetails,
    ImageSource,
    LogLine,
    LogSource,
    ModifyPlan,
    Page,
    ProgressEvent,
    PrunedImages,
    PullSession,
    Sandbox,
    SandboxDetails,
    SandboxHandle,
    SandboxInfo,
    SandboxPool,
    Status,
    Stdin,
    StdinSink,
    Terminal,
)
from microsandbox.testing import Call, FakeSandbox, Result, conformance
from microsandbox.testing.sync import FakeSandbox as PlainFake


async def made() -> None:
    created = await Sandbox.create(
        "dev",
        image=Image.bind("/srv/rootfs"),
        cpus=2,
        memory="1G",
        workdir="/srv",
        user="nobody",
        hostname="box",
        entrypoint=["sh"],
        cmd=("-c", "true"),
        env={"A": "1"},
        labels={"team": "a"},
        ephemeral=False,
        detached=True,
        require_kvm=False,
        max_duration="1h",
        idle_timeout=60,
        replace=True,
        replace_with_timeout=5.0,
    )
    assert_type(created, Sandbox)
    assert_type(await Sandbox.start("dev", detached=False), Sandbox)
    assert_type(await Sandbox.connect("dev"), Sandbox)
    assert_type(await Sandbox.connect_or_create("dev", image="busybox", memory=512), Sandbox)
    assert_type(await Sandbox.get("dev"), SandboxHandle)
    page = await Sandbox.list({"team": "a"}, cursor=None, limit=10)
    assert_type(page, Page[SandboxInfo])
    assert_type(page[0].status, Status)
    assert_type(page.next_cursor, str | None)
    await Sandbox.remove("dev", force=True)
    async with Sandbox.create_with_progress(image=Path("rootfs"), cpus=1) as session:
        assert_type(session, PullSession)
        async for event in session.progress:
            assert_type(event, ProgressEvent)
        assert_type(await session.result(), Sandbox)


async def used(sandbox: Sandbox) -> None:
    async with sandbox:
        output = await sandbox.exec(
            "cat", ["-"], cwd="/", user="root", env={"B": "2"}, timeout="5s", stdin=b"x", tty=False,
            rlimits={"nofile": (10, 20)},
        )  # fmt: skip
        assert_type(output, ExecOutput)
        assert_type(output.exit_code, int | None)
        assert_type(await sandbox.shell("true"), ExecOutput)
        handle = await sandbox.exec_stream("cat", stdin=Stdin.pipe(), tty=Terminal(24, 80))
        assert_type(handle, ExecHandle)
        assert_type(handle.take_stdin(), StdinSink)
        assert_type(await handle.recv(), ExecEvent | None)
        async for event in handle:
            if event.kind == "started":
                assert_type(event.pid, int)
            elif event.kind == "stdout" or event.kind == "stderr":
                assert_type(event.data, bytes)
            elif event.kind == "stdin_error":
                assert_type(event.message, str)
            else:
                assert_type(event, ExecExited)
        handle.signal(signal.SIGTERM)
        handle.resize(30, 90)
        assert_type(await handle.wait(), ExecExited)
        plan = await sandbox.modify(memory="2G", labels={}, dry_run=True)
        assert_type(plan, ModifyPlan)
        assert_type(sandbox.logs(tail=5, since=datetime.now(UTC)), AsyncIterator[LogLine])
        async for line in sandbox.log_stream(follow=False, sources=[LogSource.STDERR]):
            assert_type(line.time, datetime | None)
        fs = sandbox.fs
        assert_type(await fs.list("/"), list[FileInfo])
        async for piece in fs.read_stream("/f"):
            assert_type(piece, bytes)
        async with fs.write_stream("/f") as sink:
            await sink.write(b"x")
        assert_type((await fs.copy_to_host("/f", Path("f"))).entries, int)
        await sandbox.request_stop()
        await sandbox.restart(timeout=3)
        assert_type(await sandbox.ping(), float)


async def seen(handle: SandboxHandle) -> None:
    assert_type(await handle.inspect(), SandboxDetails)
    assert_type((await handle.refresh()).labels, dict[str, str])
    assert_type((await handle.config()).cpus, int)
    end = await handle.wait_until_stopped()
    if end is not None:
        assert_type(end.cause, Cause)
    assert_type(await handle.start(), Sandbox)
    assert_type(await Image.load("image.tar", tag="x"), list[Image])
    await Image.export("x", Path("root.tar"))
    assert_type(Image.oci("busybox"), ImageSource)
    assert_type(await Image.inspect("x"), ImageDetails)
    assert_type(await Image.prune(dry_run=True), PrunedImages)
    assert_type((await microsandbox.doctor()).ready, bool)
    assert_type(await microsandbox.setup(dry_run=True), tuple[str, ...])
    async with SandboxPool(image="busybox", size=2, memory="256M") as pool:
        assert_type(await pool.acquire(timeout=3), Sandbox)


def without_await() -> None:
    with plain.Sandbox.create(
        "dev", image=plain.Image.oci("busybox"), memory="1G", env={"A": "1"}
    ) as sandbox:
        assert_type(sandbox, plain.Sandbox)
        assert_type(sandbox.exec("true").success, bool)
        for event in sandbox.exec_stream("true"):
            if event.kind == "exited":
                assert_type(event.exit_code, int | None)
        assert_type(sandbox.logs(tail=1), Iterator[LogLine])
        with sandbox.fs.write_stream("/f") as sink:
            sink.write(b"x")
        assert_type(sandbox.fs.read("/f"), bytes)
        assert_type(sandbox.modify(cpus=2), ModifyPlan)
    handle = plain.Sandbox.get("dev")
    assert_type(handle.start(), plain.Sandbox)
    assert_type(plain.SandboxHandle.list(), list[plain.SandboxHandle])
    assert_type(plain.Image.list(), list[plain.Image])
    with plain.SandboxPool(image="busybox", size=1, cpus=1) as pool:
        assert_type(pool.acquire(), plain.Sandbox)
    with plain.Sandbox.create_with_progress(image="busybox") as session:
        for step in session.progress:
            assert_type(step.phase, plain.ProgressPhase)
        assert_type(session.result(), plain.Sandbox)
    assert_type(plain.doctor().isolation, str | None)


async def tested() -> None:
    def answer(call: Call) -> Result:
        return Result(stdout=call.argv[0], exit_code=1)

    FakeSandbox.commands["x"] = answer
    fake = await FakeSandbox.create(image="busybox", memory="1G")
    await used(fake)
    await conformance.CASES[0](FakeSandbox, "busybox")
    assert_type(PlainFake.create(image="busybox"), PlainFake)
