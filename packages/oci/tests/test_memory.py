"""What a pull holds in memory does not depend on how large a layer is."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Iterator
from itertools import chain
from typing import Any

import pytest
from microsandbox_oci import ImageStore, Platform

from tests.support.registry_server import Registry, serving

MOST = 200 << 20
"""Bytes that a pull may have resident at any time."""
SIZE = 2 << 30
PIECE = 16 << 20
TYPE = "application/vnd.oci.image.layer.v1.tar"

# Of the process alone (`ru_maxrss` begins with its parent's), and of the children that it had, if any.
PULL = """
import resource, sys
from microsandbox_oci import ImageStore
image = ImageStore(sys.argv[1]).pull(sys.argv[2])
own = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print((int(own.split()[1]) + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) * 1024)
"""


def layer(how: str) -> tuple[list[bytes], str]:
    """The parts of a compressed layer with one file of `SIZE` bytes, and its diff id."""
    info = tarfile.TarInfo("data")
    info.size = SIZE
    diff_id = hashlib.sha256()
    stream = zlib.compressobj(1, wbits=31) if how == "gzip" else _zstd()
    parts = []
    for body in chain([info.tobuf(tarfile.GNU_FORMAT)], map(piece, range(SIZE // PIECE)), [bytes(1024)]):
        diff_id.update(body)
        parts.append(stream.compress(body))
    return [*parts, stream.flush()], "sha256:" + diff_id.hexdigest()


def piece(number: int) -> bytes:
    """A little that does not compress, and zeros, which cost no disk."""
    return random.Random(number).randbytes(192 << 10).ljust(PIECE, b"\0")


def _zstd() -> Any:
    import zstandard

    # The largest window that is accepted, 128 MiB.
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=27, write_content_size=False)
    return zstandard.ZstdCompressor(compression_params=parameters).compressobj()


def serve(registry: Registry, parts: list[bytes], diff_id: str, kind: str) -> None:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    name = "sha256:" + digest.hexdigest()
    size = sum(map(len, parts))

    def send(seen: Any, handler: Any) -> None:
        if name not in seen.path:
            return
        handler.send_response(200)
        handler.send_header("Content-Length", str(size))
        handler.end_headers()
        for part in parts:
            handler.wfile.write(part)
        raise ConnectionAbortedError  # the answer is complete

    host = Platform.host()
    config = json.dumps(
        {
            "os": host.os,
            "architecture": host.architecture,
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        }
    ).encode()
    registry.blobs[_digest(config)] = config
    manifest = {
        "schemaVersion": 2,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": _digest(config),
            "size": len(config),
        },
        "layers": [{"mediaType": TYPE + kind, "digest": name, "size": size}],
    }
    registry.faults.append(send)
    registry.add_manifest(
        "big", "1", "application/vnd.oci.image.manifest.v1+json", json.dumps(manifest).encode()
    )


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@pytest.fixture
def registry() -> Iterator[Registry]:
    with serving() as found:
        yield found


@pytest.mark.slow
@pytest.mark.parametrize("how", ["gzip", "zstd"])
def test_a_layer_of_two_gigabytes_is_pulled_in_little_memory(
    store: ImageStore, registry: Registry, how: str
) -> None:
    parts, diff_id = layer(how)
    serve(registry, parts, diff_id, f"+{how}")
    command = [sys.executable, "-c", PULL, str(store.root), f"{registry.domain}/big:1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    sys.stdout.write(f"{how}: {int(done.stdout) >> 20} MiB\n")
    assert int(done.stdout) < MOST
    # All of it has arrived.
    [image] = store.list()
    assert sum(size for _, size in image.extents) > SIZE
