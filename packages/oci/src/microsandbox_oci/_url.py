"""Addresses of registries, and of where they send: of http and https, ASCII, without a user in them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import quote, urlencode, urljoin, urlsplit

_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[a-z0-9._~-]+|[0-9a-f:.]+")
# What RFC 3986 lets stand in a path or query, and the sign of what is encoded already: signatures cover it.
_SAFE = "/:?[]@!$&'()*+,;=%-._~"


class UrlInvalid(ValueError):
    """A text that is no usable address."""


class Url(NamedTuple):
    """An address: ``host`` in lower case, without brackets; ``target`` is path and query as they are sent."""

    scheme: str
    host: str
    port: int
    target: str

    @classmethod
    def parse(cls, text: str) -> Url:
        """Read an absolute address; its fragment is left out.

        Raises:
            UrlInvalid.
        """
        try:
            parts = urlsplit(text)
            host, port = parts.hostname or "", parts.port
            if not host.isascii():
                host = host.encode("idna").decode("ascii")
        except ValueError as error:  # UnicodeError is one
            raise UrlInvalid("not an address") from error
        if parts.scheme not in _PORTS or not _HOST.fullmatch(host) or "@" in parts.netloc:
            raise UrlInvalid("not an address of HTTP, or one with a user in it")
        target = quote(parts.path or "/", _SAFE) + (f"?{quote(parts.query, _SAFE)}" if parts.query else "")
        if not target.startswith("/"):
            raise UrlInvalid("not an address")
        return cls(parts.scheme, host, _PORTS[parts.scheme] if port is None else port, target)

    @property
    def authority(self) -> str:
        """Host and port as the ``Host`` header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> tuple[str, str, int]:
        """What two addresses have in common that lead to the same server."""
        return self.scheme, self.host, self.port

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"

    def join(self, reference: str) -> Url:
        """Return where ``reference`` leads from here. Raises `UrlInvalid`."""
        try:
            absolute = bool(urlsplit(reference).scheme)
            return Url.parse(reference if absolute else urljoin(str(self), reference))
        except ValueError as error:
            raise UrlInvalid("not an address") from error

    def with_query(self, parameters: Mapping[str, str]) -> Url:
        """Return the address with further parameters."""
        if not parameters:
            return self
        separator = "&" if "?" in self.target else "?"
        return self._replace(target=f"{self.target}{separator}{urlencode(parameters)}")
