//! What is not told, and what gets nowhere.

use super::*;

#[test]
fn n13_n14_a_name_never_leads_inwards() {
    let turn: Log<()> = Log::default();
    let turns = Arc::clone(&turn);
    let (server, _) = server(move |name, kind, _| {
        if name == "rebind.example" {
            let mut turns = turns.lock().unwrap();
            turns.push(());
            let text = if turns.len() == 1 {
                GOOD
            } else {
                "192.168.1.1"
            };
            return says(vec![address(name, 0, text)]);
        }
        let text = name.strip_suffix(".example").unwrap().replace(
            '-',
            match kind {
                A => ".",
                _ => ":",
            },
        );
        match kind {
            HTTPS_ => {
                let text = text.replace(':', ".");
                let hint = SvcParamValue::Ipv4Hint(IpHint(vec![text
                    .parse::<std::net::Ipv4Addr>()
                    .unwrap()
                    .into()]));
                let data = SVCB::new(1, Owner::root(), vec![(SvcParamKey::Ipv4Hint, hint)]);
                says(vec![record(name, 60, RData::HTTPS(HTTPS(data)))])
            }
            _ => says(vec![address(name, 60, GOOD), address(name, 60, &text)]),
        }
    });
    let mut asking = Asking::new(
        policy(Preset::PublicOnly, &["allow@10.1.0.0/16"]),
        vec![server],
    );
    let none = (ResponseCode::NXDomain, Vec::new());
    for inner in [
        "192-168-1-1",
        "127-0-0-1",
        "0-0-0-0",
        "169-254-169-254",
        "10-2-0-1",
        "100-64-0-1",
        "168-63-129-16",
        "224-0-0-1",
        "255-255-255-255",
        "10-9-0-1",
    ] {
        let name = format!("{inner}.example");
        assert_eq!(asking.told(&name, A), none, "{name}");
        assert_eq!(asking.told(&name, HTTPS_), none, "{name}");
        assert!(!asking.pinned(&name, &inner.replace('-', ".")), "{name}");
        assert!(!asking.pinned(&name, GOOD), "{name}");
    }
    for inner in [
        "--1",
        "fd00-ec2--254",
        "fe80--1",
        "64-ff9b--a9fe-a9fe",
        "--ffff-7f00-1",
        "2002-7f00-1--",
    ] {
        let name = format!("{inner}.example");
        // A label does not begin or end with a hyphen; these names are asked for as they cannot be.
        if Name::parse(&name).is_some() {
            assert_eq!(asking.told(&name, AAAA), none, "{name}");
        }
    }
    assert!(asking.recorded("an answer with 192.168.1.1, which the policy does not allow"));
    // Unless the policy says so.
    assert_eq!(asking.told("10-1-2-3.example", A).1, [GOOD, "10.1.2.3"]);

    // The first time public, the second time not.
    assert_eq!(asking.told("rebind.example", A).1, [GOOD]);
    assert_eq!(asking.told("rebind.example", A), none);
    assert!(!asking.pinned("rebind.example", "192.168.1.1"));
    assert!(asking.pinned("rebind.example", GOOD));
    assert!(!asking.connects("192.168.1.1", 80));
}

#[test]
fn a_name_is_no_other_name_for_one_that_is_denied() {
    let (server, _) = server(|name, kind, _| match (name, kind) {
        ("hosted.example", _) => says(vec![
            alias(name, "any.cdn.test"),
            address("any.cdn.test", 60, GOOD),
        ]),
        ("cloaked.example", HTTPS_) => {
            let data = SVCB::new(1, owner("x.ads.example"), Vec::new());
            says(vec![record(name, 60, RData::HTTPS(HTTPS(data)))])
        }
        ("cloaked.example", CNAME_) => says(vec![alias(name, "x.ads.example")]),
        ("cloaked.example", _) => says(vec![
            alias(name, "y.cdn.test"),
            alias("y.cdn.test", "x.ads.example"),
            address("x.ads.example", 60, GOOD),
        ]),
        (_, _) => says(vec![
            alias(name, "dns.google"),
            address("dns.google", 60, "8.8.8.8"),
        ]),
    });
    let rules = [
        "deny@.ads.example",
        "allow@*.example.com",
        "allow@hosted.example",
        "allow@cloaked.example",
    ];
    let mut asking = Asking::new(policy(Preset::None, &rules), vec![server]);
    // Who allows a name allows it wherever it is hosted.
    assert_eq!(asking.told("hosted.example", A).1, [GOOD]);
    assert!(asking.pinned("hosted.example", GOOD));
    for kind in [A, HTTPS_, CNAME_] {
        let none = (ResponseCode::NXDomain, Vec::new());
        assert_eq!(asking.told("cloaked.example", kind), none, "{kind}");
    }
    assert!(!asking.pinned("cloaked.example", GOOD));
    assert!(asking.recorded("leads to x.ads.example"));
    // Nor for a way past this resolver (N20).
    assert_eq!(asking.told("doh.example.com", A).0, ResponseCode::NXDomain);
}

