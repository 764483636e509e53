"""What a machine that lives on has in memory and on disk, copied while it stands still for a moment.

QEMU maps the memory of a machine from a template privately: what the guest has written is in pages of QEMU's
own, the rest is still the file's. `copy_memory` copies the file while the machine runs; while it is paused, a
`Capture` collects the pages, and whatever else is wanted of that moment, in host memory that was made ready
before, because that is several times faster than writing files; when the machine runs again, `Capture.write`
puts them where they belong.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from microsandbox_core.artifacts import copy_sparse
from microsandbox_core.errors import MachineFailed, Unsupported

_PAGE = 4096
_PIECE = 4 << 20  # bytes that are read at a time

# The highest byte of an entry of /proc/PID/pagemap: present, in swap, of a file (admin-guide/mm/pagemap).
_PRESENT, _SWAPPED, _FILE = 0x80, 0x40, 0x20
_WRITTEN = bytes(bool(byte & (_PRESENT | _SWAPPED)) and not byte & _FILE for byte in range(256))

_FICLONE = 0x4004_9409  # linux/fs.h
_MADV_POPULATE_WRITE = 23  # asm-generic/mman-common.h, since Linux 5.14

Run = tuple[int, int]
"""Offset and length of a piece of a file, in bytes."""

Read = Callable[[memoryview, int], int]
"""Fills a piece of memory from this place on; how much of it."""


class Capture:
    """Pieces of files and of a process's memory as they were at one moment."""

    def __init__(self, room: int = 0) -> None:
        """Make ready for so many bytes, which takes longer than filling them; more may come.

        Raises `OSError`.
        """
        self._store = os.memfd_create("msb-capture", os.MFD_CLOEXEC)
        self._pieces: list[tuple[Path, list[Run]]] = []
        self._size = 0
        self._ready: mmap.mmap | None = None
        if room:
            try:
                os.ftruncate(self._store, room)
                self._ready = mmap.mmap(self._store, room)
                _populate(self._ready)
            except BaseException:
                self.close()
                raise

    @property
    def size(self) -> int:
        """Bytes in it."""
        return self._size

    def add(self, read: Read, runs: Iterable[Run], target: Path) -> int:
        """Take what `read` gives for these places, for the same ones in the file `target`, which exists when
        they are written; how many bytes they are. Raises `OSError`."""
        kept = list(runs)
        before = self._size
        for start, length in kept:
            position, end = start, start + length
            while position < end:
                count = self._take(read, position, min(end - position, _PIECE))
                if count <= 0:
                    raise OSError(errno.EIO, f"{target.name} ends early")
                position += count
                self._size += count
        self._pieces.append((target, kept))
        return self._size - before

    def _take(self, read: Read, position: int, length: int) -> int:
        """Read some of these bytes behind what is there; how many."""
        if self._ready is not None and self._size + length <= len(self._ready):
            with memoryview(self._ready) as ready:
                return read(ready[self._size : self._size + length], position)
        piece = bytearray(length)
        count = read(memoryview(piece), position)
        return os.pwrite(self._store, piece[:count], self._size)

    def add_file(self, source: Path, target: Path) -> int:
        """Make `target`, which must not exist, a copy of `source`: at once, where the file system lets two
        files share their blocks, else when it is written. How many bytes had to be read. Raises `OSError`."""
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            copy = os.open(target, flags, 0o600)
            try:
                if _clone(descriptor, copy):
                    return 0
                os.ftruncate(copy, os.fstat(descriptor).st_size)
            finally:
                os.close(copy)
            read = lambda piece, position: os.preadv(descriptor, [piece], position)  # noqa: E731
            return self.add(read, _data(descriptor), target)
        finally:
            os.close(descriptor)

    def write(self) -> None:
        """Write everything to where it belongs. Raises `OSError`."""
        taken = 0
        for target, runs in self._pieces:
            file = os.open(target, os.O_WRONLY | os.O_CLOEXEC)
            try:
                for start, length in runs:
                    _transfer(self._store, taken, file, start, length)
                    taken += length
            finally:
                os.close(file)

    def close(self) -> None:
        """Forget it."""
        if self._ready is not None:
            self._ready.close()
        os.close(self._store)


def shares_blocks(source: Path, target: Path) -> bool:
    """Whether the file system lets a copy of `source` at `target`, which must not exist, share its blocks.

    Raises `OSError`.
    """
    descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        copy = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            return _clone(descriptor, copy)
        finally:
            os.close(copy)
            target.unlink()
    finally:
        os.close(descriptor)


