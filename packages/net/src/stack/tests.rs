//! The stack as a guest meets it, frame by frame, with servers on the loopback interface.

use super::forward::Forwarder;
use super::packet::{self, ETHERNET};
use super::reply;
use super::testing::{allow_all, config, ends, Faults, Guest, Log, Pace, Rules};
use super::warden::{Ward, Warden};
use super::{Answer, Answered, End, Resolver, Transport};
use crate::policy::{Action, Name, Names, Policy, Preset, Protocol};
use smoltcp::socket::tcp::State;
use socket2::SockRef;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// A server that does `work` with its only client.
pub fn server<T: Send + 'static>(
    work: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> (u16, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = thread::spawn(move || work(listener.accept().unwrap().0));
    (port, thread)
}

/// A server that sends back what it gets, to any number of clients.
pub fn echo_server(address: &str) -> u16 {
    let listener = TcpListener::bind((address, 0)).unwrap();
    // The 128 of the standard library are less than a test connects at once; what is over may be reset by the kernel.
    rustix::net::listen(&listener, 4096).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            thread::spawn(move || std::io::copy(&mut client.try_clone().unwrap(), &mut client));
        }
    });
    port
}

pub fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 + at / 251) as u8).collect()
}

/// An IP packet with a UDP datagram of the guest.
pub fn datagram(target: &str, from: u16, to: u16, data: &[u8]) -> Vec<u8> {
    let target: IpAddr = target.parse().unwrap();
    let guest: IpAddr = match target {
        IpAddr::V4(_) => ends().v4.unwrap().0.into(),
        IpAddr::V6(_) => ends().v6.unwrap().0.into(),
    };
    reply::udp((guest, from), (target, to), data)
}

/// Source, ports and data of a datagram to the guest.
pub fn arrived(frame: &[u8]) -> Option<(IpAddr, u16, u16, Vec<u8>)> {
    let packet = frame.get(ETHERNET..)?;
    let (source, protocol, head) = match packet.first()? >> 4 {
        4 => (
            IpAddr::from(*packet.get(12..)?.first_chunk::<4>()?),
            packet[9],
            20,
        ),
        _ => (
            IpAddr::from(*packet.get(8..)?.first_chunk::<16>()?),
            packet[6],
            40,
        ),
    };
    let datagram = packet.get(head..)?;
    let word = |at| Some(u16::from_be_bytes(*datagram.get(at..)?.first_chunk()?));
    (protocol == packet::UDP).then_some(())?;
    Some((source, word(0)?, word(2)?, datagram.get(8..)?.to_vec()))
}

/// The data of a datagram to the guest's port `to`.
pub fn delivered(frame: &[u8], to: u16) -> Option<Vec<u8>> {
    let (_, _, port, data) = arrived(frame)?;
    (port == to).then_some(data)
}

/// Type and code of an ICMP message of IPv4.
pub fn icmp(frame: &[u8]) -> Option<(u8, u8)> {
    let packet = frame.get(ETHERNET..)?;
    let (head, place, protocol) = match packet.first()? >> 4 {
        4 => (20, 9, packet::ICMP4),
        _ => (40, 6, packet::ICMP6),
    };
    (*packet.get(place)? == protocol).then(|| Some((*packet.get(head)?, *packet.get(head + 1)?)))?
}

// -- Link ------------------------------------------------------------------------------------------

#[test]
fn the_gateway_tells_its_address_and_answers_echo() {
    let mut guest = Guest::open(allow_all());
    let ends = ends();
    let (own, gateway) = ends.v4.unwrap();
    let mut request = [
        &[0xff; 6][..],
        &ends.guest_mac,
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
    ]
    .concat();
    request.extend_from_slice(&ends.guest_mac);
    request.extend_from_slice(&own.octets());
    request.extend_from_slice(&[0; 6]);
    request.extend_from_slice(&gateway.octets());
    guest.frame(&request);
    let answer = guest.find("ARP reply", |frame| {
        (frame[12..14] == [8, 6]).then(|| frame[ETHERNET..].to_vec())
    });
    assert_eq!(answer[6..8], [0, 2]);
    assert_eq!(answer[8..14], ends.gateway_mac);

    // An echo reply turned into a request is what the guest would send.
    let mut ping = reply::echo(own.into(), gateway.into(), 77, &[0, 1, b'h', b'i']);
    ping[20] = 8;
    ping[22..24].copy_from_slice(&[0, 0]);
    let value = !packet::sum(&ping[20..], 0);
    ping[22..24].copy_from_slice(&value.to_be_bytes());
    guest.packet(&ping);
    assert_eq!(guest.find("echo reply", icmp), (0, 0));
}