#[test]
fn n18_denied_names_are_nobody_s_business() {
    let (server, log) = server(|name, _, _| says(vec![address(name, 60, GOOD)]));
    let mut asking = Asking::new(policy(Preset::None, &["allow@good.example"]), vec![server]);
    for kind in [A, AAAA, TXT_, PTR, HTTPS_] {
        let message = asking.ask("secret.evil.example", kind);
        assert_eq!(message.response_code(), ResponseCode::NXDomain);
        // So that it is not asked for again at once.
        let soa = &message.name_servers()[0];
        assert_eq!((soa.record_type(), soa.ttl()), (RecordType::SOA, 10));
        let message = asking.ask_over_tcp("secret.evil.example", kind);
        assert_eq!(message.response_code(), ResponseCode::NXDomain);
    }
    assert!(asking.recorded("\"name\":\"secret.evil.example\",\"action\":\"deny\""));
    assert_eq!(asking.told("good.example", A).1, [GOOD]);
    assert_eq!(names(&log), ["good.example"]);
}

#[test]
fn n19_types_that_carry_data_are_refused_and_on_record() {
    let (server, log) = server(|name, kind, _| match kind {
        TXT_ => says(vec![record(
            name,
            60,
            RData::TXT(TXT::new(vec!["v=spf1 -all".into()])),
        )]),
        _ => says(Vec::new()),
    });
    let mut asking = Asking::new(policy(Preset::PublicOnly, &[]), vec![server]);
    for kind in [NULL, 255, 252, 251, 65_399, 25, 48] {
        let message = asking.ask("data.example", kind);
        assert_eq!(message.response_code(), ResponseCode::Refused, "{kind}");
    }
    assert!(names(&log).is_empty());
    assert!(asking.recorded("questions of type 10 are not answered"));
    assert_eq!(asking.ask("data.example", TXT_).answers().len(), 1);
}

#[test]
fn n19_a_tunnel_is_choked_and_on_record() {
    let (server, log) = server(|name, _, _| says(vec![address(name, 60, GOOD)]));
    let mut asking = Asking::new(
        policy(Preset::None, &["allow@*.tunnel.example"]),
        vec![server],
    );
    let mut refused = 0;
    for n in 0..300u32 {
        let label = format!(
            "{:x}{:x}{:x}",
            n.wrapping_mul(0x9e37_79b9),
            n.wrapping_mul(0x85eb_ca6b),
            n.wrapping_mul(0xc2b2_ae35) | 1 << 31
        );
        let name = format!("{label:a<30}{n}.tunnel.example");
        let message = asking.ask(&name, A);
        refused += usize::from(message.response_code() == ResponseCode::Refused);
    }
    assert!(refused > 100, "{refused}");
    assert!(names(&log).len() + refused <= 300);
    assert!(asking.recorded("limit: 32 bytes per second in names that look like data"));
    // What is known is told all the same, and so are other names.
    let known = names(&log)[0].clone();
    assert_eq!(asking.told(&known, A).1, [GOOD]);
    assert_eq!(asking.told("www.tunnel.example", A).1, [GOOD]);
}

