use super::*;
use crate::policy::{Direction, Name, Names, Preset};
use proptest::prelude::*;
use std::time::Instant;

fn policy(preset: Preset, rules: &[&str]) -> Policy {
    let rules = rules.iter().map(|text| text.parse().expect(text)).collect();
    Policy::new(preset, rules, Names::Strict).expect("a policy")
}

/// Whether a client passes that connects to 93.184.215.14, which is proxy.example and
/// example.com, and begins with `bytes`.
fn passes(policy: &Policy, port: u16, bytes: &[u8]) -> bool {
    let address = "93.184.215.14".parse().unwrap();
    let mut pins = Pins::default();
    for name in ["proxy.example", "example.com"] {
        pins.pin(&Name::parse(name).unwrap(), address, Instant::now());
    }
    let flow = Flow {
        direction: Direction::Egress,
        protocol: Protocol::Tcp,
        address,
        port: Some(port),
        name: None,
    };
    let opening = decide(&flow, policy, &pins);
    let mut client = Client::default();
    let mut rest = bytes;
    let mut passes = opening.action != Action::Deny;
    while !rest.is_empty() {
        let (read, said) = client.feed(rest);
        rest = &rest[read..];
        let verdict = match said {
            Said::More | Said::Pass => continue,
            Said::Asked(asked) => decide_asked(&flow, &asked, policy, &pins),
            Said::Nothing => opening.clone().unnamed(),
            Said::Wait => break,
            Said::Malformed(_) => return false,
        };
        passes &= verdict.action == Action::Allow;
    }
    passes
}

pub fn hello(name: &str) -> Vec<u8> {
    let entry = [&[0, 0, name.len() as u8][..], name.as_bytes()].concat();
    let list = [&[0, entry.len() as u8][..], &entry].concat();
    let extension = [&[0, 0, 0, list.len() as u8][..], &list].concat();
    let mut body = [&[3, 3][..], &[0; 32], &[0, 0, 2, 0x13, 1, 1, 0]].concat();
    body.extend([0, extension.len() as u8]);
    body.extend(extension);
    let message = [&[1, 0, 0, body.len() as u8][..], &body].concat();
    [&[22, 3, 1, 0, message.len() as u8][..], &message].concat()
}

#[test]
fn n02_n04_n06_names_are_held_to_the_rule() {
    let listed = policy(Preset::None, &["allow@example.com"]);
    assert!(passes(&listed, 443, &hello("example.com")));
    assert!(!passes(&listed, 443, &hello("sibling.example")));
    assert!(!passes(&listed, 443, &hello("93.184.215.14")));
    let get = |host: &str| format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes();
    assert!(passes(&listed, 80, &get("example.com")));
    assert!(!passes(&listed, 80, &get("evil.example")));
    assert!(!passes(&listed, 80, &get("93.184.215.14")));
    assert!(!passes(&listed, 22, b"SSH-2.0-x\r\n"));
    let open = policy(Preset::PublicOnly, &["deny@evil.example"]);
    assert!(passes(&open, 22, b"SSH-2.0-x\r\n"));
    assert!(passes(&open, 80, &get("93.184.215.14")));
    assert!(!passes(&open, 80, &get("evil.example")));
    assert!(!passes(&open, 443, &hello("evil.example")));
}

#[test]
fn n22_what_is_asked_of_a_proxy_is_decided_on_as_well() {
    let connect = |to: &str| format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n");
    let open = policy(
        Preset::PublicOnly,
        &["deny@evil.example", "deny@any:tcp:25"],
    );
    for (to, expected) in [
        ("example.com:443", true),
        ("93.184.215.15:443", true),
        ("evil.example:443", false),
        ("10.0.0.1:22", false),
        ("169.254.169.254:80", false),
        ("metadata.google.internal:80", false),
        ("[::ffff:127.0.0.1]:22", false),
        ("[64:ff9b::a00:1]:22", false),
        ("host.microsandbox.internal:22", false),
        ("example.com:25", false),
        ("8.8.8.8:53", false),
    ] {
        assert_eq!(
            passes(&open, 3128, connect(to).as_bytes()),
            expected,
            "{to}"
        );
        let socks = match Authority::parse(to).unwrap() {
            Authority {
                host: Host::Name(name),
                port: Some(port),
            } => {
                let name = name.as_str().as_bytes();
                let head = [&[5, 1, 0, 5, 1, 0, 3, name.len() as u8][..], name].concat();
                [&head[..], &port.to_be_bytes()].concat()
            }
            Authority {
                host: Host::Address(std::net::IpAddr::V4(v4)),
                port: Some(port),
            } => [&[4, 1][..], &port.to_be_bytes(), &v4.octets(), b"me\0"].concat(),
            _ => continue,
        };
        assert_eq!(passes(&open, 1080, &socks), expected, "SOCKS {to}");
    }
    let get = b"GET http://10.0.0.1/ HTTP/1.1\r\nHost: 10.0.0.1\r\n\r\n";
    assert!(!passes(&open, 3128, get));
    // Only the proxy is allowed.
    let listed = policy(Preset::None, &["allow@93.184.215.14:tcp:3128"]);
    assert!(!passes(
        &listed,
        3128,
        connect("internal.example:22").as_bytes()
    ));
    assert!(!passes(&listed, 3128, connect("10.0.0.1:22").as_bytes()));
    // UDP through SOCKS goes where nobody sees.
    assert!(!passes(
        &open,
        1080,
        b"\x05\x01\x00\x05\x03\x00\x01\x08\x08\x04\x01\x00\x35"
    ));
}

