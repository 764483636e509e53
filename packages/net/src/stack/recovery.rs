//! What smoltcp 0.12 does not do for a stream: repeat what was lost after the guest's end, ask a guest whose window is
//! closed whether it still is, and ask safely whether the guest is still there.
//!
//! It has no persist timer: a guest that says once that its window is open again, and whose word is lost, would wait
//! for ever. So where data waits and no timer runs, which is so only behind a closed window, the guest is asked, after
//! pauses that double (RFC 9293, 3.8.6.1).
//!
//! In CLOSE-WAIT, CLOSING and LAST-ACK any acknowledgement stops its retransmission timer, also one that does
//! not cover all that was sent. What was lost then would never be sent again. So where something is not
//! acknowledged and no timer runs, the socket is told the guest's last acknowledgement several times more, upon
//! which it sends everything from there on (fast retransmit, RFC 5681, 3.2).

use super::clock;
use super::packet::{self, TCP};
use super::reply;
use smoltcp::socket::tcp::{Socket, State};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Two that the socket takes for news, so that it begins to count, and three that repeat the second.
const WORDS: [u8; 5] = [1, 0, 0, 0, 0];
/// Between two attempts: this long at first, and twice as long each time.
const FIRST: Duration = Duration::from_millis(300);
const LONGEST: Duration = Duration::from_secs(20);

#[derive(Default)]
pub struct Recovery {
    /// What a socket that forgets may be told again.
    told: Option<Told>,
    last: Option<Told>,
    due: Option<Instant>,
    /// How often in vain.
    tries: u32,
}

/// Where the guest is.
#[derive(Clone)]
struct Told {
    source: IpAddr,
    target: IpAddr,
    /// Ports, sequence number behind all that it sent, acknowledgement, flags and window.
    segment: [u8; 20],
}

fn number(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    word.map_or(0, u32::from_be_bytes)
}

/// How long to wait after so many tries.
fn pause(tries: u32) -> Duration {
    FIRST.saturating_mul(1 << tries.min(16)).min(LONGEST)
}

/// Whether the state is one in which data may go to the guest.
fn sends(state: State) -> bool {
    matches!(state, State::Established | State::FinWait1) || forgets(state)
}

/// Whether the state is one that forgets.
fn forgets(state: State) -> bool {
    matches!(state, State::CloseWait | State::Closing | State::LastAck)
}

impl Recovery {
    /// An IP packet of the guest, with a right checksum, after which the socket is in `state`.
    pub fn heard(&mut self, state: State, packet: &[u8]) {
        let Some(told) = read(packet) else {
            return;
        };
        if forgets(state) && self.told.as_ref().is_none_or(|known| told.follows(known)) {
            let known = self.told.replace(told.clone());
            if known.is_none_or(|known| known.acknowledged() != told.acknowledged()) {
                self.tries = 0;
                self.due = None;
            }
        }
        self.last = Some(told);
    }

    /// A question whether the guest is still there: it answers what it acknowledged already with its state of
    /// things, and with a reset if it knows nothing of the stream (RFC 9293, 3.8.4). Without data: the byte that
    /// smoltcp sends with its own would be taken for that of the stream if that one was lost.
    pub fn probe(&self) -> Option<Vec<u8>> {
        self.last.as_ref().map(Told::probe)
    }

    /// When the guest's last word has to be repeated or asked for, if `timer` (the socket's own) does nothing before.
    pub fn due(&mut self, socket: &Socket<'_>, timer: Option<Instant>) -> Option<Instant> {
        let state = socket.state();
        let waits = sends(state) && socket.send_queue() > 0 && self.last.is_some();
        let ends = matches!(state, State::Closing | State::LastAck) && self.told.is_some();
        if !(waits || ends) || timer.is_some() {
            self.due = None;
            self.tries = 0;
            return None;
        }
        let pause = pause(self.tries);
        Some(*self.due.get_or_insert_with(|| clock::now() + pause))
    }

    /// Whether it is time for `words` and `question`.
    pub fn late(&mut self, now: Instant) -> bool {
        let late = self.due.take_if(|due| *due <= now).is_some();
        self.tries = self.tries.saturating_add(u32::from(late));
        late
    }

    /// The guest's last word as IP packets for a socket that forgets.
    pub fn words(&self) -> Vec<Vec<u8>> {
        let told = self.told.iter();
        let words = told.flat_map(|told| WORDS.map(|window| told.packet(window)));
        words.collect()
    }

    /// The question whether the window is still closed. Not for a socket that forgets behind an open one: what it has
    /// to repeat was lost.
    pub fn question(&self) -> Option<Vec<u8>> {
        let asks = |last: &&Told| self.told.is_none() || last.closed();
        self.last.as_ref().filter(asks).map(Told::probe)
    }
}

impl Told {
    fn acknowledged(&self) -> u32 {
        number(&self.segment, 8)
    }

    /// Whether the window is.
    fn closed(&self) -> bool {
        self.segment[14..16] == [0, 0]
    }

    /// Whether it is no older than `known`.
    fn follows(&self, known: &Told) -> bool {
        let later =
            |at| number(&self.segment, at).wrapping_sub(number(&known.segment, at)) as i32 >= 0;
        later(4) && later(8)
    }

    /// A packet to the guest, one byte before the next that it expects.
    fn probe(&self) -> Vec<u8> {
        let mut segment = [0; 20];
        segment[..2].copy_from_slice(&self.segment[2..4]);
        segment[2..4].copy_from_slice(&self.segment[..2]);
        let before = self.acknowledged().wrapping_sub(1);
        segment[4..8].copy_from_slice(&before.to_be_bytes());
        segment[8..12].copy_from_slice(&self.segment[4..8]);
        segment[12..14].copy_from_slice(&self.segment[12..14]);
        let value = packet::checksum(self.target, self.source, TCP, &segment);
        segment[16..18].copy_from_slice(&value.to_be_bytes());
        reply::whole(self.target, self.source, TCP, &segment)
    }

    /// As an IP packet for the socket, which looks at no checksum, in which the window has the bits of `other` turned.
    fn packet(&self, other: u8) -> Vec<u8> {
        let mut segment = self.segment;
        segment[15] ^= other;
        reply::whole(self.source, self.target, TCP, &segment)
    }
}

/// What `packet`, which has no options of IP, tells; None if it acknowledges nothing.
fn read(packet: &[u8]) -> Option<Told> {
    let (source, target, at) = packet::outline(packet)?;
    let segment = packet.get(at..)?;
    let mut head: [u8; 20] = *segment.first_chunk()?;
    let (fin, syn, rst, ack) = (1, 2, 4, 16);
    let flags = head[13];
    if flags & ack == 0 || flags & (syn | rst) != 0 {
        return None;
    }
    let data = segment.len().checked_sub(usize::from(head[12] >> 4) * 4)?;
    let behind = number(&head, 4).wrapping_add(data as u32 + u32::from(flags & fin != 0));
    head[4..8].copy_from_slice(&behind.to_be_bytes());
    head[12..14].copy_from_slice(&[5 << 4, ack]);
    head[16..20].copy_from_slice(&[0; 4]);
    Some(Told {
        source,
        target,
        segment: head,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound() {
        let first: Vec<Duration> = (0..4).map(pause).collect();
        assert_eq!(first, [FIRST, FIRST * 2, FIRST * 4, FIRST * 8]);
        assert_eq!(pause(u32::MAX), LONGEST);
    }
}
