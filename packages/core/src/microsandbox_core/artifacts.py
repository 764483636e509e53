"""Files derived once and kept: published whole, checked before every use."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from microsandbox_core.errors import StorageError


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    import hashlib  # not for a start: see `digests`

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity(path: Path) -> str:
    """What changes when a file is replaced or written to: device, inode, size, both times.

    The change time cannot be set by a program, so a file with the identity it had when it was
    hashed still has the bytes that were hashed (short of a broken disk).
    """
    found = path.stat()
    return f"{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}"


def publish(path: Path, content: bytes, *, mode: int = 0o444) -> None:
    """Make `path` appear whole or not at all: temporary file, fsync, rename.

    Raises `StorageError`; nothing is left behind then.
    """
    temporary = temporary_for(path)
    prepare(path.parent)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError as error:
        raise StorageError.from_os("write", path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


class Stamp:
    """Remembers that a file was found good, so that it need not be hashed at every start.

    The stamp lies beside the file and holds the digest and the `identity` of the moment it was
    checked. `holds()` compares identities, and hashes the file again when they differ.
    """

    def __init__(self, path: Path, digest: str) -> None:
        self.path = path
        self.digest = digest
        self._stamp = path.with_name(path.name + ".checked")

    def holds(self) -> bool:
        """Whether the file is there and has the digest it should have."""
        try:
            seen = identity(self.path)
        except OSError:
            return False
        expected = f"{self.digest} {seen}\n"
        try:
            if self._stamp.read_text() == expected:
                return True
        except (OSError, UnicodeDecodeError):
            pass  # no stamp, or not one: the digest decides
        if file_digest(self.path) != self.digest:
            return False
        self.write()
        return True

    def write(self) -> None:
        """Record that the file has just been verified."""
        content = f"{self.digest} {identity(self.path)}\n".encode()
        publish(self._stamp, content, mode=0o600)

    def discard(self) -> None:
        """Remove the file and its stamp."""
        self.path.unlink(missing_ok=True)
        self._stamp.unlink(missing_ok=True)


def prepare(directory: Path) -> None:
    """Make a directory of the cache, 0700, and remove what killed writers left. Raises `StorageError`."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        sweep(directory)
    except OSError as error:
        raise StorageError.from_os("create", directory, error) from error


def temporary_for(path: Path) -> Path:
    """A name beside `path` for writing it, which `sweep` recognises when the writer is gone."""
    return path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")


def sweep(directory: Path) -> None:
    """Remove what writers that were killed in the middle left behind in `directory`."""
    for leftover in leftovers(directory):
        remove(leftover)


def leftovers(directory: Path) -> list[Path]:
    """What `sweep` would remove. Temporary files and directories are named `.NAME.PID-RANDOM.tmp`."""
    found = []
    for path in sorted(directory.glob(".*.tmp")):
        writer = path.name.rsplit(".", 2)[1].partition("-")[0]
        if writer.isdigit() and not _lives(writer):
            found.append(path)
    return found


def _lives(pid: str) -> bool:
    """Whether there is such a process, and not only the entry of one that nobody has reaped yet."""
    try:
        stat = Path("/proc", pid, "stat").read_bytes()
    except OSError:
        return False
    # The name, in parentheses, may contain anything.
    return stat.rpartition(b")")[2].split()[:1] not in ([b"Z"], [b"X"])


def copy_sparse(source: Path, target: Path) -> None:
    """Copy the data of a sparse file and leave its holes holes; `target` must not exist. Raises `OSError`."""
    with source.open("rb") as reader:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as writer:
            copy_range(reader.fileno(), writer.fileno())


def copy_range(source: int, target: int) -> None:
    """`copy_sparse` from one open file into another, which is empty. Raises `OSError`."""
    os.ftruncate(target, os.fstat(source).st_size)
    for start, end in _data(source):
        position = start
        while position < end:
            moved = os.copy_file_range(source, target, end - position, position, position)
            position += _more_than_nothing(moved)


def copy_upper(source: Path, target: Path) -> None:
    """`copy_sparse`, of which all or nothing is there: whoever is killed at it leaves no upper but a file
    that the next copy removes. Raises `OSError`."""
    if target.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    copy = target.with_name(f"{target.name}.new")
    try:
        copy.unlink(missing_ok=True)
        copy_sparse(source, copy)
        copy.rename(target)
    except BaseException:
        copy.unlink(missing_ok=True)
        raise


def copy_data(source: int, target: int) -> None:
    """The same from one open file into another of its length that has no data yet, where one of them is a
    memory file: between file systems there is no `copy_file_range`. Raises `OSError`."""
    for start, end in _data(source):
        os.lseek(target, start, os.SEEK_SET)
        position = start
        while position < end:
            position += _more_than_nothing(os.sendfile(target, source, position, end - position))


def _data(file: int) -> Iterator[tuple[int, int]]:
    """Where a sparse file has data: begin and end."""
    end = 0
    while True:
        try:
            start = os.lseek(file, end, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            return
        end = os.lseek(file, start, os.SEEK_HOLE)
        yield start, end


def _more_than_nothing(moved: int) -> int:
    if moved == 0:
        raise OSError(errno.EIO, "the file became shorter while it was copied")
    return moved


def remove(path: Path) -> None:
    """Delete a file, or a directory of files; what is gone already is no error."""
    try:
        if path.is_dir() and not path.is_symlink():
            for file in path.iterdir():
                file.unlink(missing_ok=True)
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        pass  # another process removes the same
