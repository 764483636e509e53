//! A host that checks all that the guest may be held to, driven by arbitrary bytes.
//!
//! The property tests and the fuzz target run the same program.

#![allow(clippy::expect_used, dead_code)] // It is an assertion in itself, and has two users.

use std::collections::HashMap;

use agentd::channel::{
    Event, Frame, Guest, Incoming, Kind, Map, Payload, Receiver, CONTROL_LIMIT, CREDIT_TO_GUEST,
    CREDIT_TO_HOST, DATA_MAX, STREAMS_MAX,
};

/// What the host knows of a stream.
struct Stream {
    /// Credit that the guest has for channels 1 and 2.
    credit: [u64; 2],
    eof: [bool; 2],
    opened: bool,
    /// What the host may send on channel 0.
    window: u64,
}

/// Follows one connection from outside.
pub struct Auditor {
    guest: Guest,
    incoming: Incoming,
    streams: HashMap<u32, Stream>,
    greeted: bool,
    over: bool,
}

impl Default for Auditor {
    fn default() -> Auditor {
        Auditor {
            guest: Guest::new(),
            incoming: Incoming::new(Receiver::Host),
            streams: HashMap::new(),
            greeted: false,
            over: false,
        }
    }
}

impl Auditor {
    /// Runs a whole program: what the host sends, mixed with what the guest's handlers do.
    pub fn run(mut self, program: &[u8]) {
        let mut rest = program;
        while let Some((op, tail)) = rest.split_first() {
            let argument = usize::from(*tail.first().unwrap_or(&0));
            rest = tail.get(1..).unwrap_or_default();
            match op % 4 {
                0 | 1 => {
                    let (piece, tail) = rest.split_at(argument.min(rest.len()));
                    rest = tail;
                    self.receive(piece);
                }
                2 => self.command(op / 4, argument),
                _ => self.read(argument * 16),
            }
        }
        self.read(usize::MAX);
    }

    /// Bytes from the host.
    pub fn receive(&mut self, bytes: &[u8]) {
        if !self.guest.wants_input() {
            return;
        }
        self.guest.feed(bytes);
        while let Some(event) = self.guest.next_event() {
            match event {
                Event::Hello(_) => {
                    self.streams.clear();
                    // The batch that an earlier host has not read still comes first.
                    self.read(usize::MAX);
                    self.greeted = true;
                    self.guest
                        .hello("agentd", "0", false)
                        .expect("HELLO was asked for");
                }
                Event::Open { stream, .. } => {
                    let new = Stream {
                        credit: [CREDIT_TO_HOST.into(); 2],
                        eof: [false; 2],
                        opened: false,
                        window: CREDIT_TO_GUEST.into(),
                    };
                    assert!(self.streams.insert(stream, new).is_none());
                }
                Event::Data { stream, bytes } => {
                    assert!(!bytes.is_empty() && bytes.len() <= DATA_MAX);
                    let window = &mut self.streams.get_mut(&stream).expect("open").window;
                    *window = window
                        .checked_sub(bytes.len() as u64)
                        .expect("within the window");
                }
                Event::Credit {
                    stream,
                    channel,
                    amount,
                } => {
                    let stream = self.streams.get_mut(&stream).expect("open");
                    stream.credit[usize::from(channel) - 1] += u64::from(amount);
                }
                Event::Message { stream, .. }
                | Event::Cancel { stream }
                | Event::Eof { stream } => {
                    assert!(self.streams.contains_key(&stream));
                }
                Event::Error(_) | Event::Broken(_) => assert!(self.guest.is_closed()),
            }
        }
        assert!(self.streams.len() <= STREAMS_MAX + 1);
    }

    /// Something that a handler may do, allowed or not.
    fn command(&mut self, which: u8, argument: usize) {
        let mut ids: Vec<u32> = self.streams.keys().copied().collect();
        ids.sort_unstable();
        let id = match ids.get(argument % (ids.len() + 1)) {
            Some(id) => *id,
            None => argument as u32,
        };
        let channel = (argument % 4) as u8;
        let length = argument * 700;
        // Refusals are answers, not faults: what counts is what is on the wire afterwards.
        let _ = match which % 7 {
            0 => self.guest.opened(id, &Map::new()),
            1 => self.guest.event(id, &Map::new().with("e", "x")),
            2 => self.guest.end(id, &Map::new()),
            3 => self.guest.data(id, channel, vec![7; length]),
            4 => self.guest.eof(id, channel),
            5 => self.guest.consumed(id, length as u32),
            _ => self.guest.fail(id, "kind", "message"),
        };
    }

    /// The host reads `limit` bytes and checks the frames in them.
    fn read(&mut self, mut limit: usize) {
        while limit > 0 {
            let pending = self.guest.pending();
            if pending.is_empty() {
                break;
            }
            let count = pending.len().min(limit);
            self.incoming.feed(&pending[..count]);
            self.guest.advance(count);
            limit -= count;
            while let Some(frame) = self.incoming.next_frame().expect("well-formed frames") {
                self.check(frame);
            }
        }
    }

    fn check(&mut self, frame: Frame) {
        assert!(!self.over, "a frame after ERROR");
        match frame.kind {
            Kind::Hello => return assert!(self.greeted),
            Kind::Error => {
                self.over = true;
                return;
            }
            _ => {}
        }
        // Frames that were in the batch when a later host said HELLO are its predecessor's, and
        // the END of one stream too many is for one that never was.
        let Some(stream) = self.streams.get_mut(&frame.stream) else {
            return;
        };
        let index = usize::from(frame.channel).wrapping_sub(1);
        match (frame.kind, frame.payload) {
            (Kind::Opened, _) => assert!(!std::mem::replace(&mut stream.opened, true)),
            (Kind::Event, _) => assert!(stream.opened),
            (Kind::Data, Payload::Bytes(bytes)) => {
                assert!(stream.opened && !stream.eof[index]);
                let left = stream.credit[index].checked_sub(bytes.len() as u64);
                stream.credit[index] = left.expect("data within the credit");
            }
            (Kind::Eof, _) => assert!(!std::mem::replace(&mut stream.eof[index], true)),
            (Kind::Credit, Payload::Credit(amount)) => {
                stream.window += u64::from(amount);
                assert!(stream.window <= CREDIT_TO_GUEST.into());
            }
            (Kind::End, _) => {
                self.streams.remove(&frame.stream);
            }
            (kind, payload) => panic!("{kind:?} {payload:?} from a guest"),
        }
    }

    /// What the guest holds for a host that does not read.
    pub fn queued(&self) -> usize {
        self.guest.queued_data()
    }

    pub fn wants_input(&self) -> bool {
        self.guest.wants_input()
    }

    /// One more than this may be queued by the frames of one read.
    pub const QUEUE: usize = CONTROL_LIMIT;
}
