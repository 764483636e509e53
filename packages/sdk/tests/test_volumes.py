"""Volumes: made and removed whole, never while somebody has them, and never a way out of them."""

import asyncio
import fcntl
import os
import subprocess
import threading
from collections.abc import Callable, Coroutine
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from microsandbox import (
    ConfigError,
    FileKind,
    FilesystemError,
    PathNotFound,
    Volume,
    VolumeError,
    VolumeExists,
    VolumeInUse,
    VolumeNotFound,
    _disks,
    _volumes,
    storage,
)
from microsandbox._config import MountConfig, SandboxConfig
from microsandbox._state import Record, State
from microsandbox._volumes import VolumeKind
from microsandbox.mounts import parse_volume, parse_volumes
from microsandbox_core.upper import mke2fs


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that is a coroutine function, as pytest calls tests."""

    @wraps(test)
    def run(*arguments: object, **named: object) -> None:
        asyncio.run(test(*arguments, **named))

    return run


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MSB_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def record(home: Path, name: str, *mounts: MountConfig) -> None:
    state = State(home)
    config = SandboxConfig(mounts=mounts).pack()
    state.add(Record(f"{len(name):016x}", name, False, 1, "busybox", "sha256:" + "0" * 64, config))
    state.close()


# ---------------------------------------------------------------------------------------------- volumes


@in_loop
async def test_a_volume_is_made_found_listed_and_removed(home: Path) -> None:
    assert await Volume.list() == []
    made = await Volume.create("data", labels={"team": "a"})
    assert (made.name, made.kind, made.size_mib, made.labels) == ("data", "dir", None, {"team": "a"})
    disk = await Volume.create("db", size_mib=64)
    assert (disk.kind, disk.size_mib, disk.path.stat().st_size) == (VolumeKind.DISK, 64, 64 << 20)
    assert [volume.name for volume in await Volume.list()] == ["data", "db"]
    assert (await Volume.get("data")).created_at == made.created_at
    for path in (made.path, disk.path, disk.path.parent):
        assert path.stat().st_mode & 0o077 == 0
    with pytest.raises(VolumeExists, match="'data'"):
        await Volume.create("data")
    with pytest.raises(VolumeError, match="disk"):
        disk.fs  # noqa: B018
    await Volume.remove("data")
    await Volume.remove("db")
    with pytest.raises(VolumeNotFound) as refused:
        await Volume.remove("data")
    assert refused.value.kind == refused.value.code == "volume_not_found"
    assert list((home / "volumes").iterdir()) == []


def test_a_disk_is_clean_sparse_and_has_a_name_and_an_id_of_its_own(home: Path) -> None:
    made = [
        _volumes.create(home, name, kind=VolumeKind.DISK, size=1 << 30, labels=()) for name in ("one", "two")
    ]
    shown = []
    for disk in (volume.content for volume in made):
        assert disk.stat().st_blocks * 512 < 8 << 20
        tools = Path(mke2fs())
        subprocess.run([tools.with_name("e2fsck"), "-fn", disk], check=True, capture_output=True)
        listed = [str(tools.with_name("dumpe2fs")), "-h", str(disk)]
        shown.append(subprocess.run(listed, check=True, capture_output=True, text=True).stdout)
    assert "volume name:   one" in shown[0]
    ids = [next(line for line in text.splitlines() if "UUID" in line) for text in shown]
    assert ids[0] != ids[1]


@pytest.mark.parametrize("name", ["", "..", ".a", "a/b", "-a", "a" * 64, "a\n", "ä", "a b"])
@in_loop
async def test_names_that_would_be_paths_or_options_are_refused(home: Path, name: str) -> None:
    for way in (Volume.create, Volume.get, Volume.remove):
        with pytest.raises(ConfigError, match="volume"):
            await way(name)


@in_loop
async def test_kinds_and_sizes_go_together(home: Path) -> None:
    for kind, size in [("dir", 64), ("disk", None), ("disk", 63), ("disk", 1 << 40), ("tape", None)]:
        with pytest.raises(ConfigError):
            await Volume.create("x", kind=kind, size_mib=size)
    for kind, quota in [("disk", 64), ("dir", 0), ("dir", 1 << 40)]:
        with pytest.raises(ConfigError, match="quota"):
            await Volume.create("x", kind=kind, size_mib=64 if kind == "disk" else None, quota_mib=quota)
    assert (await Volume.create("y", quota_mib=5)).quota_mib == 5
    await Volume.remove("y")
    (home / "volumes").rmdir()
    with pytest.raises(TypeError):
        await Volume.create("x", size_mib="5G")  # type: ignore[arg-type]
    assert not (home / "volumes").exists()


def test_makers_at_the_same_time_make_one(home: Path) -> None:
    outcomes: list[type[Exception] | None] = []

    def make() -> None:
        try:
            _volumes.create(home, "data", kind=VolumeKind.DIRECTORY)
            outcomes.append(None)
        except VolumeExists as error:
            outcomes.append(type(error))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, outcomes)).count("None") == 1
    assert [path.name for path in (home / "volumes").iterdir()] == ["data"]


@in_loop
async def test_what_a_sandbox_has_stays(home: Path) -> None:
    volume = await Volume.create("data")
    record(home, "dev", MountConfig("/data", "", "volume", "data", read_only=True))
    assert [tuple(use) for use in await volume.used_by()] == [("dev", "/data", True)]
    with pytest.raises(VolumeInUse, match="'dev'"):
        await Volume.remove("data")
    assert storage.prune(home, volumes=True).removed == ()
    # A supervisor that runs holds it.
    descriptor = os.open(volume.path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    with pytest.raises(VolumeInUse, match="in use"):
        await Volume.remove("data", force=True)
    os.close(descriptor)
    assert volume.path.is_dir()
    await Volume.remove("data", force=True)
    assert not volume.path.exists()


@in_loop
async def test_a_prune_takes_volumes_only_if_it_is_told_to(home: Path) -> None:
    volume = await Volume.create("data")
    await volume.fs.write("a", b"x" * 10000)
    (home / "volumes" / ".gone.1-abcd.tmp").mkdir()
    cut_off = home / "volumes" / f".gone.{1 << 22}-abcd.tmp" / "data"
    cut_off.mkdir(parents=True)
    found = {entry.kind: entry for entry in storage.usage(home)}
    assert (found[storage.Kind.VOLUMES].count, found[storage.Kind.LEFTOVERS].count) == (1, 1)
    assert found[storage.Kind.VOLUMES].reclaimable == found[storage.Kind.VOLUMES].size > 10000
    assert [item.kind for item in storage.prune(home).removed] == ["temporary"]
    assert volume.path.is_dir()
    assert not cut_off.parent.exists()
    removed = storage.prune(home, volumes=True).removed
    assert [(item.kind, item.name) for item in removed] == [("volume", "data")]
    assert not volume.path.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"version": 1}',
        b'{"version": 2}',
        b"\xff",
        b"[" * 100000,
        b'{"version": 1, "kind": "x"}',
    ],
)
@in_loop
async def test_a_damaged_volume_is_named_and_left_alone(home: Path, content: bytes) -> None:
    volume = await Volume.create("data")
    (home / "volumes" / "data" / "volume.json").write_bytes(content)
    with pytest.raises(VolumeError, match="'data'") as refused:
        await Volume.get("data")
    assert refused.value.kind == "volume_damaged"
    assert storage.prune(home, volumes=True).removed == ()
    assert volume.path.is_dir()


def test_mounts_of_volumes_become_what_these_are(home: Path) -> None:
    _volumes.create(home, "db", kind=VolumeKind.DISK, size=64 << 20)
    named = [parse_volume("data:/a"), parse_volume("db:/b:ro"), MountConfig("/c", "/etc")]
    with pytest.raises(VolumeNotFound, match="'data'"):
        _volumes.resolve(home, named)
    made = _volumes.resolve(home, named, create_missing=True)
    assert made[0] == MountConfig("/a", str(home / "volumes/data/data"), "volume", "data")
    assert made[1] == MountConfig(
        "/b", str(home / "volumes/db/disk.ext4"), "disk", "db", True, fstype="ext4", format="raw"
    )
    assert made[2] is named[2]
    assert SandboxConfig.unpack(SandboxConfig(mounts=made).pack()).mounts == made


# ------------------------------------------------------------------------------------------- disk images


def test_disk_images_are_given_as_text(tmp_path: Path) -> None:
    image = tmp_path / "a:b.img"
    image.write_bytes(bytes(4096))
    link = tmp_path / "link"
    link.symlink_to(image)
    found = _disks.parse_disk(f"{link}:/data:ro,fstype=ext4,noexec")
    assert found == MountConfig(
        "/data", str(image), "disk", read_only=True, flags=("noexec",), fstype="ext4", format="raw"
    )
    assert _disks.parse_disk(f"{image}:/data").format == "raw"
    for wrong in ("", "/data", ":/data", str(image), f"{image}:data", f"{image}:/data:rx",
                  f"{image}:/data:fstype=a b", f"{image}:/data:format=vmdk", f"{image}:/proc/x",
                  f"{image}:/a/../b", f"{image}:/"):  # fmt: skip
        with pytest.raises(ConfigError):
            _disks.parse_disk(wrong)
    with pytest.raises(VolumeError, match="missing"):
        _disks.parse_disk(f"{tmp_path}/missing:/data")
    with pytest.raises(ConfigError, match="twice"):
        parse_volumes(SandboxConfig(), [], [f"{image}:/data", f"{image}:/data/"])
    mounts = parse_volumes(SandboxConfig(), [], [f"{image}:/{name}" for name in "abc"]).mounts
    with pytest.raises(ConfigError, match="3 disks"):
        _disks.check_disks(mounts)
    _disks.check_disks(mounts[:2])


# ------------------------------------------------------------------------------------------------- files


@in_loop
async def test_files_are_read_and_changed(home: Path) -> None:
    fs = (await Volume.create("data")).fs
    await fs.mkdir("/a/b", parents=True)
    await fs.mkdir("a/b", parents=True)
    with pytest.raises(FilesystemError, match="data:/a/b: File exists"):
        await fs.mkdir("a/b")
    await fs.write("a/b/c", "long text")
    await fs.write("a/b/c", b"text")
    assert await fs.read_text("/a/b/c") == "text"
    with pytest.raises(FilesystemError, match="more than 3 bytes"):
        await fs.read("a/b/c", limit=3)
    await fs.rename("a/b/c", "/d")
    assert [(found.name, found.path, found.kind, found.size) for found in await fs.list()] == [
        ("a", "/a", FileKind.DIRECTORY, (await fs.stat("a")).size),
        ("d", "/d", FileKind.FILE, 4),
    ]
    assert await fs.list("a/b") == []
    assert await fs.exists("/")
    with pytest.raises(PathNotFound, match="data:/a/b/c"):
        await fs.read("a/b/c")
    with pytest.raises(FilesystemError, match="regular"):
        await fs.read("a/b")
    await fs.remove("d")
    await fs.remove_dir("a")
    assert await fs.list("/") == []


@pytest.mark.parametrize("path", ["/", "", ".", "a/..", "..", "../x", "a/../../x", "//", "/./", "a\0"])
@in_loop
async def test_the_volume_itself_is_never_removed(home: Path, path: str) -> None:
    # F28: `remove_dir("/")`, `""`, `"."`, `"a/.."`
    volume = await Volume.create("data")
    await volume.fs.mkdir("a")
    for way in (
        volume.fs.remove_dir, volume.fs.remove, volume.fs.mkdir, volume.fs.read,
        lambda path: volume.fs.rename(path, "z"), lambda path: volume.fs.rename("a", path),
        lambda path: volume.fs.write(path, b""),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="path"):
            await way(path)
    assert [found.name for found in await volume.fs.list()] == ["a"]


@in_loop
async def test_links_that_guests_have_planted_are_not_followed(home: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "sub").mkdir(parents=True)
    (outside / "secret").write_text("secret")
    volume = await Volume.create("data")
    root, fs = volume.path, volume.fs
    (root / "up").symlink_to(outside)
    (root / "file").symlink_to(outside / "secret")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "fifo")
    (root / "tree").mkdir()
    (root / "tree" / "up").symlink_to(outside)
    for path in ("file", "up/secret", "up", "loop", "fifo"):
        with pytest.raises(FilesystemError):
            await fs.read(path)
        with pytest.raises(FilesystemError):
            await fs.write(path, b"x")
    for way in (fs.list, fs.remove_dir):
        with pytest.raises(FilesystemError):
            await way("up")
    for beneath in (fs.list, fs.remove_dir, fs.mkdir, fs.stat, fs.remove):
        with pytest.raises(FilesystemError):
            await beneath("up/sub")
    with pytest.raises(FilesystemError):
        await fs.rename("tree", "up/tree")
    assert (await fs.stat("up")).target == str(outside)
    # What is removed is the link.
    await fs.remove_dir("tree")
    await fs.remove("up")
    assert sorted(path.name for path in outside.iterdir()) == ["secret", "sub"]
    assert (outside / "secret").read_text() == "secret"
    await Volume.remove("data")
    assert (outside / "secret").read_text() == "secret"


@in_loop
async def test_a_directory_that_becomes_a_link_while_it_is_walked_leads_nowhere(
    home: Path, tmp_path: Path
) -> None:
    # F07, from this side: what is swapped is met as a directory or as an error.
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "name").write_text("outside")
    volume = await Volume.create("data")
    root = volume.path
    (root / "real").mkdir()
    (root / "real" / "name").write_text("inside")
    (root / "link").symlink_to(outside)
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            (root / "real").rename(root / "d")
            (root / "d").rename(root / "real")
            (root / "link").rename(root / "d")
            (root / "d").rename(root / "link")

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        seen = set()
        for _ in range(300):
            try:
                seen.add(await volume.fs.read("d/name"))
            except FilesystemError:
                await asyncio.sleep(0)
    finally:
        over.set()
        thread.join()
    assert seen <= {b"inside"}
