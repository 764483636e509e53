"""Waiting for what the host shows but does not announce."""

from __future__ import annotations

import asyncio
import select
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_INTERVAL = 0.01
_PYTHON = 0.04  # seconds that an interpreter needs where nobody else wants the processors


def eventually(look: Callable[[], T], *, within: float, what: str) -> T:
    """The first true value of `look`; fails the test when there was none in `within` seconds.

    For states without an event to wait for: that a directory is gone, that a child was forked.
    """
    deadline = time.monotonic() + within
    while not (found := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within} s: {what} (last seen: {found!r})")
        time.sleep(_INTERVAL)
    return found


def promptly(look: Callable[[], T], *, within: float, what: str) -> T:
    """As `eventually`, for what is promised in seconds: those of a machine with a processor for each.

    The time for which this process was kept from looking, because others had the processors, does not count,
    for what is looked at had to wait as well.
    """
    left = within
    while True:
        begun = time.thread_time()
        if found := look():
            return found
        if left <= 0:
            raise AssertionError(f"not within {within} s: {what} (last seen: {found!r})")
        time.sleep(_INTERVAL)
        left -= _INTERVAL + time.thread_time() - begun


def at_this_pace(seconds: float) -> float:
    """A promise in seconds of a machine with time for it, in those that this one needs now: as many times
    more as a Python needs to come up and go, the slowest of three. What takes long for another reason has no
    excuse in it."""
    taken = []
    for _ in range(3):
        begun = time.monotonic()
        subprocess.run([sys.executable, "-I", "-c", "pass"], check=True)
        taken.append(time.monotonic() - begun)
    return seconds * max(1.0, max(taken) / _PYTHON)


def readable(descriptor: int, *, within: float, what: str) -> None:
    """Wait until a descriptor can be read or, for a pidfd, until the process has ended."""
    if not select.select([descriptor], [], [], within)[0]:
        raise AssertionError(f"not within {within} s: {what}")


async def eventually_here(look: Callable[[], T], *, within: float, what: str) -> T:
    """As `eventually`, for what this program's own event loop has yet to do."""
    deadline = time.monotonic() + within
    while not (found := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within} s: {what} (last seen: {found!r})")
        await asyncio.sleep(_INTERVAL)
    return found
