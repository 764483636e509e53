"""Policies from Python: what they say, what they refuse, and how they say so."""

from __future__ import annotations

import ipaddress
import json
import pickle

import pytest
from microsandbox_net import (
    Action,
    AddressClass,
    Destination,
    Direction,
    Names,
    Policy,
    PolicyError,
    Preset,
    Protocol,
    Rule,
    classify,
)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8.8.8.8", AddressClass.PUBLIC),
        ("10.0.0.1", AddressClass.PRIVATE),
        ("::1", AddressClass.LOOPBACK),
        ("fe80::1", AddressClass.LINK_LOCAL),
        ("64:ff9b::a9fe:a9fe", AddressClass.METADATA),
        ("ff02::1", AddressClass.MULTICAST),
        ("0.0.0.0", AddressClass.UNSPECIFIED),
        ("203.0.113.1", AddressClass.RESERVED),
    ],
)
def test_n11_n12_addresses_are_classified(address: str, expected: AddressClass) -> None:
    assert classify(address) is expected
    assert classify(ipaddress.ip_address(address)) is expected


def test_public_is_never_more_than_the_standard_library_says() -> None:
    """`ipaddress` knows the same registries; ours sees through more, and is stricter where it differs."""
    for number in range(0, 2**32, 65_521 * 16):
        address = ipaddress.IPv4Address(number)
        if classify(address) is AddressClass.PUBLIC:
            assert address.is_global, address


def test_the_presets() -> None:
    policies = [Policy.none(), Policy.public_only(), Policy.nonlocal_(), Policy.allow_all()]
    assert [policy.preset for policy in policies] == list(Preset)
    seen = {
        address: [policy.decide(address, 80).allowed for policy in policies]
        for address in ("8.8.8.8", "192.168.1.1", "127.0.0.1", "169.254.169.254")
    }
    assert seen == {
        "8.8.8.8": [False, True, True, True],
        "192.168.1.1": [False, False, True, True],
        "127.0.0.1": [False, False, False, True],
        "169.254.169.254": [False, False, False, False],
    }


def test_a_verdict_names_the_rule() -> None:
    policy = Policy.public_only("deny@.ads.example", "allow@10.0.0.0/8:tcp:22")
    assert policy.decide("10.1.2.3", 22).rule == "rule 2: allow@10.0.0.0/8:tcp:22"
    assert policy.decide("8.8.4.1", 80).rule == "policy public-only: allow@public"
    denied = policy.decide("8.8.4.1", 80, name="x.ads.example")
    assert (denied.action, denied.rule) == (Action.DENY, "rule 1: deny@.ads.example")
    assert policy.decide_name("ads.example").action is Action.DENY


def test_n03_a_name_counts_only_where_the_sandbox_resolved_it() -> None:
    policy = Policy.none("allow@example.com")
    pins = {"example.com": ["93.184.215.14"]}
    assert policy.decide("93.184.215.14", 443, pins=pins).action is Action.ALLOW_IF_NAMED
    assert policy.decide("93.184.215.14", 443, name="example.com", pins=pins).allowed
    assert not policy.decide("93.184.215.15", 443, name="example.com", pins=pins).allowed
    loose = Policy.parse("none", ["allow@example.com"], names="pin-only")
    assert loose.decide("93.184.215.14", 443, pins=pins).allowed


def test_n13_answers() -> None:
    policy = Policy.none("allow@example.com")
    assert policy.decide_answer("example.com", "93.184.215.14").allowed
    assert not policy.decide_answer("example.com", "192.168.1.1").allowed


def test_n35_the_host() -> None:
    policy = Policy(rules=(Rule.allow("host", protocol="tcp", port=11434),), host=("10.0.2.1",))
    assert policy.decide("10.0.2.1", 11434).allowed
    assert not policy.decide("10.0.2.1", 22).allowed


def test_rules_in_parts_and_in_text_are_the_same() -> None:
    text = "allow:ingress@[2001:db8::/32]:udp:53,1000-2000"
    rule = Rule.parse(text)
    assert rule == Rule.allow(
        Destination.cidr("2001:db8::/32"),
        protocol=Protocol.UDP,
        port="53,1000-2000",
        direction=Direction.INGRESS,
    )
    assert str(rule) == text
    assert str(Rule.deny(Destination.domain_suffix("example.com"))) == "deny@.example.com"
    assert str(Rule.allow("example.com", port=443)) == "allow@example.com:any:443"
    assert Destination.ip(ipaddress.ip_address("::ffff:1.2.3.4")).text == "1.2.3.4"


