"""How registries are reached: mirrors, certificates, exceptions, patience; read from one TOML file.

::

    attempts = 5                                   # and the other numbers of `Registries`
    redirect_hosts = ["blobs.corp.example:9000"]   # redirects there are followed even to private addresses

    [registry."docker.io"]
    mirrors = ["mirror.corp.example/hub"]

    [registry."registry.corp.example:5000"]
    ca = "/etc/ssl/corp.pem"                       # trusted beside the system's authorities
    insecure = true                                # no certificate check, plain HTTP if need be
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from microsandbox_oci._errors import ImageError
from microsandbox_oci._reference import LEGACY_DEFAULT_DOMAIN, is_domain

_MAX_SIZE = 1 << 20
_COUNTS = ("attempts", "parallel")
_SECONDS = ("patience", "connect_timeout", "read_timeout")


class OptionsInvalid(ImageError, ValueError):
    """The configuration of registries or limits cannot be used; the message names the file and the key."""

    code = "registry_options_invalid"


@dataclass(frozen=True, slots=True)
class RegistryOptions:
    """How one registry is reached.

    Attributes:
        mirrors: ``host[:port][/prefix]``, asked in this order before the registry itself.
        ca: a PEM file of authorities to trust beside the system's.
        insecure: accept any certificate, and plain HTTP where there is no TLS.
    """

    mirrors: tuple[str, ...] = ()
    ca: Path | None = None
    insecure: bool = False


@dataclass(frozen=True, slots=True)
class Registries:
    """How all registries are reached.

    Attributes:
        registries: exceptions by domain, as a reference spells it.
        redirect_hosts: ``host[:port]`` that registries may send to although their addresses are not public;
            without a port, all of them.
        attempts: how often a request is tried that fails in a way that may pass.
        patience: the longest wait in seconds before one more attempt, whatever ``Retry-After`` asks.
        connect_timeout, read_timeout: seconds without any progress.
        parallel: layers that are fetched and converted at once.
    """

    registries: Mapping[str, RegistryOptions] = field(default_factory=dict)
    redirect_hosts: frozenset[str] = frozenset()
    attempts: int = 5
    patience: float = 60.0
    connect_timeout: float = 15.0
    read_timeout: float = 60.0
    parallel: int = 4

    def __post_init__(self) -> None:
        for name in ("attempts", "parallel", "patience", "connect_timeout", "read_timeout"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0")

    def of(self, domain: str) -> RegistryOptions:
        """Return what holds for one registry; a loopback one is insecure unless configured (as in Docker)."""
        found = self.registries.get(domain)
        return RegistryOptions(insecure=_is_loopback(domain)) if found is None else found

    def may_redirect(self, host: str, port: int) -> bool:
        """Say whether registries may send to this host, whatever its address."""
        spelled = {host, f"[{host}]"}
        spelled |= {f"{name}:{port}" for name in spelled}
        return not spelled.isdisjoint(name.lower() for name in self.redirect_hosts)

    @classmethod
    def from_file(cls, path: Path) -> Registries:
        """Read a configuration; a missing file is an empty one.

        Raises:
            OptionsInvalid: it cannot be read, is no TOML, or has unknown keys or wrong types.
        """
        return _Reader(path).registries(read_toml(path))


def read_toml(path: Path) -> dict[str, object]:
    """Read a file of settings; a missing one is empty.

    Raises:
        OptionsInvalid: it cannot be read, or is no TOML.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_SIZE + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise OptionsInvalid(f"cannot read {path}: {error.strerror}") from error
    if len(data) > _MAX_SIZE:
        raise OptionsInvalid(f"{path} is larger than {_MAX_SIZE} bytes")
    import tomllib  # most people have no such file

    try:
        return tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise OptionsInvalid(f"{path}: {error}") from error


class _Reader:
    def __init__(self, path: Path) -> None:
        self._path = path

    def registries(self, document: dict[str, object]) -> Registries:
        self._known(document, {"registry", "redirect_hosts", *_COUNTS, *_SECONDS}, "")
        tables = document.get("registry", {})
        if not isinstance(tables, dict):
            raise self._wrong("registry", "a table")
        redirect_hosts = self._texts(document, "redirect_hosts", "")
        if not all(is_domain(host) or _is_address(host) for host in redirect_hosts):
            raise self._wrong("redirect_hosts", "a list of HOST[:PORT], without https://")
        return Registries(
            registries={domain: self._one(domain, table) for domain, table in tables.items()},
            redirect_hosts=frozenset(redirect_hosts),
            **self._numbers(document, _COUNTS, int, 1, 100),
            **self._numbers(document, _SECONDS, float, 0.01, 86400),
        )

    def _numbers(
        self, document: Mapping[str, object], names: tuple[str, ...], kind: type, least: float, most: float
    ) -> dict[str, Any]:
        values = {name: document[name] for name in names if name in document}
        for name, value in values.items():
            wanted = "a whole number" if kind is int else "a number of seconds"
            number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
            if not number or not least <= value <= most:  # type: ignore[operator]
                raise self._wrong(name, f"{wanted} from {least} to {most}")
        return values

    def _one(self, domain: str, table: object) -> RegistryOptions:
        where = f'registry."{domain}".'
        # One that is spelled in another way than in references would never be found.
        if not is_domain(domain) or domain == LEGACY_DEFAULT_DOMAIN:
            raise self._wrong(where[:-1], "named by a domain, as images are: docker.io, registry:5000")
        if not isinstance(table, dict):
            raise self._wrong(where[:-1], "a table")
        self._known(table, {"mirrors", "ca", "insecure"}, where)
        mirrors = tuple(self._texts(table, "mirrors", where))
        if not all(is_domain(mirror.partition("/")[0]) for mirror in mirrors):
            raise self._wrong(where + "mirrors", "a list of HOST[:PORT][/PREFIX], without https://")
        ca, insecure = table.get("ca"), table.get("insecure", False)
        if ca is not None and not isinstance(ca, str):
            raise self._wrong(where + "ca", "a path")
        if not isinstance(insecure, bool):
            raise self._wrong(where + "insecure", "true or false")
        return RegistryOptions(
            mirrors=mirrors,
            ca=None if ca is None else Path(ca).expanduser(),
            insecure=insecure,
        )

    def _known(self, table: Mapping[str, object], known: set[str], where: str) -> None:
        for name in table:
            if name not in known:
                raise OptionsInvalid(
                    f"{self._path}: unknown key {where}{name}",
                    hint=f"known keys: {', '.join(sorted(known))}",
                )

    def _texts(self, table: Mapping[str, object], name: str, where: str) -> list[str]:
        values = table.get(name, [])
        if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
            raise self._wrong(where + name, "a list of names")
        return values

    def _wrong(self, name: str, expected: str) -> OptionsInvalid:
        return OptionsInvalid(f"{self._path}: {name} must be {expected}")


def _is_address(text: str) -> bool:
    from ipaddress import ip_address

    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _is_loopback(domain: str) -> bool:
    from ipaddress import ip_address

    host = host_of(domain)
    if host == "localhost":
        return True
    return _is_address(host) and ip_address(host).is_loopback


def host_of(domain: str) -> str:
    """Return a domain without its port and without the brackets of an IPv6 address."""
    if domain.startswith("["):
        return domain[1:].partition("]")[0]
    return domain.partition(":")[0]
