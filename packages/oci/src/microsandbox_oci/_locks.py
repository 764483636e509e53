"""Kernel-held locks: ``flock`` on small files, released by the kernel when a process dies in any way."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from microsandbox_oci._files import PRIVATE_FILE

_PAUSE = 0.05  # seconds between two looks of who may have to give up waiting


def lock_file(path: Path, *, shared: bool = False, wait: bool = True) -> int | None:
    """Lock ``path``, created if need be, and return the descriptor that holds the lock; closing it releases.

    Returns None if ``wait`` is false and the lock is held in a conflicting way. Lock files may be unlinked
    by whoever holds them exclusively: a descriptor whose file has lost its name locks nothing anyone else
    can see, so that case starts over.
    """
    kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    # Read-only is enough for flock, and works in a store on a read-only mount.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_CREAT
    while True:
        fd = os.open(path, flags, PRIVATE_FILE)
        try:
            fcntl.flock(fd, kind)
            if _same_file(fd, path):
                held, fd = fd, -1
                return held
        except BlockingIOError:
            return None
        finally:
            if fd != -1:
                os.close(fd)


@contextmanager
def locked(
    path: Path, *, shared: bool = False, unlink: bool = False, check: Callable[[], None] | None = None
) -> Iterator[None]:
    """Hold a lock during the block, waiting for it as long as it takes; ``unlink`` removes its file then.

    ``check`` is for threads, which no signal wakes: it is called again and again meanwhile, and what it
    raises ends the wait.
    """
    fd = lock_file(path, shared=shared, wait=check is None)
    while fd is None and check is not None:
        check()
        time.sleep(_PAUSE)
        fd = lock_file(path, shared=shared, wait=False)
    try:
        yield
    finally:
        if fd is not None:
            if unlink:
                path.unlink(missing_ok=True)
            os.close(fd)


def _same_file(fd: int, path: Path) -> bool:
    try:
        named = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    held = os.fstat(fd)
    return (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)
