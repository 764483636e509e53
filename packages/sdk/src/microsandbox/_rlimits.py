"""Resource limits (getrlimit(2)) as they are asked for: names, checks, texts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from microsandbox_core.requests import UNLIMITED

from microsandbox.errors import ConfigError

NAMES: Final = (
    "as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue",
    "nice", "nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack",
)  # fmt: skip
"""The resources there are. Sizes are in bytes, `cpu` is in seconds, `rttime` in microseconds."""

Limits = tuple[tuple[str, int, int], ...]
"""Name, soft and hard limit of each; `UNLIMITED` is no limit."""


def check_rlimits(limits: Mapping[str, int | tuple[int, int]]) -> Limits:
    """Limits from soft and hard values by name; one value is both, and -1 no limit.

    Raises `ConfigError`, `TypeError`.
    """
    found = []
    for name, value in limits.items():
        pair: tuple[object, ...] = value if isinstance(value, tuple) else (value, value)
        match pair:
            case (int(soft), int(hard)) if bool not in (type(soft), type(hard)):
                found.append(_checked(name, _number(name, soft), _number(name, hard)))
            case _:
                raise TypeError(f"rlimits: {name}: expected an int or two, not {value!r}")
    return tuple(found)


def parse_rlimits(given: Iterable[str]) -> Limits:
    """Limits from texts such as ``nofile=1024:2048`` and ``core=unlimited``; the last of one name counts.

    Raises `ConfigError`.
    """
    found = {}
    for item in given:
        name, equals, values = item.partition("=")
        soft, colon, hard = values.partition(":")
        if not (name and equals and soft) or (colon and not hard):
            raise ConfigError(
                f"rlimit: {item!r} is not a limit",
                hint="for example: --rlimit nofile=1024:2048, --rlimit core=unlimited",
            )
        found[name] = _checked(name, _parse(name, soft), _parse(name, hard if colon else soft))
    return tuple(found.values())


def merged(limits: Limits, over: Limits) -> Limits:
    """Those of both; where both have one, the latter."""
    return tuple({limit[0]: limit for limit in (*limits, *over)}.values())


def _parse(name: str, text: str) -> int:
    if text == "unlimited":
        return UNLIMITED
    if not re.fullmatch(r"-1|[0-9]{1,20}", text):
        raise ConfigError(
            f"rlimit: {name}: {text!r} is not a limit",
            hint="use a whole number (sizes in bytes), or: unlimited",
        )
    return _number(name, int(text))


def _number(name: str, number: int) -> int:
    if number == -1:
        return UNLIMITED
    if not 0 <= number <= UNLIMITED:
        raise ConfigError(
            f"rlimit: {name}: {number} is not a limit", hint="use 0 to 2^64-1, or -1 for unlimited"
        )
    return number


def _checked(name: str, soft: int, hard: int) -> tuple[str, int, int]:
    if name not in NAMES:
        raise ConfigError(f"rlimit: there is no resource {name!r}", hint="one of: " + ", ".join(NAMES))
    if soft > hard:
        raise ConfigError(
            f"rlimit: {name}: the soft limit {_shown(soft)} is above the hard one {_shown(hard)}",
            hint=f"for example: {name}={_shown(hard)}:{_shown(soft)}",
        )
    return name, soft, hard


def _shown(number: int) -> str:
    return "unlimited" if number == UNLIMITED else str(number)


def as_numbers(limits: Limits) -> dict[str, list[int]]:
    """Soft and hard by name for JSON, -1 for no limit."""
    return {name: [-1 if number == UNLIMITED else number for number in pair] for name, *pair in limits}
