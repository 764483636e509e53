//! The console port as a byte stream that never blocks.

use std::os::fd::OwnedFd;

use crate::channel::Guest;
use crate::hold::{Held, Release};
use crate::sys::fd::{self, Moved};

/// A read of the port returns at most one buffer of the driver, a page.
const READ: usize = 4096;
/// Reads and writes before the rest of the guest gets its turn.
const BURST: usize = 16;

pub struct Port {
    fd: OwnedFd,
    /// Not known to be empty or full.
    pub readable: bool,
    pub writable: bool,
    /// Whether bytes of the present host have come.
    heard: bool,
    buffer: [u8; READ],
}

/// What the reader of the port found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    Some,
    Nothing,
    /// The host that was there has gone.
    HungUp,
}

impl Port {
    pub fn new(fd: OwnedFd) -> Port {
        Port {
            fd,
            readable: true,
            writable: true,
            heard: false,
            buffer: [0; READ],
        }
    }

    /// Whether there is a host to lose; it counts as lost from here on.
    pub fn hang_up(&mut self) -> bool {
        std::mem::take(&mut self.heard)
    }

    /// One read.
    pub fn read_into(&mut self, guest: &mut Guest) -> Read {
        match fd::read(&self.fd, &mut self.buffer) {
            Moved::Bytes(count) => {
                self.heard = true;
                guest.feed(&self.buffer[..count]);
                Read::Some
            }
            Moved::Later => {
                self.readable = false;
                Read::Nothing
            }
            // The driver's answer while no host is connected.
            Moved::Gone => {
                self.readable = false;
                match self.hang_up() {
                    true => Read::HungUp,
                    false => Read::Nothing,
                }
            }
        }
    }

    /// Writes until nothing is left, the port is full, or it was enough for one turn.
    pub fn write_from(&mut self, guest: &mut Guest) {
        for _ in 0..BURST {
            let bytes = guest.pending();
            if bytes.is_empty() {
                return;
            }
            match fd::write(&self.fd, bytes) {
                Moved::Bytes(count) => guest.advance(count),
                Moved::Later | Moved::Gone => {
                    self.writable = false;
                    return;
                }
            }
        }
    }

    /// Reads until the host releases the machine; None if there is no host any more. The port must be
    /// blocking, as `flush` leaves it, and does not block afterwards.
    pub fn await_release(&mut self, held: &mut Held) -> Option<Release> {
        let release = loop {
            match fd::read(&self.fd, &mut self.buffer) {
                Moved::Bytes(count) => {
                    if let Some(release) = held.feed(&self.buffer[..count]) {
                        break Some(release);
                    }
                }
                Moved::Later => {}
                Moved::Gone => break None,
            }
        };
        // What became ready meanwhile is told by no event.
        (self.readable, self.writable) = (true, true);
        fd::set_nonblocking(&self.fd, true).ok().and(release)
    }

    /// Writes everything, and returns when the VMM has taken the last byte: a blocking write to
    /// this driver waits for that, a non-blocking one only for room in the queue.
    pub fn flush(&mut self, guest: &mut Guest) {
        if fd::set_nonblocking(&self.fd, false).is_err() {
            return;
        }
        loop {
            let bytes = guest.pending();
            if bytes.is_empty() {
                return;
            }
            match fd::write(&self.fd, bytes) {
                Moved::Bytes(count) => guest.advance(count),
                Moved::Later | Moved::Gone => return,
            }
        }
    }
}
