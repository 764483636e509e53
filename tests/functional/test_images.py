"""`msb load`, `images`, `image inspect`, `rmi`: the store as users see it."""

from __future__ import annotations

import json
import subprocess
import tarfile
from pathlib import Path

import pytest
from microsandbox.sync import Image
from microsandbox_oci import ImageConfig

from tests.support.images import write_layout
from tests.support.msb import PROGRAM, Msb


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


def test_an_image_is_exported(empty_msb: Msb, busybox_layout: Path, tmp_path: Path) -> None:
    empty_msb("load", f"oci:{busybox_layout}", "-t", "busybox").succeeded()
    target = tmp_path / "root.tar"
    empty_msb("image", "export", "-o", target, "busybox").succeeded()
    with tarfile.open(target) as tar:
        found = {entry.name: entry for entry in tar}
    assert (found["tmp"].mode, found["bin/sh"].linkname, found["home/demo"].uid) == (0o1777, "busybox", 1000)
    assert empty_msb("image", "export", "busybox").succeeded().out == target.read_bytes()
    assert empty_msb("image", "export", "-o", "/dev/stdout", "busybox").succeeded().out == target.read_bytes()


def test_an_export_that_fails_leaves_what_was_there(
    empty_msb: Msb, busybox_layout: Path, tmp_path: Path
) -> None:
    empty_msb("load", f"oci:{busybox_layout}", "-t", "busybox").succeeded()
    target = tmp_path / "root.tar"
    target.write_bytes(b"before")
    assert "nothing" in empty_msb("image", "export", "-o", target, "nothing").failed()
    missing = tmp_path / "missing" / "root.tar"
    assert f"cannot write {missing}: No such file" in empty_msb(
        "image", "export", "-o", missing, "busybox"
    ).failed(1)
    assert "No space left" in empty_msb("image", "export", "-o", "/dev/full", "busybox").failed(1)
    # In the middle of the archive: blocks of 512 bytes.
    cut = subprocess.run(
        ["sh", "-c", 'ulimit -f 1000; exec "$@"', "sh", PROGRAM, "image", "export", "-o", target, "busybox"],
        env=empty_msb.environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (cut.returncode, cut.stderr.splitlines()[0]) == (
        1,
        f"error: cannot write {target}: File too large",
    )
    assert target.read_bytes() == b"before"
    assert [path for path in tmp_path.iterdir() if path.is_file()] == [target]


def test_a_reader_that_leaves_ends_an_export_quietly(empty_msb: Msb, busybox_layout: Path) -> None:
    empty_msb("load", f"oci:{busybox_layout}", "-t", "busybox").succeeded()
    with empty_msb.start("image", "export", "busybox") as command:
        assert command.stdout.read(100)[:2] == b"./"
        command.stdout.close()
        assert command.process.stderr is not None
        assert command.process.stderr.read() == b""
        assert command.process.wait(timeout=120) != 0


CONFIG = ImageConfig(
    env=("PATH=/bin", "COLOUR=green"),
    entrypoint=("sh", "-c"),
    cmd=("echo",),
    working_dir="/var",
    user="demo:demo",
    labels={"org.example.of": "the image"},
    stop_signal="SIGUSR1",
    exposed_ports=("53/udp", "8080/tcp"),
    volumes=("/data", "/var/lib/db"),
)


def test_all_that_an_image_says_about_running_it_is_shown(
    empty_msb: Msb, settings: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty_msb("load", f"oci:{write_layout(tmp_path / 'layout', CONFIG)}", "-t", "app").succeeded()
    shown = json.loads(empty_msb("image", "inspect", "app").succeeded().out)["config"]
    assert shown == {
        "env": ["PATH=/bin", "COLOUR=green"],
        "entrypoint": ["sh", "-c"],
        "cmd": ["echo"],
        "working_dir": "/var",
        "user": "demo:demo",
        "labels": {"org.example.of": "the image"},
        "stop_signal": "SIGUSR1",
        "exposed_ports": ["53/udp", "8080/tcp"],
        "volumes": ["/data", "/var/lib/db"],
    }
    for variable, value in {"MSB_HOME": str(empty_msb.home), **settings}.items():
        monkeypatch.setenv(variable, value)
    assert Image.inspect("app").config == CONFIG
    Image.export("app", tmp_path / "root.tar")
    assert empty_msb("image", "export", "app").succeeded().out == (tmp_path / "root.tar").read_bytes()


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


def test_limits_are_set_in_a_file_of_the_home(empty_msb: Msb, busybox_layout: Path) -> None:
    empty_msb.home.mkdir()
    limits = empty_msb.home / "limits.toml"
    limits.write_text('layer_size = "4K"\n')
    said = empty_msb("load", f"oci:{busybox_layout}").failed(125)
    assert "exceeds a limit" in said
    assert "limits.toml" in said
    limits.write_text('layer_siez = "4K"\n')
    assert f"{limits}: unknown limit layer_siez" in empty_msb("load", f"oci:{busybox_layout}").failed(125)
    limits.write_text('layer_size = "1G"\n')
    empty_msb("load", f"oci:{busybox_layout}", "-t", "box").succeeded()
    # What is there is there, whatever would be accepted now.
    limits.write_text('layer_size = "4K"\n')
    assert "box:latest" in empty_msb("images", "-q").succeeded().text
