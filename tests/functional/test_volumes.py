"""Disks and volumes: what is written outlives a sandbox, and one sandbox at a time writes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from microsandbox_core import env

from tests.support import disks
from tests.support.msb import Msb

pytestmark = pytest.mark.vm

_SIZE = 100 << 20


def _run(msb: Msb, options: list[str], script: str) -> tuple[str, str]:
    """Output, and what was said of why the kernel was booted."""
    done = msb("--log-level", "debug", "run", *options, "busybox", "--", "sh", "-c", script).succeeded()
    booted = [line for line in done.complaint.splitlines() if line.startswith("debug: the kernel")]
    return done.text, "\n".join(booted)


def test_what_is_written_to_images_is_there_for_the_next_sandbox(msb: Msb, tmp_path: Path) -> None:
    first = disks.raw(tmp_path / "one.img", _SIZE)
    second = disks.qcow2(tmp_path / "two.qcow2", disks.raw(tmp_path / "content", _SIZE + (1 << 20)))
    writable = ["--mount-disk", f"{first}:/one", "--mount-disk", f"{second}:/a/two:noexec"]
    facts = "cat /sys/block/vd[de]/size /sys/block/vd[de]/serial; "
    expected = f"{_SIZE // 512}\n{_SIZE // 512 + 2048}\none.imgtwo.qcow2"
    # The first start of a machine with two more disks makes its template, the second is from it.
    for number in range(2):
        script = facts + f"cat /one/f /a/two/f; echo {number} >> /one/f; echo {number} >> /a/two/f"
        text, booted = _run(msb, writable, script + "; true")
        assert text == expected + "0\n0\n" * number
        assert booted == "" or env.value(env.MSB_COLD)
    # Read-only is what the device is: the guest's root can do nothing about it.
    script = facts + (
        "cat /one/f /a/two/f; for disk in /one /a/two; do touch $disk/x; mount -o remount,rw $disk;"
        " touch $disk/x; done; echo 0 > /sys/block/vdd/ro; blockdev --setrw /dev/vdd;"
        " dd if=/dev/zero of=/dev/vdd count=1; true"
    )
    before = [path.read_bytes() for path in (first, second)]
    read_only = ["--mount-disk", f"{first}:/one:ro", "--mount-disk", f"{second}:/a/two:ro,fstype=ext4"]
    text, _ = _run(msb, [*read_only, "--security", "restricted", "--cold"], facts + "cat /one/f; mount")
    assert text.startswith(expected + "0\n1\n")
    assert all("nosuid,nodev" in line for line in text.splitlines() if line.startswith("/dev/vd"))
    text, _ = _run(msb, read_only, script)
    assert text == expected + "0\n1\n0\n1\n"
    assert [path.read_bytes() for path in (first, second)] == before


def test_a_disk_volume_has_one_writer_or_many_readers(msb: Msb) -> None:
    msb("volume", "create", "db", "--size", "64M", "--label", "team=a").succeeded()
    try:
        msb("create", "busybox", "-n", "writer", "-v", "db:/db").succeeded()
        written = "grep ' /db ext4 rw' /proc/mounts && echo text > /db/f"
        msb("exec", "writer", "--", "sh", "-c", written).succeeded()
        for options in ("db:/db", "db:/db:ro"):
            refused = msb("run", "-v", options, "busybox", "--", "true").failed()
            assert "'db' is in use by the sandbox 'writer'" in refused
        assert "'writer'" in msb("volume", "rm", "db").failed(1)
        assert "in use" in msb("volume", "rm", "--force", "db").failed(1)
        # It is unmounted in good order, and attached again.
        msb("restart", "writer").succeeded()
        assert msb("exec", "writer", "--", "cat", "/db/f").succeeded().text == "text\n"
        assert "files of the host are open in it, at /db" in msb("fork", "writer", "--name", "other").failed()
        msb("stop", "writer").succeeded()
        (shown,) = json.loads(msb("volume", "ls", "--label", "team=a", "--format", "json").succeeded().text)
        assert (shown["kind"], shown["size"]) == ("disk", 64 << 20)
        assert shown["used_by"] == [{"sandbox": "writer", "target": "/db", "read_only": False}]
        for name in ("one", "two"):
            msb("create", "busybox", "-n", name, "-v", "db:/db:ro").succeeded()
        for name in ("one", "two"):
            assert msb("exec", name, "--", "cat", "/db/f").succeeded().text == "text\n"
        refused = msb("start", "writer").failed(1)
        assert "'db' is in use by the sandboxes 'one', 'two'" in refused
    finally:
        msb("rm", "--force", "writer", "one", "two")
        msb("volume", "rm", "--force", "db").succeeded()


def test_named_directories_are_made_keep_to_their_quota_and_stay(msb: Msb) -> None:
    for name in ("shared", "kept"):
        msb("volume", "create", name, "--quota", "1M").succeeded()
    try:
        options = ["-v", "shared:/data", "-v", "fresh:/fresh"]
        # Written back when it is closed, and so it is known then.
        back = "dd if=/dev/zero of=/kept/large bs=64k count=64 2>&1; echo closed: $?"
        flags = "-v", "kept:/kept:cache=always"
        write = (
            "mkdir /data/d; echo a > /data/d/f; touch /fresh/x;"
            " dd if=/dev/zero of=/data/large bs=64k count=64 2>&1; true"
        )
        told = msb("run", *options, *flags, "busybox", "--", "sh", "-c", f"{write}; {back}").succeeded().text
        assert "quota exceeded" in told.lower()
        assert "No space left on device" in told
        assert "closed: 1" in told
        facts = json.loads(msb("volume", "inspect", "kept").succeeded().text)
        assert (1 << 19) < facts["used"] <= (1 << 20) + 8192
        tried = "ls /fresh; cat /data/d/f; touch /data/x"
        read = msb("run", *(f"{option}:ro" if ":" in option else option for option in options),
                   "busybox", "--", "sh", "-c", tried)  # fmt: skip
        assert (read.code, read.text) == (1, "x\na\n")
        facts = json.loads(msb("volume", "inspect", "shared").succeeded().text)
        assert (facts["kind"], facts["quota"]) == ("dir", 1 << 20)
        assert facts["used"] <= (1 << 20) + 8192
        assert {"fresh", "shared"} <= set(msb("volume", "ls", "-q").succeeded().text.split())
        assert not {"fresh", "shared"} & set(msb("prune", "--dry-run", "-q").succeeded().text.split())
    finally:
        msb("volume", "rm", "shared", "fresh", "kept").succeeded()


def test_images_that_are_none_or_lead_elsewhere_are_refused(msb: Msb, tmp_path: Path) -> None:
    # A hostile image must not make QEMU open other files of the host.
    content = disks.raw(tmp_path / "content", 8 << 20)
    hostile = disks.qcow2(tmp_path / "hostile", content, backing=b"/etc/passwd")
    assert "backing file" in msb("run", "--mount-disk", f"{hostile}:/d", "busybox", "--", "true").failed()
    assert "No such file" in msb("run", "--mount-disk", f"{tmp_path}/no:/d", "busybox", "--", "true").failed()
    # An image in place of the one that was looked at: what counts is what is given to QEMU.
    good = disks.qcow2(tmp_path / "good", content)
    msb("create", "busybox", "-n", "dev", "--mount-disk", f"{good}:/d").succeeded()
    try:
        msb("stop", "dev").succeeded()
        hostile.rename(good)
        assert "backing file" in msb("start", "dev").failed(1)
        # And without a file system it cannot be mounted, which is said.
        good.write_bytes(disks.qcow2(tmp_path / "empty", _blank(tmp_path)).read_bytes())
        assert "no file system that is known" in msb("start", "dev").failed()
    finally:
        msb("rm", "--force", "dev")


def _blank(directory: Path) -> Path:
    (directory / "blank").write_bytes(bytes(1 << 20))
    return directory / "blank"
