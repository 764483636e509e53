"""One load from a source to named images: all of its images, or none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from microsandbox_oci._errors import ArchiveInvalid, ImageError, ImageInvalid, ReferenceInvalid
from microsandbox_oci._files import publish, store_errors, write_sealed
from microsandbox_oci._garbage import collect, remove_blobs
from microsandbox_oci._images import Held, ImageDocuments, publish_image
from microsandbox_oci._layers import ensure_layer
from microsandbox_oci._limits import Limits
from microsandbox_oci._model import Image
from microsandbox_oci._paths import StorePaths
from microsandbox_oci._progress import Phase, Progress, ProgressCallback
from microsandbox_oci._records import encode_ref, named, read_ref
from microsandbox_oci._reference import Reference
from microsandbox_oci._source import SourceImage, SourceLayer

EnsureLayers = Callable[[Iterable[SourceLayer], StorePaths, Path, Limits, ProgressCallback], None]


def one_by_one(
    layers: Iterable[SourceLayer], paths: StorePaths, work: Path, limits: Limits, progress: ProgressCallback
) -> None:
    """Get layers into the store: those of an archive wait for the same disk."""
    for layer in layers:
        ensure_layer(paths, layer, work, limits, progress)


def load_images(
    paths: StorePaths,
    sources: list[SourceImage],
    tag: Reference | None,
    work: Path,
    limits: Limits,
    progress: ProgressCallback,
    ensure: EnsureLayers = one_by_one,
    *,
    undo: bool = True,
) -> list[Image]:
    """Publish every image of ``sources`` and name them, or none of them.

    On an error what was new is removed again, but without ``undo`` layers stay for the next attempt.

    ``ensure`` gets an image's layers into the store, one after the other unless it is given. Returns one
    `Image` per name, one without a reference for an image that has none.
    """
    if tag is not None and len(sources) != 1:
        raise ArchiveInvalid(
            f"the source has {len(sources)} images, one name cannot be given to all of them",
            hint="choose one by adding :NAME to the source's path",
        )
    held: list[Held] = []
    try:
        for source in sources:
            held.append(_publish(paths, source, work, limits, progress, ensure))
        loaded: list[Image] = []
        for source, one in zip(sources, held, strict=True):
            names = source.names if tag is None else (tag,)
            loaded += [named(one.image, name) for name in names or (None,)]
        write_refs(paths, work, [(one.reference, one.digest) for one in loaded if one.reference])
        for one in held:
            progress(Progress(Phase.DONE, one.image.digest, one.image.size, one.image.size))
    except BaseException:
        for one in held:
            os.close(one.lock)
        # Verified layers and images are no harm, but a failed load is to leave the store as it was. If
        # even that fails, the first error is the one to report and prune does the rest.
        with suppress(OSError, ImageError):
            layers = [layer for source in sources for layer in source.layers] if undo else []
            collect(
                paths,
                work,
                images=[one.image.digest for one in held if one.created],
                layers=[layer.diff_id for layer in layers],
            )
            remove_blobs(paths, blobs=[layer.descriptor.digest for layer in layers])
        raise
    for one in held:
        os.close(one.lock)
    return loaded


def _publish(
    paths: StorePaths,
    source: SourceImage,
    work: Path,
    limits: Limits,
    progress: ProgressCallback,
    ensure: EnsureLayers,
) -> Held:
    def ensure_layers() -> None:
        ensure({layer.diff_id: layer for layer in source.layers}.values(), paths, work, limits, progress)

    documents = ImageDocuments(source.digest, source.manifest, source.config, source.document)
    held = publish_image(paths, documents, work, ensure_layers, limits, progress)
    try:
        for layer in source.layers:
            # The image was there, but not everything that saving it needs.
            if not layer.blob.remote and not paths.blob(layer.descriptor.digest).exists():
                ensure_layer(paths, layer, work, limits, progress)
    except BaseException:
        os.close(held.lock)
        raise
    return held


def write_refs(paths: StorePaths, work: Path, refs: list[tuple[Reference, str]]) -> None:
    """Point references at images, which the caller holds: all, or none if there is no room for them."""
    staged: dict[Path, Path] = {}
    with store_errors("naming an image", paths.root):
        for reference, digest in refs:
            target = paths.ref(reference)
            if not staged and _leads_to(target, reference, digest):
                continue  # unless what is staged would lead it elsewhere
            temporary = work / target.name
            temporary.unlink(missing_ok=True)  # two images of one source under one name: the later counts
            write_sealed(temporary, encode_ref(reference, digest))
            staged[temporary] = target
        for temporary, target in staged.items():
            publish(temporary, target)


def _leads_to(path: Path, reference: Reference, digest: str) -> bool:
    try:
        return read_ref(path) == (reference, digest)
    except ImageInvalid:
        return False


def check_name(reference: Reference) -> Reference:
    """Return ``reference`` if it can name an image: by a tag, and by nothing that the image itself decides.

    Raises:
        ReferenceInvalid: it has a digest.
    """
    if reference.tag is None or reference.digest is not None:
        raise ReferenceInvalid(str(reference), "an image is named by a tag, not by a digest")
    return reference
