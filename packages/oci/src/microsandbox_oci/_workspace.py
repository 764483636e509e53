"""Directories for work in progress that vanish with their owner, however it dies.

Each is ``tmp/<id>/`` beside ``tmp/<id>.lock``, which the owner keeps locked. The lock is taken before the
directory is made and removed after it is gone, so a directory whose lock is free or missing has no owner.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from microsandbox_oci._files import PRIVATE_DIR
from microsandbox_oci._locks import lock_file

_LOCK_SUFFIX = ".lock"


@contextmanager
def workspace(tmp: Path) -> Iterator[Path]:
    """Make a private directory in ``tmp`` for the block and remove it afterwards, error or not."""
    while True:
        name = os.urandom(8).hex()
        lock_path, directory = tmp / (name + _LOCK_SUFFIX), tmp / name
        fd = None
        # From here on, because an interrupt may come between the making of the file and its descriptor.
        try:
            fd = lock_file(lock_path, wait=False)
            if fd is not None:
                directory.mkdir(mode=PRIVATE_DIR)
                yield directory
                return
        finally:
            shutil.rmtree(directory, ignore_errors=True)
            with suppress(OSError):  # it is swept later, and must not hide why there is no workspace
                lock_path.unlink()
            if fd is not None:
                os.close(fd)


def abandoned(tmp: Path) -> list[Path]:
    """Return what dead owners left in ``tmp``: directories, and locks that have none. Changes nothing."""
    found = []
    names = {path.name.removesuffix(_LOCK_SUFFIX) for path in tmp.iterdir()} if tmp.is_dir() else set()
    for name in sorted(names):
        lock_path = tmp / (name + _LOCK_SUFFIX)
        if len(name) == 16 and not _is_held(lock_path):
            found += [path for path in (tmp / name, lock_path) if path.exists()]
    return found


def _is_held(lock_path: Path) -> bool:
    # Not `lock_file`, which would make the file.
    try:
        fd = os.open(lock_path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def sweep(tmp: Path) -> None:
    """Remove what dead owners left in ``tmp``."""
    for entry in sorted(os.listdir(tmp)):  # noqa: PTH208 - names are wanted, not paths
        name = entry.removesuffix(_LOCK_SUFFIX)
        if len(name) != 16:
            continue  # not ours: a file called just `.lock` must not stand for the whole directory
        lock_path = tmp / (name + _LOCK_SUFFIX)
        if entry == name and lock_path.exists():
            continue  # the lock's own entry in the listing decides about it
        fd = lock_file(lock_path, wait=False)
        if fd is None:
            continue
        try:
            shutil.rmtree(tmp / name, ignore_errors=True)
            lock_path.unlink(missing_ok=True)
        finally:
            os.close(fd)
