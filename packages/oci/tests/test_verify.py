"""Verifying: any byte that changed since it was stored is found, and can be had again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from microsandbox_oci import ImageNotFound, ImageStore, Phase, Progress

BASE = {"bin/sh": b"#!" * 500, "etc/motd": b"welcome\n"}
TOP = {"srv/app": bytes(range(256)) * 40, "etc/.wh.motd": b""}


def load(store: ImageStore, sources: Any) -> Path:
    layout: Path = sources.directory(sources.layout_files(sources.image(BASE, TOP)))
    store.load(layout)
    return layout


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position % len(data)] ^= 0x10
    path.unlink()
    path.write_bytes(data)


def test_an_undamaged_image(store: ImageStore, sources: Any, tree: Any) -> None:
    load(store, sources)
    before = tree(store.root)
    events: list[Progress] = []
    result = store.verify("app:1", progress=events.append)
    assert (result.problems, result.damaged, result.unchecked) == ((), (), ())
    assert {event.phase for event in events} == {Phase.VERIFYING}
    assert tree(store.root) == before


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(which=st.integers(0, 30), position=st.integers(0, 1 << 20))
def test_one_flipped_bit_anywhere_is_found_and_loading_again_repairs_it(
    tmp_path: Path, sources: Any, which: int, position: int
) -> None:
    store = ImageStore(tmp_path / "store")
    layout = load(store, sources)
    image = store.get("app:1")
    files = [
        *(layer.path for layer in image.layers),
        image.metadata,
        *sorted((store.root / "blobs").iterdir()),
    ]
    path = files[which % len(files)]
    flip(path, position)
    result = store.verify("app:1", remove_damaged=True)
    assert len(result.problems) == 1
    assert path in result.damaged
    assert str(result.problems[0].hint).startswith("msb image verify") or result.problems[0].hint
    store.load(layout)
    assert store.verify("app:1").problems == ()


def test_without_the_original_bytes_only_metadata_is_checked(store: ImageStore, sources: Any) -> None:
    load(store, sources)
    for blob in (store.root / "blobs").iterdir():
        blob.unlink()
    image = store.get("app:1")
    result = store.verify("app:1")
    assert result.problems == ()
    assert result.unchecked == tuple(layer.diff_id for layer in image.layers)


def test_a_packed_directory_is_verified_too(store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "file").write_text("x")
    image = store.pack_rootfs(tmp_path / "root")
    assert store.verify(image.digest).problems == ()


def test_what_is_not_there(store: ImageStore) -> None:
    with pytest.raises(ImageNotFound):
        store.verify("app:1")


def test_history(store: ImageStore, sources: Any) -> None:
    built = sources.image(BASE, TOP)
    document = json.loads(built.config)
    document["history"] = [
        {"created": "2024-01-02T03:04:05Z", "created_by": "ADD base"},
        {"created_by": "ENV A=b", "empty_layer": True},
        {"created_by": "COPY app", "comment": "buildkit"},
    ]
    built.config = json.dumps(document).encode()
    [image] = store.load(sources.directory(sources.layout_files(built)))
    steps = store.history("app:1")
    assert [(step.created_by, step.layer) for step in steps] == [
        ("ADD base", image.layers[0].diff_id),
        ("ENV A=b", None),
        ("COPY app", image.layers[1].diff_id),
    ]
    assert [step.size for step in steps] == [image.layers[0].size, 0, image.layers[1].size]
    load(store, sources)
    assert [step.created_by for step in store.history("app:1")] == ["", ""]
