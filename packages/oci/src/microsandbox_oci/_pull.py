"""One pull: from a reference to a named image in the store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from microsandbox_oci._blobs import Blob
from microsandbox_oci._digest import digest_of
from microsandbox_oci._errors import DigestMismatch
from microsandbox_oci._fetching import Cancelled, RemoteBlob, check_size
from microsandbox_oci._layers import ensure_layer
from microsandbox_oci._limits import Limits
from microsandbox_oci._manifest import Descriptor
from microsandbox_oci._memory import in_memory
from microsandbox_oci._paths import CONFIG, MANIFEST, StorePaths
from microsandbox_oci._platform import Platform
from microsandbox_oci._progress import Phase, Progress, ProgressCallback
from microsandbox_oci._reference import DEFAULT_TAG, Reference
from microsandbox_oci._registry import RegistryClient, Repository
from microsandbox_oci._resolving import Resolver
from microsandbox_oci._source import LayerBytes, SourceImage, SourceLayer


class RemoteImage:
    """Finds the image that a reference names; documents that the store has are not fetched again."""

    def __init__(
        self,
        client: RegistryClient,
        reference: Reference,
        paths: StorePaths,
        limits: Limits,
        platform: Platform,
        progress: ProgressCallback,
    ) -> None:
        self._reference = reference
        self._repository = client.repository(reference)
        self._paths = paths
        self._limits = limits
        self._platform = platform
        self._parallel = client.options.parallel
        self._transport = client.transport
        self.stop = threading.Event()
        self._report_lock = threading.Lock()
        self._report = progress

    def abort(self) -> None:
        """End the pull, from any thread."""
        self.stop.set()
        self._transport.abort()

    def progress(self, event: Progress) -> None:
        """Report from any thread; what the receiver raises ends the pull."""
        if self.stop.is_set():
            raise Cancelled
        with self._report_lock:
            self._report(event)

    def warn(self, text: str) -> None:
        """Report what went wrong and was made good."""
        self.progress(Progress(Phase.WARNING, text))

    def find(self) -> SourceImage:
        """Return the image for this platform, with layers that are fetched when they are read.

        Raises:
            RegistryError: the registry does not give it.
            ImageInvalid and its subclasses: what it gives is damaged, too large or for another platform.
        """
        self.progress(Progress(Phase.RESOLVING, str(self._reference)))
        selector = self._reference.digest or self._reference.tag or DEFAULT_TAG
        top = self._repository.manifest(selector, limit=self._limits.manifest_size)
        contents = _RegistryContents(self, self._repository, self._paths, self._limits)
        contents.documents[top.digest] = top.data
        # The registry's word on what kind it is does not count: the document's own does.
        descriptor = Descriptor("", top.digest, len(top.data))
        return Resolver(contents, self._limits, self._platform).image([descriptor], str(self._reference))

    def ensure_layers(
        self,
        layers: Iterable[SourceLayer],
        paths: StorePaths,
        work: Path,
        limits: Limits,
        progress: ProgressCallback,
    ) -> None:
        """Fetch and convert several layers at once; the first failure ends the others and is raised.

        Each is reported before any is fetched, so that the receiver can add up, and when it is there.
        """
        layers = list(layers)
        missing = {layer.diff_id: layer for layer in layers if not paths.layer(layer.diff_id).exists()}
        for layer in missing.values():
            self.arrived(layer.descriptor, 0)

        def ensure(layer: SourceLayer) -> None:
            ensure_layer(paths, layer, work, limits, progress)
            if layer.diff_id in missing:
                self.arrived(layer.descriptor, layer.descriptor.size)

        self._together(partial(ensure, layer) for layer in layers)

    def _together(self, tasks: Iterable[Callable[[], None]]) -> None:
        from concurrent.futures import ThreadPoolExecutor, as_completed  # not for what is up to date

        with ThreadPoolExecutor(self._parallel, "microsandbox-oci-pull") as pool:
            futures = [pool.submit(task) for task in tasks]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                self.abort()
                for future in futures:
                    future.cancel()
                raise

    def complete(self, source: SourceImage, work: Path) -> None:
        """Fetch the original bytes of the layers whose content the store had already.

        Raises:
            RegistryError, DigestMismatch, StoreError.
        """
        blobs = {layer.descriptor.digest: layer.blob for layer in source.layers}

        def fetch(digest: str, blob: RemoteBlob) -> None:
            with blob.keeping():
                while (seen := blob.fetch()) != digest:
                    blob.discard()
                    if not blob.elsewhere():
                        raise DigestMismatch(f"layer {digest}", expected=digest, seen=seen)
                blob.keep(self._paths, digest, work)

        self._together(
            partial(fetch, digest, blob)
            for digest, blob in blobs.items()
            if isinstance(blob, RemoteBlob) and not self._paths.blob(digest).exists()
        )

    def arrived(self, descriptor: Descriptor, done: int) -> None:
        """Report bytes of a layer."""
        self.progress(Progress(Phase.DOWNLOADING, descriptor.digest, done, descriptor.size))


class _RegistryContents:
    def __init__(self, image: RemoteImage, repository: Repository, paths: StorePaths, limits: Limits) -> None:
        self._image = image
        self._repository = repository
        self._paths = paths
        self._limits = limits
        self.documents: dict[str, bytes] = {}
        self._manifest = ""

    def manifest(self, descriptor: Descriptor, what: str) -> Blob:
        data = self.documents.get(descriptor.digest) or self._stored(
            descriptor.digest, MANIFEST, descriptor.digest
        )
        if data is None:
            data = self._repository.manifest(descriptor.digest, limit=self._limits.manifest_size).data
        self._manifest = descriptor.digest
        return in_memory(data, what)

    def config(self, descriptor: Descriptor, what: str) -> Blob:
        # The configuration of the image whose manifest was read last, if the store has that image.
        data = self._stored(self._manifest, CONFIG, descriptor.digest)
        if data is None:
            data = self._repository.document(descriptor.digest, limit=self._limits.config_size)
        return in_memory(data, what)

    def layer(self, descriptor: Descriptor, what: str) -> LayerBytes:
        check_size(descriptor, self._limits.layer_size, what)
        return RemoteBlob(
            self._repository,
            descriptor,
            self._paths,
            self._image.stop,
            lambda done: self._image.arrived(descriptor, done),
        )

    def _stored(self, image: str, name: str, digest: str) -> bytes | None:
        for kind in self._paths.kinds():
            try:
                data = (kind.image(image) / name).read_bytes()
            except OSError:
                continue
            if digest_of(data) == digest:
                return data
        return None
