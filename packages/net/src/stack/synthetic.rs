//! Addresses that stand for names: a sandbox is told them without any question upstream, and what they stand
//! for is looked up when it connects.

use crate::client::{decide_asked, Asked};
use crate::policy::{decide, Action, Direction, Flow, Name, Pins, Policy, Verdict};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

/// Names that stand at a time; the one that was used longest ago gives way, unless a flow holds it.
const NAMES: usize = 4096;
/// 198.18.0.0/15 and 2001:2::/48 are for tests of equipment (RFC 2544, RFC 5180): nobody's on any real network.
const V4: u32 = 0xc612_0000;
const V6: u128 = 0x2001_0002 << 96;
/// Places in the smaller of the two. They are given out in turn, so that what a program remembers of a name
/// that gave way does not soon mean another one.
const LAST: u32 = 0x1_fffe;

/// Addresses of older flows that are remembered.
const PAST: usize = 32;

/// Whether `address` could stand for a name.
pub fn covers(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => u32::from(v4) >> 17 == V4 >> 17,
        IpAddr::V6(v6) => u128::from(v6) >> 80 == V6 >> 80,
    }
}

fn place(address: IpAddr) -> Option<u32> {
    let offset = match address {
        IpAddr::V4(v4) => u32::from(v4).checked_sub(V4),
        IpAddr::V6(v6) => u128::from(v6)
            .checked_sub(V6)
            .and_then(|offset| u32::try_from(offset).ok()),
    };
    offset.filter(|place| (1..=LAST).contains(place))
}

#[derive(Debug)]
pub struct Stand {
    pub name: Name,
    /// Where the name leads to, the best first; empty before it was looked up.
    pub real: Vec<IpAddr>,
    /// Where flows lead that are older.
    past: Vec<IpAddr>,
    /// Until when that holds.
    pub until: Instant,
    flows: u32,
    turn: u64,
}

impl Stand {
    /// The name leads elsewhere from now on.
    pub fn lead(&mut self, real: Vec<IpAddr>, until: Instant) {
        if self.flows > 0 {
            let old = std::mem::take(&mut self.real);
            self.past.extend(old);
            self.past.sort();
            self.past.dedup();
            self.past.truncate(PAST);
        }
        self.real = real;
        self.until = until;
    }

    pub fn hold(&mut self) {
        self.flows += 1;
    }

    pub fn release(&mut self) {
        self.flows = self.flows.saturating_sub(1);
        if self.flows == 0 {
            self.past.clear();
        }
    }
}

#[derive(Default)]
pub struct Synthetic {
    stands: HashMap<u32, Stand>,
    places: HashMap<Name, u32>,
    used: BTreeMap<u64, u32>,
    turn: u64,
    last: u32,
}

impl Synthetic {
    /// The addresses that stand for `name`, the same ones for as long as it is not forgotten. None if every
    /// name is held by a flow.
    pub fn addresses(&mut self, name: &Name) -> Option<[IpAddr; 2]> {
        let place = match self.places.get(name) {
            Some(place) => *place,
            None => self.add(name)?,
        };
        self.turn += 1;
        if let Some(stand) = self.stands.get_mut(&place) {
            self.used.remove(&stand.turn);
            stand.turn = self.turn;
        }
        self.used.insert(self.turn, place);
        Some([
            Ipv4Addr::from(V4 + place).into(),
            Ipv6Addr::from(V6 + u128::from(place)).into(),
        ])
    }

    fn add(&mut self, name: &Name) -> Option<u32> {
        if self.stands.len() >= NAMES {
            let free = |place: &u32| self.stands[place].flows == 0;
            let (turn, place) = self.used.iter().find(|(_, place)| free(place))?;
            let (turn, place) = (*turn, *place);
            self.used.remove(&turn);
            let gone = self.stands.remove(&place)?;
            self.places.remove(&gone.name);
        }
        // There are many more places than names.
        loop {
            self.last = self.last % LAST + 1;
            if !self.stands.contains_key(&self.last) {
                break;
            }
        }
        let stand = Stand {
            name: name.clone(),
            real: Vec::new(),
            past: Vec::new(),
            until: Instant::now(),
            flows: 0,
            turn: 0,
        };
        self.stands.insert(self.last, stand);
        self.places.insert(name.clone(), self.last);
        Some(self.last)
    }

