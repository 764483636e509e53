"""Pulling from a registry on loopback: what arrives is what was asked for, whatever the registry does."""

from __future__ import annotations

import email.utils
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from microsandbox_oci import (
    Abort,
    Credentials,
    DigestMismatch,
    Fixed,
    ImageInvalid,
    ImageNotFound,
    ImageStore,
    LimitExceeded,
    Limits,
    Phase,
    Platform,
    PlatformMismatch,
    Progress,
    RedirectRefused,
    Reference,
    Registries,
    RegistryBusy,
    RegistryClient,
    RegistryDenied,
    RegistryInvalid,
    RegistryNotFound,
    RegistryOptions,
    RegistryUnreachable,
    StoreFull,
)
from microsandbox_oci._authorization import Authorization
from microsandbox_oci._credentials import Anonymous
from microsandbox_oci._digest import digest_of as sha256
from microsandbox_oci._fetching import Cancelled, RemoteBlob
from microsandbox_oci._locks import locked
from microsandbox_oci._manifest import Descriptor
from microsandbox_oci._paths import StorePaths
from microsandbox_oci._registry_options import OptionsInvalid
from microsandbox_oci._transport import Reach, Transport, judged_public
from microsandbox_oci._url import Url

from tests.support.registry_server import Registry, Seen, serving

BASE = {"bin/sh": b"#!" * 500, "etc/motd": b"welcome\n"}
TOP = {"srv/app": os.urandom(300_000), "etc/.wh.motd": b""}
INDEX = "application/vnd.oci.image.index.v1+json"
QUICK = Registries(attempts=3, patience=0.01)


@pytest.fixture
def registry() -> Iterator[Registry]:
    with serving() as found:
        yield found


@pytest.fixture
def image(registry: Registry, sources: Any) -> Any:
    built = sources.image(BASE, TOP)
    registry.add("app", "1", built)
    return built


def pull(store: ImageStore, registry: Registry, name: str = "app:1", **more: Any) -> Any:
    return store.pull(f"{registry.domain}/{name}", **{"registries": QUICK, **more})


def test_a_pulled_image_is_the_same_as_a_loaded_one(
    store: ImageStore, registry: Registry, image: Any, sources: Any, tmp_path: Path
) -> None:
    found = pull(store, registry)
    other = ImageStore(tmp_path / "other")
    [loaded] = other.load(sources.directory(sources.layout_files(image)))
    assert found.digest == loaded.digest
    assert str(found.reference) == f"{registry.domain}/app:1"
    for path, size in zip(found.extents, loaded.extents, strict=True):
        assert path[0].read_bytes() == size[0].read_bytes()
    assert store.get(f"{registry.domain}/app:1").digest == found.digest


def test_what_the_store_has_is_not_fetched_again(
    store: ImageStore, registry: Registry, image: Any, sources: Any
) -> None:
    pull(store, registry)
    registry.requests.clear()
    pull(store, registry)
    assert [seen.path for seen in registry.requests if "/v2/app" in seen.path] == ["/v2/app/manifests/1"]
    # Another image on the same base, compressed in another way: known by its diff id.
    second = sources.image(BASE, {"new": b"n"}, compression="zstd")
    registry.add("app", "2", second)
    registry.requests.clear()
    pull(store, registry, "app:2")
    assert registry.count("/blobs/") == 2  # its configuration and its own layer


def test_by_digest_and_of_an_index(store: ImageStore, registry: Registry, image: Any, sources: Any) -> None:
    host = Platform.host()
    foreign = sources.image({"x": b"y"}, platform=Platform("linux", "s390x"))
    entries = []
    for built, platform in ((foreign, Platform("linux", "s390x")), (image, host)):
        digest = registry.add("multi", "ignored", built)
        entries.append(
            {
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": digest,
                "size": len(built.manifest),
                "platform": {"os": platform.os, "architecture": platform.architecture},
            }
        )
    attestation = {**entries[1], "platform": {"os": "unknown", "architecture": "unknown"}}
    data = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [attestation, *entries]}).encode()
    index = registry.add_manifest("multi", "1", INDEX, data)
    assert pull(store, registry, "multi:1").digest == entries[1]["digest"]
    by_index = pull(store, registry, f"multi@{index}")
    assert by_index.digest == entries[1]["digest"]
    assert store.get(f"{registry.domain}/multi@{index}").digest == entries[1]["digest"]
    # With another tag or none, as long as it was this digest.
    assert store.get(f"{registry.domain}/multi:any@{index}").digest == entries[1]["digest"]
    with pytest.raises(ImageNotFound):
        store.get(f"{registry.domain}/other@{index}")
    store.remove(f"{registry.domain}/multi@{index}")
    pull(store, registry, f"multi:1@{index}")
    assert store.get(f"{registry.domain}/multi@{index}").digest == entries[1]["digest"]
    assert store.get(f"{registry.domain}/multi:1@{index}").digest == entries[1]["digest"]
    assert pull(store, registry, f"multi@{entries[1]['digest']}").digest == entries[1]["digest"]
    with pytest.raises(PlatformMismatch, match="s390x"):
        pull(store, registry, f"multi@{entries[0]['digest']}")


