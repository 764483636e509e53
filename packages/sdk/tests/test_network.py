"""What a network can be asked to be, and how refusals read."""

from typing import Any

import pytest
from microsandbox import (
    Action,
    ConfigError,
    Destination,
    Dns,
    Network,
    NetworkPolicy,
    NetworkPolicyError,
    PortBinding,
    RateLimit,
    Rule,
    SandboxPool,
)
from microsandbox._config import NetworkConfig
from microsandbox.network import network_config, policy_of


def test_the_default_is_the_default_of_a_record() -> None:
    assert network_config(None) == NetworkConfig() == Network().config()


def test_all_of_it_reaches_the_record() -> None:
    network = Network(
        policy=NetworkPolicy.none(
            Rule.allow(Destination.domain_suffix("example.com"), protocol="tcp", port=443),
            "deny:ingress@10.0.0.0/8",
            strict=False,
        ),
        ports=["8080:80"],
        dns=Dns(nameservers=["192.0.2.53", "2001:DB8::53"], mode="synthetic"),
        max_connections=100,
        egress=RateLimit(bytes_per_second="10M", burst_bytes="1M"),
        ingress=RateLimit(packets_per_second=1000),
        proxy="http://me:hush@proxy.example:3128",
        no_proxy=["localhost", ".example.com"],
    )
    assert network_config(network, {5353: 53}) == NetworkConfig(
        preset="none",
        rules=("allow@.example.com:tcp:443", "deny:ingress@10.0.0.0/8"),
        strict=False,
        nameservers=("192.0.2.53", "2001:db8::53"),
        dns="synthetic",
        ports=(("tcp", "127.0.0.1", 8080, 80), ("tcp", "127.0.0.1", 5353, 53)),
        max_connections=100,
        rates=(("egress", 10 << 20, 1 << 20, None, None), ("ingress", None, None, 1000, None)),
        proxy="http://me:hush@proxy.example:3128",
        no_proxy="localhost,.example.com",
    )
    assert "hush" not in repr(network)


@pytest.mark.parametrize(
    ("policy", "preset"),
    [
        (NetworkPolicy.none(), "none"),
        (NetworkPolicy.public_only(), "public-only"),
        (NetworkPolicy.nonlocal_(), "nonlocal"),
        (NetworkPolicy.allow_all(), "allow-all"),
        ("nonlocal", "nonlocal"),
    ],
)
def test_the_presets(policy: NetworkPolicy | str, preset: str) -> None:
    config = network_config(policy)
    assert config == NetworkConfig(preset=preset)
    assert policy_of(config) == policy_of(policy)


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (Rule.allow(), "allow@any"),
        (Rule.deny(Destination.ip("2001:db8::1"), protocol="udp"), "deny@[2001:db8::1]:udp"),
        (Rule.allow(Destination.cidr("10.0.0.0/8"), protocol="tcp", port="80,8000-8999"), None),
        (Rule.allow(Destination.domain("Example.com")), "allow@example.com"),
        (Rule.allow("*.example.com"), "allow@*.example.com"),
        (Rule.deny(Destination.group("host"), direction="ingress"), "deny:ingress@host"),
        (Rule.deny(Destination.any()), "deny@any"),
    ],
)
def test_rules_are_text_and_back(rule: Rule, text: str | None) -> None:
    assert str(rule) == (text or "allow@10.0.0.0/8:tcp:80,8000-8999")
    assert Rule(str(rule)) == rule


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Destination("10.0.0.1/8"),
        lambda: Destination.ip("1.2.3"),
        lambda: Destination.cidr("10.0.0.0"),
        lambda: Destination.domain("-.example"),
        lambda: Destination.domain_suffix("github.io"),
        lambda: Destination.group("nobody"),
        lambda: Rule("allow example.com"),
        lambda: Rule.allow("*.com"),
        lambda: Rule.allow(port=0),
        lambda: Rule.allow(protocol="sctp"),
        lambda: Rule.deny(direction="sideways"),
        lambda: NetworkPolicy("everything"),
        lambda: NetworkPolicy.none("allow@"),
        lambda: NetworkPolicy.none().explain("example.com"),
        lambda: network_config("public"),
    ],
)
def test_what_is_no_policy_is_refused_in_one_line(wrong: Any) -> None:
    with pytest.raises(NetworkPolicyError) as refusal:
        wrong()
    assert refusal.value.code == "network_policy"
    assert refusal.value.hint
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("part", [{"methods": ["GET"]}, {"paths": ["/v1/*"]}])
def test_rules_for_http_are_refused(part: dict[str, list[str]]) -> None:
    with pytest.raises(NetworkPolicyError, match="not intercepted"):
        Rule.allow("example.com", **part)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (lambda: Dns(nameservers=["dns.example"]), "nameserver: 'dns.example'"),
        (lambda: Dns(mode="magic"), "dns mode: 'magic'"),
        (lambda: Network(max_connections=0), "max_connections: 0"),
        (lambda: RateLimit(), "limits nothing"),
        (lambda: RateLimit(burst_bytes=1), "burst_bytes is given without bytes_per_second"),
        (lambda: RateLimit(packets_per_second=1, burst_bytes="1K"), "burst_bytes is given without"),
        (lambda: RateLimit(bytes_per_second=0), "bytes_per_second: 0"),
        (lambda: RateLimit(bytes_per_second="fast"), "'fast' is not a size"),
        (lambda: Network(no_proxy=["localhost", "10.0.0.0/40"]), 'no_proxy "10.0.0.0/40" is no name'),
        (lambda: Network(proxy="http://p:1", no_proxy=["p:1"]), 'no_proxy "p:1" is no name'),
        (lambda: Network(proxy="socks5://me@p:1"), "user and password of SOCKS5"),
        (lambda: Network(ports=["80", "80"]), "twice"),
        (lambda: network_config(Network(ports=["80"]), ["80:81"]), "twice"),
    ],
)
def test_what_cannot_be_is_refused_by_name(wrong: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named) as refusal:
        wrong()
    assert refusal.value.hint


