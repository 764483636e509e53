//! What name servers said lately, as they said it: whoever is told hears it checked against the policy of then.

use crate::policy::Name;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A name and a type of record.
pub type Key = (Name, u16);

/// A sound answer.
#[derive(Debug)]
pub struct Found {
    pub bytes: Vec<u8>,
    /// The number under which it was asked for.
    pub id: u16,
    /// How long it may be kept, in seconds.
    pub ttl: u32,
    pub born: Instant,
}

impl Found {
    pub fn age(&self, now: Instant) -> u32 {
        let age = now.saturating_duration_since(self.born).as_secs();
        u32::try_from(age).unwrap_or(u32::MAX)
    }

    fn fresh(&self, now: Instant) -> bool {
        now < self.born + Duration::from_secs(self.ttl.into())
    }
}

/// Bounded by the number of answers and by their bytes; what was used longest ago gives way.
pub struct Cache {
    most: usize,
    most_bytes: usize,
    bytes: usize,
    answers: HashMap<Key, (u64, Arc<Found>)>,
    used: BTreeMap<u64, Key>,
    turn: u64,
}

impl Cache {
    pub fn bounded(most: usize, most_bytes: usize) -> Cache {
        Cache {
            most,
            most_bytes,
            bytes: 0,
            answers: HashMap::new(),
            used: BTreeMap::new(),
            turn: 0,
        }
    }

    pub fn get(&mut self, key: &Key, now: Instant) -> Option<Arc<Found>> {
        let (turn, found) = self.answers.get_mut(key)?;
        if !found.fresh(now) {
            self.remove(key);
            return None;
        }
        self.turn += 1;
        self.used.remove(turn);
        self.used.insert(self.turn, key.clone());
        *turn = self.turn;
        Some(Arc::clone(found))
    }

    /// Keep `found` for as long as it says, which may be not at all.
    pub fn put(&mut self, key: Key, found: Arc<Found>) {
        self.remove(&key);
        if found.ttl == 0 || found.bytes.len() > self.most_bytes {
            return;
        }
        while self.answers.len() >= self.most || self.bytes + found.bytes.len() > self.most_bytes {
            let Some((_, oldest)) = self.used.pop_first() else {
                return;
            };
            self.remove(&oldest);
        }
        self.turn += 1;
        self.bytes += found.bytes.len();
        self.used.insert(self.turn, key.clone());
        self.answers.insert(key, (self.turn, found));
    }

    fn remove(&mut self, key: &Key) {
        if let Some((turn, found)) = self.answers.remove(key) {
            self.used.remove(&turn);
            self.bytes -= found.bytes.len();
        }
    }

    pub fn clear(&mut self) {
        self.answers.clear();
        self.used.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(n: u8) -> Key {
        (Name::parse(&format!("n{n}.example")).unwrap(), 1)
    }

    fn found(length: usize, ttl: u32, born: Instant) -> Arc<Found> {
        let bytes = vec![0; length];
        let id = 0;
        Arc::new(Found {
            bytes,
            id,
            ttl,
            born,
        })
    }

    #[test]
    fn an_answer_lives_as_long_as_its_ttl() {
        let start = Instant::now();
        let mut cache = Cache::bounded(10, 1000);
        cache.put(key(1), found(10, 5, start));
        cache.put(key(2), found(10, 0, start));
        assert!(cache.get(&key(2), start).is_none());
        let later = start + Duration::from_secs(4);
        assert_eq!(cache.get(&key(1), later).unwrap().age(later), 4);
        assert!(cache.get(&key(1), start + Duration::from_secs(5)).is_none());
        assert_eq!((cache.bytes, cache.used.len()), (0, 0));
    }

    proptest! {
        #[test]
        fn it_stays_within_its_bounds(steps in prop::collection::vec((0..9u8, 0..60usize, 0..3u32), 0..80)) {
            let start = Instant::now();
            let mut cache = Cache::bounded(4, 100);
            for (n, length, ttl) in steps {
                match length {
                    0 => drop(cache.get(&key(n), start + Duration::from_secs(u64::from(ttl)))),
                    _ => cache.put(key(n), found(length, ttl, start)),
                }
                let bytes: usize = cache.answers.values().map(|(_, found)| found.bytes.len()).sum();
                prop_assert_eq!(bytes, cache.bytes);
                prop_assert!(cache.answers.len() <= 4 && bytes <= 100);
                prop_assert_eq!(cache.answers.len(), cache.used.len());
                prop_assert!(cache.used.iter().all(|(turn, key)| cache.answers[key].0 == *turn));
            }
        }
    }
}
