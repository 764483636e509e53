"""A user with nothing: no privileges, no name, no way to write to the packages. Everything works for them."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.nobody import UID, Nobody, nobody_at

pytestmark = [pytest.mark.vm, pytest.mark.root, pytest.mark.once]

if os.geteuid() != 0:
    pytest.skip("becoming another user needs root", allow_module_level=True)


@pytest.fixture(params=[0o022, 0o077, 0o000], ids=lambda umask: f"umask {umask:03o}")
def nobody(settings: dict[str, str], run_directory: Path, request: pytest.FixtureRequest) -> Iterator[Nobody]:
    """The user, with one of the usual masks and with none."""
    with nobody_at(run_directory, settings, request.param) as user:
        yield user


def test_every_verb(nobody: Nobody, busybox_layout: Path, tmp_path: Path) -> None:
    archive = nobody.directory / "image"
    shutil.copytree(busybox_layout, archive)
    subprocess.run(["chmod", "-R", "a+rX", archive], check=True)
    msb = nobody
    msb("load", f"oci:{archive}", "-t", "busybox").succeeded()
    assert msb("images", "-q").succeeded().text == "busybox:latest\n"
    # The first makes kernel, boot disk, upper and template; root in there, nobody out here.
    assert msb("run", "busybox", "--", "id", "-u").succeeded().text == "0\n"
    assert msb("run", "-q", "busybox", "--", "cat", stdin=b"through\n").succeeded().out == b"through\n"
    assert msb("create", "-q", "busybox", "--name", "dev").succeeded().text == "dev\n"
    assert msb("exec", "dev", "--", "sh", "-c", "echo printed; exit 7").code == 7
    (nobody.directory / "note").write_text("copied\n")
    (nobody.directory / "note").chmod(0o644)
    msb("cp", "note", "dev:/root/note").succeeded()
    msb("cp", "dev:/root/note", "back").succeeded()
    assert (nobody.directory / "back").read_text() == "copied\n"
    assert msb("logs", "dev").succeeded().text == "printed\n"
    assert msb("ls", "-q").succeeded().text == "dev\n"
    msb("ping", "dev").succeeded()
    running = nobody.host.sandbox()
    for process in (running.supervisor, running.vmm):
        assert process.status["Uid"].split() == [str(UID)] * 4
        assert int(process.status["CapEff"], 16) == 0
    msb("stop", "dev").succeeded()
    msb("start", "dev").succeeded()
    assert msb("exec", "dev", "--", "cat", "/root/note").succeeded().text == "copied\n"
    msb("restart", "dev").succeeded()
    assert msb("exec", "-d", "dev", "--", "sleep", "1000").succeeded().text == "dev\n"
    msb("metrics", "dev").succeeded()
    msb("pause", "dev").succeeded()
    msb("resume", "dev").succeeded()
    msb("fork", "-q", "dev", "--name", "kid").succeeded()
    assert msb("exec", "kid", "--", "cat", "/root/note").succeeded().text == "copied\n"
    msb("rm", "--force", "dev", "kid").succeeded()
    # A directory of this user's, and volumes. What the guest's root writes there is theirs.
    shared = nobody.directory / "src"
    shared.mkdir()
    os.chown(shared, UID, UID)
    assert msb("volume", "create", "disk", "--size", "64M").succeeded().text == "disk\n"
    mounts = ("-v", "./src:/app", "-v", "data:/data", "-v", "disk:/disk")
    script = "echo kept | tee /app/a /data/b > /disk/c; chown 5:6 /app/a; stat -c %u:%g /app/a"
    assert msb("run", *mounts, "busybox", "--", "sh", "-c", script).succeeded().text == "5:6\n"
    assert (shared / "a").read_text() == "kept\n"
    assert ((shared / "a").stat().st_uid, stat.S_IMODE((shared / "a").stat().st_mode)) == (UID, 0o600)
    both = msb("run", *mounts[2:], "busybox", "--", "cat", "/data/b", "/disk/c").succeeded()
    assert both.text == "kept\nkept\n"
    msb("volume", "rm", "data", "disk").succeeded()
    assert msb("install", "busybox", "--tmp", "--name", "box").succeeded().text == "box\n"
    assert os.access(nobody.home / "bin" / "box", os.X_OK)
    msb("uninstall", "box").succeeded()
    msb("df").succeeded()
    msb("prune", "--all").succeeded()
    nobody.host.wait_empty(within=60)
    assert nobody.host.rows() == []
    # Whatever the umask, nobody else reads what is in the home, and all of it is this user's.
    assert stat.S_IMODE(nobody.home.stat().st_mode) == 0o700
    for path in [nobody.home, *nobody.home.rglob("*")]:
        found = path.lstat()
        assert (found.st_uid, found.st_gid) == (UID, UID), path
        assert path.is_symlink() or not stat.S_IMODE(found.st_mode) & 0o022, path
    assert list((nobody.directory / "tmp").iterdir()) == []


def test_doctor_asks_for_nothing_that_needs_root(nobody: Nobody) -> None:
    """A machine on which root has installed QEMU and e2fsprogs is ready for everybody."""
    assert nobody("ls").succeeded().text.split() == [
        "NAME",
        "STATUS",
        "IMAGE",
        "CPUS",
        "MEMORY",
        "ISOLATION",
        "AGE",
    ]
    assert "Traceback" not in nobody("doctor").succeeded().complaint


def test_a_home_that_belongs_to_somebody_else(nobody: Nobody) -> None:
    (nobody.directory / "theirs").mkdir(mode=0o700)
    nobody.environ["MSB_HOME"] = str(nobody.directory / "theirs")
    for arguments in (("ls",), ("run", "busybox", "--", "true"), ("rm", "dev")):
        done = nobody(*arguments)
        assert str(nobody.directory / "theirs") in done.failed(done.code)
        assert done.code in (1, 125)
