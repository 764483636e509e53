//! Why a connection was ended: the codes of the specification, with a message for the reader.

use std::fmt;

/// The code of an ERROR frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    Frame,
    Payload,
    Version,
    Sequence,
    Credit,
    Stream,
}

impl Code {
    /// The code as it is written on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Code::Frame => "frame",
            Code::Payload => "payload",
            Code::Version => "version",
            Code::Sequence => "sequence",
            Code::Credit => "credit",
            Code::Stream => "stream",
        }
    }
}

/// A violation of the protocol: it ends the whole connection, not one stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProtocolError {
    pub code: Code,
    pub message: String,
}

impl ProtocolError {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        ProtocolError {
            code,
            message: message.into(),
        }
    }
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.message)
    }
}

impl std::error::Error for ProtocolError {}

/// A command that the machine cannot carry out now; nothing was queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The stream is not open, or its END is already queued.
    NotOpen,
    /// More data than the peer gave credit for, an empty chunk, or one above the frame's cap.
    NoRoom,
    /// The stream has no such channel, or it was already closed.
    NoChannel,
    /// The payload is above the cap of its frame.
    TooLong,
}
