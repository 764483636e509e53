"""Control groups on the host: where they are made, what is written, and that a start is never in their way.

On a tree of plain files; what the kernel makes of it is in tests/functional/test_host_limits.py.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from microsandbox_core import cgroup
from microsandbox_core.cgroup import Limits, Place


class Tree:
    """A directory that looks like a mount of cgroup v2, in which this process is in `/user/session`."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.delegated: set[str] = set()
        self.membership = root.parent / "membership"
        monkeypatch.setattr(cgroup, "_ROOTS", (str(root),))
        monkeypatch.setattr(cgroup, "_MEMBERSHIP", str(self.membership))
        monkeypatch.setattr(cgroup, "_is_delegated", lambda directory: directory in self.delegated)
        self._mkdir = os.mkdir
        monkeypatch.setattr(os, "mkdir", self._make)
        self.group("", enabled="cpu memory pids")
        self.group("/user", enabled="cpu memory pids")
        self.group("/user/session")
        self.live_in("/user/session")

    def live_in(self, group: str) -> None:
        self.membership.write_text(f"4:memory:/elsewhere\n0::{group}\n")

    def group(self, path: str, *, available: str = "cpu io memory pids", enabled: str = "") -> Path:
        directory = Path(f"{self.root}{path}")
        directory.mkdir(exist_ok=True)
        (directory / "cgroup.controllers").write_text(available + "\n")
        (directory / "cgroup.subtree_control").write_text(enabled + "\n")
        (directory / "cgroup.procs").touch()
        return directory

    def _make(self, path: str, mode: int = 0o777) -> None:
        """mkdir(2) as this file system does it: with the files in it."""
        self._mkdir(path, mode)
        enabled = Path(path).parent.joinpath("cgroup.subtree_control")
        if not enabled.exists():
            return
        names = {"memory": "memory.max", "cpu": "cpu.max", "pids": "pids.max"}
        for name in ("cgroup.procs", *(names[word] for word in enabled.read_text().replace("+", "").split())):
            (Path(path) / name).write_text("max\n")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    root = tmp_path / "cgroup"
    root.mkdir()
    return Tree(root, monkeypatch)


def test_a_group_beside_ours_is_made_only_where_that_was_delegated(tree: Tree) -> None:
    found = cgroup.place(None)
    assert found.directory is None
    assert "/user/session is in none that is delegated" in found.reason
    tree.delegated.add(f"{tree.root}/user")
    assert cgroup.place(None) == Place(f"{tree.root}/user", f"memory, cpu, pids in {tree.root}/user")


def test_limits_of_a_group_further_up_are_not_left_behind(tree: Tree) -> None:
    """A service with a memory limit in a delegated session: a group beside it would be without that."""
    tree.delegated.add(f"{tree.root}/user")
    tree.group("/user/session/limited")
    tree.live_in("/user/session/limited")
    assert cgroup.place(None).directory is None


def test_at_the_root_groups_are_below_our_own(tree: Tree) -> None:
    tree.live_in("/")
    assert cgroup.place(None).directory == str(tree.root)
    # That of a container only looks like it: with processes in it, it can give no controllers on.
    (tree.root / "cgroup.type").touch()
    assert cgroup.place(None) == Place(None, "our own control group has processes in it")


def test_a_directory_that_is_named_is_taken(tree: Tree) -> None:
    assert cgroup.place(f"{tree.root}/user").directory == f"{tree.root}/user"


def test_it_can_be_switched_off(tree: Tree) -> None:
    tree.live_in("/")
    assert cgroup.place("off") == Place(None, "switched off by MSB_CGROUP")


def test_what_is_no_place_is_said_why(tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is no directory of cgroup v2" in cgroup.place(str(tmp_path)).reason
    tree.group("/bare", available="io hugetlb")
    assert "none of the controllers memory, cpu, pids" in cgroup.place(f"{tree.root}/bare").reason
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("cgroup.procs"))
    assert cgroup.place(f"{tree.root}/user").reason == f"{tree.root}/user/cgroup.procs is not writable"
    tree.live_in("/../outside")
    assert "not visible" in cgroup.place(None).reason
    monkeypatch.setattr(cgroup, "_ROOTS", (str(tmp_path / "nowhere"),))
    assert cgroup.place(None) == Place(None, "no cgroup v2 is mounted")


