"""Writing an image's root file system as one tar: all layers applied, nothing of them left."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from typing import BinaryIO

from microsandbox_oci import _native
from microsandbox_oci._errors import ImageInvalid
from microsandbox_oci._files import store_errors
from microsandbox_oci._model import Image


def export_image(image: Image, out: BinaryIO) -> None:
    """Write the tree of ``image``, which the caller holds, to ``out``, a stream that need not be seekable.

    Raises:
        ImageInvalid: a file of the store is damaged.
        StoreError: a file of the store cannot be opened.
        OSError: ``out`` cannot be written.
    """

    def write(piece: bytes) -> None:
        rest = memoryview(piece)
        while rest:
            count = out.write(rest)
            if count is None:  # an unbuffered stream that does not block
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            rest = rest[count:]

    with ExitStack() as stack:
        fds = []
        with store_errors("reading an image", image.directory):
            for path, _ in image.extents:
                fds.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
                stack.callback(os.close, fds[-1])
        try:
            _native.export_tar(fds[0], fds[1:], write)
        except _native.LayerError as error:
            what = f"image {image.reference or image.digest}"
            raise ImageInvalid(
                f"{what} is damaged: {error}",
                blob=image.digest,
                hint="msb image verify --remove-damaged, then pull or load the image again",
            ) from error
