//! Tests that need a network of their own: each runs itself again inside a namespace that it makes, where
//! whatever leaves the stack meets a canary and never a real network.

use super::packet::{self, ETHERNET};
use super::reply;
use super::testing::{allow_all, config, ends, Guest, Pace, Rules};
use crate::policy::Action;
use smoltcp::socket::tcp::State;
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::Duration;

const MARK: &str = "MSB_TEST_NAMESPACE";

/// 198.51.100.77 takes every packet and never answers; 203.0.113.0/24 has no route.
const SETUP: &str = "set -e
ip link set lo up
ip link add wan type veth peer name far
ip addr add 198.51.100.1/24 dev wan
ip link set wan up
ip link set far up
ip neigh add 198.51.100.77 lladdr 02:00:00:00:00:77 dev wan
ip route add default via 198.51.100.77
ip route add unreachable 203.0.113.0/24
ip -6 addr add 2001:db8::1/64 dev wan nodad
ip -6 neigh add 2001:db8::77 lladdr 02:00:00:00:00:77 dev wan
ip -6 route add default via 2001:db8::77
exec \"$@\"";

/// Run `work`, the body of the test `name`, as the only test of a process in a fresh namespace. Where none can be made, say so.
pub fn inside(name: &str, work: impl FnOnce()) {
    if std::env::var_os(MARK).is_some() {
        return work();
    }
    let may = Command::new("unshare").args(["-rn", "ip", "link"]).output();
    if !may.is_ok_and(|done| done.status.success()) {
        eprintln!("skipped: no network namespace of one's own on this machine (unshare, ip)");
        return;
    }
    let done = Command::new("unshare")
        .args(["-rn", "sh", "-c", SETUP, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "--test-threads=1"])
        .arg(format!("stack::{name}"))
        .env(MARK, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(
        done.status.success() && text.contains("1 passed"),
        "{text}{errors}"
    );
}

/// Every packet on every interface, except what the kernel says to its neighbours by itself.
pub struct Canary(Socket);

impl Canary {
    pub fn new() -> Canary {
        let everything = Protocol::from(i32::from(3u16.to_be()));
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(everything)).unwrap();
        socket.set_nonblocking(true).unwrap();
        Canary(socket)
    }

    pub fn heard(&self) -> Vec<Vec<u8>> {
        let mut heard = Vec::new();
        let mut bytes = vec![0; 70_000];
        while let Ok(count) = (&self.0).read(&mut bytes) {
            let echo = bytes[6] == packet::ICMP6 && bytes[40] == 128;
            let kernel = bytes[6] == packet::ICMP6 && !echo;
            let kernel = bytes[0] >> 4 == 6 && (bytes[24] == 0xff || kernel);
            if !kernel {
                heard.push(bytes[..count].to_vec());
            }
        }
        heard
    }
}

/// Let this process's group have ping sockets, which a new namespace allows to nobody.
pub fn permit_echo() {
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0").unwrap();
}

pub fn guest_of(target: IpAddr) -> IpAddr {
    match target {
        IpAddr::V4(_) => ends().v4.unwrap().0.into(),
        IpAddr::V6(_) => ends().v6.unwrap().0.into(),
    }
}

/// An echo request of the guest.
pub fn ping(target: &str, data: &[u8]) -> Vec<u8> {
    let target: IpAddr = target.parse().unwrap();
    let guest = guest_of(target);
    let (protocol, kind) = match target {
        IpAddr::V4(_) => (packet::ICMP4, 8),
        IpAddr::V6(_) => (packet::ICMP6, 128),
    };
    let mut body = [&[kind, 0, 0, 0, 0x12, 0x34, 0, 9][..], data].concat();
    let value = match target {
        IpAddr::V4(_) => !packet::sum(&body, 0),
        IpAddr::V6(_) => packet::checksum(guest, target, protocol, &body),
    };
    body[2..4].copy_from_slice(&value.to_be_bytes());
    reply::whole(guest, target, protocol, &body)
}

/// The ICMP message in a frame.
pub fn message(frame: &[u8]) -> Option<Vec<u8>> {
    let packet = frame.get(ETHERNET..)?;
    match packet.first()? >> 4 {
        4 if packet.get(9) == Some(&packet::ICMP4) => packet.get(20..),
        6 if packet.get(6) == Some(&packet::ICMP6) => packet.get(40..),
        _ => None,
    }
    .map(<[u8]>::to_vec)
}

