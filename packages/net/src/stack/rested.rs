//! TCP flows that are over: what RFC 9293 calls TIME-WAIT, without the buffers of a socket.

use super::tcp::Key;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Flows that are remembered; the oldest give way.
const MOST: usize = 4096;

#[derive(Default)]
pub struct Rested {
    since: HashMap<Key, Instant>,
    /// Each of them, and some that began anew, oldest first.
    order: VecDeque<(Instant, Key)>,
}

impl Rested {
    /// Both sides of a flow ended, in order.
    pub fn add(&mut self, key: Key, now: Instant, lasting: Duration) {
        let over = |since: Instant| now.duration_since(since) >= lasting;
        while let Some((since, oldest)) = self.order.front().copied() {
            if self.order.len() < MOST && !over(since) {
                break;
            }
            self.order.pop_front();
            if self.since.get(&oldest) == Some(&since) {
                self.since.remove(&oldest);
            }
        }
        self.since.insert(key, now);
        self.order.push_back((now, key));
    }

    /// Whether a flow with this key ended not long ago.
    pub fn has(&self, key: Key, now: Instant, lasting: Duration) -> bool {
        let since = self.since.get(&key);
        since.is_some_and(|since| now.duration_since(*since) < lasting)
    }

    /// A new flow with this key begins.
    pub fn remove(&mut self, key: Key) {
        self.since.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_remembers_for_a_while_and_not_too_many() {
        let (start, lasting) = (Instant::now(), Duration::from_secs(60));
        let key = |n: usize| ([10, 0, (n >> 8) as u8, n as u8].into(), 80, 1);
        let mut rested = Rested::default();
        for n in 0..2 * MOST {
            rested.add(key(n), start, lasting);
        }
        assert_eq!((rested.since.len(), rested.order.len()), (MOST, MOST));
        assert!(!rested.has(key(MOST - 1), start, lasting));
        assert!(rested.has(key(MOST), start, lasting));
        rested.remove(key(MOST));
        assert!(!rested.has(key(MOST), start, lasting));
        let later = start + lasting;
        assert!(!rested.has(key(MOST + 1), later, lasting));
        rested.add(key(0), later, lasting);
        assert_eq!((rested.since.len(), rested.order.len()), (1, 1));
    }
}
