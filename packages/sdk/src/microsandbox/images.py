"""Images of a home directory: loaded, listed, removed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from microsandbox_oci import Image, ImageError, ImageStore, Progress, Reference, Removed, Step, Verified

from microsandbox._create import image_store
from microsandbox._state import State
from microsandbox.errors import ImageInUse, translated

__all__ = [
    "Image",
    "export",
    "export_to",
    "get",
    "history",
    "list_all",
    "load",
    "prune",
    "remove",
    "save",
    "save_to",
    "verify",
]


def load(
    home: Path,
    source: str | BinaryIO,
    *,
    tag: str | None = None,
    compression: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> list[Image]:
    """Load every image of an archive, a layout or a stream. `compression`: how their files are kept, ``none``
    or ``lz4``; by default as the environment says. Raises `ImageError` or `StateError`."""
    with translated():
        return _store(home, compression).load(source, tag=tag, progress=progress)


def get(home: Path, name: str) -> Image:
    """The image of this name or digest. Raises `ImageNotFound`, `ImageInvalid`."""
    with translated():
        return _store(home).get(name)


def list_all(
    home: Path, *, on_damaged: Callable[[Reference | None, ImageError], None] | None = None
) -> list[Image]:
    """All images, by name; damaged ones are handed to `on_damaged` instead."""
    with translated():
        return _store(home).list(on_damaged=on_damaged)


def remove(home: Path, name: str, *, force: bool = False) -> None:
    """Remove a name, and the image with its last one.

    Raises `ImageNotFound`, and `ImageInUse` while a sandbox, running or not, is made from it.
    """
    with translated():
        store = _store(home)
        digest = store.digest(name)  # also of a damaged one, of which there is no other way out
        if not force:
            state = State(home)
            users = [record.name for record in state.all() if record.image_digest == digest]
            state.close()
            names = [image for image in store.list() if image.digest == digest]
            if users and len(names) <= 1:
                raise ImageInUse(
                    f"the image {name} is used by the sandbox {users[0]}", hint=f"msb rm {users[0]}"
                )
        store.remove(name, force=force)


def save(home: Path, names: Iterable[str], out: BinaryIO, *, form: str = "oci") -> None:
    """Write images to a binary file as one archive, ``oci`` or ``docker``, with the bytes they came with.

    Raises `ImageNotFound`, `ImageInvalid`, `ImageError`; `OSError` if `out` cannot be written.
    """
    with translated():
        _store(home).save(names, out, format=form)


def save_to(
    home: Path, names: Sequence[str], target: str | os.PathLike[str] | BinaryIO, *, form: str
) -> None:
    """The same to a path, which has the whole archive or what it had before, or to a binary file.

    What a link leads to is written; so is a device or a pipe, into which the archive goes as it is made.
    """
    _write_to(target, lambda out: save(home, names, out, form=form))


def export(home: Path, name: str, out: BinaryIO) -> None:
    """Write an image's root file system to a binary file as one tar: what a sandbox of it sees.

    Raises `ImageNotFound`, `ImageInvalid`, `StateError`; `OSError` if `out` cannot be written.
    """
    with translated():
        _store(home).export(name, out)


def export_to(home: Path, name: str, target: str | os.PathLike[str] | BinaryIO) -> None:
    """The same to a path or a binary file, as `save_to` does it."""
    _write_to(target, lambda out: export(home, name, out))


def _write_to(target: str | os.PathLike[str] | BinaryIO, write: Callable[[BinaryIO], None]) -> None:
    if not isinstance(target, str | os.PathLike):
        write(target)
        return
    if os.path.exists(target) and not os.path.isfile(target):  # noqa: PTH110, PTH113 - may be text
        with open(target, "wb") as stream:  # noqa: PTH123
            write(stream)
        return
    path = Path(os.path.realpath(target))
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("xb") as out:
            write(out)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def verify(
    home: Path,
    name: str,
    *,
    remove_damaged: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Verified:
    """Compare everything of an image with what was stored; see `microsandbox_oci.ImageStore.verify`.

    Raises `ImageNotFound`, `ImageInvalid`, `StateError`.
    """
    with translated():
        return _store(home).verify(name, remove_damaged=remove_damaged, progress=progress)


def prune(home: Path, *, dry_run: bool = False) -> Removed:
    """Remove images without a name that no sandbox is made from, and layers that no image needs.

    With `dry_run` nothing is removed, and the result says what would be. Raises `StateError`.
    """
    with translated():
        state = State(home)
        try:
            used = {record.image_digest for record in state.all()}
        finally:
            state.close()
        return _store(home).prune(keep=used, dry_run=dry_run)


def history(home: Path, name: str) -> list[Step]:
    """How an image says it was built, oldest step first. Raises `ImageNotFound`, `ImageInvalid`."""
    with translated():
        return _store(home).history(name)


def _store(home: Path, compression: str | None = None) -> ImageStore:
    return image_store(home, compression=compression)
