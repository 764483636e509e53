"""What can be wrong with the machine, the home or an image: one error, a hint, exit 125, nothing left."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.images import blobs_by_size
from tests.support.msb import Msb

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")


# ------------------------------------------------------------------------------------------- the machine


def test_without_qemu(own_msb: Msb) -> None:
    before = own_msb.host.tree()
    msb = own_msb.with_settings(MSB_QEMU="/nonexistent/qemu")
    assert "/nonexistent/qemu" in msb.run("true").failed()
    assert (
        sorted(set(own_msb.host.tree("cache")) ^ {path for path in before if path.startswith("cache/")}) == []
    )
    assert (own_msb.host.leftovers(), own_msb.host.rows()) == ([], [])


def test_without_qemu_on_the_path(own_msb: Msb, tmp_path: Path) -> None:
    for tool in ("mke2fs",):
        found = shutil.which(tool, path="/usr/sbin:/sbin:/usr/bin")
        assert found is not None
        (tmp_path / tool).symlink_to(found)
    said = own_msb.with_settings(PATH=str(tmp_path)).run("true").failed()
    assert "qemu" in said
    assert "msb setup" in said


@pytest.mark.parametrize(
    "program", ["/bin/false", "/etc/passwd", "/"], ids=["fails", "no program", "directory"]
)
def test_with_something_else_for_a_qemu(own_msb: Msb, program: str) -> None:
    own_msb.with_settings(MSB_QEMU=program).run("true").failed()
    assert (own_msb.host.leftovers(), own_msb.host.rows()) == ([], [])


def test_without_a_guest_kernel(own_msb: Msb) -> None:
    before = own_msb.host.tree("cache")
    assert "/nonexistent.so" in own_msb.with_settings(MSB_LIBKRUNFW="/nonexistent.so").run("true").failed()
    assert own_msb.host.tree("cache") == before
    assert (own_msb.host.leftovers(), own_msb.host.rows()) == ([], [])


@pytest.mark.parametrize("setting", ["MSB_LIBKRUNFW", "MSB_KERNEL"])
def test_with_something_else_for_a_guest_kernel(own_msb: Msb, setting: str) -> None:
    before = own_msb.host.tree("cache")
    assert "/etc/passwd" in own_msb.with_settings(**{setting: "/etc/passwd"}).run("true").failed()
    assert own_msb.host.tree("cache") == before
    assert (own_msb.host.leftovers(), own_msb.host.rows()) == ([], [])


def test_a_kernel_file_that_was_damaged_is_made_again(own_msb: Msb) -> None:
    (kernel,) = own_msb.home.glob("cache/kernels/*.elf")
    good = kernel.read_bytes()
    kernel.chmod(0o600)
    kernel.write_bytes(good[: len(good) // 2])
    own_msb.run("true").succeeded()
    assert kernel.read_bytes() == good


# --------------------------------------------------------------------------------------------- an image


def _truncate(layout: Path) -> None:
    layer = blobs_by_size(layout)[0]
    os.truncate(layer, layer.stat().st_size // 2)


def _flip(layout: Path) -> None:
    layer = blobs_by_size(layout)[0]
    data = bytearray(layer.read_bytes())
    data[len(data) // 2] ^= 1
    layer.write_bytes(data)


def _other_content(layout: Path) -> None:
    blobs_by_size(layout)[0].write_bytes(blobs_by_size(layout)[1].read_bytes())


def _no_layer(layout: Path) -> None:
    blobs_by_size(layout)[0].unlink()


def _no_index(layout: Path) -> None:
    (layout / "index.json").unlink()


def _no_json(layout: Path) -> None:
    (layout / "index.json").write_bytes(b"\xff{")


DAMAGES = [_truncate, _flip, _other_content, _no_layer, _no_index, _no_json]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.strip("_"))
@pytest.mark.parametrize("command", ["load", "run"])
def test_a_damaged_image(
    empty_msb: Msb, busybox_layout: Path, tmp_path: Path, damage: Callable[[Path], None], command: str
) -> None:
    # O13: truncated stream, wrong digest, wrong size: nothing cached, a good one loads afterwards
    layout = tmp_path / "layout"
    shutil.copytree(busybox_layout, layout)
    damage(layout)
    empty_msb("images").succeeded()
    empty_msb("ls").succeeded()
    arguments = ["load", f"oci:{layout}"] if command == "load" else ["run", f"oci:{layout}", "--", "true"]
    empty_msb(*arguments).failed()
    files = [path for path in empty_msb.home.rglob("*") if path.is_file() and "cache" in path.parts]
    assert [path.name for path in files if path.suffix not in (".lock", ".pin")] == []
    assert (empty_msb.host.directories(), empty_msb.host.rows()) == ([], [])
    empty_msb("load", f"oci:{busybox_layout}").succeeded()


@pytest.mark.parametrize(
    "content",
    [b"", b"not an archive\n", b"\x1f\x8b\x08\x00", b"\0" * 10240],
    ids=["empty", "text", "gzip", "zeros"],
)
def test_a_file_that_is_no_image(empty_msb: Msb, tmp_path: Path, content: bytes) -> None:
    archive = tmp_path / "archive"
    archive.write_bytes(content)
    for arguments in (["load", "-i", str(archive)], ["run", f"docker-archive:{archive}", "--", "true"]):
        empty_msb(*arguments).failed()
    empty_msb("load", stdin=content).failed()
    assert empty_msb("images", "-q").succeeded().out == b""


def test_an_image_that_cannot_be_read(empty_msb: Msb, tmp_path: Path) -> None:
    assert "missing" in empty_msb("load", "-i", tmp_path / "missing.tar").failed()
    assert str(tmp_path) in empty_msb("load", "-i", tmp_path).failed()
    assert "missing" in empty_msb("run", f"oci:{tmp_path}/missing", "--", "true").failed()
    assert "missing" in empty_msb("run", f"{tmp_path}/missing", "--", "true").failed()


# ---------------------------------------------------------------------------------------------- the home


@pytest.mark.parametrize("home", ["/proc/msb", "/dev/null/msb", "/sys/msb"])
def test_a_home_that_nobody_can_make(settings: dict[str, str], busybox_layout: Path, home: str) -> None:
    msb = Msb(Path(home), settings)
    for arguments in (
        ["load", f"oci:{busybox_layout}"],
        ["run", f"oci:{busybox_layout}", "--", "true"],
        ["ls"],
    ):
        said = msb(*arguments).failed()
        assert home in said


def test_a_file_in_place_of_the_home(settings: dict[str, str], busybox_layout: Path, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("mine\n")
    msb = Msb(tmp_path / "home", settings)
    for arguments in (
        ["load", f"oci:{busybox_layout}"],
        ["run", f"oci:{busybox_layout}", "--", "true"],
        ["ls"],
    ):
        msb(*arguments).failed()
    assert (tmp_path / "home").read_text() == "mine\n"


@pytest.mark.parametrize("place", ["sandboxes", "cache"])
def test_a_file_in_place_of_a_directory_of_the_home(own_msb: Msb, place: str) -> None:
    shutil.rmtree(own_msb.home / place, ignore_errors=True)
    (own_msb.home / place).write_text("mine\n")
    own_msb.run("true").failed()
    assert (own_msb.home / place).read_text() == "mine\n"
    assert own_msb.host.rows() == []


@pytest.mark.vm
def test_a_home_whose_path_is_longer_than_a_sockets_address(
    settings: dict[str, str], plain_cache: Path, tmp_path: Path
) -> None:
    # L05: path > 108 bytes
    home = tmp_path / ("long" * 25) / ("longer" * 10)
    home.mkdir(parents=True)
    subprocess.run(["cp", "-a", "--sparse=always", plain_cache, home], check=True)
    msb = Msb(home, settings)
    assert msb.run("echo", "far away").succeeded().text == "far away\n"
    msb("create", "busybox", "--name", "dev").succeeded()
    assert msb("exec", "dev", "--", "hostname").succeeded().text == "dev\n"
    msb("rm", "--force", "dev").succeeded()
    assert msb.host.leftovers() == []


@pytest.mark.vm
@pytest.mark.parametrize("name", ["space 'quote' \"double\" ünïcode", "comma,colon:equals=per%cent\\back"])
def test_a_home_whose_path_has_awkward_signs(
    settings: dict[str, str], plain_cache: Path, tmp_path: Path, name: str
) -> None:
    home = tmp_path / name
    home.mkdir()
    subprocess.run(["cp", "-a", "--sparse=always", plain_cache, home], check=True)
    assert Msb(home, settings).run("echo", "there").succeeded().text == "there\n"


@pytest.fixture
def small(run_directory: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of the given size and returns its directory."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        directory = Path(tempfile.mkdtemp(dir=run_directory))
        options = f"size={size},mode=755"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "msb-test", directory], check=True)
        mounted.append(directory)
        return directory

    yield mount
    for directory in mounted:
        subprocess.run(["umount", directory], check=True)


@needs_root
@pytest.mark.root
class TestFullDisk:
    """O20, L09: no space left, at each of the steps that write."""

    @pytest.mark.parametrize("size", ["64k", "512k", "1m", "1800k"])
    def test_while_an_image_is_loaded(
        self, small: Callable[[str], Path], settings: dict[str, str], busybox_layout: Path, size: str
    ) -> None:
        msb = Msb(small(size) / "home", settings)
        assert "No space left" in msb("load", f"oci:{busybox_layout}", "-t", "busybox").failed()
        files = [path for path in msb.home.rglob("*") if path.is_file()]
        assert [path.name for path in files if path.stat().st_size] == []
        assert msb("images", "-q").succeeded().out == b""

    @pytest.mark.vm
    @pytest.mark.slow
    @pytest.mark.parametrize("left", ["0", "4k", "64k", "2m", "20m"])
    def test_while_a_sandbox_starts(
        self, small: Callable[[str], Path], settings: dict[str, str], busybox_layout: Path, left: str
    ) -> None:
        mount = small("24m")
        msb = Msb(mount / "home", settings)
        msb("load", f"oci:{busybox_layout}", "-t", "busybox").succeeded()
        before = msb.host.tree("cache")
        free = os.statvfs(mount).f_bavail * os.statvfs(mount).f_frsize
        wanted = int(left.rstrip("km")) * {"k": 1 << 10, "m": 1 << 20}.get(left[-1], 1)
        if free > wanted:
            with (mount / "filler").open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, free - wanted)
        said = msb.run("true").failed()
        assert "space" in said or "full" in said, said
        assert [path for path in msb.host.tree("cache") if path.endswith(".tmp")] == []
        assert {path for path in before if path not in msb.host.tree("cache")} == set()
        assert msb.host.leftovers() == []
        # With space again it works: nothing half-written is taken for whole.
        (mount / "filler").unlink(missing_ok=True)
        subprocess.run(["mount", "-o", "remount,size=512m", mount], check=True)
        msb.run("true").succeeded()


@needs_root
@pytest.mark.root
def test_a_home_on_a_read_only_file_system(
    small: Callable[[str], Path], settings: dict[str, str], busybox_layout: Path
) -> None:
    mount = small("64m")
    msb = Msb(mount / "home", settings)
    msb("load", f"oci:{busybox_layout}", "-t", "busybox").succeeded()
    msb("ls").succeeded()
    subprocess.run(["mount", "-o", "remount,ro", mount], check=True)
    before = msb.host.digests("")
    msb.run("true").failed()
    msb("load", f"oci:{busybox_layout}", "-t", "other").failed()
    assert msb("images", "-q").succeeded().text == "busybox:latest\n", "looking needs no writing"
    assert msb.host.digests("") == before


# -------------------------------------------------------------------------------------- the state database


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("content", [b"not a database at all" * 400, b"SQLite format 3\0" + b"\xa5" * 8000])
def test_a_damaged_database_is_left_as_it_is(own_msb: Msb, content: bytes) -> None:
    # L08
    database = own_msb.home / "state.db"
    database.write_bytes(content)
    for arguments in (["ls"], ["run", "busybox", "--", "true"], ["rm", "x"], ["exec", "x", "--", "true"]):
        said = own_msb(*arguments)
        assert said.code in (1, 125)
        assert str(database) in said.failed(said.code)
    assert database.read_bytes() == content
    assert own_msb.host.directories() == []


def test_a_newer_database_is_refused_without_writing(own_msb: Msb) -> None:
    # L08: an old binary refuses a newer schema
    own_msb("ls").succeeded()
    database = own_msb.home / "state.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA user_version = 99")
        connection.execute("PRAGMA journal_mode = DELETE")
    before = (_digest(database), database.stat().st_mtime_ns)
    for arguments in (["ls"], ["run", "busybox", "--", "true"], ["exec", "x", "--", "true"]):
        said = own_msb(*arguments).failed()
        assert "newer" in said
        assert "99" in said
    assert (_digest(database), database.stat().st_mtime_ns) == before
    assert own_msb.host.directories() == []


@pytest.mark.slow
def test_a_database_that_somebody_holds_is_waited_for_and_then_told(own_msb: Msb) -> None:
    # L08: locked 10 s
    own_msb("ls").succeeded()
    with closing(sqlite3.connect(own_msb.home / "state.db", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        assert "locked" in own_msb("create", "busybox", "--name", "dev").failed()
        assert own_msb("ls", "-q").succeeded().out == b"", "looking waits for nobody"
        connection.execute("ROLLBACK")
    own_msb("ls").succeeded()
