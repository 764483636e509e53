"""Compression as a setting: both forms of an image side by side, and the same image either way."""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from microsandbox_oci import Image, ImageInUse, ImageNotFound, ImageStore, Registries, open_in_use_lock

from tests.support.registry_server import serving

TEXT = b"".join(b"line %d of a file\n" % number for number in range(20_000))
BASE = {"bin/sh": b"#!" * 500, "usr/share/words": TEXT}
TOP = {"srv/app": TEXT[::-1], "srv/noise": os.urandom(100_000)}


@pytest.fixture
def packed(store: ImageStore) -> ImageStore:
    """The same store with the other setting."""
    return ImageStore(store.root, compression="lz4")


def load(store: ImageStore, sources: Any, **more: Any) -> Image:
    [image] = store.load(sources.directory(sources.layout_files(sources.image(BASE, TOP, **more))))
    return image


def contents(image: Image) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path, _ in image.extents}


def test_both_forms_of_an_image_stand_side_by_side(
    store: ImageStore, packed: ImageStore, sources: Any
) -> None:
    plain = load(store, sources)
    before = contents(plain)
    small = load(packed, sources)
    assert (plain.compression, small.compression) == ("none", "lz4")
    assert plain.digest == small.digest
    assert plain.disk != small.disk
    assert sum(layer.size for layer in small.layers) < sum(layer.size for layer in plain.layers) * 2 / 3
    assert contents(plain) == before
    for one, image in ((store, plain), (packed, small)):
        assert one.get("app:1") == image
        assert one.list() == [image]
        assert one.get("app:1", compression=plain.compression) == plain
        assert {form.disk for form in one.forms(image.digest)} == {plain.disk, small.disk}
    # What is there is not made again, and nothing is garbage.
    assert load(packed, sources) == small
    assert packed.prune().size == 0


def test_an_image_that_is_there_in_the_other_form_is_found(
    store: ImageStore, packed: ImageStore, sources: Any
) -> None:
    plain = load(store, sources)
    assert packed.get("app:1") == plain
    assert packed.get(plain.digest).disk == plain.disk
    assert packed.list() == [plain]
    assert packed.verify("app:1").problems == ()
    assert packed.tag("app:1", "app:2").disk == plain.disk


def test_a_removed_image_is_gone_in_both_forms(store: ImageStore, packed: ImageStore, sources: Any) -> None:
    load(store, sources)
    image = load(packed, sources)
    lock = open_in_use_lock(image)
    with pytest.raises(ImageInUse):
        store.remove("app:1")
    os.close(lock)
    assert store.remove("app:1").images == (image.digest,)
    for one in (store, packed):
        with pytest.raises(ImageNotFound):
            one.get("app:1")
    for name in ("images", "layers", "blobs", "locks"):
        assert list((store.root / name).iterdir()) == []


def test_the_form_that_is_in_use_stays(store: ImageStore, packed: ImageStore, sources: Any) -> None:
    load(store, sources)
    image = load(packed, sources)
    lock = open_in_use_lock(image)
    store.remove("app:1", force=True)
    assert store.get(image.digest).disk == image.disk
    assert all(layer.path.exists() for layer in image.layers)
    os.close(lock)
    assert store.prune().images == (image.digest,)
    assert list((store.root / "layers").iterdir()) == []


def test_a_dry_run_says_what_would_go(store: ImageStore, packed: ImageStore, sources: Any) -> None:
    load(store, sources)
    image = load(packed, sources)
    for reference in (store.root / "refs").iterdir():
        reference.unlink()
    said = packed.prune(dry_run=True)
    assert said.images == (image.digest,)
    assert packed.prune() == said


@pytest.mark.parametrize("which", range(6))
def test_a_damaged_file_of_either_form_is_found(
    store: ImageStore, packed: ImageStore, sources: Any, which: int
) -> None:
    images = [load(store, sources), load(packed, sources)]
    path = [path for image in images for path, _ in image.extents][which]
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.unlink()
    path.write_bytes(data)
    result = store.verify("app:1", remove_damaged=True)
    assert result.damaged == (path,)
    for one in (store, packed):
        load(one, sources)
    assert store.verify("app:1").problems == ()


def test_what_is_saved_is_the_same(store: ImageStore, sources: Any, tmp_path: Path) -> None:
    load(store, sources)
    plain, small = io.BytesIO(), io.BytesIO()
    store.save(["app:1"], plain)
    other = ImageStore(tmp_path / "other", compression="lz4")
    load(other, sources)
    other.save(["app:1"], small)
    assert plain.getvalue() == small.getvalue()


def test_another_setting_converts_anew_without_fetching(sources: Any, tmp_path: Path) -> None:
    built = sources.image(BASE, TOP)
    with serving() as registry:
        registry.add("app", "1", built)
        stores = [ImageStore(tmp_path / "store", compression=name) for name in ("none", "lz4")]
        plain = stores[0].pull(f"{registry.domain}/app:1", registries=Registries())
        registry.requests.clear()
        small = stores[1].pull(f"{registry.domain}/app:1", registries=Registries())
        assert registry.count("/blobs/") == 0
        assert (plain.compression, small.compression) == ("none", "lz4")
        assert stores[1].verify(small.digest).problems == ()
        # A kept layer that is damaged is fetched.
        blob = next(path for path in (tmp_path / "store" / "blobs").iterdir())
        for image in (plain, small):
            for layer in image.layers:
                layer.path.unlink()
        blob.unlink()
        blob.write_bytes(b"damaged")
        stores[1].pull(f"{registry.domain}/app:1", registries=Registries())
        assert registry.count("/blobs/") == 1
        assert stores[1].verify(small.digest).problems == ()


def test_directories_are_packed_without(packed: ImageStore, store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "words").write_bytes(TEXT)
    image = packed.pack_rootfs(tmp_path / "root")
    assert image.compression == "none"
    assert store.pack_rootfs(tmp_path / "root") == image == packed.pack_rootfs(tmp_path / "root")
    (tmp_path / "root" / "more").write_bytes(TEXT)
    assert packed.pack_rootfs(tmp_path / "root").digest != image.digest
    assert len(list((packed.root / "layers").iterdir())) == 1


def test_there_is_no_other_compression(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'zstd'"):
        ImageStore(tmp_path, compression="zstd")


@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_the_same_layers_are_the_same_bytes(compression: str, sources: Any, tmp_path: Path) -> None:
    """Whatever they were compressed with, in whatever order and with however many threads they came."""
    layers = [{f"file{number}": TEXT[number:], "noise": bytes(os.urandom(9000))} for number in range(6)]
    found: list[dict[str, bytes]] = []
    with serving() as registry:
        for how in ("", "gzip", "zstd"):
            registry.add("app", how or "none", sources.image(*layers, compression=how))

        def make(number: int) -> dict[str, bytes]:
            how, parallel = ("none", "gzip", "zstd")[number % 3], (1, 4)[number % 2]
            store = ImageStore(tmp_path / str(number), compression=compression)
            image = store.pull(f"{registry.domain}/app:{how}", registries=Registries(parallel=parallel))
            return contents(image)

        found += [make(number) for number in range(6)]
        with ThreadPoolExecutor(6) as pool:
            found += pool.map(make, range(6, 12))
    loaded = ImageStore(tmp_path / "loaded", compression=compression)
    source = sources.directory(sources.layout_files(sources.image(*layers)))
    found += [contents(image) for image in loaded.load(source)]
    assert all(one == found[0] for one in found[1:])
