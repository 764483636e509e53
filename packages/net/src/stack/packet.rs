//! Ethernet frames of the guest: what they carry, or why they are dropped. Pure; nothing here panics.
//!
//! Formats: RFC 791 (IPv4), RFC 8200 (IPv6), RFC 826 (ARP), RFC 4861 (neighbour discovery).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

pub const ETHERNET: usize = 14;
pub const ARP: u16 = 0x0806;
pub const IPV4: u16 = 0x0800;
pub const IPV6: u16 = 0x86dd;
pub const ICMP4: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const FRAGMENT6: u8 = 44;
pub const ICMP6: u8 = 58;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Why a frame is dropped. Each is counted under its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// Shorter than its headers say, or headers that contradict each other.
    Malformed,
    /// From or to an Ethernet address that is not on this link.
    ForeignMac,
    /// Neither ARP, IPv4 nor IPv6.
    EtherType,
    /// From an IP address that is not the guest's.
    Spoofed,
    /// To an address to which nobody connects: multicast, broadcast, unspecified, IPv4-mapped, link-local IPv6.
    Target,
    /// IPv4 options, or an IPv6 extension header other than a fragment header.
    Extension,
    /// An upper protocol other than TCP, UDP and ICMP echo.
    Protocol,
    /// A fragment that overlaps, is too large, or is of too many.
    Fragment,
    /// A checksum is wrong.
    Checksum,
    /// A table or the queue to the guest is full.
    Full,
    /// Belongs to no flow.
    Stray,
    /// Faster than the guest may send.
    Rate,
}

impl Reject {
    pub const ALL: [Reject; 12] = [
        Reject::Malformed,
        Reject::ForeignMac,
        Reject::EtherType,
        Reject::Spoofed,
        Reject::Target,
        Reject::Extension,
        Reject::Protocol,
        Reject::Fragment,
        Reject::Checksum,
        Reject::Full,
        Reject::Stray,
        Reject::Rate,
    ];

    /// The name under which it is counted.
    pub fn as_str(self) -> &'static str {
        match self {
            Reject::Malformed => "malformed",
            Reject::ForeignMac => "foreign_mac",
            Reject::EtherType => "ether_type",
            Reject::Spoofed => "spoofed",
            Reject::Target => "target",
            Reject::Extension => "extension",
            Reject::Protocol => "protocol",
            Reject::Fragment => "fragment",
            Reject::Checksum => "checksum",
            Reject::Full => "full",
            Reject::Stray => "stray",
            Reject::Rate => "rate",
        }
    }
}

/// One end of the link and, per family, its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    pub guest_mac: Mac,
    pub gateway_mac: Mac,
    /// Guest, gateway. None: the family is not offered.
    pub v4: Option<(Ipv4Addr, Ipv4Addr)>,
    pub v6: Option<(Ipv6Addr, Ipv6Addr)>,
}

/// What an Ethernet frame of the guest carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// The guest asks for the gateway's Ethernet address.
    WhoHasGateway,
    Ip(Packet<'a>),
}

/// An IP packet from the guest's address to some other unicast address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    pub source: IpAddr,
    pub target: IpAddr,
    /// The upper protocol, whatever headers are before it.
    pub protocol: u8,
    /// TTL or hop limit.
    pub hops: u8,
    /// The whole packet, without padding of the link behind it.
    pub bytes: &'a [u8],
    /// What follows the IP headers (and the fragment header).
    pub payload: &'a [u8],
    pub fragment: Option<Fragment>,
    /// Whether it may go on in pieces: the guest sent it so, or did not forbid it (RFC 791, RFC 8200).
    pub splits: bool,
}

/// Where in its datagram a fragment belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    pub id: u32,
    /// In bytes.
    pub offset: usize,
    pub more: bool,
}

fn take<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    take(bytes, at).map(u16::from_be_bytes)
}

/// What `frame` carries.
pub fn parse<'a>(frame: &'a [u8], ends: &Ends) -> Result<Frame<'a>, Reject> {
    let to: Mac = take(frame, 0).ok_or(Reject::Malformed)?;
    let from: Mac = take(frame, 6).ok_or(Reject::Malformed)?;
    let kind = be16(frame, 12).ok_or(Reject::Malformed)?;
    let group = to[0] & 1 == 1;
    if from != ends.guest_mac || !(group || to == ends.gateway_mac) {
        return Err(Reject::ForeignMac);
    }
    let body = &frame[ETHERNET..];
    match kind {
        ARP => parse_arp(body, ends),
        IPV4 if !group => parse_v4(body, ends).map(Frame::Ip),
        IPV6 if !group => parse_v6(body, ends),
        // Only questions for the gateway's address are answered among what goes to everybody.
        IPV6 => parse_v6(body, ends).and_then(|frame| match frame {
            Frame::WhoHasGateway => Ok(frame),
            Frame::Ip(_) => Err(Reject::Target),
        }),
        IPV4 => Err(Reject::Target),
        _ => Err(Reject::EtherType),
    }
}

