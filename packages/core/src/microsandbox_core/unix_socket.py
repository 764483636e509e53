"""Unix sockets whose path may be longer than the 107 bytes that fit into `sockaddr_un` (unix(7))."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

MAX_ADDRESS: Final = 107
"""Bytes of a path that the kernel takes, without the closing NUL."""


@contextmanager
def _address(path: str | bytes | os.PathLike[str]) -> Iterator[bytes]:
    """An address that means `path`: a long one is reached through its directory's descriptor."""
    whole = os.fsencode(path)
    if b"\0" in whole:
        raise ValueError("a socket path cannot contain a NUL byte")
    if len(whole) <= MAX_ADDRESS:
        yield whole
        return
    directory, name = os.path.split(whole)
    fd = os.open(directory or b".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        short = b"/proc/self/fd/%d/%s" % (fd, name)
        if len(short) > MAX_ADDRESS:
            raise OSError(f"the name of the socket is longer than {MAX_ADDRESS - 20} bytes: {name!r}")
        yield short
    finally:
        os.close(fd)


def listen_unix(path: str | bytes | os.PathLike[str], *, backlog: int = 128) -> socket.socket:
    """A non-blocking listening socket at `path`, mode 0600. Raises `OSError`, `ValueError`.

    A file that is there already is an error (`EADDRINUSE`): whether it is stale is the caller's to know.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        with _address(path) as address:
            # The mode of the file is that of the socket's own inode when it is bound: there is no moment
            # at which others could connect, and the process's umask, which all threads share, stays.
            os.fchmod(listener.fileno(), 0o600)
            listener.bind(address)
        listener.listen(backlog)
    except (OSError, ValueError):
        listener.close()
        raise
    return listener


def connect_unix(path: str | bytes | os.PathLike[str]) -> socket.socket:
    """A non-blocking socket connected to `path`.

    Raises `OSError`, `ValueError`; `BlockingIOError` means that the listener's backlog is full: try again.
    """
    connection = socket.socket(
        socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    )
    try:
        with _address(path) as address:
            connection.connect(address)
    except (OSError, ValueError):
        connection.close()
        raise
    return connection