#[test]
fn unreachable_and_silent_targets_are_unreachable_in_the_guest() {
    inside(
        "namespace::unreachable_and_silent_targets_are_unreachable_in_the_guest",
        || {
            let mut hasty = config();
            hasty.limits.connect = Duration::from_millis(200);
            let mut guest = Guest::new(hasty, allow_all(), Box::new(super::dns::Refuser));
            for target in ["203.0.113.9", "198.51.100.77"] {
                let handle = guest.connect(target, 80);
                let told = guest.find("an ICMP error", message);
                assert_eq!(told[..2], [3, 1], "{target}");
                // About the guest's own SYN: its addresses and ports.
                assert_eq!(
                    told[8 + 16..8 + 20].to_vec(),
                    target.parse::<std::net::Ipv4Addr>().unwrap().octets()
                );
                guest.socket(handle).abort();
                guest.until("no flow is left", |guest| guest.metric("tcp_now") == 0);
            }
        },
    );
}

#[test]
fn echo_goes_through_sockets_without_privilege() {
    inside(
        "namespace::echo_goes_through_sockets_without_privilege",
        || {
            let mut guest = Guest::open(allow_all());
            permit_echo();
            for (target, kind) in [
                ("127.0.0.1", 0),
                ("198.51.100.1", 0),
                ("::1", 129),
                ("2001:db8::1", 129),
            ] {
                let data: Vec<u8> = (0..1200).map(|at| at as u8).collect();
                guest.packet(&ping(target, &data));
                let answer = guest.find("an echo", message);
                assert_eq!(answer[0], kind);
                // Its own identifier and sequence number, not those of the host's socket.
                assert_eq!(answer[4..8], [0x12, 0x34, 0, 9]);
                assert_eq!(answer[8..], data);
            }
        },
    );
}

#[test]
fn without_permission_for_echo_the_guest_is_told() {
    inside(
        "namespace::without_permission_for_echo_the_guest_is_told",
        || {
            // A new namespace allows nobody ping sockets.
            let mut guest = Guest::open(allow_all());
            guest.packet(&ping("127.0.0.1", b"x"));
            assert_eq!(guest.find("an ICMP error", message)[..2], [3, 13]);
            let records = guest.stack.audit();
            assert!(
                records[0].contains("net.ipv4.ping_group_range"),
                "{records:?}"
            );
        },
    );
}

#[test]
fn nothing_leaves_what_the_policy_denies() {
    inside("namespace::nothing_leaves_what_the_policy_denies", || {
        permit_echo();
        let canary = Canary::new();
        let mut guest = Guest::open(Rules::new(|_| Action::Deny));
        let targets = [
            "198.51.100.77",
            "127.0.0.1",
            "10.9.0.1",
            "192.0.2.1",
            "2001:db8::77",
            "::1",
        ];
        let mut count = 0;
        for target in targets {
            let address: IpAddr = target.parse().unwrap();
            let own = guest_of(address);
            for port in [1, 53, 80, 443, 853, 5353, 65_535] {
                if port != 53 {
                    let handle = guest.connect(target, port);
                    guest.until("denied", |guest| {
                        guest.state(handle) == State::Closed || address.is_loopback()
                    });
                    guest.socket(handle).abort();
                }
                let datagram = reply::udp((own, 4000), (address, port), b"secret");
                for piece in reply::fragments(datagram.clone(), 1280, 7) {
                    guest.packet(&piece);
                }
                let big = reply::udp((own, 4000), (address, port), &[b's'; 4000]);
                for piece in reply::fragments(big, 1280, 8) {
                    guest.packet(&piece);
                }
                count += 5;
            }
            guest.packet(&ping(target, b"secret"));
            for protocol in [2, 4, 33, 41, 47, 50, 89, 132, 136] {
                guest.packet(&reply::whole(own, address, protocol, &[0; 40]));
            }
            count += 10;
        }
        let ends = ends();
        let lan = [
            &[0xff; 6][..],
            &ends.guest_mac,
            &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
            &ends.guest_mac,
        ]
        .concat();
        let lan = [&lan[..], &[10, 9, 0, 2, 0, 0, 0, 0, 0, 0, 198, 51, 100, 77]].concat();
        guest.frame(&lan);
        guest.until("all were looked at", |guest| {
            guest.metric("frames_from_guest") > count
        });
        guest.packet(&ping("10.9.0.1", b"last"));
        let last =
            |frame: &[u8]| message(frame).filter(|told| told.ends_with(b"last") && told[0] == 0);
        guest.find("everything before is done", last);
        guest.stack.stop();
        assert_eq!(canary.heard(), Vec::<Vec<u8>>::new());

        // The canary does hear what is allowed.
        let mut guest = Guest::open(allow_all());
        let own = guest_of("198.51.100.77".parse().unwrap());
        guest.packet(&reply::udp(
            (own, 4000),
            ("198.51.100.77".parse().unwrap(), 9),
            b"secret",
        ));
        guest.until("sent", |guest| guest.metric("bytes_sent") == 6);
        assert!(canary
            .heard()
            .iter()
            .any(|packet| packet.ends_with(b"secret")));
    });
}

