"""Taking a stopped sandbox's lock, removing it, replacing it, and looking at all of them: one winner each."""

import fcntl
import os
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from microsandbox import _create, _directory, _life, _replace
from microsandbox._config import SandboxConfig
from microsandbox._directory import SandboxDirectory
from microsandbox._state import Record, State
from microsandbox.errors import AlreadyExists, SandboxNotFound, StateError, StillRunning
from microsandbox.info import Status, inspect, list_sandboxes

IMAGE: Any = SimpleNamespace(digest="sha256:0", compression="none")
LIFE = _life.Life("stopped", 5, 5, cause="requested", reason="it was asked to stop")


def _add(home: Path, identifier: str, name: str, *, ephemeral: bool = False, labels: Any = ()) -> Record:
    """A sandbox that has stopped."""
    directory = SandboxDirectory(home, identifier)
    os.close(directory.create())
    _life.write(directory, LIFE)
    config = SandboxConfig().pack()
    record = Record(identifier, name, ephemeral, 1, "busybox", "sha256:0", config, labels)
    state = State(home)
    state.add(record)
    state.close()
    return record


def _hold(home: Path, identifier: str, status: str) -> int:
    """A sandbox that is doing something, in the eyes of everybody else."""
    directory = SandboxDirectory(home, identifier)
    lock = directory.try_lock()
    assert lock is not None
    _life.write(directory, LIFE._replace(status=status))
    return lock


def _names(home: Path) -> list[str]:
    state = State(home)
    try:
        return [record.name for record in state.all()]
    finally:
        state.close()


@pytest.mark.parametrize("status", ["starting", "running", "stopping"])
def test_what_is_active_is_neither_held_nor_removed(tmp_path: Path, status: str) -> None:
    record = _add(tmp_path, "a1", "dev")
    lock = _hold(tmp_path, "a1", status)
    with pytest.raises(StillRunning, match=f"is {status}"):
        _create.hold(tmp_path, "dev")
    with pytest.raises(StillRunning, match=f"is {status}"):
        _create.forget(tmp_path, record)
    os.close(lock)
    _create.forget(tmp_path, record)
    assert _names(tmp_path) == []
    with pytest.raises(SandboxNotFound):
        _create.forget(tmp_path, record)


def test_who_is_about_to_let_go_is_waited_for(tmp_path: Path) -> None:
    record = _add(tmp_path, "a1", "dev")
    lock = _hold(tmp_path, "a1", "stopped")
    removal = threading.Thread(target=_create.forget, args=(tmp_path, record))
    removal.start()
    assert removal.is_alive()
    os.close(lock)
    removal.join(timeout=60)
    assert _names(tmp_path) == []


def test_a_name_that_is_another_ones_id_removes_the_right_one(tmp_path: Path) -> None:
    record = _add(tmp_path, "a1", "dev")
    _add(tmp_path, "b2", "a1")
    _create.forget(tmp_path, record)
    assert _names(tmp_path) == ["a1"]
    assert SandboxDirectory(tmp_path, "b2").path.exists()


def test_a_removal_that_cannot_write_the_database_removes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(state: State, identifier: str) -> bool:
        raise StateError("the disk is full")

    record = _add(tmp_path, "a1", "dev")
    SandboxDirectory(tmp_path, "a1").upper.write_bytes(b"x")
    monkeypatch.setattr(State, "remove", refuse)
    with pytest.raises(StateError, match="full"):
        _create.forget(tmp_path, record)
    assert SandboxDirectory(tmp_path, "a1").upper.exists()
    assert _life.look(SandboxDirectory(tmp_path, "a1")).status is Status.STOPPED


