"""A store that was moved, that is mounted elsewhere, and that cannot be written."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.msb import PROGRAM, Msb

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")


def state(msb: Msb) -> tuple[bytes, bytes, str]:
    """What the store gives for busybox: as it came, as a tree, and its digest."""
    return (
        msb("save", "busybox").succeeded().out,
        msb("image", "export", "busybox").succeeded().out,
        json.loads(msb("image", "inspect", "busybox").succeeded().out)["digest"],
    )


@pytest.fixture
def elsewhere(own_home: Path) -> Iterator[Path]:
    """A place for the home to go; what is there comes back, for the fixtures that clean up."""
    target = own_home.with_name(own_home.name + "-moved")
    yield target
    if target.is_dir():
        target.rename(own_home)


@pytest.mark.vm
def test_a_home_that_was_moved_works_as_before(
    own_msb: Msb, elsewhere: Path, settings: dict[str, str]
) -> None:
    own_msb.run("sh", "-c", "echo kept > /note", options=["--name", "dev"]).succeeded()
    before = state(own_msb)
    own_msb.home.rename(elsewhere)
    msb = Msb(elsewhere, settings)
    assert state(msb) == before
    assert msb("image", "verify", "busybox").succeeded().text == "busybox: undamaged\n"
    for layer in json.loads(msb("image", "inspect", "busybox").succeeded().out)["layers"]:
        assert Path(layer["path"]).is_relative_to(elsewhere)
    assert msb.run("echo", "there").succeeded().text == "there\n"
    msb("start", "dev").succeeded()
    assert msb("exec", "dev", "--", "cat", "/note").succeeded().text == "kept\n"
    msb("stop", "dev").succeeded()
    msb("rm", "dev").succeeded()


@pytest.mark.vm
def test_a_cache_may_be_a_link_to_a_larger_disk(own_msb: Msb, tmp_path: Path, busybox_layout: Path) -> None:
    before = state(own_msb)
    (own_msb.home / "cache").rename(tmp_path / "large")
    (own_msb.home / "cache").symlink_to(tmp_path / "large")
    assert state(own_msb) == before
    assert own_msb.run("echo", "there").succeeded().text == "there\n"
    own_msb("load", f"oci:{busybox_layout}", "-t", "another").succeeded()
    own_msb("rmi", "another").succeeded()
    own_msb("image", "verify").succeeded()


@needs_root
@pytest.mark.vm
@pytest.mark.root
def test_a_store_that_cannot_be_written_is_read(own_msb: Msb, busybox_layout: Path) -> None:
    own_msb.run("true").succeeded()  # what is derived once is there
    before = state(own_msb)
    cache = own_msb.home / "cache"

    def reading(*arguments: str) -> subprocess.CompletedProcess[str]:
        """`msb` in a mount namespace of its own, in which the cache is mounted read-only."""
        script = f'mount --bind {cache} {cache} && mount -o remount,bind,ro {cache} && exec "$@"'
        return subprocess.run(
            ["unshare", "-m", "sh", "-c", script, "sh", PROGRAM, *arguments],
            env=own_msb.environ, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip

    assert reading("images", "-q").stdout == "busybox:latest\n"
    done = reading("run", "busybox", "--", "echo", "there")
    assert (done.returncode, done.stdout) == (0, "there\n"), done.stderr
    assert reading("image", "export", "-o", str(own_msb.home / "root.tar"), "busybox").returncode == 0
    assert (own_msb.home / "root.tar").read_bytes() == before[1]
    refused = reading("load", f"oci:{busybox_layout}", "-t", "another")
    assert refused.returncode == 125
    assert "Read-only file system" in refused.stderr
    assert state(own_msb) == before
