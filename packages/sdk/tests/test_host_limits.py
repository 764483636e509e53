"""The control group of a sandbox's processes: found by a link, and gone with its life however that ends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

import pytest
from microsandbox import _create, _life
from microsandbox._config import SandboxConfig
from microsandbox._directory import SandboxDirectory
from microsandbox._launch import Launch
from microsandbox._state import Record, State
from microsandbox.host_limits import HostLimits, host_limits
from microsandbox.supervisor._host_limits import HostGroup
from microsandbox_core import cgroup
from microsandbox_core.cgroup import Limits, Place
from microsandbox_core.vmm import Isolation, Vm

ID = "0123456789abcdef"


class FakeVm:
    pid = 4321
    isolation = Isolation.EMULATED


class World:
    """A sandbox in a directory, and a place for groups that is a directory too."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = home
        self.directory = SandboxDirectory(home, ID)
        self.lock = self.directory.create()
        self.place = home / "delegated"
        self.place.mkdir()
        self.entered: list[tuple[str, Limits, list[int]]] = []
        self.failure: OSError | None = None
        monkeypatch.setattr(cgroup, "place", lambda setting: Place(str(self.place), "here"))
        monkeypatch.setattr(cgroup, "enter", self._enter)
        monkeypatch.setattr(cgroup, "leave", lambda group: Path(group).rmdir())

    @property
    def group(self) -> Path:
        return self.place / f"msb-{ID}"

    def start(self) -> HostGroup:
        launch = Launch(
            home=str(self.home), directory=str(self.directory.path), identifier=ID, name="dev",
            hostname="dev", image_disk="", cpus=2, memory_mib=512, attached=False, ephemeral=False,
            vmm="auto", require_kvm=False,
        )  # fmt: skip
        started = HostGroup(self.directory, launch, cast(Vm, FakeVm()))
        if started._thread is not None:
            started._thread.join()
        return started

    def _enter(self, place: str, identifier: str, limits: Limits, pids: list[int]) -> str:
        # Killed right here, the group would have to be found.
        assert self.directory.cgroup == f"{place}/msb-{identifier}"
        if self.failure is not None:
            raise self.failure
        Path(place, f"msb-{identifier}").mkdir(exist_ok=True)
        self.entered.append((place, limits, pids))
        return f"{place}/msb-{identifier}"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.delenv("MSB_CGROUP", raising=False)
    return World(tmp_path, monkeypatch)


def test_supervisor_and_vmm_get_the_limits_of_their_machine(world: World) -> None:
    started = world.start()
    limits = cgroup.limits_for(512, 2, emulated=True)
    assert world.entered == [(str(world.place), limits, [os.getpid(), FakeVm.pid])]
    (world.group / "memory.max").write_text("1000\n")
    assert host_limits(world.directory) == HostLimits(str(world.group), 1000, None, None)
    (world.group / "memory.max").unlink()
    started.release()
    assert not world.group.exists()
    assert world.directory.cgroup is None
    assert host_limits(world.directory) is None


def test_a_failure_is_told_and_nothing_is_left(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.failure = PermissionError(13, "Permission denied", "/somewhere")
    started = world.start()
    said = capsys.readouterr().err
    assert said.startswith("no limits of the host for this sandbox: ")
    assert "Permission denied" in said
    world.group.mkdir()  # as far as it had come
    started.release()
    assert not world.group.exists()
    assert world.directory.cgroup is None


def test_the_group_of_a_life_that_was_killed_goes_with_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.start()
    before = world.group
    world.place = world.home / "elsewhere"
    world.place.mkdir()
    monkeypatch.setattr(cgroup, "place", lambda setting: Place(None, "not any more"))
    world.start()
    assert not before.exists()
    assert world.directory.cgroup is None


def test_who_looks_removes_the_group_of_one_that_crashed(world: World) -> None:
    state = State(world.home)
    config = SandboxConfig().pack()
    state.add(Record(ID, "dev", False, 0, "busybox", "sha256:0", config, ()))
    state.close()
    world.start()
    _life.write(world.directory, _life.begun()._replace(status="running"))
    _create.reconcile(world.home)
    assert world.group.exists()  # it runs
    os.close(world.lock)
    _create.reconcile(world.home)
    assert not world.group.exists()
    assert world.directory.cgroup is None


def test_the_directory_takes_the_group_along(world: World) -> None:
    world.start()
    world.directory.remove()
    assert not world.group.exists()
    assert not world.directory.path.exists()
