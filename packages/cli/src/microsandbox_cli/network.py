"""The network options of `msb run`, `create` and `net`: from what is written to what a sandbox has.

Imported where one of them is given.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypedDict

from microsandbox import _config
from microsandbox._config import NetworkConfig
from microsandbox.errors import ConfigError
from microsandbox.network import Destination, Dns, Network, NetworkPolicy, RateLimit, Rule
from microsandbox.ports import PortBinding, parse_ports
from microsandbox_net import proxy_from_environment

from microsandbox_cli import report


class PolicyOptions(TypedDict, total=False):
    """Those that make a policy, as they are written; what is not given is not there."""

    network_policy: str
    net_rule: Sequence[str]
    net_names: str
    allow_domain: Sequence[str]
    deny_domain: Sequence[str]
    deny_domain_suffix: Sequence[str]
    allow_cidr: Sequence[str]


class ExplainOptions(PolicyOptions, total=False):
    """And those that say by which way it goes."""

    upstream_proxy: str
    no_proxy: str


class NetworkOptions(ExplainOptions, total=False):
    """All of them."""

    port: Sequence[str]
    dns_nameserver: Sequence[str]
    dns_mode: str
    max_connections: int
    net_rate: Sequence[str]


def network_of(options: NetworkOptions) -> NetworkConfig:
    """The network that is asked for; remarks on what is asked for and may not be what is meant.

    Raises `ConfigError`, `NetworkPolicyError`.
    """
    policy = policy_of(options)
    with _named("--port", "port"):
        ports = parse_ports(options.get("port", ()))
    with _named("--dns-nameserver", "nameserver"):
        dns = Dns(tuple(options.get("dns_nameserver", ())), str(options.get("dns_mode", "resolve")))
    rates = _rates(options.get("net_rate", ()))
    proxy, bypass = _proxy(options.get("upstream_proxy"), options.get("no_proxy"), os.environ)
    with _named("--max-connections", "max_connections"):
        network = Network(
            policy=policy,
            ports=ports,
            dns=dns,
            max_connections=options.get("max_connections"),
            egress=rates.get("egress"),
            ingress=rates.get("ingress"),
            proxy=proxy,
            no_proxy=bypass,
        )
    _remark(policy, ports, options)
    return network.config()


def explained_network(options: ExplainOptions) -> NetworkConfig:
    """The network that is asked about. Raises what `network_of` raises."""
    proxy, bypass = _proxy(options.get("upstream_proxy"), options.get("no_proxy"), os.environ)
    return Network(policy=policy_of(options), proxy=proxy, no_proxy=bypass).config()


def policy_of(options: PolicyOptions) -> NetworkPolicy:
    """The policy. Names that are denied by options of their own come before the rules, what is allowed by
    such options comes after them. Raises `NetworkPolicyError`."""
    rules = (
        *_rules("--deny-domain", options.get("deny_domain", ()), lambda text: Rule.deny(_name(text))),
        *_rules(
            "--deny-domain-suffix",
            options.get("deny_domain_suffix", ()),
            lambda text: Rule.deny(Destination.domain_suffix(text.removeprefix("."))),
        ),
        *_rules("--net-rule", options.get("net_rule", ()), Rule),
        *_rules("--allow-domain", options.get("allow_domain", ()), lambda text: Rule.allow(_name(text))),
        *_rules(
            "--allow-cidr", options.get("allow_cidr", ()), lambda text: Rule.allow(Destination.cidr(text))
        ),
    )
    strict = options.get("net_names", "strict") == "strict"
    return NetworkPolicy(str(options.get("network_policy", "public-only")), rules, strict)


@contextmanager
def _named(option: str, parameter: str = "") -> Iterator[None]:
    """Let a refusal begin with the option that it is about, in place of Python's `parameter`."""
    try:
        yield
    except ConfigError as error:
        told = str(error).removeprefix(f"{parameter}: ")
        raise type(error)(f"{option}: {told}", hint=error.hint, code=error.code) from error


