"""What lies under a home is counted whole; only what nobody needs goes."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from microsandbox import storage
from microsandbox._config import SandboxConfig
from microsandbox._directory import SandboxDirectory
from microsandbox._state import Record, State
from microsandbox.storage import Kind
from microsandbox_core import artifacts, env

BLOCK = b"x" * 8192


@pytest.fixture
def dead() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.fixture
def home(tmp_path: Path, dead: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home with one of everything: `keep` names what stays, `go` what crashes have left."""
    # Otherwise this machine's kernel comes into the cache when templates are compared with it.
    monkeypatch.setenv(env.MSB_KERNEL, "/nonexistent")
    state = State(tmp_path)
    locks = []
    for name, ephemeral, recorded in (
        ("keep-running", True, True),
        ("keep-stopped", False, True),
        ("go-ephemeral", True, True),
        ("go-unknown", False, False),
    ):
        directory = SandboxDirectory(tmp_path, f"id-{name}")
        lock = directory.create()
        directory.upper.write_bytes(BLOCK)
        if recorded:
            config = SandboxConfig().pack()
            state.add(Record(f"id-{name}", name, ephemeral, 1, "image", f"sha256:{'0' * 64}", config))
        if name == "keep-running":
            locks.append(lock)
        else:
            os.close(lock)
    state.close()
    cache = tmp_path / "cache"
    for path in (
        cache / "uppers" / "keep.ext4",
        cache / "kernels" / "keep.elf",
        cache / "kernels" / f".go.{dead}-00.tmp",
        cache / "boot" / f".keep.{os.getpid()}-00.tmp",
        cache / "templates" / f".go.{dead}-00.tmp" / "memory",
        cache / "templates" / "damaged" / "memory",
        cache / "tmp" / "00000000deadbeef" / "go",
        cache / "layers" / "keep.erofs",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(BLOCK)
    yield tmp_path
    for lock in locks:
        os.close(lock)


def _tree(home: Path) -> list[str]:
    return sorted(str(path) for path in home.rglob("*") if not path.name.startswith("state.db"))


def _du(home: Path) -> int:
    done = subprocess.run(["du", "-s", "-B1", home], capture_output=True, check=True, text=True)
    return int(done.stdout.split()[0])


def test_every_byte_is_counted_once(home: Path) -> None:
    before = _tree(home)
    found = {entry.kind: entry for entry in storage.usage(home)}
    assert list(found) == list(Kind)
    assert _tree(home) == before
    assert sum(entry.size for entry in found.values()) == _du(home)
    counts = {kind: entry.count for kind, entry in found.items()}
    assert counts == {
        Kind.IMAGES: 0,
        Kind.TEMPLATES: 1,
        Kind.BASE_FILES: 2,
        Kind.RUNNING: 1,
        Kind.STOPPED: 1,
        Kind.LEFTOVERS: 5,
        Kind.OTHER: counts[Kind.OTHER],
    }
    for kind in (Kind.BASE_FILES, Kind.RUNNING, Kind.STOPPED, Kind.OTHER):
        assert found[kind].reclaimable == 0
    for kind in (Kind.TEMPLATES, Kind.LEFTOVERS):
        assert found[kind].reclaimable == found[kind].size > 0


def test_an_empty_home_is_looked_at_and_not_made(tmp_path: Path) -> None:
    home = tmp_path / "none"
    assert all(entry.size == entry.count == 0 for entry in storage.usage(home))
    assert storage.prune(home, everything=True, dry_run=True).removed == ()
    assert storage.prune(home, everything=True).removed == ()
    assert not home.exists()


def test_a_dry_run_says_what_prune_then_does(home: Path) -> None:
    before = _tree(home)
    foreseen = storage.prune(home, dry_run=True)
    assert _tree(home) == before
    done = storage.prune(home)
    assert done == foreseen
    assert done.failures == ()
    assert sorted((item.kind, item.name) for item in done.removed if item.kind != "temporary") == [
        ("sandbox", "go-ephemeral"),
        ("sandbox", "id-go-unknown"),
        ("template", "damaged"),
    ]
    assert [path for path in _tree(home) if "go" in path.removeprefix(str(home))] == []
    kept = {path for path in before if "keep" in path}
    assert kept <= set(_tree(home))
    assert [record.name for record in State(home).all()] == ["keep-running", "keep-stopped"]
    assert storage.prune(home).removed == ()


def test_what_prune_frees_is_what_it_says(home: Path) -> None:
    before = storage.usage(home)
    freed = storage.prune(home, everything=True).size
    after = storage.usage(home)
    assert {e.kind: e.size for e in after}[Kind.LEFTOVERS] == 0
    assert {e.kind: e.size for e in after}[Kind.TEMPLATES] == 0
    assert freed == sum(e.size for e in before if e.kind in (Kind.LEFTOVERS, Kind.TEMPLATES))


def test_work_in_progress_in_the_image_store_is_no_leftover(home: Path) -> None:
    lock = home / "cache" / "tmp" / "00000000deadbeef.lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "cache/tmp/00000000deadbeef" not in [i.name for i in storage.prune(home).removed]
        assert lock.with_suffix("").is_dir()
    assert "cache/tmp/00000000deadbeef" in [i.name for i in storage.prune(home).removed]
    assert not lock.exists()


def test_what_cannot_be_removed_is_a_failure_and_the_rest_goes(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = artifacts.remove

    def read_only(path: Path) -> None:
        if path.parent.name == "kernels":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        remove(path)

    monkeypatch.setattr(artifacts, "remove", read_only)
    foreseen = storage.prune(home, dry_run=True)
    done = storage.prune(home)
    (failure,) = done.failures
    assert "kernels" in str(failure)
    assert failure.hint
    assert [item.path.parent.name for item in foreseen.removed if item not in done.removed] == ["kernels"]
