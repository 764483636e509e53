"""Images from a real registry, beside the tools that people use with registries."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from microsandbox import PullFailed
from microsandbox.sync import Sandbox
from microsandbox_oci import ImageConfig, Platform
from microsandbox_oci.layout import LayoutWriter

from tests.support.images import tar_of, write_layout
from tests.support.msb import PROGRAM, Msb
from tests.support.proxy import tunnelling
from tests.support.registries import PASSWORD, USER, DockerRegistry, serving, skopeo
from tests.support.registry_server import Answer, Seen
from tests.support.registry_server import serving as faulty_registry
from tests.support.tmux import Tmux
from tests.support.waiting import eventually

ROUNDS = int(os.environ.get("MSB_TEST_ROUNDS", "10"))
SEED = int(os.environ.get("MSB_TEST_SEED", "1")) or random.randrange(1 << 32)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Busybox below several layers with content of their own, one of them some megabytes."""
    layers = [
        tar_of([(tarfile.TarInfo(f"srv/file{number}"), random.Random(number).randbytes(size))])
        for number, size in enumerate((100, 4_000_000, 50_000, 700_000))
    ]
    directory = tmp_path_factory.mktemp("image") / "layout"
    return write_layout(directory, ImageConfig(cmd=("cat", "/srv/file0")), layers, name="made:1")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, layout: Path) -> Iterator[DockerRegistry]:
    with serving(tmp_path_factory.mktemp("registry")) as found:
        found.push(f"oci:{layout}:made:1", "team/made:1")
        yield found


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory, layout: Path) -> Iterator[DockerRegistry]:
    with serving(tmp_path_factory.mktemp("private"), private=True) as found:
        found.push(f"oci:{layout}:made:1", "team/made:1")
        yield found


def digest_of(reference: str, *options: str) -> str:
    digest = json.loads(skopeo("inspect", *options, reference))["Digest"]
    assert isinstance(digest, str)
    return digest


def test_what_skopeo_pushed_is_pulled_and_saved_with_its_digest(
    empty_msb: Msb, registry: DockerRegistry, tmp_path: Path
) -> None:
    name = f"{registry.domain}/team/made:1"
    pushed = digest_of(f"docker://{name}", "--tls-verify=false")
    assert empty_msb("pull", name).succeeded().text == f"{name} {pushed}\n"
    archive = tmp_path / "saved.tar"
    empty_msb("save", "--format", "oci", "-o", archive, name).succeeded()
    assert digest_of(f"oci-archive:{archive}") == pushed
    docker = empty_msb("save", name).succeeded().out
    (tmp_path / "docker.tar").write_bytes(docker)
    config = json.loads(skopeo("inspect", "--config", f"docker-archive:{tmp_path / 'docker.tar'}"))
    assert config["config"]["Cmd"] == ["cat", "/srv/file0"]


def saved_digests(msb: Msb, name: str, directory: Path) -> list[str]:
    """The digests that skopeo sees in what is saved of an image: in the archive, and copied out of it."""
    archive = directory / "saved.tar"
    msb("save", "--format", "oci", "-o", archive, name).succeeded()
    skopeo("copy", "--quiet", "--preserve-digests", f"oci-archive:{archive}", f"dir:{directory / 'copy'}")
    return [digest_of(f"oci-archive:{archive}"), digest_of(f"dir:{directory / 'copy'}")]


@pytest.mark.parametrize(
    "options",
    [["--format=v2s2"], ["--format=oci", "--dest-compress-format=zstd", "--dest-compress"]],
    ids=["schema2", "zstd"],
)
def test_other_media_types_are_saved_with_their_digests(
    empty_msb: Msb, registry: DockerRegistry, layout: Path, tmp_path: Path, options: list[str]
) -> None:
    registry.push(f"oci:{layout}:made:1", "other:2", *options)
    name = f"{registry.domain}/other:2"
    pushed = digest_of(f"docker://{name}", "--tls-verify=false")
    assert pushed in empty_msb("pull", name).succeeded().text
    assert saved_digests(empty_msb, name, tmp_path) == [pushed, pushed]


