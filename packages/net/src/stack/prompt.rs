//! Acknowledgements that wait for the answer which carries them, where answers come at once.
//!
//! A request whose acknowledgement leaves by itself costs a frame more each: another turn of the link, of the device
//! and of the guest. So for flows whose last requests were answered within moments, the acknowledgement of the next
//! one waits a moment (RFC 9293, 3.8.6.3). Where answers take longer it leaves at once: a guest that may not send
//! before it comes (Nagle's algorithm, RFC 9293, 3.7.4) waits for nothing twice.

use super::core::Core;
use super::packet;
use super::tcp::Tcp;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How soon an answer is at once, and how long an acknowledgement waits for it at least.
const MOMENT: Duration = Duration::from_millis(1);
/// The same for a socket.
pub const DELAY: smoltcp::time::Duration = smoltcp::time::Duration::from_millis(1);
/// How often flows that owe one are looked at, while there are any.
const TICK: Duration = Duration::from_millis(2);
/// So many requests in a row must have been answered at once. The first one gets the benefit of the doubt.
const ENOUGH: u8 = 2;
/// The most bytes of a request; what is longer may be the beginning of a stream.
const REQUEST: usize = 1024;

/// How a flow's target answers.
pub struct Prompt {
    asked: Option<Instant>,
    /// Requests in a row that were answered at once, up to `ENOUGH`.
    streak: u8,
    owes: bool,
}

impl Default for Prompt {
    fn default() -> Prompt {
        Prompt {
            asked: None,
            streak: ENOUGH,
            owes: false,
        }
    }
}

impl Prompt {
    /// A packet of the guest. True if its acknowledgement may wait.
    pub fn heard(&mut self, packet: &[u8], now: Instant) -> bool {
        if !is_request(packet) {
            return self.owes;
        }
        // It goes on before it was answered: that is no asking and answering.
        if self.asked.replace(now).is_some() {
            self.streak = 0;
        }
        self.owes |= self.streak >= ENOUGH;
        self.owes
    }

    /// The target said something, which carries what is owed.
    pub fn answered(&mut self, now: Instant) {
        self.owes = false;
        if let Some(asked) = self.asked.take() {
            self.streak = match now.saturating_duration_since(asked) <= MOMENT {
                true => ENOUGH.min(self.streak + 1),
                false => 0,
            };
        }
    }

    /// Whether an acknowledgement waits.
    pub fn owes(&self) -> bool {
        self.owes
    }

    /// Whether one has waited long enough; it waits no longer then.
    pub fn late(&mut self, now: Instant) -> bool {
        let late = self.owes && self.asked.is_none_or(|asked| asked + MOMENT <= now);
        if late {
            self.owes = false;
            self.streak = 0;
        }
        late
    }
}

/// Whether an IP packet without options holds a few bytes in the middle of a stream.
fn is_request(packet: &[u8]) -> bool {
    let segment = packet::outline(packet).and_then(|(_, _, at)| packet.get(at..));
    let Some((segment, head)) = segment.and_then(|all| Some((all, all.first_chunk::<20>()?)))
    else {
        return false;
    };
    let (fin, syn, rst) = (1, 2, 4);
    let data = segment.len().saturating_sub(usize::from(head[12] >> 4) * 4);
    head[13] & (fin | syn | rst) == 0 && (1..=REQUEST).contains(&data)
}

/// Flows that owe an acknowledgement, each once.
#[derive(Default)]
pub struct Debts {
    flows: RefCell<Vec<Rc<Tcp>>>,
    some: Notify,
}

impl Debts {
    /// `tcp` owes one; `noted` is its own mark that it is on the list.
    pub fn note(&self, tcp: &Rc<Tcp>, noted: &Cell<bool>) {
        if !noted.replace(true) {
            self.flows.borrow_mut().push(Rc::clone(tcp));
            self.some.notify_one();
        }
    }

    pub fn forget(&self) {
        self.flows.borrow_mut().clear();
    }
}

/// See to it that no flow owes one for long. One clock for all: most are answered before it strikes.
pub async fn collect(core: &Rc<Core>) {
    let debts = &core.debts;
    loop {
        debts.some.notified().await;
        while !debts.flows.borrow().is_empty() {
            tokio::time::sleep(TICK).await;
            let flows = std::mem::take(&mut *debts.flows.borrow_mut());
            for tcp in flows {
                tcp.settle_debt(core);
            }
            core.kick();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::packet::TCP;
    use crate::stack::reply;

    fn segment(flags: u8, data: usize) -> Vec<u8> {
        let mut segment = vec![0; 20 + data];
        segment[12] = 5 << 4;
        segment[13] = flags;
        let (from, to) = ("10.9.0.2".parse().unwrap(), "192.0.2.1".parse().unwrap());
        reply::whole(from, to, TCP, &segment)
    }

    #[test]
    fn a_few_bytes_within_a_stream_are_a_request() {
        assert!(is_request(&segment(16, 1)) && is_request(&segment(24, REQUEST)));
        for packet in [
            segment(16, 0),
            segment(16, REQUEST + 1),
            segment(17, 1),
            vec![0x45],
        ] {
            assert!(!is_request(&packet));
        }
    }

    #[test]
    fn who_answers_late_is_waited_for_again_after_two_quick_answers() {
        let start = Instant::now();
        let request = segment(24, 10);
        let mut prompt = Prompt::default();
        assert!(prompt.heard(&request, start));
        assert!(!prompt.late(start));
        assert!(prompt.late(start + MOMENT) && !prompt.owes());
        prompt.answered(start + MOMENT * 2);
        for wait in [false, false, true, true] {
            assert_eq!(prompt.heard(&request, start), wait);
            prompt.answered(start);
            assert!(!prompt.owes());
        }
    }

    #[test]
    fn a_guest_that_writes_twice_for_one_answer_is_told_at_once() {
        let start = Instant::now();
        let request = segment(24, 10);
        let mut prompt = Prompt::default();
        prompt.heard(&request, start);
        prompt.late(start + MOMENT);
        for _ in 0..9 {
            assert!(!prompt.heard(&request, start));
            assert!(!prompt.heard(&request, start));
            prompt.answered(start);
        }
    }
}
