//! The link: Ethernet frames after 32-bit big-endian lengths, as QEMU's `-netdev stream` carries them.

use super::packet::{Mac, ETHERNET, IPV4, IPV6};
use std::fmt;
use std::ops::Range;

/// The largest frame: a packet of 65,535 bytes in Ethernet, with room for a VLAN tag.
pub const LARGEST: usize = 65_535 + ETHERNET + 4;
/// What is read at once, if so much is there: calls of the kernel are most of what a byte costs.
const READ: usize = 1 << 20;
/// Beyond this many bytes not yet taken by the guest, flows wait.
const SOFT: usize = 1 << 20;
/// Beyond this many, answers that belong to no flow are dropped.
const HARD: usize = 2 << 20;

/// The peer does not speak the protocol of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Garbage {
    pub length: u32,
}

impl fmt::Display for Garbage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a frame of {} bytes on the link, where 1 to {LARGEST} are possible: \
             the peer does not send frames after 32-bit big-endian lengths",
            self.length
        )
    }
}

/// Frames out of a stream of bytes. Has room for two reads, so that the frame in which one stops is moved at every
/// second one at most.
pub struct Reader {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Default for Reader {
    fn default() -> Reader {
        Reader {
            buffer: vec![0; 2 * READ],
            start: 0,
            end: 0,
        }
    }
}

impl Reader {
    /// Where the next bytes of the stream go; never empty once `frame_at` has returned None.
    pub fn space(&mut self) -> &mut [u8] {
        let held = self.end - self.start;
        if held == 0 || self.buffer.len() - self.end < READ {
            self.buffer.copy_within(self.start..self.end, 0);
            self.start = 0;
            self.end = held;
        }
        let most = self.buffer.len().min(self.end + READ);
        &mut self.buffer[self.end..most]
    }

    /// `count` bytes were put into `space`.
    pub fn filled(&mut self, count: usize) {
        self.end = (self.end + count).min(self.buffer.len());
    }

    /// The place of the next whole frame, None if more bytes are needed first.
    pub fn frame_at(&mut self) -> Result<Option<Range<usize>>, Garbage> {
        let held = &self.buffer[self.start..self.end];
        let Some(head) = held.first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*head);
        if length == 0 || length as usize > LARGEST {
            return Err(Garbage { length });
        }
        let length = length as usize;
        if held.len() < 4 + length {
            return Ok(None);
        }
        let start = self.start + 4;
        self.start = start + length;
        Ok(Some(start..start + length))
    }

    /// A frame that `frame_at` told the place of.
    pub fn frame(&self, place: Range<usize>) -> &[u8] {
        &self.buffer[place]
    }

    /// Whether the stream stopped inside a frame.
    pub fn partial(&self) -> bool {
        self.start != self.end
    }
}

/// The largest headers of IP and TCP. Who writes a frame writes all behind them; in these smoltcp only changes bits.
const HEADERS: usize = 40 + 60;

/// Frames for the guest that the link has not taken yet.
pub struct Queue {
    head: [u8; 12],
    /// As long as it ever was: what is behind `end` is of frames that are gone, and is not cleared before it is
    /// written again.
    bytes: Vec<u8>,
    sent: usize,
    end: usize,
    /// Frames that were pushed, and their bytes without the lengths: whoever takes them counts.
    pub frames: u64,
    pub octets: u64,
}

impl Queue {
    pub fn new(guest: Mac, gateway: Mac) -> Queue {
        let mut head = [0; 12];
        head[..6].copy_from_slice(&guest);
        head[6..].copy_from_slice(&gateway);
        Queue {
            head,
            bytes: Vec::new(),
            sent: 0,
            end: 0,
            frames: 0,
            octets: 0,
        }
    }

    /// What is still to be written.
    pub fn pending(&self) -> &[u8] {
        &self.bytes[self.sent..self.end]
    }

    /// The first frame of `pending`, which has none half-written: the bytes it takes there, and the frame.
    pub fn first(&self) -> (usize, &[u8]) {
        match self.pending().split_first_chunk::<4>() {
            Some((head, rest)) => {
                let length = u32::from_be_bytes(*head) as usize;
                (4 + length, &rest[..length])
            }
            None => (0, &[]),
        }
    }

    /// `count` bytes of `pending` were written.
    pub fn advance(&mut self, count: usize) {
        self.sent += count;
        let rest = self.end - self.sent;
        // What is moved is less than what was sent since the last time.
        if rest == 0 || self.sent >= rest.max(SOFT) {
            self.bytes.copy_within(self.sent..self.end, 0);
            self.sent = 0;
            self.end = rest;
        }
    }

    /// Whether flows have to wait.
    pub fn full(&self) -> bool {
        self.pending().len() >= SOFT
    }

    /// Whether even answers have no room.
    pub fn overfull(&self) -> bool {
        self.pending().len() >= HARD
    }

    /// A frame with a body of `length` bytes that `fill` writes: all of it, or all behind `HEADERS`.
    pub fn push<R>(&mut self, kind: u16, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let begin = self.end;
        let body = begin + 4 + ETHERNET;
        self.end = body + length;
        if self.bytes.len() < self.end {
            self.bytes.resize(self.end, 0);
        }
        self.frames += 1;
        self.octets += (ETHERNET + length) as u64;
        let (front, body) = self.bytes[begin..self.end].split_at_mut(body - begin);
        front[..4].copy_from_slice(&((ETHERNET + length) as u32).to_be_bytes());
        front[4..16].copy_from_slice(&self.head);
        front[16..].copy_from_slice(&kind.to_be_bytes());
        body[..length.min(HEADERS)].fill(0);
        fill(body)
    }

