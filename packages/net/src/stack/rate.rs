//! How fast a guest may send and be sent to: token buckets, and turns for the flows that wait for them.
//!
//! What is counted is payload, and the packets of the link's size that carry it. A TCP flow that has to wait
//! is not read from, so that its sender slows down; datagrams wait in a short queue of their flow.

use std::cell::{Cell, RefCell};
use std::collections::{HashSet, VecDeque};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// What one turn moves at most: small, so that many flows have theirs within a second.
const QUANTUM: usize = 16 << 10;
/// A burst that is not given is what the rate allows in a tenth of a second, and no less than this.
const BURST_BYTES: u64 = 64 << 10;
const BURST_PACKETS: u64 = 64;
/// Headers of IPv6 and TCP.
const HEADERS: usize = 60;

/// So many a second, and so many at once after a rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub per_second: u64,
    pub burst: u64,
}

/// The bounds of one direction; None: as fast as it goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    pub bytes: Option<Rate>,
    pub packets: Option<Rate>,
}

/// The bounds of both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// What the guest sends.
    pub egress: Rates,
    /// What it is sent.
    pub ingress: Rates,
}

/// Direction, bytes a second, burst of bytes, packets a second, burst of packets.
pub type Written = (String, Option<u64>, Option<u64>, Option<u64>, Option<u64>);

impl Bounds {
    /// What `written` means, or what is wrong with it.
    pub fn new(written: &[Written]) -> Result<Bounds, String> {
        let mut bounds = Bounds::default();
        for (direction, bytes, burst_bytes, packets, burst_packets) in written {
            let place = match direction.as_str() {
                "egress" => &mut bounds.egress,
                "ingress" => &mut bounds.ingress,
                other => return Err(format!("rate {other:?} is neither egress nor ingress")),
            };
            if *place != Rates::default() {
                return Err(format!("rate {direction:?} is given twice"));
            }
            let rates = Rates {
                bytes: rate(direction, "bytes", *bytes, *burst_bytes, BURST_BYTES)?,
                packets: rate(
                    direction,
                    "packets",
                    *packets,
                    *burst_packets,
                    BURST_PACKETS,
                )?,
            };
            if rates == Rates::default() {
                return Err(format!(
                    "rate {direction:?} bounds nothing: give bytes or packets a second"
                ));
            }
            *place = rates;
        }
        Ok(bounds)
    }
}

fn rate(
    direction: &str,
    what: &str,
    per_second: Option<u64>,
    burst: Option<u64>,
    least: u64,
) -> Result<Option<Rate>, String> {
    match (per_second, burst) {
        (None, None) => Ok(None),
        (None, Some(_)) => Err(format!(
            "rate {direction:?}: a burst of {what} needs {what} a second"
        )),
        (Some(0), _) | (_, Some(0)) => Err(format!(
            "rate {direction:?}: 0 {what} would let nothing pass; at least 1 is needed"
        )),
        (Some(per_second), burst) => Ok(Some(Rate {
            per_second,
            burst: burst.unwrap_or((per_second / 10).max(least)),
        })),
    }
}

struct Bucket {
    rate: Rate,
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    fn new(rate: Rate) -> Bucket {
        Bucket {
            rate,
            tokens: rate.burst as f64,
            filled: Instant::now(),
        }
    }

    fn tokens(&mut self) -> f64 {
        let now = Instant::now();
        let since = now.duration_since(self.filled).as_secs_f64();
        let most = self.rate.burst as f64;
        self.tokens = (self.tokens + since * self.rate.per_second as f64).min(most);
        self.filled = now;
        self.tokens
    }

    /// How long until there are `wanted`, which is no more than the burst.
    fn lacking(&mut self, wanted: f64) -> Duration {
        let lacking = (wanted - self.tokens()).max(0.0);
        let seconds = lacking / self.rate.per_second as f64;
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::from_secs(3600))
    }
}

/// One direction. `W` is who waits; each is told apart by a number.
pub struct Pacer<W> {
    bytes: Option<RefCell<Bucket>>,
    packets: Option<RefCell<Bucket>>,
    /// Payload of one packet.
    segment: usize,
    quantum: usize,
    waiting: RefCell<VecDeque<(usize, W)>>,
    known: RefCell<HashSet<usize>>,
    /// What the one whose turn it is may still move.
    turn: Cell<Option<usize>>,
    queued: Notify,
}

impl<W> Pacer<W> {
    /// `mtu` is the largest IP packet of the link, in bytes.
    pub fn new(rates: Rates, mtu: usize) -> Pacer<W> {
        let segment = mtu.saturating_sub(HEADERS).max(1);
        // Less than a packet at once would let nothing pass, or hardly anything.
        let burst = |least: u64| {
            move |rate: Rate| Rate {
                burst: rate.burst.max(least),
                ..rate
            }
        };
        let bytes = rates.bytes.map(burst(segment as u64));
        let packets = rates.packets.map(burst(1));
        let most_bytes = bytes.map_or(u64::MAX, |rate| rate.burst);
        let most_packets = packets.map_or(u64::MAX, |rate| rate.burst);
        let most = most_bytes.min(most_packets.saturating_mul(segment as u64));
        Pacer {
            bytes: bytes.map(|rate| RefCell::new(Bucket::new(rate))),
            packets: packets.map(|rate| RefCell::new(Bucket::new(rate))),
            segment,
            quantum: usize::try_from(most).unwrap_or(QUANTUM).min(QUANTUM),
            waiting: RefCell::default(),
            known: RefCell::default(),
            turn: Cell::new(None),
            queued: Notify::new(),
        }
    }

