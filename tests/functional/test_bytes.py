"""Arguments, variables, input and output arrive byte for byte, as they come, in bounded memory."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
from pathlib import Path

import pytest

from tests.support.host import Host
from tests.support.msb import PROGRAM, Msb, Running
from tests.support.process import Process
from tests.support.waiting import eventually

pytestmark = pytest.mark.vm

MIB = 1 << 20
GROWTH = 48 * MIB
"""What buffers and an emulator's code cache may take while 100 MiB and more pass through."""

AWKWARD = [
    b"with space",
    b"'single' \"double\" `back` $HOME \\ *",
    b"two\nlines\n",
    b"\xff\xfe not UTF-8 \x80",
    "ünïcode \U0001f980".encode(),
    b"-n",
    b"--",
    b"",
    b"\x01\x1b[31m\x7f",
    b"k" * 100_000,
]


def test_arguments_arrive_unchanged(msb: Msb) -> None:
    done = msb.run("printf", r"%s\0", *AWKWARD).succeeded()
    assert done.out.split(b"\0")[:-1] == AWKWARD


def test_variables_arrive_unchanged(msb: Msb) -> None:
    given = {b"V%d" % number: value for number, value in enumerate(AWKWARD)}
    given[b"odd.name-\xff"] = b"odd = value"
    options: list[bytes] = []
    for name, value in given.items():
        options += [b"-e", name + b"=" + value]
    done = msb.run("cat", "/proc/self/environ", options=options).succeeded()
    found = dict(line.split(b"=", 1) for line in done.out.split(b"\0")[:-1])
    assert {name: found.get(name) for name in given} == given


def test_variables_taken_from_the_host_arrive_unchanged(msb: Msb) -> None:
    given = {b"TAKEN%d" % number: value for number, value in enumerate(AWKWARD)}
    options = [part for name in given for part in (b"-e", name)]
    done = msb("run", *options, "busybox", "--", "cat", "/proc/self/environ", environ=given).succeeded()
    found = dict(line.split(b"=", 1) for line in done.out.split(b"\0")[:-1])
    assert {name: found.get(name) for name in given} == given


def test_every_byte_passes_both_ways(msb: Msb) -> None:
    data = bytes(range(256)) * 257
    done = msb.run("sh", "-c", "tee /proc/self/fd/2", stdin=data).succeeded()
    assert (done.out, done.err) == (data, data)


def test_output_is_there_before_the_command_ends(msb: Msb) -> None:
    with msb.start(
        "run", "busybox", "--", "sh", "-c", "echo first; read x; echo $x; echo half; cat"
    ) as command:
        assert command.line() == b"first\n"  # the command waits for us: it cannot have ended
        command.stdin.write(b"second\n")
        assert (command.line(), command.line()) == (b"second\n", b"half\n")
        assert command.finish(b"rest").succeeded().out == b"rest"


def test_a_reader_that_leaves_ends_the_command_at_once(msb: Msb, host: Host) -> None:
    # `msb run busybox -- yes | head -1`
    with msb.start("run", "busybox", "--", "yes") as command:
        assert command.line() == b"y\n"
        command.stdout.close()
        assert command.process.wait(timeout=120) == 128 + 13
    assert host.leftovers() == []


def test_an_input_that_the_command_does_not_read_does_not_keep_it(msb: Msb) -> None:
    with msb.start("run", "busybox", "--", "true") as command:  # our end stays open
        assert command.process.wait(timeout=60) == 0
    assert msb.run("head", "-c", "3", stdin=b"abc" + b"x" * 5 * MIB).succeeded().out == b"abc"


def test_a_regular_file_and_an_empty_one_are_inputs(msb: Msb, tmp_path: Path) -> None:
    content = random.Random(7).randbytes(700_001)
    (tmp_path / "some").write_bytes(content)
    (tmp_path / "none").touch()
    for name, wanted in (("some", content), ("none", b"")):
        with (tmp_path / name).open("rb", buffering=0) as file:
            assert msb.run("cat", stdin=file).succeeded().out == wanted


