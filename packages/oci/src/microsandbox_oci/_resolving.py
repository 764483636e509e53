"""From a manifest or an index to the one image that runs here, wherever the documents are kept."""

from __future__ import annotations

from typing import Protocol

from microsandbox_oci._blobs import Blob
from microsandbox_oci._config_document import parse_config
from microsandbox_oci._errors import ImageInvalid, LimitExceeded, PlatformMismatch
from microsandbox_oci._limits import Limits
from microsandbox_oci._manifest import Descriptor, Index, Manifest, parse_document
from microsandbox_oci._platform import Platform
from microsandbox_oci._source import LayerBytes, SourceImage, SourceLayer, check_platform, platform_mismatch


class Contents(Protocol):
    """Where documents and layers come from: a layout, or a repository of a registry."""

    def manifest(self, descriptor: Descriptor, what: str) -> Blob:
        """The manifest or index, its bytes not compared with the digest yet."""
        ...

    def config(self, descriptor: Descriptor, what: str) -> Blob:
        """The image configuration, its bytes not compared with the digest yet."""
        ...

    def layer(self, descriptor: Descriptor, what: str) -> LayerBytes:
        """The layer; it is read when it is converted."""
        ...


class Resolver:
    """Finds images in ``contents``, within limits that count over the resolver's life."""

    def __init__(self, contents: Contents, limits: Limits, platform: Platform) -> None:
        self._contents = contents
        self._limits = limits
        self._platform = platform
        self._documents = 0

    def image(self, group: list[Descriptor], where: str) -> SourceImage:
        """Return the image of a descriptor, or the one of several that runs here.

        Raises:
            ImageInvalid and its subclasses: something is missing, damaged or for another platform.
        """
        if len(group) == 1:
            descriptor, manifest, data = self._resolve(group[0], 0)
        else:
            descriptor, manifest, data = self._choose(Index(tuple(group)), f"image in {where}", 0)
        return self._source(descriptor, manifest, data)

    def _resolve(self, descriptor: Descriptor, depth: int) -> tuple[Descriptor, Manifest, bytes]:
        what = f"manifest {descriptor.digest}"
        # O11: hostile indexes nest deeply or fan out; both cost documents, and a cycle is endless depth.
        self._documents += 1
        if depth > self._limits.index_depth or self._documents > (
            self._limits.index_documents + self._limits.images_per_source
        ):
            raise LimitExceeded(f"{what}: too many indexes within indexes", blob=what)
        data = self._contents.manifest(descriptor, what).read_verified(
            what, digest=descriptor.digest, size=descriptor.size, limit=self._limits.manifest_size
        )
        document = parse_document(data, what, max_layers=self._limits.layers)
        if isinstance(document, Index):
            return self._choose(document, what, depth + 1)
        return descriptor, document, data

    def _choose(self, index: Index, what: str, depth: int) -> tuple[Descriptor, Manifest, bytes]:
        entries = [entry for entry in index.manifests if entry.is_image]
        chosen = self._platform.choose([entry.platform for entry in entries])
        if chosen is not None:
            return self._resolve(entries[chosen], depth)
        # Nested indexes and old builders name no platform: those have to be looked into.
        for entry in entries:
            if entry.platform is not None:
                continue
            try:
                descriptor, manifest, data = self._resolve(entry, depth)
                self._source(descriptor, manifest, data)
            except PlatformMismatch:
                continue
            return descriptor, manifest, data
        raise platform_mismatch(what, self._platform, (entry.platform for entry in entries))

    def _source(self, descriptor: Descriptor, manifest: Manifest, data: bytes) -> SourceImage:
        what = f"configuration {manifest.config.digest}"
        config = self._contents.config(manifest.config, what).read_verified(
            what, digest=manifest.config.digest, size=manifest.config.size, limit=self._limits.config_size
        )
        document = parse_config(config, max_layers=self._limits.layers)
        if len(document.diff_ids) != len(manifest.layers):
            raise ImageInvalid(
                f"manifest {descriptor.digest} has {len(manifest.layers)} layers, "
                f"its configuration {len(document.diff_ids)}",
                blob=f"manifest {descriptor.digest}",
                expected=str(len(manifest.layers)),
                seen=str(len(document.diff_ids)),
            )
        check_platform(self._platform, document, f"image {descriptor.digest}")
        return SourceImage(
            digest=descriptor.digest,
            names=(),
            labels=(),
            manifest=data,
            config=config,
            document=document,
            layers=tuple(
                SourceLayer(diff_id, layer, self._contents.layer(layer, f"layer {layer.digest}"))
                for diff_id, layer in zip(document.diff_ids, manifest.layers, strict=True)
            ),
        )
