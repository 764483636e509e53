"""What a start from a template costs, against booting the same machine in the same run.

Then how many sandboxes can be made in a second, whether the size of the machine matters, what the pool
takes to hand one out, and how much memory a hundred idle sandboxes use.
"""

from __future__ import annotations

import asyncio
import os
import re
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bench_start
import figures
from microsandbox import Sandbox, SandboxPool
from microsandbox_core import env
from microsandbox_core.templates import Templates

IMAGE = bench_start.IMAGE
MSB = bench_start.MSB
MANY = int(os.environ.get("MSB_BENCH_SANDBOXES", "100"))


def run(*options: str) -> float:
    """Seconds of one `msb run IMAGE -- true`."""
    begun = time.perf_counter()
    figures.run([MSB, "run", "-q", *options, IMAGE, "--", "true"])
    return time.perf_counter() - begun


def starts() -> None:
    """Whole runs, from a template and booted, taken in turn."""
    figures.title("msb run IMAGE -- true (image cached)")
    run(), run(), run("--cold")
    warm, cold = [], []
    for _ in range(10):
        warm += [run(), run()]
        cold.append(run("--cold"))
    limit = figures.row("booted (--cold)", cold)
    figures.row("from a template", warm, against=("a boot", limit))


def firsts() -> None:
    """The first start of a size, which makes its template, and the first of an image after that."""
    figures.title("Starts that make a template")
    templates = Templates(env.home())
    booted, first, second = [], [], []
    for size in range(300, 305):
        options = ("-m", f"{size}M")
        booted.append(run("--cold", *options))
        first.append(run(*options))
        second.append(run(*options))
        for info in templates.list():
            if info.memory_mib == size:
                templates.remove(info.key)
    limit = figures.row("booted (--cold)", booted)
    figures.row("first of a size", first, against=("a boot", limit))
    figures.row("first of an image in it", second, against=("a boot", limit))


def sizes() -> None:
    """The same for machines of other sizes, after their template was made."""
    figures.title("Size of the machine")
    base: tuple[str, float] | None = None
    for options in (("-m", "128M"), ("-m", "512M"), ("-m", "4G"), ("-m", "512M", "-c", "2")):
        run(*options)
        run(*options)  # the template of the size, then that of the image
        median = figures.row(" ".join(options), [run(*options) for _ in range(7)], against=base)
        base = base or ("128M", median)


def rate() -> None:
    """Sandboxes made, used and gone per second, by several programs at once."""
    figures.title("Rate (msb run, whole sandboxes per second)")
    base = 0.0
    for clients in (1, 2, 4):
        count = 10 * clients
        begun = time.perf_counter()
        with ThreadPoolExecutor(clients) as executor:
            list(executor.map(lambda _: run(), range(count)))
        found = count / (time.perf_counter() - begun)
        base = base or found
        figures.fact(f"{clients} clients", f"{found:9.2f} /s  {found / base:.2f} x 1 client")


async def through_the_sdk() -> None:
    """`Sandbox.create` to the result of the first exec, and the pool's hand-out."""
    figures.title("SDK")
    whole = []
    for _ in range(10):
        begun = time.perf_counter()
        sandbox = await Sandbox.create(image=IMAGE)
        await sandbox.exec("true")
        whole.append(time.perf_counter() - begun)
        await sandbox.destroy()
    create = figures.row("Sandbox.create to first exec result", whole)
    handed = []
    async with SandboxPool(image=IMAGE, size=4) as pool:
        for _ in range(5):
            await pool.wait_full()
            begun = time.perf_counter()
            sandbox = await pool.acquire()
            handed.append(time.perf_counter() - begun)
            await sandbox.destroy()
    figures.row("SandboxPool.acquire, pool full", handed, against=("create to first exec", create))


async def memory() -> None:
    """Proportional set sizes of supervisors and VMMs of many sandboxes that have run one command."""
    figures.title(f"{MANY} idle sandboxes")
    begun = time.perf_counter()
    limit = asyncio.Semaphore(4)

    async def one() -> Sandbox:
        async with limit:
            sandbox = await Sandbox.create(image=IMAGE)
            await sandbox.exec("true")
            return sandbox

    sandboxes = await asyncio.gather(*(one() for _ in range(MANY)))
    figures.fact("all have answered an exec after", f"{time.perf_counter() - begun:9.1f} s")
    try:
        vmms, supervisors = [], []
        for sandbox in sandboxes:
            assert sandbox.ready is not None
            vmm = sandbox.ready.vmm_pid
            parent = int(re.search(r"^PPid:\s+(\d+)", bench_start.status(vmm), re.MULTILINE)[1])  # type: ignore[index]
            vmms.append(proportional(vmm))
            supervisors.append(proportional(parent))
        for name, values in (("VMM", vmms), ("supervisor", supervisors)):
            figures.fact(f"{name}, proportional set size, mean", f"{statistics.mean(values):9.1f} MiB")
        total = sum(vmms) + sum(supervisors)
        figures.fact("sum", f"{total:9.0f} MiB, {total / MANY:.1f} MiB per sandbox (limit: 40)")
    finally:
        await asyncio.gather(*(sandbox.destroy() for sandbox in sandboxes))


def proportional(pid: int) -> float:
    """The proportional set size of a process in MiB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def main() -> None:
    """Run all of it."""
    bench_start.load_image(env.home())
    print(f"processors: {os.cpu_count()}, load: {os.getloadavg()[0]:.2f}")
    starts()
    asyncio.run(bench_start.parts(env.home(), cold=False))
    firsts()
    sizes()
    rate()
    asyncio.run(through_the_sdk())
    asyncio.run(memory())


if __name__ == "__main__":
    main()