#[test]
fn n20_ways_past_the_resolver_are_closed() {
    inside(
        "names::closed::n20_ways_past_the_resolver_are_closed",
        || {
            let (server, log) = server(|name, _, _| says(vec![address(name, 60, "8.8.8.8")]));
            let rules = ["allow@example.org", "deny@ads.example"];
            let mut asking = Asking::new(policy(Preset::AllowAll, &rules), vec![server]);
            for (address, port) in [
                ("8.8.8.8", 853),
                ("9.9.9.9", 853),
                ("1.1.1.1", 443),
                ("8.8.8.8", 443),
                ("2606:4700:4700::1111", 443),
                ("8.8.8.8", 5355),
                ("10.0.0.5", 139),
            ] {
                assert!(!asking.connects(address, port), "{address} {port}");
            }
            for (address, port) in [
                ("8.8.8.8", 853),
                ("8.8.8.8", 443),
                ("10.0.0.5", 5353),
                ("8.8.8.8", 5355),
                ("10.0.0.5", 137),
            ] {
                assert!(asking.prohibited(address, port), "{address} {port}");
            }
            for (address, port) in [
                ("224.0.0.251", 5353),
                ("ff02::fb", 5353),
                ("224.0.0.252", 5355),
            ] {
                let packet = reply::udp(
                    (own(address), 4001),
                    (address.parse().unwrap(), port),
                    b"secret",
                );
                asking.guest.packet(&packet);
            }
            asking
                .guest
                .until("dropped", |guest| guest.metric("dropped_target") == 3);
            for name in [
                "dns.google",
                "cloudflare-dns.com",
                "x.cloudflare-dns.com",
                "use-application-dns.net",
            ] {
                assert_eq!(asking.told(name, A).0, ResponseCode::NXDomain, "{name}");
            }
            // Nor does a name that may be asked for lead there.
            let mut listed =
                Asking::new(policy(Preset::None, &["allow@*.example.org"]), vec![server]);
            assert_eq!(listed.told("x.example.org", A).0, ResponseCode::NXDomain);
            assert_eq!(names(&log), ["x.example.org"]);
            // A rule that means it is enough.
            let meant = ["allow@dns.google", "allow@8.8.8.8:tcp:853"];
            let mut asking = Asking::new(policy(Preset::None, &meant), vec![server]);
            assert_eq!(asking.told("dns.google", A).1, ["8.8.8.8"]);
        },
    );
}

#[test]
fn n29_a_family_that_is_not_there_is_not_told() {
    let (server, log) = server(|name, kind, _| match kind {
        HTTPS_ => {
            let v4 =
                SvcParamValue::Ipv4Hint(IpHint(vec![
                    std::net::Ipv4Addr::new(93, 184, 215, 14).into()
                ]));
            let v6 = "2a00:1450::1".parse::<std::net::Ipv6Addr>().unwrap();
            let v6 = SvcParamValue::Ipv6Hint(IpHint(vec![v6.into()]));
            let hints = vec![(SvcParamKey::Ipv4Hint, v4), (SvcParamKey::Ipv6Hint, v6)];
            says(vec![record(
                name,
                60,
                RData::HTTPS(HTTPS(SVCB::new(1, Owner::root(), hints))),
            )])
        }
        _ => says(vec![address(name, 60, GOOD)]),
    });
    let mut alone = config();
    alone.ends.v6 = None;
    let servers = Servers::fixed(vec![server]);
    let mut asking = Asking::with(
        alone,
        policy(Preset::PublicOnly, &[]),
        servers,
        Mode::Resolve,
    );
    let message = asking.ask("both.example", AAAA);
    assert_eq!(message.response_code(), ResponseCode::NoError);
    assert!(message.answers().is_empty() && names(&log).is_empty());
    assert_eq!(asking.told("both.example", A).1, [GOOD]);
    let message = asking.ask("both.example", HTTPS_);
    let RData::HTTPS(data) = message.answers()[0].data() else {
        panic!("{message:?}");
    };
    let keys: Vec<_> = data.0.svc_params().iter().map(|(key, _)| *key).collect();
    assert_eq!(keys, [SvcParamKey::Ipv4Hint]);
}

#[test]
fn n35_the_host_has_a_name_only_if_it_may_be_reached() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let open = listener.local_addr().unwrap().port();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let shut = other.local_addr().unwrap().port();
    let (server, log) = server(|name, _, _| says(vec![address(name, 60, GOOD)]));
    let name = "host.microsandbox.internal";
    let mut asking = Asking::new(policy(Preset::PublicOnly, &[]), vec![server]);
    assert_eq!(asking.told(name, A).0, ResponseCode::NXDomain);
    assert!(!asking.connects("10.9.0.1", open));

    let rule = format!("allow@host:tcp:{open}");
    let mut asking = Asking::new(policy(Preset::None, &[&rule]), vec![server]);
    assert_eq!(asking.told(name, A).1, ["10.9.0.1"]);
    assert_eq!(asking.told(name, AAAA).1, ["fd09::1"]);
    assert!(asking.connects("10.9.0.1", open));
    assert!(!asking.connects("10.9.0.1", shut));
    assert!(names(&log).is_empty());
}
