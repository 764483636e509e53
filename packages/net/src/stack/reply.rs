//! Packets that the gateway itself makes: answers for ARP and neighbour discovery, ICMP, resets, datagrams.

use super::packet::{checksum, sum, Ends, FRAGMENT6, ICMP4, ICMP6, TCP, UDP};
use std::net::IpAddr;

/// Hops that a packet from beyond the gateway has left.
const HOPS: u8 = 64;

/// Why a packet of the guest went no further, as ICMP tells it (RFC 792, RFC 1812, RFC 4443).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    Network,
    Host,
    Port,
    /// The policy, or a firewall of the host, forbids it.
    Prohibited,
}

/// The body of an ARP reply (RFC 826): the gateway is at its Ethernet address.
pub fn arp(ends: &Ends) -> Option<[u8; 28]> {
    let (guest, gateway) = ends.v4?;
    let mut body = [0; 28];
    body[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 2]);
    body[8..14].copy_from_slice(&ends.gateway_mac);
    body[14..18].copy_from_slice(&gateway.octets());
    body[18..24].copy_from_slice(&ends.guest_mac);
    body[24..28].copy_from_slice(&guest.octets());
    Some(body)
}

/// A neighbour advertisement (RFC 4861, 4.4): router, solicited, override.
pub fn neighbour(ends: &Ends, asker: IpAddr) -> Option<Vec<u8>> {
    let (_, gateway) = ends.v6?;
    let mut body = vec![136, 0, 0, 0, 0xe0, 0, 0, 0];
    body.extend_from_slice(&gateway.octets());
    body.extend_from_slice(&[2, 1]);
    body.extend_from_slice(&ends.gateway_mac);
    let mut packet = ip(gateway.into(), asker, ICMP6, &body, 2);
    packet[7] = 255;
    Some(packet)
}

/// A packet with `payload`, whose checksum at `place` (an offset in the payload) is put in.
fn ip(source: IpAddr, target: IpAddr, protocol: u8, payload: &[u8], place: usize) -> Vec<u8> {
    let mut packet = headers(source, target, protocol, payload.len());
    let at = packet.len() + place;
    packet.extend_from_slice(payload);
    let upper = at - place;
    let value = match protocol {
        ICMP4 => !sum(&packet[upper..], 0),
        _ => checksum(source, target, protocol, &packet[upper..]),
    };
    // A UDP checksum of 0 means none; the other zero of one's complement stands for it.
    let value = if value == 0 && protocol == UDP {
        0xffff
    } else {
        value
    };
    packet[at..at + 2].copy_from_slice(&value.to_be_bytes());
    packet
}

/// The IP header before `length` bytes of `protocol`.
fn headers(source: IpAddr, target: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
    match (source, target) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            let mut head = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, HOPS, protocol, 0, 0];
            head.reserve(8 + length);
            head.extend_from_slice(&source.octets());
            head.extend_from_slice(&target.octets());
            head[2..4].copy_from_slice(&((20 + length) as u16).to_be_bytes());
            let value = !sum(&head, 0);
            head[10..12].copy_from_slice(&value.to_be_bytes());
            head
        }
        (source, target) => {
            let octets = |address| match address {
                IpAddr::V4(v4) => std::net::Ipv4Addr::to_ipv6_mapped(&v4).octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            let mut head = vec![0x60, 0, 0, 0, 0, 0, protocol, HOPS];
            head.reserve(32 + length);
            head[4..6].copy_from_slice(&(length as u16).to_be_bytes());
            head.extend_from_slice(&octets(source));
            head.extend_from_slice(&octets(target));
            head
        }
    }
}

/// A datagram of UDP.
pub fn udp(source: (IpAddr, u16), target: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    let length = 8 + payload.len();
    let mut body = Vec::with_capacity(length);
    body.extend_from_slice(&source.1.to_be_bytes());
    body.extend_from_slice(&target.1.to_be_bytes());
    body.extend_from_slice(&(length as u16).to_be_bytes());
    body.extend_from_slice(&[0, 0]);
    body.extend_from_slice(payload);
    ip(source.0, target.0, UDP, &body, 6)
}

/// An answer to an ICMP echo request (`rest`: sequence number and data).
pub fn echo(source: IpAddr, target: IpAddr, identifier: u16, rest: &[u8]) -> Vec<u8> {
    let (protocol, kind) = match source {
        IpAddr::V4(_) => (ICMP4, 0),
        IpAddr::V6(_) => (ICMP6, 129),
    };
    let mut body = vec![kind, 0, 0, 0];
    body.extend_from_slice(&identifier.to_be_bytes());
    body.extend_from_slice(rest);
    ip(source, target, protocol, &body, 2)
}

/// The ICMP error about a packet of the guest (its whole headers and 8 bytes, or more), from `gateway`.
pub fn unreachable(gateway: IpAddr, guest: IpAddr, why: Unreachable, about: &[u8]) -> Vec<u8> {
    let (kind, code) = match (gateway, why) {
        (IpAddr::V4(_), Unreachable::Network) => (3, 0),
        (IpAddr::V4(_), Unreachable::Host) => (3, 1),
        (IpAddr::V4(_), Unreachable::Port) => (3, 3),
        (IpAddr::V4(_), Unreachable::Prohibited) => (3, 13),
        (IpAddr::V6(_), Unreachable::Network) => (1, 0),
        (IpAddr::V6(_), Unreachable::Prohibited) => (1, 1),
        (IpAddr::V6(_), Unreachable::Host) => (1, 3),
        (IpAddr::V6(_), Unreachable::Port) => (1, 4),
    };
    error(gateway, guest, (kind, code), 0, about)
}

