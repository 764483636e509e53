"""What `msb doctor` says about limits and the file system."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
from microsandbox_core.host import limits
from microsandbox_core.host.doctor import Check, Status
from microsandbox_core.host.limits import examine_limits


def _checks(home: Path, proc: Path = Path("/proc")) -> dict[str, Check]:
    return {check.name: check for check in examine_limits(home, proc=proc)}


def _proc(tmp_path: Path, *, mounts: str) -> Path:
    """A /proc with these tables."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text(mounts)
    return tmp_path / "proc"


def test_this_machine_is_looked_at_without_changing_it(tmp_path: Path) -> None:
    found = _checks(tmp_path / "not" / "there")
    assert list(found) == ["file system", "open files", "processes"]
    assert all(check.seen and check.status is not Status.MISSING for check in found.values())
    assert list(tmp_path.iterdir()) == []


def test_a_low_limit_of_files_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    check = _checks(tmp_path)["open files"]
    assert (check.status, check.fix) == (Status.WARNING, "ulimit -n 1024")
    assert check.seen == "256 for each process, at most unlimited"


@pytest.mark.parametrize(("limit", "status"), [(3, Status.WARNING), (100_000_000, Status.OK)])
def test_a_low_limit_of_processes_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, status: Status
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    check = _checks(tmp_path)["processes"]
    assert check.status is status
    assert f"{limit} may" in check.seen


@pytest.mark.parametrize("kind", ["nfs4", "tmpfs", "9p"])
def test_a_file_system_that_is_no_place_for_state(tmp_path: Path, kind: str) -> None:
    device = tmp_path.stat().st_dev
    line = f"1 0 {os.major(device)}:{os.minor(device)} / / rw - {kind} x rw\n"
    check = _checks(tmp_path, _proc(tmp_path, mounts=line))["file system"]
    assert check.status is Status.WARNING
    assert check.seen.startswith(f"{kind} at {tmp_path}")
    assert "MSB_HOME" in str(check.fix)


@pytest.mark.parametrize("clones", [True, False])
def test_whether_copies_share_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clones: bool) -> None:
    monkeypatch.setattr(limits, "_clones", lambda _: clones)
    line = f"1 0 0:0 / {tmp_path} rw - btrfs x rw\n1 0 0:0 / / rw - ext4 x rw\n"
    check = _checks(tmp_path, _proc(tmp_path, mounts=line))["file system"]
    assert check.status is Status.OK
    assert check.seen.startswith("btrfs")
    assert ("(reflink)" in check.seen) is clones
