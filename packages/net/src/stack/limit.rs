//! How far the guest may send: what it says beyond the window that it was told of is cut off.
//!
//! smoltcp (0.12 to 0.14) takes bytes up to the end of its buffer, and panics when it then looks at how much of the
//! window it announced last is left: that may be less, because windows are announced in units of up to 64 bytes and
//! rounded down, and because its owner has read since. A guest that is honest gets there too: what was announced ends at
//! another byte each time, also at an earlier one (RFC 7323, 2.4), while what was sent before is under way.
//!
//! So no byte is let in behind the end that was announced last. What comes out of its turn ends another unit before
//! that: it counts only when what is missing has come, and a window may have been announced by then that ends earlier.

use super::packet;
use super::reply;
use smoltcp::wire::{TcpOption, TcpPacket};
use std::borrow::Cow;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// What a segment to the guest says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    flags: u8,
    acknowledged: u32,
    window: u16,
    scale: Option<u8>,
}

impl Said {
    /// Of an IP packet without options.
    pub fn read(packet: &[u8]) -> Option<Said> {
        let (_, _, at) = packet::outline(packet)?;
        let segment = packet.get(at..)?;
        let head: &[u8; 20] = segment.first_chunk()?;
        Some(Said {
            flags: head[13],
            acknowledged: number(head, 8),
            window: u16::from_be_bytes([head[14], head[15]]),
            scale: scale(segment, head[13]),
        })
    }
}

/// What the guest may send of one flow. Numbers are TCP's, which begin again after 2³².
#[derive(Default)]
pub struct Limit {
    /// Windows are announced in units of so many bits.
    shift: u8,
    /// The window of a SYN that nothing was acknowledged with.
    asked: Option<u16>,
    /// The number behind the last that was announced, and the next that has not come.
    known: Option<(u32, u32)>,
}

impl Limit {
    /// A segment has left for the guest.
    pub fn told(&mut self, said: Said) {
        if said.flags & RST != 0 {
            return;
        }
        let mut shift = self.shift;
        if said.flags & SYN != 0 {
            self.shift = said.scale.unwrap_or(0);
            // The window of a SYN is not scaled (RFC 7323, 2.2).
            shift = 0;
        }
        if said.flags & ACK == 0 {
            self.asked = Some(said.window);
            return;
        }
        let window = u32::from(said.window) << shift;
        self.known = Some((said.acknowledged.wrapping_add(window), said.acknowledged));
    }

    /// So many bytes that came are next to those before.
    pub fn took(&mut self, count: usize) {
        if let Some((_, next)) = &mut self.known {
            *next = next.wrapping_add(count as u32);
        }
    }

    /// As much of a packet of the guest as it may send.
    pub fn cut<'a>(&mut self, packet: &'a [u8]) -> Cow<'a, [u8]> {
        self.shortened(packet)
            .map_or(Cow::Borrowed(packet), Cow::Owned)
    }

    /// The packet without what is too much, if any of it is.
    fn shortened(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        let (source, target, at) = packet::outline(packet)?;
        let segment = packet.get(at..)?;
        let head: &[u8; 20] = segment.first_chunk()?;
        let from = number(head, 4);
        if let (true, None, Some(window)) = (head[13] & SYN != 0, self.known, self.asked) {
            if scale(segment, SYN).is_none() {
                self.shift = 0;
            }
            let first = from.wrapping_add(1);
            self.known = Some((first.wrapping_add(window.into()), first));
        }
        let begin = usize::from(head[12] >> 4) * 4;
        let data = segment.len().checked_sub(begin)?;
        let (end, next) = self.known?;
        let late = (from.wrapping_sub(next) as i32) > 0;
        let end = match late {
            true => end.wrapping_sub((1 << self.shift.min(14)) - 1),
            false => end,
        };
        let behind = from.wrapping_add(data as u32);
        let beyond = usize::try_from(behind.wrapping_sub(end) as i32).ok()?;
        if data == 0 || beyond == 0 {
            return None;
        }
        let mut kept = segment[..begin + data.saturating_sub(beyond)].to_vec();
        // It comes behind what is cut off.
        kept[13] &= !FIN;
        Some(reply::whole(source, target, packet::TCP, &kept))
    }
}

fn number(head: &[u8; 20], at: usize) -> u32 {
    u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
}

