"""Image manifests and indexes: parsing, and nothing else.

Formats: OCI image specification 1.1 (``manifest.md``, ``image-index.md``, ``descriptor.md``) and Docker
image manifest version 2 schema 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from microsandbox_oci._config_document import parse_platform
from microsandbox_oci._errors import ImageInvalid, LimitExceeded
from microsandbox_oci._json import Node
from microsandbox_oci._platform import Platform

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"

INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFEST_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIG_TYPES = frozenset({OCI_CONFIG, DOCKER_CONFIG})
PLAIN_LAYER_TYPES = frozenset(
    {OCI_LAYER, DOCKER_LAYER, "application/vnd.oci.image.layer.nondistributable.v1.tar"}
)
LAYER_TYPES = frozenset(
    {
        f"{base}{suffix}"
        for base in (OCI_LAYER, "application/vnd.oci.image.layer.nondistributable.v1.tar")
        for suffix in ("", "+gzip", "+zstd")
    }
    | {f"{DOCKER_LAYER}{suffix}" for suffix in ("", ".gzip", ".zstd")}
    | {"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"}
)

ANNOTATION_REF_NAME = "org.opencontainers.image.ref.name"
ANNOTATION_CONTAINERD_NAME = "io.containerd.image.name"
ANNOTATION_DOCKER_TYPE = "vnd.docker.reference.type"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A pointer to a blob: what it is, which bytes and how many of them."""

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None
    annotations: Mapping[str, str] | None = None

    @classmethod
    def from_node(cls, node: Node) -> Descriptor:
        """Read a descriptor object.

        Raises:
            ImageInvalid: a member is missing or malformed; O12: the digest is anything but strict sha256.
        """
        platform = node.child("platform")
        return cls(
            media_type=node.text("mediaType"),
            digest=node.digest("digest"),
            size=node.size("size"),
            platform=None if platform is None else parse_platform(platform),
            annotations=node.text_map("annotations"),
        )

    def annotation(self, name: str) -> str | None:
        """Return an annotation or None."""
        return (self.annotations or {}).get(name)

    @property
    def is_image(self) -> bool:
        """Whether it may lead to a runnable image: a manifest or index that is no attestation."""
        if self.annotation(ANNOTATION_DOCKER_TYPE) == "attestation-manifest":
            return False
        # BuildKit marks what is not for running with the platform unknown/unknown.
        if self.platform is not None and self.platform.os == "unknown":
            return False
        return self.media_type in INDEX_TYPES or self.media_type in MANIFEST_TYPES or not self.media_type


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image manifest: one configuration and its layers, base first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class Index:
    """A list of manifests, one per platform (or per image in a layout's ``index.json``)."""

    manifests: tuple[Descriptor, ...]


def parse_document(data: bytes, what: str, *, max_layers: int) -> Manifest | Index:
    """Parse a manifest or an index, whichever ``data`` is.

    The kind is decided by the document's own ``mediaType`` and members, and a document that could be
    both is refused: accepting it would let two readers see two different images under one digest
    (CVE-2021-41190).

    Raises:
        ImageInvalid: neither, both, or malformed.
        LimitExceeded: more than ``max_layers`` layers.
    """
    node = Node.parse(data, what)
    media_type = node.text("mediaType")
    has_index, has_manifest = (
        "manifests" in node.members,
        "config" in node.members or "layers" in node.members,
    )
    if has_index and has_manifest:
        raise ImageInvalid(f"{what} is a manifest and an index at once", blob=what)
    if node.members.get("schemaVersion") != 2:
        raise ImageInvalid(
            f"{what}: schemaVersion is not 2", blob=what, hint="only schema 2 images are supported"
        )
    if has_index and (media_type in INDEX_TYPES or not media_type):
        return Index(tuple(Descriptor.from_node(child) for child in node.children("manifests")))
    if has_manifest and (media_type in MANIFEST_TYPES or not media_type):
        return _manifest(node, max_layers)
    raise ImageInvalid(
        f"{what} is neither an image manifest nor an index: "
        f"{repr(media_type[:100]) if media_type else 'no media type'}",
        blob=what,
    )


def _manifest(node: Node, max_layers: int) -> Manifest:
    config_node = node.child("config")
    if config_node is None:
        raise ImageInvalid(f"{node.what} has no config", blob=node.what)
    config = Descriptor.from_node(config_node)
    if config.media_type not in CONFIG_TYPES:
        raise ImageInvalid(
            f"{node.what} is not a container image: its config is {config.media_type[:100]!r}", blob=node.what
        )
    children = node.children("layers")
    if len(children) > max_layers:
        raise LimitExceeded(
            f"{node.what} has {len(children)} layers, the limit is {max_layers}",
            blob=node.what,
            expected=str(max_layers),
            seen=str(len(children)),
        )
    layers = tuple(Descriptor.from_node(child) for child in children)
    for layer in layers:
        if layer.media_type not in LAYER_TYPES:
            raise ImageInvalid(
                f"layer {layer.digest} has the unsupported media type {layer.media_type[:100]!r}",
                blob=f"layer {layer.digest}",
                hint="tar layers are supported, plain or compressed with gzip or zstd",
            )
    return Manifest(config, layers)
