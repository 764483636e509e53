use super::explain::{self, explain};
use super::*;
use proptest::prelude::*;
use std::time::{Duration, Instant};

fn name(text: &str) -> Name {
    Name::parse(text).expect(text)
}

fn policy(preset: &str, rules: &[&str]) -> Policy {
    let rules = rules.iter().map(|text| text.parse().expect(text)).collect();
    Policy::new(Preset::parse(preset).expect(preset), rules, Names::Strict).expect("a policy")
}

fn pin_only(preset: &str, rules: &[&str]) -> Policy {
    Policy {
        names: Names::PinOnly,
        ..policy(preset, rules)
    }
}

fn pins(list: &[(&str, &str)]) -> Pins {
    let mut pins = Pins::default();
    for (pinned, address) in list {
        pins.pin(
            &name(pinned),
            address.parse().expect(address),
            Instant::now(),
        );
    }
    pins
}

fn flow(protocol: Protocol, address: &str, port: u16, stated: Option<&str>) -> Flow {
    Flow {
        direction: Direction::Egress,
        protocol,
        address: address.parse().expect(address),
        port: (protocol != Protocol::Icmp).then_some(port),
        name: stated.map(name),
    }
}

fn tcp(address: &str, port: u16, stated: Option<&str>) -> Flow {
    flow(Protocol::Tcp, address, port, stated)
}

fn action(flow: &Flow, policy: &Policy, pins: &Pins) -> Action {
    decide(flow, policy, pins).action
}

/// `HOST:PORT` over TCP, nothing resolved.
fn plain(policy: &Policy, address: &str, port: u16) -> Action {
    action(&tcp(address, port, None), policy, &Pins::default())
}

const PRESETS: [&str; 4] = ["none", "public-only", "nonlocal", "allow-all"];

#[test]
fn n01_nothing_passes_by_default() {
    let nothing = policy("none", &[]);
    for address in [
        "192.168.1.1",
        "8.8.8.8",
        "10.0.0.1",
        "127.0.0.1",
        "2a00:1450::1",
        "ff02::1",
    ] {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
            let verdict = decide(
                &flow(protocol, address, 80, None),
                &nothing,
                &Pins::default(),
            );
            assert_eq!(verdict.action, Action::Deny);
            assert_eq!(verdict.rule, "policy none: no rule allows it");
        }
    }
}

#[test]
fn the_presets() {
    // Public, private, shared, loopback, link-local, multicast, reserved, metadata.
    for (preset, expected) in [
        ("none", "--------"),
        ("public-only", "+-------"),
        ("nonlocal", "+++-----"),
        ("allow-all", "+++++++-"),
    ] {
        for (addresses, colon) in [
            (
                [
                    "93.184.215.14",
                    "192.168.1.1",
                    "100.64.0.1",
                    "127.0.0.1",
                    "169.254.1.1",
                    "224.0.0.251",
                    "198.18.0.1",
                    "169.254.169.254",
                ],
                "IPv4",
            ),
            (
                [
                    "2a00:1450::1",
                    "fd00::1",
                    "fc00::1",
                    "::1",
                    "fe80::1",
                    "ff02::1",
                    "2001:db8::1",
                    "fd00:ec2::254",
                ],
                "IPv6",
            ),
        ] {
            let seen: String = addresses
                .iter()
                .map(|address| match plain(&policy(preset, &[]), address, 80) {
                    Action::Allow => '+',
                    _ => '-',
                })
                .collect();
            assert_eq!(seen, expected, "{preset} {colon}");
        }
        assert_eq!(plain(&policy(preset, &[]), "0.0.0.0", 80), Action::Deny);
    }
}

#[test]
fn n02_a_sibling_on_the_same_address_is_denied() {
    let policy = policy("none", &["allow@example.com"]);
    let pins = pins(&[("example.com", "93.184.215.14")]);
    let at = |stated| action(&tcp("93.184.215.14", 443, stated), &policy, &pins);
    assert_eq!(at(None), Action::AllowIfNamed);
    assert_eq!(at(Some("example.com")), Action::Allow);
    assert_eq!(at(Some("EXAMPLE.com.")), Action::Allow);
    assert_eq!(at(Some("sibling.example")), Action::Deny);
    assert_eq!(at(Some("www.example.com")), Action::Deny);
    assert_eq!(at(Some("example.com.evil.example")), Action::Deny);
}

#[test]
fn n03_a_stated_name_proves_nothing() {
    let policy = policy("none", &["allow@example.com"]);
    let verdict = decide(
        &tcp("203.0.114.1", 443, Some("example.com")),
        &policy,
        &pins(&[("example.com", "93.184.215.14")]),
    );
    assert_eq!(verdict.action, Action::Deny);
    assert!(verdict.rule.contains("did not resolve"), "{}", verdict.rule);
    assert_eq!(plain(&policy, "203.0.114.1", 443), Action::Deny);
}

