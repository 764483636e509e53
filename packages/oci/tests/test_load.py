"""Loading: every form of source gives the same image, and a bad one leaves no trace."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import resource
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from microsandbox_oci import (
    ArchiveInvalid,
    ArchiveNotFound,
    DigestMismatch,
    Image,
    ImageError,
    ImageInvalid,
    ImageNotFound,
    ImageStore,
    LayerInvalid,
    LimitExceeded,
    Limits,
    Phase,
    Platform,
    PlatformMismatch,
    Progress,
    SizeMismatch,
    StoreError,
    StoreFull,
    StoreNotWritable,
    _native,
)

BASE = {"bin/sh": b"#!" * 500, "etc/motd": b"welcome\n"}
TOP = {"srv/app": os.urandom(20_000), "etc/.wh.motd": b""}
Tree = Callable[[Path], list[tuple[str, int]]]


def all_forms(sources: Any) -> dict[str, Any]:
    """The same two layers in every form; plain ones where the form stores them so."""
    packed = sources.image(BASE, TOP)
    plain = sources.image(BASE, TOP, compression="")
    layout = sources.layout_files(packed)
    old, new = sources.docker_old(plain, ["app:1"]), sources.docker_new(plain, "app:1")
    return {
        "oci": f"oci:{sources.directory(layout)}",
        "directory": sources.directory(layout),
        "oci-zstd-layers": sources.directory(
            sources.layout_files(sources.image(BASE, TOP, compression="zstd"))
        ),
        "oci-archive": f"oci-archive:{sources.archive(layout)}",
        "oci-archive-named": f"oci-archive:{sources.archive(layout)}:app:1",
        "archive": str(sources.archive(layout)),
        "docker-old": f"docker-archive:{sources.archive(old)}",
        "docker-old-auto": sources.archive(old),
        "docker-old-gzip-layers": sources.archive(sources.docker_old(packed, ["app:1"])),
        "docker-new": f"docker-archive:{sources.archive(new)}",
        "docker-gzip": str(sources.archive(old, compression="gzip")),
        "docker-zstd": str(sources.archive(old, compression="zstd")),
        "stream": io.BytesIO(sources.archive(old).read_bytes()),
        "gzip-stream": io.BytesIO(gzip.compress(sources.archive(layout).read_bytes())),
    }


def test_every_form_of_source_gives_the_same_files(sources: Any, tmp_path: Path) -> None:
    seen = {}
    for name, source in all_forms(sources).items():
        store = ImageStore(tmp_path / name)
        [image] = store.load(source)
        assert str(image.reference) == "docker.io/library/app:1", name
        assert store.get("app:1") == image
        assert store.get(image.digest).disk == image.disk
        assert image.config.env == ("PATH=/bin",)
        assert image.created == "2024-05-06T07:08:09.123456789Z"
        assert not list((store.root / "tmp").iterdir())
        seen[name] = [path.read_bytes() for path, _ in image.extents]
    first = seen.popitem()[1]
    assert all(other == first for other in seen.values())


def test_the_docker_save_forms_keep_digests_where_there_are_any(store: ImageStore, sources: Any) -> None:
    plain = sources.image(BASE, compression="")
    [layout] = store.load(sources.directory(sources.layout_files(plain)))
    [new] = store.load(sources.archive(sources.docker_new(plain, "app:2")))
    assert new.digest == layout.digest
    [old] = store.load(sources.archive(sources.docker_old(plain, ["app:3", "other/app:4"])))[:1]
    assert {str(image.reference) for image in store.list()} == {
        "docker.io/library/app:1",
        "docker.io/library/app:2",
        "docker.io/library/app:3",
        "docker.io/other/app:4",
    }
    assert old.layers == new.layers


def test_an_old_archive_links_to_a_layer_stored_once(store: ImageStore, sources: Any) -> None:
    image = sources.image(BASE, BASE, compression="")
    files = sources.docker_old(image, ["app:1"])
    del files[f"{2:064x}/layer.tar"]
    links = {f"{2:064x}/layer.tar": f"../{1:064x}/layer.tar"}
    [loaded] = store.load(sources.archive(files, links=links))
    assert len(loaded.layers) == 2
    assert loaded.layers[0] == loaded.layers[1]


def test_original_documents_are_kept_byte_for_byte(store: ImageStore, sources: Any) -> None:
    built = sources.image(BASE)
    [image] = store.load(sources.directory(sources.layout_files(built)))
    assert (image.directory / "manifest.json").read_bytes() == built.manifest
    assert (image.directory / "config.json").read_bytes() == built.config


def test_the_disk_is_made_of_relative_paths_and_the_store_can_move(
    store: ImageStore, sources: Any, tmp_path: Path
) -> None:
    [image] = store.load(sources.directory(sources.layout_files(sources.image(BASE, TOP))))
    descriptor = image.disk.read_text()
    assert str(tmp_path) not in descriptor
    assert descriptor.count("../../layers/") == 2
    store.root.rename(tmp_path / "moved")
    moved = ImageStore(tmp_path / "moved").get("app:1")
    for line in moved.disk.read_text().splitlines():
        if line.startswith("RW") or line.startswith("RDONLY"):
            assert (moved.directory / line.split('"')[1]).is_file()
    assert sum(size for _, size in moved.extents) % 512 == 0


def test_files_are_private_and_final(store: ImageStore, sources: Any) -> None:
    old = os.umask(0)
    try:
        [image] = store.load(sources.directory(sources.layout_files(sources.image(BASE))))
    finally:
        os.umask(old)
    for path, _ in image.extents:
        assert stat.S_IMODE(path.stat().st_mode) == 0o444
    for directory in (store.root, store.root / "layers", image.directory, store.root / "tmp"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_layers_are_stored_once_and_not_converted_again(store: ImageStore, sources: Any) -> None:
    store.load(sources.directory(sources.layout_files(sources.image(BASE))))
    [before] = (store.root / "layers").iterdir()
    inode = before.stat().st_ino
    events: list[Progress] = []
    both = sources.image(BASE, TOP, compression="zstd")
    [image] = store.load(
        sources.directory(sources.layout_files(both, names=["app:2"])), progress=events.append
    )
    converted = {event.subject for event in events if event.phase is Phase.CONVERTING}
    assert converted == {image.layers[1].diff_id}
    assert {event.subject for event in events if event.phase is Phase.VERIFYING} == {image.layers[0].diff_id}
    assert len(list((store.root / "layers").iterdir())) == 2
    assert before.stat().st_ino == inode
    assert events[-1].phase is Phase.DONE


def test_loading_again_changes_nothing(store: ImageStore, sources: Any, tree: Tree) -> None:
    path = sources.directory(sources.layout_files(sources.image(BASE, TOP)))
    [first] = store.load(path)
    before = tree(store.root), [file.stat().st_ino for file, _ in first.extents]
    events: list[Progress] = []
    assert store.load(path, progress=events.append) == [first]
    assert (tree(store.root), [file.stat().st_ino for file, _ in first.extents]) == before
    assert {event.phase for event in events} == {Phase.DONE}


def test_a_name_can_be_given_instead(store: ImageStore, sources: Any) -> None:
    files = sources.layout_files(sources.image(BASE), sources.image(TOP), names=["app:1", "latest"])
    path = sources.directory(files)
    named, unnamed = store.load(path)
    assert str(named.reference) == "docker.io/library/app:1"
    assert unnamed.reference is None  # `latest` alone says nothing about the repository
    [given] = store.load(f"oci:{path}:latest", tag="mine/app")
    assert store.get("mine/app:latest").digest == given.digest == unnamed.digest
    with pytest.raises(ArchiveInvalid, match="2 images"):
        store.load(path, tag="mine/app")
    with pytest.raises(ArchiveNotFound, match="nothing") as caught:
        store.load(f"oci:{path}:nothing")
    assert "app:1" in str(caught.value.hint)
    with pytest.raises(ArchiveInvalid, match="empty"):
        store.load("")  # which is not the working directory


# What is wrong with the source, and the error it must be.


def damaged(sources: Any, what: str) -> Any:
    built = sources.image(BASE, TOP, compression="" if what.startswith("docker") else "gzip")
    files = sources.layout_files(built)
    last = next(name for name, data in files.items() if data == built.blobs[-1])
    if what == "truncated":
        files[last] = files[last][:-100]
    elif what == "longer":
        files[last] += b"x"
    elif what == "flipped":
        files[last] = files[last][:500] + bytes([files[last][500] ^ 1]) + files[last][501:]
    elif what == "missing":
        del files[last]
    elif what == "diff id":
        wrong = sources.image(BASE, TOP, diff_ids=["sha256:" + "11" * 32, "sha256:" + "22" * 32])
        files = sources.layout_files(wrong)
    elif what == "no tar":
        image = sources.image(BASE, TOP)
        image.tars[1] = b"this is no tar archive" * 100
        files = sources.layout_files(relayered(sources, image))
    elif what == "truncated tar":
        image = sources.image(BASE, TOP)
        image.tars[1] = image.tars[1][:5000]
        files = sources.layout_files(relayered(sources, image))
    elif what == "manifest":
        name = next(name for name, data in files.items() if data == built.manifest)
        files[name] = files[name].replace(b"gzip", b"zstd", 1)
    elif what == "config":
        name = next(name for name, data in files.items() if data == built.config)
        files[name] = files[name].replace(b"linux", b"Linux", 1)
    elif what == "docker layer":
        files = sources.docker_old(built, ["app:1"])
        name = f"{2:064x}/layer.tar"
        files[name] = files[name][:700] + b"?" + files[name][701:]
        return sources.archive(files)
    elif what == "docker config":  # P03: called by one digest, another inside
        files = sources.docker_old(built, ["app:1"])
        name = next(name for name, data in files.items() if data == built.config)
        files[name] = files[name] + b" "
        return sources.archive(files)
    elif what == "archive cut off":
        path = sources.archive(files)
        path.write_bytes(path.read_bytes()[:-25_000])
        return path
    elif what == "gzip cut off":
        path = sources.archive(files, compression="gzip")
        path.write_bytes(path.read_bytes()[:-100])
        return path
    elif what == "zstd cut off":
        path = sources.archive(files, compression="zstd")
        path.write_bytes(path.read_bytes()[:-100])
        return path
    return sources.directory(files)


def relayered(sources: Any, image: Any) -> Any:
    """The image with its changed tars described truthfully: only the tar itself is bad."""
    import hashlib

    config = json.loads(image.config)
    config["rootfs"]["diff_ids"] = ["sha256:" + hashlib.sha256(tar).hexdigest() for tar in image.tars]
    image.config = json.dumps(config).encode()
    image.blobs = [sources.compress(tar, "gzip") for tar in image.tars]
    return image


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("truncated", SizeMismatch),
        ("longer", SizeMismatch),
        ("flipped", DigestMismatch),
        ("missing", ImageInvalid),
        ("diff id", DigestMismatch),
        ("no tar", LayerInvalid),
        ("truncated tar", LayerInvalid),
        ("manifest", DigestMismatch),
        ("config", DigestMismatch),
        ("docker layer", DigestMismatch),
        ("docker config", DigestMismatch),
        ("archive cut off", ArchiveInvalid),
        ("gzip cut off", ArchiveInvalid),
        ("zstd cut off", ArchiveInvalid),
    ],
)
@pytest.mark.parametrize("filled", [False, True], ids=["empty-store", "first-layer-cached"])
def test_o13_bad_bytes_are_a_typed_error_that_leaves_nothing_and_a_retry_works(
    store: ImageStore, sources: Any, tree: Tree, what: str, error: type[ImageError], filled: bool
) -> None:
    store.prune()
    if filled:
        store.load(sources.directory(sources.layout_files(sources.image(BASE), names=["base:1"])))
    before = tree(store.root)
    with pytest.raises(error) as caught:
        store.load(damaged(sources, what))
    assert type(caught.value) is error
    assert caught.value.hint
    assert tree(store.root) == before
    with pytest.raises(ImageNotFound):
        store.get("app:1")
    [image] = store.load(sources.directory(sources.layout_files(sources.image(BASE, TOP))))
    assert store.get("app:1") == image


def test_one_bad_image_of_several_leaves_none_of_them(store: ImageStore, sources: Any, tree: Tree) -> None:
    store.prune()
    before = tree(store.root)
    good, bad = sources.image(BASE), sources.image(TOP)
    files = sources.layout_files(good, bad, names=["good:1", "bad:1"])
    name = next(name for name, data in files.items() if data == bad.blobs[0])
    files[name] = bytes(len(files[name]))
    with pytest.raises(DigestMismatch):
        store.load(sources.directory(files))
    assert tree(store.root) == before


def test_o08_a_gzip_bomb_is_stopped(tmp_path: Path, sources: Any, tree: Tree) -> None:
    store = ImageStore(tmp_path / "small", limits=Limits(ratio_grace=1 << 20, decompression_ratio=100))
    store.prune()
    before = tree(store.root)
    bomb = {"zeros": bytes(20 << 20)}
    with pytest.raises(LimitExceeded):
        store.load(sources.directory(sources.layout_files(sources.image(bomb))))
    with pytest.raises(LimitExceeded):
        store.load(
            sources.archive(
                sources.docker_old(sources.image(bomb, compression=""), ["a:1"]), compression="gzip"
            )
        )
    with pytest.raises(LimitExceeded):
        store.load(
            sources.archive(
                sources.docker_old(sources.image(bomb, compression=""), ["a:1"]), compression="zstd"
            )
        )
    assert tree(store.root) == before


def test_o11_manifests_and_archives_are_bounded(tmp_path: Path, sources: Any) -> None:
    store = ImageStore(tmp_path / "small", limits=Limits(manifest_size=1000, archive_size=5000))
    big = sources.layout_files(sources.image(BASE))
    big["index.json"] += b" " * 1000
    with pytest.raises(LimitExceeded, match=r"index\.json"):
        store.load(sources.directory(big))
    with pytest.raises(LimitExceeded, match="larger than 5000"):
        store.load(io.BytesIO(sources.archive(big).read_bytes()))


def test_o11_indexes_within_indexes_are_bounded(store: ImageStore, sources: Any) -> None:
    files: dict[str, bytes] = {}
    kind = "application/vnd.oci.image.index.v1+json"
    inner = json.dumps({"schemaVersion": 2, "manifests": []}).encode()
    for _ in range(100):
        files.update(sources.blobs(inner))
        entry = {"mediaType": kind, "digest": sha256_of(inner), "size": len(inner)}
        inner = json.dumps({"schemaVersion": 2, "manifests": [entry, entry]}).encode()
    files.update(sources.index_files(json.loads(inner)["manifests"]))
    with pytest.raises(LimitExceeded):
        store.load(sources.directory(files))


def sha256_of(data: bytes) -> str:
    import hashlib

    return "sha256:" + hashlib.sha256(data).hexdigest()


def index_of(sources: Any, *images: tuple[Any, dict[str, Any]]) -> dict[str, bytes]:
    entries = [
        {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": sha256_of(image.manifest),
            "size": len(image.manifest),
            **more,
        }
        for image, more in images
    ]
    index = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    top = {
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": sha256_of(index),
        "size": len(index),
        "annotations": {"org.opencontainers.image.ref.name": "multi:1"},
    }
    files: dict[str, bytes] = {**sources.index_files([top]), **sources.blobs(index)}
    for image, _ in images:
        files.update(sources.blobs(image.manifest, image.config, *image.blobs))
    return files


def test_the_variant_for_this_platform_is_chosen_and_attestations_are_skipped(
    sources: Any, tmp_path: Path
) -> None:
    amd64 = sources.image(BASE, platform=Platform("linux", "amd64"))
    arm64 = sources.image(TOP, platform=Platform("linux", "arm64", "v8"))
    proof = sources.image({"in-toto": b"{}"}, platform=Platform("unknown", "unknown"))
    files = index_of(
        sources,
        (
            proof,
            {
                "platform": {"os": "unknown", "architecture": "unknown"},
                "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
            },
        ),
        (arm64, {"platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}}),
        (amd64, {"platform": {"os": "linux", "architecture": "amd64"}}),
    )
    path = sources.directory(files)
    for platform, built in ((Platform("linux", "amd64"), amd64), (Platform("linux", "arm64", "v8"), arm64)):
        [image] = ImageStore(tmp_path / platform.architecture, platform=platform).load(path)
        assert image.digest == sha256_of(built.manifest)
        assert image.architecture == platform.architecture
    with pytest.raises(PlatformMismatch, match="riscv64"):
        ImageStore(tmp_path / "riscv", platform=Platform("linux", "riscv64")).load(path)
    with pytest.raises(PlatformMismatch):
        ImageStore(tmp_path / "arm", platform=Platform("linux", "arm64", "v8")).load(
            sources.directory(sources.layout_files(amd64))
        )


def test_sources_that_are_no_archives_are_named(store: ImageStore, sources: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source, error in (
        (tmp_path / "empty", ArchiveInvalid),
        (tmp_path / "missing", ArchiveNotFound),
        (sources.archive({"readme": b"x"}), ArchiveInvalid),
    ):
        with pytest.raises(error, match=str(source)):
            store.load(source)
    with pytest.raises(ArchiveInvalid, match="not an OCI archive"):
        store.load(f"oci-archive:{sources.archive(sources.docker_old(sources.image(BASE), None))}")
    with pytest.raises(ArchiveInvalid):
        store.load(io.BytesIO(b""))


def test_what_an_archive_calls_things_is_shown_on_one_line(store: ImageStore, sources: Any) -> None:
    """Found by fuzzing: names of images, configurations and layers."""
    built = sources.image(BASE)
    strange = "\x1b[2J" + "n" * 5000
    for member, value in (("Config", strange), ("Layers", [strange]), ("RepoTags", [strange])):
        files = sources.docker_old(built, ["app:1"])
        entry = {**json.loads(files["manifest.json"])[0], member: value}
        files["manifest.json"] = json.dumps([entry]).encode()
        archive = sources.archive(files)
        with pytest.raises(ImageError) as caught:
            store.load(f"docker-archive:{archive}:other:1" if member == "RepoTags" else archive)
        for text in (str(caught.value), str(caught.value.hint)):
            assert text.isprintable()
            assert len(text) < 2000
    foreign = sources.docker_old(sources.image(BASE, platform=Platform("linux", "s390x")), ["app:1"])
    listing = json.loads(foreign["manifest.json"])[0]
    foreign[strange[:90]] = foreign.pop(listing["Config"])
    foreign["manifest.json"] = json.dumps([{**listing, "Config": strange[:90]}]).encode()
    with pytest.raises(PlatformMismatch) as caught:
        store.load(sources.archive(foreign))
    assert str(caught.value).isprintable()


def test_a_fifo_is_read_as_a_stream(store: ImageStore, sources: Any, tmp_path: Path) -> None:
    import threading

    data = sources.archive(sources.docker_old(sources.image(BASE), ["app:1"])).read_bytes()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_bytes, args=(data,))
    writer.start()
    [image] = store.load(str(fifo))
    writer.join()
    assert store.get("app:1") == image


@given(data=st.data())
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_o13_any_damage_to_an_archive_is_a_typed_error(
    store: ImageStore, sources: Any, tree: Tree, data: st.DataObject
) -> None:
    store.prune()
    before = tree(store.root)
    image = sources.image({"a": b"x"}, compression=data.draw(st.sampled_from(["", "gzip", "zstd"])))
    form = data.draw(st.sampled_from([sources.docker_old(image, ["a:1"]), sources.docker_new(image, "a:1")]))
    archive = bytearray(sources.compress(tar_bytes(form), data.draw(st.sampled_from(["", "gzip", "zstd"]))))
    for _ in range(data.draw(st.integers(1, 3))):
        archive[data.draw(st.integers(0, len(archive) - 1))] ^= data.draw(st.integers(1, 255))
    problem: ImageError | None = None
    loaded: list[Image] = []
    try:
        loaded = store.load(io.BytesIO(bytes(archive)))
    except ImageError as error:
        problem = error
    assert problem is None or (problem.code and problem.hint)
    # What was accepted had its damage in padding, a time or a name, and is whole.
    assert all(store.get(one.digest).layers == one.layers for one in loaded)
    for digest in {one.digest for one in loaded}:
        store.remove(digest)
    assert tree(store.root) == before


def tar_bytes(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


# Trouble with the store itself.


def test_o20_a_full_disk_is_a_store_error_that_leaves_nothing(
    store: ImageStore, sources: Any, tree: Tree
) -> None:
    store.prune()
    before = tree(store.root)
    path = sources.directory(sources.layout_files(sources.image({"big": os.urandom(3 << 20)})))
    archive = sources.archive(
        sources.layout_files(sources.image({"big": os.urandom(3 << 20)})), compression="gzip"
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        for source in (path, archive):
            with pytest.raises(StoreFull) as caught:
                store.load(source)
            assert caught.value.errno == errno.EFBIG
            assert caught.value.hint
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert tree(store.root) == before
    assert len(store.load(path)) == 1


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small tmpfs")
def test_o20_enospc_at_every_size_leaves_nothing_and_the_disk_can_be_used_again(
    sources: Any, tree: Tree, tmp_path: Path
) -> None:
    path = sources.directory(sources.layout_files(sources.image(BASE, {"big": os.urandom(600_000)})))
    mount = tmp_path / "small"
    mount.mkdir()
    full = 0
    sizes = range(20, 1620, 50)
    for kilobytes in sizes:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k,nr_inodes=200", "tmpfs", mount], check=True
        )
        try:
            store = ImageStore(mount / "store")
            store.prune()
            before = tree(store.root)
            try:
                store.load(path)
            except StoreFull:
                full += 1
                assert tree(store.root) == before
            else:
                assert store.get("app:1").layers
        finally:
            subprocess.run(["umount", mount], check=True)
    assert 3 < full < len(sizes)


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path, sources: Any) -> None:
    (tmp_path / "file").write_text("")
    source = sources.directory(sources.layout_files(sources.image(BASE)))
    for root in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/microsandbox")):
        with pytest.raises(StoreError) as caught:
            ImageStore(root).load(source)
        assert caught.value.code.startswith("store_")
    with pytest.raises(StoreNotWritable):
        ImageStore(tmp_path / "file").load(source)


# Several processes, and processes that die.

LOADER = """
import sys
from microsandbox_oci import ImageStore, Phase
converted = set()
def report(event):
    if event.phase is Phase.CONVERTING and event.subject not in converted:
        converted.add(event.subject)
        print("converting", event.subject, flush=True)
        if len(sys.argv) > 3:
            sys.stdin.readline()
