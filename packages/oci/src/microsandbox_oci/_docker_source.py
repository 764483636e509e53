"""Reading a ``docker save`` archive by its ``manifest.json``.

Format: Docker image specification 1.2, "Combined Image JSON + Filesystem Changeset Format". Layers are
``<id>/layer.tar``, or links to one stored earlier; the archive has no manifest with digests, so one
is made from the configuration and the layers, always the same for the same archive.
"""

from __future__ import annotations

import posixpath

from microsandbox_oci._blobs import Blob
from microsandbox_oci._config_document import parse_config
from microsandbox_oci._digest import PREFIX, digest_of, is_digest
from microsandbox_oci._errors import ArchiveInvalid, DigestMismatch, ImageInvalid
from microsandbox_oci._json import Node, dump, parse_value
from microsandbox_oci._limits import Limits
from microsandbox_oci._manifest import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Descriptor
from microsandbox_oci._platform import Platform
from microsandbox_oci._reference import Reference
from microsandbox_oci._source import (
    SourceImage,
    SourceLayer,
    check_count,
    check_platform,
    label_matches,
    merge_names,
    no_such_image,
)
from microsandbox_oci._spool import GZIP_MAGIC, ZSTD_MAGIC
from microsandbox_oci._tree import Tree

MANIFEST = "manifest.json"
_LEGACY = "repositories"
_UNNAMED = "<none>"


def is_docker_archive(tree: Tree) -> bool:
    """Say whether ``tree`` has the file that lists a docker archive's images."""
    return tree.find(MANIFEST) is not None


def read_docker_archive(
    tree: Tree, limits: Limits, platform: Platform, *, image: str | None = None
) -> list[SourceImage]:
    """Read the images of a docker archive: all of them, or the one called ``image``.

    Raises:
        ArchiveInvalid, ArchiveNotFound, ImageInvalid and its subclasses, ReferenceInvalid.
    """
    entries = _entries(tree, limits)
    if image is not None:
        chosen = [entry for entry in entries if label_matches(entry.texts("RepoTags"), image)]
        if not chosen:
            raise no_such_image(
                tree.name, image, (name for entry in entries for name in entry.texts("RepoTags"))
            )
        entries = chosen
    if not entries:
        raise ArchiveInvalid(f"{tree.name} has no images in it")
    return merge_names(_image(tree, entry, limits, platform) for entry in entries)


def names_by_config(tree: Tree, limits: Limits) -> dict[str, tuple[Reference, ...]]:
    """Return the names that ``manifest.json`` gives, by configuration digest as the file names state it."""
    names: dict[str, tuple[Reference, ...]] = {}
    if not is_docker_archive(tree):
        return names
    for entry in _entries(tree, limits):
        digest = _stated_digest(entry.text("Config"))
        if digest is not None:
            names[digest] = names.get(digest, ()) + _names(entry)
    return names


def _entries(tree: Tree, limits: Limits) -> list[Node]:
    blob = tree.find(MANIFEST)
    if blob is None:
        hint = "it is older than Docker 1.10: save it again" if tree.find(_LEGACY) else None
        raise ArchiveInvalid(f"{tree.name} is not a docker archive: it has no {MANIFEST}", hint=hint)
    value = parse_value(blob.read(MANIFEST, limit=limits.manifest_size), MANIFEST)
    if not isinstance(value, list):
        raise ArchiveInvalid(f"{tree.name}: {MANIFEST} is not an array")
    check_count(len(value), limits, tree.name)
    return [Node.of(item, f"{MANIFEST}[{index}]") for index, item in enumerate(value)]


def _image(tree: Tree, entry: Node, limits: Limits, platform: Platform) -> SourceImage:
    config_path = entry.text("Config")
    blob = _find(tree, config_path, "configuration")
    config = blob.read("image configuration", limit=limits.config_size)
    digest = digest_of(config)
    # P03: an archive that calls its configuration by one digest and carries another.
    if (stated := _stated_digest(config_path)) is not None and stated != digest:
        raise DigestMismatch("image configuration", expected=stated, seen=digest)
    document = parse_config(config, max_layers=limits.layers)
    check_platform(platform, document, f"image {config_path[:200]!r}")
    layer_paths = entry.texts("Layers")
    if len(layer_paths) != len(document.diff_ids):
        raise ImageInvalid(
            f"{tree.name}: {entry.what} lists {len(layer_paths)} layers, "
            f"its configuration {len(document.diff_ids)}",
            blob=entry.what,
            expected=str(len(document.diff_ids)),
            seen=str(len(layer_paths)),
        )
    layers = tuple(
        _layer(_find(tree, path, "layer"), diff_id)
        for path, diff_id in zip(layer_paths, document.diff_ids, strict=True)
    )
    manifest = build_manifest(
        Descriptor(OCI_CONFIG, digest, len(config)), tuple(layer.descriptor for layer in layers)
    )
    return SourceImage(
        digest=digest_of(manifest),
        names=_names(entry),
        labels=entry.texts("RepoTags"),
        manifest=manifest,
        config=config,
        document=document,
        layers=layers,
    )


def build_manifest(config: Descriptor, layers: tuple[Descriptor, ...]) -> bytes:
    """Return the one manifest that describes a configuration and its layers."""
    return dump(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor_json(config),
            "layers": [descriptor_json(layer) for layer in layers],
        }
    )


def descriptor_json(descriptor: Descriptor) -> dict[str, str | int]:
    """Return the three members every descriptor has."""
    return {"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size}


def _layer(blob: Blob, diff_id: str) -> SourceLayer:
    head = blob.head(4)
    suffix = "+gzip" if head.startswith(GZIP_MAGIC) else "+zstd" if head == ZSTD_MAGIC else ""
    # An uncompressed layer's digest is its diff id, which the conversion verifies; a compressed one's is
    # stated nowhere and has to be computed to describe it.
    digest = blob.digest() if suffix else diff_id
    return SourceLayer(diff_id, Descriptor(OCI_LAYER + suffix, digest, blob.size), blob)


def _find(tree: Tree, path: str, what: str) -> Blob:
    blob = tree.find(path) if path else None
    if blob is None:
        path = path[:200]
        raise ImageInvalid(
            f"{what} {path!r} is missing from {tree.name}",
            blob=f"{what} {path}",
            hint="the archive is incomplete: save the image again",
        )
    return blob


def _stated_digest(path: str) -> str | None:
    digest = PREFIX + posixpath.basename(path).removesuffix(".json")
    return digest if is_digest(digest) else None


def _names(entry: Node) -> tuple[Reference, ...]:
    names = (Reference.parse(name) for name in entry.texts("RepoTags") if _UNNAMED not in name)
    return tuple(name for name in names if name.tag is not None and name.digest is None)
