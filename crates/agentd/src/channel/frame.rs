//! Frame headers: everything that can be judged before a payload byte has come.

use super::error::{Code, ProtocolError};

/// Bytes in front of every payload.
pub const HEADER: usize = 12;
/// The largest payload of one DATA frame.
pub const DATA_MAX: usize = 65_536;
/// The largest stream id.
pub const STREAM_MAX: u32 = 0x7fff_ffff;

/// Which end of the connection reads a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receiver {
    Host,
    Guest,
}

/// The kinds of frames, by their number on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Hello = 0x01,
    Open = 0x02,
    Opened = 0x03,
    Event = 0x04,
    End = 0x05,
    Message = 0x06,
    Cancel = 0x07,
    Error = 0x08,
    Data = 0x10,
    Eof = 0x11,
    Credit = 0x12,
}

impl Kind {
    pub fn from_byte(byte: u8) -> Option<Kind> {
        Some(match byte {
            0x01 => Kind::Hello,
            0x02 => Kind::Open,
            0x03 => Kind::Opened,
            0x04 => Kind::Event,
            0x05 => Kind::End,
            0x06 => Kind::Message,
            0x07 => Kind::Cancel,
            0x08 => Kind::Error,
            0x10 => Kind::Data,
            0x11 => Kind::Eof,
            0x12 => Kind::Credit,
            _ => return None,
        })
    }

    /// The shortest and longest payload.
    pub fn lengths(self) -> (u32, u32) {
        match self {
            Kind::Hello | Kind::Error => (1, 4 << 10),
            Kind::Open => (1, 4 << 20),
            Kind::Opened | Kind::Event | Kind::End | Kind::Message => (1, 64 << 10),
            Kind::Cancel => (1, 16),
            Kind::Data => (1, DATA_MAX as u32),
            Kind::Eof => (0, 0),
            Kind::Credit => (4, 4),
        }
    }

    /// Whether this end may be sent such a frame at all.
    fn reaches(self, receiver: Receiver) -> bool {
        match self {
            Kind::Hello | Kind::Error | Kind::Data | Kind::Eof | Kind::Credit => true,
            Kind::Open | Kind::Message | Kind::Cancel => receiver == Receiver::Guest,
            Kind::Opened | Kind::Event | Kind::End => receiver == Receiver::Host,
        }
    }

    /// Whether the frame speaks of the connection (stream 0) and not of one stream.
    fn of_connection(self) -> bool {
        matches!(self, Kind::Hello | Kind::Error)
    }

    /// The channels that may stand in the header.
    fn has_channel(self, channel: u8, receiver: Receiver) -> bool {
        // Data flows towards the receiver; credit is for data that flows away from it.
        let inward = match receiver {
            Receiver::Guest => channel == 0,
            Receiver::Host => channel == 1 || channel == 2,
        };
        match self {
            Kind::Data | Kind::Eof => inward,
            Kind::Credit => !inward && channel <= 2,
            _ => channel == 0,
        }
    }
}

/// A header that passed every check that needs no payload and no state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub length: u32,
    pub stream: u32,
    pub kind: Kind,
    pub channel: u8,
}

impl Header {
    /// Reads a header as `receiver` may get it.
    pub fn parse(bytes: &[u8; HEADER], receiver: Receiver) -> Result<Header, ProtocolError> {
        let refuse = |what: String| Err(ProtocolError::new(Code::Frame, what));
        let [l0, l1, l2, l3, s0, s1, s2, s3, kind, channel, f0, f1] = *bytes;
        let length = u32::from_be_bytes([l0, l1, l2, l3]);
        let stream = u32::from_be_bytes([s0, s1, s2, s3]);
        let Some(kind) = Kind::from_byte(kind) else {
            return refuse(format!("unknown kind {kind:#04x}"));
        };
        if [f0, f1] != [0, 0] {
            return refuse("flags are not zero".into());
        }
        if !kind.reaches(receiver) {
            return refuse(format!("{kind:?} from the wrong side"));
        }
        let (shortest, longest) = kind.lengths();
        if length < shortest || length > longest {
            return refuse(format!("{kind:?} of {length} bytes"));
        }
        if stream > STREAM_MAX || kind.of_connection() != (stream == 0) {
            return refuse(format!("{kind:?} on stream {stream}"));
        }
        if !kind.has_channel(channel, receiver) {
            return refuse(format!("{kind:?} on channel {channel}"));
        }
        Ok(Header {
            length,
            stream,
            kind,
            channel,
        })
    }

    /// Appends the header to `out`.
    pub fn emit(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.length.to_be_bytes());
        out.extend_from_slice(&self.stream.to_be_bytes());
        out.extend_from_slice(&[self.kind as u8, self.channel, 0, 0]);
    }
}