#[test]
fn neighbour_discovery_tells_the_gateway_s_address() {
    let mut guest = Guest::open(allow_all());
    let (own, gateway) = ends().v6.unwrap();
    let mut body = vec![135, 0, 0, 0, 0, 0, 0, 0];
    body.extend_from_slice(&gateway.octets());
    let group: IpAddr = "ff02::1:ff00:1".parse().unwrap();
    let value = packet::checksum(own.into(), group, packet::ICMP6, &body);
    body[2..4].copy_from_slice(&value.to_be_bytes());
    let mut ask = reply::whole(own.into(), group, packet::ICMP6, &body);
    ask[7] = 255;
    guest.packet(&ask);
    assert_eq!(guest.find("advertisement", icmp), (136, 0));
}

#[test]
fn what_no_network_card_sends_ends_the_link_with_a_reason() {
    let mut guest = Guest::open(allow_all());
    guest.bytes(b"GET / HTTP/1.1\r\n");
    let End::Failed(why) = guest.ended() else {
        panic!("{:?}", guest.stack.end());
    };
    assert!(
        why.starts_with("a frame of 1195725856 bytes on the link"),
        "{why}"
    );
    guest.until("closed", |guest| guest.closed);
}

#[test]
fn frames_of_others_are_dropped_and_counted() {
    let log: Log<IpAddr> = Log::default();
    let asked = Arc::clone(&log);
    let mut guest = Guest::open(Rules::new(move |flow| {
        asked.lock().unwrap().push(flow.address);
        Action::Allow
    }));
    let good = datagram("192.0.2.1", 1000, 2000, b"x");
    let ends = ends();
    let framed =
        |to: [u8; 6], from: [u8; 6], packet: &[u8]| [&to[..], &from, &[8, 0], packet].concat();
    guest.frame(&framed(ends.gateway_mac, [2, 9, 9, 9, 9, 9], &good));
    guest.frame(&framed([2, 9, 9, 9, 9, 9], ends.guest_mac, &good));
    let other = "10.9.0.3".parse().unwrap();
    let target: IpAddr = "192.0.2.1".parse().unwrap();
    guest.packet(&reply::udp((other, 1), (target, 2), b"spoofed"));
    for target in [
        "224.0.0.251",
        "255.255.255.255",
        "0.0.0.0",
        "::ffff:127.0.0.1",
        "ff02::fb",
        "fe80::1",
        "::",
    ] {
        guest.packet(&datagram(target, 1, 2, b"x"));
    }
    // IPv4 options, a routing header, an unknown protocol, a wrong checksum, no more than a stump.
    let mut options = good.clone();
    options[0] = 0x46;
    guest.packet(&options);
    let mut routing = datagram("2001:db8::1", 1, 2, &[0; 16]);
    routing[6] = 43;
    guest.packet(&routing);
    guest.packet(&reply::whole(
        ends.v4.unwrap().0.into(),
        target,
        132,
        &[0; 20],
    ));
    let mut broken = good.clone();
    *broken.last_mut().unwrap() ^= 1;
    guest.packet(&broken);
    guest.frame(&[0; 5]);
    guest.until("all were looked at", |guest| {
        guest.metric("frames_from_guest") == 15
    });
    for (name, count) in [
        ("dropped_foreign_mac", 2),
        ("dropped_spoofed", 1),
        ("dropped_target", 7),
        ("dropped_extension", 2),
        ("dropped_protocol", 1),
        ("dropped_checksum", 1),
        ("dropped_malformed", 1),
    ] {
        assert_eq!(guest.metric(name), count, "{name}");
    }
    assert!(log.lock().unwrap().is_empty());
}

#[test]
fn a_packet_without_hops_ends_at_the_gateway() {
    let mut guest = Guest::open(allow_all());
    let mut last = datagram("192.0.2.1", 1000, 2000, b"x");
    last[8] = 1;
    last[10..12].copy_from_slice(&[0, 0]);
    let value = !packet::sum(&last[..20], 0);
    last[10..12].copy_from_slice(&value.to_be_bytes());
    guest.packet(&last);
    assert_eq!(guest.find("time exceeded", icmp), (11, 0));
    assert_eq!(guest.metric("datagrams_opened"), 0);
}

// -- TCP -------------------------------------------------------------------------------------------