@pytest.mark.parametrize("form", ["oci", "v2s2"])
def test_of_an_index_the_image_for_this_machine_is_pulled_and_saved(
    empty_msb: Msb, registry: DockerRegistry, tmp_path: Path, form: str
) -> None:
    source = tmp_path / "index"
    platforms = (Platform("linux", "arm64", "v8"), Platform.host(), Platform("linux", "s390x"))
    with LayoutWriter(source) as writer:
        manifests = []
        for platform in platforms:
            layer = writer.add_layer(
                tar_of([(tarfile.TarInfo("architecture"), platform.architecture.encode())])
            )
            manifests.append(writer.add_image([layer], ImageConfig(cmd=("sh",)), platform=platform))
        document = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.index.v1+json",
                "manifests": [
                    {
                        "mediaType": manifest.media_type,
                        "digest": manifest.digest,
                        "size": manifest.size,
                        "platform": {
                            key: value
                            for key, value in (
                                ("os", platform.os),
                                ("architecture", platform.architecture),
                                ("variant", platform.variant),
                            )
                            if value
                        },
                    }
                    for manifest, platform in zip(manifests, platforms, strict=True)
                ],
            }
        ).encode()
        digest = writer.add_blob(document)
    # The layout has one image, which is the index.
    top = {"mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest, "size": len(document)}
    named = {**top, "annotations": {"org.opencontainers.image.ref.name": "many"}}
    (source / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))
    registry.push(f"oci:{source}:many", f"many:{form}", "--multi-arch=all", f"--format={form}")

    name = f"{registry.domain}/many:{form}"
    raw = skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{name}").encode()
    index = "sha256:" + hashlib.sha256(raw).hexdigest()
    assert (index == digest) == (form == "oci")
    ours = json.loads(raw)["manifests"][1]["digest"]
    assert empty_msb("pull", name).succeeded().text == f"{name} {ours}\n"
    assert saved_digests(empty_msb, name, tmp_path) == [ours, ours]
    # By the digest of the index, and another platform's by name.
    pinned = f"{registry.domain}/many@{index}"
    assert ours in empty_msb("pull", pinned).succeeded().text
    assert saved_digests(empty_msb, pinned, tmp_path) == [ours, ours]
    other = json.loads(raw)["manifests"][0]["digest"]
    assert other in empty_msb("pull", "--platform", "linux/arm64", name).succeeded().text
    exported = empty_msb("image", "export", name).succeeded().out
    with tarfile.open(fileobj=io.BytesIO(exported)) as tar:
        assert tar.extractfile("architecture").read() == b"arm64"  # type: ignore[union-attr]


def test_a_terminal_shows_a_bar_for_each_layer(empty_msb: Msb, layout: Path, tmp_path: Path) -> None:
    go_on = threading.Event()
    blobs = {f"sha256:{path.name}": path.read_bytes() for path in (layout / "blobs" / "sha256").iterdir()}
    [manifest] = json.loads((layout / "index.json").read_text())["manifests"]

    def slowly(seen: Seen, handler: Any) -> Answer | None:
        body = blobs.get(seen.path.rpartition("/")[2], b"")
        if "/blobs/" not in seen.path or len(body) < 100_000:
            return None
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        # Piece by piece: what is shown is shown when something arrives.
        rest = memoryview(body)
        while len(rest) > len(body) // 2 and not go_on.wait(0.02):
            handler.wfile.write(rest[:100])
            rest = rest[100:]
        go_on.wait(60)
        handler.wfile.write(rest)
        raise ConnectionAbortedError

    with faulty_registry() as registry:
        registry.blobs = blobs
        registry.add_manifest("x", "1", manifest["mediaType"], blobs[manifest["digest"]])
        registry.faults.append(slowly)
        command: list[str | Path] = [PROGRAM, "pull", f"{registry.domain}/x:1"]
        with Tmux(tmp_path / "tmux", command, {**os.environ, **empty_msb.environ}) as terminal:
            try:
                # Of five layers two are small. The others have bars as soon as something of them is there.
                terminal.wait_for(f"{registry.domain}/x:1: 2 of 5 layers, ")
                bar = r"^[0-9a-f]{12} \[=* *\] [0-9.]+ [KM]?i?B of [0-9.]+ [KM]iB$"
                eventually(
                    lambda: len(re.findall(bar, terminal.screen(), re.MULTILINE)) == 3,
                    within=60,
                    what="three bars",
                )
                assert f"{registry.domain}/x:1: 2 of 5 layers, " in terminal.screen()
            finally:
                go_on.set()
            shown = terminal.wait_for(manifest["digest"][:40])
            assert " layers" not in shown
            assert "] " not in shown


@pytest.mark.vm
def test_run_pulls_what_is_missing(own_msb: Msb, registry: DockerRegistry) -> None:
    name = f"{registry.domain}/team/made:1"
    expected = random.Random(0).randbytes(100)
    assert "is not in the store" in own_msb("run", "--pull", "never", name).failed(125)
    assert own_msb("run", "-q", name).succeeded().out == expected
    assert own_msb("run", "-q", "--pull", "never", name).succeeded().out == expected


def test_a_private_registry_with_a_certificate_of_its_own(empty_msb: Msb, private: DockerRegistry) -> None:
    name = f"{private.domain}/team/made:1"
    empty_msb.home.mkdir()
    settings = empty_msb.home / "registries.toml"
    # Loopback registries are insecure unless they are configured.
    settings.write_text(f'[registry."{private.domain}"]\n')
    assert "certificate of 127.0.0.1 is not trusted" in empty_msb("pull", name).failed(1)
    settings.write_text(f'[registry."{private.domain}"]\nca = "{private.ca}"\n')
    assert "wants credentials" in empty_msb("pull", name).failed(1)
    login = ["registry", "login", private.domain, "--username", USER, "--password-stdin"]
    assert "refuses the credentials" in empty_msb(*login, stdin=b"wrong\n").failed(125)
    assert empty_msb("registry", "ls", "-q").succeeded().out == b""
    empty_msb(*login, stdin=PASSWORD.encode() + b"\n").succeeded()
    assert json.loads(empty_msb("registry", "ls", "--format", "json").out) == [
        {"registry": private.domain, "username": USER}
    ]
    empty_msb("pull", name).succeeded()
    assert empty_msb("registry", "tags", name).succeeded().text == "1\n"
    told = empty_msb("registry", "tags", name, "--format", "json").succeeded().text
    assert json.loads(told) == [{"tag": "1"}]
    empty_msb("registry", "logout", private.domain).succeeded()
    assert "not logged in" in empty_msb("registry", "logout", private.domain).failed(1)
    assert "wants credentials" in empty_msb("pull", name).failed(1)


