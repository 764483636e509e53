"""Bytes of a source: a range of a file that can be read whole, hashed, or streamed to the converter."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from microsandbox_oci._digest import PREFIX, digest_of
from microsandbox_oci._errors import ArchiveInvalid, DigestMismatch, LimitExceeded, SizeMismatch
from microsandbox_oci._files import FINAL_FILE, create_file
from microsandbox_oci._paths import StorePaths

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Blob:
    """``size`` bytes from ``offset`` of the file that ``opener`` opens for the time of a block."""

    name: str
    offset: int
    size: int
    opener: Callable[[], AbstractContextManager[int]]

    @property
    def remote(self) -> bool:
        """False: the bytes are in a file."""
        return False

    def arrived(self) -> int:
        """All of them."""
        return self.size

    def keep(self, paths: StorePaths, digest: str, work: Path) -> None:
        """Copy the bytes into the store, sharing them where its file system can."""
        target = paths.blob(digest)
        if target.exists():
            return
        temporary = work / f"kept-{target.name}"
        out = create_file(temporary)
        try:
            with ExitStack() as stack:
                with self._reading():
                    fd = stack.enter_context(self.opener())
                _copy(fd, self.offset, self.size, out)
            os.fchmod(out, FINAL_FILE)
            # Not synced: whoever saves it hashes it, and what a power cut damages can be loaded again.
            temporary.rename(target)
        finally:
            os.close(out)
            temporary.unlink(missing_ok=True)

    def keeping(self) -> AbstractContextManager[None]:
        """Nothing: the bytes are the source's."""
        return nullcontext()

    def check(self) -> None:
        """Nothing: who loads waits on the thread that is interrupted."""

    def discard(self) -> None:
        """Nothing: the source keeps its bytes."""

    def elsewhere(self) -> bool:
        """False: there is one place."""
        return False

    def read(self, what: str, *, limit: int) -> bytes:
        """Return all bytes.

        Raises:
            LimitExceeded: more than ``limit`` bytes (O11: a manifest of 1 GB).
            SizeMismatch: the file ends early.
        """
        if self.size > limit:
            raise LimitExceeded(
                f"{what} has {self.size} bytes, the limit is {limit}",
                blob=what,
                expected=str(limit),
                seen=str(self.size),
            )
        with self._reading(), self.opener() as fd:
            data = b"".join(_chunks(fd, self.offset, self.size))
        if len(data) != self.size:
            raise SizeMismatch(what, expected=self.size, seen=len(data))
        return data

    def read_verified(self, what: str, *, digest: str, size: int | None, limit: int) -> bytes:
        """Return all bytes after comparing size and digest.

        Raises:
            DigestMismatch, SizeMismatch, LimitExceeded.
        """
        if size is not None and size != self.size:
            raise SizeMismatch(what, expected=size, seen=self.size)
        data = self.read(what, limit=limit)
        if (seen := digest_of(data)) != digest:
            raise DigestMismatch(what, expected=digest, seen=seen)
        return data

    def head(self, size: int) -> bytes:
        """Return the first ``size`` bytes, fewer if there are fewer."""
        with self._reading(), self.opener() as fd:
            return os.pread(fd, min(size, self.size), self.offset)

    def digest(self, progress: Callable[[int], None] | None = None) -> str:
        """Hash all bytes; ``progress`` gets the number of bytes hashed so far."""
        from hashlib import sha256

        state, done = sha256(), 0
        with ExitStack() as stack:
            with self._reading():
                chunks = _chunks(stack.enter_context(self.opener()), self.offset, self.size)
            while True:
                with self._reading():
                    chunk = next(chunks, b"")
                if not chunk:
                    break
                state.update(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done)
        return PREFIX + state.hexdigest()

    @contextmanager
    def stream(self) -> Iterator[int]:
        """Give a descriptor that delivers exactly these bytes and then ends.

        A whole file is given as itself. A part of one comes through a pipe that a thread fills, because
        the converter reads to the end and must not see what follows in the archive.
        """
        with ExitStack() as stack:
            with self._reading():
                fd = stack.enter_context(self.opener())
            if self.offset == 0 and os.fstat(fd).st_size == self.size and os.lseek(fd, 0, os.SEEK_CUR) == 0:
                yield fd
                return
            with _piped(fd, self.offset, self.size, self.name) as reader:
                yield reader

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Tell trouble with the source from trouble with the store, which is the caller's to report."""
        try:
            yield
        except OSError as error:
            raise ArchiveInvalid(f"cannot read {self.name}: {error.strerror or error}") from error


@contextmanager
def _piped(fd: int, offset: int, size: int, name: str) -> Iterator[int]:
    reader, writer = os.pipe()
    failure: list[OSError] = []

    def fill() -> None:
        try:
            for chunk in _chunks(fd, offset, size):
                view = memoryview(chunk)
                while view:
                    view = view[os.write(writer, view) :]
        except BrokenPipeError:
            pass  # the converter has given up and says why itself
        except OSError as error:
            failure.append(error)
        finally:
            os.close(writer)

    thread = threading.Thread(target=fill, name="microsandbox-oci-feed", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        os.close(writer)
        os.close(reader)
        raise
    try:
        yield reader
    finally:
        os.close(reader)
        thread.join()
        if failure:
            raise ArchiveInvalid(f"cannot read {name}: {failure[0].strerror}") from failure[0]


def _copy(fd: int, offset: int, size: int, out: int) -> None:
    end = offset + size
    while offset < end:
        try:
            done = os.copy_file_range(fd, out, end - offset, offset)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            done = 0
        if not done:
            break
        offset += done
    for chunk in _chunks(fd, offset, end - offset):  # where the kernel cannot do it
        view = memoryview(chunk)
        while view:
            view = view[os.write(out, view) :]


def _chunks(fd: int, offset: int, size: int) -> Iterator[bytes]:
    end = offset + size
    while offset < end:
        chunk = os.pread(fd, min(_CHUNK, end - offset), offset)
        if not chunk:
            return
        offset += len(chunk)
        yield chunk