#[test]
fn bytes_and_ends_pass_both_ways() {
    let data = pattern(3_000_000);
    let expected = data.clone();
    let (port, thread) = server(move |mut client| {
        let mut all = Vec::new();
        client.read_to_end(&mut all).unwrap();
        // The guest has ended; the other direction goes on.
        client.write_all(&all).unwrap();
        all == expected
    });
    let mut guest = Guest::open(allow_all());
    let handle = guest.connected("127.0.0.1", port);
    guest.write(handle, &data);
    guest.socket(handle).close();
    assert!(guest.read_to_end(handle).unwrap() == data);
    assert!(thread.join().unwrap());
    guest.until("no flow is left", |guest| guest.metric("tcp_now") == 0);
    assert_eq!(guest.metric("bytes_sent"), 3_000_000);
}

#[test]
fn the_target_may_end_first() {
    let (port, thread) = server(|mut client| {
        client.write_all(b"bye").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut all = Vec::new();
        client.read_to_end(&mut all).map(|_| all)
    });
    let mut guest = Guest::open(allow_all());
    let handle = guest.connected("127.0.0.1", port);
    assert_eq!(guest.read_to_end(handle).unwrap(), b"bye");
    assert_eq!(guest.state(handle), State::CloseWait);
    guest.write(handle, b"still here");
    guest.socket(handle).close();
    guest.until("no flow is left", |guest| guest.metric("tcp_now") == 0);
    assert_eq!(thread.join().unwrap().unwrap(), b"still here");
}

#[test]
fn ipv6_and_the_gateway_as_the_host_work_too() {
    let v6 = echo_server("::1");
    let v4 = echo_server("127.0.0.1");
    let mut guest = Guest::open(allow_all());
    for (address, port) in [("fd09::1", v6), ("10.9.0.1", v4)] {
        let handle = guest.connected(address, port);
        guest.write(handle, b"hello");
        guest.socket(handle).close();
        assert_eq!(guest.read_to_end(handle).unwrap(), b"hello");
    }
}

#[test]
fn a_refused_connection_is_refused_in_the_guest() {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut guest = Guest::open(allow_all());
    let handle = guest.connect("127.0.0.1", port);
    guest.until("refused", |guest| guest.state(handle) == State::Closed);
    assert_eq!(guest.metric("failed"), 1);
    assert_eq!(guest.metric("tcp_now"), 0);
}

#[test]
fn a_denied_connection_is_reset_and_never_made() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut guest = Guest::open(Rules::new(|_| Action::Deny));
    let handle = guest.connect("127.0.0.1", port);
    guest.until("reset", |guest| guest.state(handle) == State::Closed);
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err());
    let records = guest.stack.audit();
    assert_eq!(records.len(), 1);
    assert!(
        records[0].contains(&format!("\"port\":{port},\"action\":\"deny\"")),
        "{records:?}"
    );
}

#[test]
fn a_reset_passes_from_the_target_to_the_guest() {
    let (port, thread) = server(|mut client| {
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        SockRef::from(&client)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    });
    let mut guest = Guest::open(allow_all());
    let handle = guest.connected("127.0.0.1", port);
    guest.write(handle, b"x");
    assert_eq!(guest.read_to_end(handle), None);
    thread.join().unwrap();
}

