"""What sandboxes cost that do nothing: processor and wake-ups, and what it costs to ask all of them.

`MSB_BENCH_SANDBOXES=20` for fewer than 100.
"""

from __future__ import annotations

import asyncio
import os
import re
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import figures
from bench_start import IMAGE, MSB, load_image
from microsandbox import Sandbox, SandboxMetrics, all_sandbox_metrics
from microsandbox_core import env

SANDBOXES = int(os.environ.get("MSB_BENCH_SANDBOXES") or 100)
AT_ONCE = 4
SETTLE = 40.0
"""Seconds until what a guest does after its start is over: files are flushed, timers back off."""
INTERVAL = 30.0


class Used(NamedTuple):
    """By all sandboxes, since they were started."""

    at: float
    vmm: float
    supervisor: float
    wakes: int


async def start(count: int) -> list[Sandbox]:
    """So many sandboxes."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def one() -> Sandbox:
        async with turns:
            return await Sandbox.create(image=IMAGE, memory="128M")

    return list(await asyncio.gather(*(one() for _ in range(count))))


def wakes(pid: int) -> int:
    """How often threads of a process have gone to sleep."""
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        total += int(re.findall(r"^voluntary_ctxt_switches:\s+(\d+)", status.read_text(), re.M)[0])
    return total


def used(found: list[SandboxMetrics]) -> Used:
    """What these have used until now."""
    return Used(
        time.monotonic(),
        sum(each.vmm.cpu_seconds for each in found),
        sum(each.supervisor.cpu_seconds for each in found),
        sum(wakes(each.vmm.pid) + wakes(each.supervisor.pid) for each in found),
    )


async def idle() -> None:
    """Start them, let them be, look at what they have used."""
    figures.title(f"{SANDBOXES} idle sandboxes over {INTERVAL:.0f} s, each, in percent of one processor")
    begun = time.perf_counter()
    sandboxes = await start(SANDBOXES)
    figures.fact("started", f"{SANDBOXES / (time.perf_counter() - begun):9.2f} a second, {AT_ONCE} at a time")
    try:
        await asyncio.sleep(SETTLE)
        before = used(await all_sandbox_metrics())
        await asyncio.sleep(INTERVAL)
        found = await all_sandbox_metrics()
        # The second question is not in between, the first is: a part of what is found is its answer.
        after = used(found)
        each = 100 / (after.at - before.at) / len(found)
        figures.fact("VMM", f"{(after.vmm - before.vmm) * each:9.3f} %")
        figures.fact("supervisor", f"{(after.supervisor - before.supervisor) * each:9.3f} %")
        figures.fact("wake-ups", f"{(after.wakes - before.wakes) * each / 100:9.1f} a second")
        figures.fact("isolation", f"{' '.join(sorted({str(each.isolation) for each in found})):>9}")
        shares = [each.host_memory for each in found if each.host_memory is not None]
        if shares:
            figures.fact("memory on the host (PSS)", f"{statistics.mean(shares) / (1 << 20):9.1f} MiB")
        figures.title(f"Asking {SANDBOXES} sandboxes")
        taken = []
        for _ in range(5):
            begun = time.perf_counter()
            found = await all_sandbox_metrics()
            taken.append(time.perf_counter() - begun)
        figures.row("all_sandbox_metrics()", taken)
        answered = sum(each.guest is not None for each in found)
        figures.fact("guests that answered", f"{answered:9} of {len(found)}")
        nothing = figures.row("msb --version", figures.sample(lambda: figures.run([MSB, "--version"]), 5))
        figures.row(
            "msb metrics --format openmetrics",
            figures.sample(lambda: figures.run([MSB, "metrics", "--format", "openmetrics"]), 5),
            against=("msb --version", nothing),
        )
    finally:
        await asyncio.gather(*(sandbox.kill() for sandbox in sandboxes))


def main() -> None:
    """Run all of it."""
    print(f"processors: {os.cpu_count()}, load: {os.getloadavg()[0]:.2f}")
    load_image(env.home())
    asyncio.run(idle())


if __name__ == "__main__":
    main()