/// The window's scale in a segment with `flags`; only a SYN has one.
fn scale(segment: &[u8], flags: u8) -> Option<u8> {
    if flags & SYN == 0 {
        return None;
    }
    let segment = TcpPacket::new_checked(segment).ok()?;
    let mut options = segment.options();
    while !options.is_empty() {
        match TcpOption::parse(options).ok()? {
            (_, TcpOption::EndOfList) => return None,
            (_, TcpOption::WindowScale(scale)) => return Some(scale),
            (rest, _) => options = rest,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: u32 = u32::MAX - 5;

    /// A packet of the guest, `from` bytes behind the first, with data of that length.
    fn packet(flags: u8, from: u32, options: &[u8], data: usize) -> Vec<u8> {
        let mut segment = vec![0; 20];
        segment[4..8].copy_from_slice(&FIRST.wrapping_add(from).to_be_bytes());
        segment[12] = (5 + options.len() as u8 / 4) << 4;
        segment[13] = flags;
        segment.extend(options);
        segment.resize(segment.len() + data, 7);
        let (own, target) = ("10.9.0.2".parse().unwrap(), "192.0.2.1".parse().unwrap());
        reply::whole(own, target, packet::TCP, &segment)
    }

    fn said(flags: u8, acknowledged: u32, window: u16, scale: Option<u8>) -> Said {
        Said {
            flags,
            acknowledged: FIRST.wrapping_add(acknowledged),
            window,
            scale,
        }
    }

    /// How much of a packet with `data` bytes `from` there is let in.
    fn left(limit: &mut Limit, from: u32, data: usize) -> usize {
        limit.cut(&packet(ACK, from, &[], data)).len() - 40
    }

    #[test]
    fn what_is_told_is_read() {
        let scaled = packet(SYN | ACK, 0, &[1, 3, 3, 6], 0);
        assert_eq!(Said::read(&scaled).unwrap().scale, Some(6));
        let others = packet(SYN | ACK, 0, &[2, 4, 5, 180], 0);
        assert_eq!(Said::read(&others).unwrap().scale, None);
        let late = packet(ACK, 0, &[1, 3, 3, 6], 0);
        assert_eq!(Said::read(&late).unwrap().scale, None);
        assert_eq!(Said::read(&scaled[..39]), None);
    }

    #[test]
    fn nothing_is_let_in_beyond_what_was_told_last() {
        let mut limit = Limit::default();
        assert_eq!(left(&mut limit, 0, 100), 100, "nothing is known");
        limit.told(said(SYN | ACK, 0, 1000, Some(6)));
        assert_eq!(left(&mut limit, 0, 1001), 1000, "a SYN's is not scaled");
        limit.told(said(ACK, 0, 2, None));
        for (from, data, kept) in [(0, 128, 128), (0, 129, 128), (127, 9, 0), (1000, 9, 0)] {
            assert_eq!(left(&mut limit, from, data), kept, "{from} {data}");
        }
        limit.told(said(RST, 0, 0, None));
        assert_eq!(left(&mut limit, 0, 128), 128, "a reset tells nothing");
        let whole = packet(ACK | FIN, 0, &[], 128);
        assert_eq!(limit.cut(&whole), whole);
        let cut = limit.cut(&packet(ACK | FIN, 0, &[], 129)).into_owned();
        assert_eq!((cut.len(), cut[33]), (168, ACK), "its end comes later");
    }

    #[test]
    fn what_comes_out_of_its_turn_ends_a_unit_earlier() {
        let mut limit = Limit::default();
        limit.told(said(SYN | ACK, 0, 1000, Some(6)));
        limit.told(said(ACK, 0, 4, None));
        assert_eq!(left(&mut limit, 100, 200), 256 - 63 - 100);
        limit.took(100);
        assert_eq!(left(&mut limit, 100, 200), 156, "its turn has come");
    }

    #[test]
    fn who_does_not_scale_is_told_so() {
        let mut limit = Limit::default();
        limit.told(said(SYN, 0, 5000, Some(6)));
        assert_eq!(left(&mut limit, 0, 100), 100, "nothing is acknowledged yet");
        limit.cut(&packet(SYN | ACK, 0, &[], 0));
        assert_eq!(left(&mut limit, 1, 5001), 5000);
        limit.told(said(ACK, 1, 1000, None));
        assert_eq!(left(&mut limit, 1, 1001), 1000);
    }
}
