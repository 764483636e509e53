//! Tests of rates and of the path MTU, with flows through a whole stack.

use super::namespace::{inside, message, permit_echo, ping, Canary};
use super::packet;
use super::rate::{Bounds, Rate, Rates};
use super::reply;
use super::testing::{allow_all, config, ends, Guest};
use super::tests::{arrived, datagram, echo_server, pattern, server};
use super::Binding;
use smoltcp::socket::tcp::State;
use socket2::{Domain, Protocol, Socket, Type};
use std::io::Read;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

fn bounded(egress: Rates, ingress: Rates) -> Guest {
    let mut slow = config();
    slow.limits.rates = Bounds { egress, ingress };
    Guest::new(slow, allow_all(), Box::new(super::dns::Refuser))
}

fn bytes(per_second: u64, burst: u64) -> Rates {
    Rates {
        bytes: Some(Rate { per_second, burst }),
        packets: None,
    }
}

fn packets(per_second: u64, burst: u64) -> Rates {
    Rates {
        bytes: None,
        packets: Some(Rate { per_second, burst }),
    }
}

// -- Rates -----------------------------------------------------------------------------------------

#[test]
fn a_stream_goes_as_fast_as_it_may_and_arrives_whole() {
    let port = echo_server("127.0.0.1");
    let slow = bytes(1_000_000, 100_000);
    for (egress, ingress) in [(slow, Rates::default()), (Rates::default(), slow)] {
        let mut guest = bounded(egress, ingress);
        let handle = guest.connected("127.0.0.1", port);
        let data = pattern(500_000);
        let start = Instant::now();
        guest.write(handle, &data);
        guest.socket(handle).close();
        assert!(guest.read_to_end(handle).unwrap() == data);
        // 400,000 bytes beyond the burst; a turn that is not used up may be ahead of it.
        let took = start.elapsed();
        assert!(took > Duration::from_millis(350), "{took:?}");
        guest.until("no flow is left", |guest| guest.metric("tcp_now") == 0);
    }
}

#[test]
fn a_flood_of_datagrams_leaves_a_stream_its_share() {
    let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = sink.local_addr().unwrap().port();
    let port = echo_server("127.0.0.1");
    let mut guest = bounded(bytes(400_000, 20_000), Rates::default());
    let handle = guest.connected("127.0.0.1", port);
    let data = pattern(100_000);
    let flood = datagram("127.0.0.1", 4000, to, &[7; 1000]);
    let (mut sent, mut got) = (0, Vec::new());
    let start = Instant::now();
    guest.until("the stream came back", |guest| {
        for _ in 0..20 {
            guest.packet(&flood);
        }
        let socket = guest.socket(handle);
        sent += socket.send_slice(&data[sent..]).unwrap();
        while socket.can_recv() {
            socket
                .recv(|bytes| (bytes.len(), got.extend_from_slice(bytes)))
                .unwrap();
        }
        got.len() == data.len()
    });
    assert!(got == data);
    // Alone it would have taken 0.2 s, with half of the rate 0.5 s.
    let took = start.elapsed();
    assert!(took > Duration::from_millis(180), "{took:?}");
    // A share is one of what has passed, however long that took: no more than in five seconds at this rate.
    let passed = guest.metric("bytes_sent");
    assert!(passed < 5 * 400_000, "{passed}");
    assert!(guest.metric("dropped_rate") > 0);
}

#[test]
fn datagrams_wait_for_their_turn_both_ways() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = server.local_addr().unwrap().port();
    let rate = packets(50, 5);
    let mut guest = bounded(rate, rate);
    let start = Instant::now();
    for number in 0..30u8 {
        guest.packet(&datagram("127.0.0.1", 4000, to, &[number]));
    }
    let mut order = Vec::new();
    let mut guest_side = None;
    for _ in 0..30 {
        let mut byte = [0];
        let (_, from) = server.recv_from(&mut byte).unwrap();
        guest_side = Some(from);
        order.push(byte[0]);
    }
    assert_eq!(order, (0..30).collect::<Vec<u8>>());
    assert!(start.elapsed() > Duration::from_millis(450));
    let start = Instant::now();
    for number in 0..30u8 {
        server.send_to(&[number], guest_side.unwrap()).unwrap();
    }
    guest.until("all came", |guest| guest.seen.len() == 30);
    assert!(start.elapsed() > Duration::from_millis(450));
}

