//! The way to a target: whether what is sent may be cut in pieces, and how large a packet goes through whole.

use rustix::net::sockopt::{
    ip_mtu, ipv6_mtu, set_ip_mtu_discover, set_ipv6_mtu_discover, Ipv4PathMtuDiscovery,
    Ipv6PathMtuDiscovery,
};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;

/// What every link has to carry (RFC 791, 3.2; RFC 8200, 5).
const LEAST_V4: u32 = 68;
const LEAST_V6: u32 = 1280;

/// Let the host cut what `socket` sends, or have it refuse what is too large for the way (EMSGSIZE).
pub fn may_split(socket: impl AsFd, target: IpAddr, may: bool) -> io::Result<()> {
    match target {
        IpAddr::V4(_) => set_ip_mtu_discover(
            socket,
            match may {
                true => Ipv4PathMtuDiscovery::WANT,
                false => Ipv4PathMtuDiscovery::DO,
            },
        )?,
        IpAddr::V6(_) => set_ipv6_mtu_discover(
            socket,
            match may {
                true => Ipv6PathMtuDiscovery::WANT,
                false => Ipv6PathMtuDiscovery::DO,
            },
        )?,
    }
    Ok(())
}

/// The largest IP packet that goes to the target of a connected `socket` in one piece, as far as the host knows.
pub fn mtu(socket: impl AsFd, target: IpAddr) -> u32 {
    match target {
        IpAddr::V4(_) => ip_mtu(socket).unwrap_or(0).clamp(LEAST_V4, 0xffff),
        IpAddr::V6(_) => ipv6_mtu(socket).unwrap_or(0).max(LEAST_V6),
    }
}