#[test]
fn n06_without_a_name_strict_denies_and_pin_only_goes_by_the_pin() {
    let rules = ["allow@example.com", "allow@203.0.114.0/24"];
    let known = pins(&[("example.com", "203.0.114.1")]);
    let opening = tcp("203.0.114.1", 443, None);
    let strict = decide(&opening, &policy("none", &rules), &known);
    assert_eq!(strict.action, Action::AllowIfNamed);
    let strict = strict.unnamed();
    assert_eq!(strict.action, Action::Deny);
    assert!(strict.rule.contains("strict"), "{}", strict.rule);
    assert_eq!(
        action(&opening, &pin_only("none", &rules), &known),
        Action::Allow
    );
    // An address that no name led to goes by the rule for addresses.
    assert_eq!(
        plain(&policy("none", &rules), "203.0.114.2", 443),
        Action::Allow
    );
    // No name can be seen in UDP.
    let udp = flow(Protocol::Udp, "8.8.1.1", 123, None);
    let known = pins(&[("pool.ntp.org", "8.8.1.1")]);
    let rules = ["allow@pool.ntp.org:udp:123"];
    assert_eq!(action(&udp, &policy("none", &rules), &known), Action::Deny);
    assert_eq!(
        action(&udp, &pin_only("none", &rules), &known),
        Action::Allow
    );
}

#[test]
fn n08_what_wildcards_mean() {
    let below: Destination = Destination::parse("*.github.com").expect("a wildcard");
    let suffix: Destination = Destination::parse(".github.com").expect("a suffix");
    let exact: Destination = Destination::parse("github.com").expect("a name");
    for (stated, expected) in [
        ("github.com", (false, true, true)),
        ("api.github.com", (true, true, false)),
        ("a.b.github.com", (true, true, false)),
        ("notgithub.com", (false, false, false)),
        ("github.com.evil.example", (false, false, false)),
    ] {
        let name = name(stated);
        let seen = (
            below.matches_name(&name),
            suffix.matches_name(&name),
            exact.matches_name(&name),
        );
        assert_eq!(seen, expected, "{stated}");
    }
    for text in [
        "*.com",
        ".com",
        "*.co.uk",
        ".co.uk",
        "*.github.io",
        ".s3.amazonaws.com",
        "*.corp",
        ".local",
        "*.xn--p1ai",
        "*.xn--55qx5d.cn",
        "*.anything.ck",
        ".kawasaki.jp",
    ] {
        let error = Destination::parse(text).expect_err(text);
        assert!(error.message.contains("public suffix"), "{error}");
    }
    for text in [
        "*.example.com",
        ".example.co.uk",
        "*.me.github.io",
        ".example.corp",
        ".www.ck",
        ".city.kawasaki.jp",
    ] {
        Destination::parse(text).expect(text);
    }
    for text in [
        "*",
        "**",
        "**.example.com",
        "*.*.example.com",
        "a.*.com",
        "*example.com",
        "*.",
    ] {
        Destination::parse(text).expect_err(text);
    }
}

