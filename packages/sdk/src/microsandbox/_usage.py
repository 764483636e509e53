"""What a process of the host has used, as /proc shows it (proc(5))."""

from __future__ import annotations

import os
import time
from typing import NamedTuple

from microsandbox._life import started_at

_TICKS = os.sysconf("SC_CLK_TCK")
_CLOCK_PROCESS = 2  # CPUCLOCK_SCHED, include/linux/posix-timers.h


class ProcessUsage(NamedTuple):
    """What one process of the host has used.

    `cpu_seconds` is the processor time of all its threads, exact; `user_seconds` and `system_seconds` are its
    parts, in hundredths. `rss`: bytes in memory. `pss`: the same with what is shared divided among those who
    share it, which is what can be added up. `read` and `written`: bytes that it had the host's disks read and
    write, which is less than what it asked for where the page cache helps. None: this user may not know.
    """

    pid: int
    cpu_seconds: float
    user_seconds: float
    system_seconds: float
    rss: int
    pss: int | None
    read: int | None
    written: int | None


def usage_of(pid: int, parent: int | None = None) -> ProcessUsage | None:
    """The usage of a process; None if it has ended, or is no child of `parent`."""
    fields = _stat(pid)
    if fields is None or parent not in (None, int(fields[1])):
        return None
    user, system = int(fields[11]) / _TICKS, int(fields[12]) / _TICKS
    traffic = _numbers(f"/proc/{pid}/io")
    pss = _numbers(f"/proc/{pid}/smaps_rollup").get("Pss")
    return ProcessUsage(
        pid=pid,
        cpu_seconds=_cpu_seconds(pid, user + system),
        user_seconds=user,
        system_seconds=system,
        rss=int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
        pss=None if pss is None else pss << 10,
        read=traffic.get("read_bytes"),
        written=traffic.get("write_bytes"),
    )


def seconds_since_start(pid: int) -> float | None:
    """How long ago a process was started, in seconds; None if it has ended.

    By a clock that nobody sets, and that goes on while the host is suspended (CLOCK_BOOTTIME).
    """
    ticks = started_at(pid)
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / _TICKS) if ticks else None


def _cpu_seconds(pid: int, otherwise: float) -> float:
    # The clock of another process, clock_getcpuclockid(3): to the nanosecond, while /proc counts in ticks.
    try:
        return time.clock_gettime(~pid << 3 | _CLOCK_PROCESS)
    except OSError:
        return otherwise


def _stat(pid: int) -> list[bytes] | None:
    """The fields of /proc/PID/stat from the third on; the command's name before may contain anything."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - for each of many
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return fields if len(fields) > 21 else None


def _numbers(path: str) -> dict[str, int]:
    """`name: number` lines of a file; empty if it may not be read."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return {}
    found = {}
    for line in lines:
        name, _, value = line.partition(":")
        word = value.split()[:1]
        if word and word[0].isdigit():
            found[name] = int(word[0])
    return found
