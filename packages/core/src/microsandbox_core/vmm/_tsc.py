"""The frequency of the host's time stamp counter.

A translated guest reads the host's counter, but has no means to find its frequency: it compares the counter
with an emulated timer, whose ticks come late on a busy host, and often gives it up. Then its clock has
steps of 4 ms and loses time. So it is told the frequency (`tsc_early_khz`), and to trust the counter.
"""

from __future__ import annotations

import ctypes
import mmap
import time
from pathlib import Path

from microsandbox_core.artifacts import publish
from microsandbox_core.errors import StorageError

_WINDOW = 0.03
"""Seconds of measuring. Both clocks are read within a microsecond: 30 parts in a million."""

# rdtsc; shl rdx, 32; or rax, rdx; ret
_READ_COUNTER = bytes.fromhex("0f3148c1e2204809d0c3")


def tsc_khz(home: Path) -> int | None:
    """The frequency in kHz, measured once per boot of the host; None if the counter is no clock."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    remembered = home / "cache" / f"tsc-{boot}"
    try:
        return int(remembered.read_text()) or None
    except (OSError, ValueError):
        pass  # not measured since the host was booted
    found = _measure() if _is_constant() else None
    try:
        for outdated in remembered.parent.glob("tsc-*"):
            outdated.unlink(missing_ok=True)
        publish(remembered, f"{found or 0}\n".encode(), mode=0o600)
    except (OSError, StorageError):
        return None  # another value at the next start would be another template
    try:
        # Of several that measured at the same time one was last, and its value is everybody's.
        return int(remembered.read_text()) or None
    except (OSError, ValueError):
        return None


def _is_constant() -> bool:
    """Whether the counter runs at one speed, whatever the processor does."""
    try:
        flags = Path("/proc/cpuinfo").read_text().partition("\nflags")[2].partition("\n")[0].split()
    except OSError:
        return False
    return "constant_tsc" in flags and "nonstop_tsc" in flags


def _measure() -> int | None:
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return None  # a host that lets no process make code
    page.write(_READ_COUNTER)
    holder = ctypes.c_char.from_buffer(page)
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(holder))

    def both() -> tuple[int, int]:
        """Time and counter, from the reading that took least time of several."""
        best: tuple[int, int, int] | None = None
        for _ in range(20):
            before = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
            counter = read()
            after = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
            if best is None or after - before < best[0]:
                best = (after - before, (before + after) // 2, counter)
        assert best is not None
        return best[1], best[2]

    began, first = both()
    time.sleep(_WINDOW)
    ended, last = both()
    khz = round((last - first) * 1_000_000 / (ended - began))
    return khz if 100_000 <= khz <= 100_000_000 else None
