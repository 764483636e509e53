"""What `msb cp` takes, both ways, against the same bytes through `msb exec` and `cat` in the same run;
of many files, against `tar`.

MSB_BENCH_MIB=1024 MSB_BENCH_FILES=10000 MSB_BENCH_ROUNDS=3 python tests/performance/bench_files.py
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import bench_start
import figures
from microsandbox import Sandbox
from microsandbox_core import env

MSB = bench_start.MSB
NAME = "bench-files"
SIZE = int(os.environ.get("MSB_BENCH_MIB", "200")) << 20
COUNT = int(os.environ.get("MSB_BENCH_FILES", "2000"))
ROUNDS = int(os.environ.get("MSB_BENCH_ROUNDS", "3"))


def large(directory: Path) -> None:
    """One large file."""
    figures.title(f"{SIZE >> 20} MiB in one file")
    source, copy = directory / "large", directory / "copy"
    source.write_bytes(os.urandom(SIZE))

    def cat_in() -> None:
        with source.open("rb") as file:
            command = [MSB, "exec", NAME, "--", "sh", "-c", "cat >/cat"]
            subprocess.run(command, check=True, stdin=file)

    def cat_out() -> None:
        figures.run([MSB, "exec", NAME, "--", "cat", "/large"])

    def cp_out() -> None:
        figures.run([MSB, "cp", f"{NAME}:/large", str(copy)])

    base = figures.row("in, by exec and cat", figures.sample(cat_in, ROUNDS))
    copied = figures.sample(lambda: figures.run([MSB, "cp", str(source), f"{NAME}:/large"]), ROUNDS)
    median = figures.row("in", copied, against=("cat", base))
    figures.fact("in", f"{SIZE / median / 1e6:9.1f} MB/s")
    base = figures.row("out, by exec and cat (to nowhere)", figures.sample(cat_out, ROUNDS))
    median = figures.row("out", figures.sample(cp_out, ROUNDS), against=("cat", base))
    figures.fact("out", f"{SIZE / median / 1e6:9.1f} MB/s")
    assert copy.read_bytes() == source.read_bytes()


def many(directory: Path) -> None:
    """Many small files."""
    figures.title(f"{COUNT} files of 3,000 bytes")
    source, copy = directory / "many", directory / "many-copy"
    source.mkdir()
    for number in range(COUNT):
        (source / f"file-{number}").write_bytes(os.urandom(3000))

    def tar_in() -> None:
        with subprocess.Popen(["tar", "-c", "-C", str(source), "."], stdout=subprocess.PIPE) as packing:
            command = [MSB, "exec", NAME, "--", "sh", "-c", "mkdir /many && tar -x -C /many"]
            subprocess.run(command, check=True, stdin=packing.stdout)

    def tar_out() -> None:
        copy.mkdir()
        command = [MSB, "exec", NAME, "--", "tar", "-c", "-C", "/many", "."]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as packing:
            subprocess.run(["tar", "-x", "-C", str(copy)], check=True, stdin=packing.stdout)

    def copy_in() -> None:
        figures.run([MSB, "cp", str(source), f"{NAME}:/many"])

    def copy_out() -> None:
        figures.run([MSB, "cp", f"{NAME}:/many", str(copy)])

    def into(way: Callable[[], None]) -> float:
        figures.run([MSB, "exec", NAME, "--", "rm", "-rf", "/many"])
        begun = time.perf_counter()
        way()
        return time.perf_counter() - begun

    def out(way: Callable[[], None]) -> float:
        shutil.rmtree(copy, ignore_errors=True)
        begun = time.perf_counter()
        way()
        taken = time.perf_counter() - begun
        assert len(list(copy.iterdir())) == COUNT
        return taken

    # By turns, so that what else the machine does meets all of them.
    taken = [(into(tar_in), out(tar_out), into(copy_in), out(copy_out)) for _ in range(ROUNDS)]
    base_in, base_out, inward, outward = map(list, zip(*taken, strict=True))
    base = figures.row("in, by exec and tar", base_in)
    figures.row("in", inward, against=("tar", base))
    base = figures.row("out, by exec and tar", base_out)
    figures.row("out", outward, against=("tar", base))


async def small() -> None:
    """Operations of the SDK on one small file, in a connection that is there."""
    figures.title("Sandbox.fs, one small file")
    sandbox = await Sandbox.connect(NAME)
    await sandbox.fs.write("/small", b"content")

    async def took(call: Callable[[], Awaitable[object]]) -> list[float]:
        found = []
        for _ in range(100):
            begun = time.perf_counter()
            await call()
            found.append(time.perf_counter() - begun)
        return found

    base = figures.row("exec of true", await took(lambda: sandbox.exec("true")))
    against = ("exec", base)
    figures.row("stat", await took(lambda: sandbox.fs.stat("/small")), against=against)
    figures.row("read", await took(lambda: sandbox.fs.read("/small")), against=against)
    figures.row("write", await took(lambda: sandbox.fs.write("/small", b"content")), against=against)
    await sandbox.detach()


def main() -> None:
    """Everything, in a sandbox that is gone afterwards."""
    bench_start.load_image(env.home())
    print(f"processors: {os.cpu_count()}, load: {os.getloadavg()[0]:.2f}")
    figures.run([MSB, "create", bench_start.IMAGE, "--name", NAME])
    try:
        with tempfile.TemporaryDirectory() as directory:
            large(Path(directory))
            many(Path(directory))
        asyncio.run(small())
    finally:
        figures.run([MSB, "rm", "--force", NAME])


if __name__ == "__main__":
    main()
