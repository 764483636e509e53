"""The image store: what is in it, how it gets in, how it goes.

Looking an image up is on the path of every sandbox start, so this module imports nothing that only loading
needs; those parts are imported where they are called.
"""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from microsandbox_oci._digest import is_digest
from microsandbox_oci._errors import ImageError, ImageInUse, ImageInvalid, ImageNotFound
from microsandbox_oci._files import store_errors
from microsandbox_oci._model import Image
from microsandbox_oci._paths import COMPRESSIONS, NOT_COMPRESSED, StorePaths
from microsandbox_oci._records import find_forms, find_image, named, read_ref
from microsandbox_oci._reference import Reference

if TYPE_CHECKING:
    from microsandbox_oci._abort import Abort
    from microsandbox_oci._credentials import CredentialSource
    from microsandbox_oci._history import Step
    from microsandbox_oci._limits import Limits
    from microsandbox_oci._open import Source
    from microsandbox_oci._platform import Platform
    from microsandbox_oci._progress import Progress, ProgressCallback, Removed
    from microsandbox_oci._registry_options import Registries
    from microsandbox_oci._save import SaveFormat
    from microsandbox_oci._verify import Verified

DamagedCallback = Callable[[Reference | None, ImageError], None]


class ImageStore:
    """A directory of images that any number of processes may use at once.

    Args:
        root: the store's directory; created, 0700, when something is first stored.
        limits: what is accepted, see `Limits`; or a file that says it, which is read when it is first needed.
        platform: which of a multi-platform image's variants is taken; this machine's by default.
        compression: how file contents of layers are stored that come from now on: ``none`` or ``lz4``. What
            is there in the other form stays as it is and is used until it is loaded or pulled again.

    Raises:
        ValueError: there is no such compression.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        limits: Limits | Path | None = None,
        platform: Platform | None = None,
        compression: str = NOT_COMPRESSED,
    ) -> None:
        if compression not in COMPRESSIONS:
            raise ValueError(f"compression is {compression!r}, not one of {', '.join(COMPRESSIONS)}")
        self._paths = StorePaths(Path(root), compression)
        self._limits = limits
        self._platform = platform

    @property
    def root(self) -> Path:
        """The store's directory."""
        return self._paths.root

    @property
    def limits(self) -> Limits:
        """What the store accepts. Raises `OptionsInvalid` if the file that says it cannot be used."""
        from microsandbox_oci._limits import Limits

        if not isinstance(self._limits, Limits):
            self._limits = Limits() if self._limits is None else Limits.from_file(self._limits)
        return self._limits

    @property
    def platform(self) -> Platform:
        """The platform whose images are taken."""
        from microsandbox_oci._platform import Platform

        return self._platform or Platform.host()

    def get(self, image: str | Reference, *, compression: str | None = None) -> Image:
        """Return the image called ``image``: a reference in any spelling, or a manifest digest.

        Reads two small files and looks at the sizes of the image's others. Of an image that is there in
        both forms, the one of ``compression`` is returned, by default the store's.

        Raises:
            ReferenceInvalid: ``image`` is neither a reference nor a digest.
            ImageNotFound: the store has no such image.
            ImageInvalid: a file of it is missing or damaged; loading the image again repairs it.
            StoreError: the store cannot be read.
        """
        reference, digest = self._resolve(image)
        with store_errors("looking up an image", self.root):
            found = find_image(
                self._paths._replace(compression=compression or self._paths.compression), digest
            )
        if found is None:
            raise _not_found(image)
        return named(found, reference)

    def digest(self, image: str | Reference) -> str:
        """Return the manifest digest that a name stands for, also of an image that is damaged.

        Raises:
            ReferenceInvalid: ``image`` is neither a reference nor a digest.
            ImageNotFound: the store does not know the name. A digest is not looked for.
            ImageInvalid: the record of the name is damaged.
            StoreError: the store cannot be read.
        """
        return self._resolve(image)[1]

    def forms(self, digest: str) -> builtins.list[Image]:
        """Return the image with this manifest digest in each compression in which it is there and whole.

        Raises:
            ImageInvalid: it is there, but of each a file is missing or damaged.
            StoreError: the store cannot be read.
        """
        with store_errors("looking up an image", self.root):
            return [*find_forms(self._paths, digest)]

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

    def references(self) -> builtins.list[Reference]:
        """Return the names of the store's images, sorted, without reading the images; none of damaged ones.

        Raises:
            StoreError: the store cannot be read.
        """
        from microsandbox_oci._listing import references

        with store_errors("listing images", self.root):
            return references(self._paths)

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

    def pull(
        self,
        image: str | Reference,
        *,
        registries: Registries | None = None,
        credentials: CredentialSource | None = None,
        complete: bool = False,
        progress: ProgressCallback | None = None,
        abort: Abort | None = None,
    ) -> Image:
        """Fetch an image from its registry, verified and converted while it arrives, and name it.

        What the store has already is not fetched again: documents by digest, layers by diff id. A transfer
        that was cut off goes on where it ended.

        Args:
            image: a reference; the tag is asked for anew, so that it leads to what the registry has now.
            registries: mirrors, certificates, timeouts; see `Registries`.
            credentials: who the user is to registries; nobody by default.
            complete: fetch the original bytes also of layers that the store has from elsewhere: for `save`.
            progress: called with each `Progress`, from several threads but never at once. Without it, what is
                a `Phase.WARNING` is logged.
            abort: by which another thread can end it.

        Raises:
            ReferenceInvalid: ``image`` is no reference.
            RegistryError: the registry does not give the image.
            ImageInvalid: digests, sizes, limits or the platform are not as they must be.
            CredentialError: credentials for the registry cannot be read.
            StoreError: the store is full or not writable.
        """
        from microsandbox_oci._abort import Abort
        from microsandbox_oci._credentials import Anonymous
        from microsandbox_oci._load import load_images
        from microsandbox_oci._pull import RemoteImage
        from microsandbox_oci._registry import RegistryClient
        from microsandbox_oci._registry_options import Registries

        reference = _parsed(image)
        with (
            _reporting(progress) as report,
            self._working() as work,
            RegistryClient(registries or Registries(), credentials or Anonymous()) as client,
        ):
            remote = RemoteImage(client, reference, self._paths, self.limits, self.platform, report)
            if progress is not None:
                client.warn = remote.warn
            with (abort or Abort()).ending(remote.abort):
                source = remote.find()
                [found] = load_images(
                    self._paths,
                    [source],
                    reference,
                    work,
                    self.limits,
                    remote.progress,
                    remote.ensure_layers,
                    undo=False,
                )
                if complete:
                    remote.complete(source, work)
                return found

    def pack_rootfs(
        self, directory: str | os.PathLike[str], *, progress: ProgressCallback | None = None
    ) -> Image:
        """Return a root file system directory as an image, packed again only if it changed.

        Ownership, modes, times and extended attributes are kept as this process sees them. The image has
        no reference; its configuration has only a default PATH, and its contents are not compressed: it is
        packed again whenever the directory changes. An earlier pack of the same directory is
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

        path, paths = Path(os.path.realpath(directory)), self._paths.plain
        found = cached_pack(paths, path, fingerprint(path))
        if found is not None:
            return found
        with (
            _reporting(progress) as report,
            self._working() as work,
            locked(paths.pack_lock(str(path)), unlink=True),
        ):
            # Another process may have packed it while this one waited.
            now = fingerprint(path)
            found = cached_pack(paths, path, now)
            if found is not None:
                return found
            try:
                before = read_packed(paths.packed(str(path)))
            except ImageInvalid:
                before = None
            held = pack(paths, path, now, work, self.limits, self.platform, report)
            os.close(held.lock)
            if before is not None and before.digest != held.image.digest:
                with store_errors("removing an image", self.root):
                    collect(paths, work, images=[before.digest])
            return held.image

    def save(
        self,
        images: Iterable[str | Reference],
        out: BinaryIO,
        *,
        format: SaveFormat | str = "oci",
    ) -> None:
        """Write images as one archive, with the manifests, configurations and layers that they came with.

        Args:
            images: references or digests; at least one.
            out: a binary file; it need not be seekable.
            format: ``oci``, or ``docker``: then with the list that ``docker load`` reads.

        Raises:
            ImageNotFound, ImageInvalid, ReferenceInvalid, StoreError; nothing has been written then.
            LayerNotKept: the store has a layer only as it is mounted; nothing has been written then.
            DigestMismatch: a kept layer is damaged; what was written is no archive.
            OSError: ``out`` cannot be written.
        """
        from microsandbox_oci._in_use import held
        from microsandbox_oci._save import SaveFormat, save_images

        form = SaveFormat(format)
        found = [self.get(image) for image in images]
        if not found:
            raise ValueError("no image to save")
        with ExitStack() as stack:
            for image in found:
                if not stack.enter_context(held(image.directory)):
                    raise _not_found(image.digest)
            save_images(self._paths, found, out, form, self.limits)

    def export(self, image: str | Reference, out: BinaryIO) -> None:
        """Write an image's root file system as one tar: what a sandbox of it sees, all layers applied.

        It is a PAX archive with owners, modes, times to the nanosecond, extended attributes
        (``SCHILY.xattr``), hard links, devices and holes (GNU sparse format 1.0). The same image always gives
        the same bytes.

        Args:
            image: a reference or digest.
            out: a binary file; it need not be seekable.

        Raises:
            ImageNotFound, ImageInvalid, ReferenceInvalid, StoreError; what was written is then no archive.
            OSError: ``out`` cannot be written.
        """
        from microsandbox_oci._export import export_image
        from microsandbox_oci._in_use import held

        found = self.get(image)
        with held(found.directory) as there:
            if not there:
                raise _not_found(image)
            export_image(found, out)

    def history(self, image: str | Reference) -> builtins.list[Step]:
        """Return how an image says it was built, oldest step first.

        Raises:
            ImageNotFound, ImageInvalid, ReferenceInvalid, StoreError.
        """
        from microsandbox_oci._history import read_history
        from microsandbox_oci._paths import CONFIG

        found = self.get(image)
        with store_errors("reading an image", self.root):
            config = (found.directory / CONFIG).read_bytes()
        return read_history(
            config,
            {layer.diff_id: layer.size for layer in found.layers},
            tuple(layer.diff_id for layer in found.layers),
        )

    def verify(
        self,
        image: str | Reference,
        *,
        remove_damaged: bool = False,
        progress: ProgressCallback | None = None,
    ) -> Verified:
        """Read everything of an image and compare it with what was stored.

        Args:
            remove_damaged: delete damaged files, so that a pull or load makes them again. Sandboxes that run
                keep what they have open.
            progress: called with each `Progress`.

        Raises:
            ImageNotFound, ReferenceInvalid: there is no such image.
            ImageInvalid: so much is missing that the image cannot be looked at.
            StoreError: the store cannot be read.
        """
        from microsandbox_oci._in_use import held
        from microsandbox_oci._verify import joined, verify_image

        with _reporting(progress) as report, self._working() as work:
            digest = self.get(image).digest
            results = []
            for found in self.forms(digest):
                with held(found.directory) as there:
                    if not there:
                        raise _not_found(image)
                    results.append(verify_image(self._paths, found, work, self.limits, report))
                    if remove_damaged:
                        for path in results[-1].damaged:
                            path.unlink(missing_ok=True)
            return joined(digest, results)

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
        return found._replace(reference=name)

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
            # A name with a digest finds the image also if it never had that name.
            directories = [kind.image(digest) for kind in self._paths.kinds()]
            if not doomed and (names or not any(map(Path.exists, directories))):
                raise _not_found(image)
            if len(doomed) == len(names) and not force and any(map(is_in_use, directories)):
                raise ImageInUse(
                    f"image {image} is in use by a running sandbox",
                    hint="stop the sandbox first, or force the removal: its files then go when it ends",
                )
            for name in doomed:
                self._paths.ref(name).unlink(missing_ok=True)
            return collect(self._paths, work, images=[digest])

    def prune(self, *, keep: Collection[str] = (), dry_run: bool = False) -> Removed:
        """Delete images without a name, packs of directories that are gone, and layers no image needs.

        What a running sandbox or another process's load holds stays, and so do the images whose digests are
        in ``keep``. With ``dry_run`` nothing is deleted.

        Raises:
            StoreError: the store cannot be read or written.
        """
        from microsandbox_oci._garbage import collect
        from microsandbox_oci._listing import drop_stale_packs

        with self._working() as work, store_errors("pruning", self.root):
            if not dry_run:
                drop_stale_packs(self._paths)
            return collect(self._paths, work, keep=keep, dry_run=dry_run)

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
        with store_errors("looking up an image", self.root):
            record = read_ref(self._paths.ref(reference))
        if record is not None:
            return reference, record[1]  # pulled by this name, perhaps by the digest of an index
        if reference.digest is None:
            raise _not_found(image)
        return reference, self._of_index(reference) or reference.digest

    def _of_index(self, reference: Reference) -> str | None:
        """Return the image that was pulled by the same digest, with another tag or none."""
        if reference.digest is None or self._paths.image(reference.digest).exists():
            return None  # it is the digest of an image
        sought = reference.domain, reference.path, reference.digest
        with store_errors("looking up an image", self.root):
            for other in self.references():
                if (other.domain, other.path, other.digest) == sought:
                    record = read_ref(self._paths.ref(other))
                    return None if record is None else record[1]
        return None

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
    return ImageNotFound(
        f"image {str(image)!r} is not in the store",
        hint="msb pull or msb load brings it; msb images shows those there are",
    )


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
