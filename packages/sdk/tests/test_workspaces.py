"""Workspaces: what can be asked for, what goes to the host, and that nothing goes beside it."""

# Paths are bytes, and errors of the system's are what counts.
# ruff: noqa: PTH102, PTH208, PTH211, PT011, PT012

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import pytest
from microsandbox import ConfigError, FileKind, Volume, _workspace_base
from microsandbox._config import MountConfig, SandboxConfig
from microsandbox._workspace_base import Base
from microsandbox.files import ChangeKind, FileChange, _plan
from microsandbox.files._host_tree import HostTree
from microsandbox.files._records import Entry, StreamInvalid
from microsandbox.files._workspace import ApplyResult, Workspaces, _checked
from microsandbox.mounts import parse_volume

ADDED, MODIFIED, DELETED = ChangeKind
FILE, DIRECTORY, LINK, OTHER = FileKind


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "src"
    (root / "sub").mkdir(parents=True)
    (root / "a").write_text("old")
    (root / "sub/b").write_text("b")
    return root


def change(what: ChangeKind, path: str, kind: FileKind = FILE, mode: int = 0o644) -> FileChange:
    return FileChange(what, f"/app/{path}", "/app", kind, 3, mode, 5)


def planned(tree: Path, changes: list[FileChange], base: Base) -> _plan.Plan:
    host = HostTree(str(tree))
    try:
        return _plan.plan(changes, base, host)
    finally:
        host.close()


def test_modes_and_guest_directories_are_read(tree: Path) -> None:
    mount = parse_volume(f"{tree}:/app:overlay,guest=node_modules,guest=web/.venv")
    assert (mount.mode, mount.guest) == ("overlay", ("node_modules", "web/.venv"))
    assert MountConfig.from_plain(mount.to_plain()) == mount
    assert parse_volume(f"{tree}:/app") == MountConfig("/app", str(tree))
    assert Volume.bind(tree, mode="clone").at("/app").mode == "clone"


@pytest.mark.parametrize(
    "options",
    ["overlay,ro", "clone,ro", "ro,guest=a", "overlay,guest=/a", "overlay,guest=a/../b", "overlay,guest=",
     "overlay,cache=none", "overlay,watch", "watch,clone", "copy"],
)  # fmt: skip
def test_what_cannot_be_is_refused(tree: Path, options: str) -> None:
    with pytest.raises(ConfigError, match="volume /app"):
        parse_volume(f"{tree}:/app:{options}")


def test_a_file_and_a_volume_are_no_workspaces(tree: Path) -> None:
    for source in (str(tree / "a"), "data"):
        with pytest.raises(ConfigError):
            parse_volume(f"{source}:/app:overlay")


def test_the_base_is_kept(tree: Path, tmp_path: Path) -> None:
    os.symlink("/etc", tree / "link")
    os.mkdir(os.fsencode(tree) + b"/\xff")
    found = _workspace_base.look(str(tree))
    assert set(found) == {b"a", b"sub", b"sub/b", b"link", b"\xff"}
    known = Base(found, {b"a": None})
    _workspace_base.save(tmp_path / "workspace-0", known)
    assert _workspace_base.load(tmp_path / "workspace-0") == known


def test_deletions_come_first_and_directories_before_what_is_in_them(tree: Path) -> None:
    base = Base(_workspace_base.look(str(tree)), {})
    changes = [
        change(ADDED, "sub"),
        change(ADDED, "n/x"),
        change(ADDED, "n", DIRECTORY, 0o755),
        change(DELETED, "sub", DIRECTORY),
        change(DELETED, "sub/b"),
        change(MODIFIED, "a"),
    ]
    plan = planned(tree, changes, base)
    assert [(done.change, done.path) for done in plan.changes] == [
        (DELETED, "/app/sub/b"),
        (DELETED, "/app/sub"),
        (MODIFIED, "/app/a"),
        (ADDED, "/app/n"),
        (ADDED, "/app/n/x"),
        (ADDED, "/app/sub"),
    ]
    assert not plan.conflicts
    assert not plan.refused


def test_what_the_host_has_changed_is_a_conflict(tree: Path) -> None:
    base = Base(_workspace_base.look(str(tree)), {})
    (tree / "a").write_text("something else")
    (tree / "new").write_text("")
    (tree / "sub/more").write_text("")
    (tree / "sub/b").unlink()
    changes = [
        change(MODIFIED, "a"),
        change(ADDED, "new"),
        change(DELETED, "sub", DIRECTORY),
        change(DELETED, "sub/b"),
    ]
    assert planned(tree, changes, base).conflicts == [
        ("/app/sub", "on the host 'more' is new in it"),
        ("/app/a", "the host has changed it"),
        ("/app/new", "it is new on the host"),
    ]
    assert planned(tree, [change(MODIFIED, "sub/b")], base).conflicts == [
        ("/app/sub/b", "the host has deleted it")
    ]


