"""What an image argument on a command line means: a reference, an archive, a layout or a directory."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from microsandbox_oci._errors import ArchiveInvalid, ArchiveNotFound
from microsandbox_oci._reference import Reference

LAYOUT_MARKER = "oci-layout"


class ArchiveForm(StrEnum):
    """How an archive is to be read: as its prefix says, or as its contents show."""

    AUTO = "auto"
    DOCKER = "docker-archive"
    OCI = "oci-archive"


class ArchivePath(NamedTuple):
    """A tar file with images in it; ``image`` chooses one of them by name, None takes all."""

    path: Path
    form: ArchiveForm = ArchiveForm.AUTO
    image: str | None = None


class LayoutPath(NamedTuple):
    """A directory in OCI image layout; ``image`` chooses one image by name, None takes all."""

    path: Path
    image: str | None = None


class RootfsDirectory(NamedTuple):
    """A directory that is a root file system."""

    path: Path


ImageArgument = Reference | ArchivePath | LayoutPath | RootfsDirectory

_SCHEMES = {"docker-archive": ArchiveForm.DOCKER, "oci-archive": ArchiveForm.OCI, "oci": None}


def classify_image_argument(text: str) -> ImageArgument:
    """Say what ``text`` names.

    It is a path if it begins with ``./``, ``../``, ``/`` or ``~``, is ``.`` or ``..``, or follows one
    of the prefixes ``docker-archive:``, ``oci-archive:`` and ``oci:``; anything else is a reference,
    whatever files the working directory has.

    Raises:
        ReferenceInvalid: it is no path and no reference either.
        ArchiveNotFound: it is a path and nothing is there.
        ArchiveInvalid: a prefix and the kind of file behind it do not fit, or the path holds a NUL.
    """
    scheme, colon, rest = text.partition(":")
    if colon and scheme in _SCHEMES:
        return _prefixed(scheme, rest)
    if text.startswith(("./", "../", "/", "~")) or text in (".", ".."):
        return _bare(text)
    return Reference.parse(text)


def classify_path(path: Path) -> ArchivePath | LayoutPath | RootfsDirectory:
    """Say what is at ``path``, by looking: a directory with an ``oci-layout`` file is a layout.

    Raises:
        ArchiveNotFound: nothing is there.
    """
    try:
        exists, is_directory = path.exists(), path.is_dir()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ArchiveInvalid(f"cannot look at {str(path)!r}: {reason}") from error
    if not exists:
        raise _missing(path)
    if not is_directory:
        return ArchivePath(path)
    return LayoutPath(path) if (path / LAYOUT_MARKER).is_file() else RootfsDirectory(path)


def _bare(text: str) -> ArchivePath | LayoutPath | RootfsDirectory:
    return classify_path(_expand(text))


def _prefixed(scheme: str, rest: str) -> ArchivePath | LayoutPath:
    if not rest:
        raise ArchiveInvalid(f"{scheme}: needs a path after the colon")
    path, image = _split_image(rest)
    found = classify_path(path)
    form = _SCHEMES[scheme]
    if form is None:
        if not isinstance(found, LayoutPath):
            raise ArchiveInvalid(
                f"{str(path)!r} is not an OCI image layout: it has no {LAYOUT_MARKER} file",
                hint="for a tar file use oci-archive: or docker-archive:",
            )
        return LayoutPath(path, image)
    if not isinstance(found, ArchivePath):
        raise ArchiveInvalid(
            f"{str(path)!r} is a directory, {scheme}: takes a tar file", hint="use oci: for a layout"
        )
    return ArchivePath(path, form, image)


def _split_image(rest: str) -> tuple[Path, str | None]:
    """Split ``PATH[:IMAGE]``: a path may hold colons too, so the shortest prefix that exists wins."""
    whole = _expand(rest)
    if _exists(whole):
        return whole, None
    at = rest.find(":")
    while at != -1:
        candidate = _expand(rest[:at])
        if at and _exists(candidate):
            return candidate, rest[at + 1 :] or None
        at = rest.find(":", at + 1)
    return _expand(rest.partition(":")[0]), rest.partition(":")[2] or None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _expand(text: str) -> Path:
    return Path(os.path.expanduser(text))  # noqa: PTH111 - Path.expanduser raises for an unknown user


def _missing(path: Path) -> ArchiveNotFound:
    return ArchiveNotFound(
        f"there is nothing at {str(path)!r}", hint="check the path of the archive or directory"
    )
