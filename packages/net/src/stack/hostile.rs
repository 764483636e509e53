//! Tests of a guest that attacks, frame by frame (ADVERSARIAL N01, N26 to N28, N30), and of links that fail.

use super::namespace::{guest_of, inside, message, permit_echo, ping, Canary};
use super::packet::{self, ETHERNET};
use super::reply;
use super::testing::{allow_all, ends, Guest, Pace, Rules};
use super::tests::{datagram, delivered, echo_server, icmp, pattern, server};
use super::End;
use crate::policy::{Action, Protocol};
use smoltcp::socket::tcp::State;
use std::io::Read;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::time::Duration;

/// Wait until everything sent so far was looked at: the gateway answers in order.
fn settle(guest: &mut Guest, mark: &[u8]) {
    guest.packet(&ping("10.9.0.1", mark));
    let answer = |frame: &[u8]| message(frame).filter(|told| told[0] == 0 && told.ends_with(mark));
    guest.find("the gateway's answer", answer);
}

/// A TCP segment of the guest.
fn segment(target: &str, ports: (u16, u16), numbers: (u32, u32), flags: u8) -> Vec<u8> {
    let target: IpAddr = target.parse().unwrap();
    let own = guest_of(target);
    let mut bytes = vec![0; 20];
    bytes[..2].copy_from_slice(&ports.0.to_be_bytes());
    bytes[2..4].copy_from_slice(&ports.1.to_be_bytes());
    bytes[4..8].copy_from_slice(&numbers.0.to_be_bytes());
    bytes[8..12].copy_from_slice(&numbers.1.to_be_bytes());
    bytes[12..16].copy_from_slice(&[5 << 4, flags, 0xff, 0xff]);
    let value = packet::checksum(own, target, packet::TCP, &bytes);
    bytes[16..18].copy_from_slice(&value.to_be_bytes());
    reply::whole(own, target, packet::TCP, &bytes)
}

/// An ICMP message of the guest with a right checksum.
fn told(target: &str, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = ping(target, body);
    let (at, v4) = if packet[0] >> 4 == 4 {
        (20, true)
    } else {
        (40, false)
    };
    packet[at] = kind;
    packet[at + 2..at + 4].copy_from_slice(&[0, 0]);
    let target: IpAddr = target.parse().unwrap();
    let value = match v4 {
        true => !packet::sum(&packet[at..], 0),
        false => packet::checksum(guest_of(target), target, packet::ICMP6, &packet[at..]),
    };
    packet[at + 2..at + 4].copy_from_slice(&value.to_be_bytes());
    packet
}

fn works(guest: &mut Guest, port: u16) {
    let pace = Pace::begin();
    let handle = guest.connected("127.0.0.1", port);
    guest.write(handle, b"hello");
    guest.socket(handle).close();
    assert_eq!(guest.read_to_end(handle).unwrap(), b"hello");
    let took = pace.passed();
    assert!(took < Duration::from_secs(1), "{took:?}");
}

// -- What is no flow -------------------------------------------------------------------------------

#[test]
fn nothing_but_tcp_udp_and_echo_leaves_even_where_all_is_allowed() {
    inside(
        "hostile::nothing_but_tcp_udp_and_echo_leaves_even_where_all_is_allowed",
        || {
            permit_echo();
            let canary = Canary::new();
            let mut guest = Guest::open(allow_all());
            for (target, icmp, request) in [
                ("198.51.100.77", packet::ICMP4, 8),
                ("2001:db8::77", packet::ICMP6, 128),
            ] {
                let address: IpAddr = target.parse().unwrap();
                for protocol in 0..=255u8 {
                    if ![packet::TCP, packet::UDP, icmp].contains(&protocol) {
                        let packet = reply::whole(guest_of(address), address, protocol, &[0; 40]);
                        guest.packet(&packet);
                    }
                }
                // Redirects, advertisements of routers, answers nobody asked for, all with a payload.
                for kind in (0..=255u8).filter(|kind| *kind != request) {
                    guest.packet(&told(target, kind, b"secret"));
                }
                guest.turn();
            }
            settle(&mut guest, b"last");
            guest.stack.stop();
            let heard = canary.heard();
            assert!(heard.is_empty(), "{heard:?}");
        },
    );
}

