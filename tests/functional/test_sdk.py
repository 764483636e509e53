"""`microsandbox.Sandbox` in an asyncio program, with real guests."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from microsandbox import (
    AlreadyExists,
    Cause,
    ConfigError,
    End,
    ExecError,
    ExecExited,
    ExecFailed,
    ExecStarted,
    ExecStdout,
    ExecTimeout,
    ImageNotFound,
    NotRunning,
    OutcomeUnknown,
    Sandbox,
    SandboxHandle,
    SandboxNotFound,
    Status,
    Stdin,
    StillRunning,
    Terminal,
)

from tests.support.host import Host
from tests.support.msb import Msb
from tests.support.process import Process
from tests.support.waiting import eventually

pytestmark = [pytest.mark.vm, pytest.mark.asyncio]


@pytest.fixture
def home(msb: Msb, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Host:
    """The shared home as this process's, seen from the host."""
    for name, value in {"MSB_HOME": str(msb.home), **settings}.items():
        monkeypatch.setenv(name, value)
    return msb.host


@pytest_asyncio.fixture
async def sandbox(home: Host) -> AsyncIterator[Sandbox]:
    """An ephemeral sandbox."""
    async with await Sandbox.create(image="busybox", memory="256M") as created:
        yield created


async def test_a_command_and_its_output(sandbox: Sandbox) -> None:
    output = await sandbox.exec("sh", ["-c", "echo out; echo err >&2; exit 3"])
    assert (output.exit_code, output.signal, output.success) == (3, None, False)
    assert (output.stdout_text, output.stderr_text) == ("out\n", "err\n")
    assert (await sandbox.shell("kill -9 $$")).signal == 9
    assert (await sandbox.exec("true")).success
    assert 0 < await sandbox.ping() < 5


async def test_an_ephemeral_sandbox_is_gone_after_its_context(home: Host) -> None:
    async with await Sandbox.create(image="busybox") as sandbox:
        assert (sandbox.status, sandbox.ephemeral, sandbox.owns_lifecycle) == (Status.RUNNING, True, True)
        running = home.sandbox()
        assert running.id == sandbox.id
        assert [info.name for info in await Sandbox.list()] == [sandbox.name]
    assert sandbox.status is Status.STOPPED
    assert home.leftovers() == []
    assert home.rows() == []
    with pytest.raises(NotRunning):
        await sandbox.exec("true")
    await sandbox.stop()  # nothing is left to stop


async def test_an_error_inside_the_context_passes_and_the_sandbox_goes(home: Host) -> None:
    with pytest.raises(ZeroDivisionError):
        async with await Sandbox.create(image="busybox"):
            raise ZeroDivisionError
    assert home.leftovers() == []


async def test_a_named_sandbox_stops_and_starts(home: Host) -> None:
    async with await Sandbox.create("dev", image="busybox", env={"A": "1"}, hostname="box") as sandbox:
        await sandbox.shell("echo $A $(hostname) > /root/note")
        with pytest.raises(AlreadyExists):
            await Sandbox.create("dev", image="busybox")
        with pytest.raises(StillRunning):
            await Sandbox.remove("dev")
    try:
        with pytest.raises(NotRunning):
            await Sandbox.connect("dev")
        again = await Sandbox.start("dev")
        other = await Sandbox.connect("dev")
        assert (await other.exec("cat", ["/root/note"])).stdout_text == "1 box\n"
        await other.detach()
        await again.stop()
        assert home.processes() == []
    finally:
        await Sandbox.remove("dev", force=True)
    with pytest.raises(SandboxNotFound):
        await Sandbox.start("dev")


async def test_settings_that_cannot_be(home: Host) -> None:
    before = home.tree()
    for settings in ({"memory": "1M"}, {"cpus": 0}, {"hostname": "a b"}, {"env": {"": "x"}}):
        with pytest.raises(ConfigError) as caught:
            await Sandbox.create(image="busybox", **settings)
        assert caught.value.hint
    with pytest.raises(ImageNotFound):
        await Sandbox.create(image="nothing-of-this-name", pull_policy="never")
    assert sorted(set(home.tree()) ^ set(before)) == []