fn parse_arp<'a>(body: &[u8], ends: &Ends) -> Result<Frame<'a>, Reject> {
    let (guest, gateway) = ends.v4.ok_or(Reject::EtherType)?;
    let head: [u8; 28] = take(body, 0).ok_or(Reject::Malformed)?;
    // Ethernet, IPv4, lengths 6 and 4, a request. Replies have nothing to say to us.
    if head[..8] != [0, 1, 8, 0, 6, 4, 0, 1] {
        return Err(Reject::Malformed);
    }
    let sender = [head[14], head[15], head[16], head[17]];
    if head[8..14] != ends.guest_mac || sender != guest.octets() {
        return Err(Reject::Spoofed);
    }
    if head[24..28] != gateway.octets() {
        return Err(Reject::Target);
    }
    Ok(Frame::WhoHasGateway)
}

/// Whether somebody may be at `address`, as far as its form says.
fn reachable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !(v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast()),
        // A socket that connects to a mapped address goes out as IPv4; link-local needs an interface.
        IpAddr::V6(v6) => {
            !(v6.is_unspecified()
                || v6.is_multicast()
                || v6.to_ipv4_mapped().is_some()
                || (v6.segments()[0] & 0xffc0) == 0xfe80)
        }
    }
}

fn parse_v4<'a>(body: &'a [u8], ends: &Ends) -> Result<Packet<'a>, Reject> {
    let (guest, _) = ends.v4.ok_or(Reject::EtherType)?;
    let head: [u8; 20] = take(body, 0).ok_or(Reject::Malformed)?;
    if head[0] >> 4 != 4 || head[0] & 15 < 5 {
        return Err(Reject::Malformed);
    }
    if head[0] != 0x45 {
        return Err(Reject::Extension);
    }
    let total = usize::from(u16::from_be_bytes([head[2], head[3]]));
    let bytes = body.get(..total).ok_or(Reject::Malformed)?;
    let payload = bytes.get(20..).ok_or(Reject::Malformed)?;
    if sum(&head, 0) != 0xffff {
        return Err(Reject::Checksum);
    }
    let source = Ipv4Addr::new(head[12], head[13], head[14], head[15]);
    let target = Ipv4Addr::new(head[16], head[17], head[18], head[19]);
    if source != guest {
        return Err(Reject::Spoofed);
    }
    if target == guest || !reachable(target.into()) {
        return Err(Reject::Target);
    }
    let word = u16::from_be_bytes([head[6], head[7]]);
    let offset = usize::from(word & 0x1fff) * 8;
    let more = word & 0x2000 != 0;
    let fragment = (more || offset > 0).then(|| Fragment {
        id: u32::from(u16::from_be_bytes([head[4], head[5]])),
        offset,
        more,
    });
    upper(head[9], false)?;
    Ok(Packet {
        source: source.into(),
        target: target.into(),
        protocol: head[9],
        hops: head[8],
        bytes,
        payload,
        fragment,
        splits: word & 0x4000 == 0,
    })
}

fn upper(protocol: u8, v6: bool) -> Result<(), Reject> {
    match protocol {
        TCP | UDP => Ok(()),
        ICMP4 if !v6 => Ok(()),
        ICMP6 if v6 => Ok(()),
        _ => Err(Reject::Protocol),
    }
}

fn parse_v6<'a>(body: &'a [u8], ends: &Ends) -> Result<Frame<'a>, Reject> {
    let (guest, gateway) = ends.v6.ok_or(Reject::EtherType)?;
    let head: [u8; 40] = take(body, 0).ok_or(Reject::Malformed)?;
    if head[0] >> 4 != 6 {
        return Err(Reject::Malformed);
    }
    let length = usize::from(u16::from_be_bytes([head[4], head[5]]));
    let bytes = body.get(..40 + length).ok_or(Reject::Malformed)?;
    let source = Ipv6Addr::from(take::<16>(&head, 8).ok_or(Reject::Malformed)?);
    let target = Ipv6Addr::from(take::<16>(&head, 24).ok_or(Reject::Malformed)?);
    let link_local = (source.segments()[0] & 0xffc0) == 0xfe80;
    if head[6] == ICMP6 && (source == guest || link_local) && bytes.get(40) == Some(&135) {
        return solicitation(bytes, source, target, head[7], gateway);
    }
    if source != guest {
        return Err(Reject::Spoofed);
    }
    if target == guest || !reachable(target.into()) {
        return Err(Reject::Target);
    }
    let mut packet = Packet {
        source: source.into(),
        target: target.into(),
        protocol: head[6],
        hops: head[7],
        bytes,
        payload: &bytes[40..],
        fragment: None,
        splits: false,
    };
    if packet.protocol == FRAGMENT6 {
        let part: [u8; 8] = take(packet.payload, 0).ok_or(Reject::Malformed)?;
        let word = u16::from_be_bytes([part[2], part[3]]);
        packet.protocol = part[0];
        packet.payload = &packet.payload[8..];
        packet.fragment = Some(Fragment {
            id: u32::from_be_bytes([part[4], part[5], part[6], part[7]]),
            offset: usize::from(word & !7),
            more: word & 1 != 0,
        });
        packet.splits = true;
    }
    match packet.protocol {
        // Hop-by-hop, routing (with the RH0 of RFC 5095), a second fragment header, ESP, AH,
        // destination options, mobility, HIP, shim6, and "no next header".
        0 | 43 | 44 | 50 | 51 | 59 | 60 | 135 | 139 | 140 => return Err(Reject::Extension),
        other => upper(other, true)?,
    }
    Ok(Frame::Ip(packet))
}