@pytest.mark.parametrize("step", ["upper.ext4", "logs", "doomed"])
def test_a_removal_that_made_room_and_failed_is_finished_by_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A full disk: what is to go makes the room. Wherever that ends, nobody gets a new disk by that name."""

    def refuse(state: State, identifier: str) -> bool:
        raise StateError("the disk is full", code="no_space")

    record = _add(tmp_path, "a1", "dev")
    directory = SandboxDirectory(tmp_path, "a1")
    directory.upper.write_bytes(b"x")
    directory.logs.mkdir()
    delete = _directory._delete

    def fail(path: Path) -> None:
        if path.name == step:
            raise StateError(f"{path}: cannot remove")
        delete(path)

    with monkeypatch.context() as broken:
        broken.setattr(State, "remove", refuse)
        broken.setattr(_directory, "_delete", fail)
        with pytest.raises(StateError):
            _create.forget(tmp_path, record)
    assert not directory.upper.exists()
    with pytest.raises(SandboxNotFound):
        _create.hold(tmp_path, "dev")
    assert list_sandboxes(tmp_path) == []
    assert not directory.path.exists()
    assert _names(tmp_path) == []


def test_looking_writes_nothing_and_waits_for_nobody(tmp_path: Path) -> None:
    _add(tmp_path, "a1", "stopped")
    _add(tmp_path, "b2", "running", labels=(("team", "a"),))
    lock = _hold(tmp_path, "b2", "running")
    with closing(sqlite3.connect(tmp_path / "state.db", isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        found = {info.name: info.status for info in list_sandboxes(tmp_path)}
        assert found == {"stopped": Status.STOPPED, "running": Status.RUNNING}
        assert [info.name for info in list_sandboxes(tmp_path, ["team=a"])] == ["running"]
    os.close(lock)


def test_looking_puts_right_what_a_crash_has_left(tmp_path: Path) -> None:
    _add(tmp_path, "a1", "kept")
    _add(tmp_path, "b2", "ephemeral", ephemeral=True)
    _add(tmp_path, "c3", "lost")
    SandboxDirectory(tmp_path, "c3").remove()
    os.close(SandboxDirectory(tmp_path, "d4").create())
    assert [info.name for info in list_sandboxes(tmp_path)] == ["kept"]
    assert _names(tmp_path) == ["kept"]
    assert sorted(path.name for path in (tmp_path / "sandboxes").iterdir()) == [".guard", "a1"]


def test_a_crash_is_told_with_what_is_known(tmp_path: Path) -> None:
    _add(tmp_path, "a1", "dev")
    os.close(_hold(tmp_path, "a1", "running"))
    found = inspect(tmp_path, "dev")
    assert (found.info.status, found.info.since, found.info.supervisor_pid) == (Status.CRASHED, None, None)
    assert found.end is not None
    assert (found.end.cause, found.end.vmm_exit) == ("supervisor_died", None)
    assert "while the sandbox was running" in found.end.reason


def _stand_in(monkeypatch: pytest.MonkeyPatch, launched: list[Record]) -> None:
    def launch(home: Path, record: Record, *rest: Any) -> Any:
        os.close(rest[3])
        launched.append(record)
        return SimpleNamespace()

    monkeypatch.setattr(_create, "_launch", launch)


def test_the_new_one_takes_the_name_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[Record] = []
    _stand_in(monkeypatch, launched)
    _add(tmp_path, "a1", "dev")
    _replace.begin(tmp_path, IMAGE, SandboxConfig(), shown_image="x", name="dev", grace=0.0)
    (new,) = launched
    assert new.id != "a1"
    assert _names(tmp_path) == ["dev"]
    assert not SandboxDirectory(tmp_path, "a1").path.exists()
    # One that is not there.
    _replace.begin(tmp_path, IMAGE, SandboxConfig(), shown_image="x", name="other", grace=0.0)
    assert _names(tmp_path) == ["dev", "other"]


def test_somebody_who_is_faster_is_replaced_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[Record] = []
    _stand_in(monkeypatch, launched)
    add = State.add
    faster: list[Record] = []

    def late(state: State, record: Record, **options: Any) -> None:
        if not faster:
            faster.append(_add_with(add, tmp_path, "a1", "dev"))
        add(state, record, **options)

    monkeypatch.setattr(State, "add", late)
    _replace.begin(tmp_path, IMAGE, SandboxConfig(), shown_image="x", name="dev", grace=0.0)
    assert [record.id != "a1" for record in launched] == [True]
    assert _names(tmp_path) == ["dev"]
    assert not SandboxDirectory(tmp_path, "a1").path.exists()


def _add_with(add: Any, home: Path, identifier: str, name: str) -> Record:
    os.close(SandboxDirectory(home, identifier).create())
    record = Record(identifier, name, False, 1, "busybox", "sha256:0", SandboxConfig().pack())
    state = State(home)
    add(state, record)
    state.close()
    return record


def test_what_could_not_be_replaced_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(state: State, record: Record, **options: Any) -> None:
        raise StateError("the disk is full")

    _add(tmp_path, "a1", "dev")
    monkeypatch.setattr(State, "add", refuse)
    with pytest.raises(StateError, match="full"):
        _replace.begin(tmp_path, IMAGE, SandboxConfig(), shown_image="x", name="dev", grace=0.0)
    monkeypatch.undo()
    held = _create.hold(tmp_path, "dev")
    with pytest.raises(BlockingIOError), SandboxDirectory(tmp_path, "a1").lock.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(held.lock)
    assert sorted(path.name for path in (tmp_path / "sandboxes").iterdir()) == [".guard", "a1"]


def test_create_without_replace_leaves_the_old_one(tmp_path: Path) -> None:
    _add(tmp_path, "a1", "dev")
    with pytest.raises(AlreadyExists) as caught:
        _create.begin(tmp_path, IMAGE, SandboxConfig(), shown_image="x", name="dev")
    assert "--replace" in (caught.value.hint or "")
    assert sorted(path.name for path in (tmp_path / "sandboxes").iterdir()) == [".guard", "a1"]
