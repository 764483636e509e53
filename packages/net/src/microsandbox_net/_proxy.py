"""Upstream proxies: what TCP of a sandbox goes through, as it is written and as environments have it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from microsandbox_net import _native


def check_proxy(url: str, no_proxy: str = "") -> str:
    """The proxy at `url` as it can be shown: `http://proxy.example:3128`, without user and password.

    `url` is `http://` or `socks5://` (`socks5h://` is the same), `[user[:password]@]host:port`, user and
    password percent-encoded. `no_proxy` is what goes past the proxy, as curl has it: entries with commas or
    spaces between them, `example.com` or `.example.com` for a name and all below it, addresses, networks,
    `*` for everything.

    Raises:
        ValueError: one of them is not what it has to be. The text has no user and no password in it.
    """
    return _native.check_proxy(url, no_proxy)


class ProxyWay(StrEnum):
    """How a flow gets out of a sandbox that has a proxy."""

    THROUGH = "through"
    PAST = "past"
    """By itself: `no_proxy` names it, or it is the host."""
    ITSELF = "itself"
    """Not at all: it leads to the proxy, which is not for the sandbox to reach."""


def proxy_way(url: str, no_proxy: str, target: str) -> ProxyWay:
    """The way of a TCP flow to `target`, `HOST:PORT`, with nothing resolved and nothing sent: of a name it is
    not known what it leads to, so networks of `no_proxy` do not count for it.

    Raises:
        ValueError: as `check_proxy`.
        PolicyError: `target` is no host and port.
    """
    return ProxyWay(_native.proxy_way(url, no_proxy, target))


def proxy_from_environment(environ: Mapping[str, str]) -> tuple[str | None, str]:
    """The proxy that `environ` names, as a URL, and what goes past it; `(None, "")` if it names none.

    The first that is set and not empty of `https_proxy`, `HTTPS_PROXY`, `all_proxy`, `ALL_PROXY`, and of
    `no_proxy`, `NO_PROXY`. `HTTP_PROXY` is not asked: it is for requests in plain HTTP, and one proxy carries
    everything here. A proxy without a scheme speaks HTTP. Nothing is checked; that is `check_proxy`'s.
    """
    url = _first(environ, "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
    if not url:
        return None, ""
    if "://" not in url:
        url = f"http://{url}"
    return url, _first(environ, "no_proxy", "NO_PROXY")


def _first(environ: Mapping[str, str], *names: str) -> str:
    return next((value for name in names if (value := environ.get(name, "").strip())), "")