/// A neighbour solicitation (RFC 4861, 7.1.1) for the gateway.
fn solicitation<'a>(
    bytes: &[u8],
    source: Ipv6Addr,
    target: Ipv6Addr,
    hops: u8,
    gateway: Ipv6Addr,
) -> Result<Frame<'a>, Reject> {
    let body = &bytes[40..];
    let wanted: [u8; 16] = take(body, 8).ok_or(Reject::Malformed)?;
    if hops != 255 || body[1] != 0 {
        return Err(Reject::Malformed);
    }
    if checksum(source.into(), target.into(), ICMP6, body) != 0 {
        return Err(Reject::Checksum);
    }
    if Ipv6Addr::from(wanted) != gateway {
        return Err(Reject::Target);
    }
    Ok(Frame::WhoHasGateway)
}

/// The 16-bit one's complement sum (RFC 1071) of `bytes`, begun with `start`.
pub fn sum(bytes: &[u8], start: u32) -> u16 {
    // In the order of the machine, which a compiler makes wide additions of; only the two bytes of the sum have to
    // be turned (RFC 1071, 2 (B)).
    let mut chunks = bytes.chunks_exact(4);
    let words =
        (&mut chunks).map(|chunk| u32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]));
    let mut total: u64 = words.map(u64::from).sum();
    let mut last = [0; 4];
    let rest = chunks.remainder();
    last[..rest.len()].copy_from_slice(rest);
    total += u64::from(u32::from_ne_bytes(last));
    fold(u64::from(u16::from_be(fold(total))) + u64::from(start))
}

fn fold(mut total: u64) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// Source, target and where the payload begins, of an IP packet without options and extensions.
pub fn outline(packet: &[u8]) -> Option<(IpAddr, IpAddr, usize)> {
    let v4 = |at| take::<4>(packet, at).map(IpAddr::from);
    let v6 = |at| take::<16>(packet, at).map(IpAddr::from);
    match packet.first()? >> 4 {
        4 => Some((v4(12)?, v4(16)?, 20)),
        _ => Some((v6(8)?, v6(24)?, 40)),
    }
}

/// The checksum of TCP, UDP and ICMPv6 with their pseudo-header; 0 over bytes that hold a right one.
pub fn checksum(source: IpAddr, target: IpAddr, protocol: u8, bytes: &[u8]) -> u16 {
    let mut head = [0; 40];
    let length = bytes.len() as u32;
    let used: Range<usize> = match (source, target) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            head[..4].copy_from_slice(&a.octets());
            head[4..8].copy_from_slice(&b.octets());
            head[9] = protocol;
            head[10..12].copy_from_slice(&(length as u16).to_be_bytes());
            0..12
        }
        (a, b) => {
            let wide = |address| match address {
                IpAddr::V4(v4) => Ipv4Addr::to_ipv6_mapped(&v4),
                IpAddr::V6(v6) => v6,
            };
            head[..16].copy_from_slice(&wide(a).octets());
            head[16..32].copy_from_slice(&wide(b).octets());
            head[32..36].copy_from_slice(&length.to_be_bytes());
            head[39] = protocol;
            0..40
        }
    };
    !sum(bytes, u32::from(sum(&head[used], 0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_sum_is_that_of_the_words(bytes in proptest::collection::vec(any::<u8>(), 0..200), start: u16) {
            let words = bytes.chunks(2).map(|word| match word {
                [high, low] => u32::from(*high) << 8 | u32::from(*low),
                _ => u32::from(word[0]) << 8,
            });
            let total: u32 = u32::from(start) + words.sum::<u32>();
            let once = (total & 0xffff) + (total >> 16);
            let wanted = (once & 0xffff) + (once >> 16);
            prop_assert_eq!(u32::from(sum(&bytes, u32::from(start))), wanted);
        }
    }
}
