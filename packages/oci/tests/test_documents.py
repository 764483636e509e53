"""Manifests, indexes and configurations from strangers: parsed or refused, never anything else."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from microsandbox_oci import ImageConfig, ImageInvalid, LimitExceeded, Platform
from microsandbox_oci._config_document import parse_config
from microsandbox_oci._manifest import Index, Manifest, parse_document

DIGEST = "sha256:" + "ab" * 32
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
_keys = ["schemaVersion", "mediaType", "config", "layers", "manifests", "digest", "size", "annotations"]
_keys += ["platform", "rootfs", "diff_ids", "type", "Env", "Labels", "os", "architecture", "created"]
_documents = st.recursive(
    _json | st.just(2) | st.just(DIGEST) | st.sampled_from([OCI_MANIFEST, "layers"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_keys), inner, max_size=6),
    max_leaves=30,
)


def manifest(**changes: Any) -> bytes:
    document = {
        "schemaVersion": 2,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": DIGEST,
            "size": 10,
        },
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": DIGEST, "size": 5}],
    }
    document.update(changes)
    return json.dumps({key: value for key, value in document.items() if value is not ...}).encode()


def config(**changes: Any) -> bytes:
    document: dict[str, Any] = {"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": [DIGEST]}}
    document.update(changes)
    return json.dumps(document).encode()


def parse(data: bytes) -> Manifest | Index:
    return parse_document(data, "manifest", max_layers=10)


def test_reads_a_manifest() -> None:
    parsed = parse(manifest())
    assert isinstance(parsed, Manifest)
    assert parsed.config.digest == DIGEST
    assert [layer.size for layer in parsed.layers] == [5]


@pytest.mark.parametrize(
    "digest",
    [
        "sha256:../../x",
        "sha256:" + "AB" * 32,
        "sha256:" + "ab" * 31,
        "sha256:" + "ab" * 33,
        "sha512:" + "ab" * 64,
        "",
        "ab" * 32,
        "SHA256:" + "ab" * 32,
        DIGEST + "\n",
        None,
        7,
        "sha256:" + "٣" * 64,
    ],
)
def test_o12_a_digest_that_is_not_strictly_sha256_is_refused(digest: object) -> None:
    layer = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": 5}
    with pytest.raises(ImageInvalid, match="digest"):
        parse(manifest(layers=[layer]))
    with pytest.raises(ImageInvalid):
        parse_config(config(rootfs={"diff_ids": [digest]}), max_layers=10)


@pytest.mark.parametrize("size", [-1, 1.5, "5", None, True, 1 << 63, [], 10**40])
def test_a_size_that_is_no_size_is_refused(size: object) -> None:
    layer = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": DIGEST, "size": size}
    with pytest.raises(ImageInvalid, match="size"):
        parse(manifest(layers=[layer]))


def test_a_document_that_is_a_manifest_and_an_index_is_refused() -> None:
    with pytest.raises(ImageInvalid, match="at once"):
        parse(manifest(manifests=[]))
    with pytest.raises(ImageInvalid, match="neither"):
        parse(manifest(mediaType="application/vnd.oci.image.index.v1+json"))


def test_a_media_type_of_a_stranger_is_shown_without_control_characters() -> None:
    """Found by fuzzing."""
    with pytest.raises(ImageInvalid, match="neither") as caught:
        parse(manifest(mediaType="\x1b[2J"))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b"[" * 100000,
        b'{"a": NaN}',
        b'{"a": ' * 100000,
        b"9" * 100000,
        manifest(schemaVersion=1),
        manifest(config=...),
        manifest(layers=...) + b"x",
        b'"\\ud800"',
        b'{"schemaVersion": 2, "x": "\\ud800"}',
        b'{"schemaVersion": 2, "x": "\\u0000"}',
    ],
)
def test_o11_what_is_no_document_is_refused(data: bytes) -> None:
    with pytest.raises(ImageInvalid):
        parse(data)


def test_an_artifact_is_not_an_image() -> None:
    helm = {"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": DIGEST, "size": 2}
    with pytest.raises(ImageInvalid, match="not a container image"):
        parse(manifest(config=helm))
    layer = {"mediaType": "application/vnd.example.encrypted", "digest": DIGEST, "size": 2}
    with pytest.raises(ImageInvalid, match="media type"):
        parse(manifest(layers=[layer]))


def test_o11_the_number_of_layers_is_bounded() -> None:
    layer = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": DIGEST, "size": 5}
    with pytest.raises(LimitExceeded):
        parse(manifest(layers=[layer] * 11))
    with pytest.raises(LimitExceeded):
        parse_config(config(rootfs={"diff_ids": [DIGEST] * 11}), max_layers=10)


@given(_documents.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    with suppress(ImageInvalid):
        parse(data)
    with suppress(ImageInvalid):
        parse_config(data, max_layers=10)


def test_reads_everything_the_runtime_needs() -> None:
    parsed = parse_config(
        config(
            created="2024-01-02T03:04:05Z",
            config={
                "Env": ["A=1", "B=x y"],
                "Entrypoint": ["/init"],
                "Cmd": None,
                "WorkingDir": "/srv",
                "User": "1000:1000",
                "Labels": {"k": "v"},
                "StopSignal": "SIGINT",
                "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
                "Volumes": {"/data": {}},
            },
        ),
        max_layers=10,
    )
    assert parsed.config == ImageConfig(
        env=("A=1", "B=x y"),
        entrypoint=("/init",),
        working_dir="/srv",
        user="1000:1000",
        labels={"k": "v"},
        stop_signal="SIGINT",
        exposed_ports=("53/udp", "80/tcp"),
        volumes=("/data",),
    )
    assert parsed.created == "2024-01-02T03:04:05Z"
    assert parsed.platform == Platform("linux", "amd64")


@pytest.mark.parametrize(
    "runtime", [{"Env": "A=1"}, {"Cmd": [1]}, {"Labels": ["a"]}, {"Labels": {"a": 1}}, {"User": 0}, [], "x"]
)
def test_a_runtime_member_of_the_wrong_type_is_refused(runtime: object) -> None:
    with pytest.raises(ImageInvalid):
        parse_config(config(config=runtime), max_layers=10)


@pytest.mark.parametrize("created", ["\x1b]0;owned\x07", "yesterday", "2024-01-02", "x" * 1000])
def test_a_creation_time_that_is_no_time_is_dropped(created: str) -> None:
    # It ends up on terminals: `images` prints it.
    assert parse_config(config(created=created), max_layers=10).created == ""


def test_platforms_are_chosen_by_architecture_and_variant() -> None:
    amd64, arm = Platform("linux", "amd64"), Platform("linux", "arm64", "v8")
    offered = [
        Platform("windows", "amd64"),
        Platform("linux", "amd64", "v3"),
        Platform("linux", "arm64"),
        Platform("linux", "amd64"),
        Platform("linux", "arm64", "v8"),
    ]
    assert amd64.choose(offered) == 3
    assert arm.choose(offered) == 4
    assert Platform("linux", "riscv64").choose(offered) is None
    assert amd64.choose([None]) == 0
    assert amd64.choose([None, None]) is None


def test_a_platform_without_a_variant_is_the_usual_one() -> None:
    offered = [Platform("linux", "arm", variant) for variant in ("v5", "v6", "v7")]
    offered += [Platform("linux", "arm64", "v8"), Platform("linux", "amd64")]
    assert Platform("linux", "arm64").choose(offered) == 3
    assert Platform("linux", "arm").choose(offered) == 2
    assert Platform("linux", "arm", "v6").choose(offered) == 1
    assert Platform("linux", "amd64", "v1").choose(offered) == 4
    assert Platform("linux", "arm64", "v9").choose(offered) is None
