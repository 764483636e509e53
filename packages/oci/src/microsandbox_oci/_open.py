"""Opening the source of a load: a path, a prefixed path, or a stream."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from microsandbox_oci._argument import (
    ArchiveForm,
    ArchivePath,
    LayoutPath,
    RootfsDirectory,
    classify_image_argument,
    classify_path,
)
from microsandbox_oci._docker_source import is_docker_archive, names_by_config, read_docker_archive
from microsandbox_oci._errors import ArchiveInvalid
from microsandbox_oci._layout_source import is_layout, read_layout
from microsandbox_oci._limits import Limits
from microsandbox_oci._paths import StorePaths
from microsandbox_oci._platform import Platform
from microsandbox_oci._progress import Phase, Progress, ProgressCallback
from microsandbox_oci._source import SourceImage
from microsandbox_oci._spool import is_compressed, spool
from microsandbox_oci._tree import ArchiveTree, DirectoryTree, Tree

Source = str | os.PathLike[str] | BinaryIO | ArchivePath | LayoutPath


class SourceOpener:
    """Opens sources for one store; ``work`` is where streams are spooled."""

    def __init__(
        self, paths: StorePaths, work: Path, limits: Limits, platform: Platform, progress: ProgressCallback
    ) -> None:
        self._paths = paths
        self._work = work
        self._limits = limits
        self._platform = platform
        self._progress = progress

    @contextmanager
    def open(self, source: Source) -> Iterator[list[SourceImage]]:
        """Give the source's images; their blobs can be read during the block.

        Raises:
            ArchiveError, ImageInvalid, StoreError and their subclasses.
        """
        found = _locate(source)
        if isinstance(found, LayoutPath):
            tree = DirectoryTree(found.path)
            yield read_layout(tree, self._limits, self._platform, image=found.image)
        elif isinstance(found, ArchivePath):
            with _open_archive(found.path) as stream, self._archive(stream, str(found.path)) as tree_of_file:
                yield self._read(tree_of_file, found.form, found.image)
        else:
            with self._archive(found, "the stream") as tree_of_stream:
                yield self._read(tree_of_stream, ArchiveForm.AUTO, None)

    def _read(self, tree: Tree, form: ArchiveForm, image: str | None) -> list[SourceImage]:
        # `docker save` since version 25 writes both forms into one archive. The layout is preferred even
        # for docker-archive: because only it has the manifest, so the image keeps its digest.
        if is_layout(tree):
            names = names_by_config(tree, self._limits)
            return read_layout(tree, self._limits, self._platform, image=image, extra_names=names)
        if form is not ArchiveForm.OCI and is_docker_archive(tree):
            return read_docker_archive(tree, self._limits, self._platform, image=image)
        if form is ArchiveForm.DOCKER:
            return read_docker_archive(tree, self._limits, self._platform, image=image)
        wanted = "an OCI archive" if form is ArchiveForm.OCI else "an image archive"
        raise ArchiveInvalid(
            f"{tree.name} is not {wanted}: it has neither index.json nor a usable manifest.json",
            hint="save it with `docker save` or as an OCI archive",
        )

    @contextmanager
    def _archive(self, stream: BinaryIO, name: str) -> Iterator[ArchiveTree]:
        with ExitStack() as stack:
            try:
                fd = _seekable_plain(stream)
                if fd is None:
                    fd = spool(
                        stream, self._paths, self._work, self._limits, lambda done: self._reading(name, done)
                    )
                    stack.callback(os.close, fd)
                tree = ArchiveTree(fd, name, max_entries=self._limits.archive_entries)
            except ArchiveInvalid as error:
                raise ArchiveInvalid(f"{name}: {error}", hint=error.hint) from error
            yield tree

    def _reading(self, name: str, done: int) -> None:
        self._progress(Progress(Phase.READING, name, done))


def _locate(source: Source) -> ArchivePath | LayoutPath | BinaryIO:
    if isinstance(source, ArchivePath | LayoutPath):
        return source
    if not isinstance(source, str | os.PathLike):
        return source
    found = _from_text(source) if isinstance(source, str) else classify_path(Path(source))
    if isinstance(found, RootfsDirectory):
        raise ArchiveInvalid(
            f"{str(found.path)!r} is a directory without an image layout",
            hint="a root file system directory is packed, not loaded",
        )
    return found


def _from_text(text: str) -> ArchivePath | LayoutPath | RootfsDirectory:
    scheme = text.partition(":")[0]
    if scheme in ("oci", "oci-archive", "docker-archive") and ":" in text:
        found = classify_image_argument(text)
        if isinstance(found, ArchivePath | LayoutPath):
            return found
    if not text:
        raise ArchiveInvalid("the path of the archive is empty", hint="name a file, or an OCI layout")
    # The source of a load is always a place: `busybox.tar` is a file here, not a reference.
    return classify_path(Path(os.path.expanduser(text)))  # noqa: PTH111 - raises for an unknown user


@contextmanager
def _open_archive(path: Path) -> Iterator[BinaryIO]:
    try:
        stream = path.open("rb", buffering=0)
    except OSError as error:
        raise ArchiveInvalid(f"cannot open {str(path)!r}: {error.strerror}") from error
    with stream:
        yield stream


def _seekable_plain(stream: BinaryIO) -> int | None:
    """Return the stream's descriptor if it is an uncompressed regular file read from its beginning."""
    try:
        fd = stream.fileno()
        at_start = stat.S_ISREG(os.fstat(fd).st_mode) and stream.tell() == 0
    except (OSError, AttributeError, ValueError):
        return None
    return fd if at_start and not is_compressed(os.pread(fd, 4, 0)) else None