    /// A frame with an IP packet whose first byte tells the family.
    pub fn push_ip<R>(&mut self, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let kind = self.end + 4 + 12;
        let result = self.push(IPV4, length, fill);
        if self.bytes.get(kind + 2).is_some_and(|byte| byte >> 4 == 6) {
            self.bytes[kind..kind + 2].copy_from_slice(&IPV6.to_be_bytes());
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames(reader: &mut Reader) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        while let Some(place) = reader.frame_at().expect("frames") {
            found.push(reader.frame(place).to_vec());
        }
        found
    }

    #[test]
    fn a_length_that_no_frame_has_is_garbage() {
        for bytes in [*b"GET ", [0; 4], [0, 2, 0, 0]] {
            let mut reader = Reader::default();
            reader.space()[..4].copy_from_slice(&bytes);
            reader.filled(4);
            let length = u32::from_be_bytes(bytes);
            assert_eq!(reader.frame_at(), Err(Garbage { length }));
        }
    }

    #[test]
    fn a_queue_that_is_half_written_keeps_the_rest() {
        let mut queue = Queue::new([2; 6], [4; 6]);
        queue.push_ip(20, |body| body.fill(0x45));
        queue.push_ip(40, |body| body.fill(0x60));
        let all = queue.pending().to_vec();
        assert_eq!(all.len(), 2 * 18 + 60);
        assert_eq!(all[16..18], IPV4.to_be_bytes());
        assert_eq!(all[38 + 16..38 + 18], IPV6.to_be_bytes());
        let mut written = Vec::new();
        while !queue.pending().is_empty() {
            let count = queue.pending().len().min(7);
            written.extend_from_slice(&queue.pending()[..count]);
            queue.advance(count);
        }
        assert_eq!(written, all);
    }

    #[test]
    fn a_queue_never_holds_more_than_what_is_pending_and_what_was_just_sent() {
        let mut queue = Queue::new([2; 6], [4; 6]);
        let (mut pushed, mut written) = (0u8, 0u8);
        for _ in 0..200 {
            while !queue.full() {
                pushed = pushed.wrapping_add(1);
                queue.push_ip(9_000, |body| body.fill(pushed));
            }
            // It never runs empty.
            for _ in 0..60 {
                written = written.wrapping_add(1);
                assert_eq!(queue.pending()[18..18 + 9_000], [written; 9_000]);
                queue.advance(9_018);
            }
        }
        assert!(queue.bytes.len() <= 2 * SOFT + LARGEST);
    }

    #[test]
    fn nothing_of_a_frame_that_is_gone_comes_again() {
        let mut queue = Queue::new([2; 6], [4; 6]);
        queue.push_ip(2 * HEADERS, |body| body.fill(0xff));
        queue.advance(queue.pending().len());
        queue.push_ip(HEADERS, |body| body[0] = 0x45);
        let mut wanted = [0; HEADERS];
        wanted[0] = 0x45;
        assert_eq!(queue.pending()[18..], wanted);
    }

    #[test]
    fn a_frame_in_which_a_read_stops_is_moved_only_where_room_is_short() {
        let mut reader = Reader::default();
        let length = 1_000u32.to_be_bytes();
        let stream: Vec<u8> = length.iter().copied().chain([7; 1_000]).collect();
        let stream = stream.repeat(READ / stream.len() + 1);
        assert_eq!(reader.space().len(), READ);
        reader.space().copy_from_slice(&stream[..READ]);
        reader.filled(READ);
        assert_eq!(frames(&mut reader).len(), READ / 1_004);
        let begins = reader.start;
        assert!(reader.partial());
        assert_eq!((reader.space().len(), reader.start), (READ, begins));
        // The first byte after a read of its own leaves less than a whole read.
        reader.space()[0] = stream[READ];
        reader.filled(1);
        assert_eq!(reader.frame_at(), Ok(None));
        assert_eq!((reader.space().len(), reader.start), (READ, 0));
        let rest = &stream[READ + 1..];
        reader.space()[..rest.len()].copy_from_slice(rest);
        reader.filled(rest.len());
        assert_eq!(frames(&mut reader), [[7; 1_000]]);
        assert!(!reader.partial());
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in(sent in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..3000), 0..40), step in 1usize..5000) {
            let mut stream = Vec::new();
            for frame in &sent {
                stream.extend_from_slice(&(frame.len() as u32).to_be_bytes());
                stream.extend_from_slice(frame);
            }
            let mut reader = Reader::default();
            let mut seen = Vec::new();
            for piece in stream.chunks(step) {
                reader.space()[..piece.len()].copy_from_slice(piece);
                reader.filled(piece.len());
                seen.extend(frames(&mut reader));
            }
            prop_assert_eq!(seen, sent);
            prop_assert!(!reader.partial());
        }

        #[test]
        fn arbitrary_bytes_do_no_harm(stream in proptest::collection::vec(any::<u8>(), 0..4000)) {
            let mut reader = Reader::default();
            for piece in stream.chunks(100) {
                let space = reader.space();
                prop_assert!(!space.is_empty());
                space[..piece.len()].copy_from_slice(piece);
                reader.filled(piece.len());
                while let Ok(Some(place)) = reader.frame_at() {
                    prop_assert!(!reader.frame(place).is_empty());
                }
            }
        }
    }
}
