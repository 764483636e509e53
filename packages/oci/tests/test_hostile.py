"""What a hostile registry serves is refused with a reason and leaves nothing.

The cases O01 to O20. The converter has tests of its own for O01, O02, O04, O07 and O09 in the Rust half;
loads of archives are in test_load.py, pulls that are merely unlucky in test_pull.py.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import resource
import subprocess
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from microsandbox_oci import (
    ArchiveInvalid,
    DigestMismatch,
    ImageError,
    ImageInvalid,
    ImageStore,
    LayerInvalid,
    LimitExceeded,
    Limits,
    Registries,
    RegistryError,
    RegistryInvalid,
    StoreFull,
)
from microsandbox_oci._digest import digest_of

from tests.support.registry_server import Registry, Seen, serving

QUICK = Registries(attempts=2, patience=0.01)
INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
GOOD = {"bin/sh": b"#!" * 500}


@pytest.fixture
def registry() -> Iterator[Registry]:
    with serving() as found:
        yield found


def pull(store: ImageStore, registry: Registry, name: str = "app:1") -> Any:
    return store.pull(f"{registry.domain}/{name}", registries=QUICK)


def serve(
    registry: Registry, sources: Any, blob: bytes, *, diff_id: str = "", kind: str = "+gzip", **changes: Any
) -> None:
    """Serve an image of a sound layer and of this one, which is described truthfully but for ``changes``."""
    built = sources.image(GOOD)
    config = json.loads(built.config)
    config["rootfs"]["diff_ids"].append(diff_id or "sha256:" + "0" * 64)
    data = json.dumps(config).encode()
    manifest = json.loads(built.manifest)
    manifest["config"].update(digest=digest_of(data), size=len(data))
    layer = {"mediaType": LAYER + kind, "digest": digest_of(blob), "size": len(blob), **changes}
    manifest["layers"].append(layer)
    for one in (*built.blobs, data, blob):
        registry.blobs[digest_of(one)] = one
    registry.add_manifest("app", "1", MANIFEST, json.dumps(manifest).encode())


def refused(store: ImageStore, registry: Registry, sources: Any, error: type[Exception], reason: str) -> None:
    """A pull fails so and keeps nothing of the image or of the bad layer; a good one is pulled afterwards."""
    with pytest.raises(error, match=reason) as caught:
        pull(store, registry)
    assert isinstance(caught.value, ImageError)
    assert caught.value.hint
    assert str(caught.value).isprintable()
    assert store.list() == []
    for kind in ("images", "refs", "tmp"):
        assert list((store.root / kind).iterdir()) == []
    # The sound layer may be kept for the next attempt, and so may what a transfer brought; nothing of a layer
    # that was refused may.
    layers = json.loads(registry.manifests["app", "1"][1]).get("layers", [])
    for kind in ("layers", "blobs") if error is RegistryInvalid else ("layers", "blobs", "downloads"):
        names = [path.name for path in (store.root / kind).iterdir()]
        assert len(names) <= 1
        assert not any(layers[-1]["digest"][7:] in name for name in names if layers)
    registry.faults.clear()
    registry.add("app", "1", sources.image(GOOD))
    assert pull(store, registry).layers


def header(name: bytes, size: bytes = b"0", kind: bytes = b"0", link: bytes = b"") -> bytes:
    """A tar header with these bytes in its fields and a right checksum."""
    block = bytearray(512)
    fields = ((0, name), (100, b"0000644"), (108, b"0000000"), (116, b"0000000"), (124, size),
              (136, b"00000000007"), (156, kind), (157, link), (257, b"ustar\x0000"))  # fmt: skip
    for at, value in fields:
        block[at : at + len(value)] = value
    block[148:156] = b"%06o\0 " % (sum(block) + 8 * 32)
    return bytes(block)


def pax(**records: str) -> bytes:
    """A PAX header of these records; `__` in a name is a dot."""
    data = b""
    for name, value in records.items():
        body = f" {name.replace('__', '.')}={value}\n".encode()
        length = next(n for n in range(len(body), len(body) + 9) if len(str(n)) + len(body) == n)
        data += str(length).encode() + body
    return header(b"pax", b"%011o" % len(data), b"x") + data + bytes(-len(data) % 512)


END = bytes(1024)


@pytest.mark.parametrize("name", [b"../../etc/cron.d/x", b"a/../../b", b"..", b"a/.."])
@pytest.mark.parametrize("kind", [b"0", b"5", b"1", b"2"])
def test_o01_names_that_climb_are_refused(
    store: ImageStore, registry: Registry, sources: Any, name: bytes, kind: bytes
) -> None:
    tar = header(name, kind=kind, link=b"x") + END
    serve(registry, sources, gzip.compress(tar), diff_id=digest_of(tar))
    refused(store, registry, sources, LayerInvalid, r"`\.\.`")


def test_o01_absolute_names_are_below_the_images_root(
    store: ImageStore, registry: Registry, sources: Any, tmp_path: Path
) -> None:
    out = tmp_path / "outside"
    tar = header(os.fsencode(out), b"%011o" % 1) + b"x" + bytes(511) + END
    serve(registry, sources, gzip.compress(tar), diff_id=digest_of(tar))
    assert pull(store, registry).layers
    assert not out.exists()


@pytest.mark.parametrize("entry", [b"etc/passwd", b"etc/.wh..wh..opq", b"etc/.wh.passwd"])
def test_o02_o04_o07_what_lies_behind_a_lower_layers_link_is_not_reached(
    store: ImageStore, registry: Registry, sources: Any, tmp_path: Path, entry: bytes
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "passwd").write_text("kept")
    link = header(b"etc", kind=b"2", link=os.fsencode(outside)) + END
    upper = header(entry) + END
    built = sources.image(GOOD)
    built.tars[:] = [link, upper]
    config = json.loads(built.config)
    config["rootfs"]["diff_ids"] = [digest_of(link), digest_of(upper)]
    built.config = json.dumps(config).encode()
    built.blobs[:] = [gzip.compress(link), gzip.compress(upper)]
    built.media_types[:] = [LAYER + "+gzip"] * 2
    registry.add("app", "1", built)
    assert len(pull(store, registry).layers) == 2
    assert (outside / "passwd").read_text() == "kept"
    assert [path.name for path in outside.iterdir()] == ["passwd"]


def bomb(how: str) -> bytes:
    """About ten megabytes that are ten gigabytes when they are decompressed."""
    megabytes = 64
    zeros = bytes(1 << 20)
    if how == "members":
        return gzip.compress(zeros * megabytes, 9) * 160
    if how == "empty members, then one":
        return gzip.compress(b"") * 100_000 + gzip.compress(zeros * megabytes, 9) * 140
    if how == "one member":
        deflate = zlib.compressobj(9, wbits=-15)
        block = deflate.compress(zeros * megabytes) + deflate.flush(zlib.Z_FULL_FLUSH)
        return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + block * 160
    import zstandard

    return zstandard.ZstdCompressor().compress(zeros * megabytes) * 160


@pytest.mark.parametrize("how", ["members", "empty members, then one", "one member", "zstd frames"])
def test_o08_a_bomb_of_ten_gigabytes_is_stopped(
    store: ImageStore, registry: Registry, sources: Any, how: str
) -> None:
    """With the default limits, and before it costs more than those allow."""
    serve(registry, sources, bomb(how), kind="+zstd" if how == "zstd frames" else "+gzip")
    before = os.times()
    refused(store, registry, sources, LimitExceeded, "expands more than 200-fold|wrong checksum")
    after = os.times()
    assert after.user + after.system - before.user - before.system < 20
    assert sum(path.stat().st_blocks * 512 for path in store.root.rglob("*")) < 1 << 20


def test_o08_a_zstd_window_of_two_gigabytes_is_refused(
    store: ImageStore, registry: Registry, sources: Any
) -> None:
    frame = bytes((0x28, 0xB5, 0x2F, 0xFD, 0, 21 << 3, 1, 0, 0)) + bytes(1000)
    serve(registry, sources, frame, kind="+zstd")
    refused(store, registry, sources, LimitExceeded, "window")


def test_o08_an_archive_of_many_small_members_costs_what_its_bytes_cost(store: ImageStore) -> None:
    """Of a compressed archive, too: not the square of it."""
    members = gzip.compress(b"") * 150_000
    before = time.thread_time()
    with pytest.raises(ArchiveInvalid):
        store.load(io.BytesIO(members + gzip.compress(b"no tar")))
    assert time.thread_time() - before < 15


@pytest.mark.parametrize(
    ("tar", "error", "reason"),
    [
        (header(b"f", b"\xff" * 12), LayerInvalid, "negative size"),
        (header(b"f", b"-0000000001"), LayerInvalid, "malformed number"),
        (pax(size="-1") + header(b"f"), LayerInvalid, "PAX"),
        (pax(size="512") + header(b"f", b"%011o" % 5), LayerInvalid, "contradicts"),
        (header(b"f", b"\x80" + b"\0" * 3 + b"\x7f" + b"\xff" * 7), LimitExceeded, "entry of"),
        (
            pax(GNU__sparse__major="0", GNU__sparse__size=str((1 << 63) - 1), GNU__sparse__map="0,1")
            + header(b"f", b"%011o" % 1) + b"x" + bytes(511),
            LimitExceeded, "file of 9223372036854775807",
        ),
        (header(b"././@LongLink", b"%011o" % (1 << 30), b"L"), LimitExceeded, "extended headers"),
        (header(b"pax", b"%011o" % (1 << 30), b"x"), LimitExceeded, "extended headers"),
        (header(b"f", kind=b"M"), LayerInvalid, "type"),
        (header(b"d" * 99 + b"/") + bytes(512) + header(b"late"), LayerInvalid, "lone zero block"),
    ],
    ids=["negative", "signed text", "pax negative", "pax contradicts", "8 EiB", "sparse 8 EiB",
         "long name 1 GB", "pax 1 GB", "volume", "after the end"],
)  # fmt: skip
def test_o09_impossible_entries_are_refused_with_a_reason(
    store: ImageStore, registry: Registry, sources: Any, tar: bytes, error: type[Exception], reason: str
) -> None:
    serve(registry, sources, gzip.compress(tar + END), diff_id=digest_of(tar + END))
    refused(store, registry, sources, error, reason)


@pytest.mark.slow
def test_o09_five_million_entries_are_too_many(registry: Registry, sources: Any, tmp_path: Path) -> None:
    """The default limit, with the ratio out of its way."""
    store = ImageStore(tmp_path / "patient", limits=Limits(decompression_ratio=2000))
    entries = b"".join(header(b"d%d/f%d" % (n % 97, n), kind=b"2", link=b"x") for n in range(4000))
    serve(registry, sources, gzip.compress(entries, 9) * 1250)
    refused(store, registry, sources, LimitExceeded, "more than 2000000 entries")


def endless(seen: Seen, handler: Any) -> None:
    """Answer with a body that does not end."""
    handler.send_response(200)
    handler.send_header("Content-Type", INDEX)
    handler.send_header("Connection", "close")
    handler.end_headers()
    with suppress(OSError):
        while True:
            handler.wfile.write(b" " * (1 << 16))
    raise ConnectionAbortedError


@pytest.mark.parametrize("what", ["manifests", "config", "token"])
def test_o11_documents_without_end_are_given_up(
    store: ImageStore, registry: Registry, sources: Any, what: str
) -> None:
    built = sources.image(GOOD)
    registry.add("app", "1", built)
    part = {"manifests": "/manifests/", "config": digest_of(built.config), "token": "/token"}[what]
    if what == "token":
        registry.authentication = "bearer"

    def fault(seen: Seen, handler: Any) -> None:
        if part in seen.path:
            endless(seen, handler)

    registry.faults.append(fault)
    with pytest.raises(RegistryInvalid, match="more than the"):
        pull(store, registry)
    assert store.list() == []


@pytest.mark.parametrize("what", ["manifest", "config"])
def test_o11_documents_of_a_gigabyte_are_not_fetched(
    store: ImageStore, registry: Registry, sources: Any, what: str
) -> None:
    built = sources.image(GOOD)
    if what == "config":
        manifest = json.loads(built.manifest)
        manifest["config"]["size"] = 1 << 30
        data = json.dumps(manifest).encode()
        registry.add("app", "1", built)
    else:
        entry = {"mediaType": MANIFEST, "digest": digest_of(built.manifest), "size": 1 << 30}
        registry.add("app", "other", built)
        data = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    registry.add_manifest("app", "1", INDEX if what == "manifest" else MANIFEST, data)
    with pytest.raises((ImageInvalid, RegistryInvalid)):
        pull(store, registry)
    assert store.list() == []


@pytest.mark.parametrize("shape", ["deep", "wide", "cycle"])
def test_o11_indexes_within_indexes_end(
    store: ImageStore, registry: Registry, sources: Any, shape: str
) -> None:
    built = sources.image(GOOD)
    inner, kind = built.manifest, MANIFEST
    registry.add("app", "leaf", built)
    for depth in range(100 if shape == "deep" else 4):
        entry = {"mediaType": kind, "digest": digest_of(inner), "size": len(inner)}
        # Different each, so that each has to be fetched.
        entries = [{**entry, "annotations": {"n": str(n)}} for n in range(3 if shape == "wide" else 1)]
        if shape == "wide" and kind == MANIFEST:
            entries = [
                {**entry, "mediaType": INDEX, "digest": digest_of(b"%d" % n), "size": 1} for n in range(200)
            ]
        inner, kind = json.dumps({"schemaVersion": 2, "manifests": entries, "d": depth}).encode(), INDEX
        registry.add_manifest("app", "1", INDEX, inner)
    if shape == "cycle":
        # Every digest leads to the outermost again: a lie, since no document can hold its own digest.
        def lie(seen: Seen, _: Any) -> Any:
            return (200, {"Content-Type": INDEX}, inner) if "/manifests/sha256:" in seen.path else None

        registry.faults.append(lie)
    with pytest.raises((LimitExceeded, DigestMismatch, RegistryError)):
        pull(store, registry)
    assert registry.count("/manifests/") <= Limits().index_documents + Limits().images_per_source
    assert store.list() == []


@pytest.mark.parametrize(
    "digest", ["sha256:../../x", "sha256:" + "AB" * 32, "sha256:" + "ab" * 31, "../../../../etc/passwd", ""]
)
@pytest.mark.parametrize("where", ["layer", "config", "diff id", "index"])
def test_o12_digests_that_are_none_are_refused_at_parse(
    store: ImageStore, registry: Registry, sources: Any, digest: str, where: str
) -> None:
    built = sources.image(GOOD)
    manifest, config = json.loads(built.manifest), json.loads(built.config)
    if where == "layer":
        manifest["layers"][0]["digest"] = digest
    elif where == "config":
        manifest["config"]["digest"] = digest
    elif where == "diff id":
        config["rootfs"]["diff_ids"] = [digest]
        data = json.dumps(config).encode()
        registry.blobs[digest_of(data)] = data
        manifest["config"].update(digest=digest_of(data), size=len(data))
    else:
        manifest = {"schemaVersion": 2, "manifests": [{"mediaType": MANIFEST, "digest": digest, "size": 5}]}
    for blob in built.blobs:
        registry.blobs[digest_of(blob)] = blob
    registry.blobs.setdefault(digest_of(built.config), built.config)
    registry.add_manifest("app", "1", MANIFEST, json.dumps(manifest).encode())
    refused(store, registry, sources, ImageInvalid, "sha256: and 64 lower-case hex digits")
    assert all("x" not in seen.path.rpartition("/")[2] for seen in registry.requests if "blobs" in seen.path)


def good_layer() -> tuple[bytes, bytes]:
    """A tar that does not compress, and the same in gzip."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("data")
        info.size = 100_000
        tar.addfile(info, io.BytesIO(os.urandom(100_000)))
    return buffer.getvalue(), gzip.compress(buffer.getvalue())


