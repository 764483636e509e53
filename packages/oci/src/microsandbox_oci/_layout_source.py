"""Reading an OCI image layout, from a directory or an archive.

Format: OCI image specification, ``image-layout.md``: ``oci-layout``, ``index.json`` and
``blobs/sha256/<hex>``. The archives of ``docker save`` since version 25 are such layouts too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from microsandbox_oci._argument import LAYOUT_MARKER
from microsandbox_oci._blobs import Blob
from microsandbox_oci._digest import digest_of, hex_of
from microsandbox_oci._errors import ArchiveInvalid, ImageInvalid
from microsandbox_oci._json import Node
from microsandbox_oci._limits import Limits
from microsandbox_oci._manifest import (
    ANNOTATION_CONTAINERD_NAME,
    ANNOTATION_REF_NAME,
    Descriptor,
    Index,
    parse_document,
)
from microsandbox_oci._platform import Platform
from microsandbox_oci._reference import Reference
from microsandbox_oci._resolving import Resolver
from microsandbox_oci._source import (
    LayerBytes,
    SourceImage,
    check_count,
    label_matches,
    merge_names,
    no_such_image,
    parse_or_none,
)
from microsandbox_oci._tree import Tree

INDEX = "index.json"
LAYOUT_VERSION = "1.0.0"


def is_layout(tree: Tree) -> bool:
    """Say whether ``tree`` has the two files that make an image layout."""
    return tree.find(LAYOUT_MARKER) is not None and tree.find(INDEX) is not None


def read_layout(
    tree: Tree,
    limits: Limits,
    platform: Platform,
    *,
    image: str | None = None,
    extra_names: Mapping[str, tuple[Reference, ...]] | None = None,
) -> list[SourceImage]:
    """Read the images of a layout: all of them, or the one called ``image``.

    ``extra_names`` maps configuration digests to further names.

    Raises:
        ArchiveInvalid, ArchiveNotFound, ImageInvalid and its subclasses.
    """
    return _Reader(tree, limits, platform).images(image, extra_names or {})


class _Reader:
    def __init__(self, tree: Tree, limits: Limits, platform: Platform) -> None:
        self._tree = tree
        self._limits = limits
        self._resolver = Resolver(_LayoutContents(tree), limits, platform)

    def images(self, wanted: str | None, extra: Mapping[str, tuple[Reference, ...]]) -> list[SourceImage]:
        entries = [entry for entry in self._top().manifests if entry.is_image]
        check_count(len(entries), self._limits, self._tree.name)
        if wanted is not None:
            chosen = [entry for entry in entries if label_matches((*_labels(entry), entry.digest), wanted)]
            if not chosen:
                raise no_such_image(
                    self._tree.name, wanted, (name for entry in entries for name in _labels(entry))
                )
            entries = chosen
        if not entries:
            raise ArchiveInvalid(f"{self._tree.name} has no images in it")
        found = []
        for group in _by_name(entries):
            source = self._resolver.image(group, self._tree.name)
            names = (*_names(group[0]), *extra.get(digest_of(source.config), ()))
            found.append(replace(source, names=tuple(dict.fromkeys(names)), labels=_labels(group[0])))
        return merge_names(found)

    def _top(self) -> Index:
        marker = self._tree.find(LAYOUT_MARKER)
        index = self._tree.find(INDEX)
        if marker is None or index is None:
            raise ArchiveInvalid(
                f"{self._tree.name} is not an OCI image layout: {LAYOUT_MARKER} or {INDEX} is missing"
            )
        version = Node.parse(marker.read(LAYOUT_MARKER, limit=self._limits.manifest_size), LAYOUT_MARKER)
        if version.text("imageLayoutVersion") != LAYOUT_VERSION:
            raise ArchiveInvalid(f"{self._tree.name}: unknown image layout version")
        document = parse_document(
            index.read(INDEX, limit=self._limits.manifest_size), INDEX, max_layers=self._limits.layers
        )
        if not isinstance(document, Index):
            raise ArchiveInvalid(f"{self._tree.name}: {INDEX} is not an index")
        return document


class _LayoutContents:
    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def manifest(self, descriptor: Descriptor, what: str) -> Blob:
        return self._blob(descriptor, what)

    def config(self, descriptor: Descriptor, what: str) -> Blob:
        return self._blob(descriptor, what)

    def layer(self, descriptor: Descriptor, what: str) -> LayerBytes:
        return self._blob(descriptor, what)

    def _blob(self, descriptor: Descriptor, what: str) -> Blob:
        blob = self._tree.find(f"blobs/sha256/{hex_of(descriptor.digest)}")
        if blob is None:
            raise ImageInvalid(
                f"{what} is missing from {self._tree.name}",
                blob=what,
                hint="the archive or layout is incomplete: save the image again, for this platform",
            )
        return blob


def _by_name(entries: list[Descriptor]) -> Iterator[list[Descriptor]]:
    """Group entries: those with one name and a platform each are variants of one image."""
    groups: dict[tuple[str, ...], list[Descriptor]] = {}
    for entry in entries:
        groups.setdefault(_labels(entry), []).append(entry)
    for group in groups.values():
        if len(group) > 1 and all(entry.platform is not None for entry in group):
            yield group
        else:
            yield from ([entry] for entry in group)


def _labels(entry: Descriptor) -> tuple[str, ...]:
    names = (entry.annotation(ANNOTATION_CONTAINERD_NAME), entry.annotation(ANNOTATION_REF_NAME))
    return tuple(name for name in names if name)


def _names(entry: Descriptor) -> tuple[Reference, ...]:
    full = entry.annotation(ANNOTATION_CONTAINERD_NAME) or ""
    if not full:
        full = entry.annotation(ANNOTATION_REF_NAME) or ""
        if ":" not in full and "/" not in full:
            return ()  # only a tag (`latest`): the layout does not say of which repository
    reference = parse_or_none(full)
    return () if reference is None or reference.digest else (reference,)
