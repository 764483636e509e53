"""Fuzzes references and digests: what is accepted has one canonical spelling, safe in paths and URLs."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from driver import fuzz, shown
from microsandbox_oci import Reference, ReferenceInvalid, classify_image_argument
from microsandbox_oci._digest import hex_of, is_digest
from microsandbox_oci._errors import ImageError
from microsandbox_oci._paths import StorePaths

STORE = StorePaths(Path("/store"))
SEEDS = [
    "busybox",
    "docker.io/library/busybox:latest",
    "localhost:5000/a/b__c/d-e.f:v1_2.3",
    f"registry.example/app:1@sha256:{'ab' * 32}",
    f"sha256:{'ab' * 32}",
    "[::1]:5000/x",
    "docker-archive:a.tar:app:1",
    "oci:./dir:name",
    "./rootfs",
    "Upper.example/lower",
]
TOKENS = [
    "/",
    ":",
    "@",
    "..",
    "%2F",
    "[",
    "]",
    "localhost",
    "docker.io",
    "library/",
    "sha256:",
    "-",
    "_",
    "\n",
    "٣",
]


def one_input(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    digest = is_digest(text)
    assert digest == bool(re.fullmatch("sha256:[0-9a-f]{64}", text, re.ASCII))
    if digest:
        assert STORE.blob(text).parent == STORE.blobs
        assert len(hex_of(text)) == 64
    try:
        classify_image_argument(text[:400])
    except ImageError as error:
        shown(error)
    try:
        reference = Reference.parse(text)
    except ReferenceInvalid as error:
        return shown(error)
    assert Reference.parse(str(reference)) == reference
    assert Reference.parse(reference.familiar) == reference
    assert str(reference).isascii()
    path = STORE.ref(reference)
    assert path.parent == STORE.refs
    assert len(path.name) <= 255
    assert ".." not in reference.path.split("/")
    selector = reference.digest or reference.tag
    url = urlsplit(urljoin("https://registry.example/v2/", f"{reference.path}/manifests/{selector}"))
    assert (url.scheme, url.hostname) == ("https", "registry.example")
    assert (url.path, url.query, url.fragment) == (f"/v2/{reference.path}/manifests/{selector}", "", "")


if __name__ == "__main__":
    fuzz("names", one_input, [seed.encode() for seed in SEEDS], tokens=[token.encode() for token in TOKENS])
