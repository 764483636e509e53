"""The root file system as a tar: what GNU tar, Python and this store itself read out of it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from microsandbox_oci import ImageInvalid, ImageNotFound, ImageStore, StoreError

BASE = {"bin/sh": b"#!" * 500, "etc/motd": b"welcome\n", "etc/name": b"base\n"}
TOP = {"srv/app": os.urandom(3_000_000), "etc/.wh.motd": b"", "etc/name": b"top\n"}


def exported(store: ImageStore, name: str = "app:1") -> bytes:
    out = io.BytesIO()
    store.export(name, out)
    return out.getvalue()


@pytest.fixture
def loaded(store: ImageStore, sources: Any) -> ImageStore:
    store.load(sources.directory(sources.layout_files(sources.image(BASE, TOP))))
    return store


def test_all_layers_are_applied(loaded: ImageStore) -> None:
    archive = exported(loaded)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert tar.getnames() == [".", "bin", "bin/sh", "etc", "etc/name", "srv", "srv/app"]
        name, app = tar.extractfile("etc/name"), tar.extractfile("srv/app")
        assert name is not None
        assert app is not None
        assert (name.read(), app.read()) == (b"top\n", TOP["srv/app"])
    assert exported(loaded) == archive, "the same image gives the same bytes"


def test_what_is_exported_can_be_loaded_and_exported_again(
    loaded: ImageStore, sources: Any, tmp_path: Path
) -> None:
    archive = exported(loaded)
    built = sources.image({}, compression="", diff_ids=["sha256:" + sha256(archive).hexdigest()])
    built.blobs = [archive]
    again = ImageStore(tmp_path / "again")
    again.load(sources.directory(sources.layout_files(built)))
    assert exported(again) == archive


def test_a_packed_directory_comes_out_as_gnu_tar_would_pack_it(store: ImageStore, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "d").mkdir(parents=True)
    (root / "d" / "file").write_bytes(b"content")
    (root / "d" / "file").chmod(0o4751)
    os.link(root / "d" / "file", root / "another")
    (root / ("n" * 200)).write_bytes(b"")
    (root / "link").symlink_to("t/" * 100)
    os.setxattr(root / "d", b"user.note", b"\0=\n")
    os.utime(root / "d" / "file", ns=(5, 1_700_000_000_123_456_789))
    with (root / "sparse").open("wb") as file:
        file.seek(50 << 20)
        file.write(b"end")
    os.utime(root / "d", ns=(0, -1_500_000_000))
    image = store.pack_rootfs(root)
    ours = _entries(exported(store, image.digest))
    gnu = subprocess.run(
        ["tar", "--format=pax", "--xattrs", "--xattrs-include=*", "--sparse", "--sort=name", "-C", root,
         "-c", "."],
        capture_output=True, check=True,
    )  # fmt: skip
    assert ours == _entries(gnu.stdout)
    assert ours["link"][-1] == "t/" * 100


def test_an_image_that_is_not_there_or_damaged_is_named(loaded: ImageStore) -> None:
    with pytest.raises(ImageNotFound, match="nothing"):
        exported(loaded, "nothing")
    image = loaded.get("app:1")
    metadata = bytearray(image.metadata.read_bytes())
    metadata[-100] ^= 1
    image.metadata.chmod(0o600)
    image.metadata.write_bytes(metadata)
    with pytest.raises(ImageInvalid, match=r"image docker\.io/library/app:1 is damaged"):
        exported(loaded)
    image.layers[0].path.unlink()
    image.layers[0].path.mkdir()
    with pytest.raises((ImageInvalid, StoreError)):
        exported(loaded)


class Failing(io.RawIOBase):
    """Takes some bytes, a few at a time, then fails."""

    def __init__(self, room: int) -> None:
        self.room, self.taken = room, b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        if self.room == 0:
            raise BrokenPipeError(32, "nobody reads")
        count = min(self.room, 100_003, len(data))
        self.taken += bytes(data[:count])
        self.room -= count
        return count


def test_an_output_may_take_a_part_and_may_fail(loaded: ImageStore) -> None:
    archive = exported(loaded)
    patient = Failing(len(archive))
    loaded.export("app:1", patient)  # type: ignore[arg-type]
    assert patient.taken == archive
    with pytest.raises(BrokenPipeError, match="nobody reads"):
        loaded.export("app:1", Failing(1_500_000))  # type: ignore[arg-type]
    loaded.remove("app:1")  # the image is held no longer


MEASURED = """
import resource, sys
from microsandbox_oci import ImageStore
store = ImageStore(sys.argv[1])
with open("/dev/null", "wb") as out:
    store.export("small:1", out)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    store.export("large:1", out)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_files(store: ImageStore, sources: Any) -> None:
    small, large = sources.image({"file": bytes(4 << 20)}), sources.image({"file": bytes(128 << 20)})
    store.load(sources.directory(sources.layout_files(small, large, names=("small:1", "large:1"))))
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, store.root], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 8 << 10  # KiB


def _entries(archive: bytes) -> dict[str, tuple[object, ...]]:
    """Every entry of an archive, as Python reads it, but for the times that GNU tar says beyond `mtime`."""
    found: dict[str, tuple[object, ...]] = {}
    links: dict[str, str] = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for entry in tar:
            name = entry.name.removeprefix("./")
            if entry.islnk():
                links[name] = entry.linkname.removeprefix("./")
                continue
            file = tar.extractfile(entry) if entry.isreg() else None
            extended = {k: v for k, v in entry.pax_headers.items() if k.startswith("SCHILY.xattr")}
            mtime = entry.pax_headers.get("mtime", str(int(entry.mtime)))
            found[name] = (
                entry.type if not entry.isreg() else b"0",
                entry.mode,
                entry.uid,
                entry.gid,
                mtime.rstrip("0"),
                extended,
                file and file.read(),
                entry.linkname,
            )
    return found | {name: ("hard link", target) for name, target in links.items()}
