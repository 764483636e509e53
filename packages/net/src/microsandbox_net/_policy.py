"""Network policies: who may be reached from a sandbox, and who may reach it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from typing import TypeVar

from microsandbox_net import _native
from microsandbox_net._native import PolicyError

Address = str | IPv4Address | IPv6Address
_Member = TypeVar("_Member", bound=StrEnum)


class AddressClass(StrEnum):
    """What kind of address an address is, by the special-purpose registries of IANA."""

    PUBLIC = "public"
    PRIVATE = "private"
    LOOPBACK = "loopback"
    LINK_LOCAL = "link-local"
    METADATA = "metadata"
    MULTICAST = "multicast"
    UNSPECIFIED = "unspecified"
    RESERVED = "reserved"


class Preset(StrEnum):
    """What stands below the rules of a policy."""

    NONE = "none"
    """Nothing passes, in neither direction."""
    PUBLIC_ONLY = "public-only"
    """The public internet."""
    NONLOCAL = "nonlocal"
    """The public internet and private networks; never loopback, link-local, metadata, the host."""
    ALLOW_ALL = "allow-all"
    """Everything but metadata services."""


class Names(StrEnum):
    """What a rule for a name asks of a flow whose client states no name."""

    STRICT = "strict"
    """It is refused."""
    PIN_ONLY = "pin-only"
    """That the sandbox resolved the name to the address."""


class Direction(StrEnum):
    EGRESS = "egress"
    """From the sandbox outwards."""
    INGRESS = "ingress"
    """To a published port of the sandbox."""


class Protocol(StrEnum):
    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"


class Action(StrEnum):
    ALLOW = "allow"
    DENY = "deny"
    ALLOW_IF_NAMED = "allow-if-named"
    """The flow may open, but nothing of it passes until its client stated a name that is allowed."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was decided, and the rule in words."""

    action: Action
    rule: str

    @property
    def allowed(self) -> bool:
        return self.action is Action.ALLOW


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a rule points. `str(destination)` is how a rule has it in text (IPv6 in brackets there)."""

    text: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", _native.destination("", _text("destination", self.text)))

    def __str__(self) -> str:
        return self.text

    @classmethod
    def any(cls) -> Destination:
        """Everything but metadata services."""
        return cls("any")

    @classmethod
    def ip(cls, address: Address) -> Destination:
        """That address: the one way to allow a metadata service."""
        return cls(_native.destination("ip", _address("address", address)))

    @classmethod
    def cidr(cls, network: str) -> Destination:
        """A network such as `10.0.0.0/8`, without bits set after its prefix."""
        return cls(_native.destination("cidr", _text("network", network)))

    @classmethod
    def domain(cls, name: str) -> Destination:
        """That name and no other."""
        return cls(_native.destination("domain", _text("name", name)))

    @classmethod
    def domain_suffix(cls, name: str) -> Destination:
        """That name and every name below it. A public suffix such as `com` or `github.io` is refused."""
        return cls(_native.destination("domain_suffix", _text("name", name)))

    @classmethod
    def group(cls, name: str) -> Destination:
        """One of public, private, loopback, link-local, metadata, multicast, host."""
        return cls(_native.destination("group", _text("name", name)))


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; made by `Rule.parse`, `Rule.allow` and `Rule.deny`.

    `str(rule)` is its text: `ACTION[:DIRECTION]@DESTINATION[:PROTOCOL[:PORTS]]`.
    """

    action: Action
    destination: Destination
    protocol: Protocol | None = None
    """None: any."""
    port: str | None = None
    """Ports and ranges, `443` or `80,8000-8999`. None: any."""
    direction: Direction = Direction.EGRESS
    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _native.check_rule(self._written())

    def __str__(self) -> str:
        return _native.check_rule(self._written())

    @classmethod
    def parse(cls, text: str) -> Rule:
        """`allow@example.com:tcp:443`, `deny@10.0.0.0/8`, `allow:ingress@private:tcp:22`.

        Raises:
            PolicyError: what is wrong in the text, and in `hint` what to write.
        """
        action, direction, destination, protocol, ports = _native.parse_rule(_text("rule", text))
        return cls(
            action=Action(action),
            destination=Destination(destination),
            protocol=Protocol(protocol) if protocol else None,
            port=ports,
            direction=Direction(direction),
        )

    @classmethod
    def allow(
        cls,
        destination: Destination | str = "any",
        *,
        protocol: Protocol | str | None = None,
        port: int | str | None = None,
        direction: Direction | str = Direction.EGRESS,
        methods: Iterable[str] = (),
        paths: Iterable[str] = (),
    ) -> Rule:
        """A rule that lets pass what it matches.

        `methods` and `paths` are of HTTP. A policy refuses a rule that has any, as long as the traffic
        of its host is not intercepted.
        """
        return cls._make(Action.ALLOW, destination, protocol, port, direction, methods, paths)

    @classmethod
    def deny(
        cls,
        destination: Destination | str = "any",
        *,
        protocol: Protocol | str | None = None,
        port: int | str | None = None,
        direction: Direction | str = Direction.EGRESS,
        methods: Iterable[str] = (),
        paths: Iterable[str] = (),
    ) -> Rule:
        """A rule that stops what it matches; otherwise like `allow`."""
        return cls._make(Action.DENY, destination, protocol, port, direction, methods, paths)

    @classmethod
    def _make(
        cls,
        action: Action,
        destination: Destination | str,
        protocol: Protocol | str | None,
        port: int | str | None,
        direction: Direction | str,
        methods: Iterable[str],
        paths: Iterable[str],
    ) -> Rule:
        for name, given in (("methods", methods), ("paths", paths)):
            if isinstance(given, str):
                raise TypeError(f"{name} is a list of texts, not one text")
        return cls(
            action=action,
            destination=destination if isinstance(destination, Destination) else Destination(destination),
            protocol=None if protocol is None else _member(Protocol, "protocol", protocol),
            port=None if port is None else str(port),
            direction=_member(Direction, "direction", direction),
            methods=tuple(methods),
            paths=tuple(paths),
        )

    def _written(self) -> tuple[str, str, str, str | None, str | None, Sequence[str], Sequence[str]]:
        return (
            self.action.value,
            self.direction.value,
            self.destination.text,
            self.protocol.value if self.protocol else None,
            self.port,
            self.methods,
            self.paths,
        )