#[test]
fn datagrams_of_published_ports_wait_for_their_turn_both_ways() {
    let mut slow = config();
    let rate = packets(50, 5);
    slow.limits.rates = Bounds {
        egress: rate,
        ingress: rate,
    };
    slow.ports = vec![Binding {
        protocol: crate::policy::Protocol::Udp,
        host: "127.0.0.1:0".parse().unwrap(),
        guest: 5300,
    }];
    let mut guest = Guest::new(slow, allow_all(), Box::new(super::dns::Refuser));
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect(guest.stack.ports()[0]).unwrap();
    let start = Instant::now();
    for number in 0..30u8 {
        client.send(&[number]).unwrap();
    }
    guest.until("all came", |guest| guest.seen.len() == 30);
    assert!(start.elapsed() > Duration::from_millis(450));
    let came: Vec<_> = guest
        .seen
        .iter()
        .filter_map(|frame| arrived(frame))
        .collect();
    let order: Vec<_> = came.iter().map(|(_, _, _, data)| data[0]).collect();
    assert_eq!(order, (0..30).collect::<Vec<u8>>());
    let (gateway, from, to, _) = came[0];
    let own = ends().v4.unwrap().0.into();
    let start = Instant::now();
    // So many that they are too many also where the first have their turn while the last are sent.
    for number in 0..200u8 {
        guest.packet(&reply::udp((own, to), (gateway, from), &[number]));
    }
    for number in 0..30u8 {
        let mut byte = [0];
        client.recv(&mut byte).unwrap();
        assert_eq!(byte, [number]);
    }
    assert!(start.elapsed() > Duration::from_millis(450));
    // Who waits in line is bounded.
    guest.until("the rest was dropped", |guest| {
        guest.metric("dropped_rate") > 0
    });
}

#[test]
fn new_connections_are_packets_too() {
    let port = echo_server("127.0.0.1");
    let mut guest = bounded(packets(20, 5), Rates::default());
    let start = Instant::now();
    let handles: Vec<_> = (0..15).map(|_| guest.connect("127.0.0.1", port)).collect();
    guest.until("connected", |guest| {
        handles
            .iter()
            .all(|handle| guest.state(*handle) == State::Established)
    });
    assert!(start.elapsed() > Duration::from_millis(450));
}

#[test]
fn what_waits_for_its_turn_is_not_sent_once_it_is_denied() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = server.local_addr().unwrap().port();
    let mut guest = bounded(packets(20, 1), Rates::default());
    for number in 0..20u8 {
        guest.packet(&datagram("127.0.0.1", 4000, to, &[number]));
    }
    server.recv(&mut [0]).unwrap();
    let deny = super::testing::Rules::new(|_| crate::policy::Action::Deny);
    guest.stack.set_gate(deny);
    guest.until("cut", |guest| guest.metric("datagrams_now") == 0);
    let sent = guest.metric("bytes_sent");
    // Enough for several turns, had the flow still any.
    server
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    while server.recv(&mut [0]).is_ok() {}
    assert_eq!(guest.metric("bytes_sent"), sent);
}

#[test]
fn a_flow_that_may_hardly_move_ends_whole() {
    let (port, thread) = server(|mut client| {
        let mut all = Vec::new();
        client.read_to_end(&mut all).map(|_| all)
    });
    let mut guest = bounded(bytes(20_000, 1_500), Rates::default());
    let handle = guest.connected("127.0.0.1", port);
    guest.write(handle, &pattern(10_000));
    guest.socket(handle).close();
    assert_eq!(guest.read_to_end(handle).unwrap(), b"");
    assert!(thread.join().unwrap().unwrap() == pattern(10_000));
    guest.until("no flow is left", |guest| guest.metric("tcp_now") == 0);
}

// -- Path MTU --------------------------------------------------------------------------------------

fn run(command: &str) {
    let mut words = command.split(' ');
    let done = Command::new(words.next().unwrap()).args(words).status();
    assert!(done.unwrap().success(), "{command}");
}

/// A packet of IPv4 that may be cut on its way.
fn divisible(mut packet: Vec<u8>) -> Vec<u8> {
    packet[6] = 0;
    packet[10..12].copy_from_slice(&[0, 0]);
    let value = !packet::sum(&packet[..20], 0);
    packet[10..12].copy_from_slice(&value.to_be_bytes());
    packet
}

/// The MTU in "fragmentation needed" or "packet too big", about a packet to `target`.
fn too_big(frame: &[u8], target: IpAddr) -> Option<u32> {
    let told = message(frame)?;
    let about = match target {
        IpAddr::V4(v4) => told[..2] == [3, 4] && told[8 + 16..8 + 20] == v4.octets(),
        IpAddr::V6(v6) => told[..2] == [2, 0] && told[8 + 24..8 + 40] == v6.octets(),
    };
    about.then(|| u32::from_be_bytes([told[4], told[5], told[6], told[7]]))
}

