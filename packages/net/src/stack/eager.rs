//! Staying awake from one frame to the next, where they follow closely.
//!
//! A thread that waits in the kernel comes back by way of an idle processor, which takes tens of microseconds where
//! that has to be woken first: short exchanges consist of little else. So when the last rest was a short one, the
//! thread asks for a moment whether there is something before it rests again, as the kernel's idle loop does in
//! virtual machines (Documentation/virt/guest-halt-polling.rst). How long it asks follows from how long it rested: who
//! sends now and then costs nothing, and neither does a stream of bytes, in which there always is something.

use super::core::Core;
use std::cell::Cell;
use std::rc::Rc;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// What is asked for at first.
const FIRST: Duration = Duration::from_micros(25);
/// More than so many bytes in so much time are a stream.
const STREAM: u64 = 64 << 10;
const TICK: Duration = Duration::from_millis(1);

/// What has moved over a link so far.
#[derive(Default)]
pub struct Traffic {
    frames: Cell<u64>,
    bytes: Cell<u64>,
    rests: Cell<bool>,
    moved: Notify,
}

impl Traffic {
    /// Frames came, or left.
    pub fn note(&self, frames: u64, bytes: u64) {
        self.frames.set(self.frames.get().wrapping_add(frames));
        self.bytes.set(self.bytes.get().wrapping_add(bytes));
        if self.rests.replace(false) {
            self.moved.notify_one();
        }
    }
}

/// For how long it is asked, up to `most`.
struct Window {
    most: Duration,
    length: Duration,
}

impl Window {
    fn new(most: Duration) -> Window {
        Window {
            most,
            length: Duration::ZERO,
        }
    }

    /// The thread had `rested` when something came.
    fn rested(&mut self, rested: Duration) {
        self.length = match rested <= self.most {
            true => (self.length * 2).clamp(FIRST.min(self.most), self.most),
            false => Duration::ZERO,
        };
    }
}

/// Whether what moves is a stream: as the last whole tick and the present one have it.
struct Pace {
    since: Instant,
    bytes: u64,
    streams: bool,
}

impl Pace {
    fn new(now: Instant) -> Pace {
        Pace {
            since: now,
            bytes: 0,
            streams: false,
        }
    }

    /// `bytes`: of all time.
    fn is_stream(&mut self, now: Instant, bytes: u64) -> bool {
        let passed = now.saturating_duration_since(self.since);
        let much = bytes.wrapping_sub(self.bytes) > STREAM;
        if passed < TICK {
            return self.streams || much;
        }
        self.streams = much && passed < 2 * TICK;
        (self.since, self.bytes) = (now, bytes);
        self.streams
    }
}

/// Keep the thread awake where that is worth it, for as long as the stack runs.
pub async fn stay(core: &Rc<Core>) {
    // With one processor, whoever would answer waits for this very thread.
    let several = available_parallelism().is_ok_and(|count| count.get() > 1);
    if !several || core.config.limits.stay_awake.is_zero() {
        return;
    }
    let traffic = &core.traffic;
    let mut window = Window::new(core.config.limits.stay_awake);
    let mut now = Instant::now();
    let mut pace = Pace::new(now);
    loop {
        traffic.rests.set(true);
        traffic.moved.notified().await;
        let began = std::mem::replace(&mut now, Instant::now());
        window.rested(now.saturating_duration_since(began));
        let (mut last, mut frames) = (now, traffic.frames.get());
        while now.saturating_duration_since(last) < window.length
            && !pace.is_stream(now, traffic.bytes.get())
        {
            // Whoever has something to do goes first.
            std::thread::yield_now();
            tokio::task::yield_now().await;
            now = Instant::now();
            if std::mem::replace(&mut frames, traffic.frames.get()) != frames {
                last = now;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_micros(100);

    fn after(rests: &[u64]) -> u128 {
        let mut window = Window::new(MOST);
        for rest in rests {
            window.rested(Duration::from_micros(*rest));
        }
        window.length.as_micros()
    }

    #[test]
    fn short_rests_lengthen_what_is_asked_for_up_to_the_bound() {
        assert_eq!(after(&[]), 0);
        assert_eq!(after(&[100]), 25);
        assert_eq!(after(&[10, 10]), 50);
        assert_eq!(after(&[10, 10, 10, 10, 10]), 100);
    }

    #[test]
    fn one_long_rest_ends_it() {
        assert_eq!(after(&[10, 10, 101]), 0);
        assert_eq!(after(&[10, 10, 1_000_000, 10]), 25);
    }

    #[test]
    fn much_in_a_moment_is_a_stream_until_a_moment_has_less() {
        let begin = Instant::now();
        let at = |micros| begin + Duration::from_micros(micros);
        let mut pace = Pace::new(begin);
        assert!(!pace.is_stream(at(10), STREAM));
        assert!(pace.is_stream(at(900), STREAM + 1));
        assert!(pace.is_stream(at(1000), 2 * STREAM));
        assert!(pace.is_stream(at(1010), 2 * STREAM));
        assert!(pace.is_stream(at(1990), 2 * STREAM + 1));
        assert!(!pace.is_stream(at(2000), 2 * STREAM + 1));
    }

    #[test]
    fn much_over_a_long_time_is_none() {
        let begin = Instant::now();
        let mut pace = Pace::new(begin);
        assert!(!pace.is_stream(begin + Duration::from_secs(1), 2 * STREAM));
    }

    #[test]
    fn a_bound_below_the_first_step_holds() {
        let mut window = Window::new(Duration::from_micros(5));
        window.rested(Duration::from_micros(1));
        assert_eq!(window.length, Duration::from_micros(5));
    }
}