@dataclass(frozen=True, slots=True)
class Policy:
    """Rules in their order, then those of the preset, then: deny. The first that matches decides.

    Raises:
        PolicyError: too many rules, or one that cannot be kept (HTTP methods where nothing is intercepted).
    """

    preset: Preset = Preset.PUBLIC_ONLY
    rules: tuple[Rule, ...] = ()
    names: Names = Names.STRICT
    host: tuple[str, ...] = ()
    """Addresses that stand for the host in the sandbox: they are of the group `host` and no other."""
    _compiled: _native.Policy = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        preset = _member(Preset, "network policy", self.preset)
        names = _member(Names, "names", self.names)
        rules = tuple(self.rules)
        host = tuple(_address("host", address) for address in self.host)
        compiled = _native.Policy(preset.value, [rule._written() for rule in rules], names.value, host)
        values = {"preset": preset, "names": names, "rules": rules, "host": host, "_compiled": compiled}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple[type[Policy], tuple[object, ...]]:
        return (type(self), (self.preset, self.rules, self.names, self.host))

    @classmethod
    def none(cls, *rules: Rule | str) -> Policy:
        """Nothing but what `rules` allow."""
        return cls.parse(Preset.NONE, rules)

    @classmethod
    def public_only(cls, *rules: Rule | str) -> Policy:
        """The public internet, and what `rules` say."""
        return cls.parse(Preset.PUBLIC_ONLY, rules)

    @classmethod
    def nonlocal_(cls, *rules: Rule | str) -> Policy:
        """The public internet and private networks, and what `rules` say."""
        return cls.parse(Preset.NONLOCAL, rules)

    @classmethod
    def allow_all(cls, *rules: Rule | str) -> Policy:
        """Everything but metadata services, and what `rules` say."""
        return cls.parse(Preset.ALLOW_ALL, rules)

    @classmethod
    def parse(
        cls,
        preset: Preset | str = Preset.PUBLIC_ONLY,
        rules: Iterable[Rule | str] = (),
        *,
        names: Names | str = Names.STRICT,
    ) -> Policy:
        """A policy from texts, as the command line has them."""
        if isinstance(rules, str):
            raise TypeError("rules is a list of rules, not one text")
        parsed = tuple(rule if isinstance(rule, Rule) else Rule.parse(rule) for rule in rules)
        return cls(
            preset=_member(Preset, "network policy", preset),
            rules=parsed,
            names=_member(Names, "names", names),
        )

    def to_dict(self) -> dict[str, object]:
        """What `from_dict` takes: texts only, and only what is not the default. `host` is not part of it."""
        made: dict[str, object] = {"preset": self.preset.value}
        if self.rules:
            made["rules"] = [str(rule) for rule in self.rules]
        if self.names is not Names.STRICT:
            made["names"] = self.names.value
        return made

    @classmethod
    def from_dict(cls, given: Mapping[str, object]) -> Policy:
        """The policy of `to_dict`, or one that a person wrote in a file.

        Raises:
            PolicyError: a key that is not known, or a value that is none of its kind.
        """
        unknown = sorted(str(key) for key in given if key not in ("preset", "rules", "names"))
        if unknown:
            raise _error(f"network policy: '{unknown[0]}' is not known", "the keys are preset, rules, names")
        rules = given.get("rules", [])
        texts = [rule for rule in rules if isinstance(rule, str)] if isinstance(rules, list | tuple) else []
        if not isinstance(rules, list | tuple) or len(texts) != len(rules):
            raise _error("network policy: rules is no list of texts", "write rules: [allow@example.com]")
        preset, names = given.get("preset", Preset.PUBLIC_ONLY), given.get("names", Names.STRICT)
        return cls.parse(
            _member(Preset, "network policy", preset), texts, names=_member(Names, "names", names)
        )

    def decide(
        self,
        address: Address,
        port: int | None = None,
        *,
        protocol: Protocol | str = Protocol.TCP,
        direction: Direction | str = Direction.EGRESS,
        name: str | None = None,
        pins: Mapping[str, Iterable[Address]] | None = None,
    ) -> Verdict:
        """Whether a flow to `address` (egress) or from it (ingress) passes.

        `name` is what the client states (SNI, Host), `pins` the addresses that the sandbox resolved names to.
        """
        flat = [
            (pinned, _address("pins", each))
            for pinned, addresses in (pins or {}).items()
            for each in addresses
        ]
        flow = (
            _member(Direction, "direction", direction).value,
            _member(Protocol, "protocol", protocol).value,
            _address("address", address),
            _port(port),
            name,
        )
        action, rule = self._compiled.decide(flow, flat)
        return Verdict(Action(action), rule)

    def decide_name(self, name: str) -> Verdict:
        """Whether the sandbox may learn about `name` at all."""
        action, rule = self._compiled.decide_name(_text("name", name))
        return Verdict(Action(action), rule)

    def decide_answer(self, name: str, address: Address) -> Verdict:
        """Whether the sandbox may be told that `name` is at `address`."""
        action, rule = self._compiled.decide_answer(_text("name", name), _address("address", address))
        return Verdict(Action(action), rule)

    def explain(self, target: str, *, protocol: Protocol | str = Protocol.TCP) -> Verdict:
        """The verdict for `HOST:PORT` (IPv6 in brackets), with nothing resolved and nothing sent.

        For a name: for a flow that states it and goes to a public address it was resolved to, one that
        no rule for addresses names.
        """
        action, rule = self._compiled.explain(
            _text("target", target), _member(Protocol, "protocol", protocol).value
        )
        return Verdict(Action(action), rule)