[image] = ImageStore(sys.argv[1]).load(sys.argv[2], progress=report)
print("loaded", image.digest, flush=True)
"""


def loader(store: ImageStore, source: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", LOADER, str(store.root), str(source), *more],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_o16_processes_that_load_at_once_convert_each_layer_once(store: ImageStore, sources: Any) -> None:
    source = sources.directory(sources.layout_files(sources.image(BASE, TOP, {"x": os.urandom(4 << 20)})))
    first = loader(store, source, "wait")
    assert first.stdout is not None
    lines = [first.stdout.readline()]  # the first holds a conversion open while the others start
    others = [loader(store, source) for _ in range(3)]
    output, _ = first.communicate("\n" * 3)
    lines += output.splitlines()
    for other in others:
        lines += other.communicate()[0].splitlines()
    assert [process.returncode for process in (first, *others)] == [0] * 4
    converted = [line.split()[1] for line in lines if line.startswith("converting")]
    assert len(converted) == len(set(converted)) == 3
    assert len({line for line in lines if line.startswith("loaded")}) == 1
    assert not list((store.root / "tmp").iterdir())


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_o17_a_killed_load_is_cleaned_up_by_the_next(store: ImageStore, sources: Any, layer: int) -> None:
    source = sources.directory(sources.layout_files(sources.image(BASE, TOP, {"x": os.urandom(1 << 20)})))
    with loader(store, source, "wait") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(layer - 1):
            process.stdout.readline()
            process.stdin.write("\n")
            process.stdin.flush()
        assert process.stdout.readline().startswith("converting")
        process.kill()
    assert list((store.root / "tmp").iterdir())
    with pytest.raises(ImageNotFound):
        store.get("app:1")
    [image] = store.load(source)
    assert not list((store.root / "tmp").iterdir())
    assert store.get("app:1") == image
    for path, _ in image.extents:
        with path.open("rb") as file:
            _native.check_layer(file.fileno())


@pytest.mark.parametrize("phase", [Phase.READING, Phase.CONVERTING, Phase.MERGING, Phase.DONE])
def test_ctrl_c_at_any_phase_leaves_nothing(
    store: ImageStore, sources: Any, tree: Tree, phase: Phase
) -> None:
    store.prune()
    before = tree(store.root)

    def interrupt(event: Progress) -> None:
        if event.phase is phase:
            raise KeyboardInterrupt

    source = sources.archive(sources.layout_files(sources.image(BASE, TOP)), compression="gzip")
    if phase is Phase.DONE:
        # Names are given before the last event: the load is complete and stays so.
        with pytest.raises(KeyboardInterrupt):
            store.load(source, progress=interrupt)
        assert store.get("app:1").layers
        return
    with pytest.raises(KeyboardInterrupt):
        store.load(source, progress=interrupt)
    assert tree(store.root) == before


@pytest.mark.parametrize("phase", [Phase.READING, Phase.CONVERTING, Phase.VERIFYING, Phase.MERGING])
def test_an_error_of_the_progress_callback_comes_out_as_it_is(
    store: ImageStore, sources: Any, tree: Tree, phase: Phase
) -> None:
    store.load(sources.directory(sources.layout_files(sources.image(BASE), names=["base:1"])))
    before = tree(store.root)

    def fail(event: Progress) -> None:
        if event.phase is phase:
            raise BrokenPipeError(errno.EPIPE, "gone")

    with pytest.raises(BrokenPipeError):
        store.load(
            sources.archive(sources.layout_files(sources.image(BASE, TOP)), compression="gzip"), progress=fail
        )
    assert tree(store.root) == before


def test_a_layer_that_cannot_be_read_is_the_sources_fault(
    store: ImageStore, sources: Any, tree: Tree
) -> None:
    store.prune()
    before = tree(store.root)
    source = sources.directory(sources.layout_files(sources.image(BASE, TOP)))

    def vanish(event: Progress) -> None:
        for blob in (source / "blobs" / "sha256").iterdir():
            blob.unlink()

    with pytest.raises(ArchiveInvalid, match="cannot read"):
        store.load(source, progress=vanish)
    assert tree(store.root) == before
