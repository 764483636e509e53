"""Forks: their names, and what is left of one that was cut off."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest
from microsandbox import _create, _fork, _life, sandbox
from microsandbox._config import MountConfig, SandboxConfig
from microsandbox._directory import SandboxDirectory
from microsandbox._state import Record, State
from microsandbox.errors import AlreadyExists, ConfigError, SandboxNotFound, Unsupported
from microsandbox.modify import modify


def _record(home: Path, name: str, *, half: bool = False) -> Record:
    identifier = os.urandom(8).hex()
    directory = SandboxDirectory(home, identifier)
    os.close(directory.create())
    if half:
        directory.fork.mkdir()
        (directory.fork / "memory").touch()
    _life.write(directory, _life.begun()._replace(status=_life.Status.STOPPED))
    record = Record(identifier, name, False, 1, "busybox", "sha256:0", SandboxConfig(hostname="own").pack())
    state = State(home)
    state.add(record)
    state.close()
    return record


def test_names() -> None:
    assert _fork.names_of("kid", None) == ["kid"]
    assert _fork.names_of("kid", 1) == ["kid-1"]
    assert _fork.names_of("kid", 3) == ["kid-1", "kid-2", "kid-3"]
    for count in (0, -1, 101):
        with pytest.raises(ConfigError, match="count"):
            _fork.names_of("kid", count)
    with pytest.raises(ConfigError):
        _fork.names_of("-kid", None)
    with pytest.raises(ConfigError):
        _fork.names_of("k" * 63, 2)


def test_the_mounts_that_keep_it_from_forking_are_named(tmp_path: Path) -> None:
    source = _record(tmp_path, "dev")
    _fork._check_mounts(source)
    for count, told in ((1, "at /m0$"), (3, "at /m0, /m1, /m2$"), (5, "at /m0, /m1, /m2 and 2 more$")):
        mounts = tuple(MountConfig(f"/m{number}", "/srv") for number in range(count))
        with pytest.raises(Unsupported, match=f"'dev' cannot fork while it runs: .* {told}") as refused:
            _fork._check_mounts(source._replace(config=SandboxConfig(mounts=mounts).pack()))
        assert "msb stop dev" in (refused.value.hint or "")


def test_a_fork_that_did_not_come_up_is_removed_by_who_looks(tmp_path: Path) -> None:
    whole, half = _record(tmp_path, "whole"), _record(tmp_path, "half", half=True)
    assert [record.name for record, _ in _create.reconcile(tmp_path)] == ["whole"]
    assert SandboxDirectory(tmp_path, whole.id).path.exists()
    assert not SandboxDirectory(tmp_path, half.id).path.exists()


def test_one_that_is_just_being_made_is_left_alone(tmp_path: Path) -> None:
    half = _record(tmp_path, "half", half=True)
    lock = SandboxDirectory(tmp_path, half.id).try_lock()
    assert lock is not None
    assert [record.name for record, _ in _create.reconcile(tmp_path)] == ["half"]
    os.close(lock)


def test_a_fork_that_did_not_come_up_cannot_be_started(tmp_path: Path) -> None:
    half = _record(tmp_path, "half", half=True)
    with pytest.raises(SandboxNotFound):
        _create.hold(tmp_path, "half")
    assert not SandboxDirectory(tmp_path, half.id).path.exists()


def test_a_name_that_is_taken_costs_nothing(tmp_path: Path) -> None:
    source = _record(tmp_path, "source")
    _record(tmp_path, "kid-2")
    with pytest.raises(AlreadyExists, match="kid-2"):
        asyncio.run(_fork.fork(tmp_path, source, ["kid-1", "kid-2"]))
    assert len(os.listdir(tmp_path / "sandboxes")) == 3  # noqa: PTH208 - with the guard


def test_a_copy_has_the_settings_and_not_the_host_name(tmp_path: Path) -> None:
    source = _record(tmp_path, "source")._replace(ephemeral=True, labels=(("team", "a"),))
    copy = _fork._new(tmp_path, source, "kid")
    os.close(copy.lock)
    assert (copy.record.name, copy.record.ephemeral, copy.record.labels) == ("kid", False, source.labels)
    assert SandboxConfig.unpack(copy.record.config) == SandboxConfig()
    assert copy.record.id != source.id


def test_a_copy_of_what_was_cut_off_while_it_was_made_has_its_patches(tmp_path: Path) -> None:
    source = _record(tmp_path, "source")
    directory = SandboxDirectory(tmp_path, source.id)
    directory.patches.write_bytes(b"patches")
    directory.upper.write_bytes(b"half of them")
    copies: list[_fork._Copy] = []
    _fork._copy_stopped(tmp_path, source, ["kid"], copies)
    (copy,) = copies
    os.close(copy.lock)
    assert copy.directory.patches.read_bytes() == b"patches"
    assert not copy.directory.upper.exists()
    directory.patches.unlink()
    _fork._copy_stopped(tmp_path, source, ["other"], copies)
    os.close(copies[1].lock)
    assert copies[1].directory.upper.read_bytes() == b"half of them"
    assert not copies[1].directory.patches.exists()


def test_a_fork_that_is_cancelled_while_it_begins_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _record(tmp_path, "source")
    begins, go_on = threading.Event(), threading.Event()
    given_up: list[object] = []

    def begin(_home: Path, copy: _fork._Copy, *_: object) -> str:
        begins.set()
        go_on.wait(20)
        os.close(copy.lock)
        return copy.record.name

    async def abandon(pending: object) -> None:
        given_up.append(pending)

    async def main() -> None:
        task = asyncio.ensure_future(_fork.fork(tmp_path, source, ["kid"]))
        await asyncio.to_thread(begins.wait, 20)
        task.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    monkeypatch.setattr(_fork, "_begin", begin)
    monkeypatch.setattr(sandbox, "_abandon", abandon)
    asyncio.run(main())
    assert given_up == ["kid"]


def test_a_fork_has_the_size_of_the_machine_that_runs(tmp_path: Path) -> None:
    """Not that which `modify` has asked for since: it could not go on there."""
    source = _record(tmp_path, "source")
    record, _ = modify(tmp_path, source.id, {"memory": 1024, "cpus": 4}, dry_run=False)
    life = _life.begun()._replace(cpus=1, memory_mib=512)
    config = SandboxConfig.unpack(_fork._as_it_runs(record, life).config)
    assert (config.cpus, config.memory_mib) == (1, 512)
    of_earlier_version = _fork._as_it_runs(record, _life.begun())
    assert SandboxConfig.unpack(of_earlier_version.config) == SandboxConfig.unpack(record.config)
