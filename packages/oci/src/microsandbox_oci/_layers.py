"""Getting one layer into the store: verified, converted once however many processes want it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from microsandbox_oci import _native
from microsandbox_oci._blobs import Blob
from microsandbox_oci._errors import (
    ArchiveInvalid,
    DigestMismatch,
    ImageInvalid,
    LayerInvalid,
    LimitExceeded,
    SizeMismatch,
)
from microsandbox_oci._files import create_file, seal, store_errors, written_back
from microsandbox_oci._limits import Limits
from microsandbox_oci._locks import locked
from microsandbox_oci._paths import StorePaths
from microsandbox_oci._progress import Phase, Progress, ProgressCallback
from microsandbox_oci._source import SourceLayer

_LARGE = 16 << 20
LIMIT_CODES = frozenset(
    {
        "too_many_entries",
        "too_large",
        "ratio",
        "window",
        "path_too_long",
        "xattrs",
        "header_too_large",
        "metadata",
    }
)


def is_sound(path: Path) -> bool:
    """Say whether a layer or metadata file is there, complete, and its metadata undamaged."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        _native.check_layer(fd)
    except _native.LayerError:
        return False
    finally:
        os.close(fd)
    return True


def ensure_layer(
    paths: StorePaths, layer: SourceLayer, work: Path, limits: Limits, progress: ProgressCallback
) -> None:
    """Make sure that the store has ``layer``; the caller holds its pin.

    A layer that is there already, by diff id, is not converted again. The bytes of an archive are still
    hashed: a damaged one is reported whatever the store happens to hold. Those of a registry are not fetched.

    Raises:
        DigestMismatch, SizeMismatch, LayerInvalid, LimitExceeded: see `ImageInvalid`.
        StoreError: the store is full or not writable.
    """
    if layer.blob.size != layer.descriptor.size:
        raise SizeMismatch(_what(layer), expected=layer.descriptor.size, seen=layer.blob.size)
    path = paths.layer(layer.diff_id)
    if not is_sound(path):
        check = layer.blob.check if layer.blob.remote else None
        with locked(paths.convert_lock(layer.diff_id), unlink=True, check=check):
            if not is_sound(path):
                if layer.blob.remote and _from_kept(paths, layer, work, limits, progress):
                    return
                if layer.blob.remote:
                    with layer.blob.keeping():
                        _fetch(paths, layer, work, limits, progress)
                else:
                    _convert(paths, layer, work, limits, progress)
                    _keep(paths, layer, work)
                return
    if layer.blob.remote:
        return
    seen = layer.blob.digest(_report(layer, Phase.VERIFYING, progress))
    if seen != layer.descriptor.digest:
        raise DigestMismatch(_what(layer), expected=layer.descriptor.digest, seen=seen)
    _keep(paths, layer, work)


def _keep(paths: StorePaths, layer: SourceLayer, work: Path) -> None:
    with store_errors("keeping a layer", paths.root):
        layer.blob.keep(paths, layer.descriptor.digest, work)


def _from_kept(
    paths: StorePaths, layer: SourceLayer, work: Path, limits: Limits, progress: ProgressCallback
) -> bool:
    """Convert what an earlier pull has kept: for another compression, or because the layer was damaged.

    False if nothing was, or if it is damaged: then it is fetched.
    """
    kept = paths.blob(layer.descriptor.digest)
    if not kept.exists():
        return False
    blob = Blob(f"layer {layer.descriptor.digest}", 0, layer.descriptor.size, lambda: _opened(kept))
    try:
        _convert(paths, replace(layer, blob=blob), work, limits, progress)
    except (ImageInvalid, ArchiveInvalid):
        return False
    return True


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _fetch(
    paths: StorePaths, layer: SourceLayer, work: Path, limits: Limits, progress: ProgressCallback
) -> None:
    """Fetch and convert; what an earlier attempt left, or a mirror gave, is not trusted beyond one try."""
    while True:
        resumed = layer.blob.arrived() > 0
        try:
            _convert(paths, layer, work, limits, progress)
        except ImageInvalid:
            # Of bytes that the converter refused before all were there, nobody knows whether they are right.
            right = (
                layer.blob.arrived() == layer.descriptor.size
                and layer.blob.digest() == layer.descriptor.digest
            )
            layer.blob.discard()
            if not resumed and (right or not layer.blob.elsewhere()):
                raise
        else:
            break
    _keep(paths, layer, work)


def _convert(
    paths: StorePaths, layer: SourceLayer, work: Path, limits: Limits, progress: ProgressCallback
) -> None:
    target = paths.layer(layer.diff_id)
    temporary = work / target.name
    with store_errors("converting a layer", paths.root):
        out = create_file(temporary)
        try:
            large = layer.blob.size > _LARGE
            with layer.blob.stream() as source, written_back(out) if large else nullcontext():
                result = _native.convert_layer(
                    source,
                    out,
                    compression=paths.compression,
                    limits=limits.for_converter(),
                    progress=_report(layer, Phase.CONVERTING, progress),
                )
            _compare(layer, result)
            seal(out)
            temporary.rename(target)  # made durable with those of the other layers: see `publish_image`
        except _native.LayerError as error:
            raise _explain(layer, error) from error
        finally:
            os.close(out)
            temporary.unlink(missing_ok=True)


def _compare(layer: SourceLayer, result: _native.LayerResult) -> None:
    if result.compressed_size != layer.descriptor.size:
        raise SizeMismatch(_what(layer), expected=layer.descriptor.size, seen=result.compressed_size)
    if result.digest != layer.descriptor.digest:
        raise DigestMismatch(_what(layer), expected=layer.descriptor.digest, seen=result.digest)
    if result.diff_id != layer.diff_id:
        raise DigestMismatch(f"{_what(layer)} uncompressed", expected=layer.diff_id, seen=result.diff_id)


def _explain(layer: SourceLayer, error: _native.LayerError) -> ImageInvalid:
    # Damaged bytes fail in the decompressor or the tar reader before their digest is complete. Which
    # of the two it was matters to the user: bad bytes are fetched again, a bad layer is built again.
    # Of what did not arrive to its end, because the converter has refused it before, neither is known.
    if layer.blob.arrived() == layer.descriptor.size:
        seen = layer.blob.digest()
        if seen != layer.descriptor.digest:
            return DigestMismatch(_what(layer), expected=layer.descriptor.digest, seen=seen)
    if error.code in LIMIT_CODES:
        where = f" at entry {error.entry!r}" if error.entry else ""
        return LimitExceeded(f"{_what(layer)} exceeds a limit{where}: {error}", blob=_what(layer))
    return LayerInvalid(_what(layer), str(error), reason=error.code, entry=error.entry)


def _report(layer: SourceLayer, phase: Phase, progress: ProgressCallback) -> Callable[[int], None]:
    def report(done: int) -> None:
        progress(Progress(phase, layer.diff_id, done, layer.blob.size))

    return report


def _what(layer: SourceLayer) -> str:
    return f"layer {layer.descriptor.digest}"