def test_a_sandbox_gets_its_size_and_what_its_processes_need() -> None:
    limits = cgroup.limits_for(512, 2, emulated=False)
    assert limits == Limits((512 << 20) + cgroup.OVERHEAD, 2.5, 130)
    assert cgroup.limits_for(512, 2, emulated=True).memory == (limits.memory or 0) + cgroup.TRANSLATED


def test_entering_writes_the_limits_before_the_processes_come(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    real = cgroup._write

    def write(path: str, value: str) -> None:
        written.append(path)
        real(path, value)

    monkeypatch.setattr(cgroup, "_write", write)
    group = cgroup.enter(f"{tree.root}/user", "0123", Limits(1 << 30, 1.5, 129), [os.getpid()])
    assert group == f"{tree.root}/user/msb-0123"
    assert [Path(path).name for path in written] == ["memory.max", "cpu.max", "pids.max", "cgroup.procs"]
    assert Path(group, "memory.max").read_text().startswith("1073741824")
    assert Path(group, "cpu.max").read_text() == "150000 100000"
    assert Path(group, "cgroup.procs").read_text().startswith(str(os.getpid()))


def test_limits_are_read_back(tree: Tree) -> None:
    group = tree.group("/user/msb-1")
    for name, content in (("memory.max", "1073741824"), ("cpu.max", "150000 100000"), ("pids.max", "max")):
        (group / name).write_text(content + "\n")
    assert cgroup.limits_of(str(group)) == Limits(1 << 30, 1.5, None)
    for name in ("memory.max", "cpu.max", "pids.max"):
        (group / name).unlink()
    assert cgroup.limits_of(str(group)) == Limits(None, None, None)
    assert cgroup.limits_of(f"{tree.root}/gone") is None


def test_a_controller_that_is_missing_is_done_without(tree: Tree) -> None:
    directory = tree.group("/some", available="memory", enabled="memory")
    group = cgroup.enter(str(directory), "1", Limits(1 << 30, 1.5, 129), [os.getpid()])
    assert sorted(file.name for file in Path(group).iterdir()) == ["cgroup.procs", "memory.max"]


def test_controllers_are_switched_on_where_they_are_not(tree: Tree) -> None:
    directory = tree.group("/empty", available="pids", enabled="")
    cgroup.enter(str(directory), "1", Limits(None, None, 5), [os.getpid()])
    assert (directory / "cgroup.subtree_control").read_text().startswith("+pids")


def test_a_failure_leaves_no_group(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    real = cgroup._write
    removed: list[str] = []
    monkeypatch.setattr(cgroup, "remove", removed.append)

    def refuse(path: str, value: str) -> None:
        if path.endswith("cgroup.procs"):
            raise PermissionError(13, "Permission denied", path)
        real(path, value)

    monkeypatch.setattr(cgroup, "_write", refuse)
    with pytest.raises(PermissionError):
        cgroup.enter(f"{tree.root}/user", "1", Limits(1 << 30, 1.5, 129), [os.getpid()])
    assert removed == [f"{tree.root}/user/msb-1"]


def test_only_empty_groups_of_sandboxes_are_removed(tmp_path: Path) -> None:
    for name in ("msb-1", "msb-2", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "msb-2" / "busy").touch()  # as EBUSY where a process is in it
    assert cgroup.remove(str(tmp_path / "msb-1"))
    assert cgroup.remove(str(tmp_path / "msb-1"))
    assert not cgroup.remove(str(tmp_path / "msb-2"))
    assert not cgroup.remove(str(tmp_path / "other"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["msb-2", "other"]


def test_who_leaves_goes_where_a_group_may_stay(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    group = cgroup.enter(f"{tree.root}/user", "1", Limits(1 << 30, 1.5, 129), [os.getpid()])
    for file in Path(group).iterdir():  # the kernel's files are no obstacle to rmdir(2)
        file.unlink()
    cgroup.leave(group)
    assert not Path(group).exists()
    assert Path(tree.root, "user", cgroup.ENDING, "cgroup.procs").read_text().startswith("0")


def test_a_limit_can_be_wider_for_a_while(tree: Tree) -> None:
    group = cgroup.enter(str(tree.root), "aa", Limits(1 << 30, 1.5, 128), [1])
    before = cgroup.limits_of(group)
    limit = cgroup.widen(group, 1 << 20)
    assert limit == 1 << 30
    assert cgroup.limits_of(group) == Limits((1 << 30) + (1 << 20), 1.5, 128)
    cgroup.narrow(group, limit)
    assert cgroup.limits_of(group) == before
    assert cgroup.widen(f"{tree.root}/none", 1) is None
