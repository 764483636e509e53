"""Volumes that belong to a sandbox: made with it, listed as its own, and gone with it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from microsandbox import (
    ConfigError,
    StateError,
    Volume,
    VolumeInUse,
    VolumeKind,
    VolumeNotFound,
    _create,
    _fork,
    _life,
    _owned,
    _volumes,
    storage,
)
from microsandbox._config import MountConfig, SandboxConfig
from microsandbox._directory import SandboxDirectory
from microsandbox._state import Record, State

_MIB = 1 << 20


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MSB_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def made(home: Path, name: str, *mounts: MountConfig) -> Record:
    """A stopped sandbox, as far as its directory and its record go."""
    directory = SandboxDirectory(home, os.urandom(8).hex())
    lock = directory.create()
    config = SandboxConfig(mounts=mounts)
    _create._furnish(directory, lock, config, ())
    _life.write(directory, _life.begun()._replace(status=_life.Status.STOPPED))
    os.close(lock)
    record = Record(directory.id, name, False, 7, "busybox", "sha256:" + "0" * 64, config.pack())
    state = State(home)
    state.add(record)
    state.close()
    return record


def three() -> tuple[MountConfig, ...]:
    return (
        MountConfig("/src", "/srv"),
        Volume.owned(quota_mib=5, noexec=True).at("/data"),
        Volume.owned(size_mib=64).at("/var/db"),
    )


def test_what_is_asked_for_is_checked_and_kept() -> None:
    mount = Volume.owned(quota_mib=1, ownership="squash", nodev=True).at("/./data/")
    assert mount == MountConfig(
        "/data", "", "volume", quota=_MIB, ownership="squash", flags=("nodev",), owned=True
    )
    disk = Volume.owned(kind=VolumeKind.DISK, size_mib=64).at("/db")
    assert (disk.kind, disk.size, disk.owned) == ("disk", 64 * _MIB, True)
    config = SandboxConfig(mounts=(mount, disk))
    assert SandboxConfig.unpack(config.pack()) == config
    assert config.writes_disks
    for wrong in ({"kind": "tape"}, {"kind": "disk"}, {"kind": "dir", "size_mib": 64}, {"size_mib": 1},
                  {"size_mib": 64, "quota_mib": 1}, {"quota_mib": 0}, {"ownership": "nobody"}):  # fmt: skip
        with pytest.raises(ConfigError):
            Volume.owned(**wrong).at("/data")
    with pytest.raises(ConfigError, match="/proc"):
        Volume.owned().at("/proc/x")
    with pytest.raises(TypeError):
        Volume.owned(size_mib="5G")  # type: ignore[arg-type]


def test_they_are_listed_with_their_sandbox_and_go_only_with_it(home: Path) -> None:
    asyncio.run(Volume.create("data"))
    record = made(home, "dev", *three())
    listed = asyncio.run(Volume.list())
    assert [(volume.name, volume.owner, volume.kind) for volume in listed] == [
        ("data", None, "dir"),
        ("dev:/data", "dev", "dir"),
        ("dev:/var/db", "dev", "disk"),
    ]
    directory, disk = listed[1:]
    assert (directory.quota_mib, disk.size_mib, disk.path.stat().st_size) == (5, 64, 64 * _MIB)
    assert disk.path.stat().st_blocks * 512 < 8 * _MIB
    assert [tuple(use) for use in asyncio.run(disk.used_by())] == [("dev", "/var/db", False)]
    asyncio.run(directory.fs.write("f", "text"))
    assert (directory.path / "f").read_text() == "text"
    for force in (False, True):
        with pytest.raises(VolumeInUse, match="'dev:/data' belongs to the sandbox 'dev'") as refused:
            asyncio.run(Volume.remove("dev:/data", force=force))
        assert refused.value.hint == "it goes with that: msb rm dev"
    # No other one gets it by its name.
    with pytest.raises(ConfigError):
        Volume.named("dev:/data").at("/data")
    assert [item.name for item in storage.prune(home, volumes=True, dry_run=True).removed] == ["data"]
    _create.forget(home, record)
    assert not SandboxDirectory(home, record.id).path.exists()
    assert [volume.name for volume in asyncio.run(Volume.list())] == ["data"]
    for name in ("dev:/data", "dev:/src", "no:/data"):
        with pytest.raises(VolumeNotFound):
            asyncio.run(Volume.get(name))


def test_a_start_is_told_where_they_are(home: Path) -> None:
    record = made(home, "dev", *three())
    directory = SandboxDirectory(home, record.id)
    config = SandboxConfig.unpack(record.config)
    plain = _create._mounts(home, "dev", config, directory)
    bind, data, disk = map(MountConfig.from_plain, plain)
    assert bind == three()[0]
    assert (data.kind, data.source, data.quota) == ("volume", f"{directory.path}/owned-1/data", 5 * _MIB)
    assert (disk.kind, disk.source, disk.fstype, disk.format) == (
        "disk", f"{directory.path}/owned-2/disk.ext4", "ext4", "raw",
    )  # fmt: skip
    # By these names errors speak of them.
    assert (data.volume, disk.volume) == ("dev:/data", "dev:/var/db")


def test_what_cannot_be_made_leaves_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, size: int, label: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_owned, "create_disk", full)
    with pytest.raises(StateError, match="No space left"):
        made(home, "dev", *three())
    assert [path.name for path in (home / "sandboxes").iterdir()] == [".guard"]


def test_what_was_cut_off_goes_with_its_directory(home: Path) -> None:
    directory = SandboxDirectory(home, "f" * 16)
    os.close(directory.create())
    _owned.make(directory.path, three())
    # Killed before there was a record: who looks removes it.
    assert _create.reconcile(home) == []
    assert not directory.path.exists()


def test_a_fork_has_its_own(home: Path) -> None:
    source = made(home, "dev", *three())
    data = _volumes.find(home, "dev:/data").content
    (data / "sub").mkdir()
    (data / "sub/f").write_text("before")
    copies: list[_fork._Copy] = []
    _fork._copy_stopped(home, source, ["kid"], copies)
    os.close(copies[0].lock)
    own = copies[0].directory.path
    (data / "sub/f").write_text("after")
    assert (own / "owned-1/data/sub/f").read_text() == "before"
    disk = _volumes.find(home, "dev:/var/db").content
    assert (own / "owned-2/disk.ext4").read_bytes() == disk.read_bytes()
    assert not (own / "owned-0").exists()