@pytest.mark.parametrize(
    ("changed", "error", "reason"),
    [
        (lambda tar, blob: {"digest": "sha256:" + "1" * 64}, DigestMismatch, "1111"),
        (lambda tar, blob: {"diff_id": "sha256:" + "1" * 64}, DigestMismatch, "uncompressed"),
        (lambda tar, blob: {"size": len(blob) - 1}, RegistryInvalid, "more than the"),
        (lambda tar, blob: {"size": len(blob) + 1}, RegistryError, "ends blob"),
        (lambda tar, blob: {"blob": blob[:-9]}, LayerInvalid, "ends early"),
        (lambda tar, blob: {"blob": blob[:5000]}, LayerInvalid, "ends early"),
        (lambda tar, blob: {"blob": gzip.compress(tar[:70_000])}, LayerInvalid, "ends inside an entry"),
        (lambda tar, blob: {"blob": blob + b"junk"}, LayerInvalid, "compressed stream"),
    ],
    ids=["bytes", "diff id", "shorter", "longer", "cut gzip", "cut early", "cut tar", "behind the end"],
)
def test_o13_layers_that_are_not_what_they_should_be(
    store: ImageStore,
    registry: Registry,
    sources: Any,
    changed: Callable[[bytes, bytes], dict[str, Any]],
    error: type[Exception],
    reason: str,
) -> None:
    tar, blob = good_layer()
    changes = changed(tar, blob)
    served = changes.pop("blob", blob)
    serve(registry, sources, served, **{"diff_id": digest_of(tar), **changes})
    registry.blobs["sha256:" + "1" * 64] = blob
    if error is RegistryError:
        # What a transfer brought that was cut off is kept, to go on from; it is not the layer.
        with pytest.raises(RegistryError, match=reason):
            pull(store, registry)
        assert store.list() == []
        assert len(list((store.root / "layers").iterdir())) <= 1
        return
    refused(store, registry, sources, error, reason)


