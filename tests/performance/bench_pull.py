"""What a pull costs, from a registry on loopback to an image that can be booted, against `skopeo copy`.

skopeo only copies; the pull also decompresses, converts and merges. An argument names a root file system
directory to use as the content of the first image instead of generated files.
"""

from __future__ import annotations

import io
import os
import random
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import bench_layers
import figures
from microsandbox_oci import ImageConfig
from microsandbox_oci.layout import LayoutWriter

ROUNDS = 5
LAYERS = 40

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.registries import DockerRegistry, serving, skopeo  # noqa: E402 - found by the line above


def layered(directory: Path) -> int:
    """An image of many layers of a few hundred small files each; the bytes of its tars."""
    rng = random.Random(2)
    total = 0
    with LayoutWriter(directory) as writer:
        layers = []
        for number in range(LAYERS):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as tar:
                for index in range(200):
                    data = rng.randbytes(rng.randint(100, 20_000))
                    entry = tarfile.TarInfo(f"d{number}/e{index % 9}/f{index}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
            total += buffer.tell()
            layers.append(writer.add_layer(buffer.getvalue()))
        writer.add_image(layers, ImageConfig(), name="x:1")
    return total


def single(directory: Path, tree: Path) -> int:
    """An image of one layer with a tree's files; the bytes of its tar."""
    with tempfile.TemporaryFile() as tar:
        subprocess.run(["tar", "--format=posix", "-C", tree, "-cf", "-", "."], stdout=tar, check=True)
        size = tar.tell() or os.fstat(tar.fileno()).st_size
        tar.seek(0)
        with LayoutWriter(directory) as writer:
            writer.add_image([writer.add_layer(tar)], ImageConfig(), name="x:1")
    return size


def usage(command: list[str], environ: dict[str, str]) -> tuple[float, float, float, int]:
    """Seconds, processor seconds, bytes written to files, and the largest resident size in bytes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.perf_counter()
    subprocess.run(command, env=environ, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, processor, (after.ru_oublock - before.ru_oublock) * 512, after.ru_maxrss << 10


def measure(registry: DockerRegistry, name: str, uncompressed: int, work: Path) -> None:
    """Print the figures of one image."""
    reference = f"{registry.domain}/{name}:1"
    home = work / "home"
    environ = {**os.environ, "MSB_HOME": str(home)}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installation has its modules compiled
    pull = [sys.executable, "-m", "microsandbox_cli", "pull", "-q", reference]
    archive = work / f"{name}.tar"
    skopeo("copy", "--quiet", "--src-tls-verify=false", f"docker://{reference}", f"oci-archive:{archive}:x:1")
    load = [sys.executable, "-m", "microsandbox_cli", "load", "-q", "-t", "x:1", str(archive)]
    copy = ["skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"]
    copied, pulled, warm, loaded = [], [], [], []
    processor, written, memory = [], [], 0
    for _ in range(ROUNDS):
        shutil.rmtree(work / "copy", ignore_errors=True)
        shutil.rmtree(home, ignore_errors=True)
        copied.append(usage([*copy, f"docker://{reference}", f"oci:{work / 'copy'}:x"], environ)[0])
        seconds, cpu, out, resident = usage(pull, environ)
        pulled.append(seconds)
        processor.append(cpu)
        written.append(out)
        memory = max(memory, resident)
        warm.append(usage(pull, environ)[0])
        loaded.append(usage(load, environ)[0])
    base = figures.row("skopeo copy to a layout", copied)
    figures.row("msb pull to bootable", pulled, against=("skopeo copy", base))
    figures.row("msb pull of what is up to date", warm)
    figures.row("msb load of what is there", loaded)
    figures.fact("load of the machine", " ".join(f"{number:.1f}" for number in os.getloadavg()))
    figures.fact(
        "processor time", f"{min(processor) / uncompressed * 1e9:.1f} ns per byte of the image's tars"
    )
    figures.fact("written", f"{min(written) / uncompressed:.2f} bytes per byte of the image's tars")
    figures.fact("largest resident size", f"{memory >> 20} MiB")


def main() -> None:
    """Build both images, push them, and measure."""
    with tempfile.TemporaryDirectory(prefix="bench-pull-") as scratch:
        work = Path(scratch)
        (work / "registry").mkdir()
        if len(sys.argv) > 1:
            tree = Path(sys.argv[1])
        else:
            tree = work / "tree"
            bench_layers.build(tree)
        sizes = {"single": single(work / "single", tree), "layered": layered(work / "layered")}
        with serving(work / "registry") as registry:
            for name, size in sizes.items():
                registry.push(f"oci:{work / name}:x:1", f"{name}:1")
                layers = "one layer" if name == "single" else f"{LAYERS} layers"
                figures.title(f"an image of {layers}, {size >> 20} MiB uncompressed")
                measure(registry, name, size, work)


if __name__ == "__main__":
    main()
