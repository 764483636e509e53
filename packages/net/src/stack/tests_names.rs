//! Names on the wire, as a guest's clients state them: what may pass reaches a server on the loopback interface, and
//! of what may not, no server sees the end.

use super::testing::{config, Guest, Rules};
use super::tests::{datagram, icmp, named_rules, server, server_that_reads};
use super::warden::{Ward, Warden};
use crate::client::tests::hello;
use crate::policy::{Action, Names, Policy, Preset};
use crate::wire::h2;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::State;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const GOOD: &[u8] = b"GET / HTTP/1.1\r\nHost: good.example\r\n\r\n";
const EVIL: &[u8] = b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Rules that deny one name, and let all others pass and who states none.
fn evil_denied() -> Box<Rules> {
    Rules::new(|flow| match &flow.name {
        Some(name) if name.as_str() == "evil.example" => Action::Deny,
        _ => Action::Allow,
    })
}

/// What arrives at a server from a client that sends `sent` and ends, if it is not refused.
fn arrives(rules: Box<Rules>, sent: &[u8]) -> Option<Vec<u8>> {
    let (port, thread) = server(|mut client| {
        let mut all = Vec::new();
        client.read_to_end(&mut all).is_ok().then_some(all)
    });
    let mut guest = Guest::open(rules);
    let handle = guest.connected("127.0.0.1", port);
    guest.write(handle, sent);
    guest.socket(handle).close();
    guest.read_to_end(handle);
    let denied = guest
        .stack
        .audit()
        .iter()
        .any(|line| line.contains("\"deny\""));
    let arrived = thread.join().unwrap();
    assert_eq!(arrived.is_none(), denied, "a refusal is on record");
    arrived
}

fn exchange(guest: &mut Guest, handle: SocketHandle, sent: &[u8], expected: &[u8]) {
    guest.write(handle, sent);
    let mut seen = Vec::new();
    guest.until("the answer", |guest| {
        let socket = guest.socket(handle);
        while socket.can_recv() {
            socket
                .recv(|bytes| (bytes.len(), seen.extend_from_slice(bytes)))
                .unwrap();
        }
        seen.len() >= expected.len()
    });
    assert_eq!(seen, expected);
}

/// Answers each of `answers` once as many bytes of requests came as it says, and returns what else came.
fn scripted(answers: Vec<(usize, Vec<u8>)>) -> (u16, JoinHandle<Vec<u8>>) {
    server(move |mut client: TcpStream| {
        for (length, answer) in answers {
            client.read_exact(&mut vec![0; length]).unwrap();
            client.write_all(&answer).unwrap();
        }
        let mut rest = Vec::new();
        let _ = client.read_to_end(&mut rest);
        rest
    })
}

#[test]
fn n04_each_request_of_a_connection_is_decided_by_its_own_host() {
    for rules in [named_rules, evil_denied] {
        let (port, thread) = scripted(vec![(GOOD.len(), OK.to_vec()), (GOOD.len(), OK.to_vec())]);
        let mut guest = Guest::open(rules());
        let handle = guest.connected("127.0.0.1", port);
        exchange(&mut guest, handle, GOOD, OK);
        exchange(&mut guest, handle, GOOD, OK);
        guest.write(handle, EVIL);
        assert_eq!(guest.read_to_end(handle), None);
        // Nothing that a server could act on.
        let rest = thread.join().unwrap();
        assert!(!rest.ends_with(b"\r\n\r\n"), "{rest:?}");
        let records = guest.stack.audit();
        let named = |name: &str| records.iter().filter(|line| line.contains(name)).count();
        // One record per name, not per request.
        assert_eq!(
            (named("good.example"), named("evil.example")),
            (1, 1),
            "{records:?}"
        );
    }
}

#[test]
fn n04_pipelined_requests_and_their_bodies_are_told_apart() {
    let bodies = b"PUT / HTTP/1.1\r\nHost: good.example\r\nContent-Length: 37\r\n\r\nGET / HTTP/1.1\r\nHost: evil.example\r\n\r\n\
        PUT / HTTP/1.1\r\nHost: good.example\r\nTransfer-Encoding: chunked\r\n\r\n25\r\nGET / HTTP/1.1\r\nHost: evil.example\r\n\r\n\r\n0\r\n\r\n";
    let bodies = bodies.replace_length();
    assert_eq!(arrives(named_rules(), &bodies), Some(bodies.clone()));
    assert_eq!(
        arrives(named_rules(), &[&bodies[..], GOOD].concat()),
        Some([&bodies[..], GOOD].concat())
    );
    assert_eq!(arrives(named_rules(), &[&bodies[..], EVIL].concat()), None);
    assert_eq!(
        arrives(evil_denied(), &[&bodies[..], EVIL, GOOD].concat()),
        None
    );
}

