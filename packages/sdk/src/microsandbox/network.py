"""What a sandbox's network may be asked to be: policies, rules, names, rates.

Imported only where one is given; a sandbox without has the default, the public internet.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

import microsandbox_net as net
from microsandbox_net import Action, Verdict

from microsandbox._config import NetworkConfig, check_type, parse_size
from microsandbox.errors import ConfigError, NetworkPolicyError, translated
from microsandbox.ports import PortBinding, ports_of

__all__ = [
    "Action", "Destination", "Dns", "Network", "NetworkPolicy", "RateLimit", "Rule", "Verdict",
    "network_config", "policy_of",
]  # fmt: skip

_CONNECTIONS = 1 << 20
_RATE = 1 << 40


@contextmanager
def _told() -> Iterator[None]:
    """Raise `NetworkPolicyError` for what `microsandbox_net` refuses, and for bytes that are no text."""
    try:
        with translated():
            yield
    except UnicodeEncodeError as error:
        raise NetworkPolicyError(
            f"network policy: {error.object!r:.80} is not UTF-8", hint="write names as xn--..."
        ) from error


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a rule points, in the words of docs/network-policy.md: ``any``, ``10.0.0.0/8``, ``.example.com``.

    Raises `NetworkPolicyError`, as do all the ways to make one.
    """

    text: str

    def __post_init__(self) -> None:
        with _told():
            object.__setattr__(self, "text", net.Destination(self.text).text)

    def __str__(self) -> str:
        return self.text

    @classmethod
    def any(cls) -> Destination:
        """Everything but metadata services."""
        return cls("any")

    @classmethod
    def ip(cls, address: str | IPv4Address | IPv6Address) -> Destination:
        """That address: the one way to allow a metadata service."""
        with _told():
            return cls(net.Destination.ip(address).text)

    @classmethod
    def cidr(cls, network: str) -> Destination:
        """A network such as ``10.0.0.0/8``, without bits set after its prefix."""
        with _told():
            return cls(net.Destination.cidr(network).text)

    @classmethod
    def domain(cls, name: str) -> Destination:
        """That name and no other."""
        with _told():
            return cls(net.Destination.domain(name).text)

    @classmethod
    def domain_suffix(cls, name: str) -> Destination:
        """That name and every name below it. A public suffix such as ``com`` or ``github.io`` is refused."""
        with _told():
            return cls(net.Destination.domain_suffix(name).text)

    @classmethod
    def group(cls, name: str) -> Destination:
        """One of public, private, loopback, link-local, metadata, multicast, host."""
        with _told():
            return cls(net.Destination.group(name).text)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, by its text: ``ACTION[:DIRECTION]@DESTINATION[:PROTOCOL[:PORTS]]``.

    Raises `NetworkPolicyError`, as do `allow` and `deny`.
    """

    text: str

    def __post_init__(self) -> None:
        with _told():
            object.__setattr__(self, "text", str(net.Rule.parse(self.text)))

    def __str__(self) -> str:
        return self.text

    @classmethod
    def allow(
        cls,
        destination: Destination | str = "any",
        *,
        protocol: str | None = None,
        port: int | str | None = None,
        direction: str = "egress",
        methods: Iterable[str] = (),
        paths: Iterable[str] = (),
    ) -> Rule:
        """A rule that lets pass what it matches. `protocol`: ``tcp``, ``udp`` or ``icmp``, None is any;
        `port`: a number, or text such as ``80,8000-8999``; `direction`: ``egress``, or ``ingress`` to
        published ports. `methods` and `paths` of HTTP are refused, because nothing is intercepted."""
        with _told():
            return cls._checked(
                net.Rule.allow(
                    str(destination), protocol=protocol, port=port, direction=direction, methods=methods,
                    paths=paths,
                )
            )  # fmt: skip

    @classmethod
    def deny(
        cls,
        destination: Destination | str = "any",
        *,
        protocol: str | None = None,
        port: int | str | None = None,
        direction: str = "egress",
        methods: Iterable[str] = (),
        paths: Iterable[str] = (),
    ) -> Rule:
        """A rule that stops what it matches; otherwise like `allow`."""
        with _told():
            return cls._checked(
                net.Rule.deny(
                    str(destination), protocol=protocol, port=port, direction=direction, methods=methods,
                    paths=paths,
                )
            )  # fmt: skip

    @classmethod
    def _checked(cls, rule: net.Rule) -> Rule:
        # A policy refuses what a rule alone may have: methods and paths.
        net.Policy.none(rule)
        return cls(str(rule))


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """Rules in their order, then those of the preset, then: deny. The first that matches decides.

    `preset`: ``none``, ``public-only``, ``nonlocal`` or ``allow-all``. `strict`: a rule for a name refuses
    clients that do not state it; otherwise it is enough that the name was resolved to the address.

    Raises `NetworkPolicyError`.
    """

    preset: str = "public-only"
    rules: tuple[Rule, ...] = ()
    strict: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", _rules(self.rules))
        check_type(self.strict, bool, "strict")
        object.__setattr__(self, "preset", self.compiled().preset.value)

    @classmethod
    def none(cls, *rules: Rule | str, strict: bool = True) -> NetworkPolicy:
        """Nothing but what `rules` allow."""
        return cls("none", _rules(rules), strict)

    @classmethod
    def public_only(cls, *rules: Rule | str, strict: bool = True) -> NetworkPolicy:
        """The public internet, and what `rules` say."""
        return cls("public-only", _rules(rules), strict)

    @classmethod
    def nonlocal_(cls, *rules: Rule | str, strict: bool = True) -> NetworkPolicy:
        """The public internet and private networks, and what `rules` say."""
        return cls("nonlocal", _rules(rules), strict)

    @classmethod
    def allow_all(cls, *rules: Rule | str, strict: bool = True) -> NetworkPolicy:
        """Everything but metadata services, and what `rules` say."""
        return cls("allow-all", _rules(rules), strict)

    def compiled(self, host: Sequence[str] = ()) -> net.Policy:
        """What decides. `host`: the addresses that stand for the host in the sandbox."""
        with _told():
            policy = net.Policy.parse(
                self.preset,
                [rule.text for rule in self.rules],
                names=net.Names.STRICT if self.strict else net.Names.PIN_ONLY,
            )
            return net.Policy(policy.preset, policy.rules, policy.names, tuple(host)) if host else policy

    def applied_to(self, network: NetworkConfig) -> NetworkConfig:
        """The same network with this policy."""
        rules = tuple(rule.text for rule in self.rules)
        return network._replace(preset=self.preset, rules=rules, strict=self.strict)

    def explain(self, target: str, *, protocol: str = "tcp", host: Sequence[str] = ()) -> Verdict:
        """The verdict for ``HOST:PORT`` (IPv6 in brackets) and the rule, with nothing resolved and nothing
        sent; `host` as for `compiled`. For a name: for a client that states it, at a public address that no
        rule names."""
        with _told():
            return self.compiled(host).explain(target, protocol=protocol)


def _rules(rules: Iterable[Rule | str]) -> tuple[Rule, ...]:
    if isinstance(rules, str):
        raise TypeError("rules: expected a list of rules, not str")
    return tuple(rule if isinstance(rule, Rule) else Rule(rule) for rule in rules)


@dataclass(frozen=True, slots=True)
class Dns:
    """How names are resolved. `nameservers`: addresses of servers to ask, by default the host's. `mode`:
    ``resolve``, or ``synthetic``: names that the policy allows get addresses without a question to anybody,
    and are resolved when the sandbox connects.

    Raises `ConfigError`, `TypeError`.
    """

    nameservers: Sequence[str] = ()
    mode: str = "resolve"

    def __post_init__(self) -> None:
        if isinstance(self.nameservers, str):
            raise TypeError("nameservers: expected a list of addresses, not str")
        object.__setattr__(self, "nameservers", tuple(_nameserver(text) for text in self.nameservers))
        if self.mode not in ("resolve", "synthetic"):
            raise ConfigError(f"dns mode: {self.mode!r:.40} is not known", hint="use resolve or synthetic")


def _nameserver(text: str) -> str:
    from ipaddress import ip_address

    try:
        return str(ip_address(check_type(text, str, "nameserver")))
    except ValueError:
        raise ConfigError(
            f"nameserver: {text!r:.80} is not an IP address", hint="for example: 192.0.2.53"
        ) from None


@dataclass(frozen=True, slots=True)
class RateLimit:
    """What may pass in one direction: bytes a second (an int, or text such as ``10M``) and packets a second;
    with how much of each may come at once. None: no limit.

    Raises `ConfigError`, `TypeError`.
    """

    bytes_per_second: int | str | None = None
    burst_bytes: int | str | None = None
    packets_per_second: int | None = None
    burst_packets: int | None = None

    def __post_init__(self) -> None:
        for name in ("bytes_per_second", "burst_bytes", "packets_per_second", "burst_packets"):
            value = getattr(self, name)
            if isinstance(value, str):
                value = parse_size(value, f"rate: {name}")
            if value is None:
                continue
            check_type(value, int, f"rate: {name}")
            if isinstance(value, bool) or not 1 <= value <= _RATE:
                raise ConfigError(f"rate: {name}: {value} is not between 1 and 1T", hint="for example: 10M")
            object.__setattr__(self, name, value)
        for name, burst in (("bytes_per_second", "burst_bytes"), ("packets_per_second", "burst_packets")):
            if getattr(self, name) is None and getattr(self, burst) is not None:
                raise ConfigError(f"rate: {burst} is given without {name}", hint=f"give {name} too")
        if self.bytes_per_second is None and self.packets_per_second is None:
            raise ConfigError("rate: it limits nothing", hint="give bytes_per_second or packets_per_second")

    def plain(self, direction: str) -> tuple[str, int | None, int | None, int | None, int | None]:
        """As `NetworkConfig.rates` has it."""
        assert not isinstance(self.bytes_per_second, str)
        assert not isinstance(self.burst_bytes, str)
        return (
            direction, self.bytes_per_second, self.burst_bytes, self.packets_per_second, self.burst_packets,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A sandbox's network. `policy`: a `NetworkPolicy`, or a preset's name. `ports`: published ones, as
    `Sandbox.create` takes them. `max_connections`: TCP connections at a time. `egress` and `ingress`: limits
    of what comes out of the sandbox and of what goes in. `proxy`: ``http://`` or ``socks5://`` with
    ``[USER:PASSWORD@]HOST:PORT``, through which all its TCP connections go, but for those to `no_proxy`:
    names with all below them, addresses, networks, ``*`` for everything.

    Raises `ConfigError`, `NetworkPolicyError`, `TypeError`.
    """

    policy: NetworkPolicy | str = "public-only"
    ports: Sequence[PortBinding | str] | Mapping[int, int] = ()
    dns: Dns = Dns()
    max_connections: int | None = None
    egress: RateLimit | None = None
    ingress: RateLimit | None = None
    proxy: str | None = field(default=None, repr=False)
    no_proxy: Sequence[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "policy", policy_of(self.policy))
        object.__setattr__(self, "ports", ports_of(self.ports))
        check_type(self.dns, Dns, "dns")
        if self.max_connections is not None:
            number = check_type(self.max_connections, int, "max_connections")
            if isinstance(number, bool) or not 1 <= number <= _CONNECTIONS:
                raise ConfigError(
                    f"max_connections: {number} is not between 1 and {_CONNECTIONS}", hint="for example: 256"
                )
        for rate, what in ((self.egress, "egress"), (self.ingress, "ingress")):
            if rate is not None:
                check_type(rate, RateLimit, what)
        check_type("" if self.proxy is None else self.proxy, str, "proxy")
        if isinstance(self.no_proxy, str):
            raise TypeError("no_proxy: expected a list of hosts, not str")
        bypass = tuple(check_type(text, str, "an item of no_proxy") for text in self.no_proxy)
        object.__setattr__(self, "no_proxy", bypass)
        if self.proxy is not None or bypass:
            _check_proxy(self.proxy, bypass)

    def config(self) -> NetworkConfig:
        """As the sandbox's record has it."""
        rates = (("egress", self.egress), ("ingress", self.ingress))
        network = NetworkConfig(
            nameservers=tuple(self.dns.nameservers),
            dns=self.dns.mode,
            ports=tuple(
                (port.protocol, port.host, port.host_port, port.guest_port) for port in ports_of(self.ports)
            ),
            max_connections=self.max_connections,
            rates=tuple(rate.plain(direction) for direction, rate in rates if rate is not None),
            proxy=self.proxy,
            no_proxy=",".join(self.no_proxy),
        )
        return policy_of(self.policy).applied_to(network)


