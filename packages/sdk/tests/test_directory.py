"""Locks say what runs; leftovers go, what is in use stays."""

import errno
import os
from pathlib import Path

import pytest
from microsandbox._directory import SandboxDirectory, sweep
from microsandbox._life import directories
from microsandbox.errors import StateError


def test_a_directory_runs_as_long_as_someone_holds_its_lock(tmp_path: Path) -> None:
    directory = SandboxDirectory(tmp_path, "one")
    lock = directory.create()
    assert directory.is_running()
    assert directory.try_lock() is None
    os.close(lock)
    assert not directory.is_running()
    again = directory.try_lock()
    assert again is not None
    assert directory.is_running()
    os.close(again)


def test_a_lock_is_not_inherited_by_programs(tmp_path: Path) -> None:
    lock = SandboxDirectory(tmp_path, "one").create()
    assert not os.get_inheritable(lock)
    os.close(lock)


def test_what_does_not_exist_does_not_run(tmp_path: Path) -> None:
    directory = SandboxDirectory(tmp_path, "nothing")
    assert not directory.is_running()
    assert directory.try_lock() is None
    directory.remove()


def test_the_lock_of_a_removed_directory_is_a_lock_on_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = SandboxDirectory(tmp_path, "one")
    os.close(directory.create())
    opened = os.open

    def open_then_remove(path: str, flags: int, mode: int = 0o777) -> int:
        descriptor = opened(path, flags, mode)
        monkeypatch.undo()
        directory.remove()
        return descriptor

    monkeypatch.setattr(os, "open", open_then_remove)
    assert directory.try_lock() is None


def test_sweep_takes_leftovers_and_leaves_the_rest(tmp_path: Path) -> None:
    running = SandboxDirectory(tmp_path, "running")
    lock = running.create()
    stopped = SandboxDirectory(tmp_path, "stopped")
    os.close(stopped.create())
    leftover = SandboxDirectory(tmp_path, "leftover")
    os.close(leftover.create())
    leftover.upper.write_bytes(b"x")
    (leftover.path / "deep" / "er").mkdir(parents=True)
    sweep(tmp_path, {"stopped"}.__contains__)
    assert running.path.exists()
    assert stopped.path.exists()
    assert not leftover.path.exists()
    os.close(lock)


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "sandboxes").write_bytes(b"")
    with pytest.raises(StateError, match="sandboxes") as caught:
        SandboxDirectory(tmp_path, "one").create()
    assert caught.value.hint


def test_what_cannot_be_looked_at_is_not_taken_for_a_leftover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # L03: too many open files, just where somebody looks whether a sandbox runs
    running = SandboxDirectory(tmp_path, "running")
    lock = running.create()
    opened = os.open

    def one_too_many(path: str, flags: int, mode: int = 0o777) -> int:
        if str(path).endswith("/lock"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)
        return opened(path, flags, mode)

    monkeypatch.setattr(os, "open", one_too_many)
    for look in (running.is_running, lambda: sweep(tmp_path, lambda _: False), lambda: directories(tmp_path)):
        with pytest.raises(StateError, match="Too many open files"):
            look()
    monkeypatch.undo()
    assert running.is_running()
    os.close(lock)
