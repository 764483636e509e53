//! The agent channel: framing, payloads and the guest's state machine, without any I/O.
//!
//! The specification is `docs/agent-channel.md`. No input makes anything here panic, and what is
//! held for a peer is bounded: one frame, the credit given, and `CONTROL_LIMIT`.

mod error;
mod fields;
mod frame;
mod guest;
mod incoming;
mod msgpack;
mod outgoing;
mod stream;

pub use error::{Code, ProtocolError, Refused};
pub use fields::{Field, Invalid};
pub use frame::{Header, Kind, Receiver, DATA_MAX, HEADER, STREAM_MAX};
pub use guest::{Event, Guest};
pub use incoming::{Frame, Incoming, Payload};
pub use msgpack::{decode, encode, Map, Value, DEPTH_MAX, OBJECTS_MAX};

/// The version of the protocol that is spoken here.
pub const VERSION: u64 = 1;
/// Streams that may be open at a time.
pub const STREAMS_MAX: usize = 2048;
/// What the host may send on a new channel.
pub const CREDIT_TO_GUEST: u32 = 131_072;
/// What the guest may send on a new channel.
pub const CREDIT_TO_HOST: u32 = 262_144;
/// The largest credit, single or balance.
pub const CREDIT_MAX: u32 = 1 << 30;
/// Bytes of queued control frames above which the host is not read from.
pub const CONTROL_LIMIT: usize = 1 << 20;

/// Whether streams of this method carry channels 0, 1 and 2.
fn has_channels(method: &str) -> bool {
    matches!(method, "exec" | "files")
}
