"""Looking whether everything of an image is still what it was when it was stored.

A layer's file is made again from its kept original bytes, which are hashed on the way, and compared: the
same layer always gives the same file. Merged metadata is merged again and compared likewise. Where the
original bytes were not kept, the layer's metadata is compared with its own checksum and its files are not
looked at.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from microsandbox_oci import _native
from microsandbox_oci._digest import digest_of
from microsandbox_oci._errors import DigestMismatch, ImageError, ImageInvalid
from microsandbox_oci._files import create_file
from microsandbox_oci._layers import is_sound
from microsandbox_oci._limits import Limits
from microsandbox_oci._manifest import Manifest, parse_document
from microsandbox_oci._model import Image, Layer
from microsandbox_oci._paths import CONFIG, MANIFEST, METADATA, StorePaths
from microsandbox_oci._progress import Phase, Progress, ProgressCallback

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Verified:
    """What was found out about one image.

    Attributes:
        digest: of its manifest.
        problems: what is wrong; empty if everything is as it was stored.
        damaged: the files that are to blame.
        unchecked: layers, by diff id, of which only the metadata could be checked.
    """

    digest: str
    problems: tuple[ImageError, ...]
    damaged: tuple[Path, ...]
    unchecked: tuple[str, ...]


def verify_image(
    paths: StorePaths, image: Image, work: Path, limits: Limits, progress: ProgressCallback
) -> Verified:
    """Look through all files of an image, which the caller holds. Changes nothing.

    Raises:
        OSError: a file cannot be read at all.
    """
    problems: list[ImageError] = []
    damaged: list[Path] = []
    unchecked: list[str] = []

    def blame(path: Path, error: ImageError) -> None:
        problems.append(error)
        damaged.append(path)

    digests = _documents(image, limits, blame)
    for layer, blob in zip(image.layers, digests or (None,) * len(image.layers), strict=True):
        if not is_sound(layer.path):
            blame(layer.path, _damaged(f"layer {layer.diff_id}", "its metadata is not what was written"))
            continue
        original = None if blob is None else paths.blob(blob)
        if original is None or not original.exists():
            unchecked.append(layer.diff_id)
            continue
        for path, error in _compare_layer(
            layer, image.compression, original, str(blob), work, limits, progress
        ):
            blame(path, error)
    if not problems and not _merges_to(image, work):
        blame(
            image.metadata, _damaged(f"image {image.digest}", "its merged metadata is not what was written")
        )
    return Verified(image.digest, tuple(problems), tuple(damaged), tuple(unchecked))


def joined(digest: str, results: list[Verified]) -> Verified:
    """What was found out about the forms of one image, together; each problem and file once."""
    problems = {str(problem): problem for result in results for problem in result.problems}
    damaged = dict.fromkeys(path for result in results for path in result.damaged)
    unchecked = dict.fromkeys(layer for result in results for layer in result.unchecked)
    return Verified(digest, tuple(problems.values()), tuple(damaged), tuple(unchecked))


def _documents(
    image: Image, limits: Limits, blame: Callable[[Path, ImageError], None]
) -> tuple[str, ...] | None:
    """Check manifest and configuration; return the layers' digests, None if they cannot be known."""
    manifest = (image.directory / MANIFEST).read_bytes()
    if (seen := digest_of(manifest)) != image.digest:
        blame(
            image.directory / MANIFEST,
            DigestMismatch(f"manifest {image.digest}", expected=image.digest, seen=seen),
        )
        return None
    try:
        document = parse_document(manifest, f"manifest {image.digest}", max_layers=limits.layers)
    except ImageInvalid:
        return None  # that of a packed directory
    if not isinstance(document, Manifest):
        return None
    expected = document.config.digest
    if (seen := digest_of((image.directory / CONFIG).read_bytes())) != expected:
        blame(
            image.directory / CONFIG,
            DigestMismatch(f"configuration of image {image.digest}", expected=expected, seen=seen),
        )
    return tuple(layer.digest for layer in document.layers)


def _compare_layer(
    layer: Layer,
    compression: str,
    original: Path,
    digest: str,
    work: Path,
    limits: Limits,
    progress: ProgressCallback,
) -> Iterator[tuple[Path, ImageError]]:
    again = work / f"again-{layer.path.name}"
    total = original.stat().st_size

    def report(done: int) -> None:
        progress(Progress(Phase.VERIFYING, layer.diff_id, done, total))

    out = create_file(again)
    source = os.open(original, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            result = _native.convert_layer(
                source, out, compression=compression, limits=limits.for_converter(), progress=report
            )
        except _native.LayerError as error:
            yield original, _damaged(f"kept layer {digest}", str(error))
            return
        if result.digest != digest:
            yield original, DigestMismatch(f"kept layer {digest}", expected=digest, seen=result.digest)
        elif not _same(out, layer.path):
            yield layer.path, _damaged(f"layer {layer.diff_id}", "its file is not what was written")
    finally:
        os.close(source)
        os.close(out)
        again.unlink()


def _merges_to(image: Image, work: Path) -> bool:
    again = work / f"again-{METADATA}"
    out = create_file(again)
    opened = []
    try:
        opened = [os.open(layer.path, os.O_RDONLY | os.O_CLOEXEC) for layer in image.layers]
        _native.merge(opened, out)
        return _same(out, image.metadata)
    except _native.LayerError:
        return False
    finally:
        for fd in (*opened, out):
            os.close(fd)
        again.unlink()


def _same(fd: int, path: Path) -> bool:
    with path.open("rb") as file:
        position = 0
        while True:
            ours = os.pread(fd, _CHUNK, position)
            if ours != file.read(_CHUNK):
                return False
            if not ours:
                return True
            position += len(ours)


def _damaged(what: str, why: str) -> ImageInvalid:
    return ImageInvalid(
        f"{what} is damaged: {why}",
        blob=what,
        hint="msb image verify --remove-damaged, then pull or load the image again",
    )
