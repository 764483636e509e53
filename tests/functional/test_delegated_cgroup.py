"""Control groups for a user to whom a part of this host's cgroup v2 is delegated, as systemd does it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex

import pytest
from microsandbox_core import cgroup

from tests.support.nobody import UID, Nobody, nobody_at
from tests.support.process import Process
from tests.support.waiting import eventually

pytestmark = [pytest.mark.vm, pytest.mark.root, pytest.mark.once]

if os.geteuid() != 0:
    pytest.skip("delegating a control group needs root", allow_module_level=True)


def _words(path: Path) -> set[str]:
    return set(path.read_text().split())


def _mount() -> Path:
    """Where cgroup v2 is mounted, for us to write to."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup2" and "rw" in options.split(","):
            return Path(where)
    pytest.skip("no cgroup v2 is mounted here that can be written to")


@pytest.fixture
def delegated() -> Iterator[Path]:
    """A group that a user may make others in, with one that its programs are in; both are removed, which
    works only if nothing else is left in it."""
    top = _mount() / f"msb-test-{token_hex(4)}"
    try:
        top.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        missing = set(cgroup.CONTROLLERS) - _words(top / "cgroup.controllers")
        if missing:
            # They are with version 1, or were not handed on, which is for who set up this host to change.
            pytest.skip(f"cgroup v2 at {top.parent} lacks controllers: {', '.join(sorted(missing))}")
        # What systemd.resource-control(5), Delegate=, lets a user have, and how it says so.
        for name in ("", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"):
            os.chown(top / name, UID, UID)
        os.setxattr(top, "user.delegate", b"1")
        shell = top / "shell"
        shell.mkdir()
        for path in (shell, *shell.iterdir()):
            os.chown(path, UID, UID)
        yield top
        for group in (shell, top / cgroup.ENDING):
            group.rmdir()
    finally:
        for left in (*top.glob("*/"), top):
            if left.is_dir():
                left.rmdir()


@pytest.fixture
def nobody(
    settings: dict[str, str], run_directory: Path, delegated: Path, busybox_layout: Path
) -> Iterator[Nobody]:
    """The user, in there, who has an image."""
    with nobody_at(run_directory, settings) as user:
        user.group = delegated / "shell"
        archive = user.directory / "image"
        shutil.copytree(busybox_layout, archive)
        subprocess.run(["chmod", "-R", "a+rX", archive], check=True)
        user("load", f"oci:{archive}", "-t", "busybox").succeeded()
        yield user


def _group_of(process: Process) -> str:
    lines = Path(f"/proc/{process.pid}/cgroup").read_text().splitlines()
    return next(line for line in lines if line.startswith("0::")).rpartition("/")[2]


def test_a_sandbox_of_a_user_is_limited_in_what_was_delegated(nobody: Nobody, delegated: Path) -> None:
    nobody("create", "-q", "-m", "256M", "-c", "2", "--name", "dev", "busybox").succeeded()
    running = nobody.host.sandbox()
    group = delegated / f"{cgroup.PREFIX}{running.id}"
    for process in (running.supervisor, running.vmm):
        eventually(lambda p=process: _group_of(p) == group.name, within=60, what=f"{process} in {group}")  # type: ignore[misc]
        assert process.status["Uid"].split() == [str(UID)] * 4
    (found,) = json.loads(nobody("inspect", "dev").succeeded().out)
    wanted = cgroup.limits_for(256, 2, emulated=found["isolation"] == "emulated")
    assert cgroup.limits_of(str(group)) == wanted
    shown = found["host_limits"]
    assert (shown["memory"], shown["cpus"], shown["tasks"]) == wanted
    assert shown["cgroup"].endswith(f"{delegated.name}/{group.name}")
    # What it has used since is on its account.
    nobody("exec", "dev", "--", "sh", "-c", "dd if=/dev/zero of=/file bs=1M count=16 2>/dev/null").succeeded()
    assert int((group / "memory.current").read_text()) > 1 << 20
    assert int((group / "pids.current").read_text()) >= 2
    nobody("stop", "dev").succeeded()
    assert not group.exists()
    # The group of one that was killed goes when somebody looks.
    nobody("start", "dev").succeeded()
    eventually(lambda: _group_of(nobody.host.sandbox().vmm) == group.name, within=60, what="the group")
    nobody.host.sandbox().supervisor.kill()
    eventually(lambda: not nobody.host.running(), within=60, what="the end of both")
    nobody("ls").succeeded()
    assert not group.exists()
    nobody("rm", "dev").succeeded()
    assert {path.name for path in delegated.glob("*/")} == {"shell", cgroup.ENDING}
