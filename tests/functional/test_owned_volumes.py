"""Volumes that belong to a sandbox, with a real guest: kept when it stops, copied by a fork, gone with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from microsandbox import Sandbox, Volume

from tests.support.msb import Msb

pytestmark = [pytest.mark.vm, pytest.mark.asyncio]

_WRITE = """
grep -q ' /db ext4 rw' /proc/mounts
grep -Eq ' /data (fuse|virtiofs) ' /proc/mounts
echo disk > /db/f; echo dir > /data/f; chown 7:8 /data/f
dd if=/dev/zero of=/data/large bs=64k count=64 2>&1 && exit 1
rm /data/large; cd /data
i=0; while [ $i -lt 200 ]; do mkdir deep; cd deep; i=$((i+1)); done
"""
_READ = "cat /db/f /data/f; stat -c %u:%g /data/f"


async def test_they_live_and_die_with_their_sandbox(
    msb: Msb, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"MSB_HOME": str(msb.home), **settings}.items():
        monkeypatch.setenv(name, value)
    volumes = {"/data": Volume.owned(quota_mib=1), "/db": Volume.owned(size_mib=64)}
    kid = None
    sandbox = await Sandbox.create("own", image="busybox", volumes=volumes, ephemeral=False)
    try:
        told = await sandbox.exec("sh", ["-ec", _WRITE])
        assert told.success, told.stdout_text + told.stderr_text
        await sandbox.stop()
        shown = json.loads(msb("volume", "ls", "--format", "json").succeeded().text)
        own = [volume for volume in shown if volume["owner"] == "own"]
        assert [(volume["name"], volume["kind"], volume["size"], volume["quota"]) for volume in own] == [
            ("own:/data", "dir", None, 1 << 20),
            ("own:/db", "disk", 64 << 20, None),
        ]
        assert "belongs to the sandbox 'own'" in msb("volume", "rm", "--force", "own:/db").failed(1)
        config = json.loads(msb("inspect", "own").succeeded().text)[0]["config"]["volumes"]
        assert [(mount["target"], mount["owned"]) for mount in config] == [("/data", True), ("/db", True)]
        # A fork of a stopped sandbox has copies, with owners that only the guest knows of.
        msb("fork", "own", "--name", "kid").succeeded()
        kid = await Sandbox.get("kid")
        other = await kid.connect()
        assert (await other.exec("sh", ["-c", _READ])).stdout_text == "disk\ndir\n7:8\n"
        await other.exec("sh", ["-c", "echo kid > /db/f; echo kid > /data/f"])
        place = Path(own[0]["path"]).parent.parent
        assert (place / "owned-0/data/f").read_text() == "dir\n"
        msb("rm", "--force", "kid").succeeded()
        kid = None
        assert msb("exec", "own", "--", "sh", "-c", _READ).succeeded().text == "disk\ndir\n7:8\n"
        # In the place of another it begins with empty ones.
        async with await Sandbox.create(
            "own", image="busybox", volumes=volumes, ephemeral=True, replace=True
        ) as fresh:
            assert not place.exists()
            assert (await fresh.exec("sh", ["-c", "ls -A /data /db"])).stdout_text.split() == [
                "/data:", "/db:", "lost+found",
            ]  # fmt: skip
            await fresh.exec("mkdir", ["-p", "/data/a/b"])
        names = [volume.name for volume in await Volume.list()]
        assert not [name for name in names if name.startswith(("own:", "kid:"))]
        assert not list((msb.home / "sandboxes").glob("*/owned-*"))
    finally:
        msb("rm", "--force", "own", *(["kid"] if kid else []))