@pytest.mark.parametrize(
    ("text", "part", "hint"),
    [
        ("allow@10.0.0.0/", "the prefix length is empty", "from 0 to 32"),
        ("allow@10.0.0.1/8", "bits are set", "10.0.0.0/8"),
        ("allow@*.com", "public suffix", ".example.com"),
        ("allow@2130706433", "a number is an address", "four decimal numbers"),
        ("allow@bücher.example", "outside ASCII", "xn--bcher-kva.example"),
        ("allow@example.com:443", "'443' is no protocol", "tcp:443"),
        ("allow@metadata", "not allowed as a group", "allow@169.254.169.254:tcp:80"),
        ("allow@pubic", "neither a group nor a full name", "public"),
    ],
)
def test_n08_n09_an_error_names_the_text_and_what_to_do(text: str, part: str, hint: str) -> None:
    with pytest.raises(PolicyError, match=r"^[^\n]*$") as caught:
        Rule.parse(text)
    assert text in str(caught.value)
    assert part in str(caught.value)
    assert hint in caught.value.hint
    assert isinstance(caught.value, ValueError)
    assert caught.value.code == "network_policy"


def test_http_is_refused_until_it_can_be_seen() -> None:
    rule = Rule.allow("example.com", methods=["GET"], paths=["/api/*"])
    assert rule.methods == ("GET",)
    with pytest.raises(PolicyError, match="not intercepted"):
        Policy.none(rule)
    with pytest.raises(PolicyError, match="capitals"):
        Rule.allow("example.com", methods=["get"])
    with pytest.raises(TypeError, match="methods is a list"):
        Rule.allow("example.com", methods="GET")


def test_dictionaries_and_pickles_bring_the_policy_back() -> None:
    policy = Policy.parse("nonlocal", ["deny@10.0.0.1", "allow@example.com:tcp:443"], names=Names.PIN_ONLY)
    written = json.loads(json.dumps(policy.to_dict()))
    assert written == {
        "preset": "nonlocal",
        "rules": ["deny@10.0.0.1", "allow@example.com:tcp:443"],
        "names": "pin-only",
    }
    assert Policy.from_dict(written) == policy
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert Policy.from_dict({}) == Policy()
    assert Policy().to_dict() == {"preset": "public-only"}
    assert len({policy, Policy.from_dict(written)}) == 1


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"preset": "open"}, "'open' is not known"),
        ({"names": 1}, "is not known"),
        ({"rules": "allow@any"}, "no list of texts"),
        ({"rules": [1]}, "no list of texts"),
        ({"rules": ["allow@any"] * 2000}, "2000 rules"),
        ({"rule": []}, "'rule' is not known"),
        ({"rules": ["allow"]}, "no '@'"),
    ],
)
def test_a_policy_that_is_none(given: dict[str, object], part: str) -> None:
    with pytest.raises(PolicyError, match=part) as caught:
        Policy.from_dict(given)
    assert caught.value.hint


def test_explain_is_offline_and_names_the_rule() -> None:
    policy = Policy.none("allow@*.example.com:tcp:443")
    assert policy.explain("www.example.com:443").rule == "rule 1: allow@*.example.com:tcp:443"
    assert policy.explain("www.example.com:443").allowed
    assert not policy.explain("example.com:443").allowed
    assert not policy.explain("169.254.169.254:80").allowed
    assert Policy().explain("8.8.8.8", protocol="icmp").allowed
    for target in ("example.com", "0x7f.1:80", "example.com:99999", "::1:80", ""):
        with pytest.raises(PolicyError):
            policy.explain(target)


def test_wrong_types_name_the_parameter() -> None:
    with pytest.raises(TypeError, match="address is an address"):
        classify(1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="port is a number"):
        Policy().decide("8.8.8.8", "80")  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match="port 65536"):
        Policy().decide("8.8.8.8", 65536)
    with pytest.raises(PolicyError, match="protocol 'sctp'"):
        Policy().decide("8.8.8.8", 80, protocol="sctp")
    with pytest.raises(TypeError, match="rules is a list"):
        Policy.parse("none", "allow@any")
