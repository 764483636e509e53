"""What turning a layer into EROFS costs, against `mkfs.erofs` and `tar x` on the same content."""

from __future__ import annotations

import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import figures
from microsandbox_oci import _native as native

FILES = 4_000
TOTAL = 200 << 20
ROUNDS = 5


def build(root: Path) -> None:
    """Files as an image has them: most of a few kilobytes, some large; half as compressible as text."""
    rng = random.Random(1)
    words = [rng.randbytes(rng.randint(2, 9)) for _ in range(2000)]
    sizes = [min(int(rng.lognormvariate(8.5, 1.8)) + 1, 20 << 20) for _ in range(FILES)]
    scale = TOTAL / sum(sizes)
    for number, size in enumerate(sizes):
        directory = root / f"d{number % 40}" / f"e{number % 7}"
        directory.mkdir(parents=True, exist_ok=True)
        size = int(size * scale) + 1
        text = b" ".join(rng.choices(words, k=size // 6 + 1))[:size]
        data = rng.randbytes(size) if number % 2 else text
        (directory / f"f{number}").write_bytes(data)


def convert(tar: Path, out: Path) -> None:
    """One layer, as the store converts it."""
    with tar.open("rb") as source, out.open("wb+") as target:
        native.convert_layer(source.fileno(), target.fileno())


def samples(action: Callable[[Path], object], out: Path) -> list[float]:
    """Seconds of each round of `action(out)`; what the round before left at `out` is removed untimed."""
    found = []
    for _ in range(ROUNDS + 1):
        if out.is_dir():
            shutil.rmtree(out)
        else:
            out.unlink(missing_ok=True)
        begun = time.perf_counter()
        action(out)
        found.append(time.perf_counter() - begun)
    return found[1:]


def row(name: str, values: list[float], against: tuple[str, float] | None = None) -> float:
    """Print a row with its throughput behind it; the median in seconds."""
    seconds = figures.row(name, values, against=against)
    figures.fact("", f"{TOTAL / seconds / 1e6:.0f} MB/s of uncompressed data")
    return seconds


def extract(tar: Path, out: Path) -> None:
    """The content as a tree, by GNU tar."""
    out.mkdir()
    figures.run(["tar", "-C", str(out), "-xf", str(tar)])


def main() -> None:
    """Build the content, then measure everything on it."""
    with tempfile.TemporaryDirectory(prefix="bench-layers-") as scratch:
        work = Path(scratch)
        tree = work / "tree"
        build(tree)
        plain = work / "layer.tar"
        figures.run(["tar", "--format=posix", "-C", str(tree), "-cf", str(plain), "."])
        figures.run(["gzip", "-k", str(plain)])
        sources = {"plain": plain, "gzip": plain.with_suffix(".tar.gz")}
        if shutil.which("zstd"):
            figures.run(["zstd", "-q", str(plain)])
            sources["zstd"] = plain.with_suffix(".tar.zst")

        figures.title(f"One layer: {FILES} files, {plain.stat().st_size >> 20} MB (page cache warm)")
        image, out = work / "image.erofs", work / "out"
        made = None
        if shutil.which("mkfs.erofs"):
            found = samples(partial(mkfs, tree), image)
            made = ("mkfs.erofs", row("mkfs.erofs, from a directory that is there", found))
        row("pack_directory, the same directory", samples(partial(pack, tree), image), made)
        for name, source in sources.items():
            unpacked = row(f"tar x ({name})", samples(partial(extract, source), out))
            found = samples(partial(convert, source), image)
            seconds = row(f"convert_layer ({name})", found, (f"tar x ({name})", unpacked))
            if made:
                figures.fact("", f"{seconds / made[1]:.2f} x mkfs.erofs")
        figures.row("gzip -dc alone", figures.sample(partial(gunzip, sources["gzip"]), ROUNDS))

        figures.title("Merge")
        meta = work / "fsmeta.erofs"
        figures.row("one layer", samples(partial(merge, [image]), meta))
        figures.row("ten layers", samples(partial(merge, [image] * 10), meta))
        figures.fact("size of the merged metadata", f"{meta.stat().st_size / 1024:.0f} KiB")
        with image.open("rb") as file:
            figures.row("check_layer", figures.sample(partial(native.check_layer, file.fileno()), ROUNDS))
        prints = figures.sample(partial(native.fingerprint_directory, bytes(tree)), ROUNDS)
        figures.row("fingerprint_directory", prints)


def mkfs(tree: Path, out: Path) -> None:
    """The directory as an image, by erofs-utils."""
    figures.run(["mkfs.erofs", "--quiet", str(out), str(tree)])


def gunzip(source: Path) -> None:
    """The floor of every gzip layer that one thread decompresses."""
    subprocess.run(["gzip", "-dc", source], check=True, stdout=subprocess.DEVNULL)


def pack(tree: Path, out: Path) -> None:
    """The directory as a layer file."""
    with out.open("wb+") as target:
        native.pack_directory(bytes(tree), target.fileno())


def merge(layers: list[Path], out: Path) -> None:
    """Layer files into one metadata image."""
    files = [layer.open("rb") for layer in layers]
    with out.open("wb+") as target:
        native.merge([file.fileno() for file in files], target.fileno())
    for file in files:
        file.close()


if __name__ == "__main__":
    main()
