"""Keeping an image's files while someone uses them: a shared lock inside the image's directory.

Removal and pruning need it exclusively, so the files of a running sandbox stay even if its image loses
its name. The lock lives in an open file description: a supervisor that inherits the descriptor keeps it
for as long as it lives, and the kernel releases it however the supervisor ends.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from microsandbox_oci._errors import ImageNotFound
from microsandbox_oci._files import store_errors
from microsandbox_oci._locks import lock_file
from microsandbox_oci._model import Image
from microsandbox_oci._paths import IN_USE

_ATTEMPTS = 3


def open_in_use_lock(image: Image) -> int:
    """Hold ``image`` against removal and return the descriptor that does; close it to let go.

    The descriptor is close-on-exec: name it in ``pass_fds`` to hand it to a child.

    Raises:
        ImageNotFound: the image was removed since it was looked up.
        StoreError: the lock cannot be opened.
    """
    with store_errors("locking an image", image.directory):
        fd = hold(image.directory)
    if fd is None:
        raise ImageNotFound(
            f"image {image.reference or image.digest} was removed", hint="load or pull it again"
        )
    return fd


def hold(directory: Path) -> int | None:
    """Take the shared lock of an image's directory; None if there is no such image."""
    try:
        return lock_file(directory / IN_USE, shared=True)
    except FileNotFoundError:
        return None


def is_in_use(directory: Path) -> bool:
    """Say whether someone holds the image now."""
    for _ in range(_ATTEMPTS):
        try:
            fd = lock_file(directory / IN_USE, wait=False)
        except FileNotFoundError:
            return False
        if fd is not None:
            os.close(fd)
            return False
        # A prune that judges the image has it exclusively for a moment: that is waited out, not a use.
        fd = hold(directory)
        if fd is None:
            return False
        os.close(fd)
    return True


@contextmanager
def held(directory: Path) -> Iterator[bool]:
    """Hold an image during the block; gives False if there is no such image."""
    fd = hold(directory)
    try:
        yield fd is not None
    finally:
        if fd is not None:
            os.close(fd)