/// What `client` finds in `bytes`, and how many of them it took.
fn said(client: &mut Client, bytes: &[u8]) -> (Vec<Said>, usize) {
    let (mut all, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let free = usize::try_from(client.free()).unwrap_or(usize::MAX);
        if free > 0 {
            let count = free.min(bytes.len() - at);
            client.skip(count as u64);
            at += count;
            continue;
        }
        let (read, said) = client.feed(&bytes[at..]);
        at += read;
        match said {
            Said::More | Said::Pass => {}
            Said::Wait => break,
            Said::Malformed(_) => {
                all.push(said);
                break;
            }
            said => all.push(said),
        }
    }
    (all, at)
}

fn name(text: &str) -> Host {
    Host::parse(text).unwrap()
}

fn own(text: &str) -> Said {
    Said::Asked(Asked::Own(name(text)))
}

fn beyond(text: &str, port: u16) -> Said {
    Said::Asked(Asked::Beyond(name(text), port))
}

const UPGRADE: &[u8] = b"GET / HTTP/1.1\r\nHost: a.example\r\nUpgrade: websocket\r\n\r\n";
const SWITCHED: &[u8] = b"HTTP/1.1 101 x\r\n\r\n";
const CONNECT: &[u8] = b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n";
const CONNECTED: &[u8] = b"HTTP/1.1 200 OK\r\n\r\n";

#[test]
fn n04_every_request_of_a_connection_is_told() {
    let mut client = Client::default();
    let text = b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\n\r\nGET /\
        GET / HTTP/1.1\r\nHost: b.example\r\n\r\n\
        PUT / HTTP/1.1\r\nHost: c.example\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n\
        GET / HTTP/1.1\r\nHost: d.example\r\n\r\n\x16\x03\x01";
    let expected = [
        own("a.example"),
        own("b.example"),
        own("c.example"),
        own("d.example"),
        Said::Malformed("no HTTP behind a request"),
    ];
    assert_eq!(said(&mut client, text).0, expected);
    assert!(matches!(client.feed(b"GET").1, Said::Malformed(_)));
}

#[test]
fn n04_every_stream_of_http_2_is_told() {
    let mut client = Client::default();
    let frames = [
        h2::PREFACE.to_vec(),
        h2::tests::frame(4, 0, 0, &[]),
        h2::tests::get(1, "a.example"),
        h2::tests::frame(0, 1, 1, b"GET / HTTP/1.1\r\n"),
        h2::tests::get(3, "evil.example"),
    ];
    let (all, _) = said(&mut client, &frames.concat());
    assert_eq!(all, [own("a.example"), own("evil.example")]);
    // What begins alike is not taken for it.
    let (all, _) = said(&mut Client::default(), b"PRI * HTTP/2.0\r\n\r\nSX");
    assert_eq!(all, [Said::Nothing]);
    let (all, _) = said(
        &mut Client::default(),
        b"POST / HTTP/1.1\r\nHost: a.example\r\n\r\n",
    );
    assert_eq!(all, [own("a.example")]);
}

