//! Random policies, pins and flows through a whole stack, whose upstream records what reaches it: exactly what
//! `decide` admits, in whatever order the flows come.

use super::namespace::{inside, permit_echo, ping, Canary};
use super::packet;
use super::testing::{config, Guest};
use super::tests::datagram;
use super::warden::{Ward, Warden};
use crate::policy::tests::{any_flow, any_pins, any_policy};
use crate::policy::{decide, Action, Flow, Pins, Policy, Protocol};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use smoltcp::socket::tcp::State;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;

/// Every address of the small world to which a socket can connect, and that is then this host's own.
const WORLD: [&str; 15] = [
    "8.8.8.8",
    "93.184.215.14",
    "93.184.215.15",
    "10.0.0.5",
    "192.168.1.1",
    "169.254.169.254",
    "169.254.1.1",
    "198.18.0.1",
    "10.0.2.1",
    "2a00:1450::1",
    "fd00:ec2::254",
    "fd00::1",
    "64:ff9b::a9fe:a9fe",
    "2002:a00:5::1",
    "2606:4700:4700::1111",
];
const PORTS: [u16; 6] = [22, 53, 80, 443, 853, 5353];
const POLICIES: u32 = 150;

/// Protocol, address and port; for TCP also the name that a client said, once its first bytes came through.
type Reached = (u8, IpAddr, u16, Option<String>);
type Book = Arc<Mutex<BTreeSet<Reached>>>;

/// What a client says of the name that it wants.
fn head(flow: &Flow) -> Vec<u8> {
    match &flow.name {
        Some(name) => format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", name.as_str()).into_bytes(),
        None => b"SSH-2.0-test\r\n".to_vec(),
    }
}

fn serve(mut client: TcpStream, book: &Book) -> std::io::Result<()> {
    let local: SocketAddr = client.local_addr()?;
    let mut bytes = [0; 500];
    let count = client.read(&mut bytes)?;
    if count > 0 {
        let text = String::from_utf8_lossy(&bytes[..count]).into_owned();
        let reached = (
            packet::TCP,
            local.ip().to_canonical(),
            local.port(),
            Some(text),
        );
        book.lock().unwrap().insert(reached);
        client.write_all(b"served")?;
    }
    Ok(())
}

/// What `decide` admits: the connection or the datagram, and what a TCP client then says.
fn admitted(flow: &Flow, policy: &Policy, pins: &Pins) -> Vec<Reached> {
    let bare = Flow {
        name: None,
        ..flow.clone()
    };
    let opened = decide(&bare, policy, pins);
    let port = flow.port.unwrap_or(0);
    match flow.protocol {
        Protocol::Tcp => {
            if opened.action == Action::Deny {
                return Vec::new();
            }
            let said = match flow.name {
                Some(_) => decide(flow, policy, pins).unnamed(),
                None => opened.unnamed(),
            };
            let mut all = vec![(packet::TCP, flow.address, port, None)];
            if said.action == Action::Allow {
                let text = String::from_utf8(head(flow)).unwrap();
                all.push((packet::TCP, flow.address, port, Some(text)));
            }
            all
        }
        Protocol::Udp if opened.action == Action::Allow => {
            vec![(packet::UDP, flow.address, port, None)]
        }
        Protocol::Icmp if opened.action == Action::Allow => {
            vec![(packet::ICMP4, flow.address, 0, None)]
        }
        _ => Vec::new(),
    }
}

/// The target of a packet that some socket of this host sent first.
fn target(bytes: &[u8]) -> Option<Reached> {
    let (protocol, address, upper) = match bytes.first()? >> 4 {
        4 => {
            let address: [u8; 4] = bytes.get(16..20)?.try_into().ok()?;
            (*bytes.get(9)?, IpAddr::from(address), bytes.get(20..)?)
        }
        _ => {
            let address: [u8; 16] = bytes.get(24..40)?.try_into().ok()?;
            (*bytes.get(6)?, IpAddr::from(address), bytes.get(40..)?)
        }
    };
    let port = u16::from_be_bytes([*upper.get(2)?, *upper.get(3)?]);
    match protocol {
        packet::TCP if upper.get(13)? & 0x12 == 2 => Some((packet::TCP, address, port, None)),
        packet::UDP if PORTS.contains(&port) => Some((packet::UDP, address, port, None)),
        packet::ICMP4 | packet::ICMP6 if [8, 128].contains(upper.first()?) => {
            Some((packet::ICMP4, address, 0, None))
        }
        _ => None,
    }
}

