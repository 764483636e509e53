"""Samples and how they are printed: median, spread, and the ratio to something of the same run."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence


def sample(action: Callable[[], object], count: int, *, warm_up: int = 1) -> list[float]:
    """Seconds of `count` calls, after `warm_up` that are not counted."""
    for _ in range(warm_up):
        action()
    found = []
    for _ in range(count):
        begun = time.perf_counter()
        action()
        found.append(time.perf_counter() - begun)
    return found


def run(command: Sequence[str]) -> None:
    """Run a command that has to succeed, its output thrown away."""
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that `percent` of 100 samples do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def row(name: str, values: Sequence[float], *, against: tuple[str, float] | None = None) -> float:
    """Print median, minimum and maximum in milliseconds, and the ratio to `against`; the median."""
    median = statistics.median(values)
    line = f"  {name:<44} {median * 1e3:9.2f} ms  ({min(values) * 1e3:.2f} .. {max(values) * 1e3:.2f})"
    if against is not None:
        line += f"  {median / against[1]:.2f} x {against[0]}"
    print(line)
    return median


def title(text: str) -> None:
    """Print a heading."""
    print(f"\n{text}")


def fact(name: str, text: str) -> None:
    """Print a figure that is no time."""
    print(f"  {name:<44} {text}")


def python(code: str) -> list[str]:
    """The command that runs `code` in this interpreter, isolated."""
    return [sys.executable, "-I", "-c", code]
