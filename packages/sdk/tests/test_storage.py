"""What lies under a home is counted whole; only what nobody needs goes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from microsandbox import _derived, storage
from microsandbox._config import SandboxConfig
from microsandbox._directory import SandboxDirectory
from microsandbox._state import Record, State
from microsandbox.storage import Kind
from microsandbox_core import artifacts, bootdisk, env, kernel, upper
from microsandbox_core.templates import Templates, basis_of
from microsandbox_core.vmm import _probe, _tsc, choose
from microsandbox_core.vmm._qemu import Qemu

BLOCK = b"x" * 8192
GO, KEEP = "60" * 32, "7e" * 32
"""Digests of what goes and what stays."""

KERNEL = b"\x90" * 5000 + struct.pack("<III", 4, 8, 18) + b"Xen\0" + struct.pack("<Q", 0x1000000)


@pytest.fixture
def dead() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.fixture
def agentd(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation that has nothing but this agentd, whatever the machine has."""
    agent = tmp_path_factory.mktemp("installed") / "agentd"
    agent.write_bytes(b"agentd, first version")
    monkeypatch.setattr(bootdisk, "agent_binary", lambda: agent)
    monkeypatch.setenv(env.MSB_LIBKRUNFW, "/nonexistent")
    monkeypatch.setenv(env.MSB_QEMU, "/nonexistent")
    monkeypatch.delenv(env.MSB_KERNEL, raising=False)
    return agent


