"""A guest whose root wants to harm: the channel, agentd and the host go on, or the sandbox ends cleanly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from microsandbox import NotRunning, OutcomeUnknown, Sandbox
from microsandbox.supervisor._supervise import HALT_DEADLINE, HEARTBEAT_DEADLINE, HEARTBEAT_INTERVAL

from tests.support.host import Host
from tests.support.msb import Msb

pytestmark = [pytest.mark.vm, pytest.mark.asyncio]


@pytest.fixture
def home(msb: Msb, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Host:
    """The shared home as this process's, seen from the host."""
    for name, value in {"MSB_HOME": str(msb.home), **settings}.items():
        monkeypatch.setenv(name, value)
    return msb.host


@pytest_asyncio.fixture
async def sandbox(home: Host) -> AsyncIterator[Sandbox]:
    """A small sandbox, whose limits are soon reached."""
    async with await Sandbox.create(image="busybox", memory="128M") as created:
        yield created


async def _assert_serves(sandbox: Sandbox) -> None:
    async with asyncio.timeout(300):
        assert await sandbox.ping() < 30
        assert (await sandbox.exec("echo", ["still here"])).stdout_text == "still here\n"


async def test_the_agents_port_cannot_be_opened(sandbox: Sandbox) -> None:
    script = """
    for port in /dev/vport*; do
      echo garbage > $port && echo opened $port
      cat < $port && echo read $port
    done 2>/dev/null
    for fd in /proc/1/fd/*; do
      case $(readlink $fd) in /dev/vport*) (echo garbage > $fd) 2>/dev/null && echo opened $fd;; esac
    done
    echo tried
    """
    output = await sandbox.shell(script, timeout=60)
    assert output.stdout_text == "tried\n"
    await _assert_serves(sandbox)


async def test_kill_of_everything_leaves_the_agent(sandbox: Sandbox) -> None:
    output = await sandbox.shell(
        "kill -9 -1; kill -9 1; kill -STOP 1; kill -TERM 1; kill -SEGV 1; echo survived"
    )
    assert output.stdout_text == "survived\n"  # kill(2): -1 is everyone but the caller and PID 1
    await _assert_serves(sandbox)


async def test_out_of_memory_ends_the_workload_and_is_told(sandbox: Sandbox) -> None:
    # A16
    handle = await sandbox.exec_stream("sh", ["-c", "tail /dev/zero; echo $?"])
    assert (await handle.wait()).oom_killed
    await _assert_serves(sandbox)


async def test_out_of_memory_of_the_command_itself(sandbox: Sandbox) -> None:
    handle = await sandbox.exec_stream("tail", ["/dev/zero"])
    end = await handle.wait()
    assert (end.signal, end.oom_killed) == (9, True)
    assert not (await sandbox.exec("true")).oom_killed
    await _assert_serves(sandbox)


async def test_a_full_tmp_and_a_full_memory_file_system_end_in_errors(sandbox: Sandbox) -> None:
    output = await sandbox.shell(
        "dd if=/dev/zero of=/dev/shm/fill bs=65536; rm -f /dev/shm/fill; echo over", timeout=120
    )
    assert output.stdout_text in ("over\n", "")
    await _assert_serves(sandbox)


@pytest.mark.slow
async def test_a_fork_bomb_leaves_the_agent(sandbox: Sandbox) -> None:
    # A16. Its time is over long before the memory is.
    bomb = await sandbox.exec_stream("sh", ["-c", "bomb() { bomb | bomb & }; bomb; sleep 600"], timeout=1)
    async with asyncio.timeout(300):
        assert await sandbox.ping() < 60
        end = await bomb.wait()
    assert end.timed_out
    await _assert_serves(sandbox)
    left = await sandbox.shell("ps | grep -c '[b]omb'")
    assert left.stdout_text == "0\n"


async def test_a_program_killed_for_memory_takes_along_what_it_started(sandbox: Sandbox) -> None:
    # The last of a line without an end has to be kept in memory.
    async with asyncio.timeout(300):
        output = await sandbox.exec("sh", ["-c", "sleep 600 & exec tail /dev/zero"])
    assert (output.oom_killed, output.signal) == (True, 9)
    left = await sandbox.shell("ps | grep -c '[s]leep 600'")
    assert left.stdout_text == "0\n"
    await _assert_serves(sandbox)


async def test_agents_memory_and_state_are_out_of_reach(sandbox: Sandbox) -> None:
    # Whatever the guest's root does to files of the root: the agent needs none of them.
    await sandbox.shell(
        "mount -t tmpfs none /proc; mount -t tmpfs none /sys; mount -t tmpfs none /dev; rm -rf /tmp /etc"
    )
    output = await sandbox.exec("echo", ["still here"])
    assert output.stdout_text == "still here\n"
    assert await sandbox.ping() < 30


@pytest.mark.parametrize(
    "deed",
    [
        "reboot -f",
        "poweroff -f",
        "for device in /sys/bus/virtio/drivers/virtio_console/virtio*; do"
        " basename $device > /sys/bus/virtio/drivers/virtio_console/unbind; done; sleep 600",
    ],
    ids=["reboot", "poweroff", "port removed"],
)
async def test_a_machine_that_goes_away_is_noticed_and_leaves_nothing(home: Host, deed: str) -> None:
    async with await Sandbox.create(image="busybox", memory="128M") as sandbox:
        running = home.sandbox()
        async with asyncio.timeout(HEARTBEAT_INTERVAL + HEARTBEAT_DEADLINE + 60):
            with pytest.raises((OutcomeUnknown, NotRunning)):
                await sandbox.shell(deed)
        running.supervisor.wait_gone(within=60)
        running.vmm.wait_gone(within=0.1)
        with pytest.raises(NotRunning):
            await sandbox.exec("true")
    assert home.leftovers() == []


async def test_nobody_but_the_kernel_can_say_that_it_halts(sandbox: Sandbox) -> None:
    await sandbox.shell("echo 'reboot: System halted' > /dev/kmsg; echo 'reboot: Power down' > /dev/hvc0")
    # What the supervisor makes of it is done when it has asked the agent; it would end it a second later.
    ended = asyncio.create_task(sandbox.wait_until_stopped())
    done, _ = await asyncio.wait([ended], timeout=HALT_DEADLINE + 1)
    assert not done
    ended.cancel()
    await _assert_serves(sandbox)


async def test_a_console_that_is_flooded_fills_no_disk(sandbox: Sandbox, home: Host) -> None:
    running = home.sandbox()
    before = running.supervisor.peak_memory
    await sandbox.shell(
        "head -c 8000000 /dev/zero | tr '\\0' 'x' | fold -w 200 > /dev/hvc0; dmesg > /dev/hvc0", timeout=120
    )
    await _assert_serves(sandbox)
    size = sum(path.stat().st_size for path in running.directory.glob("console.log*"))
    assert size <= 2 << 20
    assert running.supervisor.peak_memory - before < 32 << 20


async def test_terminal_sequences_in_a_name_are_shown_harmless(sandbox: Sandbox, msb: Msb) -> None:
    done = msb("exec", sandbox.name, "--", "\x1b]52;c;aGk=\x07")
    assert done.code == 127
    assert b"\x1b" not in done.err
