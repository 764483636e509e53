//! What waits to be sent: control frames first, then the streams' data in turns.

use std::collections::VecDeque;

use super::frame::{Header, Kind, HEADER};

/// A batch handed to the port is closed once it is this long: control frames queued later wait
/// for at most one batch.
const BATCH: usize = 32 << 10;
/// A batch buffer that grew beyond this is given back instead of being kept for the next one.
const KEEP: usize = 256 << 10;

/// A frame of a stream whose place among the stream's frames matters.
#[derive(Debug)]
pub(super) enum Item {
    Data { channel: u8, bytes: Vec<u8> },
    Eof { channel: u8 },
    End { payload: Vec<u8> },
}

/// The data queue of one stream.
#[derive(Debug, Default)]
pub(super) struct Lane {
    items: VecDeque<Item>,
}

/// The queue of control frames and the batch that is being written.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    control: Vec<u8>,
    /// Streams with something in their lane, in the order of their turns.
    turns: VecDeque<u32>,
    /// Bytes of DATA in all lanes.
    data_bytes: usize,
    batch: Vec<u8>,
    sent: usize,
}

impl Outgoing {
    pub fn control(&mut self, stream: u32, kind: Kind, channel: u8, payload: &[u8]) {
        put(&mut self.control, stream, kind, channel, payload);
    }

    pub fn item(&mut self, stream: u32, lane: &mut Lane, item: Item) {
        if let Item::Data { bytes, .. } = &item {
            self.data_bytes += bytes.len();
        }
        if lane.items.is_empty() {
            self.turns.push_back(stream);
        }
        lane.items.push_back(item);
    }

    /// Forgets what waits, but not a batch that may be half written: the peer must still be able
    /// to find the next frame.
    pub fn clear(&mut self) {
        self.control.clear();
        self.turns.clear();
        self.data_bytes = 0;
    }

    pub fn data_bytes(&self) -> usize {
        self.data_bytes
    }

    pub fn control_bytes(&self) -> usize {
        self.control.len()
    }

    pub fn unsent(&self) -> &[u8] {
        &self.batch[self.sent..]
    }

    pub fn advance(&mut self, count: usize) {
        self.sent = (self.sent + count).min(self.batch.len());
    }

    /// Fills the batch if the last one is written. `take` gives the next item of a stream and
    /// whether the lane has more.
    pub fn fill(&mut self, mut take: impl FnMut(u32) -> Option<(Item, bool)>) {
        if self.sent < self.batch.len() {
            return;
        }
        self.sent = 0;
        if self.batch.capacity() > KEEP {
            self.batch = Vec::new();
        }
        self.batch.clear();
        self.batch.append(&mut self.control);
        if self.control.capacity() > KEEP {
            self.control = Vec::new();
        }
        while self.batch.len() < BATCH {
            let Some(stream) = self.turns.pop_front() else {
                break;
            };
            let Some((item, more)) = take(stream) else {
                continue;
            };
            match item {
                Item::Data { channel, bytes } => {
                    self.data_bytes -= bytes.len();
                    put(&mut self.batch, stream, Kind::Data, channel, &bytes);
                }
                Item::Eof { channel } => put(&mut self.batch, stream, Kind::Eof, channel, &[]),
                Item::End { payload } => put(&mut self.batch, stream, Kind::End, 0, &payload),
            }
            if more {
                self.turns.push_back(stream);
            }
        }
    }
}

/// The next item of a lane and whether it has more.
pub(super) fn next(lane: &mut Lane) -> Option<(Item, bool)> {
    let item = lane.items.pop_front()?;
    Some((item, !lane.items.is_empty()))
}

fn put(out: &mut Vec<u8>, stream: u32, kind: Kind, channel: u8, payload: &[u8]) {
    out.reserve(HEADER + payload.len());
    Header {
        length: payload.len() as u32,
        stream,
        kind,
        channel,
    }
    .emit(out);
    out.extend_from_slice(payload);
}
