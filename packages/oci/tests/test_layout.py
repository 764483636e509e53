"""The layout writer: its layouts are what the reader reads, and the same every time."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from microsandbox_oci import ImageConfig, Limits, Platform
from microsandbox_oci._layout_source import read_layout
from microsandbox_oci._tree import DirectoryTree
from microsandbox_oci.layout import Compression, LayoutWriter

CONFIG = ImageConfig(env=("A=b",), cmd=("sh", "-c", "x"), labels={"k": "v"}, exposed_ports=("80/tcp",))


def write(directory: Path, compression: Compression) -> None:
    with LayoutWriter(directory) as writer:
        layers = [writer.add_layer(bytes(10240), compression=compression)]
        layers.append(writer.add_layer(io.BytesIO(b"\0" * 3_000_000), compression=compression))
        writer.add_image(layers, CONFIG, name="app:1")


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("compression", list(Compression))
def test_writes_the_same_bytes_every_time_and_nothing_else(tmp_path: Path, compression: Compression) -> None:
    write(tmp_path / "one", compression)
    write(tmp_path / "two", compression)
    first = files(tmp_path / "one")
    assert first == files(tmp_path / "two")
    assert len(first) == 6  # marker, index, manifest, configuration, two layers


@pytest.mark.parametrize("compression", list(Compression))
def test_what_it_writes_is_read_back(tmp_path: Path, compression: Compression) -> None:
    write(tmp_path / "one", compression)
    [image] = read_layout(DirectoryTree(tmp_path / "one"), Limits(), Platform.host())
    assert [str(name) for name in image.names] == ["docker.io/library/app:1"]
    assert image.document.config == CONFIG
    assert image.document.platform == Platform.host()
    for layer in image.layers:
        assert layer.blob.digest() == layer.descriptor.digest
        assert layer.blob.size == layer.descriptor.size


def test_an_error_leaves_no_index(tmp_path: Path) -> None:
    def fail() -> None:
        with LayoutWriter(tmp_path / "one") as writer:
            writer.add_layer(bytes(1024))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not (tmp_path / "one" / "index.json").exists()