#[test]
fn what_is_too_large_for_the_way_is_told_with_the_mtu() {
    inside(
        "shaping::what_is_too_large_for_the_way_is_told_with_the_mtu",
        || {
            permit_echo();
            run("ip link set wan mtu 1400");
            let mut guest = Guest::open(allow_all());
            for target in ["198.51.100.77", "2001:db8::77"] {
                let address: IpAddr = target.parse().unwrap();
                for (what, packet) in [
                    ("UDP", datagram(target, 4000, 9, &[7; 1420])),
                    ("echo", ping(target, &[7; 1420])),
                ] {
                    guest.packet(&packet);
                    let mtu = guest.find(what, |frame| too_big(frame, address));
                    assert_eq!(mtu, 1400, "{what} to {target}");
                }
            }
            assert_eq!(guest.metric("bytes_sent"), 0);
            // Each is told once. What is written together is counted together.
            guest.until("counted", |guest| guest.metric("frames_to_guest") >= 4);
            assert_eq!(guest.metric("frames_to_guest"), 4);
        },
    );
}

#[test]
fn what_the_guest_lets_be_cut_is_cut() {
    inside("shaping::what_the_guest_lets_be_cut_is_cut", || {
        run("ip link set wan mtu 1400");
        let canary = Canary::new();
        let mut guest = Guest::open(allow_all());
        let data = pattern(1420);
        guest.packet(&divisible(datagram("198.51.100.77", 4000, 9, &data)));
        guest.until("sent", |guest| guest.metric("bytes_sent") == 1420);
        // Fragments of the guest are put together and cut again, whatever the family.
        let data = pattern(3000);
        for target in ["198.51.100.77", "2001:db8::77"] {
            let whole = datagram(target, 4001, 9, &data);
            for piece in reply::fragments(whole, 1500, 5) {
                guest.packet(&piece);
            }
        }
        guest.until("sent", |guest| guest.metric("bytes_sent") == 7420);
        let lengths: Vec<_> = canary.heard().iter().map(Vec::len).collect();
        assert!(lengths.iter().all(|length| *length <= 1400), "{lengths:?}");
        assert!(lengths.len() >= 2 + 3 + 3, "{lengths:?}");
    });
}

#[test]
fn what_a_router_further_on_says_reaches_the_guest() {
    inside(
        "shaping::what_a_router_further_on_says_reaches_the_guest",
        || {
            let canary = Canary::new();
            let mut guest = Guest::open(allow_all());
            let target: IpAddr = "198.51.100.77".parse().unwrap();
            guest.packet(&datagram("198.51.100.77", 4000, 9, &[7; 1400]));
            guest.until("sent", |guest| guest.metric("bytes_sent") == 1400);
            let sent = canary
                .heard()
                .into_iter()
                .find(|packet| packet.len() == 1428)
                .unwrap();
            // DF is as the guest set it.
            assert_eq!(sent[6] & 0x40, 0x40);
            let mut told = vec![3, 4, 0, 0, 0, 0];
            told.extend_from_slice(&1200u16.to_be_bytes());
            told.extend_from_slice(&sent[..28]);
            let value = !packet::sum(&told, 0);
            told[2..4].copy_from_slice(&value.to_be_bytes());
            let router = Socket::new(Domain::IPV4, Type::from(3), Some(Protocol::ICMPV4)).unwrap();
            let host: SocketAddr = "198.51.100.1:0".parse().unwrap();
            router.send_to(&told, &host.into()).unwrap();
            let mtu = guest.find("too big", |frame| too_big(frame, target));
            assert_eq!(mtu, 1200);
            // The next one is refused before it leaves.
            guest.packet(&datagram("198.51.100.77", 4000, 9, &[7; 1400]));
            let mtu = guest.find("too big", |frame| too_big(frame, target));
            assert_eq!(mtu, 1200);
        },
    );
}

#[test]
fn a_link_of_65520_bytes_carries_everything() {
    let port = echo_server("127.0.0.1");
    let mut wide = config();
    wide.mtu = 65_520;
    let mut guest = Guest::new(wide, allow_all(), Box::new(super::dns::Refuser));
    let handle = guest.connected("127.0.0.1", port);
    let data = pattern(2_000_000);
    let (mut sent, mut got) = (0, Vec::new());
    guest.until("everything came back", |guest| {
        let socket = guest.socket(handle);
        if sent < data.len() {
            sent += socket.send_slice(&data[sent..]).unwrap();
        }
        while socket.can_recv() {
            socket
                .recv(|bytes| (bytes.len(), got.extend_from_slice(bytes)))
                .unwrap();
        }
        got.len() == data.len()
    });
    assert!(got == data);
    let frames = guest.metric("frames_to_guest");
    assert!(frames < 1000, "{frames}");

    // Datagrams whole, up to the largest of the link.
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = server.local_addr().unwrap().port();
    let data = pattern(65_520 - 28);
    guest.packet(&datagram("127.0.0.1", 4000, to, &data));
    let mut bytes = vec![0; 70_000];
    let (count, from) = server.recv_from(&mut bytes).unwrap();
    assert!(bytes[..count] == data);
    server.send_to(&data, from).unwrap();
    let answer = guest.find("an answer", |frame| super::tests::delivered(frame, 4000));
    assert!(answer == data);
}
