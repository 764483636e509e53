//! Readiness: one epoll instance, edge-triggered, with a 64-bit token per descriptor.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use super::check;

/// What a descriptor is ready for.
#[derive(Debug, Clone, Copy)]
pub struct Ready(u32);

impl Ready {
    /// Readable, at its end, or hung up: a read will say which.
    pub fn readable(self) -> bool {
        self.0 & (libc::EPOLLIN | libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0
    }

    /// Writable, or nobody reads: a write will say which.
    pub fn writable(self) -> bool {
        self.0 & (libc::EPOLLOUT | libc::EPOLLERR) as u32 != 0
    }

    pub fn hung_up(self) -> bool {
        self.0 & libc::EPOLLHUP as u32 != 0
    }

    /// Of a pipe's writing end: no reader is left.
    pub fn broken(self) -> bool {
        self.0 & libc::EPOLLERR as u32 != 0
    }
}

pub struct Epoll {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Epoll {
    pub fn new() -> io::Result<Epoll> {
        // SAFETY: takes no pointers.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        Ok(Epoll {
            // SAFETY: the call succeeded, so `fd` is open and belongs to nobody else.
            fd: unsafe { OwnedFd::from_raw_fd(fd) },
            events: vec![libc::epoll_event { events: 0, u64: 0 }; 128],
        })
    }

    /// Watches a descriptor until it is closed. Edge-triggered: the owner reads or writes until
    /// `Later`, so a descriptor that nobody has room for costs no wake-ups.
    pub fn add(&self, fd: impl AsFd, token: u64, input: bool, output: bool) -> io::Result<()> {
        let mut events = libc::EPOLLET as u32;
        if input {
            events |= libc::EPOLLIN as u32;
        }
        if output {
            events |= libc::EPOLLOUT as u32;
        }
        let mut event = libc::epoll_event { events, u64: token };
        let raw = fd.as_fd().as_raw_fd();
        // SAFETY: `event` is valid for the call; both descriptors are open.
        check(unsafe {
            libc::epoll_ctl(self.fd.as_raw_fd(), libc::EPOLL_CTL_ADD, raw, &mut event)
        })?;
        Ok(())
    }

    /// Gives a watched descriptor another token, and reports it as long as it is readable.
    pub fn hand_over(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: libc::EPOLLIN as u32,
            u64: token,
        };
        let raw = fd.as_fd().as_raw_fd();
        // SAFETY: `event` is valid for the call; both descriptors are open.
        check(unsafe {
            libc::epoll_ctl(self.fd.as_raw_fd(), libc::EPOLL_CTL_MOD, raw, &mut event)
        })?;
        Ok(())
    }

    /// Waits for events, at most `timeout`; `each` is called with every token.
    pub fn wait(&mut self, timeout: Option<Duration>, mut each: impl FnMut(u64, Ready)) {
        // Rounded up: a deadline must have passed when its timer fires.
        let milliseconds = timeout.map_or(-1, |timeout| {
            i32::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
        });
        let room = i32::try_from(self.events.len()).unwrap_or(i32::MAX);
        // SAFETY: `events` has `room` elements to store into.
        let count = unsafe {
            libc::epoll_wait(
                self.fd.as_raw_fd(),
                self.events.as_mut_ptr(),
                room,
                milliseconds,
            )
        };
        // The only failure of a valid instance is EINTR, which is the same as no event.
        let count = usize::try_from(count).unwrap_or(0);
        for event in &self.events[..count] {
            each(event.u64, Ready(event.events));
        }
    }
}
