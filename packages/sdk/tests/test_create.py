"""In which order a sandbox comes into being, and what is left when one step fails."""

import contextlib
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from microsandbox import _create
from microsandbox._config import SandboxConfig
from microsandbox._directory import SandboxDirectory
from microsandbox._launch import Supervisor
from microsandbox._state import Record, State
from microsandbox.errors import AlreadyExists, StateError

IMAGE: Any = SimpleNamespace(digest="sha256:0", compression="none")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What has happened so far; supervisors are programs that only wait."""
    happened: list[str] = []
    add = State.add

    def launch(home: Path, record: Record, config: object, image: object, *rest: Any) -> Supervisor:
        directory, lock, _attached = rest
        assert isinstance(directory, SandboxDirectory)
        os.close(lock)
        happened.append("supervisor")
        ours, theirs = socket.socketpair()
        theirs.close()
        return Supervisor(directory, ours, os.posix_spawn("/bin/sleep", ["sleep", "60"], {}))

    def recorded(state: State, record: Record, **options: Any) -> None:
        happened.append("record")
        add(state, record, **options)

    monkeypatch.setattr(_create, "_launch", launch)
    monkeypatch.setattr(State, "add", recorded)
    return happened


def _begin(home: Path, *, attached: bool, name: str | None) -> _create.Pending:
    return _create.begin(
        home, IMAGE, SandboxConfig(), shown_image="x", name=name, attached=attached, ephemeral=name is None
    )


def _end(pending: _create.Pending) -> None:
    _create._take_back(pending.supervisor)


def test_what_ends_with_its_creator_starts_before_it_is_recorded(tmp_path: Path, steps: list[str]) -> None:
    pending = _begin(tmp_path, attached=True, name=None)
    assert steps == ["supervisor", "record"]
    _end(pending)


@pytest.mark.parametrize(("attached", "name"), [(True, "dev"), (False, "dev"), (False, None)])
def test_everything_else_is_recorded_before_it_starts(
    tmp_path: Path, steps: list[str], attached: bool, name: str | None
) -> None:
    pending = _begin(tmp_path, attached=attached, name=name)
    assert steps == ["record", "supervisor"]
    _end(pending)


def test_a_taken_name_starts_nothing(tmp_path: Path, steps: list[str]) -> None:
    pending = _begin(tmp_path, attached=True, name="dev")
    with pytest.raises(AlreadyExists):
        _begin(tmp_path, attached=True, name="dev")
    assert steps == ["record", "supervisor", "record"]
    _end(pending)


def test_what_cannot_be_recorded_is_ended_and_removed(
    tmp_path: Path, steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(state: State, record: Record, **options: Any) -> None:
        raise StateError("the disk is full")

    monkeypatch.setattr(State, "add", refuse)
    before = _children()
    with pytest.raises(StateError, match="full"):
        _begin(tmp_path, attached=True, name=None)
    assert steps == ["supervisor"]
    assert [path.name for path in (tmp_path / "sandboxes").iterdir()] == [".guard"]
    assert _children() <= before


def _children() -> set[int]:
    """The children of this process, dead ones too. Other tests in it may have some that go on."""
    children: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            children.update(int(child) for child in (task / "children").read_text().split())
    return children
