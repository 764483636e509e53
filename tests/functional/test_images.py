"""`msb load`, `images`, `image inspect`, `rmi`: the store as users see it."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from microsandbox_oci import ImageConfig

from tests.support.images import write_layout
from tests.support.msb import Msb


def _archive(layout: Path, target: Path) -> Path:
    """An OCI archive: the layout as a tar."""
    with tarfile.open(target, "w") as tar:
        for path in sorted(layout.rglob("*")):
            tar.add(path, arcname=path.relative_to(layout), recursive=False)
    return target


def test_an_image_is_loaded_listed_inspected_and_removed(empty_msb: Msb, busybox_layout: Path) -> None:
    msb = empty_msb
    assert msb("images", "-q").succeeded().out == b""
    loaded = msb("load", f"oci:{busybox_layout}", "-t", "tools/box:1").succeeded()
    assert loaded.text == "tools/box:1\n"
    assert msb("images", "-q").succeeded().out == loaded.out

    (listed,) = json.loads(msb("images", "--format", "json").succeeded().out)
    assert listed["reference"] in ("tools/box:1", "docker.io/tools/box:1")
    inspected = json.loads(msb("image", "inspect", "tools/box:1").succeeded().out)
    assert (inspected["digest"], inspected["config"]["cmd"]) == (listed["digest"], ["sh"])
    assert Path(inspected["layers"][0]["path"]) == msb.host.layers()[0]

    assert msb("rmi", "tools/box:1").succeeded().text == "tools/box:1\n"
    assert msb("images", "-q").succeeded().out == b""
    assert msb.host.layers() == []


def test_an_archive_is_read_from_a_file_and_from_standard_input(
    empty_msb: Msb, busybox_layout: Path, tmp_path: Path
) -> None:
    archive = _archive(busybox_layout, tmp_path / "box.tar")
    assert empty_msb("load", "-i", archive, "-t", "one").succeeded().text == "one:latest\n"
    with archive.open("rb") as file:
        done = empty_msb("load", "-t", "two", stdin=file)
    assert done.succeeded().text == "two:latest\n"
    done = empty_msb("load", "-t", "three", stdin=archive.read_bytes())
    assert done.succeeded().text == "three:latest\n"
    assert len(empty_msb.host.layers()) == 1, "the same layer is stored once"
    assert len({image["digest"] for image in json.loads(empty_msb("images", "--format", "json").out)}) == 1


def test_an_image_that_is_not_there_is_an_error_with_a_hint(empty_msb: Msb) -> None:
    for arguments in (["run", "nothing", "--", "true"], ["image", "inspect", "nothing"]):
        assert "nothing" in empty_msb(*arguments).failed(125)
    assert "nothing" in empty_msb("rmi", "nothing").failed(1)


@pytest.mark.vm
def test_an_image_in_use_cannot_be_removed(own_msb: Msb) -> None:
    own_msb("create", "busybox", "--name", "user").succeeded()
    assert "user" in own_msb("rmi", "busybox").failed(1)
    own_msb("stop", "user").succeeded()
    assert "msb rm user" in own_msb("rmi", "busybox").failed(1), "stopped, it can still be started"
    own_msb("rm", "user").succeeded()
    own_msb("rmi", "busybox").succeeded()
    own_msb.run("true").failed(125)


@pytest.mark.vm
def test_an_image_removed_and_loaded_again_works(own_msb: Msb, busybox_layout: Path) -> None:
    own_msb("rmi", "busybox").succeeded()
    own_msb("load", f"oci:{busybox_layout}", "-t", "busybox").succeeded()
    own_msb.run("true").succeeded()


def test_the_newest_image_of_a_name_is_the_one_that_counts(empty_msb: Msb, tmp_path: Path) -> None:
    for version in ("1", "2"):
        layout = write_layout(tmp_path / version, ImageConfig(cmd=("echo", version)))
        empty_msb("load", f"oci:{layout}", "-t", "app").succeeded()
    assert json.loads(empty_msb("image", "inspect", "app").succeeded().out)["config"]["cmd"] == ["echo", "2"]
