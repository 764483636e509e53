"""Patches of the root: made once, before anything of the image runs, and never half of them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from microsandbox import BootFailed, ConfigError, Patch, Sandbox
from microsandbox_oci import ImageConfig

from tests.support.host import Host
from tests.support.images import tar_of, write_layout
from tests.support.msb import Msb

pytestmark = [pytest.mark.vm, pytest.mark.asyncio]


@pytest.fixture
def home(msb: Msb, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Host:
    """The shared home as this process's, seen from the host."""
    for name, value in {"MSB_HOME": str(msb.home), **settings}.items():
        monkeypatch.setenv(name, value)
    return msb.host


@pytest_asyncio.fixture
async def remove_dev(home: Host) -> AsyncIterator[None]:
    """Removes the sandbox `dev` afterwards."""
    yield
    await Sandbox.remove("dev", force=True)


async def _told(sandbox: Sandbox, script: str) -> str:
    output = await sandbox.shell(script)
    assert output.success, output.stderr_text
    return output.stdout_text


@pytest.mark.usefixtures("remove_dev")
async def test_the_root_is_as_it_was_asked_for_and_only_once(tmp_path: Path) -> None:
    (tmp_path / "tree" / "inner").mkdir(parents=True)
    (tmp_path / "tree" / "inner").chmod(0o750)
    big = os.urandom(1_500_000)
    (tmp_path / "tree" / "inner" / "big").write_bytes(big)
    (tmp_path / "tree" / "program").write_text("#!/bin/sh\necho ran\n")
    (tmp_path / "tree" / "program").chmod(0o755)
    (tmp_path / "tree" / "link").symlink_to("program")
    patches = [
        Patch.text("/etc/motd", "grüß\n"),
        Patch.file("/new/place/f", b"\0\xff", mode=0o600),
        Patch.copy_file(tmp_path / "tree" / "program", "/usr/local/bin/program"),
        Patch.copy_dir(tmp_path / "tree", "/srv/tree"),
        Patch.mkdir("/made", mode=0o1777),
        Patch.append("/etc/passwd", "new:x:7:7::/:/bin/sh\n"),
        Patch.symlink("/srv/tree", "/short"),
        Patch.remove("/home"),
        Patch.text("/etc/group", "root:x:0:\n", replace=True),
    ]
    look = (
        "cat /etc/motd; stat -c '%a %u %s' /new/place/f; program; /short/link; stat -c %a /short/inner /made;"
        "md5sum < /srv/tree/inner/big; tail -n 1 /etc/passwd; grep -c : /etc/group; id new;"
        "ls -d /home || true"
    )
    async with await Sandbox.create("dev", image="busybox", patches=patches) as sandbox:
        first = await _told(sandbox, look)
        await _told(sandbox, "echo mine > /etc/motd")
    assert first.splitlines() == [
        "grüß", "600 0 2", "ran", "ran", "750", "1777", f"{hashlib.md5(big).hexdigest()}  -",
        "new:x:7:7::/:/bin/sh", "1", "uid=7(new) gid=7 groups=7",
    ]  # fmt: skip
    async with await Sandbox.start("dev") as sandbox:
        again = await _told(sandbox, look)
    assert again.splitlines() == ["mine", *first.splitlines()[1:]]


@pytest.mark.parametrize(
    ("patch", "reason"),
    [
        (Patch.text("/etc/passwd", "x"), "File exists"),
        (Patch.symlink("/x", "/etc/passwd"), "File exists"),
        (Patch.text("/etc/passwd/x", "x"), "Not a directory"),
        (Patch.text("/bin", "x", replace=True), "Is a directory"),
        (Patch.append("/nothing", "x"), "No such file"),
        (Patch.remove("/nothing"), "No such file"),
        (Patch.remove("/proc"), "not in the root"),
        (Patch.text("/tmp/x", "x"), "not in the root"),
        (Patch.text("/dev/vdc", "x", replace=True), "not in the root"),
    ],
    ids=repr,
)
async def test_what_cannot_be_done_is_named_and_leaves_nothing(home: Host, patch: Patch, reason: str) -> None:
    with pytest.raises(BootFailed, match=reason) as caught:
        await Sandbox.create("dev", image="busybox", detached=True, patches=[Patch.mkdir("/fine"), patch])
    assert f"patch 2, {patch!r}" in str(caught.value)
    assert caught.value.stage == "patch"
    assert list(await Sandbox.list()) == []
    assert home.leftovers() == []


async def test_what_cannot_be_read_is_found_before_anything_starts(home: Host, tmp_path: Path) -> None:
    missing = Patch.copy_file(tmp_path / "nothing", "/x")
    with pytest.raises(ConfigError, match="nothing: No such file"):
        await Sandbox.create("dev", image="busybox", patches=[missing])
    assert list(await Sandbox.list()) == []
    assert home.leftovers() == []


async def test_links_of_the_image_lead_nowhere_but_into_its_root(home: Host, tmp_path: Path) -> None:
    def link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = tarfile.SYMTYPE, target
        return entry, b""

    fifo = tarfile.TarInfo("fifo")
    fifo.type = tarfile.FIFOTYPE
    links = [link("up", "../../../etc"), link("processes", "/proc"), link("root1", "/proc/1/root"),
             link("nowhere", "/not/there"), (fifo, b"")]  # fmt: skip
    layout = write_layout(tmp_path / "image", ImageConfig(), [tar_of(links)])
    image: dict[str, Any] = {"image": f"oci:{layout}"}
    async with await Sandbox.create(patches=[Patch.text("/up/inside", "x")], **image) as sandbox:
        assert await _told(sandbox, "cat /etc/inside") == "x"
    for path in ("/processes/sys/kernel/panic", "/root1/x", "/nowhere/x", "/fifo"):
        async with asyncio.timeout(240):
            with pytest.raises(BootFailed, match=f"Patch.text.'{path}'"):
                await Sandbox.create(patches=[Patch.text(path, "x", replace=True)], **image)
    async with await Sandbox.create(
        patches=[Patch.remove("/processes"), Patch.remove("/up")], **image
    ) as sandbox:
        assert await _told(sandbox, "ls /etc/passwd /proc/self/stat; ls -d /up || true") == (
            "/etc/passwd\n/proc/self/stat\n"
        )


@pytest.mark.usefixtures("remove_dev")
async def test_a_creation_that_was_cut_off_is_made_good_by_the_next_start(home: Host) -> None:
    creation = asyncio.ensure_future(
        Sandbox.create("dev", image="busybox", detached=True, patches=[Patch.text("/a", "once\n")])
    )
    sandbox = await creation
    directory = home.sandbox().directory
    await sandbox.kill()
    # As it would be had the machine lost its power half way: the spool is there, and some of it is done.
    from microsandbox.patch import write_spool

    write_spool(directory / "patches", [Patch.text("/a", "once\n"), Patch.append("/a", "more\n")])
    async with await Sandbox.start("dev") as started:
        assert await _told(started, "cat /a") == "once\nmore\n"
        assert not (directory / "patches").exists()