trait Lengths {
    fn replace_length(&self) -> Vec<u8>;
}

impl Lengths for [u8] {
    /// With the lengths of `EVIL` in the places of 37 and 25 (hexadecimal).
    fn replace_length(&self) -> Vec<u8> {
        let text = String::from_utf8(self.to_vec()).unwrap();
        let text = text.replace("Length: 37", &format!("Length: {}", EVIL.len()));
        text.replace("\r\n25\r\n", &format!("\r\n{:x}\r\n", EVIL.len()))
            .into_bytes()
    }
}

#[test]
fn s11_what_servers_could_understand_differently_never_arrives() {
    let head = "POST / HTTP/1.1\r\nHost: good.example\r\n";
    for rest in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Content-Length: 0\r\nContent-Length: 40\r\n\r\n",
        "Transfer-Encoding: chunked, identity\r\n\r\n",
        "X: y\r\n Host: evil.example\r\n\r\n",
        "X: y\nHost: evil.example\n\n",
        "Host: evil.example\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5;x=\n\r\n",
    ] {
        // As the first request, and behind a sound one.
        for before in [&b""[..], GOOD] {
            let sent = [before, head.as_bytes(), rest.as_bytes()].concat();
            for rules in [named_rules, evil_denied] {
                assert_eq!(arrives(rules(), &sent), None, "{rest:?}");
            }
        }
    }
}

#[test]
fn n04_each_stream_of_http_2_is_decided_on() {
    let mut good = h2::PREFACE.to_vec();
    good.extend(h2::tests::frame(4, 0, 0, &[]));
    good.extend(h2::tests::get(1, "good.example"));
    good.extend(h2::tests::frame(0, 1, 1, &[7; 5000]));
    assert_eq!(arrives(named_rules(), &good), Some(good.clone()));
    let both = [&good[..], &h2::tests::get(3, "evil.example")].concat();
    assert_eq!(arrives(named_rules(), &both), None);
    assert_eq!(arrives(evil_denied(), &both), None);
}

#[test]
fn n37_a_websocket_passes_once_the_server_agreed() {
    let ask = b"GET /chat HTTP/1.1\r\nHost: good.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let agreed = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n";
    let frames = [&b"\x81\x8fframe"[..], EVIL, b"\n\n\0\0"].concat();
    let (port, thread) = scripted(vec![(ask.len(), agreed.to_vec())]);
    let mut guest = Guest::open(named_rules());
    let handle = guest.connected("127.0.0.1", port);
    // The client does not wait; the stack does.
    let both = [&ask[..], &frames].concat();
    exchange(&mut guest, handle, &both, agreed);
    guest.socket(handle).close();
    assert_eq!(guest.read_to_end(handle), Some(Vec::new()));
    assert_eq!(thread.join().unwrap(), frames);

    let (port, thread) = scripted(vec![(ask.len(), OK.to_vec())]);
    let mut guest = Guest::open(named_rules());
    let handle = guest.connected("127.0.0.1", port);
    guest.write(handle, &both);
    assert_eq!(guest.read_to_end(handle), None);
    assert_eq!(thread.join().unwrap(), b"");
}

#[test]
fn n37_a_websocket_that_rests_for_an_hour_goes_on() {
    let ask = b"GET /chat HTTP/1.1\r\nHost: good.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let agreed = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n";
    let frame = b"\x81\x05hello";
    let pause = Duration::from_secs(30);
    let (port, thread) = scripted(vec![
        (ask.len(), agreed.to_vec()),
        (frame.len(), frame.to_vec()),
        (frame.len(), frame.to_vec()),
    ]);
    let mut guest = Guest::open(named_rules());
    let limits = config().limits;
    let handle = guest.connected("127.0.0.1", port);
    exchange(&mut guest, handle, ask, agreed);
    exchange(&mut guest, handle, frame, frame);
    // What the guest hears of an hour: questions whether it is still there, which it answers.
    let before = guest.metric("frames_to_guest");
    for _ in 0..120 {
        guest.stack.later(pause);
        guest.turn();
    }
    // Question and answer are each noticed up to one pause late.
    let asked = guest.metric("frames_to_guest") - before;
    let expected = 120 * pause.as_secs() / (limits.keepalive + 2 * pause).as_secs();
    assert!(asked >= expected, "{asked}");
    exchange(&mut guest, handle, frame, frame);
    assert!(!thread.is_finished());
    // And that the hour was one: longer than a flow may rest, it does not.
    guest.stack.later(limits.tcp_idle);
    assert_eq!(guest.read_to_end(handle), None);
    assert_eq!(thread.join().unwrap(), b"");
}