@pytest.mark.parametrize(
    "proxy",
    [
        "http://proxy.example:3128",
        "http://me:hush@10.0.0.1:3128/",
        "socks5://[2001:db8::1]:1080",
        "socks5h://p:1",
    ],
)
def test_proxies(proxy: str) -> None:
    assert Network(proxy=proxy).config().proxy == proxy


@pytest.mark.parametrize(
    "proxy",
    [
        "", "proxy:3128", "https://hush@p:1", "socks4://hush:1", "http://hush", "http://hush:0",
        "http://hush:70000", "http://p:1/hush", "http://p:1?hush", "http://[hush:1", "http://p :1/hush",
        "http://hush\n:80", "socks5i://hush:1", "http://:1", "http://me:p@hush", "me:hush://p", "http://p:1%",
        "http://hush%@p:1", "http://hush\udcff@p:1",
    ],
)  # fmt: skip
def test_a_proxy_that_is_none_is_refused_without_its_password(proxy: str) -> None:
    with pytest.raises(ConfigError, match=r"\Aproxy(: | at )") as refusal:
        Network(proxy=proxy)
    assert "hush" not in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Network(policy=80),  # type: ignore[arg-type]
        lambda: Network(dns="8.8.8.8"),  # type: ignore[arg-type]
        lambda: Network(ports="80:80"),
        lambda: Network(no_proxy="localhost"),
        lambda: Network(egress=5),  # type: ignore[arg-type]
        lambda: Network(max_connections="9"),  # type: ignore[arg-type]
        lambda: Dns(nameservers="192.0.2.53"),
        lambda: NetworkPolicy("none", "allow@any"),  # type: ignore[arg-type]
        lambda: NetworkPolicy("none", (), 1),  # type: ignore[arg-type]
        lambda: network_config(5),  # type: ignore[arg-type]
    ],
)
def test_other_types_are_type_errors(wrong: Any) -> None:
    with pytest.raises(TypeError):
        wrong()


def test_a_policy_explains_itself() -> None:
    policy = NetworkPolicy.none("allow@*.github.com:tcp:443", "allow@10.0.0.0/8:tcp:5432")
    verdict = policy.explain("api.github.com:443")
    assert (verdict.action, verdict.rule) == (Action.ALLOW, "rule 1: allow@*.github.com:tcp:443")
    assert policy.explain("10.1.2.3:22").action is Action.DENY
    assert NetworkPolicy.nonlocal_().explain("192.0.2.9:80", host=["192.0.2.9"]).action is Action.DENY


def test_a_policy_takes_the_place_of_another() -> None:
    network = NetworkConfig(preset="allow-all", rules=("deny@any",), nameservers=("192.0.2.53",))
    changed = NetworkPolicy.none(strict=False).applied_to(network)
    assert changed == NetworkConfig(preset="none", strict=False, nameservers=("192.0.2.53",))


def test_the_sandboxes_of_a_pool_share_no_port() -> None:
    SandboxPool(image="busybox", size=1, network="none")
    with pytest.raises(ConfigError, match="cannot all have the same ports"):
        SandboxPool(image="busybox", size=1, network=Network(ports=[PortBinding(8080, 80)]))
