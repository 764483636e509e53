//! Bytes to frames: reassembly that never holds more than one frame and the last read.

use super::error::{Code, ProtocolError};
use super::frame::{Header, Kind, Receiver, HEADER};
use super::msgpack::{decode, Map};

/// The payload of a frame, decoded as its kind says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    Control(Map),
    Bytes(Vec<u8>),
    Credit(u32),
    Nothing,
}

/// One well-formed frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub stream: u32,
    pub kind: Kind,
    pub channel: u8,
    pub payload: Payload,
}

/// Reassembles and decodes frames; knows nothing of streams.
#[derive(Debug)]
pub struct Incoming {
    receiver: Receiver,
    buffer: Vec<u8>,
    taken: usize,
}

impl Incoming {
    pub fn new(receiver: Receiver) -> Incoming {
        Incoming {
            receiver,
            buffer: Vec::new(),
            taken: 0,
        }
    }

    /// Adds what was read. The caller takes all frames out before it reads again, which keeps the
    /// buffer below one frame and one read.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete frame, if there is one.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, ProtocolError> {
        let rest = &self.buffer[self.taken..];
        let Some((head, body)) = rest.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let header = Header::parse(head, self.receiver)?;
        let length = header.length as usize;
        let Some(body) = body.get(..length) else {
            return Ok(None);
        };
        let payload = match header.kind {
            Kind::Data => Payload::Bytes(body.to_vec()),
            Kind::Eof => Payload::Nothing,
            Kind::Credit => Payload::Credit(credit(body)?),
            _ => Payload::Control(decode(body)?),
        };
        self.taken += HEADER + length;
        if self.taken == self.buffer.len() {
            // One large OPEN must not pin its megabytes for the life of the guest.
            if self.buffer.capacity() > 1 << 20 {
                self.buffer = Vec::new();
            }
            self.buffer.clear();
            self.taken = 0;
        }
        Ok(Some(Frame {
            stream: header.stream,
            kind: header.kind,
            channel: header.channel,
            payload,
        }))
    }
}

fn credit(body: &[u8]) -> Result<u32, ProtocolError> {
    let amount = body
        .iter()
        .fold(0u32, |sum, byte| (sum << 8) | u32::from(*byte));
    if amount == 0 || amount > super::CREDIT_MAX {
        return Err(ProtocolError::new(
            Code::Credit,
            format!("a credit of {amount}"),
        ));
    }
    Ok(amount)
}
