"""Published files appear whole, and are not trusted when they changed."""

import os
import subprocess
from pathlib import Path

import pytest
from microsandbox_core.artifacts import (
    Stamp,
    copy_data,
    copy_sparse,
    file_digest,
    publish,
    sweep,
    temporary_for,
)
from microsandbox_core.errors import StorageError


def test_publish_makes_the_file_with_its_directories_and_mode(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    publish(path, b"content", mode=0o400)
    assert path.read_bytes() == b"content"
    assert path.stat().st_mode & 0o777 == 0o400
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_a_failed_publish_leaves_nothing_and_names_the_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot create") as caught:
        publish(tmp_path / "file" / "below", b"content")
    assert str(tmp_path / "file") in str(caught.value)
    assert caught.value.hint
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_stamp_holds_until_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    publish(path, b"content", mode=0o600)
    stamp = Stamp(path, file_digest(path))
    assert stamp.holds()
    assert stamp.holds()
    path.write_bytes(b"Content")
    assert not stamp.holds()


def test_a_stamp_does_not_hold_for_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert not Stamp(tmp_path / "nothing", "0" * 64).holds()


def test_a_replaced_file_with_the_same_size_and_mtime_is_hashed_again(tmp_path: Path) -> None:
    path = tmp_path / "file"
    publish(path, b"good", mode=0o600)
    stamp = Stamp(path, file_digest(path))
    assert stamp.holds()
    before = path.stat()
    path.write_bytes(b"evil")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not stamp.holds()


def test_sweep_removes_what_dead_writers_left_and_nothing_else(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    leftover = tmp_path / f".file.{dead.pid}-abcd1234.tmp"
    leftover.write_bytes(b"half")
    ours = temporary_for(tmp_path / "file")
    ours.write_bytes(b"being written")
    (tmp_path / "file").write_bytes(b"whole")
    sweep(tmp_path)
    assert not leftover.exists()
    assert ours.exists()
    assert (tmp_path / "file").exists()


def test_a_sparse_file_is_copied_with_its_holes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    with source.open("wb") as file:
        for offset in (0, 1 << 20, 5 << 20):
            file.seek(offset)
            file.write(bytes([offset >> 20]) * 8192)
        file.truncate(64 << 20)
    copy_sparse(source, tmp_path / "copy")
    memory = os.memfd_create("memory")
    os.ftruncate(memory, 64 << 20)
    with source.open("rb") as file:
        copy_data(file.fileno(), memory)
    for copied in (tmp_path / "copy", Path(f"/proc/self/fd/{memory}")):
        assert copied.read_bytes() == source.read_bytes()
        assert copied.stat().st_blocks * 512 < 1 << 20
    os.close(memory)
