"""Packing a directory that is a root file system, and remembering the result while it is unchanged."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from microsandbox_oci import _native
from microsandbox_oci._config import DEFAULT_PATH, ImageConfig
from microsandbox_oci._config_document import parse_config
from microsandbox_oci._digest import digest_of
from microsandbox_oci._docker_source import build_manifest
from microsandbox_oci._errors import ArchiveInvalid, ArchiveNotFound, ImageError, LimitExceeded
from microsandbox_oci._files import create_file, publish, seal, store_errors, write_sealed
from microsandbox_oci._garbage import collect
from microsandbox_oci._images import Held, ImageDocuments, publish_image
from microsandbox_oci._json import dump
from microsandbox_oci._layers import LIMIT_CODES, is_sound
from microsandbox_oci._limits import Limits
from microsandbox_oci._locks import locked
from microsandbox_oci._manifest import OCI_CONFIG, Descriptor
from microsandbox_oci._model import Image
from microsandbox_oci._packed import PackedDirectory, read_packed
from microsandbox_oci._paths import StorePaths
from microsandbox_oci._platform import Platform
from microsandbox_oci._progress import Phase, Progress, ProgressCallback
from microsandbox_oci._records import read_image

LAYER_TYPE = "application/vnd.microsandbox.layer.v1.erofs"
"""Media type of a layer that never was a tar: its diff id is the converter's digest of the EROFS file."""


def fingerprint(directory: Path) -> str:
    """Return what changes whenever anything below ``directory`` does (names, modes, times; no contents).

    Raises:
        ArchiveNotFound: there is no such directory.
        ArchiveInvalid: it cannot be read, or changes while it is looked at.
    """
    try:
        return _native.fingerprint_directory(os.fsencode(directory))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArchiveNotFound(f"{str(directory)!r} is not a directory", hint="check the path") from error
    except OSError as error:
        raise ArchiveInvalid(f"cannot read {str(directory)!r}: {error.strerror or error}") from error
    except _native.LayerError as error:
        raise _changed(directory, error) from error


def cached_pack(paths: StorePaths, directory: Path, now: str) -> Image | None:
    """Return the image that ``directory`` was packed into, if its fingerprint still is ``now``."""
    try:
        record = read_packed(paths.packed(str(directory)))
        if record is None or record.fingerprint != now:
            return None
        return read_image(paths, record.digest)
    except ImageError:
        return None  # damaged: packed again


def pack(
    paths: StorePaths,
    directory: Path,
    now: str,
    work: Path,
    limits: Limits,
    platform: Platform,
    progress: ProgressCallback,
) -> Held:
    """Pack ``directory``, publish the image and record it under the fingerprint ``now``.

    The caller holds the directory's pack lock and removes what this pack replaces.
    """
    temporary = work / "packed.erofs"
    with store_errors("packing a directory", paths.root):
        out = create_file(temporary)
    try:
        result = _pack_layer(paths, directory, out, limits, progress)
        size = os.fstat(out).st_size
        with store_errors("packing a directory", paths.root):
            seal(out)
    finally:
        os.close(out)
    documents = _documents(result.diff_id, size, platform)

    def ensure_layers() -> None:
        target = paths.layer(result.diff_id)
        with (
            store_errors("packing a directory", paths.root),
            locked(paths.convert_lock(result.diff_id), unlink=True),
        ):
            if not is_sound(target):
                publish(temporary, target)

    held = None
    try:
        held = publish_image(paths, documents, work, ensure_layers, limits, progress)
        record = PackedDirectory(str(directory), now, held.image.digest)
        with store_errors("packing a directory", paths.root):
            write_sealed(work / "packed.json", record.encode())
            publish(work / "packed.json", paths.packed(str(directory)))
    except BaseException:
        if held is not None:
            os.close(held.lock)
        with suppress(OSError, ImageError):
            collect(paths, work, images=[documents.digest], layers=[result.diff_id])
        raise
    return held


def _pack_layer(
    paths: StorePaths, directory: Path, out: int, limits: Limits, progress: ProgressCallback
) -> _native.LayerResult:
    def report(done: int) -> None:
        progress(Progress(Phase.CONVERTING, str(directory), done))

    try:
        return _native.pack_directory(
            os.fsencode(directory), out, limits=limits.for_converter(), progress=report
        )
    except (PermissionError, FileNotFoundError, NotADirectoryError) as error:
        # The output is open already: only the input can be missing or forbidden.
        raise ArchiveInvalid(
            f"cannot read {str(directory)!r}: {error.strerror or error}",
            hint="every file of the directory has to be readable",
        ) from error
    except _native.LayerError as error:
        if error.code == "changed":
            raise _changed(directory, error) from error
        if error.code in LIMIT_CODES:
            raise LimitExceeded(f"{str(directory)!r} exceeds a limit: {error}", blob=error.entry) from error
        raise ArchiveInvalid(f"cannot pack {str(directory)!r}: {error}") from error
    except OSError as error:
        with store_errors("packing a directory", paths.root):
            raise error


def _changed(directory: Path, error: _native.LayerError) -> ArchiveInvalid:
    return ArchiveInvalid(
        f"{str(directory)!r} changed while it was read: {error}", hint="stop what writes to it and try again"
    )


def _documents(diff_id: str, size: int, platform: Platform) -> ImageDocuments:
    # No time and no path in here: the same tree packed twice is the same image.
    config = dump(
        {
            "architecture": platform.architecture,
            "os": platform.os,
            "config": ImageConfig(env=(DEFAULT_PATH,)).to_json(),
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        }
    )
    manifest = build_manifest(
        Descriptor(OCI_CONFIG, digest_of(config), len(config)), (Descriptor(LAYER_TYPE, diff_id, size),)
    )
    return ImageDocuments(digest_of(manifest), manifest, config, parse_config(config, max_layers=1))
