//! Which names this sandbox resolved to which addresses, and until when.

use super::Name;
use crate::address::canonical;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How many pins a sandbox has at most (a name at an address is one).
pub const MOST_PINS: usize = 8192;

/// How long nothing is looked for where there is nothing.
const IDLE: Duration = Duration::from_secs(60);

/// Bounded; the owner calls `expire` with its clock, so that `decide` reads none.
#[derive(Clone, Debug)]
pub struct Pins {
    most: usize,
    addresses: HashMap<IpAddr, Pinned>,
    /// The pins by the time of their last use, oldest first.
    used: BTreeMap<u64, (IpAddr, Name)>,
    turn: u64,
    /// No pin that nobody holds ends before, so that there is nothing to look for. None: nobody knows.
    next: Option<Instant>,
}

#[derive(Clone, Debug, Default)]
struct Pinned {
    names: Vec<Pin>,
    flows: u32,
}

#[derive(Clone, Debug)]
struct Pin {
    name: Name,
    until: Instant,
    turn: u64,
}

impl Default for Pins {
    fn default() -> Pins {
        Pins::bounded(MOST_PINS)
    }
}

impl Pins {
    /// At most `most` pins.
    pub fn bounded(most: usize) -> Pins {
        Pins {
            most,
            addresses: HashMap::new(),
            used: BTreeMap::new(),
            turn: 0,
            next: None,
        }
    }

    /// Note that the guest was told that `name` is at `address`. If there are too many pins, the
    /// one that was made longest ago gives way, but never one that a flow holds (N17). False if
    /// nothing could give way: then the guest must not be told.
    pub fn pin(&mut self, name: &Name, address: IpAddr, until: Instant) -> bool {
        let address = canonical(address);
        self.next = self.next.map(|next| next.min(until));
        self.turn += 1;
        let turn = self.turn;
        let present = self
            .addresses
            .get_mut(&address)
            .and_then(|pinned| pinned.names.iter_mut().find(|pin| pin.name == *name));
        if let Some(pin) = present {
            self.used.remove(&pin.turn);
            pin.turn = turn;
            pin.until = pin.until.max(until);
        } else {
            if self.used.len() >= self.most && !self.evict() {
                return false;
            }
            let pinned = self.addresses.entry(address).or_default();
            pinned.names.push(Pin {
                name: name.clone(),
                until,
                turn,
            });
        }
        self.used.insert(turn, (address, name.clone()));
        true
    }

    fn evict(&mut self) -> bool {
        let oldest = self
            .used
            .iter()
            .find(|(_, (address, _))| self.addresses[address].flows == 0)
            .map(|(turn, _)| *turn);
        match oldest {
            Some(turn) => {
                let (address, _) = self.used.remove(&turn).expect("it was found there");
                self.remove(address, |pin| pin.turn == turn);
                true
            }
            None => false,
        }
    }

    /// Take away the pins of `address` for which `which` says so.
    fn remove(&mut self, address: IpAddr, which: impl Fn(&Pin) -> bool) {
        if let Some(pinned) = self.addresses.get_mut(&address) {
            pinned.names.retain(|pin| {
                let goes = which(pin);
                if goes {
                    self.used.remove(&pin.turn);
                }
                !goes
            });
            if pinned.names.is_empty() && pinned.flows == 0 {
                self.addresses.remove(&address);
            }
        }
    }

    /// Forget the pins that ended at `now` or before and that no flow holds.
    pub fn expire(&mut self, now: Instant) {
        if self.next.is_some_and(|next| next > now) {
            return;
        }
        self.addresses.retain(|_, pinned| {
            if pinned.flows == 0 {
                pinned.names.retain(|pin| {
                    let lives = pin.until > now;
                    if !lives {
                        self.used.remove(&pin.turn);
                    }
                    lives
                });
            }
            pinned.flows > 0 || !pinned.names.is_empty()
        });
        let free = self.addresses.values().filter(|pinned| pinned.flows == 0);
        let soonest = free.flat_map(|pinned| pinned.names.iter().map(|pin| pin.until));
        self.next = soonest.min().or(Some(now + IDLE));
    }

    /// Forget what no longer may be told, whether a flow holds it or not: for a policy that was
    /// narrowed (N33), with `decide_answer` as the question.
    pub fn retain(&mut self, mut keep: impl FnMut(&Name, IpAddr) -> bool) {
        self.addresses.retain(|address, pinned| {
            pinned.names.retain(|pin| {
                let stays = keep(&pin.name, *address);
                if !stays {
                    self.used.remove(&pin.turn);
                }
                stays
            });
            pinned.flows > 0 || !pinned.names.is_empty()
        });
    }

    /// A flow to `address` began: its pins outlive their time while it lasts.
    pub fn hold(&mut self, address: IpAddr) {
        self.addresses.entry(canonical(address)).or_default().flows += 1;
    }

