//! The decision told before anything happens: nothing is resolved, nothing is sent.

use super::error::{quoted, PolicyError};
use super::{decide, decide_name, Action, Destination, Direction, Flow, Name, Pins, Policy};
use super::{Protocol, Verdict};
use crate::address::Class;
use crate::authority::{Authority, Host};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

/// Where somebody asks about, `HOST:PORT`, HOST an address (IPv6 in brackets) or a name; without
/// a port for ICMP.
pub fn parse(text: &str) -> Result<Authority, PolicyError> {
    Authority::parse(text).ok_or_else(|| {
        PolicyError::new(
            format!("{} is no host and port", quoted(text)),
            "write example.com:443, 192.0.2.1:443 or [2001:db8::1]:443",
        )
    })
}

/// The verdict for a flow from the guest to `host`. For a name: first whether it may be resolved,
/// then what becomes of a flow that states it and goes to a public address that it was resolved
/// to (one that no rule for addresses names; `localhost` leads to loopback). A TCP client is taken to state the name, other
/// protocols cannot.
pub fn explain(host: &Host, protocol: Protocol, port: Option<u16>, policy: &Policy) -> Verdict {
    let flow = |address, name| Flow {
        direction: Direction::Egress,
        protocol,
        address,
        port,
        name,
    };
    let name = match host {
        Host::Address(address) => return decide(&flow(*address, None), policy, &Pins::default()),
        Host::Name(name) => name,
    };
    let learned = decide_name(name, policy);
    if learned.action != Action::Allow {
        return learned;
    }
    let mut address = unnamed_public_address(policy);
    let mut here = policy.clone();
    if is_local(name) {
        address = Ipv4Addr::LOCALHOST.into();
    }
    if name.as_str() == super::HOST_NAME {
        match policy.host.first() {
            Some(host) => address = *host,
            None => here = here.with_host([address]),
        }
    }
    let mut pins = Pins::default();
    pins.pin(name, address, Instant::now());
    let stated = (protocol == Protocol::Tcp).then(|| name.clone());
    decide(&flow(address, stated), &here, &pins)
}

/// Whether everybody takes a name for the loopback interface's (RFC 6761, 6.3).
fn is_local(name: &Name) -> bool {
    let top = name.as_str().rsplit('.').next();
    top == Some("localhost")
}

/// A public address that no rule for an address or a network means, if there is one.
fn unnamed_public_address(policy: &Policy) -> IpAddr {
    let meant = |address: &IpAddr| {
        policy.rules.iter().any(|rule| match rule.destination() {
            Destination::Ip(ip) => ip == address,
            Destination::Cidr(cidr) => cidr.contains(*address),
            _ => false,
        })
    };
    // Spread over global unicast (2000::/3): each candidate in a /12 of its own.
    let mut candidates = (0..512u128)
        .map(|n| {
            IpAddr::V6(Ipv6Addr::from(
                (1 << 125) | (n * 0x9e5 % 512) << 116 | 0x5eed,
            ))
        })
        .filter(|address| crate::address::classify(*address) == Class::Public);
    let first = candidates.next().expect("2000::/3 is public");
    if !meant(&first) {
        return first;
    }
    candidates.find(|address| !meant(address)).unwrap_or(first)
}