def test_devices_and_set_id_files_stay_in_the_sandbox(tree: Path) -> None:
    changes = [
        change(ADDED, "dev", OTHER),
        change(ADDED, "suid", FILE, 0o4755),
        change(MODIFIED, "a", FILE, 0o2755),
        change(ADDED, "plain"),
    ]
    plan = planned(tree, changes, Base(_workspace_base.look(str(tree)), {}))
    assert [done.path for done in plan.changes] == ["/app/plain"]
    assert [path for path, _ in plan.refused] == ["/app/a", "/app/dev", "/app/suid"]


def test_a_choice_has_the_directories_it_is_in() -> None:
    changes = [
        change(ADDED, "n", DIRECTORY),
        change(ADDED, "n/m", DIRECTORY),
        change(ADDED, "n/m/x"),
        change(ADDED, "n/y"),
        change(ADDED, "nn"),
    ]
    assert [done.path for done in _plan.select(changes, [b"n/m"])] == ["/app/n", "/app/n/m", "/app/n/m/x"]


def test_what_the_host_has_is_not_listed_again() -> None:
    done = change(ADDED, "x")
    gone = change(DELETED, "y")
    applied = {each.below: _plan.applied_facts(each) for each in (done, gone)}
    again = FileChange(ADDED, "/app/x", "/app", FILE, 3, 0o644, 6)
    assert _plan.not_applied([done, gone, again], applied) == [again]
    assert _plan.not_applied([change(DELETED, "x"), done], applied) == []


def test_links_of_the_host_are_not_followed(tree: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_text("safe")
    os.symlink(outside, tree / "out")
    os.symlink(outside / "f", tree / "file")
    host = HostTree(str(tree))
    try:
        with pytest.raises(OSError), host.replacing(b"out/f", 0o644, 0):
            pass
        for act in (
            lambda: host.remove(b"out/f", directory=False),
            lambda: host.make_directory(b"out/d"),
            lambda: host.make_directory(b"out"),
            lambda: host.link(b"out/l", b"x"),
            lambda: host.set_mode(b"out", 0o777),
            lambda: host.names(b"out"),
        ):
            with pytest.raises(OSError):
                act()
        assert host.facts(b"out/f") is None
        # A link in the place of a file gives way, and what it leads to stays.
        with host.replacing(b"file", 0o4755, 2**80) as descriptor:
            os.write(descriptor, b"new")
        for path in (b"../x", b"/etc/x", b"a//b", b"", b"a\0"):
            with pytest.raises(ValueError):
                host.facts(path)
    finally:
        host.close()
    assert os.listdir(outside) == ["f"]
    assert (outside / "f").read_text() == "safe"
    assert (tree / "file").read_text() == "new"
    assert stat.S_IMODE((tree / "file").lstat().st_mode) == 0o755


def test_a_file_that_is_not_complete_leaves_the_old_one(tree: Path) -> None:
    host = HostTree(str(tree))
    try:
        with pytest.raises(RuntimeError), host.replacing(b"a", 0o644, 0) as descriptor:
            os.write(descriptor, b"half")
            raise RuntimeError
        # A directory is never replaced by a file.
        with pytest.raises(OSError), host.replacing(b"sub", 0o644, 0):
            pass
    finally:
        host.close()
    assert (tree / "a").read_text() == "old"
    assert sorted(os.listdir(tree)) == ["a", "sub"]


@pytest.mark.parametrize("path", [b"", b"/etc/passwd", b"../x", b"a/../../x", b"a/./b", b"a\0b"])
def test_paths_of_the_guest_are_checked(path: bytes) -> None:
    with pytest.raises(StreamInvalid):
        _checked(Entry(b"I", 0o100644, 0, 0, 0, 0, 0, b"A", path), "/app")


def test_changes_of_the_guest_are_read() -> None:
    read = _checked(Entry(b"I", 0o104755, 1, 2, 3, 0, 0, b"D", b"a/b"), "/app")
    assert read == FileChange(DELETED, "/app/a/b", "/app", FILE, 3, 0o4755, 10**9 + 2)
    assert read.below == b"a/b"


def test_an_empty_path_is_not_everything(tmp_path: Path) -> None:
    config = SandboxConfig(mounts=(MountConfig("/app", "/src", mode="overlay"),))
    workspaces = Workspaces(None, "dev", config, tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="the path is empty"):
        asyncio.run(workspaces.discard([""]))


def test_a_directory_that_the_host_takes_away_meanwhile_is_named(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken_away(self: HostTree, path: bytes, mode: int) -> None:
        (tree / os.fsdecode(path)).rmdir()
        set_mode(self, path, mode)

    set_mode = HostTree.set_mode
    monkeypatch.setattr(HostTree, "set_mode", taken_away)
    workspaces = Workspaces(None, "dev", SandboxConfig(), tmp_path)  # type: ignore[arg-type]
    result = ApplyResult()
    changes = [change(ADDED, "new", DIRECTORY, 0o755)]
    mount = MountConfig("/app", str(tree), mode="overlay")
    asyncio.run(workspaces._bring(0, mount, Base({}, {}), changes, result))
    assert result.refused == [("/app/new", f"{tree}/new: No such file or directory")]