    /// The flow ended. Each `hold` is released once.
    pub fn release(&mut self, address: IpAddr) {
        let address = canonical(address);
        if let Some(pinned) = self.addresses.get_mut(&address) {
            pinned.flows = pinned.flows.saturating_sub(1);
            if pinned.flows == 0 {
                let soonest = pinned.names.iter().map(|pin| pin.until).min();
                self.next = self
                    .next
                    .map(|next| soonest.map_or(next, |soonest| next.min(soonest)));
            }
            if pinned.flows == 0 && pinned.names.is_empty() {
                self.addresses.remove(&address);
            }
        }
    }

    /// The names pinned to `address`.
    pub fn names(&self, address: IpAddr) -> impl Iterator<Item = &Name> {
        self.addresses
            .get(&canonical(address))
            .into_iter()
            .flat_map(|pinned| pinned.names.iter().map(|pin| &pin.name))
    }

    /// The names pinned to `address`, the one that was pinned last first.
    pub fn recent(&self, address: IpAddr) -> Vec<&Name> {
        let pinned = self.addresses.get(&canonical(address));
        let mut pins: Vec<_> = pinned
            .into_iter()
            .flat_map(|pinned| &pinned.names)
            .collect();
        pins.sort_by_key(|pin| std::cmp::Reverse(pin.turn));
        pins.into_iter().map(|pin| &pin.name).collect()
    }

    /// Whether the guest was told that `name` is at `address`.
    pub fn has(&self, name: &Name, address: IpAddr) -> bool {
        self.names(address).any(|pinned| pinned == name)
    }

    /// How many pins there are.
    pub fn len(&self) -> usize {
        self.used.len()
    }

    pub fn is_empty(&self) -> bool {
        self.used.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> Name {
        Name::parse(text).expect(text)
    }

    fn address(last: u32) -> IpAddr {
        IpAddr::V4((0x0808_0000 | last).into())
    }

    #[test]
    fn a_pin_lasts_until_its_time_or_its_flows_end() {
        let start = Instant::now();
        let later = start + Duration::from_secs(2);
        let mut pins = Pins::default();
        let (a, b) = (name("a.example"), name("b.example"));
        assert!(pins.pin(&a, address(1), start + Duration::from_secs(1)));
        assert!(pins.pin(&b, address(2), start + Duration::from_secs(1)));
        pins.hold(address(2));
        assert!(pins.has(&a, "::ffff:8.8.0.1".parse().unwrap()));
        pins.expire(later);
        assert!(!pins.has(&a, address(1)));
        assert!(pins.has(&b, address(2)));
        pins.release(address(2));
        pins.expire(later);
        assert!(pins.is_empty());
        assert!(pins.addresses.is_empty());
    }

    #[test]
    fn n17_a_flood_of_names_is_bounded_and_leaves_the_pins_of_flows() {
        let until = Instant::now() + Duration::from_secs(60);
        let mut pins = Pins::default();
        let kept = name("kept.example");
        pins.pin(&kept, address(0), until);
        pins.hold(address(0));
        for i in 0..100_000u32 {
            pins.pin(
                &name(&format!("n{i}.example")),
                address(1 + i % 1000),
                until,
            );
        }
        assert_eq!(pins.len(), MOST_PINS);
        assert!(pins.has(&kept, address(0)));
        assert!(pins.has(&name("n99999.example"), address(1 + 99_999 % 1000)));
    }

    #[test]
    fn when_every_pin_is_held_no_more_are_made() {
        let until = Instant::now();
        let mut pins = Pins::bounded(2);
        for i in 0..2 {
            assert!(pins.pin(&name("a.example"), address(i), until));
            pins.hold(address(i));
        }
        assert!(!pins.pin(&name("b.example"), address(3), until));
        assert!(pins.pin(&name("a.example"), address(1), until));
        pins.release(address(0));
        assert!(pins.pin(&name("b.example"), address(3), until));
        assert!(!pins.has(&name("a.example"), address(0)));
    }

    proptest! {
        #[test]
        fn the_two_tables_agree(steps in prop::collection::vec((0..5u8, 0..4u32, 0..4u32), 0..80)) {
            let start = Instant::now();
            let mut pins = Pins::bounded(5);
            for (step, a, n) in steps {
                let moment = start + Duration::from_secs(u64::from(n));
                match step {
                    0 => { pins.pin(&name(&format!("n{n}.example")), address(a), moment); }
                    1 => pins.hold(address(a)),
                    2 => pins.release(address(a)),
                    3 => pins.expire(moment),
                    _ => pins.retain(|name, _| !name.as_str().starts_with(&format!("n{n}"))),
                }
                let mut listed: Vec<_> = pins
                    .addresses
                    .iter()
                    .flat_map(|(address, pinned)| {
                        pinned.names.iter().map(|pin| (pin.turn, (*address, pin.name.clone())))
                    })
                    .collect();
                listed.sort();
                prop_assert_eq!(listed, pins.used.clone().into_iter().collect::<Vec<_>>());
                prop_assert!(pins.len() <= 5);
                prop_assert!(pins.addresses.values().all(|p| p.flows > 0 || !p.names.is_empty()));
            }
        }
    }
}
