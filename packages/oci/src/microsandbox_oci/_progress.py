"""What loads, packs and removals report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """What a load or a pull is doing."""

    RESOLVING = "resolving"
    DOWNLOADING = "downloading"
    READING = "reading"
    VERIFYING = "verifying"
    CONVERTING = "converting"
    MERGING = "merging"
    DONE = "done"
    WARNING = "warning"
    """Something went wrong and was made good: `Progress.subject` says what, in one line."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One step of a load or a pack.

    ``subject`` is the layer's diff id while verifying and converting, the image's digest while merging and
    done, the archive's path while reading, the reference while resolving; downloading and converting a layer
    go on at the same time and report both. The layers that are to be fetched are all reported, with nothing
    done, before the first of them is. ``done`` and ``total`` are bytes; ``total`` is None if unknown.
    """

    phase: Phase
    subject: str
    done: int = 0
    total: int | None = None


ProgressCallback = Callable[[Progress], None]
"""Called from the thread that works; an exception it raises ends the work and leaves nothing behind."""


@dataclass(frozen=True, slots=True)
class Removed:
    """What a removal or a prune deleted: manifest digests, diff ids, and the bytes of all their files."""

    images: tuple[str, ...]
    layers: tuple[str, ...]
    size: int
