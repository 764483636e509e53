"""Directories of a share that the guest has on its own disk, named by patterns: which of them there are.

A pattern is a relative path whose names may have ``*``, ``?`` and ``[...]`` as in fnmatch(3), none of
which stands for a slash; ``**`` as a whole name is any number of directories, none among them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase

from microsandbox._trees import Descent, below
from microsandbox.errors import StateError

LIMIT = 64
"""Directories of one mount; agentd takes no more."""
ENTRIES_MAX = 1_000_000
"""Names that are looked at for one mount."""
SECONDS_MAX = 10.0

_States = set[tuple[str, ...]]
"""What is left to match of patterns, below one directory. The empty tuple: that directory matches."""


def is_pattern(path: str) -> bool:
    """Whether it may stand for several directories."""
    return any(sign in path for sign in "*?[")


def search(source: str, patterns: Iterable[str], known: Collection[str] = ()) -> list[str]:
    """The directories below `source` that match, relative to it, sorted, but for those `known`.

    No link is followed, whoever swaps one in meanwhile. What matches, and what is known, is not searched: it
    is hidden in the guest. Raises `OSError`, and `StateError` for too many or too much.
    """
    start: _States = set()
    for pattern in patterns:
        start |= _closed(tuple(pattern.split("/")))
    found: list[str] = []
    seen, end = 0, time.monotonic() + SECONDS_MAX
    root = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with Descent(root) as directories:
            waiting = [("", start)]
            while waiting:
                at, states = waiting.pop()
                if time.monotonic() > end:
                    raise _too_much(source, f"to search it took longer than {SECONDS_MAX:.0f} s")
                for name in _names(directories, at, ENTRIES_MAX - seen):
                    seen += 1
                    left = _after(states, name) if name else set()
                    path = below(at, name)
                    if not left or path in known:
                        continue
                    if () not in left:
                        waiting.append((path, left))
                        continue
                    found.append(path)
                    if len(found) + len(known) > LIMIT:
                        raise _too_much(source, f"more than {LIMIT} directories match")
                if seen >= ENTRIES_MAX:
                    raise _too_much(source, f"more than {ENTRIES_MAX} names were to be looked at")
    finally:
        os.close(root)
    return sorted(found)


def _names(directories: Descent, path: str, most: int) -> list[str]:
    """The names in a directory, at most so many, those that are no directories as ""."""
    names = []
    try:
        with os.scandir(directories.open(path)) as entries:
            for _, entry in zip(range(most), entries, strict=False):
                names.append(entry.name if entry.is_dir(follow_symlinks=False) else "")
    except OSError:
        pass  # it has gone, or cannot be read: then the guest cannot either
    return names


def _after(states: _States, name: str) -> _States:
    """What is left below the directory of that name."""
    left: _States = set()
    for state in states:
        if state[0] == "**":
            left |= _closed(state)
        elif fnmatchcase(name, state[0]):
            left |= _closed(state[1:])
    return left


def _closed(state: tuple[str, ...]) -> _States:
    """It, and what it is without the ``**`` that it begins with."""
    return {state} | (_closed(state[1:]) if state[:1] == ("**",) else set())


def _too_much(source: str, what: str) -> StateError:
    return StateError(
        f"{source}: guest=: {what}", hint="use narrower patterns: guest=packages/*/node_modules"
    )
