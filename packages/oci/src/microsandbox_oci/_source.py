"""What a load reads from: verified documents of each image and where its layers' bytes are.

A reader (OCI layout, docker archive) gives `SourceImage` values; the store converts and publishes
them without knowing where they came from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from microsandbox_oci._config_document import ConfigDocument
from microsandbox_oci._errors import ArchiveNotFound, LimitExceeded, PlatformMismatch, ReferenceInvalid
from microsandbox_oci._limits import Limits
from microsandbox_oci._manifest import Descriptor
from microsandbox_oci._paths import StorePaths
from microsandbox_oci._platform import Platform
from microsandbox_oci._reference import Reference


class LayerBytes(Protocol):
    """The bytes of a layer as the source has them, compressed or not."""

    @property
    def size(self) -> int:
        """Bytes, as the source says."""
        ...

    @property
    def remote(self) -> bool:
        """Whether they have to be fetched: then a layer that the store has already is not read."""
        ...

    def stream(self) -> AbstractContextManager[int]:
        """Give a descriptor that delivers exactly these bytes and then ends."""
        ...

    def digest(self, progress: Callable[[int], None] | None = None) -> str:
        """Hash all bytes, those of a remote source that have arrived."""
        ...

    def arrived(self) -> int:
        """Bytes that are here without reading from afar."""
        ...

    def keep(self, paths: StorePaths, digest: str, work: Path) -> None:
        """Put the bytes, which the caller has verified, into the store as the blob ``digest``."""
        ...

    def keeping(self) -> AbstractContextManager[None]:
        """Keep what is read from those who clean up, until it is kept or discarded."""
        ...

    def check(self) -> None:
        """Raise if nobody wants the bytes any more."""
        ...

    def discard(self) -> None:
        """Forget what has arrived: it is not what was asked for."""
        ...

    def elsewhere(self) -> bool:
        """Say, of bytes that were not what was asked for, whether others come from another place."""
        ...


@dataclass(frozen=True, slots=True)
class SourceLayer:
    """One layer of a source: what it must turn out to be, and its bytes, not verified yet."""

    diff_id: str
    descriptor: Descriptor
    blob: LayerBytes


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One image of a source. ``manifest`` and ``config`` are verified original bytes.

    ``names`` are the references the source gives it, ``labels`` every name it can be chosen by.
    """

    digest: str
    names: tuple[Reference, ...]
    labels: tuple[str, ...]
    manifest: bytes
    config: bytes
    document: ConfigDocument
    layers: tuple[SourceLayer, ...]


def check_platform(platform: Platform, document: ConfigDocument, what: str) -> None:
    """Refuse an image for another operating system or processor: it could only fail later, in the guest.

    Raises:
        PlatformMismatch.
    """
    seen = document.platform
    if seen is not None and (seen.os, seen.architecture) != (platform.os, platform.architecture):
        raise platform_mismatch(what, platform, [seen])


def platform_mismatch(what: str, platform: Platform, seen: Iterable[Platform | None]) -> PlatformMismatch:
    """Return the error for an image that offers only the platforms ``seen``."""
    offered = ", ".join(sorted({str(other) for other in seen if other is not None})) or "none"
    return PlatformMismatch(
        f"{what} is not for {platform}: it has {offered}",
        blob=what,
        expected=str(platform),
        seen=offered,
        hint=f"get the image for {platform}",
    )


def check_count(count: int, limits: Limits, where: str) -> None:
    """Bound the number of images in one source."""
    if count > limits.images_per_source:
        raise LimitExceeded(
            f"{where} lists {count} images, the limit is {limits.images_per_source}",
            expected=str(limits.images_per_source),
            seen=str(count),
        )


def merge_names(images: Iterable[SourceImage]) -> list[SourceImage]:
    """Join entries that are the same image under several names, keeping the order of first appearance."""
    merged: dict[str, SourceImage] = {}
    for image in images:
        before = merged.get(image.digest)
        if before is None:
            merged[image.digest] = image
            continue
        names = tuple(dict.fromkeys(before.names + image.names))
        labels = tuple(dict.fromkeys(before.labels + image.labels))
        merged[image.digest] = replace(before, names=names, labels=labels)
    return list(merged.values())


def label_matches(labels: Iterable[str], wanted: str) -> bool:
    """Say whether one of ``labels`` is ``wanted``, spelled alike or as the same reference."""
    if wanted in (candidates := tuple(labels)):
        return True
    try:
        reference = Reference.parse(wanted)
    except ReferenceInvalid:
        return False
    return any(parsed == reference for label in candidates if (parsed := parse_or_none(label)) is not None)


def parse_or_none(text: str) -> Reference | None:
    """Parse ``text``, None if it is no reference: the names in a layout may be anything."""
    try:
        return Reference.parse(text)
    except ReferenceInvalid:
        return None


def no_such_image(where: str, wanted: str, available: Iterable[str]) -> ArchiveNotFound:
    """Return the error for an image name that a source does not have."""
    names = sorted(set(available))
    # Names of archives may be anything, and this is shown on terminals.
    shown = ", ".join(name[:100] if name.isprintable() else repr(name[:100]) for name in names[:10])
    shown += ", ..." if len(names) > 10 else ""
    return ArchiveNotFound(
        f"{where} has no image {wanted!r}", hint=f"it has {shown}" if shown else "its images have no names"
    )
