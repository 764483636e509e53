"""A layer that comes from a registry: kept while it passes through to the converter.

The bytes go to ``downloads/<digest>`` and, at the same time, through a pipe to the converter, which hashes
them. A transfer that is cut off leaves the file, and the next one goes on behind it. When the converter has
found the digest right, the file moves to ``blobs/``, from where the image can be saved again as it was.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from microsandbox_oci._digest import PREFIX
from microsandbox_oci._errors import LimitExceeded
from microsandbox_oci._files import FINAL_FILE, PRIVATE_FILE, store_errors
from microsandbox_oci._locks import locked
from microsandbox_oci._manifest import Descriptor
from microsandbox_oci._paths import StorePaths
from microsandbox_oci._registry import Repository

_CHUNK = 1 << 20
_PIPE = 1 << 20


class Cancelled(Exception):
    """Another layer of the same pull has failed, or the caller was interrupted."""


@dataclass(frozen=True, slots=True)
class RemoteBlob:
    """The layer ``descriptor`` of ``repository``. ``report`` gets the number of bytes that have arrived."""

    repository: Repository
    descriptor: Descriptor
    paths: StorePaths
    stop: threading.Event
    report: Callable[[int], None] = field(default=lambda _: None)

    @property
    def size(self) -> int:
        """Bytes, as the manifest says."""
        return self.descriptor.size

    @property
    def remote(self) -> bool:
        """True: reading costs a transfer."""
        return True

    @contextmanager
    def stream(self) -> Iterator[int]:
        """Give a descriptor that delivers the bytes as they arrive; a failed transfer is raised at the end.

        Raises:
            RegistryError, StoreError.
        """
        digest = self.descriptor.digest
        with locked(self.paths.download_lock(digest), unlink=True, check=self.check):
            path = self.paths.download(digest)
            kept = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, PRIVATE_FILE)
            try:
                yield from self._through(kept)
            finally:
                os.close(kept)

    def _through(self, kept: int) -> Iterator[int]:
        reader, writer = os.pipe()
        with suppress(OSError):  # fewer switches between the two threads; refused above a user's limit
            import fcntl

            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _PIPE)
        failure: list[BaseException] = []

        def fill() -> None:
            try:
                self._fill(kept, writer)
            except BrokenPipeError:
                pass  # the converter has given up and says why itself
            except BaseException as error:  # noqa: BLE001 - raised again where the bytes are wanted
                failure.append(error)
            finally:
                os.close(writer)

        thread = threading.Thread(target=fill, name="microsandbox-oci-fetch", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            os.close(writer)
            os.close(reader)
            raise
        try:
            yield reader
        except BaseException as error:
            os.close(reader)
            thread.join()
            # A transfer that ends early looks like a damaged layer to the converter.
            if failure:
                raise failure[0] from error
            raise
        os.close(reader)
        thread.join()
        if failure:
            raise failure[0]

    def _fill(self, kept: int, writer: int) -> None:
        size = self.descriptor.size
        arrived = os.fstat(kept).st_size
        if arrived > size:
            os.ftruncate(kept, 0)
            arrived = 0
        position = 0
        while position < arrived:
            chunk = os.pread(kept, min(_CHUNK, arrived - position), position)
            if not chunk:
                break  # somebody has cut the file: the rest is fetched
            position += _write_all(writer, chunk)
            self.check()
        self.report(arrived)

        def write(chunk: bytes) -> None:
            nonlocal position
            self.check()
            with store_errors("keeping a layer", self.paths.root):
                view = memoryview(chunk)
                while view:
                    done = os.pwrite(kept, view, position)
                    view, position = view[done:], position + done
            _write_all(writer, chunk)
            self.report(position)

        if position < size:
            self.repository.blob(self.descriptor.digest, size, position, write)

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Keep what arrives from those who remove what transfers have left, until it is kept or discarded."""
        with locked(self.paths.keep_lock(self.descriptor.digest), unlink=True, check=self.check):
            yield

    def fetch(self) -> str:
        """Fetch the bytes without converting them and return their digest."""
        with self.stream() as reader:
            while os.read(reader, _CHUNK):
                pass
        return self.digest()

    def check(self) -> None:
        """Raise `Cancelled` if the pull is to end."""
        if self.stop.is_set():
            raise Cancelled

    def digest(self, progress: Callable[[int], None] | None = None) -> str:
        """Hash what has arrived."""
        from hashlib import sha256

        state, position = sha256(), 0
        with suppress(FileNotFoundError):
            fd = os.open(self.paths.download(self.descriptor.digest), os.O_RDONLY | os.O_CLOEXEC)
            try:
                while chunk := os.pread(fd, _CHUNK, position):
                    state.update(chunk)
                    position += len(chunk)
                    if progress is not None:
                        progress(position)
            finally:
                os.close(fd)
        return PREFIX + state.hexdigest()

    def arrived(self) -> int:
        """Bytes that an earlier transfer has left."""
        try:
            return self.paths.download(self.descriptor.digest).stat().st_size
        except FileNotFoundError:
            return 0

    def keep(self, paths: StorePaths, digest: str, work: Path) -> None:
        """Move what has arrived to its place in the store."""
        # Not synced: whoever saves it hashes it again, and what a power cut damages is fetched again.
        path = paths.download(digest)
        with suppress(FileNotFoundError):
            # In this order: what cannot be written could not be gone on with.
            path.rename(paths.blob(digest))
            paths.blob(digest).chmod(FINAL_FILE)

    def discard(self) -> None:
        """Delete what has arrived."""
        self.paths.download(self.descriptor.digest).unlink(missing_ok=True)

    def elsewhere(self) -> bool:
        """Ask no mirror any more that has given some of the bytes; say whether there was one."""
        return self.repository.distrust(self.descriptor.digest)


def check_size(descriptor: Descriptor, limit: int, what: str) -> None:
    """Refuse a layer that says it is larger than a layer may be even when it is not compressed.

    Raises:
        LimitExceeded.
    """
    if descriptor.size > limit:
        raise LimitExceeded(
            f"{what} has {descriptor.size} bytes, the limit is {limit}",
            blob=what,
            expected=str(limit),
            seen=str(descriptor.size),
        )


def _write_all(fd: int, data: bytes) -> int:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    return len(data)