#[test]
fn a_reset_passes_from_the_guest_to_the_target() {
    let (port, thread) =
        server(|mut client| client.read_to_end(&mut Vec::new()).unwrap_err().kind());
    let mut guest = Guest::open(allow_all());
    let handle = guest.connected("127.0.0.1", port);
    guest.socket(handle).abort();
    guest.until("no flow is left", |guest| guest.metric("tcp_now") == 0);
    assert_eq!(thread.join().unwrap(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn a_reader_that_stops_slows_its_own_flow_and_nothing_else() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let (port, thread) = server(move |mut client| {
        wait.recv().unwrap();
        let mut all = Vec::new();
        client.read_to_end(&mut all).unwrap();
        all.len()
    });
    let echo = echo_server("127.0.0.1");
    let mut guest = Guest::open(allow_all());
    let slow = guest.connected("127.0.0.1", port);
    let chunk = pattern(1 << 20);
    let mut sent = 0;
    let mut still = Instant::now();
    guest.until("the slow flow stands still", |guest| {
        let count = guest.socket(slow).send_slice(&chunk).unwrap();
        sent += count;
        if count > 0 {
            still = Instant::now();
        }
        still.elapsed() > Duration::from_millis(500)
    });
    // What the host's socket buffers take, and ours; not more and more.
    assert!(sent < 64 << 20, "{sent}");
    let quick = guest.connected("127.0.0.1", echo);
    guest.write(quick, b"hello");
    guest.socket(quick).close();
    assert_eq!(guest.read_to_end(quick).unwrap(), b"hello");
    go.send(()).unwrap();
    guest.socket(slow).close();
    guest.until("no flow is left", |guest| guest.metric("tcp_now") == 0);
    assert_eq!(thread.join().unwrap(), sent);
}

#[test]
fn a_guest_that_does_not_read_holds_its_own_flow_only() {
    let (port, thread) = server(|mut client| {
        client
            .set_write_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        let chunk = pattern(1 << 16);
        let mut sent = 0;
        while let Ok(count) = client.write(&chunk) {
            sent += count;
        }
        sent
    });
    let echo = echo_server("127.0.0.1");
    let mut guest = Guest::open(allow_all());
    let slow = guest.connected("127.0.0.1", port);
    let quick = guest.connected("127.0.0.1", echo);
    guest.write(quick, b"hello");
    guest.socket(quick).close();
    assert_eq!(guest.read_to_end(quick).unwrap(), b"hello");
    guest.until("the server gave up", |_| thread.is_finished());
    let sent = thread.join().unwrap();
    assert!(sent < 64 << 20, "{sent}");
    assert_eq!(guest.read_to_end(slow).unwrap().len(), sent);
}

#[test]
fn loss_reordering_and_corruption_corrupt_no_stream() {
    let port = echo_server("127.0.0.1");
    for seed in 1..4 {
        let mut guest = Guest::open(allow_all());
        guest.faults = Some(Faults::new(seed * 0x9e37_79b9));
        let handle = guest.connected("127.0.0.1", port);
        let data = pattern(200_000);
        let (mut sent, mut all) = (0, Vec::new());
        guest.until("everything came back", |guest| {
            let socket = guest.socket(handle);
            if sent < data.len() && socket.can_send() {
                sent += socket.send_slice(&data[sent..]).unwrap();
            }
            while socket.can_recv() {
                socket
                    .recv(|bytes| (bytes.len(), all.extend_from_slice(bytes)))
                    .unwrap();
            }
            all.len() >= data.len()
        });
        assert!(all == data);
        assert!(guest.metric("dropped_checksum") > 0);
    }
}

#[test]
fn ten_thousand_half_open_connections_leave_room_for_an_honest_one() {
    let port = echo_server("127.0.0.1");
    let mut strict = config();
    strict.limits.half_open = 512;
    let mut guest = Guest::new(strict, allow_all(), Box::new(super::dns::Refuser));
    let (own, _) = ends().v4.unwrap();
    let target: IpAddr = "127.0.0.1".parse().unwrap();
    for from in 30_000..40_000u16 {
        let mut syn = vec![0; 20];
        syn[..2].copy_from_slice(&from.to_be_bytes());
        syn[2..4].copy_from_slice(&port.to_be_bytes());
        syn[12] = 5 << 4;
        syn[13] = 2;
        syn[14..16].copy_from_slice(&[0xff, 0xff]);
        let value = packet::checksum(own.into(), target, packet::TCP, &syn);
        syn[16..18].copy_from_slice(&value.to_be_bytes());
        guest.packet(&reply::whole(own.into(), target, packet::TCP, &syn));
        // The answers are read, or the link itself would stand still.
        guest.turn();
    }
    let handle = guest.connected("127.0.0.1", port);
    guest.write(handle, b"hello");
    guest.socket(handle).close();
    assert_eq!(guest.read_to_end(handle).unwrap(), b"hello");
    assert!(guest.metric("tcp_now") <= 512);
}

#[test]
fn beyond_the_limit_of_connections_new_ones_are_refused() {
    let port = echo_server("127.0.0.1");
    let mut small = config();
    small.limits.connections = 3;
    let mut guest = Guest::new(small, allow_all(), Box::new(super::dns::Refuser));
    for _ in 0..3 {
        guest.connected("127.0.0.1", port);
    }
    let fourth = guest.connect("127.0.0.1", port);
    guest.until("refused", |guest| guest.state(fourth) == State::Closed);
    let limit = guest.stack.audit().pop().unwrap();
    assert!(limit.contains("limit: 3 TCP flows at a time"), "{limit}");
}

#[test]
fn a_flow_that_rests_too_long_ends() {
    let (port, thread) = server(|mut client| client.read_to_end(&mut Vec::new()).is_err());
    let mut hasty = config();
    hasty.limits.tcp_idle = Duration::from_millis(50);
    let mut guest = Guest::new(hasty, allow_all(), Box::new(super::dns::Refuser));
    let handle = guest.connect("127.0.0.1", port);
    guest.until("reset", |guest| guest.state(handle) == State::Closed);
    assert!(thread.join().unwrap());
}

#[test]
fn a_segment_of_no_flow_is_answered_with_a_reset() {
    let port = echo_server("127.0.0.1");
    let mut guest = Guest::open(allow_all());
    let handle = guest.connected("127.0.0.1", port);
    let segment = [
        &[0x30, 0x39][..],
        &[0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 16, 1, 0, 0, 0, 0, 0],
    ]
    .concat();
    let mut segment = segment;
    let (own, target): (IpAddr, IpAddr) =
        (ends().v4.unwrap().0.into(), "192.0.2.1".parse().unwrap());
    let value = packet::checksum(own, target, packet::TCP, &segment);
    segment[16..18].copy_from_slice(&value.to_be_bytes());
    let reset = reply::reset(own, target, &segment).unwrap();
    assert_eq!(reset[20 + 13], 4);
    assert_eq!(reset[24..28], [0, 0, 0, 2]);
    guest.packet(&reply::whole(own, target, packet::TCP, &segment));
    guest.until("dropped", |guest| guest.metric("dropped_stray") == 1);
    assert_eq!(guest.state(handle), State::Established);
}

// -- Decisions -------------------------------------------------------------------------------------

#[test]
fn a_narrower_policy_cuts_what_it_does_not_allow() {
    let (port, thread) = server(|mut client| client.read_to_end(&mut Vec::new()).is_err());
    let kept = echo_server("127.0.0.1");
    let mut guest = Guest::open(allow_all());
    let cut = guest.connected("127.0.0.1", port);
    let stays = guest.connected("127.0.0.1", kept);
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    let udp = datagrams.local_addr().unwrap().port();
    guest.packet(&datagram("127.0.0.1", 999, udp, b"x"));
    guest.until("a datagram flow", |guest| {
        guest.metric("datagrams_now") == 1
    });
    let pace = Pace::begin();
    guest
        .stack
        .set_gate(Rules::new(move |flow| match flow.port {
            Some(port) if port == kept => Action::Allow,
            _ => Action::Deny,
        }));
    guest.until("cut", |guest| guest.state(cut) == State::Closed);
    assert!(pace.passed() < Duration::from_secs(1));
    assert!(thread.join().unwrap());
    guest.until("the datagram flow is gone", |guest| {
        guest.metric("datagrams_now") == 0
    });
    guest.write(stays, b"hello");
    guest.socket(stays).close();
    assert_eq!(guest.read_to_end(stays).unwrap(), b"hello");
    assert!(guest
        .stack
        .audit()
        .iter()
        .any(|line| line.contains("policy changed")));
}

/// Rules for names: one is good, and who states none is refused.
pub fn named_rules() -> Box<Rules> {
    Rules::new(|flow| match &flow.name {
        None => Action::AllowIfNamed,
        Some(name) if name.as_str() == "good.example" => Action::Allow,
        Some(_) => Action::Deny,
    })
}

#[test]
fn nothing_of_the_guest_goes_upstream_before_its_name_is_allowed() {
    let (port, thread) = server(|mut client| {
        let mut all = Vec::new();
        client.read_to_end(&mut all).map(|_| all)
    });
    let mut guest = Guest::open(named_rules());
    let handle = guest.connected("127.0.0.1", port);
    // In pieces, as a ClientHello comes.
    for piece in [
        &b"PU"[..],
        b"T / HTTP/1.1\r\nHost: good.exa",
        b"mple\r\nContent-Length: 4\r\n\r",
        b"\nrest",
    ] {
        guest.write(handle, piece);
        guest.until("sent", |guest| guest.socket(handle).send_queue() == 0);
    }
    guest.socket(handle).close();
    assert_eq!(guest.read_to_end(handle).unwrap(), b"");
    assert_eq!(
        thread.join().unwrap().unwrap(),
        b"PUT / HTTP/1.1\r\nHost: good.example\r\nContent-Length: 4\r\n\r\nrest"
    );
}

#[test]
fn a_denied_name_and_no_name_end_the_flow_with_nothing_sent() {
    for first in [
        &b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n"[..],
        b"GET / HTTP/1.0\r\n\r\n",
        b"\0hello",
    ] {
        let (port, thread) = server(|mut client| {
            let mut all = Vec::new();
            let failed = client.read_to_end(&mut all).is_err();
            (failed, all)
        });
        let mut guest = Guest::open(named_rules());
        let handle = guest.connected("127.0.0.1", port);
        guest.write(handle, first);
        assert_eq!(guest.read_to_end(handle), None);
        assert_eq!(thread.join().unwrap(), (true, Vec::new()));
        assert!(guest
            .stack
            .audit()
            .iter()
            .any(|line| line.contains("\"deny\"")));
    }
}

#[test]
fn a_client_that_takes_its_time_over_its_name_has_none() {
    let (port, thread) = server(|mut client| client.read_to_end(&mut Vec::new()).is_err());
    let mut hasty = config();
    // Enough to begin in, on a busy machine.
    hasty.limits.naming = Duration::from_secs(2);
    let mut guest = Guest::new(hasty, named_rules(), Box::new(super::dns::Refuser));
    let handle = guest.connected("127.0.0.1", port);
    guest.write(handle, b"GET /");
    assert_eq!(guest.read_to_end(handle), None);
    assert!(thread.join().unwrap());
}

// -- UDP and echo ----------------------------------------------------------------------------------

#[test]
fn datagrams_pass_both_ways_also_in_fragments() {
    for (address, port) in [("127.0.0.1", 5000), ("::1", 5001)] {
        let server = UdpSocket::bind((address, 0)).unwrap();
        let to = server.local_addr().unwrap().port();
        let mut guest = Guest::open(allow_all());
        let data = pattern(9000);
        let whole = datagram(address, port, to, &data);
        let pieces = reply::fragments(whole, 1500, 1);
        assert!(pieces.len() > 6);
        for piece in pieces.iter().rev() {
            guest.packet(piece);
        }
        let mut got = vec![0; 65_536];
        let (count, from) = server.recv_from(&mut got).unwrap();
        assert!(got[..count] == data);
        server.send_to(b"short", from).unwrap();
        let answer = guest.find("an answer", |frame| delivered(frame, port));
        assert_eq!(answer, b"short");
        server.send_to(&data, from).unwrap();
        guest.until("fragments", |guest| guest.seen.len() == pieces.len());
    }
}

#[test]
fn a_port_where_nobody_listens_is_unreachable() {
    let port = UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut guest = Guest::open(allow_all());
    guest.packet(&datagram("127.0.0.1", 999, port, b"x"));
    assert_eq!(guest.find("port unreachable", icmp), (3, 3));
    guest.packet(&datagram("::1", 999, port, b"x"));
    assert_eq!(guest.find("port unreachable", icmp), (1, 4));
}

#[test]
fn a_denied_datagram_is_prohibited_and_not_sent() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    server.set_nonblocking(true).unwrap();
    let port = server.local_addr().unwrap().port();
    let mut guest = Guest::open(Rules::new(|flow| {
        assert_eq!(flow.protocol, Protocol::Udp);
        Action::Deny
    }));
    for _ in 0..100 {
        guest.packet(&datagram("127.0.0.1", 999, port, b"x"));
    }
    assert_eq!(guest.find("prohibited", icmp), (3, 13));
    guest.until("all answered", |guest| {
        guest.metric("frames_to_guest") == 100
    });
    // Ethernet, IPv4 and UDP around a byte; the lengths of the link are nobody's traffic.
    assert_eq!(guest.metric("bytes_from_guest"), 100 * (14 + 20 + 8 + 1));
    assert!(server.recv(&mut [0; 10]).is_err());
    // A program that repeats itself does not fill the record.
    assert!(guest.stack.audit().len() < 10);
}

#[test]
fn datagram_flows_end_when_they_rest_and_are_bounded() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let mut small = config();
    small.limits.datagrams = 8;
    small.limits.udp_idle = Duration::from_millis(300);
    let mut guest = Guest::new(small, allow_all(), Box::new(super::dns::Refuser));
    for from in 1000..1100 {
        guest.packet(&datagram("127.0.0.1", from, port, b"x"));
    }
    guest.until("all were looked at", |guest| {
        guest.metric("datagrams_opened") == 100
    });
    assert!(guest.metric("datagrams_now") <= 8);
    guest.until("rested", |guest| guest.metric("datagrams_now") == 0);
}

