"""Trees that guests have made: too deep for paths and recursion, unreadable, with links that lead out."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from microsandbox import _trees, storage
from microsandbox._directory import SandboxDirectory


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """As deep as the broker lets a guest make it, longer than a path may be."""
    root = tmp_path / "tree"
    root.mkdir()
    at = os.open(root, os.O_RDONLY)
    for _ in range(2048):
        name = "dd"
        os.mkdir(name, dir_fd=at)
        deeper = os.open(name, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = deeper
    os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=at))
    os.close(at)
    (tmp_path / "outside").write_text("safe")
    (root / "out").symlink_to(tmp_path)
    (root / "file").write_text("x" * 5000)
    (root / "again").hardlink_to(root / "file")
    (root / "closed/below").mkdir(parents=True)
    (root / "closed/f").touch()
    (root / "closed/below").chmod(0)
    (root / "closed").chmod(0o500)
    return root


def test_all_of_it_goes_and_nothing_else(tree: Path, tmp_path: Path) -> None:
    _trees.remove(tree)
    assert not tree.exists()
    assert (tmp_path / "outside").read_text() == "safe"


def test_a_sandbox_and_what_is_measured_of_it_may_have_such_a_tree(tree: Path, tmp_path: Path) -> None:
    directory = SandboxDirectory(tmp_path, "f" * 16)
    os.close(directory.create())
    tree.rename(directory.path / "tree")
    size = storage.allocated(directory.path)
    assert size >= 2 * 4096
    file = directory.path / "tree/file"
    assert storage.allocated(directory.path, [file, directory.path / "tree/again"]) == size - 2 * 8192
    directory.remove()
    assert not directory.path.exists()


def test_a_copy_is_the_same(tree: Path, tmp_path: Path) -> None:
    (tree / "closed/below").chmod(0o700)
    sparse = tree / "sparse"
    with sparse.open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"middle")
    os.setxattr(sparse, "user.microsandbox.owner", b"0:0:100644")
    os.mkfifo(tree / "fifo")
    os.utime(tree, ns=(1, 2))
    _trees.copy(tree, tmp_path / "copy")
    copy = tmp_path / "copy"
    assert sorted(os.listdir(copy)) == sorted(set(os.listdir(tree)) - {"fifo"})  # noqa: PTH208
    assert (copy / "out").readlink() == tmp_path
    assert (copy / "file").samefile(copy / "again")
    assert (copy / "file").stat().st_nlink == 2
    made = (copy / "sparse").stat()
    assert (made.st_size, made.st_mtime_ns) == (64 << 20, sparse.stat().st_mtime_ns)
    assert made.st_blocks * 512 < 1 << 20
    assert os.getxattr(copy / "sparse", "user.microsandbox.owner") == b"0:0:100644"
    assert stat.S_IMODE((copy / "closed").stat().st_mode) == 0o500
    assert copy.stat().st_mtime_ns == 2
    assert sum(1 for _ in _trees.every(copy)) == sum(1 for _ in _trees.every(tree)) - 1
    with pytest.raises(FileExistsError):
        _trees.copy(tree, copy)
    _trees.remove(copy)
    _trees.remove(tree)
