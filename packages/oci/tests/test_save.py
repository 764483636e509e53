"""Saving: what comes out is what came in, byte for byte."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from microsandbox_oci import DigestMismatch, ImageNotFound, ImageStore, LayerNotKept, Registries

from tests.support.registry_server import Registry, serving

BASE = {"bin/sh": b"#!" * 500, "etc/motd": b"welcome\n"}
TOP = {"srv/app": bytes(100_000), "etc/.wh.motd": b""}


@pytest.fixture
def registry() -> Iterator[Registry]:
    with serving() as found:
        yield found


def saved(store: ImageStore, *names: str, form: str = "oci") -> bytes:
    out = io.BytesIO()
    store.save(names, out, format=form)
    return out.getvalue()


def members(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = {}
        for entry in tar:
            file = tar.extractfile(entry)
            assert file is not None
            found[entry.name] = file.read()
        return found


@pytest.mark.parametrize("compression", ["gzip", "zstd", ""])
@pytest.mark.parametrize("form", ["oci", "docker"])
def test_a_saved_image_has_the_digests_it_came_with(
    store: ImageStore, sources: Any, tmp_path: Path, compression: str, form: str
) -> None:
    built = sources.image(BASE, TOP, compression=compression)
    [image] = store.load(sources.directory(sources.layout_files(built)))
    archive = saved(store, "app:1", form=form)
    files = members(archive)
    for data in (built.manifest, built.config, *built.blobs):
        assert data in files.values()
    assert ("manifest.json" in files) == (form == "docker")
    other = ImageStore(tmp_path / "other")
    [again] = other.load(io.BytesIO(archive))
    assert again.digest == image.digest
    assert again.reference == image.reference
    assert saved(other, "app:1", form=form) == archive


def test_what_was_pulled_is_saved_as_it_was(store: ImageStore, registry: Registry, sources: Any) -> None:
    built = sources.image(BASE, TOP)
    digest = registry.add("app", "1", built)
    name = f"{registry.domain}/app:1"
    store.pull(name)
    files = members(saved(store, name))
    [entry] = json.loads(files["index.json"])["manifests"]
    assert entry["digest"] == digest
    assert entry["annotations"]["io.containerd.image.name"] == name
    assert set(built.blobs) < set(files.values())


def test_images_share_their_blobs_in_one_archive(store: ImageStore, sources: Any) -> None:
    first, second = sources.image(BASE), sources.image(BASE, TOP)
    store.load(sources.directory(sources.layout_files(first, second, names=("a:1", "b:1"))))
    store.tag("a:1", "a:2")
    files = members(saved(store, "a:1", "b:1", "a:2", form="docker"))
    assert len(files) == 3 + 2 + 2 + 2  # fixed ones, manifests, configurations, layers
    listing = json.loads(files["manifest.json"])
    assert [entry["RepoTags"] for entry in listing] == [["a:1", "a:2"], ["b:1"]]


def test_a_layer_known_from_elsewhere_can_be_completed(
    store: ImageStore, registry: Registry, sources: Any
) -> None:
    plain, packed = sources.image(BASE, compression=""), sources.image(BASE)
    store.load(sources.directory(sources.layout_files(plain)))
    registry.add("app", "1", packed)
    name = f"{registry.domain}/app:1"
    store.pull(name)
    with pytest.raises(LayerNotKept) as error:
        saved(store, name)
    assert error.value.layer in str(error.value)
    store.pull(name, complete=True)
    assert packed.blobs[0] in members(saved(store, name)).values()


def test_a_completed_layer_is_verified(store: ImageStore, registry: Registry, sources: Any) -> None:
    plain, packed = sources.image(BASE, compression=""), sources.image(BASE)
    store.load(sources.directory(sources.layout_files(plain)))
    registry.add("app", "1", packed)
    [digest] = [d for d, data in registry.blobs.items() if data == packed.blobs[0]]
    registry.blobs[digest] = bytes(len(packed.blobs[0]))
    with pytest.raises(DigestMismatch):
        store.pull(f"{registry.domain}/app:1", complete=True, registries=Registries(attempts=1))
    assert list((store.root / "downloads").iterdir()) == []


def test_nothing_is_written_for_what_is_not_there(store: ImageStore, sources: Any) -> None:
    store.load(sources.directory(sources.layout_files(sources.image(BASE))))
    out = io.BytesIO()
    with pytest.raises(ImageNotFound):
        store.save(["app:1", "missing:1"], out)
    assert out.getvalue() == b""


def test_a_damaged_blob_is_not_passed_on(store: ImageStore, sources: Any) -> None:
    store.load(sources.directory(sources.layout_files(sources.image(BASE))))
    [blob] = (store.root / "blobs").iterdir()
    data = blob.read_bytes()
    blob.unlink()
    blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DigestMismatch):
        saved(store, "app:1")
