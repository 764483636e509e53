"""Images as a program sees them: `Image`, and what can be given as `image=`."""

from __future__ import annotations

import asyncio
import builtins
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

from microsandbox_core import env as environment

from microsandbox._config import check_type
from microsandbox._policy import PullPolicy as PullPolicy
from microsandbox.errors import ConfigError, translated
from microsandbox.progress import ProgressEvent, reporting

if TYPE_CHECKING:
    from microsandbox_oci import Image as StoredImage
    from microsandbox_oci import ImageConfig


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Where the root file system of a sandbox comes from: make one with `Image.oci` or `Image.bind`."""

    kind: Literal["oci", "bind"]
    location: str

    def __str__(self) -> str:
        return self.location


@dataclass(frozen=True, slots=True)
class ImageDetails:
    """Everything that is known about an image.

    `config`: what is run in it, and how, if a sandbox does not say otherwise. `layers`: digests of their
    uncompressed contents, base first, with the bytes that each takes; other images may share them. `disk`:
    the VMDK file that joins metadata and layers to one read-only disk.
    """

    image: Image
    config: ImageConfig
    layers: tuple[tuple[str, int], ...]
    disk: Path


@dataclass(frozen=True, slots=True)
class PrunedImages:
    """What `Image.prune` removed, or would: digests of images, digests of layers, bytes of all their
    files."""

    images: tuple[str, ...]
    layers: tuple[str, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Image:
    """An image in the store, and as such a value for `image=` of `Sandbox.create`.

    `name` as it is shown everywhere (``busybox:latest``), None for an image without one. `size`: bytes of
    its files; layers that are shared with other images count in each. `created_at`: when it was built, None
    if it does not say that in a form that is a time. `architecture` as Go has it (``amd64``), or empty.
    """

    name: str | None
    digest: str
    size: int
    created_at: datetime | None
    architecture: str

    # ----------------------------------------------------------------------------- values for `image=`

    @staticmethod
    def oci(reference: str) -> ImageSource:
        """The image of this name in the store, whatever files there are. Raises `ImageError`."""
        from microsandbox_oci import Reference

        check_type(reference, str, "reference")
        with translated():
            Reference.parse(reference)
        return ImageSource("oci", reference)

    @staticmethod
    def bind(path: str | os.PathLike[str]) -> ImageSource:
        """A directory of the host that is a root file system. It is packed when a sandbox is created from it:
        what is written in the sandbox does not reach it. Raises `ConfigError` if it is no directory."""
        found = os.path.abspath(os.fspath(path))  # noqa: PTH100 - links stay as they are
        if not Path(found).is_dir():
            raise ConfigError(f"path: {found} is not a directory", hint="for archives: Image.load")
        return ImageSource("bind", found)

    # --------------------------------------------------------------------------------------- the store

    @classmethod
    async def get(cls, name: str) -> Image:
        """The image of this name or digest. Raises `ImageNotFound`, `ImageInvalid`."""
        return _image(await asyncio.to_thread(_get, name))

    @classmethod
    async def inspect(cls, name: str) -> ImageDetails:
        """All about an image. Raises `ImageNotFound`, `ImageInvalid`."""
        found = await asyncio.to_thread(_get, name)
        layers = tuple((layer.diff_id, layer.size) for layer in found.layers)
        return ImageDetails(_image(found), found.config, layers, found.disk)

    @classmethod
    async def list(cls) -> builtins.list[Image]:
        """All images, by name, one for each name; those that are damaged are left out."""
        from microsandbox import images

        return [_image(found) for found in await asyncio.to_thread(images.list_all, environment.home())]

    @classmethod
    async def load(
        cls,
        source: str | os.PathLike[str] | BinaryIO,
        *,
        tag: str | None = None,
        progress: Callable[[ProgressEvent], None] | None = None,
    ) -> builtins.list[Image]:
        """Load every image of an archive or layout, or none of them.

        `source`: the path of a `docker save` archive, an OCI archive or an OCI layout, text such as
        ``oci:DIR`` or ``oci-archive:FILE``, or a binary file. `tag`: the name to give instead of those it
        has; it must have one image then. `progress` is called on another thread.

        Raises `ImageError` when it is not there or not what it should be, `StateError`.
        """
        from microsandbox import images

        text = os.fspath(source) if isinstance(source, os.PathLike) else source
        found = await asyncio.to_thread(
            images.load, environment.home(), text, tag=tag, progress=reporting(progress)
        )
        return [_image(image) for image in found]

    @classmethod
    async def pull(
        cls,
        name: str,
        *,
        policy: str = "always",
        platform: str | None = None,
        credentials: tuple[str, str] | None = None,
        insecure: bool = False,
        progress: Callable[[ProgressEvent], None] | None = None,
    ) -> Image:
        """Fetch an image from its registry, as far as it is not in the store.

        `policy`: ``always`` asks the registry what the name means now, ``if-missing`` only if the store does
        not have it, ``never`` not at all. `platform`: such as ``linux/amd64``, of an image for several; this
        machine's by default. `credentials`: user name and password, in place of those of
        ``msb registry login`` and of Docker. `insecure`: accept any certificate of this registry, and plain
        HTTP. `progress` is called on other threads, never twice at once.

        Raises `PullFailed` when the registry does not give it, `ImageNotFound` with ``never``,
        `ImageInvalid`, `StateError`.
        """
        from microsandbox import registries

        check_type(name, str, "name")
        chosen = check_policy(policy, "policy")
        check_credentials(credentials, "credentials")
        abort = registries.Abort()
        try:
            found = await asyncio.to_thread(
                registries.pull,
                environment.home(),
                name,
                policy=chosen,
                platform=None if platform is None else registries.parse_platform(platform),
                credentials=None if credentials is None else registries.Credentials(*credentials),
                insecure=insecure,
                progress=reporting(progress),
                abort=abort,
            )
        except asyncio.CancelledError:
            abort()  # the thread would go on
            raise
        return _image(found)

    @classmethod
    async def save(
        cls, names: str | Sequence[str], target: str | os.PathLike[str] | BinaryIO, *, format: str = "docker"
    ) -> None:
        """Write images to one archive, with the digests that they came with.

        `target`: a path, which has the whole archive or what it had before, or a binary file. `format`:
        ``docker`` or ``oci``.

        Raises `ImageNotFound`, `ImageError`, `OSError` if it cannot be written.
        """
        from microsandbox import images

        if format not in ("docker", "oci"):
            raise ConfigError(f"format: {format!r} is neither docker nor oci")
        wanted = (names,) if isinstance(names, str) else tuple(names)
        await asyncio.to_thread(images.save_to, environment.home(), wanted, target, form=format)

    @classmethod
    async def export(cls, name: str, target: str | os.PathLike[str] | BinaryIO) -> None:
        """Write an image's root file system as one tar: what a sandbox of it sees, all layers applied.

        `target`: a path, which has the whole archive or what it had before, or a binary file. It is a PAX
        archive with owners, modes, times, extended attributes, hard links, devices and holes; the same image
        always gives the same bytes.

        Raises `ImageNotFound`, `ImageInvalid`, `StateError`, `OSError` if it cannot be written.
        """
        from microsandbox import images

        check_type(name, str, "name")
        await asyncio.to_thread(images.export_to, environment.home(), name, target)

    @classmethod
    async def remove(cls, name: str, *, force: bool = False) -> None:
        """Remove a name, and the image with its last one.

        Raises `ImageNotFound`, and `ImageInUse` while a sandbox, running or not, is made from it, unless
        `force`.
        """
        from microsandbox import images

        await asyncio.to_thread(images.remove, environment.home(), name, force=force)

    @classmethod
    async def prune(cls, *, dry_run: bool = False) -> PrunedImages:
        """Remove images without a name, packed directories that are gone, and layers that no image needs.

        What a sandbox is made from stays, whether it runs or not. `dry_run`: only say what would go.
        """
        return await asyncio.to_thread(_prune, environment.home(), dry_run=dry_run)


ImageArgument = str | os.PathLike[str] | ImageSource | Image
"""What `image=` takes: a name or digest in the store, text such as ``oci:DIR``, the path of an archive,
layout or root file system (as text it begins with ``./``, ``../``, ``/`` or ``~``), or a value that `Image`
has made."""


def image_text(image: ImageArgument) -> str:
    """`image` in the form that the command line takes. Raises `TypeError`."""
    if isinstance(image, str):
        return image
    if isinstance(image, ImageSource):
        return image.location
    if isinstance(image, Image):
        return image.digest
    if isinstance(image, os.PathLike):
        return os.path.abspath(image)  # noqa: PTH100 - links stay as they are
    raise TypeError(f"image: expected str, path or Image, not {type(image).__name__}")


def check_credentials(value: object, parameter: str) -> None:
    """Raise `TypeError`, which shows nothing of the value, unless it is a user name and a password."""
    pair = (
        isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(text, str) for text in value)
    )
    if value is not None and not pair:
        raise TypeError(f"{parameter}: expected a user name and a password")


def check_policy(value: str, parameter: str) -> PullPolicy:
    """Raises `ConfigError` for what is no policy."""
    try:
        return PullPolicy(value)
    except ValueError:
        raise ConfigError(
            f"{parameter}: {value!r} is not one of {', '.join(PullPolicy)}", hint="the default is if-missing"
        ) from None


def _get(name: str) -> StoredImage:
    from microsandbox import images

    check_type(name, str, "name")
    return images.get(environment.home(), name)


def _image(found: StoredImage) -> Image:
    try:
        created = datetime.fromisoformat(found.created)
    except ValueError:
        created = None
    name = None if found.reference is None else found.reference.familiar
    return Image(name, found.digest, found.size, created, found.architecture)


def _prune(home: Path, *, dry_run: bool) -> PrunedImages:
    from microsandbox._create import image_store
    from microsandbox._state import State

    with translated(), ExitStack() as stack:
        from microsandbox_oci import ImageError, open_in_use_lock

        store = image_store(home)
        state = State(home)
        stack.callback(state.close)
        # The store knows only of sandboxes that run: those that could be started again are held here.
        for digest in {record.image_digest for record in state.all()}:
            try:
                stack.callback(os.close, open_in_use_lock(store.get(digest)))
            except ImageError:
                pass  # it is damaged or gone, so there is nothing left to keep
        removed = store.prune(dry_run=dry_run)
    return PrunedImages(removed.images, removed.layers, removed.size)
