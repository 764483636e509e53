"""Every limit: what is above it is refused by name, what is at it is not, and a file can set it."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from microsandbox_oci import ImageStore, LimitExceeded, Limits, OptionsInvalid, Registries
from microsandbox_oci._digest import digest_of

FILES = {"bin/sh": b"#!" * 500, "etc/motd": b"welcome\n"}
INDEX = "application/vnd.oci.image.index.v1+json"

Make = Callable[[Any], Any]


def layout(*layers: dict[str, bytes]) -> Make:
    return lambda sources: sources.directory(sources.layout_files(sources.image(*(layers or (FILES,)))))


def tar(*entries: tarfile.TarInfo) -> Make:
    """An image of one layer with these entries."""

    def make(sources: Any) -> Any:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for entry in entries:
                archive.addfile(entry, io.BytesIO(bytes(entry.size)))
        built = sources.image({})
        config = json.loads(built.config)
        config["rootfs"]["diff_ids"] = [digest_of(buffer.getvalue())]
        built.config = json.dumps(config).encode()
        built.blobs[:] = [gzip.compress(buffer.getvalue())]
        return sources.directory(sources.layout_files(built))

    return make


def entry(name: str = "f", *, size: int = 0, **records: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.pax_headers = size, {key.replace("__", "."): value for key, value in records.items()}
    return info


def nested(depth: int) -> Make:
    def make(sources: Any) -> Any:
        built = sources.image(FILES)
        files = sources.layout_files(built)
        entries = json.loads(files["index.json"])["manifests"]
        for _ in range(depth):
            inner = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
            files.update(sources.blobs(inner))
            entries = [{"mediaType": INDEX, "digest": digest_of(inner), "size": len(inner)}]
        files.update(sources.index_files(entries))
        return sources.directory(files)

    return make


def two_images(sources: Any) -> Any:
    images = sources.image(FILES), sources.image({"x": b"y"})
    return sources.directory(sources.layout_files(*images, names=("a:1", "b:1")))


def window(sources: Any) -> Any:
    """A layer whose zstd frame wants a window of 8 MiB."""
    import zstandard

    built = sources.image(FILES)
    parameters = zstandard.ZstdCompressionParameters(window_log=23, write_content_size=False)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    built.blobs[:] = [stream.compress(built.tars[0]) + stream.flush()]
    built.media_types[:] = ["application/vnd.oci.image.layer.v1.tar+zstd"]
    return sources.directory(sources.layout_files(built))


def archive(sources: Any) -> Any:
    return sources.archive(sources.layout_files(sources.image(FILES)), compression="gzip")


ZEROS = {"zeros": bytes(4 << 20)}
TWO = ({"a": b"1"}, {"b": b"2"})

# For each limit: a source, a value that it is above, one that it is not, and other limits that this takes.
CASES: dict[str, tuple[Make, int, int, dict[str, int]]] = {
    "manifest_size": (layout(), 100, 10_000, {}),
    "config_size": (layout(), 100, 10_000, {}),
    "index_depth": (nested(3), 2, 3, {}),
    "index_documents": (nested(3), 1, 20, {"images_per_source": 1}),
    "images_per_source": (two_images, 1, 2, {}),
    "layers": (layout(*TWO), 1, 2, {}),
    "layer_size": (layout(), 4096, 1 << 20, {}),
    "layer_entries": (layout({f"f{n}": b"" for n in range(50)}), 40, 60, {}),
    "file_size": (tar(entry(size=100_000)), 99_999, 100_000, {}),
    "path_length": (tar(entry("d/" * 400 + "f")), 800, 801, {}),
    "xattrs_size": (tar(entry(SCHILY__xattr__user__a="v" * 5000)), 4000, 8000, {}),
    "header_size": (tar(entry(comment="c" * 5000)), 4000, 8000, {}),
    "metadata_size": (layout({f"f{n}": b"" for n in range(50)}), 5000, 50_000, {}),
    "image_entries": (layout(*TWO), 1, 10, {}),
    "image_metadata_size": (layout(*TWO), 300, 10_000, {}),
    "decompression_ratio": (layout(ZEROS), 100, 2000, {"ratio_grace": 1 << 20}),
    "ratio_grace": (layout(ZEROS), 1 << 20, 5 << 20, {}),
    "window_log": (window, 22, 23, {}),
    "archive_size": (archive, 4096, 1 << 20, {}),
    "archive_entries": (archive, 3, 20, {}),
}


def test_every_limit_has_a_case_here_and_a_line_in_the_manual() -> None:
    names = {field.name for field in dataclasses.fields(Limits)}
    assert set(CASES) == names
    manual = (Path(__file__).parents[3] / "docs" / "images.md").read_text(encoding="utf-8")
    assert [name for name in sorted(names) if f"`{name}`" not in manual] == []


@pytest.mark.parametrize("name", CASES)
def test_what_is_above_a_limit_is_refused(sources: Any, tmp_path: Path, name: str, tree: Any) -> None:
    make, below, enough, others = CASES[name]
    source = make(sources)
    strict = ImageStore(tmp_path / "strict", limits=Limits(**{**others, name: below}))
    strict.prune()
    before = tree(strict.root)
    with pytest.raises(LimitExceeded) as caught:
        strict.load(source)
    assert caught.value.hint
    assert str(caught.value).isprintable()
    assert tree(strict.root) == before
    # In a file, as users set it.
    settings = tmp_path / "limits.toml"
    settings.write_text("".join(f"{key} = {value}\n" for key, value in {**others, name: enough}.items()))
    assert ImageStore(tmp_path / "patient", limits=settings).load(source)


def test_a_file_of_limits(tmp_path: Path) -> None:
    path = tmp_path / "limits.toml"
    assert Limits.from_file(path) == Limits()
    path.write_text(
        'layer_size = "128G"\nmanifest_size = 5\nfile_size = "2T"\nheader_size = "7"\nxattrs_size = "3K"\n'
    )
    expected = Limits(
        layer_size=128 << 30, manifest_size=5, file_size=2 << 40, header_size=7, xattrs_size=3072
    )
    assert Limits.from_file(path) == expected
    store = ImageStore(tmp_path / "store", limits=path)
    assert store.limits == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("layer_siez = 1", "unknown limit layer_siez"),
        ("layers = 0", "layers must be a whole number from 1"),
        ("layers = -1", "layers must be"),
        ("layers = true", "layers must be"),
        ("layers = 1.5", "layers must be"),
        ('layer_size = "1 G"', "layer_size must be"),
        ('layer_size = "999999999999999T"', "layer_size must be"),
        ("layer_size = 99999999999999999999", "layer_size must be"),
        ("layers", "limits.toml"),
        ("[layers]", "layers must be"),
        ("\xff", "limits.toml"),
    ],
)
def test_a_bad_file_of_limits_is_named(tmp_path: Path, sources: Any, text: str, reason: str) -> None:
    path = tmp_path / "limits.toml"
    path.write_bytes(text.encode("latin-1"))
    store = ImageStore(tmp_path / "store", limits=path)
    with pytest.raises(OptionsInvalid, match=reason):
        store.load(layout()(sources))
    assert store.list() == []  # what is there can be used all the same


def test_what_came_under_other_limits_is_kept(tmp_path: Path, sources: Any) -> None:
    """A limit is about what comes in: a lower one damages nothing, a higher one is not forgotten by prune."""
    root = tmp_path / "store"
    many = [{f"f{n}": b"x"} for n in range(300)]
    [image] = ImageStore(root, limits=Limits(layers=400)).load(layout(*many)(sources))
    usual = ImageStore(root)
    usual.prune()
    for blob in (root / "blobs").iterdir():
        os.utime(blob, (0, 0))
    assert usual.prune().size == 0
    assert len(list((root / "blobs").iterdir())) == 300
    assert usual.get("app:1").layers == image.layers
    small = ImageStore(root, limits=Limits(image_entries=1))
    assert small.get("app:1").layers == image.layers


def test_how_registries_are_waited_for_is_set_in_their_file(tmp_path: Path) -> None:
    path = tmp_path / "registries.toml"
    path.write_text("attempts = 2\nparallel = 1\npatience = 0.5\nconnect_timeout = 3\nread_timeout = 7.5\n")
    found = Registries.from_file(path)
    assert (found.attempts, found.parallel) == (2, 1)
    assert (found.patience, found.connect_timeout, found.read_timeout) == (0.5, 3, 7.5)
    for text in (
        "attempts = 0",
        "parallel = 1.5",
        "patience = true",
        'read_timeout = "1"',
        "connect_timeout = nan",
    ):
        path.write_text(text)
        with pytest.raises(OptionsInvalid, match=text.partition(" ")[0]):
            Registries.from_file(path)