def copy_memory(pid: int, size: int, target: Path) -> None:
    """Make the file that `add_memory` completes: a sparse copy of what the machine was started from.

    `pid` is the VMM's, `size` the machine's memory in bytes. Raises `OSError`.
    """
    found = _mapped_file(pid, size)
    if found is not None and not found[1]:
        copy_sparse(found[0], target)
        return
    # Its kernel was booted: all of its memory is its own.
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)


def add_memory(capture: Capture, pid: int, address: int, size: int, target: Path) -> None:
    """Take the pages that a machine has written to, for the file that `copy_memory` has made.

    `address` is where the VMM has the first byte of the machine's memory. Raises `Unsupported` where this
    host does not show or let be read what a child has in memory, `MachineFailed`.
    """
    runs = written(pid, address, size)
    try:
        capture.add(_reader(pid, address), runs, target)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOSYS):
            raise _refused(error) from error
        raise MachineFailed(f"the machine's memory could not be copied: {error.strerror}") from error


def written(pid: int, address: int, size: int) -> list[Run]:
    """What of a private mapping is not the file's any more, and all data of a shared one, by its place.

    Raises `Unsupported`.
    """
    try:
        found = _mapped_file(pid, size)
        if found is not None and found[1]:
            # Of a machine that went on when a template had been made of it. Nobody else has this memory.
            descriptor = os.open(found[0], os.O_RDONLY | os.O_CLOEXEC)
            try:
                return list(_data(descriptor))
            finally:
                os.close(descriptor)
        descriptor = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            entries = _read(descriptor, address // _PAGE * 8, size // _PAGE * 8)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _refused(error) from error
    runs = re.finditer(rb"\x01+", entries[7::8].translate(_WRITTEN))
    return [(run.start() * _PAGE, (run.end() - run.start()) * _PAGE) for run in runs]


def _reader(pid: int, address: int) -> Read:
    """Reads the memory of a process from `address` on (process_vm_readv(2)): /proc/PID/mem copies twice."""
    import ctypes

    call = ctypes.CDLL(None, use_errno=True).process_vm_readv
    call.restype = ctypes.c_ssize_t
    one = ctypes.c_ulong(1)

    def read(piece: memoryview, position: int) -> int:
        # struct iovec: where, and how many bytes.
        with piece:
            here = ctypes.addressof(ctypes.c_char.from_buffer(piece))
            ours = (ctypes.c_size_t * 2)(here, len(piece))
            theirs = (ctypes.c_size_t * 2)(address + position, len(piece))
            count = call(pid, ours, one, theirs, one, ctypes.c_ulong(0))
        if count < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        return int(count)

    return read


def _clone(source: int, target: int) -> bool:
    """Let `target` share the blocks of `source`, if the file system can."""
    import fcntl

    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


def _data(descriptor: int) -> Iterable[Run]:
    """The pieces of a sparse file that are not holes."""
    position = 0
    while True:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            return
        position = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, position - start


def _transfer(source: int, position: int, target: int, start: int, length: int) -> None:
    os.lseek(target, start, os.SEEK_SET)
    while length > 0:
        count = os.sendfile(target, source, position, length)
        if count == 0:
            raise OSError(errno.EIO, "the capture ends early")
        position, length = position + count, length - count


def _populate(memory: mmap.mmap) -> None:
    """Have pages where there are none yet, without keeping the program's other threads waiting."""
    import ctypes

    # Old kernels refuse: then they come one by one, when they are filled.
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    madvise = ctypes.CDLL(None).madvise
    madvise(ctypes.c_void_p(address), ctypes.c_size_t(len(memory)), _MADV_POPULATE_WRITE)


def _read(descriptor: int, position: int, size: int) -> bytes:
    found = bytearray()
    while len(found) < size:
        more = os.pread(descriptor, size - len(found), position + len(found))
        if not more:
            raise OSError(errno.EIO, "the list of pages ends early")
        found += more
    return bytes(found)


def _mapped_file(pid: int, size: int) -> tuple[Path, bool] | None:
    """The file of which a process maps so much in one piece, and whether it shares it with others."""
    mapped = {}
    for line in Path(f"/proc/{pid}/maps").read_bytes().splitlines():
        # address, permissions, offset, device, inode, path: proc_pid_maps(5)
        fields = line.split(maxsplit=5)
        start, _, end = fields[0].partition(b"-")
        if int(end, 16) - int(start, 16) == size:
            mapped[int(fields[4])] = fields[1].endswith(b"s")
    for name in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208 - names are what is wanted
        path = Path(f"/proc/{pid}/fd/{name}")
        try:
            found = path.stat()
        except FileNotFoundError:
            continue
        if found.st_size == size and found.st_ino in mapped:
            return path, mapped[found.st_ino]
    return None


def _refused(error: OSError) -> Unsupported:
    return Unsupported(f"this host does not let the machine's memory be read: {error.strerror}")
