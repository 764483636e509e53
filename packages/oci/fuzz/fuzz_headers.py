"""Fuzzes what registries say in headers: challenges, redirects, pages, ranges and times to wait."""

from __future__ import annotations

import http.client
import io
from contextlib import suppress

from driver import fuzz
from microsandbox_oci import RegistryOptions
from microsandbox_oci._authorization import Authorization
from microsandbox_oci._challenge import parse_challenges
from microsandbox_oci._errors import RegistryError
from microsandbox_oci._http import Broken, Response
from microsandbox_oci._registry import _body_from, _failure, _next, _retry_after, _target
from microsandbox_oci._transport import Reach
from microsandbox_oci._url import Url, UrlInvalid

HOME = Url.parse("https://registry.example/v2/app/blobs/x")
SEEDS = [
    'Bearer realm="https://tokens.example/t",service="s",scope="repository:app:pull"',
    'Basic realm="a \\" b", Bearer realm=x, error="invalid_token"',
    "https://blobs.example:8443/a/b?c=d#e",
    "/v2/elsewhere",
    "//other.example/x",
    "http://169.254.169.254/latest",
    "bytes 5-99/100",
    "120",
    "Wed, 21 Oct 2015 07:28:00 GMT",
    '</v2/app/tags/list?n=1000&last=z>; rel="next"',
    '{"errors": [{"code": "DENIED", "message": "no"}]}',
]
NAMES = (b"www-authenticate", b"location", b"link", b"content-range", b"retry-after")
TOKENS = [
    '"',
    "\\",
    ",",
    "=",
    "Bearer ",
    "Basic ",
    "realm=",
    "https://",
    "file://",
    "@",
    "[::1",
    "bytes ",
    "-",
    "/",
    ";",
]


class Wire(io.BytesIO):
    """Stands for the socket of a connection that brings these bytes."""

    def makefile(self, mode: str) -> io.BytesIO:
        return self


def answer(status: int, value: bytes, body: bytes = b"") -> Response:
    """What arrives from a server whose headers all have this value."""
    headers = b"".join(name + b": " + value + b"\r\n" for name in NAMES)
    length = b"Content-Length: %d\r\n" % len(body)
    raw = http.client.HTTPResponse(Wire(b"HTTP/1.1 %d x\r\n" % status + length + headers + b"\r\n" + body))  # type: ignore[arg-type]
    raw.begin()
    return Response(raw, "registry.example")


class Asked(Exception):
    """The token service would be asked."""


class Transport:
    """Stands for the connections: it only looks at where a request would go."""

    def request(self, method: str, url: Url, headers: dict[str, str], **more: object) -> None:
        assert url.scheme == "https"
        assert url.host
        assert "@" not in url.authority
        assert "Authorization" not in headers
        assert more["reach"] is (Reach.ANY if url.host == HOME.host else Reach.PUBLIC)
        raise Asked


def one_input(data: bytes) -> None:
    text = data.decode("latin-1")
    for challenge in parse_challenges([text]):
        assert challenge.scheme == challenge.scheme.lower()
        assert len(challenge.parameters) <= len(text)
    wait = _retry_after(text)
    assert wait is None or wait >= 0
    # As the HTTP library gives it: header values have no line ends.
    value = data.translate(bytes.maketrans(b"\r\n\0", b"   "))
    with suppress(RegistryError):
        target = _target(answer(307, value), HOME, "registry.example")
        assert target.scheme == "https"
        assert target.host
        assert "@" not in target.authority
    with suppress(RegistryError, Broken):
        got = b"".join(_body_from(answer(206, value, b"0123456789"), 5, "registry.example"))
        assert b"0123456789".endswith(got)
    follow = _next(answer(200, value))
    if follow is not None:
        with suppress(UrlInvalid):
            HOME.join(follow)
    authorization = Authorization(
        Transport(),  # type: ignore[arg-type]
        "registry.example",
        lambda: None,
        home=HOME,
        options=RegistryOptions(),
        reach=Reach.PUBLIC,
    )
    with suppress(RegistryError, Asked):
        authorization.answer(answer(401, value).headers("www-authenticate"), None)
    error = _failure(answer(418, value, data), "registry.example", HOME)
    assert str(error).isprintable(), repr(str(error))
    assert len(str(error)) < 1000


if __name__ == "__main__":
    fuzz("headers", one_input, [seed.encode() for seed in SEEDS], tokens=[token.encode() for token in TOKENS])