    /// Whether anything is bounded.
    pub fn bounds(&self) -> bool {
        self.bytes.is_some() || self.packets.is_some()
    }

    /// Whether packets are.
    pub fn counts_packets(&self) -> bool {
        self.packets.is_some()
    }

    fn there(&self) -> usize {
        let bytes = self.bytes.as_ref();
        let bytes = bytes.map_or(f64::INFINITY, |bucket| bucket.borrow_mut().tokens());
        let packets = self.packets.as_ref();
        let packets = packets.map_or(f64::INFINITY, |bucket| bucket.borrow_mut().tokens().floor());
        // A cast of a float saturates: what is owed counts as nothing.
        bytes.min(packets * self.segment as f64) as usize
    }

    /// How many of the `wanted` bytes may be moved now. 0: not before its turn, for which it has to `wait`.
    pub fn allowance(&self, wanted: usize) -> usize {
        if !self.bounds() {
            return wanted;
        }
        if let Some(left) = self.turn.get() {
            return left.min(wanted);
        }
        if !self.waiting.borrow().is_empty() {
            return 0;
        }
        let there = self.there();
        match there >= wanted.min(self.quantum) {
            true => there.min(wanted),
            false => 0,
        }
    }

    /// `bytes` were moved at once. More than was allowed is owed.
    pub fn spend(&self, bytes: usize) {
        if let Some(bucket) = &self.bytes {
            bucket.borrow_mut().tokens -= bytes as f64;
        }
        let packets = bytes.div_ceil(self.segment).max(1);
        if let Some(bucket) = &self.packets {
            bucket.borrow_mut().tokens -= packets as f64;
        }
        // Small packets use a turn up as large ones do, or they would have more than their share.
        let used = match self.counts_packets() {
            true => packets * self.segment,
            false => bytes,
        };
        let left = self.turn.get().map(|left| left.saturating_sub(used));
        self.turn.set(left);
    }

    /// Queue `who` for a turn, once.
    pub fn wait(&self, id: usize, who: W) {
        if self.known.borrow_mut().insert(id) {
            self.waiting.borrow_mut().push_back((id, who));
            self.queued.notify_one();
        }
    }

    /// Nobody waits any more.
    pub fn forget(&self) {
        self.waiting.borrow_mut().clear();
        self.known.borrow_mut().clear();
    }

    /// Give those that wait their turns, one after the other, as fast as the buckets fill.
    pub async fn run(&self, mut turn: impl FnMut(W)) {
        loop {
            let round = self.waiting.borrow().len();
            if round == 0 {
                self.queued.notified().await;
                continue;
            }
            tokio::time::sleep(self.pause()).await;
            for _ in 0..round {
                if self.there() < self.quantum {
                    break;
                }
                let Some((id, who)) = self.waiting.borrow_mut().pop_front() else {
                    break;
                };
                self.known.borrow_mut().remove(&id);
                self.turn.set(Some(self.quantum));
                turn(who);
                self.turn.set(None);
            }
            tokio::task::yield_now().await;
        }
    }