/// A guest under a real policy, with a server on the loopback interface that is allowed for itself.
fn with_policy(rules: &[&str], port: u16) -> Guest {
    let texts = rules
        .iter()
        .map(|rule| rule.replace("PORT", &port.to_string()));
    let rules = texts.map(|text| text.parse().expect("a rule")).collect();
    let policy = Policy::new(Preset::None, rules, Names::Strict).unwrap();
    Guest::new(
        config(),
        Box::new(Warden(Ward::new(policy))),
        Box::new(super::dns::Refuser),
    )
}

#[test]
fn n22_a_proxy_reaches_for_the_guest_what_the_guest_may_reach() {
    let connected = b"HTTP/1.1 200 Connection established\r\n\r\n";
    let rules = [
        "allow@127.0.0.1:tcp:PORT",
        "allow@10.0.0.5:tcp:22",
        "allow@.good.example:tcp:443",
    ];
    for (to, inside, passes) in [
        ("10.0.0.5:22", &b"SSH-2.0-x\r\n"[..], true),
        ("www.good.example:443", b"anything", true),
        ("www.good.example:443", &hello("www.good.example"), true),
        ("www.good.example:443", &hello("evil.example"), false),
        ("www.good.example:443", EVIL, false),
        (
            "www.good.example:443",
            b"CONNECT 10.0.0.6:22 HTTP/1.1\r\nHost: 10.0.0.6:22\r\n\r\n",
            false,
        ),
    ] {
        let ask = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n");
        let (port, thread) = scripted(vec![(ask.len(), connected.to_vec())]);
        let mut guest = with_policy(&rules, port);
        let handle = guest.connected("127.0.0.1", port);
        exchange(&mut guest, handle, ask.as_bytes(), connected);
        guest.write(handle, inside);
        guest.socket(handle).close();
        assert_eq!(
            guest.read_to_end(handle).is_some(),
            passes,
            "{to} {inside:?}"
        );
        let arrived = thread.join().unwrap();
        assert_eq!(arrived == inside, passes, "{arrived:?}");
    }
    let proxied =
        |to: &str| format!("GET http://{to}/ HTTP/1.1\r\nHost: {to}\r\n\r\n").into_bytes();
    for ask in [
        b"CONNECT 10.0.0.5:23 HTTP/1.1\r\nHost: 10.0.0.5:23\r\n\r\n".to_vec(),
        b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n".to_vec(),
        b"CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n".to_vec(),
        proxied("evil.example"),
        proxied("10.0.0.5"),
        proxied("169.254.169.254"),
        b"\x04\x01\x00\x17\x0a\x00\x00\x05me\0".to_vec(),
        b"\x04\x01\x00\x50\x00\x00\x00\x01me\0evil.example\0".to_vec(),
        b"\x05\x01\x00\x05\x01\x00\x01\x0a\x00\x00\x06\x00\x16".to_vec(),
        b"\x05\x01\x00\x05\x01\x00\x03\x0cevil.example\x01\xbb".to_vec(),
        b"\x05\x01\x00\x05\x03\x00\x01\x0a\x00\x00\x05\x00\x16".to_vec(),
    ] {
        let (port, thread) = server_that_reads();
        let mut guest = with_policy(&rules, port);
        let handle = guest.connected("127.0.0.1", port);
        guest.write(handle, &ask);
        assert_eq!(guest.read_to_end(handle), None, "{ask:?}");
        let arrived = thread.join().unwrap();
        assert!(
            !arrived.ends_with(&ask[ask.len() - 1..]) || arrived.len() < ask.len(),
            "{arrived:?}"
        );
    }
}

#[test]
fn n22_socks_is_not_held_up() {
    let (port, thread) = scripted(vec![
        (3, vec![5, 0]),
        (10, vec![5, 0, 0, 1, 0, 0, 0, 0, 0, 0]),
    ]);
    let mut guest = with_policy(&["allow@127.0.0.1:tcp:PORT", "allow@10.0.0.5:tcp:22"], port);
    let handle = guest.connected("127.0.0.1", port);
    exchange(&mut guest, handle, &[5, 1, 0], &[5, 0]);
    let request = [5, 1, 0, 1, 10, 0, 0, 5, 0, 22];
    exchange(
        &mut guest,
        handle,
        &request,
        &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0],
    );
    guest.write(handle, b"SSH-2.0-x\r\n");
    guest.socket(handle).close();
    assert_eq!(guest.read_to_end(handle), Some(Vec::new()));
    assert_eq!(thread.join().unwrap(), b"SSH-2.0-x\r\n");
}