#[test]
fn echo_carries_nothing_where_only_tcp_is_allowed() {
    inside(
        "hostile::echo_carries_nothing_where_only_tcp_is_allowed",
        || {
            permit_echo();
            let canary = Canary::new();
            let mut guest = Guest::open(Rules::new(|flow| match flow.protocol {
                Protocol::Tcp => Action::Allow,
                _ => Action::Deny,
            }));
            for target in ["198.51.100.77", "2001:db8::77"] {
                guest.packet(&ping(target, &[b's'; 1200]));
                let code = guest.find("prohibited", icmp);
                assert!([(3, 13), (1, 1)].contains(&code), "{code:?}");
            }
            guest.stack.stop();
            assert!(canary.heard().is_empty());
        },
    );
}

#[test]
fn headers_that_hide_what_follows_are_dropped() {
    let mut guest = Guest::open(Rules::new(|flow| panic!("asked about {flow:?}")));
    let target: IpAddr = "2001:db8::1".parse().unwrap();
    let own = guest_of(target);
    let whole = datagram("2001:db8::1", 1000, 2000, &[7; 64]);
    let udp = &whole[40..];
    let with = |next: u8, header: &[u8]| {
        let payload = [header, udp].concat();
        reply::whole(own, target, next, &payload)
    };
    let mut count = 0;
    // Hop-by-hop with a jumbo option, routing of type 0, options, authentication, ESP, and chains of them.
    for (next, header) in [
        (0, vec![17, 0, 0xc2, 4, 0, 1, 0, 0]),
        (43, [&[17, 2, 0, 1, 0, 0, 0, 0][..], &[0xfd; 16]].concat()),
        (60, vec![17, 0, 1, 4, 0, 0, 0, 0]),
        (51, vec![17, 2, 0, 0, 0, 0, 0, 1]),
        (50, vec![0; 16]),
        (0, vec![43, 0, 1, 4, 0, 0, 0, 0]),
        (44, vec![44, 0, 0, 0, 0, 0, 0, 1]),
        (44, vec![60, 0, 0, 0, 0, 0, 0, 2]),
    ] {
        guest.packet(&with(next, &header));
        count += 1;
    }
    // A jumbogram: a length of 0.
    let mut jumbo = with(0, &[17, 0, 0xc2, 4, 0, 1, 0, 0]);
    jumbo[4..6].copy_from_slice(&[0, 0]);
    guest.packet(&jumbo);
    count += 1;
    // Record route and loose source route of IPv4, with right checksums.
    for option in [7u8, 131] {
        let plain = datagram("192.0.2.1", 1000, 2000, b"x");
        let mut packet = [
            &plain[..20],
            &[option, 7, 4, 198, 51, 100, 1, 0],
            &plain[20..],
        ]
        .concat();
        let length = packet.len() as u16;
        packet[0] = 0x47;
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        packet[10..12].copy_from_slice(&[0, 0]);
        let value = !packet::sum(&packet[..28], 0);
        packet[10..12].copy_from_slice(&value.to_be_bytes());
        guest.packet(&packet);
        count += 1;
    }
    settle(&mut guest, b"last");
    assert_eq!(guest.metric("dropped_extension"), count);
}

#[test]
fn fragments_that_lie_are_dropped_and_honest_ones_arrive() {
    let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = sink.local_addr().unwrap().port();
    let mut guest = Guest::open(allow_all());
    let data = pattern(4000);
    let pieces = |id| reply::fragments(datagram("127.0.0.1", 1000, to, &data), 1280, id);
    // The second piece again, with other bytes: the datagram is dropped, whichever of them is meant.
    let mut all = pieces(1);
    let mut other = all[1].clone();
    *other.last_mut().unwrap() ^= 1;
    all.insert(2, other);
    for piece in all {
        guest.packet(&piece);
    }
    // The ping of death: a last piece that ends beyond 65,535 bytes.
    for offset in [65_528usize, 65_000] {
        let mut last = ping("127.0.0.1", &[0; 600]);
        last[6..8].copy_from_slice(&((offset / 8) as u16).to_be_bytes());
        last[10..12].copy_from_slice(&[0, 0]);
        let value = !packet::sum(&last[..20], 0);
        last[10..12].copy_from_slice(&value.to_be_bytes());
        guest.packet(&last);
    }
    // More datagrams begun than are kept.
    for id in 100..5100 {
        guest.packet(&pieces(id)[0]);
    }
    settle(&mut guest, b"flood");
    assert!(guest.metric("dropped_fragment") >= 3);
    assert_eq!(guest.metric("bytes_sent"), 0);
    // The upper protocol is seen though its header comes in two pieces, the second of them first.
    let whole = datagram("127.0.0.1", 1001, to, b"in pieces of eight");
    for piece in reply::fragments(whole, 28, 9000).iter().rev() {
        guest.packet(piece);
    }
    for piece in pieces(9001) {
        guest.packet(&piece);
    }
    let mut got = vec![0; 9000];
    let count = sink.recv(&mut got).unwrap();
    assert_eq!(got[..count], *b"in pieces of eight");
    let count = sink.recv(&mut got).unwrap();
    assert!(got[..count] == data);
}

