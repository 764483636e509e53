"""Uppers are clean ext4 file systems that cost next to nothing until they are used."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from microsandbox_core.errors import StorageError
from microsandbox_core.upper import MINIMUM_SIZE, create_upper, mke2fs


def check(disk: Path) -> None:
    e2fsck = Path(mke2fs()).with_name("e2fsck")
    done = subprocess.run([e2fsck, "-fn", disk], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("size", [MINIMUM_SIZE, 100_000_001, 8 << 30, 64 << 30])
def test_e2fsck_finds_nothing_wrong(tmp_path: Path, size: int) -> None:
    upper = tmp_path / "upper"
    create_upper(tmp_path / "home", upper, size=size)
    assert size <= upper.stat().st_size < size + (1 << 20)
    assert upper.stat().st_mode & 0o777 == 0o600
    check(upper)


def test_an_unused_upper_takes_little_space_and_so_does_what_is_kept(tmp_path: Path) -> None:
    create_upper(tmp_path / "home", tmp_path / "upper")
    kept = list((tmp_path / "home" / "cache" / "uppers").iterdir())
    assert len(kept) == 1
    for file in (tmp_path / "upper", *kept):
        assert file.stat().st_blocks * 512 < 8 << 20


def test_an_upper_is_never_written_over(tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    upper.write_bytes(b"precious")
    with pytest.raises(StorageError, match="upper"):
        create_upper(tmp_path / "home", upper)
    assert upper.read_bytes() == b"precious"


def test_who_is_killed_while_he_copies_leaves_no_upper(tmp_path: Path) -> None:
    create_upper(tmp_path, tmp_path / "first")
    copies_and_dies = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from microsandbox_core.upper import create_upper\n"
        "os.copy_file_range = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "create_upper(Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    done = subprocess.run([sys.executable, "-c", copies_and_dies, tmp_path, tmp_path / "upper"])
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "upper").exists()
    create_upper(tmp_path, tmp_path / "upper")
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "first", "upper"}


def test_too_small_a_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="64 MiB"):
        create_upper(tmp_path, tmp_path / "upper", size=1 << 20)


def test_a_failure_of_mke2fs_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "mke2fs"
    broken.write_text("#!/bin/sh\necho 'no space on device' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StorageError, match="no space on device"):
        create_upper(tmp_path / "home", tmp_path / "upper")
    assert list((tmp_path / "home" / "cache" / "uppers").iterdir()) == []
    assert not (tmp_path / "upper").exists()
