"""What an image costs as EROFS, plain and compressed, against unpacking it and `mkfs.erofs` on the tree.

An argument names a root file system directory to use instead of generated files. With `--guest` nothing is
converted alone: sandboxes read every file of both forms. For that the tree needs a shell, `find` and `cat`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import bench_layers
import figures
from microsandbox_oci import ImageConfig
from microsandbox_oci.layout import LayoutWriter

ROUNDS = 3
CONVERT = """
import sys
from microsandbox_oci import _native
with open(sys.argv[1], "rb") as source, open(sys.argv[2], "wb+") as out:
    _native.convert_layer(source.fileno(), out.fileno(), compression=sys.argv[3])
"""
# Nothing of it in the guest's memory; on the host it is in the page cache.
READ_ALL = """
echo 3 > /proc/sys/vm/drop_caches
read begun rest < /proc/uptime
find / -xdev -type f -exec cat {} + > /dev/null
read ended rest < /proc/uptime
echo $begun $ended
"""


class Usage(NamedTuple):
    """Seconds, processor seconds, bytes written to files, largest resident size in bytes."""

    seconds: float
    processor: float
    written: int
    memory: int


def usage(commands: Sequence[Sequence[str]]) -> Usage:
    """What commands cost that run one after the other; each is waited for by itself, so memory is exact."""
    found = Usage(0, 0, 0, 0)
    for command in commands:
        begun = time.perf_counter()
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, spent = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - begun
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise subprocess.CalledProcessError(child.returncode, command)
        found = Usage(
            found.seconds + seconds,
            found.processor + spent.ru_utime + spent.ru_stime,
            found.written + spent.ru_oublock * 512,
            max(found.memory, spent.ru_maxrss << 10),
        )
    return found


def convert(tar: Path, out: Path, compression: str) -> list[str]:
    """The command that converts one layer in a process of its own."""
    return [sys.executable, "-c", CONVERT, str(tar), str(out), compression]


def compare(ways: dict[str, Callable[[], list[Sequence[str]]]], size: int, result: Path) -> None:
    """Run all ways in turn, `ROUNDS` times, and print them against the first; `size`: bytes of the tar."""
    spent: dict[str, list[Usage]] = {name: [] for name in ways}
    sizes = {}
    for _ in range(ROUNDS):
        for name, commands in ways.items():
            result.unlink(missing_ok=True)
            spent[name].append(usage(commands()))
            sizes[name] = result.stat().st_size
    first = next(iter(ways))
    base = statistics.median(one.seconds for one in spent[first])
    for name, found in spent.items():
        figures.row(name, [one.seconds for one in found], against=None if name == first else (first, base))
        processor = min(one.processor for one in found)
        figures.fact(
            "", f"{processor:.2f} s of processor, {processor / size * 1e9:.2f} ns per byte of the tar"
        )
        written = min(one.written for one in found)
        figures.fact(
            "", f"{written / size:.2f} bytes written and an image of {sizes[name] / size:.3f} bytes per byte"
        )
        figures.fact("", f"{max(one.memory for one in found) >> 20} MiB resident at most")


def guest(plain: Path, work: Path) -> None:
    """Load the image in both forms, and let guests read all of its files, in turn."""
    layout = work / "layout"
    with plain.open("rb") as tar, LayoutWriter(layout) as writer:
        writer.add_image([writer.add_layer(tar)], ImageConfig(), name="x:1")
    figures.title("A guest reads every file")
    ways = {}
    for compression in ("none", "lz4"):
        home = work / f"home-{compression}"
        environ = {**os.environ, "MSB_HOME": str(home), "MSB_IMAGE_COMPRESSION": compression}
        msb = [sys.executable, "-m", "microsandbox_cli"]
        subprocess.run([*msb, "load", f"oci:{layout}"], env=environ, check=True, stdout=subprocess.DEVNULL)
        ways[compression] = (msb, environ)
    spent: dict[str, list[float]] = {name: [] for name in ways}
    try:
        for msb, environ in ways.values():
            subprocess.run([*msb, "create", "x:1", "-n", "bench", "-m", "1G", "-q"], env=environ, check=True)
        for _ in range(ROUNDS):
            for name, (msb, environ) in ways.items():
                read = [*msb, "exec", "bench", "--", "sh", "-c", READ_ALL]
                done = subprocess.run(read, env=environ, check=True, stdout=subprocess.PIPE, text=True)
                begun, ended = map(float, done.stdout.split())
                spent[name].append(ended - begun)
    finally:
        for msb, environ in ways.values():
            subprocess.run([*msb, "rm", "-f", "bench"], env=environ, check=False, stdout=subprocess.DEVNULL)
    base = figures.row("plain", spent["none"])
    figures.row("lz4", spent["lz4"], against=("plain", base))


def conversion(plain: Path, work: Path) -> None:
    """One gzip layer into an image, by us and by the tools there are."""
    figures.run(["gzip", "-k", str(plain)])
    packed, size = plain.with_suffix(".tar.gz"), plain.stat().st_size
    result, unpacked = work / "image.erofs", work / "unpacked"

    def unpack() -> list[str]:
        shutil.rmtree(unpacked, ignore_errors=True)
        unpacked.mkdir()
        return ["tar", "--xattrs", "-C", str(unpacked), "-xf", str(packed)]

    mkfs = ["mkfs.erofs", "--quiet", str(result), str(unpacked)]
    mkfs_lz4 = ["mkfs.erofs", "--quiet", "-zlz4", "-C65536", str(result), str(unpacked)]
    figures.title(
        f"A gzip layer, {size >> 20} MiB uncompressed, into an image (load {os.getloadavg()[0]:.1f})"
    )
    compare(
        {
            "tar x, mkfs.erofs": lambda: [unpack(), mkfs],
            "convert_layer": lambda: [convert(packed, result, "none")],
            "tar x, mkfs.erofs -zlz4 -C65536": lambda: [unpack(), mkfs_lz4],
            "convert_layer, lz4": lambda: [convert(packed, result, "lz4")],
            "mkfs.erofs alone": lambda: [mkfs],
            "mkfs.erofs -zlz4 -C65536 alone": lambda: [mkfs_lz4],
        },
        size,
        result,
    )


def main() -> None:
    """Build the content, then measure everything on it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tree", nargs="?", type=Path, help="a root file system")
    parser.add_argument("--guest", action="store_true", help="let guests read both forms instead")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-images-") as scratch:
        work = Path(scratch)
        tree = asked.tree or work / "tree"
        if asked.tree is None:
            bench_layers.build(tree)
        plain = work / "layer.tar"
        figures.run(["tar", "--format=posix", "--xattrs", "-C", str(tree), "-cf", str(plain), "."])
        (guest if asked.guest else conversion)(plain, work)


if __name__ == "__main__":
    main()
