"""The VMM as a process of the host: what it was given, what it may do. (V02)"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from microsandbox_core import env

from tests.support.host import Host, RunningSandbox
from tests.support.msb import Msb

pytestmark = pytest.mark.vm

SECRET = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def running(shared_home: Path, settings: dict[str, str]) -> Iterator[RunningSandbox]:
    """A sandbox whose creator has secrets in its environment, its arguments and its command."""
    msb = Msb(shared_home, {**settings, "HOST_TOKEN": SECRET})
    command = msb.start("run", "-e", f"TOKEN={SECRET}", "busybox", "--", "sh", "-c", f"echo {SECRET}; cat")
    with command:
        assert command.line() == SECRET.encode() + b"\n"
        yield msb.host.sandbox()
        command.finish(b"")
    msb.host.wait_empty()


def test_argv_names_nothing_of_the_home_but_the_kernel(running: RunningSandbox, shared_home: Path) -> None:
    naming = [argument for argument in running.vmm.argv if str(shared_home) in argument]
    assert len(naming) == 1
    assert naming[0].startswith(f"{shared_home}/cache/kernels/")
    assert running.vmm.argv[running.vmm.argv.index(naming[0]) - 1] == "-kernel"


def test_no_secret_in_the_arguments_or_the_environment_of_a_process(running: RunningSandbox) -> None:
    for process in (running.supervisor, running.vmm):
        assert SECRET not in " ".join([*process.argv, *process.environ])


def test_no_secret_in_a_file_of_the_sandbox(running: RunningSandbox) -> None:
    for path in running.directory.iterdir():
        if path.is_file() and path.name != "upper.ext4":
            assert SECRET.encode() not in path.read_bytes(), path


def test_the_environment_is_one_variable(running: RunningSandbox) -> None:
    assert running.vmm.environ == ["LC_ALL=C"]


def test_the_supervisors_environment_is_what_it_needs(running: RunningSandbox) -> None:
    names = {item.partition("=")[0] for item in running.supervisor.environ}
    assert names <= {"PATH", "MSB_QEMU", "MSB_KERNEL", "MSB_LIBKRUNFW", "LANG", "LC_ALL", "TMPDIR"}


def test_no_descriptor_but_disks_sockets_and_its_own(running: RunningSandbox, host_of: Host) -> None:
    """Nothing by which it could hold the lock, reach the creator, the database or other sandboxes."""
    targets = running.vmm.descriptors.values()
    files = {target for target in targets if target.startswith("/") and not target.startswith("/memfd:")}
    ours = {target for target in files if target.startswith(f"{host_of.home}/")}
    allowed = re.compile(
        rf"{re.escape(str(host_of.home))}/"
        rf"(cache/(layers/\w+\.erofs|images/\w+/fsmeta\.erofs|boot/\w+\.erofs|kernels/\w+\.elf"
        rf"|templates/\w+/(memory|state))"
        rf"|sandboxes/{running.id}/upper\.ext4)"
    )
    assert {target for target in ours if not allowed.fullmatch(target)} == set()
    assert files - ours <= {"/dev/null", "/dev/kvm", "/dev/urandom", "/dev/random"}
    assert len({target for target in targets if target.startswith("socket:")}) == 4, (
        "the agent, the console, the network card's link, and the monitor by which it is paused"
    )


def test_only_the_upper_is_open_for_writing(running: RunningSandbox, host_of: Host) -> None:
    writable = {
        target
        for number, target in running.vmm.descriptors.items()
        if target.startswith(f"{host_of.home}/") and _access(running, number) != os.O_RDONLY
    }
    assert writable == {str(running.directory / "upper.ext4")}


@pytest.mark.skipif(env.value(env.MSB_COLD) is not None, reason="every start is cold in this run")
def test_the_templates_memory_is_mapped_privately_and_not_open_for_writing(
    running: RunningSandbox, host_of: Host
) -> None:
    """It is the memory of other sandboxes too."""
    memory = re.compile(rf"{re.escape(str(host_of.home))}/cache/templates/\w+/memory")
    numbers = [number for number, target in running.vmm.descriptors.items() if memory.fullmatch(target)]
    assert numbers
    assert {_access(running, number) for number in numbers} == {os.O_RDONLY}
    maps = Path(f"/proc/{running.vmm.pid}/maps").read_text().splitlines()
    (mapping,) = (fields for line in maps if memory.fullmatch((fields := line.split())[-1]))
    assert mapping[1] == "rw-p"


def _access(sandbox: RunningSandbox, number: int) -> int:
    """How the VMM may use one of its descriptors, as in open(2): proc_pid_fdinfo(5)."""
    lines = Path(f"/proc/{sandbox.vmm.pid}/fdinfo/{number}").read_text().splitlines()
    (flags,) = (line.split()[1] for line in lines if line.startswith("flags:"))
    return int(flags, 8) & os.O_ACCMODE


def test_the_creators_ends_are_not_in_it(running: RunningSandbox) -> None:
    # The lifeline's other end would keep the supervisor from seeing its creator's death.
    theirs = {t for t in running.vmm.descriptors.values() if t.startswith("socket:")}
    supervisors = {t for t in running.supervisor.descriptors.values() if t.startswith("socket:")}
    assert theirs & supervisors == set()


def test_it_can_gain_no_privileges_and_is_filtered(running: RunningSandbox) -> None:
    status = running.vmm.status
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert int(status["CapAmb"], 16) == 0
    filtered = 0
    for thread in Path(f"/proc/{running.vmm.pid}/task").iterdir():
        # Those that wait for disks come and go.
        with suppress(FileNotFoundError, ProcessLookupError):
            assert "Seccomp:\t2" in (thread / "status").read_text(), "a filter holds for every thread"
            filtered += 1
    assert filtered


def test_it_leaves_no_core(running: RunningSandbox) -> None:
    assert running.vmm.limits()["Max core file size"] == ["0", "0"]


def test_it_is_out_of_reach_of_the_creators_terminal(running: RunningSandbox) -> None:
    assert os.getsid(running.vmm.pid) == running.vmm.pid
    assert os.getsid(running.supervisor.pid) == running.supervisor.pid


def test_files_of_the_sandbox_are_the_users_alone(running: RunningSandbox, shared_home: Path) -> None:
    for path in (running.directory, *running.directory.iterdir()):
        assert path.lstat().st_mode & 0o077 == 0, path
        assert path.lstat().st_uid == os.geteuid()
    assert (shared_home / "state.db").stat().st_mode & 0o077 == 0


def test_the_guest_has_only_the_devices_meant_for_it(shared_home: Path, settings: dict[str, str]) -> None:
    script = (
        "ls -d /sys/class/net/*/device; ls -d /sys/class/block/*/device; ls /sys/bus/virtio/devices | wc -l"
    )
    done = Msb(shared_home, settings).run("sh", "-c", script).succeeded()
    card, *disks, devices = done.text.split()
    assert card == "/sys/class/net/eth0/device"
    assert disks == [f"/sys/class/block/vd{letter}/device" for letter in "abc"]
    assert devices == "6", "three disks, the console, the random numbers, the network card"


@pytest.fixture
def host_of(shared_home: Path) -> Host:
    """The host's view of the shared home."""
    return Host(shared_home)
