"""The network options: what they mean together, and how refusals read."""

import json
import re
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from microsandbox import AuditRecord, ConfigError, NetworkPolicyError
from microsandbox._config import NetworkConfig
from microsandbox_cli import report
from microsandbox_cli.net import explain, line, plain
from microsandbox_cli.network import NetworkOptions, _proxy, network_of


def rules(**options: Any) -> tuple[str, ...]:
    return network_of(cast(NetworkOptions, options)).rules


@pytest.fixture
def remarks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(report, "note", found.append)
    return found


def test_denials_come_first_and_what_is_allowed_last() -> None:
    assert rules(
        allow_domain=["example.com", "*.example.org", ".example.net"],
        allow_cidr=["10.0.0.0/8"],
        net_rule=["deny@10.1.0.0/16", "allow@host:tcp:80"],
        deny_domain=["a.example.com", ".b.example.com"],
        deny_domain_suffix=[".ads.example", "spam.example"],
    ) == (
        "deny@a.example.com",
        "deny@.b.example.com",
        "deny@.ads.example",
        "deny@.spam.example",
        "deny@10.1.0.0/16",
        "allow@host:tcp:80",
        "allow@example.com",
        "allow@*.example.org",
        "allow@.example.net",
        "allow@10.0.0.0/8",
    )


def test_the_rest_is_the_networks() -> None:
    assert network_of(
        {
            "network_policy": "nonlocal",
            "net_names": "pin-only",
            "port": ["8080:80", "5353:53/udp"],
            "dns_nameserver": ["192.0.2.53"],
            "dns_mode": "synthetic",
            "max_connections": 10,
            "net_rate": ["egress:10M,burst=1M,packets=1000,packet-burst=50", "ingress:1MB/s"],
            "upstream_proxy": "http://proxy.example:3128",
            "no_proxy": "localhost, .example.com,",
        }
    ) == NetworkConfig(
        preset="nonlocal",
        strict=False,
        nameservers=("192.0.2.53",),
        dns="synthetic",
        ports=(("tcp", "127.0.0.1", 8080, 80), ("udp", "127.0.0.1", 5353, 53)),
        max_connections=10,
        rates=(("egress", 10 << 20, 1 << 20, 1000, 50), ("ingress", 1 << 20, None, None, None)),
        proxy="http://proxy.example:3128",
        no_proxy="localhost,.example.com",
    )


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("allow_domain", ["10.0.0.1"], "--allow-domain: "),
        ("allow_domain", ["any"], "--allow-domain: "),
        ("allow_domain", ["*.github.io"], "--allow-domain: "),
        ("deny_domain", [""], "--deny-domain: "),
        ("deny_domain_suffix", [".com"], "--deny-domain-suffix: "),
        ("allow_cidr", ["10.0.0.1/8"], "--allow-cidr: "),
        ("net_rule", ["allow"], "--net-rule: "),
        ("net_rule", ["allow@\udcff"], "--net-rule: .*not UTF-8"),
        ("network_policy", "everything", "network policy 'everything'"),
    ],
)
def test_what_is_no_policy_is_refused_with_its_option(option: Any, value: Any, named: str) -> None:
    with pytest.raises(NetworkPolicyError, match=named) as refusal:
        network_of(cast(NetworkOptions, {option: value}))
    assert refusal.value.hint
    assert report._code_of(refusal.value) == report.EXIT_USAGE


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"port": ["80:99999"]}, "--port: 99999 is not a port"),
        ({"port": ["80", "80"]}, "--port: 127.0.0.1:80/tcp is published twice"),
        ({"dns_nameserver": ["dns.example"]}, "--dns-nameserver: 'dns.example' is not an IP address"),
        ({"max_connections": 0}, "--max-connections: 0 is not between 1 and 1048576"),
        ({"net_rate": ["egress:burst=1M"]}, "--net-rate: 'egress:burst=1M' has burst without RATE"),
        ({"net_rate": ["egress:1M,packet-burst=5"]}, "--net-rate: 'egress:1M,packet-burst=5' has packet-"),
        ({"net_rate": ["egress:0"]}, "--net-rate: bytes_per_second: 0 is not between 1 and 1T"),
        ({"upstream_proxy": "ftp://p:1"}, '--upstream-proxy: "ftp" is not supported'),
        ({"upstream_proxy": "https://me:hush@p:1"}, '--upstream-proxy: "https" is not supported'),
        ({"upstream_proxy": "env"}, "--upstream-proxy env: write a host and a port, as "),
        (
            {"upstream_proxy": "http://p:1", "no_proxy": "localhost:80"},
            '--upstream-proxy: no_proxy "localhost:80" is no name, address or network',
        ),
    ],
)
def test_a_refusal_begins_with_the_option(
    monkeypatch: pytest.MonkeyPatch, options: NetworkOptions, told: str
) -> None:
    monkeypatch.setenv("https_proxy", "me:hush@proxy.example")
    with pytest.raises(ConfigError) as refusal:
        network_of(options)
    assert str(refusal.value).startswith(told)
    assert refusal.value.hint
    assert "hush" not in f"{refusal.value} {refusal.value.hint}"
    assert "\n" not in str(refusal.value)
    assert report._code_of(refusal.value) == report.EXIT_USAGE