    pub fn stand(&self, address: IpAddr) -> Option<&Stand> {
        self.stands.get(&place(address)?)
    }

    pub fn stand_mut(&mut self, address: IpAddr) -> Option<&mut Stand> {
        self.stands.get_mut(&place(address)?)
    }

    /// Whether `flow`, to an address that stands for a name, may pass: as one to each address where that leads, or
    /// where older flows went, in a sandbox that resolved this name to them and no other.
    pub fn decide(&self, flow: &Flow, policy: &Policy) -> Option<Verdict> {
        self.strictest(flow, |flow, pins| decide(flow, policy, pins))
    }

    /// The same for a flow whose client asks for `asked`.
    pub fn decide_asked(&self, flow: &Flow, asked: &Asked, policy: &Policy) -> Option<Verdict> {
        self.strictest(flow, |flow, pins| decide_asked(flow, asked, policy, pins))
    }

    /// The strictest verdict about `flow` to each of the addresses; None if it leads to none that stands for a name.
    fn strictest(&self, flow: &Flow, decide: impl Fn(&Flow, &Pins) -> Verdict) -> Option<Verdict> {
        if flow.direction != Direction::Egress || !covers(flow.address) {
            return None;
        }
        let nothing = Verdict {
            action: Action::Deny,
            rule: "built-in: an address that stands for no name".to_owned(),
        };
        let Some(stand) = self.stand(flow.address) else {
            return Some(nothing);
        };
        let verdicts = stand.real.iter().chain(&stand.past).map(|real| {
            let mut pins = Pins::bounded(1);
            pins.pin(&stand.name, *real, stand.until);
            let address = *real;
            let flow = Flow {
                address,
                ..flow.clone()
            };
            decide(&flow, &pins)
        });
        // So that it does not matter which of the addresses is taken.
        let strictness = |verdict: &Verdict| match verdict.action {
            Action::Deny => 0,
            Action::AllowIfNamed => 1,
            Action::Allow => 2,
        };
        Some(verdicts.min_by_key(strictness).unwrap_or(nothing))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(n: usize) -> Name {
        Name::parse(&format!("n{n}.example")).unwrap()
    }

    #[test]
    fn names_keep_their_addresses_and_are_bounded() {
        let mut synthetic = Synthetic::default();
        let first = synthetic.addresses(&name(0)).unwrap();
        assert_eq!(
            first.map(|address| address.to_string()),
            ["198.18.0.1", "2001:2::1"]
        );
        assert!(first.into_iter().all(covers));
        synthetic.stand_mut(first[1]).unwrap().hold();
        for n in 1..200_000 {
            let addresses = synthetic.addresses(&name(n)).unwrap();
            assert!(addresses.into_iter().all(covers));
            let stands = addresses.map(|address| synthetic.stand(address).unwrap().name.clone());
            assert_eq!(stands, [name(n), name(n)]);
        }
        assert_eq!(synthetic.stands.len(), NAMES);
        assert_eq!(
            (synthetic.places.len(), synthetic.used.len()),
            (NAMES, NAMES)
        );
        // The one that a flow holds is still there, and the newest.
        assert_eq!(synthetic.addresses(&name(0)), Some(first));
        assert!(synthetic.places.contains_key(&name(199_999)));
        assert!(!synthetic.places.contains_key(&name(1000)));
    }

    #[test]
    fn what_stands_for_nothing() {
        let synthetic = Synthetic::default();
        for text in [
            "198.18.0.0",
            "198.19.255.255",
            "198.18.0.9",
            "2001:2::",
            "2001:2:0:1::1",
        ] {
            let address = text.parse().unwrap();
            assert!(
                covers(address) && synthetic.stand(address).is_none(),
                "{text}"
            );
        }
        for text in [
            "198.17.255.255",
            "198.20.0.0",
            "2001:1:ffff::",
            "2001:2:1::",
            "8.8.8.8",
        ] {
            assert!(!covers(text.parse().unwrap()), "{text}");
        }
    }
}