// -- DNS -------------------------------------------------------------------------------------------

struct Shouter(Log<Transport>);

impl Resolver for Shouter {
    fn answer(&self, message: Vec<u8>, over: Transport) -> Answer {
        self.0.lock().unwrap().push(over);
        Box::pin(async move {
            Answered {
                message: Some(message.to_ascii_uppercase()),
                decided: None,
            }
        })
    }
}

#[test]
fn questions_to_whatever_server_go_to_the_resolver() {
    let log: Log<Transport> = Arc::new(Mutex::new(Vec::new()));
    let deny = Rules::new(|flow| panic!("asked about {flow:?}"));
    let mut guest = Guest::new(config(), deny, Box::new(Shouter(Arc::clone(&log))));
    guest.packet(&datagram("192.0.2.53", 4000, 53, b"question"));
    let answer = guest.find("an answer", |frame| delivered(frame, 4000));
    assert_eq!(answer, b"QUESTION");
    let handle = guest.connected("198.51.100.53", 53);
    guest.write(handle, b"\0\x05firs");
    guest.write(handle, b"t\0\x06second");
    guest.socket(handle).close();
    assert_eq!(
        guest.read_to_end(handle).unwrap(),
        b"\0\x05FIRST\0\x06SECOND"
    );
    assert_eq!(
        *log.lock().unwrap(),
        [Transport::Udp, Transport::Tcp, Transport::Tcp]
    );
    guest.until("no flow is left", |guest| guest.metric("tcp_now") == 0);
}

