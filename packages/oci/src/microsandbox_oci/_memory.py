"""Documents that are in memory already, given to readers that expect a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from microsandbox_oci._blobs import Blob


def in_memory(data: bytes, name: str) -> Blob:
    """Return ``data`` as a blob."""
    return Blob(name, 0, len(data), partial(_opened, data))


@contextmanager
def _opened(data: bytes) -> Iterator[int]:
    fd = os.memfd_create("document", os.MFD_CLOEXEC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        yield fd
    finally:
        os.close(fd)
