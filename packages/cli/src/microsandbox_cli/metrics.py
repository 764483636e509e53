"""`msb metrics`: what running sandboxes use, as a table, as JSON, for scraping."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence

from microsandbox._config import parse_duration
from microsandbox._usage import ProcessUsage
from microsandbox.errors import MicrosandboxError
from microsandbox.metrics import DEFAULT_INTERVAL, Meter, SandboxMetrics
from microsandbox_core import env

from microsandbox_cli import report
from microsandbox_cli.attached import run_in_loop
from microsandbox_cli.listing import age, human_size, print_json, print_table

ONCE = 0.2
"""Seconds over which processor time is measured for a single answer."""

# What a terminal of 80 columns has no room for is last.
HEADER = (
    "NAME", "CPU %", "HOST MEM", "GUEST MEM", "DISK READ", "WRITTEN", "UPPER", "TASKS", "UPTIME", "NET SENT",
    "RECEIVED", "CONNS", "DENIED",
)  # fmt: skip


def show_metrics(names: Sequence[str], *, watch: bool, interval: str | None, format: str) -> None:
    """Print them once, or again and again. Goes on after a sandbox that has none, and exits with 1 then."""
    if watch and format == "openmetrics":
        report.error("--watch: an OpenMetrics text is a single measurement", "leave out --watch, or --format")
        sys.exit(report.EXIT_USAGE)
    default = DEFAULT_INTERVAL if watch else ONCE
    with report.guarded():
        seconds = default if interval is None else parse_duration(interval, "--interval")
    run_in_loop(lambda: _show(list(dict.fromkeys(names)), watch, seconds, format))


async def _show(names: list[str], watch: bool, seconds: float, format: str) -> int:
    meter = Meter(env.home())
    left = list(names)
    if format != "openmetrics":
        # What is not there is told by the measurement that is shown.
        await _measure(meter, left, guests=False)
    begun = time.monotonic()
    failed = False
    while True:
        if format != "openmetrics":
            await asyncio.sleep(max(0.0, begun + seconds - time.monotonic()))
        begun = time.monotonic()
        found, failures = await _measure(meter, left)
        for name, failure in failures.items():
            report.error(str(failure), failure.hint)
            left.remove(name)
            failed = True
        if not watch or found or not names:
            _print(found, format, watch)
        if not watch or (names and not left):
            return report.EXIT_FAILED if failed else 0


async def _measure(
    meter: Meter, names: Sequence[str], *, guests: bool = True
) -> tuple[list[SandboxMetrics], dict[str, MicrosandboxError]]:
    """All that run if there are no names; what was found, and why the others were not."""
    if not names:
        return await meter.measure_all(guests=guests), {}
    found: list[SandboxMetrics] = []
    failures: dict[str, MicrosandboxError] = {}
    measured = await asyncio.gather(
        *(meter.measure_named(name, guest=guests) for name in names), return_exceptions=True
    )
    for name, result in zip(names, measured, strict=True):
        if isinstance(result, SandboxMetrics):
            found.append(result)
        elif isinstance(result, MicrosandboxError):
            failures[name] = result
        else:
            raise result
    return found, failures


def _print(found: Sequence[SandboxMetrics], format: str, watch: bool) -> None:
    if format == "openmetrics":
        from microsandbox.openmetrics import render

        sys.stdout.write(render(found))
    elif format == "json" and watch:
        import json

        sys.stdout.write(json.dumps([as_json(each) for each in found]) + "\n")
    elif format == "json":
        print_json([as_json(each) for each in found])
    else:
        print_table(HEADER, [row(each) for each in found])
        if watch:
            sys.stdout.write("\n")
    sys.stdout.flush()


def row(metrics: SandboxMetrics) -> tuple[str, ...]:
    """A sandbox in a table, by the columns of `HEADER`. What is not known is a dash."""
    guest, network = metrics.guest, metrics.network
    used = None if guest is None else guest.memory_used
    return (
        metrics.name,
        "-" if metrics.cpu_percent is None else f"{metrics.cpu_percent:.1f}",
        _size(metrics.host_memory),
        f"{_size(used)} / {_size(metrics.memory)}",
        _size(metrics.vmm.read),
        _size(metrics.vmm.written),
        _size(metrics.upper_allocated),
        "-" if guest is None or guest.tasks is None else str(guest.tasks),
        age(metrics.uptime),
        _size(None if network is None else network.sent),
        _size(None if network is None else network.received),
        "-" if network is None else str(network.connections),
        "-" if network is None else str(network.denied),
    )


def _size(value: int | None) -> str:
    return "-" if value is None else human_size(value)


def as_json(metrics: SandboxMetrics) -> dict[str, object]:
    """All of it; the names are documented in docs/metrics.md and do not change."""
    return {
        "id": metrics.id,
        "name": metrics.name,
        "image": metrics.image,
        "isolation": metrics.isolation,
        "taken_at": metrics.taken_at.isoformat(),
        "uptime": round(metrics.uptime, 3),
        "cpus": metrics.cpus,
        "memory": metrics.memory,
        "cpu_percent": None if metrics.cpu_percent is None else round(metrics.cpu_percent, 3),
        "cpu_seconds": round(metrics.cpu_seconds, 6),
        "host_memory": metrics.host_memory,
        "vmm": _usage(metrics.vmm),
        "supervisor": _usage(metrics.supervisor),
        "upper": {"allocated": metrics.upper_allocated, "size": metrics.upper_size},
        "network": None if metrics.network is None else metrics.network._asdict(),
        "host_limits": None if metrics.host_limits is None else metrics.host_limits._asdict(),
        "guest": None if metrics.guest is None else metrics.guest._asdict(),
        "guest_error": metrics.guest_error,
    }


def _usage(usage: ProcessUsage) -> dict[str, object]:
    return {**usage._asdict(), "cpu_seconds": round(usage.cpu_seconds, 6)}
