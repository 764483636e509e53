//! Datagrams that the guest sends in fragments, put together within bounds.

use super::packet::{Fragment, Packet, Reject};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Datagrams under way at a time. The guest is one host on a link without loss; few suffice.
const DATAGRAMS: usize = 16;
/// Fragments of one datagram: 65,515 bytes on the smallest link of IPv6, with room.
const PARTS: usize = 128;
/// How long the first fragment waits for the last (RFC 8200 says 60 s; a link without loss needs little).
const PATIENCE: Duration = Duration::from_secs(5);
/// What a datagram may hold, so that it is an IP packet again.
const LARGEST: usize = 65_515;

struct Partial {
    source: IpAddr,
    target: IpAddr,
    protocol: u8,
    id: u32,
    hops: u8,
    began: Instant,
    /// Sorted by offset, without overlap.
    parts: Vec<(usize, Vec<u8>)>,
    end: Option<usize>,
}

/// At most 16 datagrams, each at most 64 KiB.
#[derive(Default)]
pub struct Fragments {
    partial: Vec<Partial>,
}

/// A datagram put together: the fields of its packet that are still of interest, and its payload.
#[derive(Debug, PartialEq, Eq)]
pub struct Whole {
    pub source: IpAddr,
    pub target: IpAddr,
    pub protocol: u8,
    pub hops: u8,
    pub payload: Vec<u8>,
}

impl Fragments {
    /// Keep a fragment; the datagram, if this was the last that it lacked. Overlap drops the whole datagram
    /// (RFC 5722): what overlaps is meant to be read differently by two readers.
    pub fn add(
        &mut self,
        packet: &Packet<'_>,
        fragment: Fragment,
        now: Instant,
    ) -> Result<Option<Whole>, Reject> {
        self.partial
            .retain(|partial| now.duration_since(partial.began) < PATIENCE);
        let start = fragment.offset;
        let end = start + packet.payload.len();
        if end > LARGEST || start == end || (fragment.more && end % 8 != 0) {
            return Err(Reject::Fragment);
        }
        let found = self.partial.iter().position(|partial| {
            partial.id == fragment.id
                && partial.source == packet.source
                && partial.target == packet.target
                && partial.protocol == packet.protocol
        });
        let at = match found {
            Some(at) => at,
            None => {
                if self.partial.len() == DATAGRAMS {
                    self.partial.remove(0);
                }
                self.partial.push(Partial {
                    source: packet.source,
                    target: packet.target,
                    protocol: packet.protocol,
                    id: fragment.id,
                    hops: packet.hops,
                    began: now,
                    parts: Vec::new(),
                    end: None,
                });
                self.partial.len() - 1
            }
        };
        let partial = &mut self.partial[at];
        let place = partial.parts.partition_point(|(offset, _)| *offset < start);
        let before = place.checked_sub(1).map(|index| &partial.parts[index]);
        let overlaps = before.is_some_and(|(offset, part)| offset + part.len() > start)
            || partial
                .parts
                .get(place)
                .is_some_and(|(next, _)| end > *next);
        let beyond = match partial.end {
            Some(known) => end > known || (!fragment.more && end != known),
            None => {
                !fragment.more
                    && partial
                        .parts
                        .last()
                        .is_some_and(|(offset, part)| offset + part.len() > end)
            }
        };
        if overlaps || beyond || partial.parts.len() == PARTS {
            self.partial.remove(at);
            return Err(Reject::Fragment);
        }
        partial
            .parts
            .insert(place, (start, packet.payload.to_vec()));
        if !fragment.more {
            partial.end = Some(end);
        }
        let held: usize = partial.parts.iter().map(|(_, part)| part.len()).sum();
        if partial.end != Some(held) {
            return Ok(None);
        }
        let partial = self.partial.remove(at);
        let payload = partial.parts.into_iter().flat_map(|(_, part)| part);
        Ok(Some(Whole {
            source: partial.source,
            target: partial.target,
            protocol: partial.protocol,
            hops: partial.hops,
            payload: payload.collect(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packet(payload: &[u8]) -> Packet<'_> {
        Packet {
            source: "10.0.0.2".parse().unwrap(),
            target: "192.0.2.1".parse().unwrap(),
            protocol: 17,
            hops: 64,
            bytes: payload,
            payload,
            fragment: None,
            splits: true,
        }
    }

    fn part(id: u32, offset: usize, more: bool) -> Fragment {
        Fragment { id, offset, more }
    }

    #[test]
    fn fragments_in_any_order_give_the_datagram() {
        let now = Instant::now();
        let mut fragments = Fragments::default();
        assert_eq!(
            fragments.add(&packet(b"end"), part(1, 16, false), now),
            Ok(None)
        );
        assert_eq!(
            fragments.add(&packet(b"first..."), part(1, 0, true), now),
            Ok(None)
        );
        let whole = fragments.add(&packet(b"middle.."), part(1, 8, true), now);
        assert_eq!(whole.unwrap().unwrap().payload, b"first...middle..end");
        assert!(fragments.partial.is_empty());
    }

    #[test]
    fn overlap_drops_the_whole_datagram() {
        let now = Instant::now();
        for offset in [0, 8] {
            let mut fragments = Fragments::default();
            fragments
                .add(&packet(&[1; 16]), part(1, 0, true), now)
                .unwrap();
            let overlapping = fragments.add(&packet(&[2; 16]), part(1, offset, true), now);
            assert_eq!(overlapping, Err(Reject::Fragment));
            assert!(fragments.partial.is_empty());
        }
    }

    #[test]
    fn a_datagram_of_more_than_64_kib_is_refused() {
        let mut fragments = Fragments::default();
        let death = fragments.add(
            &packet(&[0; 1400]),
            part(1, 65_528 - 8, false),
            Instant::now(),
        );
        assert_eq!(death, Err(Reject::Fragment));
    }

    #[test]
    fn the_oldest_gives_way_and_the_late_are_forgotten() {
        let now = Instant::now();
        let mut fragments = Fragments::default();
        for id in 0..1000 {
            fragments
                .add(&packet(&[0; 8]), part(id, 0, true), now)
                .unwrap();
        }
        assert_eq!(fragments.partial.len(), DATAGRAMS);
        let late = now + PATIENCE;
        fragments
            .add(&packet(&[0; 8]), part(2000, 0, true), late)
            .unwrap();
        assert_eq!(fragments.partial.len(), 1);
    }

    proptest! {
        #[test]
        fn whatever_comes_the_bounds_hold(parts in proptest::collection::vec((0u32..3, 0usize..9000, any::<bool>(), 0usize..1500), 0..400)) {
            let now = Instant::now();
            let mut fragments = Fragments::default();
            let payload = [0; 1500];
            for (id, offset, more, length) in parts {
                let _ = fragments.add(&packet(&payload[..length]), part(id, offset * 8, more), now);
                prop_assert!(fragments.partial.len() <= DATAGRAMS);
                for partial in &fragments.partial {
                    prop_assert!(partial.parts.iter().map(|(_, part)| part.len()).sum::<usize>() <= LARGEST);
                }
            }
        }
    }
}
