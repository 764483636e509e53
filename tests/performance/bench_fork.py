"""What a fork costs: until its first command has run, against a create; and its source's pause."""

from __future__ import annotations

import asyncio
import os
import time

import figures
from bench_start import IMAGE, load_image
from microsandbox import Sandbox
from microsandbox_core import env

NAME = "msb-bench-fork"
ROUNDS = 8
PAUSE_TARGET = 0.5
"""Seconds that a source may stand still."""


async def created() -> float:
    """Seconds of a create with its first exec."""
    begun = time.perf_counter()
    sandbox = await Sandbox.create(NAME + "-new", image=IMAGE, detached=True)
    try:
        await sandbox.exec("true")
        return time.perf_counter() - begun
    finally:
        await sandbox.destroy()


async def forked(source: Sandbox, count: int = 1) -> tuple[float, float]:
    """Seconds of a fork with the first exec of each, and of the source's pause."""
    begun = time.perf_counter()
    made = await source.fork(NAME + "-kid", count=count)
    try:
        await asyncio.gather(*(sandbox.exec("true") for sandbox in made))
        taken = time.perf_counter() - begun
    finally:
        await asyncio.gather(*(sandbox.destroy() for sandbox in made))
    assert made[0].forked is not None
    return taken, made[0].forked.pause


async def measure() -> None:
    """All figures."""
    source = await Sandbox.create(NAME, image=IMAGE, memory="1G", detached=True)
    try:
        figures.title("Fork (through the SDK)")
        pairs = [(await created(), await forked(source)) for _ in range(ROUNDS + 1)][1:]
        create = figures.row("create to the end of its first exec", [new for new, _ in pairs])
        figures.row(
            "fork to the end of its first exec",
            [fork for _, (fork, _) in pairs],
            against=("a create", create),
        )
        figures.row(
            "three forks at once",
            [(await forked(source, 3))[0] for _ in range(3)],
            against=("a create", create),
        )
        pause = figures.row("the source's pause", [pause for _, (_, pause) in pairs])
        figures.fact("the pause against its limit", f"{pause / PAUSE_TARGET:9.2f} x {PAUSE_TARGET:g} s")
        for megabytes in (100, 400):
            await source.shell(f"dd if=/dev/urandom of=/dev/shm/written bs=1M count={megabytes}")
            pauses = [(await forked(source))[1] for _ in range(3)]
            figures.row(f"the same, {megabytes} MiB written to memory", pauses)
        begun = time.perf_counter()
        await source.pause()
        await source.resume()
        figures.row("pause and resume", [time.perf_counter() - begun])
    finally:
        await source.destroy()


def main() -> None:
    """Run all of it."""
    print(f"processors: {os.cpu_count()}, load: {os.getloadavg()[0]:.2f}")
    load_image(env.home())
    asyncio.run(measure())


if __name__ == "__main__":
    main()