// -- Life ------------------------------------------------------------------------------------------

#[test]
fn a_panic_takes_the_link_down_and_says_so() {
    let mut guest = Guest::open(Rules::new(|_| panic!("a rule that is broken")));
    guest.packet(&datagram("127.0.0.1", 1, 2, b"x"));
    let why = End::Failed("the network stack failed: a rule that is broken".to_owned());
    assert_eq!(guest.ended(), why);
    guest.until("closed", |guest| guest.closed);

    let mut guest = Guest::open(allow_all());
    guest.stack.panic();
    let why = End::Failed("the network stack failed: asked to".to_owned());
    assert_eq!(guest.ended(), why);
    guest.until("closed", |guest| guest.closed);
}

#[test]
fn a_guest_that_goes_ends_the_stack() {
    let mut guest = Guest::open(allow_all());
    guest.hang_up();
    assert_eq!(guest.ended(), End::Closed);
}

// -- Policy and names together ---------------------------------------------------------------------

/// A DNS question for the A records of `name`.
fn question(id: u16, name: &str) -> Vec<u8> {
    let mut message = [&id.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend_from_slice(label.as_bytes());
    }
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    message
}

/// A name server that knows three names; tells the questions that it got.
fn name_server() -> (std::net::SocketAddr, Log<String>) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let log: Log<String> = Log::default();
    let asked = Arc::clone(&log);
    thread::spawn(move || loop {
        let mut bytes = [0; 512];
        let (_, from) = socket.recv_from(&mut bytes).unwrap();
        let mut name = String::new();
        let mut at = 12;
        while bytes[at] != 0 {
            let end = at + 1 + usize::from(bytes[at]);
            name += std::str::from_utf8(&bytes[at + 1..end]).unwrap();
            name.push('.');
            at = end;
        }
        let target = match name.as_str() {
            "rebind.example." => [169, 254, 169, 254],
            _ => [127, 0, 0, 1],
        };
        asked.lock().unwrap().push(name);
        let mut answer = [&bytes[..2], &[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]].concat();
        answer.extend_from_slice(&bytes[12..at + 5]);
        answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        answer.extend_from_slice(&target);
        // An answer to another question comes first, as from somebody who guesses.
        let mut forged = answer.clone();
        forged[0] ^= 0xff;
        socket.send_to(&forged, from).unwrap();
        socket.send_to(&answer, from).unwrap();
    });
    (address, log)
}