async def test_what_cannot_be_run_says_why(sandbox: Sandbox) -> None:
    for command, cwd, user, kind in (
        ("no-such-command", None, None, "not_found"),
        ("/etc/passwd", None, None, "permission_denied"),
        ("true", "/no/such", None, "bad_cwd"),
        ("true", None, "stranger", "user_not_found"),
    ):
        with pytest.raises(ExecFailed) as caught:
            await sandbox.exec(command, cwd=cwd, user=user)
        assert (caught.value.kind, bool(caught.value.hint)) == (kind, True)


async def test_a_time_limit_raises_with_the_output_so_far(sandbox: Sandbox) -> None:
    with pytest.raises(ExecTimeout) as caught:
        await sandbox.exec("sh", ["-c", "echo part; echo of it >&2; sleep 600"], timeout="5s")
    output = caught.value.output
    assert (output.stdout_text, output.stderr_text, output.timed_out) == ("part\n", "of it\n", True)


async def test_standard_input_from_bytes_a_file_and_a_pipe(sandbox: Sandbox, tmp_path: Path) -> None:
    data = random.Random(3).randbytes(3_000_000)
    digest = hashlib.sha256(data).hexdigest()
    file = tmp_path / "data"
    file.write_bytes(data)
    for stdin in (data, Stdin.bytes(data), Stdin.file(file)):
        output = await sandbox.exec("sha256sum", stdin=stdin)
        assert output.stdout_text.split()[0] == digest
    assert (await sandbox.exec("cat")).stdout_bytes == b""

    handle = await sandbox.exec_stream(
        "sh", ["-c", "while read line; do echo got $line; done"], stdin=Stdin.pipe()
    )
    sink = handle.take_stdin()
    events = aiter(handle)
    assert await anext(events) == ExecStarted(handle.pid)
    for word in (b"one", b"two"):
        await sink.write(word + b"\n")
        assert await anext(events) == ExecStdout(b"got " + word + b"\n")
    await sink.close()
    assert [event.kind async for event in events][-1] == "exited"

    with pytest.raises(ExecError):
        await sandbox.exec("cat", stdin=Stdin.file(tmp_path / "missing"))


async def test_input_to_a_command_that_has_ended_is_an_error_not_a_wait(sandbox: Sandbox) -> None:
    handle = await sandbox.exec_stream("true", stdin=Stdin.pipe())
    assert (await handle.wait()).exit_code == 0
    with pytest.raises(ExecError):
        await handle.take_stdin().write(b"x" * 1_000_000)


async def test_signals_and_kill(sandbox: Sandbox) -> None:
    script = "trap 'echo caught; exit 5' USR1; echo up; while :; do sleep 0.1; done"
    handle = await sandbox.exec_stream("sh", ["-c", script])
    events = aiter(handle)
    assert (await anext(events)).kind == "started"
    assert await anext(events) == ExecStdout(b"up\n")
    handle.signal(10)
    rest = [event async for event in events]
    # The group gets it: the shell may say on stderr that its sleep was killed.
    assert [event.data for event in rest if event.kind == "stdout"] == [b"caught\n"]
    assert rest[-1] == ExecExited(5, None)

    handle = await sandbox.exec_stream("sleep", ["600"])
    handle.kill()
    assert (await handle.wait()).signal == 9


async def test_a_command_at_a_terminal(sandbox: Sandbox) -> None:
    output = await sandbox.exec("sh", ["-c", "stty size <&1; echo $TERM; echo err >&2; test -t 0"], tty=True)
    assert (output.stdout_bytes, output.stderr_bytes) == (b"24 80\r\nxterm\r\nerr\r\n", b"")
    assert output.exit_code == 1
    # The end of the input is the end of the file for who reads lines.
    assert (await sandbox.exec("cat", stdin=b"a\nb", tty=True)).stdout_bytes.endswith(b"b")

    script = "trap 'stty size; exit 3' WINCH; stty size; while :; do sleep 600 & wait $!; done"
    handle = await sandbox.exec_stream("sh", ["-c", script], stdin=Stdin.pipe(), tty=Terminal(10, 20, "dumb"))
    events = aiter(handle)
    assert (await anext(events)).kind == "started"
    # A terminal may pass on the end of a line by itself.
    shown = b""
    while not shown.endswith(b"\n"):
        event = await anext(events)
        assert isinstance(event, ExecStdout)
        shown += event.data
    assert shown == b"10 20\r\n"
    for rows, cols in ((0, 80), (24, 65_536)):
        with pytest.raises(ValueError, match="is not 1 to 65535"):
            handle.resize(rows, cols)
    handle.resize(30, 40)
    rest = [event async for event in events]
    shown = b"".join(event.data for event in rest if event.kind == "stdout")
    assert (shown, rest[-1]) == (b"30 40\r\n", ExecExited(3, None))
    handle.resize(50, 60)

    handle = await sandbox.exec_stream("true")
    with pytest.raises(ExecError, match="not started with a terminal"):
        handle.resize(24, 80)
    assert (await handle.wait()).exit_code == 0