#[test]
fn n09_what_is_no_network_is_an_error_and_never_everything() {
    for (text, part) in [
        ("10.0.0.0/", "the prefix length is empty"),
        ("10.0.0.0/33", "'33' is no prefix length"),
        ("10.0.0.0/+8", "is no prefix length"),
        ("10.0.0.0/08", "is no prefix length"),
        ("10.0.0.0/256", "is no prefix length"),
        ("10.0.0.0/-1", "is no prefix length"),
        ("10.0.0.0/ 8", "is no prefix length"),
        ("10.0.0.0/255.0.0.0", "is no prefix length"),
        ("10.0.0.0/8/8", "is no prefix length"),
        ("10.0.0.1/8", "write 10.0.0.0/8"),
        ("10.0.0.1/0", "write 0.0.0.0/0"),
        ("2001:db8::1/32", "write 2001:db8::/32"),
        ("::/129", "from 0 to 128"),
        ("010.0.0.0/8", "is no IP address"),
        ("10.0/16", "is no IP address"),
        ("/8", "is no IP address"),
        ("::ffff:10.0.0.0/104", "write 10.0.0.0/8"),
    ] {
        let error = Destination::parse(text).expect_err(text).to_string();
        assert!(error.contains(part), "{text}: {error}");
        assert!(error.contains(text), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
    let everything = policy("none", &["allow@0.0.0.0/0"]);
    assert_eq!(plain(&everything, "8.8.8.8", 80), Action::Allow);
    assert_eq!(plain(&everything, "2a00:1450::1", 80), Action::Deny);
    assert_eq!(plain(&everything, "169.254.169.254", 80), Action::Deny);
}

#[test]
fn n11_metadata_is_denied_under_every_policy_but_one_that_names_the_address() {
    let addresses = [
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "::169.254.169.254",
        "::ffff:0:a9fe:a9fe",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::a9fe:a9fe",
        "2002:a9fe:a9fe::",
        "2001:0:808:808:0:0:5601:5601",
        "fd00:ec2::254",
        "100.100.100.200",
        "168.63.129.16",
        "169.254.170.2",
    ];
    for preset in PRESETS {
        for rules in [
            &[][..],
            &["allow@any"],
            &["allow@0.0.0.0/0", "allow@[::/0]"],
            &[
                "allow@169.254.169.0/24",
                "allow@link-local",
                "allow@private",
                "allow@public",
            ],
            &["allow@metadata.google.internal", "allow@.google.internal"],
        ] {
            let policy = policy(preset, rules);
            for address in addresses {
                for (stated, known) in [
                    (None, Pins::default()),
                    (
                        Some("metadata.google.internal"),
                        pins(&[("metadata.google.internal", address)]),
                    ),
                ] {
                    let seen = action(&tcp(address, 80, stated), &policy, &known);
                    assert_eq!(seen, Action::Deny, "{preset} {rules:?} {address}");
                }
            }
        }
    }
    let literal = policy("none", &["allow@169.254.169.254:tcp:80"]);
    assert_eq!(plain(&literal, "169.254.169.254", 80), Action::Allow);
    assert_eq!(plain(&literal, "::ffff:169.254.169.254", 80), Action::Allow);
    assert_eq!(plain(&literal, "169.254.169.254", 81), Action::Deny);
    assert_eq!(plain(&literal, "64:ff9b::a9fe:a9fe", 80), Action::Deny);
    for text in [
        "169.254.43518",
        "2852039166",
        "0xa9fea9fe",
        "0251.0376.0251.0376",
    ] {
        let error = format!("allow@{text}").parse::<Rule>().expect_err(text);
        assert!(error.message.contains("a number is an address"), "{error}");
        assert!(explain::parse(text).is_err(), "{text}");
    }
    "allow@metadata"
        .parse::<Rule>()
        .expect_err("a group of metadata services");
    "deny@metadata".parse::<Rule>().expect("denied twice");
    let google = name("metadata.google.internal");
    for preset in PRESETS {
        assert_eq!(
            decide_name(&google, &policy(preset, &[])).action,
            Action::Deny
        );
    }
    let named = policy(
        "none",
        &["allow@metadata.google.internal", "allow@169.254.169.254"],
    );
    let address = "169.254.169.254".parse().unwrap();
    assert_eq!(decide_name(&google, &named).action, Action::Allow);
    assert_eq!(
        decide_answer(&google, address, &named).action,
        Action::Allow
    );
}

#[test]
fn n13_answers_that_lead_inwards_are_not_told() {
    for (preset, rules) in [
        ("public-only", &[][..]),
        ("none", &["allow@example.com"]),
        ("none", &["allow@*.com.example", "allow@.example.com"]),
    ] {
        let policy = policy(preset, rules).with_host(["198.20.0.1".parse().unwrap()]);
        let answer = |address: &str| {
            decide_answer(&name("example.com"), address.parse().unwrap(), &policy).action
        };
        assert_eq!(answer("93.184.215.14"), Action::Allow);
        for address in [
            "192.168.1.1",
            "127.0.0.1",
            "0.0.0.0",
            "169.254.169.254",
            "169.254.0.1",
            "10.0.0.1",
            "100.64.0.1",
            "::",
            "::1",
            "fe80::1",
            "fd00::1",
            "::ffff:192.168.1.1",
            "64:ff9b::c0a8:101",
            "2002:c0a8:101::1",
            "224.0.0.251",
            "255.255.255.255",
            "198.18.0.1",
            "198.20.0.1",
            "168.63.129.16",
        ] {
            assert_eq!(answer(address), Action::Deny, "{preset} {address}");
        }
    }
    // With the network allowed by itself, a name may lead there.
    let both = policy(
        "none",
        &["allow@git.example.com", "allow@10.0.0.0/8:tcp:22"],
    );
    let address = "10.1.2.3".parse().unwrap();
    assert_eq!(
        decide_answer(&name("git.example.com"), address, &both).action,
        Action::Allow
    );
    let known = pins(&[("git.example.com", "10.1.2.3")]);
    assert_eq!(
        action(&tcp("10.1.2.3", 22, None), &both, &known),
        Action::Allow
    );
    assert_eq!(
        action(&tcp("10.1.2.3", 80, None), &both, &known),
        Action::Deny
    );
}

#[test]
fn n18_names_are_denied_before_anybody_is_asked() {
    let listed = policy("none", &["allow@example.com:tcp:443", "allow@10.0.0.0/8"]);
    let asked = |policy: &Policy, text| decide_name(&name(text), policy).action;
    assert_eq!(asked(&listed, "example.com"), Action::Allow);
    assert_eq!(asked(&listed, "www.example.com"), Action::Deny);
    assert_eq!(asked(&listed, "other.example"), Action::Deny);
    let ads = policy(
        "public-only",
        &["deny@.ads.example", "deny@tracker.example:tcp:80"],
    );
    assert_eq!(asked(&ads, "x.ads.example"), Action::Deny);
    assert_eq!(asked(&ads, "ads.example"), Action::Deny);
    assert_eq!(asked(&ads, "tracker.example"), Action::Allow);
    assert_eq!(asked(&ads, "other.example"), Action::Allow);
    assert_eq!(
        asked(&policy("none", &["allow@8.8.8.8"]), "example.com"),
        Action::Deny
    );
    for address in ["8.8.8.8", "192.168.1.1", "93.184.215.14"] {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for rules in [&[][..], &["allow@8.8.8.8"], &["allow@8.8.8.8:udp:53"]] {
                let seen = flow(protocol, address, 53, None);
                let verdict = decide(&seen, &policy("allow-all", rules), &Pins::default());
                assert_eq!(verdict.action, Action::Deny);
                assert!(verdict.rule.contains("resolver"), "{}", verdict.rule);
            }
        }
    }
}

#[test]
fn the_names_of_a_private_network_are_asked_for_by_who_may_go_there() {
    let asked = |policy: &Policy, text| decide_name(&name(text), policy).action;
    let (public, private) = ("4.4.8.8.in-addr.arpa", "1.1.168.192.in-addr.arpa");
    for (preset, expected) in [
        ("none", [Action::Deny, Action::Deny]),
        ("public-only", [Action::Allow, Action::Deny]),
        ("nonlocal", [Action::Allow, Action::Allow]),
    ] {
        let policy = policy(preset, &[]);
        assert_eq!(
            [asked(&policy, public), asked(&policy, private)],
            expected,
            "{preset}"
        );
        assert_eq!(asked(&policy, "168.192.in-addr.arpa"), Action::Deny);
        assert_eq!(asked(&policy, "254.169.254.169.in-addr.arpa"), Action::Deny);
    }
    let meant = policy("none", &["allow@*.168.192.in-addr.arpa"]);
    assert_eq!(asked(&meant, private), Action::Allow);
}

#[test]
fn n20_services_that_hide_names_pass_only_when_meant() {
    let at = |policy: &Policy, protocol, address, port, stated| {
        action(
            &flow(protocol, address, port, stated),
            policy,
            &Pins::default(),
        )
    };
    let all = policy("allow-all", &[]);
    use Protocol::{Tcp, Udp};
    for (protocol, port) in [
        (Tcp, 853),
        (Udp, 853),
        (Udp, 5353),
        (Udp, 5355),
        (Tcp, 5355),
        (Udp, 137),
        (Udp, 138),
        (Tcp, 139),
    ] {
        assert_eq!(
            at(&all, protocol, "10.0.0.5", port, None),
            Action::Deny,
            "{port}"
        );
        let text = format!("allow@10.0.0.5:{}:{port}", protocol.as_str());
        let meant = policy("none", &[&text]);
        assert_eq!(
            at(&meant, protocol, "10.0.0.5", port, None),
            Action::Allow,
            "{port}"
        );
        let whole = policy("none", &["allow@10.0.0.5"]);
        assert_eq!(
            at(&whole, protocol, "10.0.0.5", port, None),
            Action::Deny,
            "{port}"
        );
    }
    // DNS over HTTPS and QUIC matter where names do.
    let listed = policy("public-only", &["deny@ads.example"]);
    for address in ["1.1.1.1", "8.8.8.8", "2606:4700:4700::1111"] {
        assert_eq!(
            at(&listed, Tcp, address, 443, None),
            Action::Deny,
            "{address}"
        );
        assert_eq!(
            at(&policy("public-only", &[]), Tcp, address, 443, None),
            Action::Allow
        );
    }
    assert_eq!(
        at(&listed, Tcp, "93.184.215.14", 443, Some("dns.google")),
        Action::Deny
    );
    assert_eq!(
        decide_name(&name("dns.google"), &listed).action,
        Action::Deny
    );
    let meant = policy(
        "public-only",
        &["deny@ads.example", "allow@1.1.1.1:tcp:443"],
    );
    assert_eq!(at(&meant, Tcp, "1.1.1.1", 443, None), Action::Allow);
    let meant = policy("public-only", &["allow@dns.google"]);
    assert_eq!(
        decide_name(&name("dns.google"), &meant).action,
        Action::Allow
    );
}

#[test]
fn n38_quic_to_an_allowed_host_is_refused_so_that_it_falls_back_to_tcp() {
    let listed = policy("none", &["allow@example.com", "allow@93.184.215.0/24"]);
    let known = pins(&[("example.com", "93.184.215.14")]);
    let quic = flow(Protocol::Udp, "93.184.215.14", 443, None);
    assert_eq!(action(&quic, &listed, &known), Action::Deny);
    let meant = policy(
        "none",
        &["allow@example.com", "allow@93.184.215.0/24:udp:443"],
    );
    assert_eq!(action(&quic, &meant, &known), Action::Allow);
    assert_eq!(
        action(&quic, &policy("public-only", &[]), &known),
        Action::Allow
    );
}

#[test]
fn n33_a_policy_that_was_narrowed_denies_what_it_had_pinned() {
    let mut known = pins(&[("a.example", "8.8.1.1"), ("b.example", "8.8.1.2")]);
    let before = policy("public-only", &[]);
    let after = policy("public-only", &["deny@a.example"]);
    for stated in [None, Some("a.example")] {
        let flow = tcp("8.8.1.1", 443, stated);
        assert_eq!(action(&flow, &before, &known), Action::Allow);
        assert_eq!(action(&flow, &after, &known), Action::Deny);
    }
    assert_eq!(
        action(&tcp("8.8.1.2", 443, None), &after, &known),
        Action::Allow
    );
    known.retain(|name, address| decide_answer(name, address, &after).action == Action::Allow);
    assert_eq!(known.len(), 1);
}

#[test]
fn n35_the_host_is_reached_only_by_name() {
    let gateway: IpAddr = "10.0.2.1".parse().unwrap();
    let own: IpAddr = "93.184.215.14".parse().unwrap();
    let here = |preset, rules: &[&str]| policy(preset, rules).with_host([gateway, own]);
    let alias = name(HOST_NAME);
    for (preset, rules) in [
        ("public-only", &[][..]),
        ("nonlocal", &[]),
        (
            "none",
            &[
                "allow@10.0.0.0/8",
                "allow@0.0.0.0/0",
                "allow@private",
                "allow@public",
            ],
        ),
    ] {
        let here = here(preset, rules);
        assert_eq!(plain(&here, "10.0.2.1", 11434), Action::Deny, "{preset}");
        assert_eq!(plain(&here, "93.184.215.14", 22), Action::Deny, "{preset}");
        assert_eq!(
            plain(&here, "64:ff9b::5db8:d70e", 22),
            Action::Deny,
            "{preset}"
        );
        assert_eq!(decide_name(&alias, &here).action, Action::Deny, "{preset}");
    }
    for rule in [
        "allow@host:tcp:11434",
        "allow@host.microsandbox.internal:tcp:11434",
    ] {
        let here = here("public-only", &[rule]);
        assert_eq!(plain(&here, "10.0.2.1", 11434), Action::Allow);
        assert_eq!(plain(&here, "10.0.2.1", 22), Action::Deny);
        assert_eq!(decide_name(&alias, &here).action, Action::Allow);
        assert_eq!(decide_answer(&alias, gateway, &here).action, Action::Allow);
    }
    assert_eq!(
        plain(&here("allow-all", &[]), "10.0.2.1", 22),
        Action::Allow
    );
    assert_eq!(
        plain(&here("allow-all", &["deny@host"]), "10.0.2.1", 22),
        Action::Deny
    );
    assert_eq!(
        plain(
            &here("none", &["deny@private", "allow@host"]),
            "10.0.2.1",
            1
        ),
        Action::Allow
    );
}

#[test]
fn n32_who_may_connect_to_a_published_port() {
    let ingress = |policy: &Policy, address: &str, port| {
        let flow = Flow {
            direction: Direction::Ingress,
            ..tcp(address, port, None)
        };
        action(&flow, policy, &Pins::default())
    };
    assert_eq!(ingress(&policy("none", &[]), "127.0.0.1", 80), Action::Deny);
    assert_eq!(
        ingress(&policy("public-only", &[]), "127.0.0.1", 80),
        Action::Allow
    );
    let some = policy("none", &["allow:ingress@192.168.0.0/16:tcp:80"]);
    assert_eq!(ingress(&some, "192.168.1.1", 80), Action::Allow);
    assert_eq!(ingress(&some, "192.168.1.1", 81), Action::Deny);
    assert_eq!(plain(&some, "192.168.1.1", 80), Action::Deny);
    let error = "allow:ingress@example.com"
        .parse::<Rule>()
        .expect_err("names connect to nobody");
    assert!(error.message.contains("no name"), "{error}");
}

#[test]
fn deny_rules_go_wide_and_allow_rules_narrow() {
    let denied = policy(
        "allow-all",
        &["deny@8.8.8.8", "deny@10.0.0.0/8", "deny@loopback"],
    );
    for address in [
        "8.8.8.8",
        "64:ff9b::808:808",
        "::ffff:8.8.8.8",
        "2002:808:808::1",
        "64:ff9b::a00:1",
        "2001:0:a00:1::",
        "64:ff9b::7f00:1",
    ] {
        assert_eq!(plain(&denied, address, 80), Action::Deny, "{address}");
    }
    let allowed = policy("none", &["allow@8.8.8.8", "allow@[64:ff9b::/96]:tcp:80"]);
    assert_eq!(plain(&allowed, "64:ff9b::808:808", 80), Action::Allow);
    assert_eq!(plain(&allowed, "64:ff9b::808:808", 81), Action::Deny);
    assert_eq!(plain(&allowed, "64:ff9b::a00:1", 80), Action::Deny);
    assert_eq!(plain(&allowed, "::ffff:8.8.8.8", 81), Action::Allow);
}

#[test]
fn rules_in_text_and_back() {
    for (text, canonical) in [
        ("allow@example.com:tcp:443", ""),
        ("allow:egress@Example.COM.:any", "allow@example.com"),
        ("deny@10.0.0.0/8", ""),
        ("deny@10.0.0.1/32", "deny@10.0.0.1"),
        ("allow@[2001:db8::/32]:udp:1000-2000,53", ""),
        ("allow@[::ffff:1.2.3.4]", "allow@1.2.3.4"),
        ("allow:ingress@private:tcp:22", ""),
        ("allow@any:any:80", ""),
        ("deny@*.example.com:icmp", ""),
        ("deny@.example.com", ""),
        ("allow@host.microsandbox.internal:tcp:1", "allow@host:tcp:1"),
        ("allow@xn--bcher-kva.example", ""),
    ] {
        let rule: Rule = text.parse().expect(text);
        let expected = if canonical.is_empty() {
            text
        } else {
            canonical
        };
        assert_eq!(rule.to_string(), expected);
        assert_eq!(rule.to_string().parse::<Rule>().expect(expected), rule);
    }
}

#[test]
fn what_is_no_rule_is_named_with_what_to_do() {
    for (text, part) in [
        ("", "no '@'"),
        ("example.com", "no '@'"),
        ("permit@any", "'permit' is no action"),
        ("ALLOW@any", "'ALLOW' is no action"),
        ("allow:out@any", "'out' is no direction"),
        ("allow@", "no destination"),
        ("allow@:tcp", "no destination"),
        ("allow@pubic", "neither a group nor a full name"),
        ("allow@localhost", "neither a group nor a full name"),
        ("allow@example.com:443", "ports come after it"),
        ("allow@example.com:tcp:", "is no port"),
        ("allow@example.com:tcp:0", "is no port"),
        ("allow@example.com:tcp:65536", "is no port"),
        ("allow@example.com:tcp:080", "is no port"),
        ("allow@example.com:tcp:90-80", "write 80-90"),
        ("allow@example.com:tcp:80:90", "is no port"),
        ("allow@any:icmp:8", "ICMP has no ports"),
        ("allow@2001:db8::1", "without brackets"),
        ("allow@2001:db8::/32", "without brackets"),
        ("allow@::1", "without brackets"),
        ("allow@[::1", "'[' without ']'"),
        ("allow@[1.2.3.4]", "brackets are for IPv6"),
        ("allow@[::1]443", "after ']'"),
        ("allow@[fe80::1%eth0]", "without a zone"),
        ("allow@1.2.3", "a number is an address"),
        ("allow@1.2.3.4.", "a number is an address"),
        ("allow@01.2.3.4", "a number is an address"),
        (
            "allow@b\u{fc}cher.example",
            "write it as xn--bcher-kva.example",
        ),
        ("allow@ex\u{430}mple.com", "write it as xn--"),
        ("allow@xn--a.example", "xn-- label that no name can have"),
        ("allow@under_score.example", "no host name"),
        ("allow@-a.example", "no host name"),
        ("allow@a..example", "no host name"),
        ("allow@ example.com", "no host name"),
        ("allow@example.com\n", "no host name"),
        ("allow@user@example.com", "no host name"),
        ("allow@https://example.com", "this is a URL"),
    ] {
        let error = text.parse::<Rule>().expect_err(text).to_string();
        assert!(error.contains(part), "{text:?}: {error}");
        assert!(error.lines().count() == 1 && error.len() < 400, "{error}");
    }
    let long = format!("allow@{}", "a.".repeat(100_000));
    assert!(long.parse::<Rule>().expect_err("long").to_string().len() < 500);
}

#[test]
fn what_is_no_policy() {
    let http = rule::Http {
        methods: vec!["GET".to_string()],
        paths: Vec::new(),
    };
    let rule = Rule::new(
        Effect::Allow,
        Direction::Egress,
        Destination::parse("example.com").unwrap(),
        None,
        None,
        Some(http),
    )
    .expect("a rule");
    let error = Policy::new(Preset::None, vec![rule], Names::Strict).expect_err("no interception");
    assert!(error.message.contains("not intercepted"), "{error}");
    let many = vec!["allow@any".parse().unwrap(); MOST_RULES + 1];
    Policy::new(Preset::None, many, Names::Strict).expect_err("too many");
    Preset::parse("open").expect_err("a preset");
}

#[test]
fn explain_tells_the_rule() {
    let explained = |policy: &Policy, host: &str, port| {
        let verdict = explain(
            &explain::parse(host).unwrap().host,
            Protocol::Tcp,
            Some(port),
            policy,
        );
        (verdict.action == Action::Allow, verdict.rule)
    };
    let listed = policy(
        "none",
        &["allow@*.example.com:tcp:443", "allow@[::/0]:tcp:80"],
    );
    let yes = (true, "rule 1: allow@*.example.com:tcp:443".to_string());
    assert_eq!(explained(&listed, "www.example.com", 443), yes);
    assert!(!explained(&listed, "www.example.com", 22).0);
    assert!(!explained(&listed, "example.com", 443).0);
    assert!(explained(&listed, "[2a00::1]", 80).0);
    assert!(!explained(&listed, "169.254.169.254", 80).0);
    assert!(explained(&policy("public-only", &[]), "example.com", 443).0);
    assert!(!explained(&policy("public-only", &[]), HOST_NAME, 443).0);
    for local in ["localhost", "app.localhost"] {
        assert!(!explained(&policy("public-only", &[]), local, 443).0);
    }
    assert!(
        !explained(
            &policy("none", &["allow@app.localhost"]),
            "app.localhost",
            443
        )
        .0
    );
    assert!(explained(&policy("public-only", &[]), "localhost.example.com", 443).0);
    assert!(explained(&policy("none", &["allow@host"]), HOST_NAME, 443).0);
}

// Random policies, flows and pins over a small world, so that they meet.

const NAMES: [&str; 7] = [
    "example.com",
    "www.example.com",
    "a.b.example.com",
    "other.example",
    "dns.google",
    "metadata.google.internal",
    HOST_NAME,
];
const ADDRESSES: [&str; 20] = [
    "8.8.8.8",
    "93.184.215.14",
    "93.184.215.15",
    "10.0.0.5",
    "192.168.1.1",
    "127.0.0.1",
    "169.254.169.254",
    "169.254.1.1",
    "0.0.0.0",
    "224.0.0.1",
    "198.18.0.1",
    "2a00:1450::1",
    "fd00:ec2::254",
    "fd00::1",
    "::ffff:10.0.0.5",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b::808:808",
    "2002:a00:5::1",
    "10.0.2.1",
    "2606:4700:4700::1111",
];
const DESTINATIONS: [&str; 22] = [
    "any",
    "public",
    "private",
    "loopback",
    "link-local",
    "multicast",
    "host",
    "8.8.8.8",
    "93.184.215.0/24",
    "10.0.0.0/8",
    "0.0.0.0/0",
    "[::/0]",
    "[64:ff9b::/96]",
    "169.254.169.254",
    "169.254.0.0/16",
    "example.com",
    "*.example.com",
    ".example.com",
    "other.example",
    "dns.google",
    "metadata.google.internal",
    "[fd00::1]",
];
const TAILS: [&str; 8] = [
    "",
    "",
    "",
    ":tcp",
    ":udp",
    ":tcp:443,853",
    ":any:80-500",
    ":icmp",
];

pub(crate) fn any_policy() -> impl Strategy<Value = Policy> {
    let rule =
        (prop::bool::ANY, 0..DESTINATIONS.len(), 0..TAILS.len()).prop_map(|(allow, d, t)| {
            let verb = if allow { "allow" } else { "deny" };
            let text = format!("{verb}@{}{}", DESTINATIONS[d], TAILS[t]);
            text.parse::<Rule>().expect("a rule of the small world")
        });
    (
        0..4usize,
        prop::collection::vec(rule, 0..6),
        prop::bool::ANY,
    )
        .prop_map(|(preset, rules, strict)| {
            let names = if strict {
                Names::Strict
            } else {
                Names::PinOnly
            };
            Policy::new(Preset::ALL[preset], rules, names)
                .expect("a policy")
                .with_host(["10.0.2.1".parse().unwrap()])
        })
}

fn any_address() -> impl Strategy<Value = IpAddr> {
    (0..ADDRESSES.len()).prop_map(|index| ADDRESSES[index].parse().unwrap())
}

fn any_name() -> impl Strategy<Value = Name> {
    (0..NAMES.len()).prop_map(|index| name(NAMES[index]))
}

pub(crate) fn any_pins() -> impl Strategy<Value = Pins> {
    prop::collection::vec((any_name(), any_address()), 0..8).prop_map(|list| {
        let mut pins = Pins::default();
        for (name, address) in list {
            pins.pin(&name, address, Instant::now() + Duration::from_secs(600));
        }
        pins
    })
}

pub(crate) fn any_flow() -> impl Strategy<Value = Flow> {
    let protocol = prop::sample::select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Icmp]);
    let port = prop::sample::select(vec![22u16, 53, 80, 443, 853, 5353]);
    (any_address(), protocol, port, prop::option::of(any_name())).prop_map(
        |(address, protocol, port, name)| Flow {
            direction: Direction::Egress,
            protocol,
            address,
            port: (protocol != Protocol::Icmp).then_some(port),
            name: name.filter(|_| protocol == Protocol::Tcp),
        },
    )
}

