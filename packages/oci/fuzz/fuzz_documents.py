"""Fuzzes the readers of JSON from registries and archives: they keep what they promise, or say why not."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from driver import fuzz, shown
from microsandbox_oci import ImageConfig, ImageError, Limits, Platform
from microsandbox_oci._blobs import Blob
from microsandbox_oci._config_document import parse_config
from microsandbox_oci._digest import digest_of, is_digest
from microsandbox_oci._docker_source import read_docker_archive
from microsandbox_oci._history import read_history
from microsandbox_oci._json import Node, dump
from microsandbox_oci._layout_source import read_layout
from microsandbox_oci._manifest import Manifest, parse_document
from microsandbox_oci._memory import in_memory
from microsandbox_oci._registry import _tags_of

LIMITS = Limits(layers=4, manifest_size=8192, images_per_source=4, index_documents=4)
HOST = Platform("linux", "amd64")
DIGEST = "sha256:" + "ab" * 32
CONFIG = {
    "created": "2024-05-06T07:08:09.123456789Z",
    "os": "linux",
    "architecture": "amd64",
    "variant": "v1",
    "config": {
        "Env": ["PATH=/bin"],
        "Entrypoint": None,
        "Cmd": ["sh"],
        "WorkingDir": "/",
        "User": "0:0",
        "Labels": {"a": "b"},
        "StopSignal": "SIGTERM",
        "ExposedPorts": {"80/tcp": {}},
        "Volumes": {"/data": {}},
    },
    "rootfs": {"type": "layers", "diff_ids": [DIGEST]},
    "history": [{"created": "", "created_by": "x", "comment": "", "empty_layer": True}, {}],
}


def descriptor(kind: str, **more: Any) -> dict[str, Any]:
    return {"mediaType": f"application/vnd.{kind}", "digest": DIGEST, "size": 5, **more}


MANIFEST = {
    "schemaVersion": 2,
    "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "config": descriptor("oci.image.config.v1+json"),
    "layers": [descriptor("oci.image.layer.v1.tar+gzip"), descriptor("docker.image.rootfs.diff.tar.gzip")],
}
INDEX = {
    "schemaVersion": 2,
    "mediaType": "application/vnd.oci.image.index.v1+json",
    "manifests": [
        descriptor(
            "oci.image.manifest.v1+json",
            platform={"os": "linux", "architecture": "arm64", "variant": "v8"},
            annotations={
                "org.opencontainers.image.ref.name": "app:1",
                "io.containerd.image.name": "docker.io/library/app:1",
                "vnd.docker.reference.type": "attestation-manifest",
            },
        ),
        descriptor("docker.distribution.manifest.list.v2+json"),
    ],
}
LISTING = [{"Config": f"{'ab' * 32}.json", "RepoTags": ["app:1", "<none>:<none>"], "Layers": ["1/layer.tar"]}]
TAGS = {"name": "app", "tags": ["1", "2"]}
KEYS = sorted({*MANIFEST, *INDEX, *CONFIG, "digest", "size", "x"})
ODD: list[Any] = [None, True, 0, -1, 1.5, 1 << 63, "", "x" * 300, "\x1b[2J", "\u202e", [], {}, DIGEST]
TOKENS = [
    DIGEST.encode(),
    *(str(value["mediaType"]).encode() for value in (MANIFEST, INDEX)),
    *(f'"{key}":'.encode() for key in (*MANIFEST, *INDEX, *CONFIG, *CONFIG["config"], *LISTING[0])),
    *(b'"\\ud800"', b'"\\u0000"', b'"\\u001b[2J"', b"null", b"true", b"[", b"{}", b"NaN", b"\xff", b"\\"),
]


class Files:
    """An archive: every name that is asked for leads to the document or, in turn, to a fixed one."""

    name = "archive.tar"

    def __init__(self, files: dict[str, bytes], otherwise: bytes) -> None:
        self._files = files
        self._otherwise = otherwise

    def find(self, name: str) -> Blob | None:
        if "/" in name or name.endswith(".json"):
            return in_memory(self._files.get(name, self._otherwise), name)
        return in_memory(self._files[name], name) if name in self._files else None


def manifest(data: bytes) -> None:
    document = parse_document(data, "manifest", max_layers=LIMITS.layers)
    found = document.layers if isinstance(document, Manifest) else document.manifests
    for one in found:
        assert is_digest(one.digest)
        assert 0 <= one.size < 1 << 62
    assert not isinstance(document, Manifest) or len(found) <= LIMITS.layers


def config(data: bytes) -> None:
    document = parse_config(data, max_layers=LIMITS.layers)
    assert all(is_digest(diff_id) for diff_id in document.diff_ids)
    assert document.created.isprintable()
    # What is stored is read back the same.
    again = ImageConfig.from_node(Node.parse(dump(document.config.to_json()), "again"))
    assert again == document.config
    for text in (*again.env, *again.cmd, *again.entrypoint, again.user, again.working_dir):
        text.encode()
        assert "\0" not in text
    steps = read_history(data, dict.fromkeys(document.diff_ids, 1), document.diff_ids)
    assert [step.layer for step in steps if step.layer] == list(document.diff_ids)


def docker(data: bytes) -> None:
    files = {"manifest.json": data}
    images = read_docker_archive(Files(files, json.dumps(CONFIG).encode()), LIMITS, HOST)
    assert len(images) <= LIMITS.images_per_source
    assert all(digest_of(image.manifest) == image.digest for image in images)


def layout(data: bytes) -> None:
    files = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": data}
    # A document that is every blob at once: its digest is right where the input says so.
    wanted = "app:2" if len(data) % 4 == 0 else None
    read_layout(Files(files, data), LIMITS, HOST, image=wanted)


def tags(data: bytes) -> None:
    assert all(isinstance(tag, str) for tag in _tags_of(data, "registry.example"))


READERS: list[Callable[[bytes], None]] = [manifest, config, docker, layout, tags]


def one_input(data: bytes) -> None:
    if data:
        try:
            READERS[data[0] % len(READERS)](data[1:])
        except ImageError as error:
            shown(error)


def mutate(chance: random.Random, data: bytes) -> bytes:
    """Change the document rather than its bytes."""
    try:
        value = json.loads(data[1:])
        places: list[tuple[Any, Any]] = []
        pending = [value]
        while pending:
            node = pending.pop()
            keys = (
                list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
            )
            places += [(node, key) for key in keys]
            pending += [node[key] for key in keys]
        node, key = chance.choice(places)
        match chance.randrange(4):
            case 0 if isinstance(node, dict):
                node[chance.choice(KEYS)] = node.pop(key)
            case 1:
                del node[key]
            case 2:
                other, place = chance.choice(places)
                node[key] = json.loads(json.dumps(other[place]))
            case _:
                node[key] = chance.choice(ODD)
        return data[:1] + json.dumps(value, ensure_ascii=chance.random() < 0.5).encode()
    except (ValueError, IndexError, KeyError, RecursionError, TypeError):
        return data


if __name__ == "__main__":
    documents = [MANIFEST, CONFIG, LISTING, INDEX, TAGS]
    seeds = [bytes([kind]) + json.dumps(value).encode() for kind, value in enumerate(documents)]
    fuzz("documents", one_input, [*seeds, b"\0" + seeds[3][1:]], tokens=TOKENS, mutate=mutate)