async def test_a_command_that_is_left_to_itself(sandbox: Sandbox) -> None:
    handle = await sandbox.exec_stream("sh", ["-c", "while [ ! -e /go ]; do echo more; done; touch /done"])
    await handle.detach()
    assert handle.detached
    assert "exited" not in [event.kind async for event in handle]
    with pytest.raises(OutcomeUnknown):
        await handle.wait()
    assert (await sandbox.shell("touch /go; while [ ! -e /done ]; do :; done", timeout=30)).success

    handle = await sandbox.exec_stream("true")
    await handle.wait()
    with pytest.raises(ExecError):
        await handle.detach()


async def test_the_vmm_killed_in_the_middle_of_exec(home: Host) -> None:
    # A15: whether the command had done its work is not known, and it is not tried again
    async with await Sandbox.create(image="busybox") as sandbox:
        handle = await sandbox.exec_stream("sh", ["-c", "echo up; sleep 600"])
        events = aiter(handle)
        assert (await anext(events)).kind == "started"
        assert await anext(events) == ExecStdout(b"up\n")
        home.sandbox().vmm.kill()
        with pytest.raises(OutcomeUnknown):
            await anext(events)
        with pytest.raises(NotRunning):
            await sandbox.exec("true")
        await sandbox.wait_until_stopped()
    assert home.leftovers() == []


async def test_the_supervisor_killed_in_the_middle_of_exec(home: Host) -> None:
    async with await Sandbox.create(image="busybox") as sandbox:
        running = home.sandbox()
        waiting = asyncio.create_task(sandbox.exec("sleep", ["600"]))
        await asyncio.wait([waiting], timeout=1)
        running.supervisor.kill()
        with pytest.raises((OutcomeUnknown, NotRunning)):
            await waiting
        running.vmm.wait_gone(within=60)
    assert home.leftovers() == []
    assert home.rows() == []


async def test_stop_while_a_command_runs(home: Host) -> None:
    # L06: the command is ended with the sandbox, and whoever waits for it is told
    async with await Sandbox.create(image="busybox") as sandbox:
        handle = await sandbox.exec_stream("sh", ["-c", "echo up; exec sleep 600"])
        events = aiter(handle)
        assert (await anext(events)).kind == "started"
        assert await anext(events) == ExecStdout(b"up\n")

        async def rest() -> str:
            try:
                return f"signal {(await handle.wait()).signal}"
            except OutcomeUnknown:
                return "unknown"

        seen, _ = await asyncio.gather(rest(), sandbox.stop())
        assert seen in ("signal 15", "signal 9", "unknown")
    assert home.leftovers() == []


async def test_stops_at_once_all_wait_for_the_same_end(home: Host) -> None:
    sandbox = await Sandbox.create("dev", image="busybox")
    script = "trap 'sleep 1; echo written > /root/note; exit' TERM; echo up; while :; do sleep 0.1; done"
    handle = await sandbox.exec_stream("sh", ["-c", script])
    assert [await handle.recv(), await handle.recv()] == [ExecStarted(handle.pid), ExecStdout(b"up\n")]
    another = await SandboxHandle.get("dev")
    await asyncio.gather(sandbox.stop(120), sandbox.stop(110), another.stop(100), another.stop(90))
    end = (await another.inspect()).end
    assert end == End(Cause.REQUESTED, "it was asked to stop", 0)
    async with await another.start(detached=False) as again:
        assert (await again.exec("cat", ["/root/note"])).stdout_text == "written\n"
    await another.remove()