@pytest.mark.parametrize("how", ["basic", "bearer", "identity token", "anonymous token"])
def test_authentication(store: ImageStore, registry: Registry, image: Any, how: str) -> None:
    registry.authentication = "basic" if how == "basic" else "bearer"
    credentials = None
    if how == "identity token":
        registry.refresh_token = "refresh"
        credentials = Fixed(registry.domain, Credentials(identity_token="refresh"))
    elif how != "anonymous token":
        registry.user = ("me", "pass:word")
        credentials = Fixed(registry.domain, Credentials("me", "pass:word"))
    pull(store, registry, credentials=credentials)
    assert registry.count("/token") == (0 if how == "basic" else 1)  # one token serves the whole pull


@pytest.mark.parametrize("how", ["basic", "bearer"])
def test_credentials_that_are_missing_or_wrong(
    store: ImageStore, registry: Registry, image: Any, how: str
) -> None:
    registry.authentication = how
    registry.user = ("me", "right")
    with pytest.raises(RegistryDenied, match="wants credentials") as denied:
        pull(store, registry)
    assert f"msb registry login {registry.domain}" in str(denied.value.hint)
    wrong = Fixed(registry.domain, Credentials("me", "wrong-secret"))
    with pytest.raises(RegistryDenied, match="refuses the credentials") as denied:
        pull(store, registry, credentials=wrong)
    assert (
        "wrong-secret"
        not in f"{denied.value!r} {denied.value.hint} {wrong!r} {Credentials('a', 'wrong-secret')}"
    )


def test_an_expired_token_is_renewed_once(store: ImageStore, registry: Registry, image: Any) -> None:
    registry.authentication = "bearer"

    def expire(seen: Seen, _: Any) -> None:
        # The first token stops being good when the first blob is asked for.
        if "/blobs/" in seen.path and registry.token == "a-token":
            registry.token = "another"

    registry.faults.append(expire)
    pull(store, registry)
    assert registry.count("/token") == 2


def test_credentials_do_not_follow_a_redirect_to_another_host(
    store: ImageStore, registry: Registry, image: Any
) -> None:
    """O14."""
    registry.authentication = "basic"
    registry.user = ("me", "secret")
    with serving() as elsewhere:
        elsewhere.blobs = registry.blobs
        target = elsewhere.domain.replace("127.0.0.1", "localhost")

        def redirect(seen: Seen, _: Any) -> Any:
            if "/blobs/" in seen.path:
                return 307, {"Location": f"http://{target}{seen.path}"}, b""
            return None

        registry.faults.append(redirect)
        options = Registries(redirect_hosts=frozenset({"localhost"}))
        pull(
            store,
            registry,
            registries=options,
            credentials=Fixed(registry.domain, Credentials("me", "secret")),
        )
        assert elsewhere.requests
        assert all("authorization" not in seen.headers for seen in elsewhere.requests)


