"""Which of a multi-platform image's variants runs here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

# Machine names of uname(2) to the architecture names of Go, which the OCI image index uses.
_ARCHITECTURES = {
    "x86_64": ("amd64", None),
    "aarch64": ("arm64", "v8"),
    "arm64": ("arm64", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", None),
    "riscv64": ("riscv64", None),
    "ppc64le": ("ppc64le", None),
    "s390x": ("s390x", None),
    "loongarch64": ("loong64", None),
}

# What a variant that is not named means (v8 of arm64, v7 of arm), and what runs on what: best first.
_VARIANTS: dict[tuple[str, str | None], tuple[str, ...]] = {
    ("amd64", None): ("", "v1"),
    ("amd64", "v1"): ("", "v1"),
    ("arm64", None): ("v8", ""),
    ("arm64", "v8"): ("v8", ""),
    ("arm", None): ("v7", "", "v6", "v5"),
    ("arm", "v7"): ("v7", "", "v6", "v5"),
    ("arm", "v6"): ("v6", "v5"),
}


@dataclass(frozen=True, slots=True)
class Platform:
    """An operating system, an architecture in Go's naming and, where it matters, its variant."""

    os: str
    architecture: str
    variant: str | None = None

    @classmethod
    def host(cls) -> Platform:
        """Return Linux on the architecture of this machine: what a guest of it runs."""
        machine = os.uname().machine
        architecture, variant = _ARCHITECTURES.get(machine, (machine, None))
        return cls("linux", architecture, variant)

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def rank(self, other: Platform) -> int | None:
        """Say how well an image for ``other`` fits this platform: 0 is best, None not at all."""
        if (self.os, self.architecture) != (other.os, other.architecture):
            return None
        accepted = _VARIANTS.get((self.architecture, self.variant), (self.variant or "",))
        variant = other.variant or ""
        return accepted.index(variant) if variant in accepted else None

    def choose(self, offered: Sequence[Platform | None]) -> int | None:
        """Return the index of the best fit in ``offered``, the first of equals; None if nothing fits.

        An entry without a platform (None) is taken only when it is alone.
        """
        if len(offered) == 1 and offered[0] is None:
            return 0
        ranked = [
            (rank, index)
            for index, other in enumerate(offered)
            if other is not None and (rank := self.rank(other)) is not None
        ]
        return min(ranked)[1] if ranked else None