/// A packet of the guest is larger than `mtu`, which the way to its target takes (RFC 1191, RFC 4443, 3.2).
pub fn too_big(gateway: IpAddr, guest: IpAddr, mtu: u32, about: &[u8]) -> Vec<u8> {
    let kind = if gateway.is_ipv4() { (3, 4) } else { (2, 0) };
    error(gateway, guest, kind, mtu, about)
}

/// The hop limit of a packet ended at the gateway.
pub fn time_exceeded(gateway: IpAddr, guest: IpAddr, about: &[u8]) -> Vec<u8> {
    let kind = if gateway.is_ipv4() { 11 } else { 3 };
    error(gateway, guest, (kind, 0), 0, about)
}

/// Type, code and the second word of the message.
fn error(
    gateway: IpAddr,
    guest: IpAddr,
    (kind, code): (u8, u8),
    word: u32,
    about: &[u8],
) -> Vec<u8> {
    let (protocol, most) = match gateway {
        IpAddr::V4(_) => (ICMP4, 576 - 28),
        IpAddr::V6(_) => (ICMP6, 1280 - 48),
    };
    let mut body = vec![kind, code, 0, 0];
    body.extend_from_slice(&word.to_be_bytes());
    body.extend_from_slice(&about[..about.len().min(most)]);
    ip(gateway, guest, protocol, &body, 2)
}

/// The reset that answers a segment of no connection (RFC 9293, 3.10.7.1); None for a reset or a stump.
pub fn reset(source: IpAddr, target: IpAddr, segment: &[u8]) -> Option<Vec<u8>> {
    let head: [u8; 20] = *segment.first_chunk()?;
    let (fin, syn, rst, ack) = (1, 2, 4, 16);
    let flags = head[13];
    if flags & rst != 0 {
        return None;
    }
    let data = segment.len().checked_sub(usize::from(head[12] >> 4) * 4)?;
    let sequence = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
    let taken = data as u32 + u32::from(flags & syn != 0) + u32::from(flags & fin != 0);
    let mut body = [0; 20];
    body[..2].copy_from_slice(&head[2..4]);
    body[2..4].copy_from_slice(&head[..2]);
    body[12] = 5 << 4;
    if flags & ack != 0 {
        body[4..8].copy_from_slice(&head[8..12]);
        body[13] = rst;
    } else {
        body[8..12].copy_from_slice(&sequence.wrapping_add(taken).to_be_bytes());
        body[13] = rst | ack;
    }
    Some(ip(target, source, TCP, &body, 16))
}

/// The acknowledgement of an end that is repeated to a flow which is over (RFC 9293, 3.10.7.4, TIME-WAIT); None for
/// anything else.
pub fn acknowledge(source: IpAddr, target: IpAddr, segment: &[u8]) -> Option<Vec<u8>> {
    let head: [u8; 20] = *segment.first_chunk()?;
    let (fin, syn, rst, ack) = (1, 2, 4, 16);
    if head[13] & (fin | syn | rst | ack) != fin | ack {
        return None;
    }
    let data = segment.len().checked_sub(usize::from(head[12] >> 4) * 4)?;
    let sequence = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
    let mut body = [0; 20];
    body[..2].copy_from_slice(&head[2..4]);
    body[2..4].copy_from_slice(&head[..2]);
    body[4..8].copy_from_slice(&head[8..12]);
    body[8..12].copy_from_slice(&sequence.wrapping_add(data as u32 + 1).to_be_bytes());
    body[12] = 5 << 4;
    body[13] = ack;
    Some(ip(target, source, TCP, &body, 16))
}

/// `packet` in pieces of at most `mtu` bytes: itself if it is no larger.
pub fn fragments(mut packet: Vec<u8>, mtu: usize, id: u32) -> Vec<Vec<u8>> {
    if packet.len() <= mtu {
        return vec![packet];
    }
    let v4 = packet[0] >> 4 == 4;
    let head = if v4 { 20 } else { 40 };
    let payload = packet.split_off(head);
    let room = (mtu - head - if v4 { 0 } else { 8 }) & !7;
    let mut pieces = Vec::new();
    for (index, piece) in payload.chunks(room).enumerate() {
        let offset = index * room;
        let more = offset + piece.len() < payload.len();
        let mut whole = packet.clone();
        if v4 {
            let word = (offset / 8) as u16 | if more { 0x2000 } else { 0 };
            whole[2..4].copy_from_slice(&((head + piece.len()) as u16).to_be_bytes());
            whole[4..6].copy_from_slice(&(id as u16).to_be_bytes());
            whole[6..8].copy_from_slice(&word.to_be_bytes());
            whole[10..12].copy_from_slice(&[0, 0]);
            let value = !sum(&whole, 0);
            whole[10..12].copy_from_slice(&value.to_be_bytes());
        } else {
            let protocol = std::mem::replace(&mut whole[6], FRAGMENT6);
            whole[4..6].copy_from_slice(&((8 + piece.len()) as u16).to_be_bytes());
            let word = offset as u16 | u16::from(more);
            whole.extend_from_slice(&[protocol, 0]);
            whole.extend_from_slice(&word.to_be_bytes());
            whole.extend_from_slice(&id.to_be_bytes());
        }
        whole.extend_from_slice(piece);
        pieces.push(whole);
    }
    pieces
}

/// A packet whose payload is complete, checksum and all.
pub fn whole(source: IpAddr, target: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = headers(source, target, protocol, payload.len());
    packet.extend_from_slice(payload);
    packet
}
