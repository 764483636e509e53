"""What a sandbox is doing, from its record and its lock together."""

import asyncio
import errno
import os
import signal
import socket
from pathlib import Path

import pytest
from microsandbox import _ending, _life
from microsandbox._directory import SandboxDirectory
from microsandbox._life import Life, Status

BEGUN = Life("starting", 5, 5)


@pytest.fixture
def directory(tmp_path: Path) -> SandboxDirectory:
    """A sandbox that nobody holds."""
    found = SandboxDirectory(tmp_path, "one")
    os.close(found.create())
    return found


@pytest.mark.parametrize(
    ("noted", "held", "seen"),
    [
        (None, False, "created"),
        (None, True, "starting"),
        ("starting", True, "starting"),
        ("running", True, "running"),
        ("stopping", True, "stopping"),
        # The end is noted, and who noted it has not gone yet.
        ("stopped", True, "stopping"),
        ("crashed", True, "stopping"),
        ("stopped", False, "stopped"),
        ("crashed", False, "crashed"),
        # Nobody is left who could have noted the end.
        ("starting", False, "crashed"),
        ("running", False, "crashed"),
        ("stopping", False, "crashed"),
    ],
)
def test_record_and_lock_together_say_it(
    directory: SandboxDirectory, noted: str | None, held: bool, seen: str
) -> None:
    if noted is not None:
        _life.write(directory, BEGUN._replace(status=noted))
    lock = directory.try_lock() if held else None
    try:
        found = _life.look(directory)
        assert (found.status, found.held) == (seen, held)
        home = directory.path.parent.parent
        assert _life.directories(home) == {"one": held}
        assert _life.look_at(home, ["one"], ["one"] if held else [])["one"] == found
    finally:
        if lock is not None:
            os.close(lock)


def test_a_lock_that_changed_since_it_was_looked_at_is_looked_at_again(directory: SandboxDirectory) -> None:
    _life.write(directory, BEGUN._replace(status="stopped"))
    home = directory.path.parent.parent
    assert _life.look_at(home, ["one"], ["one"])["one"].status is Status.STOPPED


def test_a_sandbox_that_is_older_than_records_has_stopped(directory: SandboxDirectory) -> None:
    directory.upper.write_bytes(b"")
    assert _life.look(directory).status is Status.STOPPED


def test_a_record_survives_with_all_of_it(directory: SandboxDirectory) -> None:
    life = Life("crashed", 7, 5, 12, 34, 56, "kvm", "vmm_died", "the VMM ended \udcff", -9)
    _life.write(directory, life)
    assert _life.read(directory) == life
    assert [path.name for path in directory.path.iterdir() if path.name.endswith(".new")] == []


@pytest.mark.parametrize("content", [b"", b"\x81", b"garbage", b"\x80", b"\x81\xa6status\x01"])
def test_a_record_that_cannot_be_read_is_none_or_harmless(
    directory: SandboxDirectory, content: bytes
) -> None:
    Path(directory.path, "life").write_bytes(content)
    assert _life.look(directory).status is Status.CREATED


def test_a_record_that_cannot_be_written_ends_nothing(
    directory: SandboxDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(directory.path, "life.new").mkdir()
    _life.write(directory, BEGUN)
    assert "cannot note" in capsys.readouterr().err
    assert _life.read(directory) is None


def test_a_supervisor_is_told_from_another_process_with_its_number() -> None:
    pid = os.posix_spawn("/bin/sleep", ["sleep", "60"], {})
    life = BEGUN._replace(pid=pid, ticks=_life.started_at(pid))
    try:
        pidfd = _life.open_supervisor(life)
        assert pidfd is not None
        os.close(pidfd)
        assert _life.open_supervisor(life._replace(ticks=life.ticks - 1)) is None
        assert _life.open_supervisor(BEGUN) is None
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert _life.open_supervisor(life) is None
    assert _life.started_at(pid) == 0


def test_a_sandbox_that_is_gone_has_stopped(directory: SandboxDirectory) -> None:
    directory.remove()
    assert _life.look(directory).status is Status.STOPPED


def test_a_supervisor_that_could_not_write_its_record_is_found_by_its_socket(
    directory: SandboxDirectory,
) -> None:
    lock = directory.try_lock()
    assert lock is not None
    assert _life.look(directory).status is Status.STARTING
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory.socket))
        listener.listen()
        assert _life.look(directory).status is Status.RUNNING
        pidfd = asyncio.run(_ending.supervisor(directory))
        assert pidfd is not None
        assert f"Pid:\t{os.getpid()}\n" in Path(f"/proc/self/fdinfo/{pidfd}").read_text()
        os.close(pidfd)
    os.close(lock)
    assert asyncio.run(_ending.supervisor(directory)) is None


def test_a_record_takes_the_place_of_the_old_one_where_there_is_no_room_for_another(
    directory: SandboxDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # L09
    ended = BEGUN._replace(status=Status.STOPPED, reason="x")
    _life.write(directory, BEGUN._replace(reason="y" * 100))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert _life.write(directory, ended, quiet=True)
    assert _life.read(directory) == ended
    assert not Path(directory.path, "life.new").exists()


def test_records_have_only_what_is_known(directory: SandboxDirectory) -> None:
    _life.write(directory, BEGUN)
    assert b"console" not in Path(directory.path, "life").read_bytes()
    failed = BEGUN._replace(status=Status.CRASHED, stage="boot", hint="h", console="c")
    _life.write(directory, failed)
    assert _life.read(directory) == failed
