"""The image store: what is in it, how it gets in, how it goes.

Looking an image up is on the path of every sandbox start, so this module imports nothing that only loading
needs; those parts are imported where they are called.
"""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from microsandbox_oci._digest import is_digest
from microsandbox_oci._errors import ImageError, ImageInUse, ImageInvalid, ImageNotFound
from microsandbox_oci._files import store_errors
from microsandbox_oci._model import Image
from microsandbox_oci._paths import StorePaths
from microsandbox_oci._records import named, read_image, read_ref
from microsandbox_oci._reference import Reference

if TYPE_CHECKING:
    from microsandbox_oci._limits import Limits
    from microsandbox_oci._open import Source
    from microsandbox_oci._platform import Platform
    from microsandbox_oci._progress import Progress, ProgressCallback, Removed

DamagedCallback = Callable[[Reference | None, ImageError], None]


class ImageStore:
    """A directory of images that any number of processes may use at once.

    Args:
        root: the store's directory; created, 0700, when something is first stored.
        limits: what is accepted; see `Limits`.
        platform: which of a multi-platform image's variants is taken; this machine's by default.
    """

    def __init__(
        self, root: str | os.PathLike[str], *, limits: Limits | None = None, platform: Platform | None = None
    ) -> None:
        self._paths = StorePaths(Path(root))
        self._limits = limits
        self._platform = platform

    @property
    def root(self) -> Path:
        """The store's directory."""
        return self._paths.root

    @property
    def limits(self) -> Limits:
        """What the store accepts."""
        from microsandbox_oci._limits import Limits

        return self._limits or Limits()

    @property
    def platform(self) -> Platform:
        """The platform whose images are taken."""
        from microsandbox_oci._platform import Platform

        return self._platform or Platform.host()

    def get(self, image: str | Reference) -> Image:
        """Return the image called ``image``: a reference in any spelling, or a manifest digest.

        Reads two small files and looks at the sizes of the image's others.

        Raises:
            ReferenceInvalid: ``image`` is neither a reference nor a digest.
            ImageNotFound: the store has no such image.
            ImageInvalid: a file of it is missing or damaged; loading the image again repairs it.
            StoreError: the store cannot be read.
        """
        reference, digest = self._resolve(image)
        with store_errors("looking up an image", self.root):
            found = read_image(self._paths, digest)
        if found is None:
            raise _not_found(image)
        return named(found, reference)

    def list(self, *, on_damaged: DamagedCallback | None = None) -> list[Image]:
        """Return the store's images, one per reference and one for each that has none, sorted by name.

        Packed directories are not listed. Damaged images are left out and handed to ``on_damaged`` with
        their reference, if they have one.

        Raises:
            StoreError: the store cannot be read.
        """
        from microsandbox_oci._listing import list_images

        with store_errors("listing images", self.root):
            return list_images(self._paths, on_damaged)

    def load(
        self,
        source: Source,
        *,
        tag: str | Reference | None = None,
        progress: ProgressCallback | None = None,
    ) -> builtins.list[Image]:
        """Load every image of an archive or layout, or none if one of them is bad.

        Args:
            source: ``docker-archive:PATH[:NAME]``, ``oci-archive:PATH[:NAME]``, ``oci:DIR[:NAME]``, the path
                of a tar file (plain, gzip or zstd) or layout directory, or a binary file object.
            tag: the name to give instead of those the source gives; the source must then have one image.
            progress: called with each `Progress`.

        Returns:
            One image per name; an image that the source does not name has no reference.

        Raises:
            ArchiveError: the source is missing, not an image archive, or damaged.
            ImageInvalid: digests, sizes, limits or the platform are not as they must be.
            ReferenceInvalid: ``tag`` or a name in the archive.
            StoreError: the store is full or not writable.
        """
        from microsandbox_oci._load import check_name, load_images
        from microsandbox_oci._open import SourceOpener

        name = None if tag is None else check_name(_parsed(tag))
        with _reporting(progress) as report, self._working() as work:
            opener = SourceOpener(self._paths, work, self.limits, self.platform, report)
            with opener.open(source) as images:
                return load_images(self._paths, images, name, work, self.limits, report)

    def pack_rootfs(
        self, directory: str | os.PathLike[str], *, progress: ProgressCallback | None = None
    ) -> Image:
        """Return a root file system directory as an image, packed again only if it changed.

        Ownership, modes, times and extended attributes are kept as this process sees them. The image has
        no reference; its configuration has only a default PATH. An earlier pack of the same directory is
        deleted unless a sandbox uses it.

        Raises:
            ArchiveError: the directory is missing, unreadable, or changes while it is read.
            LimitExceeded: it is larger than the limits.
            StoreError: the store is full or not writable.
        """
        from microsandbox_oci._garbage import collect
        from microsandbox_oci._locks import locked
        from microsandbox_oci._packed import read_packed
        from microsandbox_oci._rootfs import cached_pack, fingerprint, pack

        path = Path(os.path.realpath(directory))
        found = cached_pack(self._paths, path, fingerprint(path))
        if found is not None:
            return found
        with (
            _reporting(progress) as report,
            self._working() as work,
            locked(self._paths.pack_lock(str(path)), unlink=True),
        ):
            # Another process may have packed it while this one waited.
            now = fingerprint(path)
            found = cached_pack(self._paths, path, now)
            if found is not None:
                return found
            try:
                before = read_packed(self._paths.packed(str(path)))
            except ImageInvalid:
                before = None
            held = pack(self._paths, path, now, work, self.limits, self.platform, report)
            os.close(held.lock)
            if before is not None and before.digest != held.image.digest:
                with store_errors("removing an image", self.root):
                    collect(self._paths, work, images=[before.digest])
            return held.image

    def tag(self, image: str | Reference, target: str | Reference) -> Image:
        """Give an image a further name, taking it from the image that had it; return it under that name.

        Raises:
            ImageNotFound, ImageInvalid, ReferenceInvalid, StoreError.
        """
        from microsandbox_oci._in_use import held
        from microsandbox_oci._load import check_name, write_refs

        name = check_name(_parsed(target))
        found = self.get(image)
        with self._working() as work, held(found.directory) as there:
            if not there:
                raise _not_found(image)
            write_refs(self._paths, work, [(name, found.digest)])
        return replace(found, reference=name)

    def remove(self, image: str | Reference, *, force: bool = False) -> Removed:
        """Remove a name, or with a digest all names of it, and the image once it has none left.

        With ``force`` an image in use loses its names; its files stay until a later `prune`.

        Raises:
            ImageNotFound, ReferenceInvalid, StoreError.
            ImageInUse: a running sandbox holds the image and ``force`` is not set.
        """
        from microsandbox_oci._garbage import collect
        from microsandbox_oci._in_use import is_in_use
        from microsandbox_oci._listing import names_of

        reference, digest = self._resolve(image)
        with self._working() as work, store_errors("removing an image", self.root):
            names = names_of(self._paths, digest)
            doomed = names if reference is None else [name for name in names if name == reference]
            if not doomed and not self._paths.image(digest).exists():
                raise _not_found(image)
            if len(doomed) == len(names) and not force and is_in_use(self._paths.image(digest)):
                raise ImageInUse(
                    f"image {image} is in use by a running sandbox",
                    hint="stop the sandbox first, or force the removal: its files then go when it ends",
                )
            for name in doomed:
                self._paths.ref(name).unlink(missing_ok=True)
            return collect(self._paths, work, images=[digest])

    def prune(self, *, dry_run: bool = False) -> Removed:
        """Delete images without a name, packs of directories that are gone, and layers no image needs.

        What a running sandbox or another process's load holds stays. With ``dry_run`` nothing is deleted.

        Raises:
            StoreError: the store cannot be read or written.
        """
        from microsandbox_oci._garbage import collect
        from microsandbox_oci._listing import drop_stale_packs

        with self._working() as work, store_errors("pruning", self.root):
            if not dry_run:
                drop_stale_packs(self._paths)
            return collect(self._paths, work, dry_run=dry_run)

    def leftovers(self) -> builtins.list[Path]:
        """Return the temporary files and directories whose makers were killed. Changes nothing.

        Raises:
            StoreError: the store cannot be read.
        """
        from microsandbox_oci._workspace import abandoned

        with store_errors("looking for leftovers", self.root):
            return abandoned(self._paths.tmp)

    def sweep(self) -> None:
        """Delete what `leftovers` finds; whatever changes the store does so first as well.

        Raises:
            StoreError: the store cannot be written.
        """
        from microsandbox_oci._workspace import sweep

        with store_errors("removing leftovers", self.root):
            if self._paths.tmp.is_dir():
                sweep(self._paths.tmp)

    def _resolve(self, image: str | Reference) -> tuple[Reference | None, str]:
        """Return the reference, unless ``image`` is a bare digest, and the manifest digest it stands for."""
        if isinstance(image, str) and is_digest(image):
            return None, image
        reference = _parsed(image)
        if reference.digest is not None:
            return reference, reference.digest
        with store_errors("looking up an image", self.root):
            record = read_ref(self._paths.ref(reference))
        if record is None:
            raise _not_found(image)
        return reference, record[1]

    @contextmanager
    def _working(self) -> Iterator[Path]:
        """Give a private temporary directory in the store, after clearing what dead processes left."""
        from microsandbox_oci._workspace import sweep, workspace

        with ExitStack() as stack:
            with store_errors("opening the store", self.root):
                self._paths.prepare()
                sweep(self._paths.tmp)
                work = stack.enter_context(workspace(self._paths.tmp))
            # Where a more exact error is possible it was raised deeper down; none leaves as an OSError.
            with store_errors("working", self.root):
                yield work


def _not_found(image: str | Reference) -> ImageNotFound:
    return ImageNotFound(f"image {str(image)!r} is not in the store", hint="load or pull it first")


def _parsed(reference: str | Reference) -> Reference:
    return Reference.parse(reference) if isinstance(reference, str) else reference


@contextmanager
def _reporting(progress: ProgressCallback | None) -> Iterator[ProgressCallback]:
    """Give the function to report to, and let its own `OSError` out unchanged.

    A terminal that went away while progress was printed must not look like a broken store.
    """
    failures: builtins.list[OSError] = []

    def report(event: Progress) -> None:
        if progress is None:
            return
        try:
            progress(event)
        except OSError as error:
            failures.append(error)
            raise

    try:
        yield report
    except ImageError:
        if failures:
            raise failures[0] from None
        raise
