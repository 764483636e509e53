//! Guests that send more than they may, into flows whose targets do not read.

use super::testing::config;
use super::tests::{pattern, server};
use super::tests_tcp::{Raw, Segment};
use std::io::Read;
use std::sync::mpsc;

const FIN: u8 = 1;
const SYN: u8 = 2;
const ACK: u8 = 16;

/// More than the buffers of a flow and of both of its sockets take.
const MOST: usize = 24 << 20;

/// A guest, with its own view of what it may send.
struct Sender {
    raw: Raw,
    /// What it acknowledges.
    next: u32,
    scale: u8,
    data: Vec<u8>,
    /// Bytes that were acknowledged, and the end of the window.
    acknowledged: usize,
    end: usize,
    random: u64,
}

impl Sender {
    fn new(port: u16, scaled: bool, seed: u64) -> Sender {
        let mut raw = Raw::new(config(), port);
        // Window scaling, RFC 7323, 2.2: kind 3, length 3, no shift of the guest's own; and one no-operation.
        let (words, options): (u8, &[u8]) = match scaled {
            true => (6, &[1, 3, 3, 0]),
            false => (5, &[]),
        };
        raw.send_whole((SYN, words), 0, 0, options, 0xffff);
        let answer = raw.next();
        assert_eq!((answer.flags, answer.acknowledged), (SYN | ACK, 1));
        let next = answer.sequence.wrapping_add(1);
        raw.send(ACK, 1, next, &[]);
        Sender {
            raw,
            next,
            // As many as a buffer of 2 MiB needs.
            scale: if scaled { 6 } else { 0 },
            data: pattern(MOST),
            acknowledged: 0,
            end: usize::from(answer.window),
            random: seed,
        }
    }

    fn below(&mut self, limit: usize) -> usize {
        self.random = self
            .random
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1);
        (self.random >> 33) as usize % limit
    }

    fn send(&mut self, from: usize, length: usize, flags: u8) {
        let from = from.min(MOST);
        let to = (from + length).min(MOST);
        let data = self.data[from..to].to_vec();
        self.raw
            .send(ACK | flags, 1 + from as u32, self.next, &data);
    }

    fn hear(&mut self, segment: &Segment) {
        assert_eq!(segment.flags & 4, 0, "the flow was reset");
        // The first is of the SYN.
        let acknowledged = segment.acknowledged as usize - 1;
        assert!(acknowledged >= self.acknowledged);
        self.acknowledged = acknowledged;
        self.end = acknowledged + (usize::from(segment.window) << self.scale);
    }

    /// What the stack has said until now.
    fn listen(&mut self) {
        while let Some(segment) = self.raw.there() {
            self.hear(&segment);
        }
    }

    /// Sends the rest of so many bytes as it should, and its end.
    fn finish(&mut self, total: usize) {
        let mut at = self.acknowledged;
        while self.acknowledged < total {
            at = at.max(self.acknowledged);
            let left = self.end.min(total).saturating_sub(at);
            if left > 0 {
                self.send(at, left.min(1400), 0);
                at += left.min(1400);
                self.listen();
            } else {
                let segment = self.raw.next();
                self.hear(&segment);
                // What was cut off is sent again.
                at = self.acknowledged;
            }
        }
        self.send(total, 0, FIN);
    }

    /// Sends as a guest that knows no windows does, until nothing more is taken for so many segments.
    fn rave(&mut self, vain: usize) {
        let mut since = 0;
        while since < vain {
            let (before, left) = (
                self.acknowledged,
                self.end.saturating_sub(self.acknowledged),
            );
            match self.below(3) {
                // What it may, and some bytes beyond.
                0 => {
                    let length = left.min(50_000) + self.below(200);
                    self.send(self.acknowledged, length, 0);
                }
                // At the end of the window, out of its turn.
                1 => {
                    let back = self.below(3000);
                    let length = self.below(6000);
                    let from = self.end.saturating_sub(back).max(self.acknowledged);
                    self.send(from, length, 0);
                }
                // Behind a gap.
                _ => {
                    let gap = self.below(3000);
                    let length = self.below(50_000);
                    self.send(self.acknowledged + gap, length, 0);
                }
            }
            self.listen();
            since = match self.acknowledged == before {
                true => since + 1,
                false => 0,
            };
        }
    }
}

/// smoltcp looks at what is left of a window where an acknowledgement is not due at once.
#[test]
fn a_few_bytes_more_than_a_full_window_break_nothing() {
    for length in [501, 533, 556] {
        overfill(length);
    }
}

/// Sends windows but for `spare` bytes until they are full, and then a little more than there is room for.
fn overfill(spare: usize) {
    let (go, gone) = mpsc::channel::<()>();
    let (port, thread) = server(move |mut client| {
        let _ = gone.recv();
        let mut all = Vec::new();
        client.read_to_end(&mut all).unwrap();
        all
    });
    let mut sender = Sender::new(port, true, 6);
    let mut left = sender.end;
    // Until the target's buffers are full as well.
    while left > 900 {
        let length = (left - spare).clamp(1025, 50_001);
        let end = sender.acknowledged + length;
        sender.send(sender.acknowledged, length, 0);
        while sender.acknowledged < end {
            let segment = sender.raw.next();
            sender.hear(&segment);
        }
        sender.listen();
        left = sender.end - sender.acknowledged;
    }
    // Few enough that the acknowledgement waits for an answer a moment, as it does without others behind it.
    sender.send(sender.acknowledged, left + 63, 0);
    let segment = sender.raw.next();
    sender.hear(&segment);
    drop(go);
    let total = sender.acknowledged + 5000;
    sender.finish(total);
    let all = thread.join().unwrap();
    assert_eq!(all.len(), total);
    assert!(all == sender.data[..total]);
}

/// Raves while the target rests, lets it read, and at last sends all in order.
fn check(scaled: bool, seed: u64) {
    let (go, gone) = mpsc::channel::<usize>();
    let (port, thread) = server(move |mut client| {
        let mut all = Vec::new();
        for count in gone {
            let read = (&client).take(count as u64).read_to_end(&mut all);
            read.unwrap();
        }
        client.read_to_end(&mut all).unwrap();
        all
    });
    let mut sender = Sender::new(port, scaled, seed);
    let mut asked = 0;
    for _ in 0..6 {
        sender.rave(150);
        let count = 1 + sender.below(200_000);
        asked += count;
        if asked > sender.acknowledged {
            break;
        }
        go.send(count).unwrap();
    }
    drop(go);
    let total = sender.acknowledged + (1 << 20);
    sender.finish(total);
    let all = thread.join().unwrap();
    assert_eq!(all.len(), total);
    assert!(all == sender.data[..total]);
}

#[test]
fn a_guest_that_sends_more_than_it_may_breaks_nothing() {
    for seed in 1..=2 {
        check(true, seed);
    }
}

#[test]
fn nor_does_one_that_does_not_scale_windows() {
    check(false, 5);
}