#[test]
fn who_needs_no_name_is_not_held_up() {
    // Under rules for names the time for a name would be over long before: here nothing waits for it.
    let (port, thread) = scripted(vec![(5, b"yes".to_vec())]);
    let mut guest = Guest::open(evil_denied());
    let handle = guest.connected("127.0.0.1", port);
    let began = Instant::now();
    exchange(&mut guest, handle, b"hello", b"yes");
    assert!(began.elapsed() < config().limits.naming);
    guest.socket(handle).close();
    guest.read_to_end(handle);
    thread.join().unwrap();
}

#[test]
fn n06_a_hello_in_five_segments_or_thousands_of_records_is_read_whole() {
    for (name, passes) in [("good.example", true), ("evil.example", false)] {
        let whole = hello(name);
        let tiny: Vec<u8> = whole[5..]
            .iter()
            .flat_map(|byte| [22, 3, 1, 0, 1, *byte])
            .collect();
        for bytes in [whole, tiny] {
            let (port, thread) = server_that_reads();
            let mut guest = Guest::open(named_rules());
            let handle = guest.connected("127.0.0.1", port);
            for piece in bytes.chunks(bytes.len() / 5 + 1) {
                guest.write(handle, piece);
                guest.until("sent or refused", |guest| {
                    let refused = guest.state(handle) == State::Closed;
                    refused || guest.socket(handle).send_queue() == 0
                });
            }
            guest.socket(handle).close();
            assert_eq!(guest.read_to_end(handle).is_some(), passes);
            let expected = if passes { bytes } else { Vec::new() };
            assert_eq!(thread.join().unwrap(), expected);
        }
    }
}

#[test]
fn a_policy_that_changes_counts_for_names_that_were_stated() {
    let (port, thread) = scripted(vec![(GOOD.len(), OK.to_vec())]);
    let mut guest = Guest::open(evil_denied());
    let handle = guest.connected("127.0.0.1", port);
    exchange(&mut guest, handle, GOOD, OK);
    guest.stack.set_gate(Rules::new(|flow| match &flow.name {
        Some(name) if name.as_str() == "good.example" => Action::Deny,
        _ => Action::Allow,
    }));
    guest.until("cut", |guest| guest.state(handle) == State::Closed);
    thread.join().unwrap();
}

#[test]
fn what_is_denied_never_passes_however_full_the_link_is() {
    // The guest stops reading its link: the reset has to wait, and the denied bytes still go nowhere.
    // Enough for all the others to connect before, on a busy machine.
    let mut hasty = config();
    hasty.limits.naming = Duration::from_secs(2);
    let (flood, _flooder) = server(|mut client| {
        let chunk = vec![1; 1 << 16];
        while client.write(&chunk).is_ok() {}
    });
    let (port, thread) = server_that_reads();
    let rules = Rules::new(move |flow| match &flow.name {
        _ if flow.port == Some(flood) => Action::Allow,
        None => Action::AllowIfNamed,
        Some(_) => Action::Deny,
    });
    let mut guest = Guest::new(hasty, rules, Box::new(super::dns::Refuser));
    let handle = guest.connected("127.0.0.1", port);
    for _ in 0..8 {
        guest.connected("127.0.0.1", flood);
    }
    guest.socket(handle).send_slice(EVIL).unwrap();
    guest.send_only();
    let arrived = |guest: &mut Guest| {
        guest
            .stack
            .metrics()
            .read()
            .into_iter()
            .any(|(name, count)| name == "denied" && count > 0)
    };
    let deadline = Instant::now() + Duration::from_secs(300);
    while !arrived(&mut guest) {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    assert_eq!(guest.read_to_end(handle), None);
    assert_eq!(thread.join().unwrap(), b"");
}

#[test]
fn n38_quic_is_refused_at_once() {
    let policy = Policy::new(
        Preset::PublicOnly,
        vec!["deny@evil.example".parse().unwrap()],
        Names::Strict,
    )
    .unwrap();
    let mut guest = Guest::new(
        config(),
        Box::new(Warden(Ward::new(policy))),
        Box::new(super::dns::Refuser),
    );
    guest.packet(&datagram("93.184.215.14", 4000, 443, &[0xc3; 1200]));
    // The client is told, and falls back to TCP without waiting.
    assert_eq!(guest.find("prohibited", icmp), (3, 13));
    assert_eq!(guest.metric("datagrams_opened"), 0);
    guest.packet(&datagram("2606:2800:21f:cb07::1", 4000, 443, &[0xc3; 1200]));
    assert_eq!(guest.find("prohibited", icmp), (1, 1));
}
