"""File operations of the store: durable publication by rename, directories nobody else can read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from microsandbox_oci._errors import store_error

PRIVATE_DIR = 0o700
PRIVATE_FILE = 0o600
FINAL_FILE = 0o444
_WRITE_BACK_SECONDS = 0.1


@contextmanager
def store_errors(doing: str, path: Path) -> Iterator[None]:
    """Turn an `OSError` of the block into the `StoreError` that says what was being done where."""
    try:
        yield
    except OSError as error:
        raise store_error(error, doing=doing, path=path) from error


def make_directory(path: Path) -> None:
    """Create ``path`` and what is missing above it, each 0700 whatever the umask."""
    missing = []
    current = path
    while not current.exists():
        missing.append(current)
        current = current.parent
    for directory in reversed(missing):
        try:
            directory.mkdir(mode=PRIVATE_DIR)
        except FileExistsError:
            if not directory.is_dir():
                raise
    if not path.is_dir():
        raise NotADirectoryError(20, os.strerror(20), str(path))


def create_file(path: Path) -> int:
    """Create a file that must not exist yet and return it open for reading and writing."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, PRIVATE_FILE)


def seal(fd: int) -> None:
    """Make a finished file read-only and durable; the next step is its rename."""
    os.fchmod(fd, FINAL_FILE)
    os.fsync(fd)


def write_sealed(path: Path, data: bytes) -> None:
    """Write a new file at once, read-only and durable."""
    fd = create_file(path)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        seal(fd)
    finally:
        os.close(fd)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable: without it a rename may be lost though the file is not."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def written_back(fd: int) -> Iterator[None]:
    """Have what is written to a file during the block go to the disk meanwhile: the sync at its end, which
    seals it, then has little to wait for.

    Raises:
        OSError: the disk failed; the kernel tells that only once.
    """
    import threading

    ended = threading.Event()
    failure: list[OSError] = []

    def write_back() -> None:
        while not failure and not ended.wait(_WRITE_BACK_SECONDS):
            try:
                os.fdatasync(fd)
            except OSError as error:
                failure.append(error)

    thread = threading.Thread(target=write_back, name="microsandbox-oci-sync", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if failure:
        raise failure[0]


def publish(source: Path, target: Path) -> None:
    """Rename a sealed file onto its final name, durably."""
    source.rename(target)
    sync_directory(target.parent)
