"""HTTP/1.1 over connections to given addresses: `http.client` of the standard library, which parses.

Why not a larger client: those that there are resolve names by themselves, and importing one takes as long as
all the rest of a pull of what is up to date.
"""

from __future__ import annotations

import http.client
import select
import socket
import ssl
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from microsandbox_oci._url import Url

_CHUNK = 512 << 10
_REST = 4096
_READ = (200, 206)


class NotConnected(Exception):
    """There is no connection: refused, not in time, or by TLS."""


class Broken(Exception):
    """A connection that was there is of no use any more, before the answer was complete."""


class Proxy(NamedTuple):
    """An HTTP proxy; ``authorization`` is the value of a header, None if it wants none."""

    host: str
    port: int
    authorization: str | None

    @classmethod
    def parse(cls, text: str) -> Proxy:
        """Read ``http://[USER:PASSWORD@]HOST[:PORT]``. Raises `ValueError` for anything else."""
        parts = urlsplit(text if "://" in text else f"http://{text}")  # as other programs read it
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError("not an HTTP proxy")
        authorization = None
        if parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            authorization = "Basic " + b64encode(user.encode()).decode()
        return cls(parts.hostname, parts.port or 80, authorization)


class Response:
    """The answer to a request, its body still to be read."""

    def __init__(self, raw: http.client.HTTPResponse, host: str) -> None:
        self._raw = raw
        self._host = host
        self._ended = False

    @property
    def status(self) -> int:
        """Its code."""
        return self._raw.status

    def header(self, name: str) -> str | None:
        """The first header of this name."""
        return self._raw.headers.get(name)

    def headers(self, name: str) -> Sequence[str]:
        """All headers of this name."""
        return self._raw.headers.get_all(name, [])

    def chunks(self) -> Iterator[bytes]:
        """Yield the body as it arrives: not in pieces of a size, which would be lost when it is cut.

        Raises:
            Broken: it ends too early, or nothing comes in time.
        """
        while chunk := self._read():
            yield chunk

    def _read(self) -> bytes:
        try:
            chunk = self._raw.read1(_CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise _broken(error, self._host) from error
        if not chunk:
            if self._raw.length:
                raise Broken(f"the connection to {self._host} ended {self._raw.length} bytes too early")
            self._ended = True
        return chunk

    def close(self) -> bool:
        """Let go of it; say whether the connection can be used again: the body was read to its end."""
        try:
            if self.status not in _READ and 0 < (self._raw.length or 0) <= _REST:
                self._read()  # of a refusal nobody wants the body, but the connection
            return (self._ended or self._raw.length == 0) and not self._raw.will_close
        except Broken:
            return False
        finally:
            self._raw.close()


class Connection:
    """One connection, for one request after the other."""

    def __init__(self, link: socket.socket, url: Url, proxy: Proxy | None) -> None:
        self._url = url
        self._proxy = proxy if url.scheme == "http" else None  # else it is a tunnel
        self._client = http.client.HTTPConnection(url.host, url.port)
        self._client.auto_open = 0
        self._client.sock = link

    def ask(self, method: str, url: Url, headers: Mapping[str, str], body: bytes | None) -> Response:
        """Send a request and return its answer.

        Raises:
            Broken.
        """
        client = self._client
        try:
            target = str(url) if self._proxy else url.target
            client.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            client.putheader("Host", url.authority)
            if self._proxy and self._proxy.authorization:
                client.putheader("Proxy-Authorization", self._proxy.authorization)
            for name, value in headers.items():
                client.putheader(name, value)
            client.endheaders(body)
            return Response(client.getresponse(), url.host)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            raise _broken(error, url.host) from error

    @property
    def usable(self) -> bool:
        """Whether the other side still waits for a request: neither gone nor saying what nobody asked."""
        if self._client.sock is None:
            return False
        poll = select.poll()
        poll.register(self._client.sock, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """Close it."""
        self._client.close()


def connect(
    url: Url,
    addresses: Sequence[str],
    *,
    proxy: Proxy | None,
    context: ssl.SSLContext | None,
    connect_timeout: float,
    read_timeout: float,
    opened: Callable[[socket.socket], None],
) -> Connection:
    """Connect to the first of the addresses that can be had, for requests to the origin of ``url``.

    Args:
        addresses: of the host, or of the proxy.
        context: for TLS with the host, None without it.
        opened: gets each socket that there is on the way.

    Raises:
        NotConnected: none can be had; why not the first.
    """
    failure: NotConnected | None = None
    for address in addresses:
        try:
            link = socket.create_connection((address, proxy.port if proxy else url.port), connect_timeout)
        except OSError as error:
            failure = failure or _not_connected(error, url.host)
            continue
        try:
            opened(link)
            if context is not None:
                if proxy is not None:
                    _tunnel(link, url, proxy)
                link = context.wrap_socket(link, server_hostname=url.host)
                opened(link)
            link.settimeout(read_timeout)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return Connection(link, url, proxy)
        except (OSError, http.client.HTTPException, NotConnected) as error:
            link.close()
            failure = failure or _not_connected(error, url.host)
    raise failure or NotConnected(f"no connection to {url.host} (it has no address)")


def _tunnel(link: socket.socket, url: Url, proxy: Proxy) -> None:
    host = f"[{url.host}]" if ":" in url.host else url.host
    lines = [f"CONNECT {host}:{url.port} HTTP/1.1", f"Host: {host}:{url.port}"]
    if proxy.authorization:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    link.sendall("\r\n".join([*lines, "", ""]).encode("ascii"))
    answer = http.client.HTTPResponse(link, method="CONNECT")
    try:
        answer.begin()
        if answer.status != 200:
            raise NotConnected(
                f"no connection to {url.host} (the proxy {proxy.host} answers {answer.status})"
            )
    finally:
        answer.close()


def _not_connected(error: Exception, host: str) -> NotConnected:
    if isinstance(error, NotConnected):
        return error
    if isinstance(error, TimeoutError):
        return NotConnected(f"no connection to {host} in time")
    if isinstance(error, ssl.SSLCertVerificationError):
        return NotConnected(f"the certificate of {host} is not trusted ({error.verify_message})")
    return NotConnected(f"no connection to {host} ({_text(error)})")


def _broken(error: Exception, host: str) -> Broken:
    if isinstance(error, TimeoutError):
        return Broken(f"{host} stopped answering")
    return Broken(f"the connection to {host} broke ({_text(error)})")


def _text(error: Exception) -> str:
    # What a server sent may be in it, so it has to be fit for a terminal.
    text = "".join(c if c.isprintable() else " " for c in str(error))[:200]
    return text or type(error).__name__