pub fn entries(path: &str) -> Vec<String> {
    let read = std::fs::read_dir(path).unwrap();
    let mut names: Vec<_> = read
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

pub fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

#[test]
fn nothing_is_left_of_a_stack_that_stopped() {
    inside("namespace::nothing_is_left_of_a_stack_that_stopped", || {
        permit_echo();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let datagrams = udp.local_addr().unwrap().port();
        let (descriptors, tasks) = (entries("/proc/self/fd"), threads());
        for stops in [true, false] {
            let mut guest = Guest::open(allow_all());
            let mut served = Vec::new();
            for _ in 0..50 {
                guest.connected("127.0.0.1", port);
                served.push(listener.accept().unwrap());
            }
            guest.connected("192.0.2.1", 53);
            guest.connect("198.51.100.77", 80);
            let own = guest_of("127.0.0.1".parse().unwrap());
            for from in 1000..1050 {
                let target = ("127.0.0.1".parse().unwrap(), datagrams);
                guest.packet(&reply::udp((own, from), target, b"x"));
            }
            guest.packet(&ping("127.0.0.1", b"x"));
            guest.until("flows", |guest| {
                guest.metric("tcp_now") == 52 && guest.metric("datagrams_now") == 51
            });
            if stops {
                guest.stack.stop();
            } else {
                guest.hang_up();
                guest.ended();
            }
            drop(guest);
            drop(served);
            assert_eq!(entries("/proc/self/fd"), descriptors);
            assert_eq!(threads(), tasks);
        }
    });
}

#[test]
fn thousands_of_resting_flows_do_not_slow_a_new_one() {
    inside(
        "namespace::thousands_of_resting_flows_do_not_slow_a_new_one",
        || {
            const FLOWS: usize = 5000;
            let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
            let wanted = rustix::process::Rlimit {
                current: limit.maximum,
                maximum: limit.maximum,
            };
            rustix::process::setrlimit(rustix::process::Resource::Nofile, wanted).unwrap();
            if limit
                .maximum
                .is_some_and(|most| most < 2 * FLOWS as u64 + 100)
            {
                eprintln!("skipped: too few descriptors on this machine");
                return;
            }
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let server = thread::spawn(move || {
                let mut clients: Vec<_> =
                    (0..=FLOWS).map(|_| listener.accept().unwrap().0).collect();
                let mut last = clients.pop().unwrap();
                last.write_all(b"hello").unwrap();
                clients
            });
            let mut guest = Guest::open(allow_all());
            for _ in 0..FLOWS / 100 {
                let handles: Vec<_> = (0..100)
                    .map(|_| guest.connect_with("127.0.0.1", port, 1024))
                    .collect();
                guest.until("connected", |guest| {
                    handles
                        .iter()
                        .all(|handle| guest.state(*handle) == State::Established)
                });
            }
            assert_eq!(guest.metric("tcp_now"), FLOWS as u64);
            let pace = Pace::begin();
            let last = guest.connected("127.0.0.1", port);
            assert_eq!(guest.read_to_end(last).unwrap(), b"hello");
            let took = pace.passed();
            assert!(took < Duration::from_secs(1), "{took:?}");
            drop(server.join().unwrap());
        },
    );
}
