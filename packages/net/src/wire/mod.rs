//! Readers of what a guest sends: names on the wire, DNS messages.
//!
//! Every byte is hostile. Each reader is fed what came, keeps no more than its limit, never
//! panics, and ends in one of the four states of `Progress`; it takes no notice of how the bytes
//! were divided over segments.

pub mod answers;
pub mod body;
pub mod dns;
pub mod h2;
pub mod hpack;
pub mod http;
pub mod second;
pub mod socks;
pub mod tls;
pub mod tunnel;

use crate::authority::{Authority, Host};

#[cfg(test)]
mod testing;

/// How far a reader is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress<T> {
    /// Not enough bytes yet to tell.
    NeedMore,
    Found(T),
    /// Another protocol: no name will be seen by this reader.
    NotThis,
    /// This protocol, in a form that two readers could understand in two ways. The flow is
    /// refused under every policy: what would be decided is not what would be done.
    Malformed(&'static str),
}

impl<T> Progress<T> {
    /// The same, with what was found made into something else.
    pub fn map<U>(self, with: impl FnOnce(T) -> U) -> Progress<U> {
        match self {
            Progress::NeedMore => Progress::NeedMore,
            Progress::Found(found) => Progress::Found(with(found)),
            Progress::NotThis => Progress::NotThis,
            Progress::Malformed(why) => Progress::Malformed(why),
        }
    }
}

/// The rest of a message that is read from the front. `None` is its end.
#[derive(Clone, Copy)]
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2)
            .map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// What follows a length of one byte.
    fn short(&mut self) -> Option<Bytes<'a>> {
        let length = self.u8()?;
        self.take(usize::from(length)).map(Bytes)
    }

    /// What follows a length of two bytes.
    fn long(&mut self) -> Option<Bytes<'a>> {
        let length = self.u16()?;
        self.take(usize::from(length)).map(Bytes)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
