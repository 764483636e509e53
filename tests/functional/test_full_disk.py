"""L09: the host's disk is full while a sandbox runs: that is said, and its file system stays whole."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import faults
from tests.support.msb import Msb
from tests.support.truth import assert_clean

pytestmark = [
    pytest.mark.vm,
    pytest.mark.slow,
    pytest.mark.once,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root"),
]

ROOM = 12 << 20
"""Bytes that are left on the host's disk once the sandbox runs."""


class SmallDisk:
    """A home on a file system that `fill` leaves `ROOM` of."""

    def __init__(self, mount: Path, msb: Msb) -> None:
        self.mount = mount
        self.msb = msb
        self._filler = mount / "filler"

    def fill(self, left: int = ROOM) -> None:
        """Take what is free but for `left` bytes; 0: all of it."""
        status = os.statvfs(self.mount)
        free = status.f_bavail * status.f_frsize
        with self._filler.open("wb", buffering=0) as file:
            os.posix_fallocate(file.fileno(), 0, free - (left or 1 << 20))
            file.seek(0, os.SEEK_END)
            try:
                while not left:
                    file.write(bytes(4096))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def free(self) -> None:
        """Give it back."""
        self._filler.unlink()


@pytest.fixture
def disk(
    tmp_path: Path, run_directory: Path, settings: dict[str, str], busybox_layout: Path
) -> Iterator[SmallDisk]:
    """A home on a small file system, in which a sandbox `dev` runs."""
    # A file system of blocks: a tmpfs has memory for its holes only while there is room.
    mount, image = Path(tempfile.mkdtemp(dir=run_directory)), tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(700 << 20)
    subprocess.run(["/usr/sbin/mke2fs", "-q", "-t", "ext4", "-m", "0", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, mount], check=True)
    msb = Msb(mount / "home", settings)
    try:
        msb("load", f"oci:{busybox_layout}", "-t", "busybox").succeeded()
        for _ in range(2):
            msb("run", "-m", "128M", "busybox", "--", "true").succeeded()
        # Who does not answer is given up sooner than usual, but not who is only slow.
        soon = {
            "microsandbox.supervisor._supervise.HEARTBEAT_INTERVAL": 3.0,
            "microsandbox.supervisor._supervise.HEARTBEAT_DEADLINE": 15.0,
        }
        environ = faults.environment(msb.home, tmp_path / "notes", settings=soon)
        command = [sys.executable, faults.__file__, "create", "-m", "128M", "busybox", "--name", "dev"]
        subprocess.run(command, env={**msb.environ, **environ}, stdin=subprocess.DEVNULL, check=True)
        msb("exec", "dev", "--", "sh", "-c", "echo kept > /root/mark; sync").succeeded()
        yield SmallDisk(mount, msb)
    finally:
        msb.remove_everything()
        subprocess.run(["umount", mount], check=True)


def test_a_guest_that_fills_the_disk(disk: SmallDisk) -> None:
    """It is stopped where it was, and ended as by a power cut; the reason is said."""
    msb = disk.msb
    disk.fill()
    script = "dd if=/dev/zero of=/root/big bs=1M count=64 && sync"
    assert "ended while sh was running" in msb("exec", "dev", "--", "sh", "-c", script).failed(125)
    # Commands hear of it before it is on record.
    msb("wait", "dev").succeeded()
    # There is room for this in the place of the record before.
    (shown,) = json.loads(msb("inspect", "dev").succeeded().out)
    assert (shown["status"], shown["end"]["cause"]) == ("crashed", "silent")
    assert f"the file system of {msb.home} is full" in shown["end"]["reason"]
    assert "is full" in msb("exec", "dev", "--", "true").failed(125)
    assert "is full" in msb("logs", "--source", "system", "dev").succeeded().text
    assert "dev" in msb("ls").succeeded().text
    disk.free()
    msb("start", "dev").succeeded()
    assert msb("exec", "dev", "--", "cat", "/root/mark").succeeded().text == "kept\n"
    msb("exec", "dev", "--", "sh", "-c", "rm /root/big; echo more > /root/more").succeeded()
    msb("stop", "dev").succeeded()
    assert_clean(msb.host)


def test_verbs_on_a_disk_without_any_room(disk: SmallDisk) -> None:
    """What runs goes on and can be stopped, looked at and removed, which makes room; a start says why not."""
    msb = disk.msb
    disk.fill(0)
    assert msb("exec", "dev", "--", "cat", "/root/mark").succeeded().text == "kept\n"
    assert json.loads(msb("ls", "--format", "json").succeeded().out)[0]["status"] == "running"
    msb("stop", "dev").succeeded()
    (shown,) = json.loads(msb("inspect", "dev").succeeded().out)
    # What it has to write for that may find no room, and it is ended as by a power cut.
    assert shown["status"] == "stopped" or "is full" in shown["end"]["reason"], shown
    for arguments in (("run", "busybox", "--", "true"), ("create", "busybox", "--name", "other")):
        said = msb(*arguments).failed(125)
        assert "space" in said or "full" in said, said
    assert msb.host.rows() == ["dev"]
    msb("rm", "dev").succeeded()
    assert (msb.host.leftovers(), msb.host.rows()) == ([], [])