@pytest.fixture
def installed(agentd: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of an installation with agentd, a kernel and a QEMU."""
    (agentd.parent / "libkrunfw.so.5").write_bytes(KERNEL)
    (agentd.parent / "qemu").write_text("#!/bin/sh\n")
    (agentd.parent / "qemu").chmod(0o700)
    monkeypatch.setenv(env.MSB_LIBKRUNFW, str(agentd.parent / "libkrunfw.so.5"))
    monkeypatch.setenv(env.MSB_QEMU, str(agentd.parent / "qemu"))

    def read(library: Path) -> kernel.KernelImage:
        return kernel.KernelImage(0x1000000, 0x1000123, library.read_bytes())

    monkeypatch.setattr(kernel, "read_libkrunfw", read)
    return agentd.parent


def _start(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Derive and look up everything that a start does, and leave a template."""
    monkeypatch.setattr(_probe, "device_verdict", lambda: None)
    monkeypatch.setattr(_probe, "_probe_in_child", lambda *_: "")
    found, disk = kernel.ensure_kernel(home, kernel=env.path(env.MSB_KERNEL)), bootdisk.ensure_boot_disk(home)
    driver = choose(home, found, disk)
    assert isinstance(driver, Qemu)
    _tsc.tsc_khz(home)
    upper.create_upper(home, home / "upper.ext4", size=upper.MINIMUM_SIZE)
    (home / "upper.ext4").unlink()
    templates = Templates(home)
    key = hashlib.sha256(f"{found.digest}{disk.digest}".encode()).hexdigest()
    made = templates.temporary(key)
    for name in ("memory", "state"):
        (made / name).write_bytes(BLOCK)
    basis = basis_of(found.digest, disk.digest, driver.binary)
    templates.publish(key, made, basis=basis, vcpus=1, memory_mib=512)


@pytest.fixture
def home(tmp_path: Path, dead: int, agentd: Path) -> Iterator[Path]:
    """A home with one of everything: `keep` names what stays, `go` what crashes have left."""
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
        cache / "kernels" / f"{KEEP}.elf",
        cache / "kernels" / f"{KEEP}.elf.checked",
        cache / "uppers" / f"8192M-{GO[:12]}.ext4",
        cache / "boot" / f"{GO}.erofs",
        cache / "boot" / f"{GO}.erofs.checked",
        cache / "boot" / f"from-{GO[:32]}",
        cache / "boot" / "keep.txt",
        cache / f"tsc-{GO}",
        cache / "templates" / f".{GO}.lock",
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


def _states(home: Path) -> dict[str, tuple[int, int, int, int]]:
    """What changes when a file, or a directory's entries, are written."""
    found = {str(path): path.lstat() for path in (home, *home.rglob("*"))}
    return {path: (s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for path, s in found.items()}


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
        Kind.KERNELS: 1,
        Kind.BOOT_DISKS: 1,
        Kind.UPPERS: 1,
        Kind.RECORDS: 1,
        Kind.RUNNING: 1,
        Kind.STOPPED: 1,
        Kind.VOLUMES: 0,
        Kind.LEFTOVERS: 6,
        Kind.OTHER: counts[Kind.OTHER],
    }
    for kind in (
        Kind.KERNELS, Kind.BOOT_DISKS, Kind.UPPERS, Kind.RECORDS, Kind.RUNNING, Kind.STOPPED, Kind.OTHER,
    ):  # fmt: skip
        assert found[kind].reclaimable == 0, "a sandbox runs, so what others derived may be about to be used"
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
        ("lock", f"cache/templates/.{GO}.lock"),
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


# ------------------------------------------------------------------- what earlier installations derived


def test_looking_derives_nothing(tmp_path: Path, installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a template is of use depends on a kernel and a boot disk that may not be in the cache yet."""
    _start(tmp_path, monkeypatch)
    (tmp_path / "sandboxes" / "0123456789abcdef").mkdir(parents=True)
    (tmp_path / "sandboxes" / ".guard").touch()
    for changed in (None, "agentd", "libkrunfw.so.5"):
        if changed is not None:
            (installed / changed).write_bytes(KERNEL + changed.encode())
        before = _states(tmp_path)
        reclaimable = {entry.kind: entry.reclaimable for entry in storage.usage(tmp_path)}
        removed = {item.kind for item in storage.prune(tmp_path, dry_run=True).removed}
        assert _states(tmp_path) == before
        gone = {"agentd": {"boot_disk"}, "libkrunfw.so.5": {"boot_disk", "kernel"}}
        assert removed == {"sandbox"} | ({"template", "record", *gone[changed]} if changed else set())
        assert (reclaimable[Kind.BOOT_DISKS] > 0) is (changed is not None)
        assert (reclaimable[Kind.KERNELS] > 0) is (changed == "libkrunfw.so.5")


def test_what_the_installation_uses_stays(
    tmp_path: Path, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _start(tmp_path, monkeypatch)
    before = _states(tmp_path / "cache")
    kinds = {item.kind for item in _derived.files(tmp_path, _derived.installation(tmp_path))}
    assert kinds == set(_derived.DerivedKind)
    probed = sorted(path.name[:4] for path in (tmp_path / "cache").glob("*-*"))
    assert probed == ["kvm-", "tsc-"]
    assert storage.prune(tmp_path).removed == ()
    kernel.ensure_kernel(tmp_path)
    bootdisk.ensure_boot_disk(tmp_path)
    assert _states(tmp_path / "cache") == before


@pytest.mark.parametrize("changed", ["agentd", "libkrunfw.so.5", "qemu"])
def test_after_an_upgrade_what_the_old_one_derived_goes(
    tmp_path: Path, installed: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    _start(tmp_path, monkeypatch)
    old = set(_tree(tmp_path / "cache"))
    content = (installed / changed).read_bytes()
    (installed / changed).write_bytes(content + b"2")
    _start(tmp_path, monkeypatch)
    new = set(_tree(tmp_path / "cache"))
    done = storage.prune(tmp_path)
    left = set(_tree(tmp_path / "cache"))
    assert done.failures == ()
    assert {str(item.path) for item in done.removed} == {
        path for path in new - left if Path(path).parent.parent.name != "templates"
    }
    _start(tmp_path, monkeypatch)
    assert set(_tree(tmp_path / "cache")) == left, "nothing went that is used"
    (installed / changed).write_bytes(content)
    _start(tmp_path, monkeypatch)
    again = set(_tree(tmp_path / "cache"))
    # The pointer to what was derived is named by the file's identity, which an upgrade back changes.
    assert {path for path in old - again if "from-" not in path and "kvm-" not in path} == set()


def test_a_kernel_of_ones_own_does_not_make_libkrunfws_superfluous(
    tmp_path: Path, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _start(tmp_path, monkeypatch)
    chosen = installed / "vmlinux"
    chosen.write_bytes(b"\x7fELF, a kernel")
    monkeypatch.setenv(env.MSB_KERNEL, str(chosen))
    _start(tmp_path, monkeypatch)
    before = {path for path in _tree(tmp_path / "cache") if "kernels" in path}
    assert any("at-" in path for path in before)
    assert {item.kind for item in storage.prune(tmp_path).removed} == {"template"}
    assert {path for path in _tree(tmp_path / "cache") if "kernels" in path} == before
    chosen.write_bytes(b"\x7fELF, another kernel")
    assert any(item.path.name.startswith("at-") for item in storage.prune(tmp_path).removed)
    # A shell that lacks the setting by which libkrunfw is found knows nothing of what came out of it.
    monkeypatch.setenv(env.MSB_LIBKRUNFW, "/nonexistent")
    assert "kernel" not in {item.kind for item in storage.prune(tmp_path).removed}


def test_whether_a_template_is_of_use_is_told_as_the_cache_tells_it(
    tmp_path: Path, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _start(tmp_path, monkeypatch)
    (installed / "agentd").write_bytes(b"agentd, second version")
    _start(tmp_path, monkeypatch)
    (tmp_path / "cache" / "templates" / "damaged").mkdir()
    found = _derived.templates(tmp_path, _derived.installation(tmp_path))
    assert sorted(info.current for info in found) == [False, False, True]
    assert not any(info.current for info in Templates(tmp_path).list())


# --------------------------------------------------------------------------------------- while others start


def test_while_a_sandbox_runs_what_it_may_be_about_to_open_stays(home: Path) -> None:
    assert not {"boot_disk", "upper", "record"} & {item.kind for item in storage.prune(home).removed}
    assert (home / "cache" / "boot" / f"{GO}.erofs").exists()


def test_a_sandbox_that_begins_after_the_look_keeps_everything_derived(
    tmp_path: Path, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _start(tmp_path, monkeypatch)
    (installed / "agentd").write_bytes(b"agentd, second version")
    look, locks = _derived.files, []

    def look_and_start(*arguments: Any) -> list[_derived.Derived]:
        found = look(*arguments)
        locks.append(SandboxDirectory(tmp_path, "begun").create())
        return found

    monkeypatch.setattr(_derived, "files", look_and_start)
    before = {path for path in _tree(tmp_path / "cache") if "templates" not in path}
    done = storage.prune(tmp_path)
    assert {item.kind for item in done.removed} == {"template"}
    assert done.failures == ()
    assert {path for path in _tree(tmp_path / "cache") if "templates" not in path} == before
    os.close(locks.pop())


def test_a_sandbox_that_begins_meanwhile_waits_until_it_can_see_what_is_left(
    tmp_path: Path, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _start(tmp_path, monkeypatch)
    (installed / "agentd").write_bytes(b"agentd, second version")
    remove, held = artifacts.remove, []

    def observed(path: Path) -> None:
        with (tmp_path / "sandboxes" / ".guard").open() as guard:
            try:
                fcntl.flock(guard, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                held.append(path.parent.name)
        remove(path)

    monkeypatch.setattr(artifacts, "remove", observed)
    removed = {item.path for item in storage.prune(tmp_path).removed if item.path.parent.name == "boot"}
    assert len(removed) == held.count("boot") == 3, "the disk, its stamp, the pointer to it"


def test_a_lock_goes_that_nobody_holds_and_no_other(home: Path) -> None:
    lock = home / "cache" / "templates" / f".{GO}.lock"
    templates = Templates(home)
    with templates.making(GO, wait=1) as ours:
        assert ours
        assert lock.exists()
        assert "lock" not in {item.kind for item in storage.prune(home).removed}
        assert lock.exists()
    lock.touch()
    assert [item.path for item in storage.prune(home, dry_run=True).removed if item.kind == "lock"] == [lock]
    assert lock.exists()
    assert [item.path for item in storage.prune(home).removed if item.kind == "lock"] == [lock]
    assert not lock.exists()
    with templates.making(GO, wait=1) as ours:
        assert ours


def test_a_lock_that_somebody_takes_after_the_look_stays(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = home / "cache" / "templates" / f".{GO}.lock"
    look = storage._dead_locks
    with lock.open() as taken:

        def look_and_take(home: Path) -> list[Path]:
            found = look(home)
            fcntl.flock(taken, fcntl.LOCK_EX)
            return found

        monkeypatch.setattr(storage, "_dead_locks", look_and_take)
        assert "lock" not in {item.kind for item in storage.prune(home).removed}
        assert lock.exists()
