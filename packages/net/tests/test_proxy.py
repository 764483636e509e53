"""Upstream proxies: how they are written, and what an environment says."""

from __future__ import annotations

import re

import pytest
from microsandbox_net import check_proxy, proxy_from_environment

HTTP = "http://proxy.example:3128"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, (None, "")),
        ({"HTTP_PROXY": HTTP, "http_proxy": HTTP, "NO_PROXY": "*"}, (None, "")),
        ({"HTTPS_PROXY": HTTP}, (HTTP, "")),
        ({"HTTPS_PROXY": "http://upper:1", "https_proxy": HTTP, "ALL_PROXY": "http://all:1"}, (HTTP, "")),
        (
            {"https_proxy": "", "ALL_PROXY": "socks5://p:1080", "no_proxy": ".corp"},
            ("socks5://p:1080", ".corp"),
        ),
        ({"all_proxy": "proxy.example:3128", "NO_PROXY": "a, b"}, (HTTP, "a, b")),
        ({"HTTPS_PROXY": f" {HTTP} ", "no_proxy": "", "NO_PROXY": "10.0.0.0/8"}, (HTTP, "10.0.0.0/8")),
    ],
)
def test_an_environment_names_a_proxy(environ: dict[str, str], expected: tuple[str | None, str]) -> None:
    assert proxy_from_environment(environ) == expected


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (HTTP, HTTP),
        ("socks5h://me:secret@[2001:db8::1]:1080", "socks5://[2001:db8::1]:1080"),
        ("http://me:secret@127.0.0.1:80/", "http://127.0.0.1:80"),
    ],
)
def test_a_proxy_is_shown_without_its_password(url: str, shown: str) -> None:
    assert check_proxy(url, "localhost, .corp.example,10.0.0.0/8 [::1] *") == shown


@pytest.mark.parametrize(
    ("url", "no_proxy", "told"),
    [
        ("proxy:3128", "", "no URL; write http://host:port"),
        ("https://me:secret@proxy:3128", "", '"https" is not supported; write http:// or socks5://'),
        ("http://me:secret@proxy", "", "write a host and a port"),
        ("socks5://me@proxy:1080", "", "1 to 255 bytes each"),
        (HTTP, "10.0.0.0/40", 'no_proxy "10.0.0.0/40" is no name, address or network'),
    ],
)
def test_what_is_no_proxy_is_named_without_its_password(url: str, no_proxy: str, told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)) as caught:
        check_proxy(url, no_proxy)
    assert "secret" not in str(caught.value)