/// The enforcement points that a flow meets, as the stack asks them.
fn points(flow: &Flow, stated: &[Name], policy: &Policy, pins: &Pins) -> Vec<bool> {
    let opening = Flow {
        name: None,
        ..flow.clone()
    };
    let opened = decide(&opening, policy, pins);
    let opened = if stated.is_empty() {
        opened.unnamed()
    } else {
        opened
    };
    let mut all = vec![opened.action != Action::Deny];
    all.extend(stated.iter().map(|name| {
        let flow = Flow {
            name: Some(name.clone()),
            ..flow.clone()
        };
        decide(&flow, policy, pins).action == Action::Allow
    }));
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn what_decide_denies_is_admitted_by_no_point(
        policy in any_policy(), pins in any_pins(), flow in any_flow(),
    ) {
        // Resolving the stated name to this address first would not have helped either.
        if let Some(name) = &flow.name {
            if decide_answer(name, flow.address, &policy).action == Action::Deny {
                let mut only = Pins::default();
                only.pin(name, flow.address, Instant::now());
                let verdict = decide(&flow, &policy, &only);
                // An address rule may let the flow pass by itself, but then no name led there:
                // the name is one that may not be asked for.
                if verdict.action != Action::Deny {
                    let bare = Flow { name: None, ..flow.clone() };
                    prop_assert!(
                        decide_name(name, &policy).action == Action::Deny
                            && decide(&bare, &policy, &Pins::default()).action == Action::Allow,
                        "{:?} {:?}", verdict, policy
                    );
                }
            }
        }
        // Whatever is allowed without a pin is not more than what is allowed with all of them,
        // for a policy that denies no names.
        let denies_names = policy.rules().iter().any(|rule| {
            rule.effect() == Effect::Deny && rule.destination().is_name()
        });
        let without = decide(&flow, &policy, &Pins::default()).action;
        let with = decide(&flow, &policy, &pins).action;
        if !denies_names && without == Action::Allow && with == Action::Deny {
            // Only a deny rule between the name rule and the address rule: never.
            prop_assert!(false, "pins take away: {:?}", policy);
        }
    }

    #[test]
    fn nothing_leads_inwards_unless_it_is_asked_for(
        preset in 0..2usize, names in prop::collection::vec(0..NAMES.len() - 1, 0..4),
        pins in any_pins(), flow in any_flow(), strict: bool,
    ) {
        let rules = names
            .iter()
            .map(|n| format!("allow@{}", NAMES[*n]).parse().unwrap())
            .collect();
        let names = if strict { Names::Strict } else { Names::PinOnly };
        let policy = Policy::new(Preset::ALL[preset], rules, names).unwrap()
            .with_host(["10.0.2.1".parse().unwrap()]);
        if decide(&flow, &policy, &pins).action != Action::Deny {
            prop_assert_eq!(classify(flow.address), Class::Public);
            prop_assert!(!policy.is_host(flow.address));
        }
    }

    #[test]
    fn metadata_is_admitted_by_its_literal_alone(
        policy in any_policy(), pins in any_pins(), flow in any_flow(),
    ) {
        if classify(flow.address) == Class::Metadata
            && decide(&flow, &policy, &pins).action != Action::Deny
        {
            let literal = Destination::Ip(flow.address);
            let meant = policy.rules().iter().any(|rule| {
                rule.effect() == Effect::Allow && *rule.destination() == literal
            });
            prop_assert!(meant, "{} {:?}", flow.address, policy);
        }
    }

    #[test]
    fn the_order_of_the_points_does_not_matter(
        policy in any_policy(), pins in any_pins(), flow in any_flow(),
        stated in prop::collection::vec(any_name(), 0..4).prop_shuffle(),
    ) {
        let forth = points(&flow, &stated, &policy, &pins);
        let turned: Vec<Name> = stated.iter().rev().cloned().collect();
        let back = points(&flow, &turned, &policy, &pins);
        prop_assert_eq!(forth.iter().all(|p| *p), back.iter().all(|p| *p));
        // Asking changes nothing: the same question, the same answer.
        prop_assert_eq!(decide(&flow, &policy, &pins), decide(&flow, &policy, &pins));
    }

    #[test]
    fn every_spelling_of_an_address_is_decided_alike(
        policy in any_policy(), pins in any_pins(), flow in any_flow(),
    ) {
        if let IpAddr::V4(v4) = flow.address {
            let mapped = Flow { address: v4.to_ipv6_mapped().into(), ..flow.clone() };
            prop_assert_eq!(decide(&flow, &policy, &pins), decide(&mapped, &policy, &pins));
        }
    }

    #[test]
    fn one_more_deny_rule_admits_nothing_more(
        policy in any_policy(), pins in any_pins(), flow in any_flow(),
        at in 0..6usize, destination in 0..DESTINATIONS.len(),
    ) {
        let mut rules = policy.rules().to_vec();
        let rule: Rule = format!("deny@{}", DESTINATIONS[destination]).parse().unwrap();
        let adds_names = rule.destination().is_name();
        rules.insert(at.min(rules.len()), rule);
        let narrowed = Policy { rules, ..policy.clone() };
        let before = decide(&flow, &policy, &pins).action;
        let after = decide(&flow, &narrowed, &pins).action;
        prop_assert!(before != Action::Deny || after == Action::Deny, "{}", adds_names);
    }

    #[test]
    fn any_text_is_a_rule_or_one_line_that_says_why(text in "\\PC{0,60}|(allow|deny)(:(in|e)gress)?@[]\\[a-z0-9.*:/,-]{0,40}") {
        match text.parse::<Rule>() {
            Ok(rule) => prop_assert_eq!(rule.to_string().parse::<Rule>().unwrap(), rule),
            Err(error) => prop_assert_eq!(error.to_string().lines().count(), 1),
        }
    }
}
