"""When the registry of an image is asked."""

from __future__ import annotations

from enum import StrEnum


class PullPolicy(StrEnum):
    """When an image is asked for at its registry."""

    ALWAYS = "always"
    """Each time; what has not changed is not fetched again."""
    IF_MISSING = "if-missing"
    NEVER = "never"