def test_a_registry_behind_a_proxy(empty_msb: Msb, private: DockerRegistry) -> None:
    name = f"{private.domain}/team/made:1"
    empty_msb.home.mkdir()
    settings = empty_msb.home / "registries.toml"
    settings.write_text(f'[registry."{private.domain}"]\nca = "{private.ca}"\n')
    empty_msb.environ.pop("no_proxy", None)
    empty_msb.environ.pop("NO_PROXY", None)
    with tunnelling() as proxy:
        empty_msb.environ["HTTPS_PROXY"] = f"http://me:a%20word@{proxy.address}"
        login = ["registry", "login", private.domain, "--username", USER, "--password-stdin"]
        empty_msb(*login, stdin=PASSWORD.encode() + b"\n").succeeded()
        empty_msb("pull", name).succeeded()
        assert set(proxy.asked) == {(private.domain, "Basic bWU6YSB3b3Jk")}
    with tunnelling(refuse=True) as proxy:
        empty_msb.environ["HTTPS_PROXY"] = proxy.address
        assert "(the proxy 127.0.0.1 answers 407)" in empty_msb("pull", name).failed(1)


@pytest.mark.vm
def test_a_sandbox_is_created_with_credentials(
    own_msb: Msb, private: DockerRegistry, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in {"MSB_HOME": str(own_msb.home), **settings}.items():
        monkeypatch.setenv(variable, value)
    name = f"{private.domain}/team/made:1"
    with pytest.raises(PullFailed, match="wants credentials"):
        Sandbox.create(image=name, registry_insecure=True)
    with pytest.raises(TypeError, match=r"^registry_auth: expected a user name and a password$"):
        Sandbox.create(image=name, registry_auth=PASSWORD)  # type: ignore[arg-type]
    with Sandbox.create("dev", image=name, registry_insecure=True, registry_auth=(USER, PASSWORD)) as sandbox:
        assert sandbox.exec("cat", ["/srv/file0"]).stdout_bytes == random.Random(0).randbytes(100)
        # S24
        for path in own_msb.home.rglob("*"):
            if path.is_file() and path.stat().st_size < 1 << 20:
                assert PASSWORD.encode() not in path.read_bytes(), path
    Sandbox.remove("dev")


@pytest.mark.alone(reason="a load for whoever has a deadline")
def test_twenty_pulls_while_others_prune(empty_msb: Msb, registry: DockerRegistry) -> None:
    """O16."""
    name = f"{registry.domain}/team/made:1"
    environ = empty_msb.environ
    pulls = [
        subprocess.Popen([PROGRAM, "pull", "-q", name], env=environ, stdout=subprocess.PIPE)
        for _ in range(20)
    ]
    prunes = [
        subprocess.Popen([PROGRAM, "image", "prune", "-q"], env=environ, stdout=subprocess.PIPE)
        for _ in range(6)
    ]
    for process in (*pulls, *prunes):
        process.communicate(timeout=240)
        assert process.returncode == 0
    empty_msb("image", "verify").succeeded()
    assert empty_msb("image", "verify", name).succeeded().text == f"{name}: undamaged\n"


def test_pulls_that_are_killed_leave_nothing_wrong(empty_msb: Msb, registry: DockerRegistry) -> None:
    """O17."""
    name = f"{registry.domain}/team/made:1"
    chance = random.Random(SEED)
    sys.stdout.write(f"seed {SEED}\n")  # shown when it fails
    begun = time.monotonic()
    empty_msb("pull", "-q", name).succeeded()
    whole = time.monotonic() - begun
    empty_msb("rmi", name).succeeded()
    killed = 0
    for _ in range(ROUNDS):
        process = subprocess.Popen(
            [PROGRAM, "pull", "-q", name],
            env=empty_msb.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            process.communicate(timeout=chance.uniform(0.1, 1) * whole)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=120)
            killed += 1
        empty_msb("image", "verify").succeeded()
        empty_msb("pull", "-q", name).succeeded()
        assert empty_msb("image", "verify", name).succeeded().text == f"{name}: undamaged\n"
        empty_msb("rmi", name).succeeded()
    assert killed
    assert empty_msb.host.layers() == []
    assert list((empty_msb.home / "cache" / "blobs").iterdir()) == []
