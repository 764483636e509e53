"""Images of a home directory: loaded, listed, removed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from microsandbox_oci import Image, ImageError, ImageStore, Progress, Reference

from microsandbox._state import State
from microsandbox.errors import ImageInUse, translated

__all__ = ["Image", "get", "list_all", "load", "remove"]


def load(
    home: Path,
    source: str | BinaryIO,
    *,
    tag: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> list[Image]:
    """Load every image of an archive, a layout or a stream. Raises `ImageError` or `StateError`."""
    with translated():
        return _store(home).load(source, tag=tag, progress=progress)


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
        digest = store.get(name).digest
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


def _store(home: Path) -> ImageStore:
    return ImageStore(home / "cache")