@pytest.mark.parametrize(
    "rate",
    [
        "", "10M", "egress", "egress:", "out:10M", "egress:fast", "egress:1M,2M", "egress:burst=1M",
        "egress:0", "egress:packets=1.5", "egress:packets=-1", "egress:1M,jitter=5", "egress:1M,",
        "egress:packets=٣",
    ],
)  # fmt: skip
def test_what_is_no_rate_is_refused(rate: str) -> None:
    with pytest.raises(ConfigError, match="rate: ") as refusal:
        network_of({"net_rate": [rate]})
    assert refusal.value.hint


def test_a_direction_has_one_rate() -> None:
    with pytest.raises(ConfigError, match="egress is given twice"):
        network_of({"net_rate": ["egress:1M", "egress:2M"]})


def test_the_proxy_of_the_environment_is_taken_when_asked_for() -> None:
    environ = {"HTTP_PROXY": "http://a:1", "all_proxy": "socks5://b:2", "NO_PROXY": "localhost,.example *"}
    assert _proxy(None, None, environ) == (None, ())
    assert _proxy("env", None, environ) == ("socks5://b:2", ("localhost", ".example", "*"))
    assert _proxy("env", "x", environ | {"HTTPS_PROXY": "c:3"}) == ("http://c:3", ("x",))
    assert _proxy("http://d:4", None, environ) == ("http://d:4", ())
    with pytest.raises(ConfigError, match="none of https_proxy"):
        _proxy("env", None, {"HTTPS_PROXY": "", "HTTP_PROXY": "http://a:1"})
    with pytest.raises(ConfigError, match="--no-proxy"):
        _proxy(None, "localhost", environ)


def test_what_may_not_be_meant_is_remarked(remarks: list[str]) -> None:
    network_of({"port": ["0.0.0.0:80:80", "8080:80"]})
    assert ["port 80 is published on every address" in remark for remark in remarks] == [True]
    remarks.clear()
    network_of({"port": ["80:80"], "network_policy": "none"})
    assert "lets nobody reach the published ports" in remarks[0]
    remarks.clear()
    network_of({"allow_domain": ["example.com"]})
    assert "allows all public names anyway" in remarks[0]
    remarks.clear()
    network_of({"port": ["80"], "network_policy": "none", "net_rule": ["allow:ingress@any"]})
    network_of({"allow_domain": ["example.com"], "network_policy": "none"})
    assert remarks == []