@pytest.mark.parametrize(
    ("listed", "allowed"),
    [("localhost", True), ("LOCALHOST:{port}", True), ("localhost:1", False), ("127.0.0.1:{port}", False)],
)
def test_hosts_that_are_redirected_to_may_be_listed_with_their_port(
    store: ImageStore, registry: Registry, image: Any, listed: str, allowed: bool
) -> None:
    with serving() as elsewhere:
        elsewhere.blobs = registry.blobs
        port = elsewhere.domain.partition(":")[2]
        registry.faults.append(
            lambda seen, _: (
                (302, {"Location": f"http://localhost:{port}{seen.path}"}, b"")
                if "/blobs/" in seen.path
                else None
            )
        )
        options = Registries(redirect_hosts=frozenset({listed.format(port=port)}))
        if allowed:
            pull(store, registry, registries=options)
        else:
            with pytest.raises(RedirectRefused, match="sends to localhost, whose address"):
                pull(store, registry, registries=options)


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://[fd00:ec2::254]/",
        "http://[::ffff:169.254.169.254]/",
        "http://127.0.0.1:1/",
        "http://localhost:1/",
        "http://10.0.0.1/blob",
        "http://0.0.0.0/",
        "file:///etc/passwd",
        "ftp://example.com/x",
        "http://user:password@example.com/",
        "http://",
    ],
)
def test_redirects_to_the_inside_are_refused(
    store: ImageStore, registry: Registry, image: Any, target: str
) -> None:
    """O14."""

    def redirect(seen: Seen, _: Any) -> Any:
        return (302, {"Location": target}, b"") if "/blobs/" in seen.path else None

    registry.faults.append(redirect)
    with pytest.raises((RedirectRefused, RegistryInvalid)):
        pull(store, registry)
    assert store.list() == []


def test_a_token_service_inside_the_network_of_a_public_registry_is_refused(
    store: ImageStore, registry: Registry, image: Any
) -> None:
    """O14."""

    def challenge(seen: Seen, _: Any) -> Any:
        return 401, {"WWW-Authenticate": 'Bearer realm="http://169.254.169.254/token"'}, b""

    registry.faults.append(challenge)
    with pytest.raises(RedirectRefused, match=r"169\.254\.169\.254"):
        pull(store, registry)


def test_endless_redirects_end(store: ImageStore, registry: Registry, image: Any) -> None:
    registry.faults.append(lambda seen, _: (302, {"Location": seen.path + "x"}, b""))
    with pytest.raises(RegistryInvalid, match="redirects more than"):
        pull(store, registry)


class Cutting:
    """Ends the answer to each request for the blob of this digest after `step` further bytes."""

    def __init__(self, registry: Registry, digest: str, step: int, *, times: int = 1_000_000) -> None:
        self.registry, self.digest, self.step, self.times = registry, digest, step, times
        self.ranges: list[int] = []

    def __call__(self, seen: Seen, _: Any) -> Any:
        if self.digest not in seen.path or len(self.ranges) >= self.times:
            return None
        blob = self.registry.blobs[self.digest]
        start = int(seen.headers.get("range", "bytes=0-")[6:-1])
        self.ranges.append(start)
        status, headers = (
            (206, {"Content-Range": f"bytes {start}-{len(blob) - 1}/{len(blob)}"}) if start else (200, {})
        )
        return status, {**headers, "Content-Length": str(len(blob) - start)}, blob[start : start + self.step]