def classify(address: Address) -> AddressClass:
    """The class of `address`; an IPv6 address that carries an IPv4 address is at best what that one is.

    Raises:
        PolicyError: it is no address.
    """
    return AddressClass(_native.classify(_address("address", address)))


def _error(message: str, hint: str) -> PolicyError:
    error = PolicyError(message)
    error.hint = hint
    return error


def _member(kind: type[_Member], name: str, given: object) -> _Member:
    if isinstance(given, str) and given in tuple(kind):
        return kind(given)
    raise _error(f"{name} {given!r:.80} is not known", f"write one of {', '.join(kind)}")


def _text(name: str, given: object) -> str:
    if not isinstance(given, str):
        raise TypeError(f"{name} is a text, not {type(given).__name__}")
    return given


def _address(name: str, given: object) -> str:
    if not isinstance(given, str | IPv4Address | IPv6Address):
        raise TypeError(f"{name} is an address or its text, not {type(given).__name__}")
    return str(given)


def _port(given: object) -> int | None:
    if given is None:
        return None
    if not isinstance(given, int) or isinstance(given, bool):
        raise TypeError(f"port is a number, not {type(given).__name__}")
    if not 1 <= given <= 65535:
        raise _error(f"port {given} does not exist", "write a number from 1 to 65535")
    return given