def _rules(option: str, texts: Sequence[str], make: Callable[[str], Rule]) -> list[Rule]:
    with _named(option):
        return [make(text) for text in texts]


def _name(text: str) -> Destination:
    """`example.com`, and as in rules `*.example.com` and `.example.com`; no address and no group."""
    return Destination(text) if text.startswith((".", "*.")) else Destination.domain(text)


def _rates(texts: Sequence[str]) -> dict[str, RateLimit]:
    """The limits of ``DIRECTION:[RATE][,burst=SIZE][,packets=N][,packet-burst=N]``. Raises `ConfigError`."""
    hint = "for example: egress:10M, ingress:1M,burst=4M, egress:packets=1000"
    found: dict[str, RateLimit] = {}
    for text in texts:
        direction, _, limits = text.partition(":")
        if direction not in ("egress", "ingress") or not limits:
            raise ConfigError(f"--net-rate: {text!r:.80} is not a rate", hint=hint)
        if direction in found:
            raise ConfigError(f"--net-rate: {direction} is given twice", hint="give each direction once")
        values: dict[str, int] = {}
        for item in limits.split(","):
            key, equals, value = item.partition("=")
            if not equals:
                key, value = "rate", item.removesuffix("/s")
            if key not in ("rate", "burst", "packets", "packet-burst") or key in values:
                raise ConfigError(f"--net-rate: {item!r:.80} is not a limit, or is there twice", hint=hint)
            if key in ("rate", "burst"):
                values[key] = _config.parse_size(value, "--net-rate")
            elif value.isascii() and value.isdigit() and len(value) < 16:
                values[key] = int(value)
            else:
                raise ConfigError(f"--net-rate: {value!r:.80} is not a number of packets", hint=hint)
        for burst, rate in (("burst", "RATE"), ("packet-burst", "packets")):
            if burst in values and rate.lower() not in values:
                raise ConfigError(f"--net-rate: {text!r:.80} has {burst} without {rate}", hint=hint)
        with _named("--net-rate", "rate"):
            found[direction] = RateLimit(
                values.get("rate"), values.get("burst"), values.get("packets"), values.get("packet-burst")
            )
    return found


def _proxy(
    given: str | None, bypass: str | None, environ: Mapping[str, str]
) -> tuple[str | None, tuple[str, ...]]:
    """The proxy's URL, and who is reached without it; `env` is what the variables of the host say."""
    if given is None:
        if bypass is not None:
            raise ConfigError(
                "--no-proxy: there is no proxy to go without", hint="give the proxy: --upstream-proxy URL"
            )
        return None, ()
    option = "--upstream-proxy"
    if given == "env":
        option = "--upstream-proxy env"
        given, past = proxy_from_environment(environ)
        if given is None:
            # Not HTTP_PROXY, which is for requests in plain HTTP.
            raise ConfigError(
                f"{option}: none of https_proxy, HTTPS_PROXY, all_proxy, ALL_PROXY is set",
                hint="set one, or give the URL",
            )
        bypass = past if bypass is None else bypass
    hosts = tuple((bypass or "").replace(",", " ").split())
    with _named(option, "proxy"):
        Network(proxy=given, no_proxy=hosts)
    return given, hosts


def _remark(policy: NetworkPolicy, ports: Sequence[PortBinding], options: NetworkOptions) -> None:
    for port in ports:
        if port.is_public:
            report.note(
                f"note: port {port.host_port} is published on every address of this machine ({port.host}): "
                "other machines reach it too"
            )
    admits = any(rule.text.startswith("allow:ingress@") for rule in policy.rules)
    if ports and policy.preset == "none" and not admits:
        report.note(
            "note: the policy none lets nobody reach the published ports; to let them: "
            "--net-rule allow:ingress@any"
        )
    if options.get("allow_domain") and policy.preset == "public-only":
        report.note(
            "note: the policy public-only allows all public names anyway; to allow these only: "
            "--network-policy none"
        )