def test_a_transfer_that_is_cut_goes_on_where_it_ended(
    store: ImageStore, registry: Registry, image: Any
) -> None:
    digest, size = sha256(image.blobs[1]), len(image.blobs[1])
    cutting = Cutting(registry, digest, -(-size // 7))
    registry.faults.append(cutting)
    pull(store, registry)
    assert len(cutting.ranges) == 7
    assert cutting.ranges == sorted(set(cutting.ranges))


def test_a_pull_that_failed_is_resumed_by_the_next(store: ImageStore, registry: Registry, image: Any) -> None:
    digest, size = sha256(image.blobs[1]), len(image.blobs[1])
    registry.faults.append(Cutting(registry, digest, size // 2, times=1))
    registry.faults.append(lambda seen, _: (500, {}, b"") if digest in seen.path else None)
    with pytest.raises(RegistryBusy):
        pull(store, registry)
    assert store.list() == []
    registry.faults.clear()
    last = Cutting(registry, digest, size)
    registry.faults.append(last)
    pull(store, registry)
    assert last.ranges == [size // 2]


def test_a_damaged_beginning_is_fetched_again(store: ImageStore, registry: Registry, image: Any) -> None:
    digest = sha256(image.blobs[1])
    downloads = store.root / "downloads"
    downloads.mkdir(parents=True)
    (downloads / digest[7:]).write_bytes(b"\0" * 100)
    pull(store, registry)
    assert list(downloads.iterdir()) == []


def test_a_server_without_ranges_is_read_from_the_start(
    store: ImageStore, registry: Registry, image: Any
) -> None:
    digest = sha256(image.blobs[1])
    blob = registry.blobs[digest]
    state = {"first": True}

    def fault(seen: Seen, _: Any) -> Any:
        if digest not in seen.path:
            return None
        if state.pop("first", False):
            return 200, {"Content-Length": str(len(blob))}, blob[:1000]
        return 200, {}, blob

    registry.faults.append(fault)
    assert pull(store, registry).digest


def test_wrong_bytes_are_refused_and_not_kept(
    store: ImageStore, registry: Registry, image: Any, tree: Any
) -> None:
    """O13."""
    digest = sha256(image.blobs[1])
    good = registry.blobs[digest]
    registry.blobs[digest] = good[:-1] + bytes([good[-1] ^ 1])
    with pytest.raises(DigestMismatch) as wrong:
        pull(store, registry)
    assert digest in str(wrong.value)
    assert not any(
        name.startswith(("layers/", "blobs/", "downloads/")) and digest[7:] in name
        for name, _ in tree(store.root)
    )
    assert store.list() == []
    registry.blobs[digest] = good
    pull(store, registry)


def test_a_manifest_with_another_digest_is_refused(store: ImageStore, registry: Registry, image: Any) -> None:
    kind, data = registry.manifests["app", "1"]
    wanted = "sha256:" + "0" * 64
    registry.manifests["app", wanted] = (kind, data)
    with pytest.raises(DigestMismatch, match=wanted):
        pull(store, registry, f"app@{wanted}")


def test_too_large_documents_and_layers(
    store: ImageStore, registry: Registry, image: Any, tmp_path: Path
) -> None:
    """O11."""
    with pytest.raises(RegistryInvalid, match="more than the 100 bytes"):
        pull(ImageStore(tmp_path / "a", limits=Limits(manifest_size=100)), registry)
    with pytest.raises(LimitExceeded):
        pull(ImageStore(tmp_path / "b", limits=Limits(layer_size=1000)), registry)


def test_more_bytes_than_promised(store: ImageStore, registry: Registry, image: Any) -> None:
    registry.blobs[sha256(image.blobs[1])] += b"more"
    with pytest.raises(RegistryInvalid, match="more than the"):
        pull(store, registry)


def test_busy_registries_are_waited_for_as_they_ask(registry: Registry, image: Any) -> None:
    waits: list[float] = []
    answers = iter([(429, {"Retry-After": "7"}, b""), (503, {}, b"")])
    registry.faults.append(lambda seen, _: next(answers, None) if "manifests" in seen.path else None)
    with RegistryClient(Registries(), Anonymous(), wait=waits.append) as client:
        reference = Reference.parse(f"{registry.domain}/app:1")
        assert client.repository(reference).manifest("1", limit=1 << 20).data == image.manifest
    assert waits[0] == 7
    assert 0 < waits[1] <= 2
    registry.faults[:] = [lambda seen, _: (429, {"Retry-After": "86400"}, b"")]
    with (
        RegistryClient(Registries(), Anonymous(), wait=waits.append) as client,
        pytest.raises(RegistryBusy, match="86400"),
    ):
        client.repository(reference).manifest("1", limit=1 << 20)
    assert len(waits) == 2  # a day is not waited for
    moment = email.utils.formatdate(time.time() + 30, usegmt=True)
    answers = iter([(429, {"Retry-After": moment}, b"")])
    registry.faults[:] = [lambda seen, _: next(answers, None)]
    with RegistryClient(Registries(), Anonymous(), wait=waits.append) as client:
        assert client.repository(reference).manifest("1", limit=1 << 20).data == image.manifest
    assert 20 < waits[2] <= 30


def test_mirrors_come_first_and_may_fail(store: ImageStore, registry: Registry, image: Any) -> None:
    with serving() as mirror:
        options = Registries(
            registries={
                registry.domain: RegistryOptions(mirrors=(f"{mirror.domain}/hub",), insecure=True),
                mirror.domain: RegistryOptions(insecure=True),
            },
            attempts=1,
        )
        pull(store, registry, registries=options)
        assert mirror.count("/v2/hub/app/manifests/1") == 1
        assert registry.count("/v2/app/manifests/1") == 1
        mirror.blobs = registry.blobs
        mirror.manifests = {("hub/" + name, tag): found for (name, tag), found in registry.manifests.items()}
        registry.requests.clear()
        pull(store, registry, registries=options)
        assert registry.count("manifests") == 0


@pytest.mark.parametrize("wrong", ["other bytes", "no layer", "a damaged end"])
def test_a_layer_that_a_mirror_gives_wrong_is_fetched_from_the_registry(
    store: ImageStore, registry: Registry, image: Any, sources: Any, wrong: str
) -> None:
    digest = sha256(image.blobs[1])
    with serving() as mirror:
        right = registry.blobs[digest]
        other = {
            "other bytes": sources.compress(sources.image({"x": b"evil"}).tars[0], "gzip"),
            "no layer": b"\0" * len(right),
            "a damaged end": right[:-9] + b"\0" * 9,
        }[wrong]
        mirror.blobs = {**registry.blobs, digest: other}
        mirror.manifests = registry.manifests
        options = Registries(
            registries={
                registry.domain: RegistryOptions((mirror.domain,), insecure=True),
                mirror.domain: RegistryOptions(insecure=True),
            },
            attempts=1,
        )
        events: list[Progress] = []
        pulled = pull(store, registry, registries=options, progress=events.append)
        told = [event.subject for event in events if event.phase is Phase.WARNING]
        assert pulled.digest == sha256(image.manifest)
        assert mirror.count(digest)
        assert registry.count(digest)
        [line] = told
        assert line.startswith(f"mirror {mirror.domain}: what it gives as layer {digest} cannot be used")
        assert not store.verify(pulled.reference).problems


def test_a_mirror_is_not_blamed_for_a_layer_that_is_no_layer(
    store: ImageStore, registry: Registry, sources: Any
) -> None:
    built = sources.image({"a": b"1"})
    built.blobs[0] = b"no tar" * 99
    registry.add("app", "1", built)
    with serving() as mirror:
        mirror.blobs, mirror.manifests = registry.blobs, registry.manifests
        options = Registries(registries={registry.domain: RegistryOptions((mirror.domain,), insecure=True)})
        events: list[Progress] = []
        with pytest.raises(ImageInvalid):
            pull(store, registry, registries=options, progress=events.append)
        assert not any(event.phase is Phase.WARNING for event in events)


def test_a_mirror_that_gives_another_manifest_is_told(
    store: ImageStore, registry: Registry, image: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with serving() as mirror:
        digest = sha256(image.manifest)
        mirror.manifests = {("app", digest): ("", b"{}")}
        options = Registries(registries={registry.domain: RegistryOptions((mirror.domain,), insecure=True)})
        pull(store, registry, f"app@{digest}", registries=options)
        assert [record.getMessage().partition(" does ")[0] for record in caplog.records] == [
            f"mirror {mirror.domain}: manifest {digest}"
        ]


def test_errors_name_the_registry(store: ImageStore, registry: Registry, image: Any) -> None:
    with pytest.raises(RegistryNotFound, match=f"{registry.domain} has no app:2: nothing .*here") as error:
        pull(store, registry, "app:2")
    assert "\x1b" not in str(error.value)
    with pytest.raises(RegistryUnreachable, match=r"no-such-host\.invalid cannot be resolved"):
        store.pull("no-such-host.invalid/app:1")
    with serving() as gone:
        domain = gone.domain
    with pytest.raises(RegistryUnreachable, match=f"no connection to {domain.partition(':')[0]}"):
        store.pull(f"{domain}/app:1")


def test_a_thousand_tags(registry: Registry) -> None:
    registry.tags["app"] = [f"t{number:05}" for number in range(2500)]
    with RegistryClient(Registries(), Anonymous()) as client:
        found = list(client.repository(Reference.parse(f"{registry.domain}/app")).tags())
    assert found == registry.tags["app"]
    assert registry.count("tags/list") == 3


def test_layers_are_fetched_at_once_and_each_reports(
    store: ImageStore, registry: Registry, image: Any
) -> None:
    both = threading.Barrier(2, timeout=50)
    layers = image.manifest.decode()

    def wait(seen: Seen, _: Any) -> None:
        digest = seen.path.rpartition("/")[2]
        if "/blobs/" in seen.path and f'"{digest}"' in layers.partition('"layers"')[2]:
            both.wait()

    registry.faults.append(wait)
    events: list[Progress] = []
    pull(store, registry, progress=events.append)
    assert events[0].phase is Phase.RESOLVING
    assert events[-1].phase is Phase.DONE
    ends = {event.subject: event.done for event in events if event.phase is Phase.DOWNLOADING}
    assert sorted(ends.values()) == sorted(len(blob) for blob in image.blobs)


def test_a_failing_layer_ends_the_others(store: ImageStore, registry: Registry, sources: Any) -> None:
    built = sources.image(*({f"f{n}": os.urandom(100_000)} for n in range(6)))
    registry.add("many", "1", built)
    registry.blobs[sha256(built.blobs[3])] = built.blobs[3][:-1] + b"?"
    with pytest.raises((DigestMismatch, ImageInvalid)):
        pull(store, registry, "many:1")
    assert store.list() == []


def test_a_callback_that_raises_ends_the_pull(store: ImageStore, registry: Registry, image: Any) -> None:
    def report(event: Progress) -> None:
        if event.phase is Phase.DOWNLOADING:
            raise BrokenPipeError(32, "the terminal is gone")

    with pytest.raises(BrokenPipeError):
        pull(store, registry, progress=report)
    pull(store, registry)


def test_an_interrupt_ends_a_pull_that_waits(store: ImageStore, registry: Registry, image: Any) -> None:
    asked, leave = threading.Event(), threading.Event()

    def stall(seen: Seen, _: Any) -> None:
        if sha256(image.blobs[1]) in seen.path:
            asked.set()
            leave.wait(60)

    registry.faults.append(stall)
    command = [sys.executable, "-c", PULL, str(store.root), f"{registry.domain}/app:1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert asked.wait(120)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)  # far below the 60 seconds without an answer
    finally:
        leave.set()
        process.kill()
    assert process.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert store.list() == []


PULL = """
import sys
from microsandbox_oci import ImageStore
image = ImageStore(sys.argv[1]).pull(sys.argv[2])
print(image.digest)
"""


def test_several_processes_fetch_each_layer_once(store: ImageStore, registry: Registry, image: Any) -> None:
    """O16."""
    command = [sys.executable, "-c", PULL, str(store.root), f"{registry.domain}/app:1"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    outputs = [process.communicate(timeout=120)[0] for process in running]
    assert {process.returncode for process in running} == {0}
    assert len(set(outputs)) == 1
    for blob in image.blobs:
        assert registry.count(sha256(blob)) == 1


def test_a_full_disk_is_the_stores_error(
    store: ImageStore, registry: Registry, image: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O20."""

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StoreFull):
        pull(store, registry)
    monkeypatch.undo()
    pull(store, registry)


@pytest.mark.parametrize("after", ["50", None])
def test_an_interrupt_ends_a_wait_between_attempts(
    store: ImageStore, registry: Registry, image: Any, after: str | None
) -> None:
    asked = threading.Event()
    digest = sha256(image.blobs[1])

    def busy(seen: Seen, _: Any) -> Any:
        if digest in seen.path:
            asked.set()
            return 503, {} if after is None else {"Retry-After": after}, b""
        return None

    registry.faults.append(busy)
    command = [sys.executable, "-c", PULL, str(store.root), f"{registry.domain}/app:1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert asked.wait(120)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)  # far below the 50 seconds that it was asked to wait
    finally:
        process.kill()
    assert errors.rstrip().endswith("KeyboardInterrupt")
    requests = registry.count(digest)
    assert requests == 1 if after else requests <= 3


@pytest.mark.parametrize(
    "challenge",
    ['Bearer realm="https://[::1"', 'Bearer realm="http://a..b/"', 'Bearer realm="http://host:99999/"'],
)
def test_token_services_that_cannot_be_are_the_registrys_error(
    store: ImageStore, registry: Registry, image: Any, challenge: str
) -> None:
    registry.faults.append(lambda seen, _: (401, {"WWW-Authenticate": challenge}, b""))
    with pytest.raises((RegistryInvalid, RegistryUnreachable)):
        pull(store, registry)


def test_hosts_that_cannot_be_are_unreachable(store: ImageStore, registry: Registry, image: Any) -> None:
    with pytest.raises(RegistryUnreachable, match="cannot be resolved"):
        store.pull(f"{'a' * 64}.example/app:1")
    registry.faults.append(
        lambda seen, _: (302, {"Location": "http://a..b/"}, b"") if "/blobs/" in seen.path else None
    )
    with pytest.raises(RegistryUnreachable, match="cannot be resolved"):
        pull(store, registry)


@pytest.mark.parametrize("after", ["\xb2", "Mon, 01 Jan 0001 00:00:00 -0000", "soon", "-1"])
def test_strange_times_to_wait_are_no_times(
    store: ImageStore, registry: Registry, image: Any, after: str
) -> None:
    registry.faults.append(lambda seen, _: (503, {"Retry-After": after}, b""))
    with pytest.raises(RegistryBusy):
        pull(store, registry)


def test_a_list_of_tags_that_goes_on_nowhere(registry: Registry) -> None:
    headers = {"Link": '<http://[::1/x>; rel="next"'}
    registry.faults.append(lambda seen, _: (200, headers, b'{"tags": ["a"]}'))
    with RegistryClient(QUICK, Anonymous()) as client, pytest.raises(RegistryInvalid, match="nowhere"):
        list(client.repository(Reference.parse(f"{registry.domain}/app")).tags())


def test_what_a_registry_calls_a_digest_is_not_repeated(
    store: ImageStore, registry: Registry, image: Any
) -> None:
    manifest = registry.manifests["app", "1"][1]
    headers = {"Docker-Content-Digest": "sha256:\x1b[2J"}
    registry.faults.append(lambda seen, _: (200, headers, manifest) if "manifests" in seen.path else None)
    assert pull(store, registry).digest == sha256(image.manifest)


def test_a_damaged_configuration_of_a_mirror_is_fetched_from_the_registry(
    store: ImageStore, registry: Registry, image: Any
) -> None:
    with serving() as mirror:
        mirror.blobs = {**registry.blobs, sha256(image.config): b"{}"}
        mirror.manifests = registry.manifests
        options = Registries(registries={registry.domain: RegistryOptions((mirror.domain,), insecure=True)})
        pull(store, registry, registries=options)
        assert mirror.count(sha256(image.config)) == registry.count(sha256(image.config)) == 1


@pytest.mark.parametrize("proxy", ["ftp://user:secret@127.0.0.1:1", "http://user:secret@[::1:1"])
def test_a_proxy_that_cannot_be_used_is_told_without_its_password(
    store: ImageStore, registry: Registry, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.setenv("https_proxy", proxy)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(OptionsInvalid, match="the proxy that the environment names") as wrong:
        pull(store, registry)
    assert "secret" not in "".join(traceback.format_exception(wrong.value))


def test_a_proxy_without_a_scheme_is_one_of_http(
    store: ImageStore, registry: Registry, image: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as proxy:
        monkeypatch.setenv("http_proxy", proxy.domain)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("https_proxy", raising=False)
        with pytest.raises(RegistryNotFound):
            pull(store, registry)
        assert proxy.count(f"^http://{registry.domain}/v2/") == 1


def test_authorities_that_cannot_be_read_are_told(
    store: ImageStore, registry: Registry, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("nothing")
    for path in (wrong, tmp_path / "none.pem"):
        options = Registries(registries={"registry.example": RegistryOptions(ca=path)})
        with RegistryClient(options, Anonymous()) as client, pytest.raises(OptionsInvalid, match=path.name):
            client.check("registry.example")


@pytest.mark.parametrize(
    "text", ["64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "::127.0.0.1", "::", "::1", "2002:7f00:1::"]
)
def test_addresses_inside_others_are_judged(text: str) -> None:
    assert not judged_public(ip_address(text))
    assert judged_public(ip_address("64:ff9b::808:808"))


class _Asked(Exception):
    pass


@pytest.mark.parametrize(
    ("realm", "reach"),
    [("https://harbor.example/token", Reach.ANY), ("https://tokens.example/token", Reach.PUBLIC)],
)
def test_a_token_service_is_trusted_as_its_registry_is(
    monkeypatch: pytest.MonkeyPatch, realm: str, reach: Reach
) -> None:
    """One on the registry's own host has its certificate; one elsewhere is never spared the check."""
    asked: dict[str, Any] = {}

    def request(*_: Any, **more: Any) -> Any:
        asked.update(more)
        raise _Asked

    options = RegistryOptions(ca=Path("/corp.pem"), insecure=True)
    transport = Transport(Registries())
    monkeypatch.setattr(transport, "request", request)
    home = Url.parse("https://harbor.example/v2/")
    authorization = Authorization(
        transport, "harbor.example", lambda: None, home=home, options=options, reach=Reach.PUBLIC
    )
    with pytest.raises(_Asked):
        authorization.answer([f'Bearer realm="{realm}"'], None)
    assert asked["reach"] is reach
    assert asked["ca"] == options.ca
    assert asked["insecure"]  # which counts within `Reach.ANY` only


def test_an_interrupt_ends_the_completion_of_an_image(
    store: ImageStore, registry: Registry, image: Any
) -> None:
    pull(store, registry)
    digest = sha256(image.blobs[1])
    (store.root / "blobs" / digest[7:]).unlink()
    asked, leave = threading.Event(), threading.Event()

    def stall(seen: Seen, _: Any) -> None:
        if digest in seen.path:
            asked.set()
            leave.wait(60)

    registry.faults.append(stall)
    command = [sys.executable, "-c", PULL.replace("])\nprint", "], complete=True)\nprint")]
    process = subprocess.Popen(
        [*command, str(store.root), f"{registry.domain}/app:1"], stderr=subprocess.PIPE, text=True
    )
    try:
        assert asked.wait(120)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    finally:
        leave.set()
        process.kill()
    assert errors.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.parametrize("lock", ["convert", "download"])
def test_a_pull_that_fails_does_not_wait_for_what_others_hold(
    store: ImageStore, registry: Registry, image: Any, lock: str
) -> None:
    first, second = (sha256(blob) for blob in image.blobs)
    registry.blobs[second] = registry.blobs[second][:-1] + b"?"
    paths = StorePaths(store.root)
    paths.prepare()
    diff_id = json.loads(image.config)["rootfs"]["diff_ids"][0]
    name = paths.convert_lock(diff_id) if lock == "convert" else paths.download_lock(first)
    command = [sys.executable, "-c", PULL, str(store.root), f"{registry.domain}/app:1"]
    with locked(name):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert "DigestMismatch" in done.stderr.splitlines()[-1]


def test_a_layer_that_is_refused_before_its_end_is_told_for_what_it_is(
    store: ImageStore, registry: Registry, sources: Any, tmp_path: Path
) -> None:
    files = {f"a{number}": b"" for number in range(50)}
    registry.add("app", "1", sources.image({**files, "z": os.urandom(8 << 20)}))
    small = ImageStore(tmp_path / "small", limits=Limits(layer_entries=10))
    with pytest.raises(LimitExceeded):
        pull(small, registry)


def test_what_could_not_be_kept_can_be_gone_on_with(
    store: ImageStore, registry: Registry, image: Any
) -> None:
    paths = StorePaths(store.root)
    paths.prepare()
    digest = sha256(image.blobs[0])
    descriptor = Descriptor("", digest, len(image.blobs[0]))
    with RegistryClient(QUICK, Anonymous()) as client:
        repository = client.repository(Reference.parse(f"{registry.domain}/app"))
        blob = RemoteBlob(repository, descriptor, paths, threading.Event())
        assert blob.fetch() == digest
        paths.blobs.rmdir()
        blob.keep(paths, digest, paths.tmp)
        assert paths.download(digest).stat().st_mode & 0o200


@pytest.mark.parametrize("where", ["manifests/1", "blobs"])
def test_another_thread_can_end_a_pull(store: ImageStore, registry: Registry, image: Any, where: str) -> None:
    asked, leave = threading.Event(), threading.Event()
    ended: list[Exception] = []
    abort = Abort()

    def stall(seen: Seen, _: Any) -> None:
        if where in seen.path and sha256(image.config) not in seen.path:
            asked.set()
            leave.wait(60)

    def go() -> None:
        try:
            pull(store, registry, abort=abort)
        except (Cancelled, RegistryUnreachable) as error:
            ended.append(error)

    registry.faults.append(stall)
    thread = threading.Thread(target=go)
    thread.start()
    try:
        assert asked.wait(120)
        abort()
        thread.join(50)
        assert not thread.is_alive()
    finally:
        leave.set()
    assert ended
    with pytest.raises(Cancelled):
        pull(store, registry, abort=abort)  # it counts for one that begins later, too
    assert store.list() == []