    /// How long until there is enough for one turn.
    fn pause(&self) -> Duration {
        let bytes = self.bytes.as_ref();
        let bytes = bytes.map(|bucket| bucket.borrow_mut().lacking(self.quantum as f64));
        let packets = self.packets.as_ref();
        let wanted = self.quantum.div_ceil(self.segment) as f64;
        let packets = packets.map(|bucket| bucket.borrow_mut().lacking(wanted));
        let pause = bytes.into_iter().chain(packets).max();
        pause.unwrap_or(Duration::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::rc::Rc;

    const MTU: usize = 1500;

    /// Time passes only while nothing else can happen.
    fn paused(work: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build();
        runtime.unwrap().block_on(work);
    }

    /// A flow that always has more, in pieces of `piece` bytes.
    struct Greedy {
        id: usize,
        piece: usize,
        moved: Cell<usize>,
    }

    impl Greedy {
        fn new(id: usize, piece: usize) -> Rc<Greedy> {
            let moved = Cell::new(0);
            Rc::new(Greedy { id, piece, moved })
        }

        fn go(self: &Rc<Greedy>, pacer: &Pacer<Rc<Greedy>>) {
            while pacer.allowance(self.piece) > 0 {
                let count = pacer.allowance(self.piece);
                pacer.spend(count);
                self.moved.set(self.moved.get() + count);
            }
            pacer.wait(self.id, Rc::clone(self));
        }
    }

    async fn run_for(seconds: u64, pacer: &Pacer<Rc<Greedy>>, flows: &[Rc<Greedy>]) {
        for flow in flows {
            flow.go(pacer);
        }
        tokio::select! {
            () = pacer.run(|flow| flow.go(pacer)) => {}
            () = tokio::time::sleep(Duration::from_secs(seconds)) => {}
        }
    }

    fn bytes(per_second: u64, burst: u64) -> Rates {
        Rates {
            bytes: Some(Rate { per_second, burst }),
            packets: None,
        }
    }

    #[test]
    fn a_flow_gets_the_burst_at_once_and_then_the_rate() {
        paused(async {
            let pacer = Pacer::new(bytes(100_000, 50_000), MTU);
            let flow = Greedy::new(1, 9000);
            flow.go(&pacer);
            assert!((41_000..=50_000).contains(&flow.moved.get()));
            run_for(10, &pacer, &[Rc::clone(&flow)]).await;
            let moved = flow.moved.get();
            assert!((1_030_000..=1_050_000).contains(&moved), "{moved}");
        });
    }

    #[test]
    fn flows_share_alike_whatever_they_send_at_once() {
        paused(async {
            let pacer = Pacer::new(bytes(1_000_000, 20_000), MTU);
            let flows: Vec<_> = [100, 1440, 16_384, 1_000_000]
                .iter()
                .enumerate()
                .map(|(id, piece)| Greedy::new(id, *piece))
                .collect();
            run_for(20, &pacer, &flows).await;
            let all: usize = flows.iter().map(|flow| flow.moved.get()).sum();
            assert!((19_900_000..=20_020_000).contains(&all), "{all}");
            for flow in &flows {
                let share = flow.moved.get() as f64 / all as f64;
                assert!((0.23..=0.27).contains(&share), "{} {share}", flow.piece);
            }
        });
    }

    #[test]
    fn packets_are_counted_whatever_their_size() {
        paused(async {
            for (piece, packets) in [(10, 1), (1440, 1), (2880, 2)] {
                let rates = Rates {
                    packets: Some(Rate {
                        per_second: 100,
                        burst: 10,
                    }),
                    bytes: None,
                };
                let pacer = Pacer::new(rates, MTU);
                let flow = Greedy::new(1, piece);
                run_for(10, &pacer, &[Rc::clone(&flow)]).await;
                let sent = flow.moved.get() / piece * packets;
                assert!((980..=1011).contains(&sent), "{piece}: {sent}");
            }
        });
    }

    #[test]
    fn a_datagram_beyond_the_allowance_is_owed() {
        paused(async {
            let pacer: Pacer<Rc<Greedy>> = Pacer::new(bytes(10_000, 1500), MTU);
            assert!(pacer.allowance(60_000) > 0);
            pacer.spend(60_000);
            assert_eq!(pacer.allowance(1), 0);
            tokio::time::advance(Duration::from_millis(5_800)).await;
            assert_eq!(pacer.allowance(1), 0);
            tokio::time::advance(Duration::from_millis(200)).await;
            assert_eq!(pacer.allowance(1), 1);
        });
    }

    #[test]
    fn without_bounds_nobody_waits() {
        paused(async {
            let pacer: Pacer<Rc<Greedy>> = Pacer::new(Rates::default(), MTU);
            pacer.spend(usize::MAX / 2);
            assert_eq!(pacer.allowance(1 << 40), 1 << 40);
        });
    }

    #[test]
    fn what_is_written_is_understood_or_refused_with_a_reason() {
        let written = |direction: &str, bytes, burst, packets, burst_packets| {
            Bounds::new(&[(direction.to_owned(), bytes, burst, packets, burst_packets)])
        };
        let bounds = written("ingress", Some(10_000_000), None, Some(50), None).unwrap();
        let (bytes, packets) = (bounds.ingress.bytes, bounds.ingress.packets);
        assert_eq!(bytes.unwrap().burst, 1_000_000);
        assert_eq!(packets.unwrap().burst, BURST_PACKETS);
        assert_eq!(bounds.egress, Rates::default());
        for (wrong, why) in [
            (
                written("both", Some(1), None, None, None),
                "rate \"both\" is neither egress nor ingress",
            ),
            (
                written("egress", None, Some(1), None, None),
                "rate \"egress\": a burst of bytes needs bytes a second",
            ),
            (
                written("egress", Some(1), None, Some(0), None),
                "rate \"egress\": 0 packets would let nothing pass; at least 1 is needed",
            ),
            (
                written("egress", None, None, None, None),
                "rate \"egress\" bounds nothing: give bytes or packets a second",
            ),
        ] {
            assert_eq!(wrong.unwrap_err(), why);
        }
        let twice = [
            ("egress".to_owned(), Some(1), None, None, None),
            ("egress".to_owned(), Some(2), None, None, None),
        ];
        assert!(Bounds::new(&twice).unwrap_err().ends_with("given twice"));
    }
}