@pytest.mark.slow
@pytest.mark.once
def test_200_mb_of_output_in_constant_memory(msb: Msb, host: Host) -> None:
    size = 200 * MIB
    script = f"{{ head -c {size} /dev/urandom | tee /proc/self/fd/3 | sha256sum >&2; }} 3>&1; cat >/dev/null"
    with msb.start("run", "-m", "128M", "busybox", "--", "sh", "-c", script) as command:
        digest, received = hashlib.sha256(), 0
        peaks: dict[str, int] = {}
        while received < size and (chunk := command.stdout.read(1 << 18)):
            digest.update(chunk)
            received += len(chunk)
            if not peaks and received > 20 * MIB:
                peaks = _peaks(command, host)
        assert received == size
        after = _peaks(command, host)
        done = command.finish(b"")
    assert done.succeeded().complaint.split()[0] == digest.hexdigest()
    _assert_no_growth(peaks, after)


@pytest.mark.slow
@pytest.mark.once
def test_100_mb_of_input_in_constant_memory(msb: Msb, host: Host) -> None:
    size = 100 * MIB
    script = f"echo up; head -c {size} | sha256sum; cat >/dev/null"
    source = random.Random(11)
    with msb.start("run", "-m", "128M", "busybox", "--", "sh", "-c", script) as command:
        assert command.line() == b"up\n"
        digest = hashlib.sha256()
        peaks: dict[str, int] = {}
        for sent in range(0, size, MIB):
            chunk = source.randbytes(MIB)
            digest.update(chunk)
            _write(command, chunk)
            if sent == 20 * MIB:
                peaks = _peaks(command, host)
        shown = command.line()
        after = _peaks(command, host)
        command.finish(b"").succeeded()
    assert shown.split()[0].decode() == digest.hexdigest()
    _assert_no_growth(peaks, after)


def test_output_that_nobody_takes_stops_the_command_not_the_host(msb: Msb, host: Host) -> None:
    # A11: backpressure reaches the program in the guest
    script = "echo up; yes | head -c 1000000000 >&2"
    with msb.start("run", "-m", "128M", "busybox", "--", "sh", "-c", script) as command:
        assert command.line() == b"up\n"
        before = _peaks(command, host)
        assert command.process.stderr is not None
        taken = os.read(command.process.stderr.fileno(), 1 << 16)
        assert set(taken) == set(b"y\n")
        _until_idle(host.sandbox().supervisor)
        _assert_no_growth(before, _peaks(command, host))
        command.process.terminate()
        assert command.process.wait(timeout=120) == 143
    assert host.leftovers() == []


def _peaks(command: Running, host: Host) -> dict[str, int]:
    sandbox = host.sandbox()
    return {
        "msb": command.host_process.peak_memory,
        "supervisor": sandbox.supervisor.peak_memory,
        "vmm": sandbox.vmm.peak_memory,
    }


def _assert_no_growth(before: dict[str, int], after: dict[str, int]) -> None:
    growth = {name: after[name] - before[name] for name in before}
    assert all(grown < GROWTH for grown in growth.values()), (growth, before, after)


def _write(command: Running, data: bytes) -> None:
    """All of it: an unbuffered pipe takes what it has room for."""
    view = memoryview(data)
    while view:
        view = view[command.stdin.write(view) :]


def _until_idle(process: Process, *, spans: int = 50) -> None:
    """Until the process has used no processor time for half a second: nothing flows any more."""
    last, idle = -1, 0

    def rested() -> bool:
        nonlocal last, idle
        now = _ticks(process)
        idle = idle + 1 if now == last else 0
        last = now
        return idle >= spans

    eventually(rested, within=60, what=f"process {process.pid} at rest")


def _ticks(process: Process) -> int:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_output_that_cannot_be_written_is_an_error_and_not_silence(msb: Msb) -> None:
    # As `msb run ... > FILE` on a full disk: /dev/full answers every write with ENOSPC.
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [PROGRAM, "run", "-q", "busybox", "--", "echo", "lost"],
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            env=msb.environ,
            text=True,
        )
    assert done.returncode == 125
    assert [line.partition(": ")[0] for line in done.stderr.splitlines()] == ["error", "hint"]
    assert "No space left" in done.stderr