def test_o19_a_disk_image_is_no_image_and_is_not_mounted(store: ImageStore, tmp_path: Path) -> None:
    """File systems of strangers are not what the host's kernel gets to read."""
    mounts = Path("/proc/self/mountinfo").read_text()
    for kind, magic, at in (("ext4", b"\x53\xef", 1080), ("erofs", b"\xe2\xe1\xf5\xe0", 1024)):
        disk = tmp_path / f"{kind}.raw"
        data = bytearray(1 << 20)
        data[at : at + len(magic)] = magic
        disk.write_bytes(data)
        for source in (str(disk), f"docker-archive:{disk}", f"oci-archive:{disk}"):
            with pytest.raises(ImageError):
                store.load(source)
    assert Path("/proc/self/mountinfo").read_text() == mounts


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small tmpfs")
def test_o20_a_pull_onto_a_disk_that_is_full_at_every_size(
    registry: Registry, sources: Any, tmp_path: Path
) -> None:
    """Each size is the end of another write: of the transfer, the layer, the metadata, the records."""
    registry.add("app", "1", sources.image(GOOD, {"big": os.urandom(300_000)}))
    mount = tmp_path / "small"
    mount.mkdir()
    full = 0
    sizes = range(20, 1120, 50)
    for kilobytes in sizes:
        options = f"size={kilobytes}k,nr_inodes=200"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", mount], check=True)
        try:
            store = ImageStore(mount / "store")
            try:
                pull(store, registry)
            except StoreFull:
                full += 1
                assert store.list() == []
                assert store.leftovers() == []
                grow(mount)
                # With room again, what is there is gone on with.
                pull(store, registry)
            grow(mount)
            assert store.verify(f"{registry.domain}/app:1").problems == ()
        finally:
            subprocess.run(["umount", mount], check=True)
    assert 3 < full < len(sizes)


def grow(mount: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=4m", mount], check=True)


def test_o20_a_file_that_may_not_grow_is_a_full_store(
    store: ImageStore, registry: Registry, sources: Any
) -> None:
    registry.add("app", "1", sources.image(GOOD, {"big": os.urandom(3 << 20)}))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(StoreFull):
            pull(store, registry)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.list() == []
    assert pull(store, registry).layers