def test_a_policy_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    explain(["10.1.2.3:22"], protocol="tcp", as_json=False, options={"network_policy": "none"})
    assert capsys.readouterr().out == "deny 10.1.2.3:22 tcp: policy none: no rule allows it\n"
    explain(["example.com:443"], protocol="tcp", as_json=True, options={})
    assert json.loads(capsys.readouterr().out) == {
        "target": "example.com:443", "protocol": "tcp", "action": "allow",
        "rule": "policy public-only: allow@public", "proxy": None,
    }  # fmt: skip
    explain(["192.0.2.1"], protocol="icmp", as_json=False, options={"net_rule": ["allow@192.0.2.1:icmp"]})
    assert capsys.readouterr().out == "allow 192.0.2.1 icmp: rule 1: allow@192.0.2.1:icmp\n"


@pytest.mark.parametrize(
    ("target", "protocol", "told"),
    [
        ("example.com:443", "tcp", "allow .*, through http://proxy.example:3128\n"),
        ("git.corp.example:443", "tcp", "allow [^,]*\n"),
        ("8.8.8.8:53000", "udp", "deny .*: built-in: the proxy carries TCP only\n"),
        ("9.9.9.9:53000", "udp", "allow [^,]*\n"),
        ("proxy.example:3128", "tcp", "deny .*: built-in: the proxy is not for the sandbox to reach\n"),
        ("localhost:80", "tcp", "deny [^,]*: policy public-only: no rule allows it\n"),
        ("10.1.2.3:80", "tcp", "deny [^,]*: policy public-only: no rule allows it\n"),
    ],
)
@pytest.mark.parametrize("way", ["option", "env"])
def test_the_way_through_a_proxy_is_told(
    target: str,
    protocol: str,
    told: str,
    way: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, past = "http://me:secret@proxy.example:3128", ".corp.example,9.9.9.9"
    options: Any = {"upstream_proxy": url, "no_proxy": past}
    if way == "env":
        monkeypatch.setenv("https_proxy", url)
        monkeypatch.setenv("no_proxy", past)
        options = {"upstream_proxy": "env"}
    explain([target], protocol=protocol, as_json=False, options=options)
    assert re.fullmatch(told, capsys.readouterr().out)
    explain([target], protocol=protocol, as_json=True, options=options)
    through = "http://proxy.example:3128" if "through" in told else None
    assert json.loads(capsys.readouterr().out)["proxy"] == through


def test_an_address_that_only_names_open_is_said_to_be_one(capsys: pytest.CaptureFixture[str]) -> None:
    options = {"network_policy": "none", "allow_domain": ["example.com"]}
    explain(["8.8.8.8:443"], protocol="tcp", as_json=False, options=options)  # type: ignore[arg-type]
    assert capsys.readouterr().out.startswith("deny 8.8.8.8:443 tcp: ")


@pytest.mark.parametrize(
    ("words", "options", "named"),
    [
        (["a", "b", "c:1"], {}, "one word too many"),
        (["dev", "c:1"], {"network_policy": "none"}, "exclude each other"),
        (["example.com"], {}, "no"),
        (["10.0.0.0/8:1"], {}, "."),
    ],
)
def test_what_cannot_be_explained(words: list[str], options: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named) as refusal:
        explain(words, protocol="tcp", as_json=False, options=options)
    assert report._code_of(refusal.value) == report.EXIT_USAGE


def test_a_record_on_a_terminal_controls_nothing() -> None:
    moment = datetime(2026, 5, 4, 10, 20, 30, 125_000, tzinfo=UTC)
    record = AuditRecord(moment, "egress", "tcp", "2001:db8::1", 443, "a\x1b[2J.example", "deny", "no\nrule")
    assert line(record) == (
        r"2026-05-04T10:20:30.125Z deny egress tcp [2001:db8::1]:443 a\x1b[2J.example: no\nrule"
    )
    assert plain(record)["time"] == "2026-05-04T10:20:30.125Z"
    assert line(record._replace(port=None, name=None, rule="r")).endswith("egress tcp [2001:db8::1]: r")