/// Let a guest begin `flows`, and tell what reached anybody.
fn sweep<'a>(
    flows: impl Iterator<Item = &'a Flow>,
    (policy, pins): (&Policy, &Pins),
    canary: &Canary,
    book: &Book,
) -> BTreeSet<Reached> {
    book.lock().unwrap().clear();
    let ward = Ward::new(policy.clone());
    ward.state().pins = pins.clone();
    let gate = Box::new(Warden(ward));
    let mut guest = Guest::new(config(), gate, Box::new(super::dns::Refuser));
    for flow in flows {
        let address = flow.address.to_string();
        match (flow.protocol, flow.port) {
            (Protocol::Tcp, Some(53)) => {}
            (Protocol::Tcp, Some(port)) => {
                let handle = guest.connect(&address, port);
                guest.until("decided", |guest| guest.state(handle) != State::SynSent);
                if guest.state(handle) == State::Established {
                    guest.write(handle, &head(flow));
                    guest.socket(handle).close();
                    guest.read_to_end(handle);
                }
            }
            (Protocol::Udp, Some(port)) => {
                guest.packet(&datagram(&address, 4000, port, &[0; 16]));
            }
            _ => guest.packet(&ping(&address, b"sweep")),
        }
    }
    guest.packet(&ping("10.9.0.1", b"last"));
    guest.until("all were looked at", |guest| {
        guest.seen.iter().any(|frame| frame.ends_with(b"last"))
    });
    guest.stack.stop();
    let mut reached: BTreeSet<Reached> = canary.heard().iter().filter_map(|p| target(p)).collect();
    reached.append(&mut book.lock().unwrap());
    reached
}

fn in_world(flow: &Flow) -> bool {
    let address = flow.address.to_string();
    WORLD.contains(&address.as_str())
}

#[test]
fn what_decide_denies_reaches_nobody_in_whatever_order_flows_come() {
    inside(
        "sweep::what_decide_denies_reaches_nobody_in_whatever_order_flows_come",
        world,
    );
}

fn world() {
    permit_echo();
    for address in WORLD {
        let all = match address.contains(':') {
            true => vec!["-6", "addr", "add", address, "dev", "lo", "nodad"],
            false => vec!["addr", "add", address, "dev", "lo"],
        };
        assert!(Command::new("ip").args(all).status().unwrap().success());
    }
    let book = Book::default();
    for port in PORTS {
        let listener = TcpListener::bind(("::", port)).unwrap();
        let book = Arc::clone(&book);
        thread::spawn(move || {
            for client in listener.incoming() {
                let _ = serve(client.unwrap(), &book);
            }
        });
    }
    let canary = Canary::new();
    let settings = ProptestConfig {
        cases: POLICIES,
        failure_persistence: None,
        max_shrink_iters: 20,
        ..ProptestConfig::default()
    };
    let flows = prop::collection::vec(any_flow().prop_filter("unreachable", in_world), 1..12);
    let some = Cell::new(0);
    TestRunner::new(settings)
        .run(
            &(any_policy(), any_pins(), flows),
            |(policy, pins, flows)| {
                let mut expected = BTreeSet::new();
                for flow in &flows {
                    expected.extend(admitted(flow, &policy, &pins));
                }
                let forth = sweep(flows.iter(), (&policy, &pins), &canary, &book);
                let back = sweep(flows.iter().rev(), (&policy, &pins), &canary, &book);
                prop_assert_eq!(&forth, &expected);
                prop_assert_eq!(&back, &expected);
                some.set(some.get() + expected.len());
                Ok(())
            },
        )
        .unwrap();
    let some = some.get();
    assert!(some > 50, "hardly anything was admitted: {some}");
}