def network_config(
    network: Network | NetworkPolicy | str | None,
    ports: Sequence[PortBinding | str] | Mapping[int, int] = (),
) -> NetworkConfig:
    """What `Sandbox.create` is given, with the ports of both. Raises `ConfigError`, `TypeError`."""
    if not isinstance(network, Network):
        network = Network(policy="public-only" if network is None else network)
    if ports:
        network = Network(
            **{name: getattr(network, name) for name in Network.__dataclass_fields__ if name != "ports"},
            ports=(*ports_of(network.ports), *ports_of(ports)),
        )
    return network.config()


def policy_of(given: NetworkPolicy | str | NetworkConfig) -> NetworkPolicy:
    """A policy, from a preset's name too, or from a record. Raises `NetworkPolicyError`, `TypeError`."""
    if isinstance(given, NetworkConfig):
        return NetworkPolicy(given.preset, _rules(given.rules), given.strict)
    if isinstance(given, str):
        return NetworkPolicy(given)
    if isinstance(given, NetworkPolicy):
        return given
    raise TypeError(f"network policy: expected NetworkPolicy or str, not {type(given).__name__}")


def _check_proxy(url: str | None, no_proxy: Sequence[str]) -> None:
    """Raises `ConfigError`, without user and password of the URL."""
    try:
        net.check_proxy("http://proxy.example:3128" if url is None else url, ",".join(no_proxy))
    except UnicodeEncodeError:
        raise ConfigError("proxy: bytes that are not UTF-8", hint="write them as %XX") from None
    except ValueError as error:
        told, _, hint = str(error).partition("; ")
        hint = hint or "for example: http://USER:PASSWORD@proxy.example:3128"
        raise ConfigError(told, hint=hint) from None