@pytest.mark.parametrize("after", [0.0, 0.02, 0.1, 0.5, 1.2])
async def test_a_creation_that_is_given_up_leaves_nothing(home: Host, after: float) -> None:
    task = asyncio.create_task(Sandbox.create(image="busybox"))
    done, _ = await asyncio.wait([task], timeout=after)
    if done:
        await (await task).kill()
    task.cancel()
    for outcome in await asyncio.gather(task, return_exceptions=True):
        assert isinstance(outcome, asyncio.CancelledError | Sandbox)
    home.wait_empty()
    assert home.rows() == []


@pytest.mark.slow
async def test_many_sandboxes_of_one_process_leave_no_descriptor(home: Host) -> None:
    async def one() -> None:
        async with await Sandbox.create(image="busybox", memory="128M") as sandbox:
            assert (await sandbox.exec("true")).success

    await one()
    gc.collect()
    ours = Process(os.getpid())
    before = len(ours.descriptors)
    for _ in range(3):
        await one()
    gc.collect()
    assert len(ours.descriptors) <= before


@pytest.mark.slow
async def test_300_commands_at_once(sandbox: Sandbox, home: Host) -> None:
    # A07: all return 0; no zombie in the guest, no descriptor left on the host
    running = home.sandbox()
    await sandbox.exec("true")
    gc.collect()  # what earlier tests have left to it
    processes = (running.supervisor, running.vmm, Process(os.getpid()))
    before = [len(process.descriptors) for process in processes]
    outputs = await asyncio.gather(*(sandbox.exec("true") for _ in range(300)))
    assert {output.exit_code for output in outputs} == {0}
    await asyncio.to_thread(
        eventually,
        lambda: [len(process.descriptors) for process in processes] == before,
        within=60,
        what=f"{before} descriptors again",
    )
    assert (await sandbox.shell("grep -l '^State:.Z' /proc/[0-9]*/status")).stdout_text == ""
    assert (await sandbox.shell("ls -d /sys/fs/cgroup/msb/exec-* | wc -l")).stdout_text.strip() in ("1", "2")


async def test_a_daemon_that_keeps_the_output_does_not_keep_the_caller(sandbox: Sandbox) -> None:
    # A08
    began = time.monotonic()
    output = await sandbox.shell("(sleep 4321 &) ; echo started")
    assert (output.stdout_text, output.exit_code) == ("started\n", 0)
    assert time.monotonic() - began < 600, "not that of its sleep"
    assert (await sandbox.exec("pidof", ["sleep"])).success, "it goes on: it is a daemon"


async def test_at_the_time_limit_the_whole_group_dies(sandbox: Sandbox) -> None:
    # A09: a group that ignores SIGTERM, with grandchildren
    script = "trap '' TERM; (trap '' TERM; sleep 4321 & sleep 4321) & echo part; sleep 4321"
    with pytest.raises(ExecTimeout) as caught:
        await sandbox.exec("sh", ["-c", script], timeout=5)
    assert caught.value.output.stdout_text == "part\n"
    assert caught.value.output.duration < 600, "not that of its sleeps"
    assert not (await sandbox.exec("pidof", ["sleep"])).success


async def test_output_that_is_not_taken_costs_nothing_and_keeps_nobody(sandbox: Sandbox, home: Host) -> None:
    # A11: one command is stuck at its output, the others go on
    stuck = await sandbox.exec_stream("yes")
    running = home.sandbox()
    before = running.supervisor.peak_memory
    for _ in range(3):
        output = await sandbox.exec("head", ["-c", "5000000", "/dev/zero"])
        assert len(output.stdout_bytes) == 5_000_000
    assert running.supervisor.peak_memory - before < 32 << 20
    stuck.kill()
    assert (await stuck.wait()).signal == 9


async def test_a_lost_home_is_an_error_of_ours(home: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSB_HOME", "/proc/nowhere")
    with pytest.raises(Exception) as caught:  # noqa: PT011 - its class is what is checked
        await Sandbox.create(image="busybox")
    assert type(caught.value).__module__ == "microsandbox.errors"


async def test_a_handle_that_is_forgotten_is_no_leak(sandbox: Sandbox) -> None:
    for _ in range(3):
        await sandbox.exec_stream("sleep", ["4321"])
    gc.collect()
    assert (await sandbox.exec("true")).success