#[test]
fn n37_another_protocol_begins_when_the_server_agrees() {
    let both = [UPGRADE, b"\x81\x85frame"].concat();
    let mut client = Client::default();
    assert_eq!(
        said(&mut client, &both),
        (vec![own("a.example")], UPGRADE.len())
    );
    assert!(client.listens());
    client.hear(SWITCHED);
    assert_eq!(said(&mut client, b"\x81\x85frame"), (vec![], 7));
    assert_eq!((client.free(), client.listens()), (u64::MAX, false));

    // The server declines: HTTP goes on, and nothing else passes.
    let mut client = Client::default();
    said(&mut client, UPGRADE);
    client.hear(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let get = b"GET / HTTP/1.1\r\nHost: b.example\r\n\r\n";
    assert_eq!(said(&mut client, get).0, [own("b.example")]);
    client.hear(SWITCHED);
    assert!(matches!(
        said(&mut client, b"\x81\x85frame").0[..],
        [Said::Malformed(_)]
    ));

    // HTTP/2 after an upgrade names whom it is for, too.
    let mut client = Client::default();
    said(
        &mut client,
        b"GET / HTTP/1.1\r\nHost: a.example\r\nUpgrade: h2c\r\n\r\n",
    );
    client.hear(SWITCHED);
    let frames = [h2::PREFACE, &h2::tests::get(3, "evil.example")].concat();
    assert_eq!(said(&mut client, &frames).0, [own("evil.example")]);
}

#[test]
fn n22_what_is_said_inside_of_a_tunnel_is_told() {
    let mut client = Client::default();
    let (all, taken) = said(&mut client, &[CONNECT, &hello("evil.example")].concat());
    assert_eq!(
        (all, taken),
        (vec![beyond("a.example", 443)], CONNECT.len())
    );
    client.hear(CONNECTED);
    assert_eq!(
        said(&mut client, &hello("evil.example")).0,
        [beyond("evil.example", 443)]
    );

    // Nested, and without end.
    let mut client = Client::default();
    for _ in 0..=DEEPEST {
        assert_eq!(said(&mut client, CONNECT).0, [beyond("a.example", 443)]);
        client.hear(CONNECTED);
    }
    assert!(matches!(
        said(&mut client, CONNECT).0[..],
        [Said::Malformed(_)]
    ));

    // SOCKS5, all at once as some clients do: with TLS, and with HTTP in it.
    let socks = b"\x05\x01\x00\x05\x01\x00\x03\x09a.example\x00\x50";
    let inside = [&socks[..], &hello("b.example")].concat();
    let nobody = Said::Asked(Asked::Nobody);
    assert_eq!(
        said(&mut Client::default(), &inside).0,
        [
            nobody.clone(),
            beyond("a.example", 80),
            beyond("b.example", 80)
        ]
    );
    let inside = [&socks[..], b"GET / HTTP/1.1\r\nHost: c.example\r\n\r\n"].concat();
    assert_eq!(
        said(&mut Client::default(), &inside).0,
        [nobody, beyond("a.example", 80), beyond("c.example", 80)]
    );
}

/// A ServerHello, or the one that asks for another ClientHello.
fn server_hello(retry: bool) -> Vec<u8> {
    let mut record = vec![22, 3, 3, 0, 90, 2, 0, 0, 86, 3, 3];
    match retry {
        true => record.extend(second::RETRY),
        false => record.extend([7; 32]),
    }
    record.extend([0; 50]);
    record
}

#[test]
fn n02_a_second_client_hello_states_the_first_one_s_name() {
    let change = b"\x14\x03\x03\x00\x01\x01";
    let early = b"\x17\x03\x03\x00\x05early";
    let again = |to: &str| [&change[..], early, &hello(to), b"\x17\x03\x03rest"].concat();
    for (retry, to, expected) in [
        (true, "good.example", vec![]),
        (
            true,
            "evil.example",
            vec![Said::Malformed("a second ClientHello unlike the first")],
        ),
        // It is no second ClientHello to a server that did not ask for one.
        (false, "evil.example", vec![]),
    ] {
        for size in [1, 7, 1000] {
            let mut client = Client::default();
            let first = hello("good.example");
            let both = [&first[..], &again(to)].concat();
            assert_eq!(
                said(&mut client, &both),
                (vec![own("good.example")], first.len())
            );
            assert!(client.listens());
            server_hello(retry)
                .chunks(size)
                .for_each(|piece| client.hear(piece));
            assert_eq!(said(&mut client, &again(to)).0, expected, "{retry} {to}");
        }
    }
    // A client that goes is not held back by a server that says nothing.
    let mut client = Client::default();
    said(&mut client, &hello("good.example"));
    client.ended();
    assert_eq!(client.free(), u64::MAX);
}

proptest! {
    #[test]
    fn nothing_depends_on_segments(
        change in prop::collection::vec((0..300usize, any::<u8>()), 0..4), size in 1..80usize, which in 0..5usize,
    ) {
        let mut bytes = match which {
            0 => [UPGRADE, UPGRADE].concat(),
            1 => hello("a.example"),
            2 => b"\x05\x01\x00\x05\x01\x00\x03\x09a.example\x00\x50GET / HTTP/1.1\r\nHost: c.d\r\n\r\n".to_vec(),
            3 => [h2::PREFACE, &h2::tests::get(1, "a.example"), &h2::tests::get(3, "b.example")].concat(),
            _ => b"PUT http://a.b/ HTTP/1.1\r\nHost: a.b\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: c.d\r\n\r\n".to_vec(),
        };
        for (at, value) in change {
            let length = bytes.len();
            bytes[at % length] = value;
        }
        let whole = said(&mut Client::default(), &bytes).0;
        let mut client = Client::default();
        let mut pieces = Vec::new();
        for piece in bytes.chunks(size) {
            let (all, taken) = said(&mut client, piece);
            let ends = taken < piece.len() || matches!(all.last(), Some(Said::Malformed(_)));
            pieces.extend(all);
            if ends {
                break;
            }
        }
        prop_assert_eq!(pieces, whole);
    }
}
