//! Counters that other threads read.

use super::packet::Reject;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Each counts up from the start of the stack, except those named `_now`.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Ethernet frames and their bytes, from the guest and to it, whatever became of them.
    pub frames_from_guest: AtomicU64,
    pub bytes_from_guest: AtomicU64,
    pub frames_to_guest: AtomicU64,
    pub bytes_to_guest: AtomicU64,
    /// Payload that went out through sockets of the host, and that came in.
    pub bytes_sent: AtomicU64,
    pub bytes_received: AtomicU64,
    pub tcp_opened: AtomicU64,
    pub tcp_now: AtomicU64,
    pub datagrams_opened: AtomicU64,
    pub datagrams_now: AtomicU64,
    /// Peers of published ports of UDP.
    pub peers_now: AtomicU64,
    pub questions: AtomicU64,
    pub allowed: AtomicU64,
    pub denied: AtomicU64,
    /// TCP flows whose upstream host could not be reached.
    pub failed: AtomicU64,
    dropped: [AtomicU64; Reject::ALL.len()],
}

pub fn add(counter: &AtomicU64, by: usize) {
    counter.fetch_add(by as u64, Relaxed);
}

pub fn set(counter: &AtomicU64, to: usize) {
    counter.store(to as u64, Relaxed);
}

impl Metrics {
    /// A frame was dropped.
    pub fn dropped(&self, why: Reject) {
        let place = Reject::ALL.iter().position(|one| *one == why);
        if let Some(counter) = place.and_then(|place| self.dropped.get(place)) {
            add(counter, 1);
        }
    }

    /// Every counter under its name; dropped frames as `dropped_` and the reason.
    pub fn read(&self) -> Vec<(String, u64)> {
        let named = [
            ("frames_from_guest", &self.frames_from_guest),
            ("bytes_from_guest", &self.bytes_from_guest),
            ("frames_to_guest", &self.frames_to_guest),
            ("bytes_to_guest", &self.bytes_to_guest),
            ("bytes_sent", &self.bytes_sent),
            ("bytes_received", &self.bytes_received),
            ("tcp_opened", &self.tcp_opened),
            ("tcp_now", &self.tcp_now),
            ("datagrams_opened", &self.datagrams_opened),
            ("datagrams_now", &self.datagrams_now),
            ("peers_now", &self.peers_now),
            ("questions", &self.questions),
            ("allowed", &self.allowed),
            ("denied", &self.denied),
            ("failed", &self.failed),
        ];
        let named = named
            .into_iter()
            .map(|(name, counter)| (name.to_owned(), counter.load(Relaxed)));
        let dropped = Reject::ALL
            .iter()
            .zip(&self.dropped)
            .map(|(why, counter)| (format!("dropped_{}", why.as_str()), counter.load(Relaxed)));
        named.chain(dropped).collect()
    }
}
