"""HTTP to registries, to addresses that were looked at first.

A registry chooses where its redirects and its token service are, so those names are resolved here, every
address is judged, and the connection goes to the judged address: a second lookup could answer otherwise
(DNS rebinding). TLS is still verified for the name.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from threading import Event, Lock
from typing import NamedTuple
from urllib.parse import urlencode
from weakref import WeakSet

from microsandbox_oci._errors import RedirectRefused, RegistryUnreachable
from microsandbox_oci._http import Broken, Connection, NotConnected, Proxy, Response, connect
from microsandbox_oci._registry_options import OptionsInvalid, Registries
from microsandbox_oci._url import Url

_USER_AGENT = "microsandbox"
# NAT64, and what IPv4-compatible addresses were: the IPv4 address is in the last 32 bits.
_EMBEDDING = (IPv6Network("64:ff9b::/96"), IPv6Network("::/96"))
_METADATA = (IPv6Network("fd00:ec2::/32"), IPv6Network("fe80::/10"))


class Reach(IntEnum):
    """Which addresses a name may lead to, by who chose the name."""

    PUBLIC = 0
    """Chosen by a registry: public addresses only."""
    NEIGHBOUR = 1
    """Chosen by a registry that is itself in a private network: private ones too, but not link-local ones."""
    ANY = 2
    """Chosen by the user."""


class _Use(NamedTuple):
    """What has to be the same for a connection to be used again: a certificate is for a name."""

    origin: tuple[str, str, int]
    proxy: Proxy | None
    insecure: bool
    ca: Path | None
    reach: Reach


class Transport:
    """Connections to any number of hosts, used by several threads at once. Close it after use."""

    def __init__(self, options: Registries) -> None:
        self._options = options
        self._idle: dict[_Use, list[Connection]] = {}
        self._contexts: dict[tuple[bool, Path | None], ssl.SSLContext] = {}
        self._lock = Lock()
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._aborted = Event()

    def abort(self) -> None:
        """End every transfer, also those that wait for the other side: they fail as if it had gone."""
        with self._lock:
            self._aborted.set()
            sockets = list(self._sockets)
        for connection in sockets:
            _shut(connection)

    @property
    def aborted(self) -> bool:
        """Whether `abort` was called."""
        return self._aborted.is_set()

    def pause(self, seconds: float) -> None:
        """Wait, but not beyond an `abort`."""
        self._aborted.wait(seconds)

    def _opened(self, connection: socket.socket) -> None:
        with self._lock:
            self._sockets.add(connection)
            aborted = self.aborted
        if aborted:
            _shut(connection)

    def close(self) -> None:
        """Close every connection."""
        with self._lock:
            idle, self._idle = self._idle, {}
        for connections in idle.values():
            for connection in connections:
                connection.close()

    def is_private(self, host: str) -> bool:
        """Say whether one of the host's addresses is not a public one; False if it has none."""
        try:
            return any(not judged_public(address) for address in _addresses(host, 443))
        except OSError:
            return False

    @contextmanager
    def request(
        self,
        method: str,
        url: Url,
        headers: Mapping[str, str],
        *,
        registry: str,
        reach: Reach,
        insecure: bool = False,
        ca: Path | None = None,
        form: Mapping[str, str] | None = None,
    ) -> Iterator[Response]:
        """Send one request and give its response with the body still to be read. Redirects are not followed.

        Raises:
            RegistryUnreachable: no connection, no answer in time, or an untrusted certificate.
            RedirectRefused: an address of the host is not within ``reach``.
            OptionsInvalid: the authorities in ``ca`` cannot be read.
        """
        if self.aborted:
            raise RegistryUnreachable(registry, f"{registry} is not asked any more")
        insecure = insecure and reach is Reach.ANY
        use = _Use(url.origin, _proxy_for(url), insecure, ca, reach)
        sent = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity", **headers}
        body = None
        if form is not None:
            body = urlencode(form).encode()
            sent["Content-Type"] = "application/x-www-form-urlencoded"
            sent["Content-Length"] = str(len(body))
        try:
            connection = self._idle_one(use) or self._connect(use, url, registry)
            response = connection.ask(method, url, sent, body)
            try:
                yield response
            finally:
                if response.close():
                    with self._lock:
                        self._idle.setdefault(use, []).append(connection)
                else:
                    connection.close()
        except NotConnected as error:
            raise RegistryUnreachable(registry, f"{registry}: {error}") from error
        except Broken as error:
            raise RegistryUnreachable(registry, f"{registry}: {error}", passing=True) from error
        except socket.gaierror as error:
            raise RegistryUnreachable(
                registry, f"{registry}: the name {url.host} cannot be resolved"
            ) from error

    def _idle_one(self, use: _Use) -> Connection | None:
        while True:
            with self._lock:
                found = self._idle.get(use)
                if not found:
                    return None
                connection = found.pop()
            if connection.usable:
                return connection
            connection.close()

    def _connect(self, use: _Use, url: Url, registry: str) -> Connection:
        context = self._context(insecure=use.insecure, ca=use.ca) if url.scheme == "https" else None
        if use.proxy is not None:
            self._judge_literal(url, registry, use.reach)
            addresses = [str(address) for address in _addresses(use.proxy.host, use.proxy.port)]
        else:
            found = _addresses(url.host, url.port)
            for address in found:
                self._judge(address, url, registry, use.reach)
            addresses = [str(address) for address in found]
        return connect(
            url,
            addresses,
            proxy=use.proxy,
            context=context,
            connect_timeout=self._options.connect_timeout,
            read_timeout=self._options.read_timeout,
            opened=self._opened,
        )

    def _judge_literal(self, url: Url, registry: str, reach: Reach) -> None:
        try:
            address = ip_address(url.host)
        except ValueError:
            return  # the proxy resolves names, and decides where they may lead
        self._judge(address, url, registry, reach)

    def _judge(self, address: IPv4Address | IPv6Address, url: Url, registry: str, reach: Reach) -> None:
        if reach is Reach.ANY or judged_public(address) or self._options.may_redirect(url.host, url.port):
            return
        if reach is Reach.NEIGHBOUR and not _is_metadata(address):
            return
        raise RedirectRefused(
            registry, f"{registry} sends to {url.host}, whose address {address} is not a public one"
        )

    def _context(self, *, insecure: bool, ca: Path | None) -> ssl.SSLContext:
        found = self._contexts.get((insecure, ca))
        if found is None:
            found = self._contexts[insecure, ca] = _ssl_context(insecure=insecure, ca=ca)
        return found


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):
        # Of the plain socket: TLS would want to say goodbye, from a thread that does not own the connection.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def judged_public(address: IPv4Address | IPv6Address) -> bool:
    """Say whether an address is one of the public internet, also when it is written as an IPv6 one."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo and address.teredo[1])
        if any(address in network for network in _EMBEDDING):
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
        if inner:
            return inner.is_global and not inner.is_multicast
    return address.is_global and not address.is_multicast


def _is_metadata(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        else:
            return any(address in network for network in _METADATA)
    return address.is_link_local or address.is_unspecified or address.is_multicast


def _addresses(host: str, port: int) -> list[IPv4Address | IPv6Address]:
    try:
        # As bytes: a text would be encoded as an international name, and importing that takes some time.
        found = socket.getaddrinfo(host.encode("ascii"), port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise socket.gaierror(socket.EAI_NONAME, "not a host name") from error
    # A scope (`%eth0`) belongs to link-local addresses only.
    return list(dict.fromkeys(ip_address(str(entry[4][0]).partition("%")[0]) for entry in found))


def _proxy_for(url: Url) -> Proxy | None:
    """Return the proxy that the environment names for ``url`` (``HTTPS_PROXY``, ``NO_PROXY``, ...).

    Raises:
        OptionsInvalid: it is none that can be used.
    """
    if not any(name.lower().endswith("_proxy") for name in os.environ):
        return None
    from urllib.request import getproxies, proxy_bypass

    proxies = getproxies()
    text = proxies.get(url.scheme) or proxies.get("all")
    if not text or proxy_bypass(url.authority):
        return None
    try:
        return Proxy.parse(text)
    except ValueError:
        # Without the value, and without the error that has it: there may be a password in it.
        raise OptionsInvalid(
            "the proxy that the environment names cannot be used",
            hint="it is http://HOST:PORT: look at HTTPS_PROXY, HTTP_PROXY and ALL_PROXY",
        ) from None


def _ssl_context(*, insecure: bool, ca: Path | None) -> ssl.SSLContext:
    if insecure:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # reading all authorities would take some time
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        paths = ssl.get_default_verify_paths()
        if paths.cafile or paths.capath:
            context = ssl.create_default_context()
        else:
            import certifi

            context = ssl.create_default_context(cafile=certifi.where())
    if ca is not None:
        try:
            context.load_verify_locations(cafile=ca)
        except OSError as error:  # among them those of TLS: it is no PEM file
            raise OptionsInvalid(
                f"the certificates in {ca} cannot be used: {error.strerror or error}",
                hint="look at `ca` in the registry configuration",
            ) from error
    return context
