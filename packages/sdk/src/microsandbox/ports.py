"""Published ports: those of the host that lead into a sandbox, and how they are written."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from microsandbox.errors import ConfigError

LOOPBACK = "127.0.0.1"
"""Where a port is published if nothing else is said: only programs of this host reach it."""

PORT_LIMIT = 512
"""Ports of a sandbox. Each is a descriptor of its supervisor."""

_EXAMPLES = "for example: 8080:80, 5353:5353/udp, 0.0.0.0:80:80, [::1]:8080:80, 8000-8010:9000-9010"


class PortBinding(NamedTuple):
    """A port of the host at which a port of the sandbox is reached. `protocol`: ``tcp`` or ``udp``; `host`:
    an address of the host, ``0.0.0.0`` or ``::`` for all of them."""

    host_port: int
    guest_port: int
    protocol: str = "tcp"
    host: str = LOOPBACK

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.host_port}:{self.guest_port}/{self.protocol}"

    @property
    def is_public(self) -> bool:
        """Whether it is on every address of the host: other machines reach it too."""
        return self.host in ("0.0.0.0", "::")

    @classmethod
    def parse(cls, text: str) -> PortBinding:
        """One from ``[HOST:]PORT:PORT[/PROTOCOL]``; a single PORT is the same on both sides.

        Raises `ConfigError`, also for a range: `parse_ports` has those.
        """
        found = _parse(text)
        if len(found) != 1:
            raise ConfigError(f"port: {text!r} is a range of ports", hint="give one port: 8080:80")
        return found[0]


def parse_ports(texts: Iterable[str]) -> tuple[PortBinding, ...]:
    """The ports of ``[HOST:]PORT[-PORT][:PORT[-PORT]][/PROTOCOL]``, all together. Raises `ConfigError`."""
    return check_ports([binding for text in texts for binding in _parse(text)])


def ports_of(given: Iterable[PortBinding | str] | Mapping[int, int]) -> tuple[PortBinding, ...]:
    """What `Sandbox.create(ports=...)` takes: bindings, texts, or a mapping from ports of the host to ports
    of the sandbox. Raises `ConfigError`, `TypeError`."""
    if isinstance(given, str | bytes):
        raise TypeError(f"ports: expected a list or a mapping, not {type(given).__name__}")
    if isinstance(given, Mapping):
        return check_ports(PortBinding(host, guest) for host, guest in given.items())
    found: list[PortBinding] = []
    for item in given:
        if not isinstance(item, PortBinding | str):
            raise TypeError(f"an item of ports: expected PortBinding or str, not {type(item).__name__}")
        found += _parse(item) if isinstance(item, str) else [item]
    return check_ports(found)


def check_ports(bindings: Iterable[PortBinding]) -> tuple[PortBinding, ...]:
    """The same, with addresses in their usual form. Raises `ConfigError`, `TypeError`."""
    found = tuple(_checked(binding) for binding in bindings)
    if len(found) > PORT_LIMIT:
        raise ConfigError(f"port: {len(found)} are too many", hint=f"publish at most {PORT_LIMIT}")
    seen = set()
    for binding in found:
        place = binding._replace(guest_port=0)
        if place in seen:
            raise ConfigError(
                f"port: {binding.host}:{binding.host_port}/{binding.protocol} is published twice",
                hint="use another port of the host for one of them",
            )
        seen.add(place)
    return found


def _checked(binding: PortBinding) -> PortBinding:
    for what, port in (("host_port", binding.host_port), ("guest_port", binding.guest_port)):
        if isinstance(port, bool) or not isinstance(port, int):
            raise TypeError(f"port: {what}: expected int, not {type(port).__name__}")
        if not 1 <= port <= 65535:
            raise ConfigError(f"port: {port} is not a port", hint="use a number from 1 to 65535")
    if binding.protocol not in ("tcp", "udp"):
        raise ConfigError(f"port: {binding.protocol!r:.40} is not a protocol", hint="use tcp or udp")
    return binding._replace(host=_address(binding.host))


def _address(text: str) -> str:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return socket.inet_ntop(family, socket.inet_pton(family, text))
        except (OSError, ValueError):
            pass  # then it is of the other, or none
    raise ConfigError(f"port: {text!r:.80} is not an IP address of this host", hint=_EXAMPLES)


def _parse(text: str) -> list[PortBinding]:
    rest, slash, protocol = text.partition("/")
    host = LOOPBACK
    if rest.startswith("["):
        host, _, rest = rest[1:].partition("]:")
        parts = rest.split(":")
    else:
        parts = rest.split(":")
        if len(parts) == 3:
            host, *parts = parts
    if len(parts) > 2 or (slash and not protocol):
        raise ConfigError(f"port: {text!r:.80} is not a port to publish", hint=_EXAMPLES)
    outside, inside = (_range(text, part) for part in (parts[0], parts[-1]))
    if len(outside) != len(inside):
        raise ConfigError(
            f"port: {text!r:.80} has {len(outside)} ports on the host and {len(inside)} in the sandbox",
            hint="give both ranges the same length: 8000-8010:9000-9010",
        )
    return [
        _checked(PortBinding(outer, inner, protocol or "tcp", host))
        for outer, inner in zip(outside, inside, strict=True)
    ]


def _range(text: str, part: str) -> range:
    first, dash, last = part.partition("-")
    for number in (first, last) if dash else (first,):
        if not (number.isascii() and number.isdigit() and len(number) <= 5):
            raise ConfigError(f"port: {text!r:.80} is not a port to publish", hint=_EXAMPLES)
        if not 1 <= int(number) <= 65535:
            raise ConfigError(f"port: {number} is not a port", hint="use a number from 1 to 65535")
    begin, end = int(first), int(last) if dash else int(first)
    if end < begin or end - begin >= PORT_LIMIT:
        raise ConfigError(
            f"port: {part} is not a range of ports",
            hint=f"from the lower to the higher one, at most {PORT_LIMIT}: 8000-8010",
        )
    return range(begin, end + 1)