#[test]
fn nobody_else_is_believed_to_be_on_the_link() {
    let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = sink.local_addr().unwrap().port();
    let mut guest = Guest::open(allow_all());
    let ends = ends();
    let (own, gateway) = ends.v4.unwrap();
    let arp = |operation: u8, sender: [u8; 4], asked: [u8; 4]| {
        [
            &[0xff; 6][..],
            &ends.guest_mac,
            &[8, 6, 0, 1, 8, 0, 6, 4, 0, operation],
            &ends.guest_mac,
            &sender,
            &[0; 6],
            &asked,
        ]
        .concat()
    };
    // The guest is the gateway; somebody else asks; who has a neighbour of the host; tagged frames.
    guest.frame(&arp(2, gateway.octets(), own.octets()));
    guest.frame(&arp(1, gateway.octets(), gateway.octets()));
    guest.frame(&arp(1, [10, 9, 0, 77], gateway.octets()));
    guest.frame(&arp(1, own.octets(), [198, 51, 100, 77]));
    let datagram4 = datagram("127.0.0.1", 1000, to, b"x");
    let tagged = [
        &ends.gateway_mac[..],
        &ends.guest_mac,
        &[0x81, 0, 0, 1, 8, 0],
        &datagram4,
    ]
    .concat();
    guest.frame(&tagged);
    for source in [
        "10.9.0.1",
        "10.9.0.3",
        "127.0.0.1",
        "198.51.100.1",
        "0.0.0.0",
    ] {
        let source: IpAddr = source.parse().unwrap();
        let target: IpAddr = "127.0.0.1".parse().unwrap();
        guest.packet(&reply::udp((source, 1000), (target, to), b"spoofed"));
    }
    for source in ["fd09::1", "fd09::3", "fe80::2", "::1", "::"] {
        let source: IpAddr = source.parse().unwrap();
        let target: IpAddr = "2001:db8::1".parse().unwrap();
        guest.packet(&reply::udp((source, 1000), (target, to), b"spoofed"));
    }
    settle(&mut guest, b"last");
    assert_eq!(guest.metric("dropped_spoofed"), 12);
    assert_eq!(guest.metric("datagrams_opened"), 0);
    assert!(guest.seen.is_empty(), "{:?}", guest.seen);
    // Answers go to the one guest of the link.
    guest.packet(&datagram4);
    let (_, from) = sink.recv_from(&mut [0; 10]).unwrap();
    sink.send_to(b"answer", from).unwrap();
    let frame = guest.find("an answer", |frame| {
        delivered(frame, 1000).map(|_| frame.to_vec())
    });
    assert_eq!(frame[..6], ends.guest_mac);
    assert_eq!(frame[ETHERNET + 16..ETHERNET + 20], own.octets());
}

#[test]
fn a_hop_limit_of_one_reaches_the_gateway_and_nobody_else() {
    let mut guest = Guest::open(Rules::new(|flow| panic!("asked about {flow:?}")));
    let mut last = datagram("2001:db8::1", 1000, 2000, b"x");
    last[7] = 1;
    guest.packet(&last);
    assert_eq!(guest.find("time exceeded", icmp), (3, 0));
    let mut near = ping("fd09::1", b"near");
    near[7] = 1;
    guest.packet(&near);
    assert_eq!(guest.find("an echo", icmp), (129, 0));
}

// -- Floods ----------------------------------------------------------------------------------------

#[test]
fn storms_of_segments_harm_no_honest_flow() {
    let port = echo_server("127.0.0.1");
    let mut guest = Guest::open(allow_all());
    let kept: Vec<_> = (0..20)
        .map(|_| guest.connected("127.0.0.1", port))
        .collect();
    // Resets, data and ends of streams that nobody has, and resets out of the window of those that are.
    for from in 20_000..30_000u16 {
        let flags = [4, 16, 17, 1, 41, 63][usize::from(from) % 6];
        guest.packet(&segment("127.0.0.1", (from, port), (7, 9), flags));
        if from % 64 == 0 {
            guest.turn();
        }
    }
    settle(&mut guest, b"storm");
    assert!(guest.metric("tcp_now") <= 20 + 512);
    works(&mut guest, port);
    for handle in kept {
        guest.write(handle, b"still");
        guest.socket(handle).close();
        assert_eq!(guest.read_to_end(handle).unwrap(), b"still");
    }
    guest.until("no flow is left", |guest| guest.metric("tcp_now") == 0);
}

