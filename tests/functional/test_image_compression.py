"""`MSB_IMAGE_COMPRESSION`: a guest reads every byte of a compressed image as of one that is not."""

from __future__ import annotations

import random
import shutil
import tarfile
from hashlib import sha256
from pathlib import Path

import pytest
from microsandbox_oci import ImageConfig

from tests.support.images import tar_of, write_layout
from tests.support.msb import Msb
from tests.support.process import Process

BLOCK = 4096
EXTENT = 16 * BLOCK


def _files() -> dict[str, bytes]:
    """Contents that compress well, badly, and by turns, with sizes around the edges of blocks and extents."""
    rng = random.Random(3)
    words = [rng.randbytes(rng.randint(2, 9)) for _ in range(300)]
    text = b" ".join(rng.choices(words, k=120_000))
    files = {}
    for size in (0, 1, BLOCK, BLOCK + 1, EXTENT - 1, EXTENT, EXTENT + 1, 5 * EXTENT + 77):
        files[f"text-{size}"] = text[:size]
        files[f"noise-{size}"] = rng.randbytes(size)
        files[f"zeros-{size}"] = bytes(size)
    pieces = (rng.choice((text, rng.randbytes(90_000)))[: rng.randint(1, 90_000)] for _ in range(20))
    files["mixed"] = b"".join(pieces)
    return files


def _layout(directory: Path, files: dict[str, bytes]) -> Path:
    def layer(names: list[str], prefix: str = "") -> bytes:
        return tar_of((tarfile.TarInfo(f"data/{name}"), prefix.encode() + files[name]) for name in names)

    names = sorted(files)
    # What the upper layer has again is to be read from there.
    return write_layout(
        directory, ImageConfig(), [layer(names[:-5], "lower"), layer(names)], name="packed:latest"
    )


@pytest.mark.vm
def test_a_guest_reads_every_byte(empty_msb: Msb, tmp_path: Path) -> None:
    files = _files()
    layout = _layout(tmp_path / "layout", files)
    sums = "".join(f"{sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
    # Pages here and there before the whole: each needs the middle of an extent.
    rng = random.Random(4)
    size = len(files["mixed"])
    places = [rng.randrange(size // 512) for _ in range(60)]
    parts = b"".join(files["mixed"][512 * place : 512 * (place + 1)] for place in places)
    script = (
        "cd /data; "
        f"for at in {' '.join(map(str, places))}; "
        "do dd if=mixed bs=512 skip=$at count=1 2>/dev/null; done | sha256sum; "
        "LC_ALL=C sha256sum *"
    )
    for compression in ("none", "lz4"):
        msb = empty_msb.with_settings(MSB_IMAGE_COMPRESSION=compression)
        assert msb("load", f"oci:{layout}").succeeded().text == "packed:latest\n"
        msb("image", "verify", "packed").succeeded()
        seen = msb("run", "packed", "--", "sh", "-c", script).succeeded().text
        assert seen == f"{sha256(parts).hexdigest()}  -\n{sums}", compression
    layers = empty_msb.host.layers()
    total = sum(path.stat().st_size for path in layers)
    assert sum(path.stat().st_size for path in layers if ".lz4" in path.name) < 0.45 * total


@pytest.mark.vm
def test_a_sandbox_stays_on_the_form_that_it_began_with(empty_msb: Msb, tmp_path: Path) -> None:
    files = {"f": b"what it says " * 20_000}
    layout = _layout(tmp_path / "layout", files)
    expected = f"{sha256(files['f']).hexdigest()}  /data/f\n"
    plain, packed = empty_msb, empty_msb.with_settings(MSB_IMAGE_COMPRESSION="lz4")
    plain("load", f"oci:{layout}").succeeded()
    plain("create", "packed", "-n", "dev").succeeded()
    plain("exec", "dev", "--", "sh", "-c", "echo mine > /data/mine").succeeded()
    packed("load", f"oci:{layout}").succeeded()
    # A copy has the memory of a machine that has the plain disk mounted.
    packed("fork", "dev", "-n", "copy").succeeded()
    assert packed("exec", "copy", "--", "sha256sum", "/data/f").succeeded().text == expected
    packed("stop", "dev").succeeded()
    packed("start", "dev").succeeded()
    for name in ("dev", "copy"):
        seen = packed("exec", name, "--", "sh", "-c", "cat /data/mine; sha256sum /data/f").succeeded().text
        assert seen == "mine\n" + expected
    packed("create", "packed", "-n", "new").succeeded()
    assert packed("exec", "new", "--", "sha256sum", "/data/f").succeeded().text == expected
    opened = [_layers(sandbox.vmm) for sandbox in empty_msb.host.running()]
    assert sorted(".lz4" in name for names in opened for name in names[:1]) == [False, False, True]
    packed.remove_everything()


@pytest.mark.vm
def test_a_sandbox_whose_form_is_gone_goes_on_with_the_other(empty_msb: Msb, tmp_path: Path) -> None:
    files = {"f": b"what it says " * 20_000}
    layout = _layout(tmp_path / "layout", files)
    plain, packed = empty_msb, empty_msb.with_settings(MSB_IMAGE_COMPRESSION="lz4")
    packed("load", f"oci:{layout}").succeeded()
    packed("create", "packed", "-n", "dev").succeeded()
    packed("exec", "dev", "--", "sh", "-c", "echo mine > /data/mine").succeeded()
    packed("stop", "dev").succeeded()
    # By hand, since images of sandboxes are not removed: a store that came back without it, say.
    (directory,) = (packed.home / "cache" / "images").glob("*.lz4")
    shutil.rmtree(directory)
    plain("load", f"oci:{layout}").succeeded()
    packed("start", "dev").succeeded()
    packed("load", f"oci:{layout}").succeeded()
    packed("fork", "dev", "-n", "copy").succeeded()
    expected = f"mine\n{sha256(files['f']).hexdigest()}  /data/f\n"
    for name in ("dev", "copy"):
        seen = packed("exec", name, "--", "sh", "-c", "cat /data/mine; sha256sum /data/f").succeeded().text
        assert seen == expected
    packed.remove_everything()


def test_an_option_goes_before_the_setting(empty_msb: Msb, tmp_path: Path) -> None:
    layout = _layout(tmp_path / "layout", {"f": b"what it says " * 20_000})
    packed = empty_msb.with_settings(MSB_IMAGE_COMPRESSION="lz4")
    packed("load", "--compression", "none", f"oci:{layout}").succeeded()
    assert {".lz4" in path.name for path in empty_msb.host.layers()} == {False}
    empty_msb("load", f"oci:{layout}", "--compression=lz4").succeeded()
    assert {".lz4" in path.name for path in empty_msb.host.layers()} == {False, True}
    empty_msb("image", "verify", "packed").succeeded()
    assert "'brotli'" in empty_msb("load", "--compression", "brotli", f"oci:{layout}").failed(2)


def test_an_unknown_setting_is_an_error_with_a_hint(empty_msb: Msb) -> None:
    msb = empty_msb.with_settings(MSB_IMAGE_COMPRESSION="brotli")
    assert "MSB_IMAGE_COMPRESSION: compression is 'brotli'" in msb("images").failed(2)


def _layers(process: Process) -> list[str]:
    """The names of the layer files that it has open."""
    paths = map(Path, process.descriptors.values())
    return [path.name for path in paths if path.parent.name == "layers"]
