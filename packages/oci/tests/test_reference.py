"""References: Docker's normalisation, and a grammar that lets nothing else through."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from microsandbox_oci import Reference, ReferenceInvalid

DIGEST = "sha256:" + "0123456789abcdef" * 4

_alnum = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=8)
_component = st.builds(
    lambda first, rest: first + "".join(sep + part for sep, part in rest),
    _alnum,
    st.lists(st.tuples(st.sampled_from([".", "_", "__", "-", "---"]), _alnum), max_size=2),
)
_path = st.lists(_component, min_size=1, max_size=4).map("/".join)
_domain = st.sampled_from(
    [
        "",
        "docker.io/",
        "index.docker.io/",
        "localhost/",
        "localhost:5000/",
        "registry.example/",
        "a.b-c.example:443/",
        "Registry/",
        "[2001:db8::1]:5000/",
        "192.0.2.1/",
    ]
)
_tag = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,30}", fullmatch=True)


@pytest.mark.parametrize(
    ("text", "canonical", "familiar"),
    [
        ("busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
        ("library/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("index.docker.io/library/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("user/app", "docker.io/user/app:latest", "user/app:latest"),
        ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
        ("localhost:5000/app", "localhost:5000/app:latest", "localhost:5000/app:latest"),
        ("registry.example/a/b/c:v1", "registry.example/a/b/c:v1", "registry.example/a/b/c:v1"),
        ("host:80/app", "host:80/app:latest", "host:80/app:latest"),
        ("Host/app", "Host/app:latest", "Host/app:latest"),
        (f"busybox@{DIGEST}", f"docker.io/library/busybox@{DIGEST}", f"busybox@{DIGEST}"),
        (f"busybox:1@{DIGEST}", f"docker.io/library/busybox:1@{DIGEST}", f"busybox:1@{DIGEST}"),
        ("[::1]:5000/app", "[::1]:5000/app:latest", "[::1]:5000/app:latest"),
        ("docker.io/localhost/app", "docker.io/localhost/app:latest", "docker.io/localhost/app:latest"),
        ("docker.io/a.b/app", "docker.io/a.b/app:latest", "docker.io/a.b/app:latest"),
    ],
)
def test_normalises_as_docker_does(text: str, canonical: str, familiar: str) -> None:
    reference = Reference.parse(text)
    assert str(reference) == canonical
    assert reference.familiar == familiar


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "busybox ",
        "busybox\n",
        "Busybox",
        "a/Busybox",
        "busybox:",
        ":tag",
        "/busybox",
        "busybox/",
        "a//b",
        "a/../b",
        "../b",
        "./b",
        "..",
        "-a",
        "a-",
        "a___b",
        "a..b",
        "busybox:a b",
        "busybox:" + "t" * 129,
        "busybox:.tag",
        "busybox:-tag",
        "busybox@",
        "busybox@sha256:ab",
        f"busybox@{DIGEST.upper()}",
        f"@{DIGEST}",
        f"busybox@{DIGEST}@{DIGEST}",
        "sha512:" + "0" * 128,
        "a" * 256,
        "a/" * 600 + "a",
        "0" * 64,
        DIGEST + "0",
        "ho st:80/a",
        "host:99999/a",
        "host:port/a",
        "ex_ample.com/a",
        "a\x00b",
        "a:b:c",
        "--privileged",
        "日本",
        "http://example.com/a",
        "user@host/a",
        "%2e%2e/a",
        "a/b:c/d",
    ],
)
def test_refuses_what_the_grammar_does_not_allow(text: str) -> None:
    with pytest.raises(ReferenceInvalid) as caught:
        Reference.parse(text)
    assert isinstance(caught.value, ValueError)
    assert caught.value.code == "reference_invalid"
    assert len(str(caught.value)) < 400


@given(_domain, _path, st.none() | _tag, st.none() | st.just(DIGEST))
def test_canonical_and_familiar_forms_mean_the_same(
    domain: str, path: str, tag: str | None, digest: str | None
) -> None:
    # Without a domain, a first component with a dot in it would be taken for one.
    assume(domain or "/" not in path or "." not in path.partition("/")[0])
    text = domain + path + (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")
    reference = Reference.parse(text)
    assert Reference.parse(str(reference)) == reference
    assert Reference.parse(reference.familiar) == reference
    assert reference.tag == (tag or (None if digest else "latest"))


@given(st.text(max_size=200) | st.binary(max_size=100).map(lambda raw: raw.decode("latin-1")))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except ReferenceInvalid:
        return
    for part in (reference.domain, reference.path, reference.tag or "", reference.digest or ""):
        assert part.isascii()
        assert not set(part) & set(" \t\n\0\\%~")
    assert ".." not in reference.path.split("/")
    assert Reference.parse(str(reference)) == reference


@pytest.mark.parametrize("name", ["sha256", "sha512"])
def test_a_repository_called_as_an_algorithm_is_spelled_out(name: str) -> None:
    """Found by fuzzing: its familiar form would be a damaged digest."""
    reference = Reference.parse(name)
    assert reference.familiar == f"docker.io/library/{name}:latest"
    assert Reference.parse(reference.familiar) == reference