#[test]
fn guests_that_never_end_a_stream_leave_room_for_others() {
    // The servers have ended; the guest does not.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ended = listener.local_addr().unwrap().port();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let port = echo_server("127.0.0.1");
    let mut guest = Guest::open(allow_all());
    let handles: Vec<_> = (0..300)
        .map(|_| guest.connect_with("127.0.0.1", ended, 1024))
        .collect();
    guest.until("all servers ended", |guest| {
        handles
            .iter()
            .all(|handle| guest.state(*handle) == State::CloseWait)
    });
    assert_eq!(guest.metric("tcp_now"), 300);
    works(&mut guest, port);
}

#[test]
fn without_descriptors_flows_are_refused_and_later_ones_are_not() {
    inside(
        "hostile::without_descriptors_flows_are_refused_and_later_ones_are_not",
        || {
            use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};
            // Nobody accepts: the kernel answers for the server, which costs no descriptor.
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
            let to = sink.local_addr().unwrap().port();
            let mut guest = Guest::open(allow_all());
            let before = getrlimit(Resource::Nofile);
            let open = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
            let few = Rlimit {
                current: Some(open + 20),
                ..before
            };
            setrlimit(Resource::Nofile, few).unwrap();
            let handles: Vec<_> = (0..60).map(|_| guest.connect("127.0.0.1", port)).collect();
            guest.until("flows are refused", |guest| guest.metric("failed") >= 30);
            assert_eq!(guest.find("unreachable", icmp), (3, 1));
            for from in 1000..1100 {
                guest.packet(&datagram("127.0.0.1", from, to, b"x"));
            }
            settle(&mut guest, b"datagrams");
            assert_eq!(guest.stack.end(), None);
            let open = |guest: &mut Guest| {
                let open = |handle: &&_| guest.state(**handle) == State::Established;
                handles.iter().filter(open).count()
            };
            guest.until("some are not", |guest| open(guest) > 0);
            let connected = open(&mut guest);
            assert!((1..=30).contains(&connected), "{connected}");
            for handle in handles {
                guest.socket(handle).abort();
            }
            setrlimit(Resource::Nofile, before).unwrap();
            guest.until("no flow is left", |guest| guest.metric("tcp_now") == 0);
            guest.connected("127.0.0.1", port);
        },
    );
}

// -- Links that fail -------------------------------------------------------------------------------

#[test]
fn a_link_that_is_not_read_costs_no_more_than_its_queue() {
    inside(
        "hostile::a_link_that_is_not_read_costs_no_more_than_its_queue",
        || {
            let port = echo_server("127.0.0.1");
            let mut guest = Guest::open(allow_all());
            works(&mut guest, port);
            let before = super::soak::resident();
            // 70 MB of questions whose answers nobody takes.
            let question = ping("10.9.0.1", &[7; 1400]);
            for _ in 0..50_000 {
                guest.packet(&question);
            }
            let grown = super::soak::resident().saturating_sub(before);
            assert!(grown < 32 << 10, "{grown} kB");
            assert!(guest.metric("dropped_full") > 10_000);
            settle(&mut guest, b"read again");
            guest.seen.clear();
            works(&mut guest, port);
        },
    );
}

#[test]
fn a_link_cut_inside_a_frame_ends_loudly_and_every_flow_with_it() {
    let (port, thread) = server(|mut client| client.read_to_end(&mut Vec::new()));
    let mut guest = Guest::open(allow_all());
    guest.connected("127.0.0.1", port);
    guest.bytes(&[0, 0, 5]);
    guest.hang_up();
    let why = End::Failed("the link ended inside a frame".to_owned());
    assert_eq!(guest.ended(), why);
    // The server sees an end or a reset, and no byte more.
    assert!(matches!(thread.join().unwrap(), Ok(0) | Err(_)));
}

#[test]
fn a_panic_ends_every_flow_with_the_link() {
    let (port, thread) = server(|mut client| client.read_to_end(&mut Vec::new()));
    let mut guest = Guest::open(Rules::new(move |flow| match flow.port {
        Some(known) if known == port => Action::Allow,
        _ => panic!("a rule that is broken"),
    }));
    guest.connected("127.0.0.1", port);
    guest.connect("127.0.0.1", 9);
    assert!(matches!(guest.ended(), End::Failed(_)));
    guest.until("closed", |guest| guest.closed);
    assert!(matches!(thread.join().unwrap(), Ok(0) | Err(_)));
}