#[test]
fn names_are_decided_on_asked_checked_and_pinned() {
    let (server, log) = name_server();
    let rules = vec!["deny@evil.example".parse().unwrap()];
    let gateway: IpAddr = ends().v4.unwrap().1.into();
    let policy = Policy::new(Preset::AllowAll, rules, Names::Strict)
        .unwrap()
        .with_host([gateway]);
    let ward = Ward::new(policy);
    let forwarder = Forwarder::new(ward.clone(), ends(), vec![server]);
    let mut guest = Guest::new(
        config(),
        Box::new(Warden(ward.clone())),
        Box::new(forwarder),
    );
    let code = |guest: &mut Guest, name: &str| {
        guest.packet(&datagram("192.0.2.53", 4000, 53, &question(7, name)));
        let answer = guest.find(name, |frame| delivered(frame, 4000));
        assert_eq!(answer[..2], [0, 7]);
        (answer[3] & 15, answer.ends_with(&[127, 0, 0, 1]))
    };
    assert_eq!(code(&mut guest, "good.example"), (0, true));
    assert_eq!(code(&mut guest, "evil.example"), (3, false));
    assert_eq!(code(&mut guest, "rebind.example"), (3, false));
    assert_eq!(code(&mut guest, "host.microsandbox.internal"), (0, false));
    // The denied name was never asked for, and the host's own name is nobody else's business.
    assert_eq!(*log.lock().unwrap(), ["good.example.", "rebind.example."]);
    let good = Name::parse("good.example").unwrap();
    assert!(ward.state().pins.has(&good, "127.0.0.1".parse().unwrap()));
    assert!(!ward.state().pins.has(
        &Name::parse("rebind.example").unwrap(),
        "169.254.169.254".parse().unwrap()
    ));

    // The name that a client states is held to the same policy.
    let (port, thread) = server_that_reads();
    let handle = guest.connected("127.0.0.1", port);
    guest.write(handle, b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n");
    assert_eq!(guest.read_to_end(handle), None);
    assert_eq!(thread.join().unwrap(), Vec::<u8>::new());

    let (port, thread) = server_that_reads();
    let handle = guest.connected("127.0.0.1", port);
    guest.write(handle, b"GET / HTTP/1.1\r\nHost: good.example\r\n\r\n");
    guest.socket(handle).close();
    assert_eq!(guest.read_to_end(handle), Some(Vec::new()));
    assert!(thread.join().unwrap().starts_with(b"GET / "));
}

/// A server that returns what its only client sent.
pub fn server_that_reads() -> (u16, JoinHandle<Vec<u8>>) {
    server(|mut client| {
        let mut all = Vec::new();
        let _ = client.read_to_end(&mut all);
        all
    })
}

#[test]
fn servers_are_read_from_resolv_conf() {
    let text = "# made by hand\nsearch example\nnameserver 192.0.2.1\n nameserver 2001:db8::1\nnameserver fe80::1%eth0\noptions edns0\n";
    let found = super::servers::servers(text);
    assert_eq!(
        found,
        [
            "192.0.2.1:53".parse().unwrap(),
            "[2001:db8::1]:53".parse().unwrap()
        ]
    );
}

// -- Whatever comes --------------------------------------------------------------------------------

/// A frame of a guest that may do anything, mostly right.
fn mangled(state: &mut u64) -> Vec<u8> {
    let mut random = |below: u64| {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state % below
    };
    let data = vec![0x5a; random(1400) as usize];
    let targets = ["127.0.0.1", "::1", "10.9.0.1", "192.0.2.1", "2001:db8::1"];
    let target: IpAddr = targets[random(5) as usize].parse().unwrap();
    let guest: IpAddr = match target {
        IpAddr::V4(_) => ends().v4.unwrap().0.into(),
        IpAddr::V6(_) => ends().v6.unwrap().0.into(),
    };
    let mut packet = match random(3) {
        0 => reply::udp(
            (guest, random(4) as u16),
            (target, random(100) as u16),
            &data,
        ),
        1 => reply::echo(guest, target, 1, &data),
        _ => {
            let mut segment = vec![0; 20 + random(40) as usize];
            for byte in &mut segment {
                *byte = random(256) as u8;
            }
            segment[..4].copy_from_slice(&[0, random(4) as u8, 0, random(4) as u8]);
            segment[12] = (5 << 4) + random(3) as u8 * 16;
            segment[16..18].copy_from_slice(&[0, 0]);
            let value = packet::checksum(guest, target, packet::TCP, &segment);
            segment[16..18].copy_from_slice(&value.to_be_bytes());
            reply::whole(guest, target, packet::TCP, &segment)
        }
    };
    for _ in 0..random(3) {
        let at = random(packet.len() as u64) as usize;
        packet[at] = random(256) as u8;
    }
    packet.truncate(packet.len() - random(2) as usize * random(20) as usize);
    let kind = if target.is_ipv4() {
        packet::IPV4
    } else {
        packet::IPV6
    };
    let ends = ends();
    let mut frame = [
        &ends.gateway_mac[..],
        &ends.guest_mac,
        &kind.to_be_bytes(),
        &packet,
    ]
    .concat();
    if random(20) == 0 {
        let at = random(14) as usize;
        frame[at] ^= 1;
    }
    frame
}

#[test]
fn no_frame_stops_the_stack() {
    // In a namespace: a byte that is turned may make any address of a target.
    super::namespace::inside("tests::no_frame_stops_the_stack", || {
        for seed in 1..5u64 {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut guest = Guest::open(Rules::new(|flow| match flow.port {
                Some(port) if port % 2 == 0 => Action::Deny,
                _ => Action::Allow,
            }));
            for _ in 0..5000 {
                guest.frame(&mangled(&mut state));
                guest.turn();
            }
            guest.until("all were looked at", |guest| {
                guest.metric("frames_from_guest") >= 5000
            });
            assert_eq!(guest.stack.end(), None);
            // It still serves: another gate lets an honest flow pass.
            guest.stack.set_gate(allow_all());
            let handle = guest.connected("127.0.0.1", echo_server("127.0.0.1"));
            guest.write(handle, b"hello");
            guest.socket(handle).close();
            assert_eq!(guest.read_to_end(handle).unwrap(), b"hello");
        }
    });
}
