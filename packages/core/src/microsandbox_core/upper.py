"""The upper: the sparse ext4 disk that takes everything a guest writes to its root."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from microsandbox_core import env
from microsandbox_core.artifacts import copy_sparse, copy_upper, prepare, temporary_for
from microsandbox_core.digests import sha256
from microsandbox_core.errors import CoreError, StorageError

DEFAULT_SIZE = 8 << 30
"""Bytes. Sparse: an unused upper takes about a megabyte of the host's disk."""

MINIMUM_SIZE = 64 << 20
_STEP = 1 << 20
_LABEL = "msb-upper"


def create_upper(home: Path, path: Path, *, size: int = DEFAULT_SIZE) -> None:
    """Make a freshly formatted upper of `size` bytes (rounded up to 1 MiB) at `path`.

    Formatting is done once per size and kept; every further upper is a copy of the few blocks
    that a fresh file system has. Raises `StorageError`, `ValueError` for a size below 64 MiB.
    """
    if size < MINIMUM_SIZE:
        raise ValueError(f"size: an upper needs at least {MINIMUM_SIZE >> 20} MiB, not {size} bytes")
    size = -(-size // _STEP) * _STEP
    formatted = _ensure_formatted(home, size)
    try:
        copy_upper(formatted, path)
    except OSError as error:
        raise StorageError.from_os("create", path, error) from error


def mke2fs() -> str:
    """Path of `mke2fs`. It lives in `sbin`, which an ordinary user's PATH often lacks."""
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin", "/usr/local/sbin"])
    found = env.program("mke2fs", search)
    if found is None:
        raise CoreError(
            "mke2fs is not installed",
            hint="run `msb setup`, or install the package e2fsprogs",
            code="mke2fs_missing",
        )
    return str(found)


# Part of the cache key: other options make another file system.
_OPTIONS = (
    "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0", "-L", _LABEL,
    # The journal is what lets a sandbox that was killed be started again; 16 MiB are enough for one.
    "-J", "size=16", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0",
    # Named one by one, because the host's mke2fs.conf is not read. 256-byte inodes: nanoseconds, years
    # beyond 2038.
    "-O", "none,has_journal,extent,flex_bg,dir_index,filetype,sparse_super,large_file,huge_file,"
    "dir_nlink,extra_isize,ext_attr",
)  # fmt: skip


def upper_kind(size: int) -> str:
    """A name for uppers of `size` bytes, which changes when they are formatted in another way."""
    key = sha256(" ".join(_OPTIONS).encode()).hexdigest()[:12]
    return f"{size >> 20}M-{key}"


def create_disk(path: Path, size: int, label: str) -> None:
    """Make a disk with a fresh ext4 of its own at `path`, which must not exist: sparse, as an upper is, of
    `size` bytes (rounded up to 1 MiB), with the first 16 characters of `label`.

    Raises `StorageError`, `ValueError` for a size below 64 MiB.
    """
    if size < MINIMUM_SIZE:
        raise ValueError(f"size: a disk needs at least {MINIMUM_SIZE >> 20} MiB, not {size} bytes")
    size = -(-size // _STEP) * _STEP
    options = [label[:16] if option == _LABEL else option for option in _OPTIONS]
    try:
        _format(path, size, options)
    except OSError as error:
        raise StorageError.from_os("create", path, error) from error


def _ensure_formatted(home: Path, size: int) -> Path:
    path = home / "cache" / "uppers" / f"{upper_kind(size)}.ext4"
    if path.exists():
        return path
    packed = temporary_for(path)
    prepare(path.parent)
    try:
        _format(packed, size, _OPTIONS)
        packed.chmod(0o400)
        packed.rename(path)
    except OSError as error:
        raise StorageError.from_os("create", path, error) from error
    finally:
        packed.unlink(missing_ok=True)
    return path


def _format(path: Path, size: int, options: Sequence[str]) -> None:
    """Make a file with a fresh file system. Raises `OSError`, `StorageError`."""
    import subprocess

    temporary = temporary_for(path)
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "rb") as file:
            os.ftruncate(file.fileno(), size)
            done = subprocess.run(
                [mke2fs(), *options, str(temporary)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "MKE2FS_CONFIG": "/dev/null"},
            )
            if done.returncode != 0:
                said = done.stderr.decode(errors="replace").strip()
                raise StorageError(
                    f"mke2fs could not format {path}: {said}",
                    hint="check the free space under MSB_HOME",
                )
        # mke2fs reserves blocks that it never writes; the copy holds only what has content.
        copy_sparse(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
