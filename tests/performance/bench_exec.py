"""Measures an exec in a running sandbox: its round trip, 1,000 in a row, 1,000 at once.

    python tests/performance/bench_exec.py [--count 1000]

What the guest itself takes to start the program and to wait for it, its shell tells; what is above that is
the channel's and agentd's.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable

from bench_start import IMAGE, load_image
from figures import fact, percentile, row, title
from microsandbox import Sandbox
from microsandbox_core import env

PROGRAM = "/bin/true"
LOOP = f"i=0; while [ $i -lt $0 ]; do {PROGRAM}; i=$((i+1)); done"


async def times(action: Callable[[], Awaitable[object]], count: int) -> list[float]:
    """Seconds of each of `count` calls, one after the other."""
    found = []
    for number in range(count + 5):
        begun = time.perf_counter()
        await action()
        if number >= 5:
            found.append(time.perf_counter() - begun)
    return found


async def measure(count: int, security: str) -> None:
    """All of it in one sandbox."""
    title(f"security={security}")
    async with await Sandbox.create(image=IMAGE, security=security) as sandbox:
        ping = row("ping", await times(sandbox.ping, count))
        empty = (await sandbox.exec("/bin/sh", ["-c", LOOP, "0"])).duration
        inside = (await sandbox.exec("/bin/sh", ["-c", LOOP, str(count)])).duration - empty
        fact("the guest's shell", f"{inside / count * 1e3:9.2f} ms a program")

        async def once() -> None:
            output = await sandbox.exec(PROGRAM)
            assert output.success

        one = await times(once, count)
        row("exec", one, against=("ping", ping))
        fact("  of that in the guest's shell", f"{inside / sum(one):9.2f}")
        fact("  p99", f"{percentile(one, 99) * 1e3:9.2f} ms")
        fact(f"{count} in a row", f"{sum(one):9.2f} s, {count / sum(one):.0f} a second")
        begun = time.perf_counter()
        await asyncio.gather(*(once() for _ in range(count)))
        spent = time.perf_counter() - begun
        fact(f"{count} at once", f"{spent:9.2f} s, {count / spent:.0f} a second")


def main(arguments: list[str] | None = None) -> int:
    """Run it in both profiles."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=1000)
    options = parser.parse_args(arguments)
    print(f"processors: {os.cpu_count()}, load: {os.getloadavg()[0]:.2f}")
    load_image(env.home())
    for security in ("default", "restricted"):
        asyncio.run(measure(options.count, security))
    return 0


if __name__ == "__main__":
    sys.exit(main())
