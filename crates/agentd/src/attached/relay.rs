//! The messages of one mount, between the kernel and a port. A thread for each, so that neither the mount nor
//! who is at the other end holds up agentd, and because no signal of the workload ends a part of PID 1.
//!
//! When the other end is gone or what it says cannot be understood, the mount stays and everything that is asked of
//! it ends with EIO.
//!
//! The thread allocates nothing once it runs: agentd forks without the C library's knowledge, and its children
//! allocate, so nobody else may hold the lock of the heap.
//!
//! Every write to the port is a stop of the machine, and where the machine is emulated every system call is dear:
//! only what is known to be ready is read, and what only frees memory goes along with the next request.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Barrier};

use super::known::{self, Known};
use super::tell;
use crate::sys::fd::{self, Moved};

/// The largest message: 256 pages of data and a page for what comes before them, as the kernel has it.
const MESSAGE_MAX: usize = (1 << 20) + 4096;
/// Of `struct fuse_in_header`: length, opcode and unique number come first.
pub(super) const IN_HEADER: usize = 40;
/// Of `struct fuse_out_header`: length, error, unique number.
pub(super) const OUT_HEADER: usize = 16;
/// The error of a message that is no answer, with the number 0: what the host has changed (`attached::tell`).
const BATCH: i32 = 0x4d53_4257;
/// More than what waits in the background and one for each of a crowd of processes. Beyond it the kernel
/// keeps what is asked until something is answered.
const PENDING_MAX: usize = 1024;
const STACK: usize = 64 << 10;
/// Most bytes of what has time that are kept back. There is no clock for it: to set one costs as much as to write.
const HELD_MAX: usize = 2 << 10;

/// The opcodes that have no answer: FORGET, INTERRUPT, BATCH_FORGET.
const SILENT: [u32; 3] = [2, 36, 42];
/// Those that say that something is closed: RELEASE, RELEASEDIR. No program waits for their answers, which are given
/// here; the host is told without a number, and answers nothing.
const CLOSING: [u32; 2] = [18, 29];
/// Those that wait for another request to go with, as they free but memory: FORGET and BATCH_FORGET.
const PATIENT: [u32; 2] = [2, 42];

pub struct Relay {
    device: OwnedFd,
    port: OwnedFd,
    /// Where goes what the host has changed, if somebody is told.
    teller: Option<OwnedFd>,
    /// Requests of the kernel, and what of them has yet to be sent.
    requests: Vec<u8>,
    sent: usize,
    length: usize,
    /// Whether nobody waits for what has yet to be sent.
    held: bool,
    /// What has come from the host: the beginning of an answer.
    answer: Vec<u8>,
    filled: usize,
    /// The numbers of requests that have no answer yet.
    pending: Vec<u64>,
    /// What is known without asking the host.
    known: Known,
}

/// What there is to do.
#[derive(Default)]
struct Ready {
    /// The kernel asks something.
    device: bool,
    /// The host has said something, or is gone.
    port: bool,
}

/// Why a relay ends.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// It is mounted no more.
    Unmounted,
    /// The host has gone, or talks nonsense.
    Broken,
}

impl Relay {
    pub fn new(device: OwnedFd, port: OwnedFd, teller: Option<OwnedFd>) -> Relay {
        Relay {
            device,
            port,
            teller,
            // Pages that are never touched are never there.
            requests: vec![0; HELD_MAX + MESSAGE_MAX],
            sent: 0,
            length: 0,
            held: false,
            answer: vec![0; MESSAGE_MAX],
            filled: 0,
            pending: Vec::with_capacity(PENDING_MAX),
            known: Known::nothing(),
        }
    }

    /// Starts the thread, and returns when it runs.
    pub fn start(self) -> io::Result<()> {
        let begun = Arc::new(Barrier::new(2));
        let theirs = Arc::clone(&begun);
        std::thread::Builder::new()
            .stack_size(STACK)
            .spawn(move || {
                let mut relay = self;
                theirs.wait();
                // Dropping it would free memory.
                std::mem::forget(theirs);
                if relay.carry() == End::Broken {
                    relay.refuse();
                }
                relay.leave();
            })?;
        begun.wait();
        Ok(())
    }

    /// Carries messages until there is an end.
    fn carry(&mut self) -> End {
        loop {
            let ready = match self.wait() {
                Ok(ready) => ready,
                Err(end) => return end,
            };
            let carried = match ready.port {
                true => self.receive(),
                false => Ok(()),
            };
            let carried = carried.and_then(|()| match ready.device {
                true => self.take_request(),
                false => Ok(()),
            });
            if let Err(end) = carried.and_then(|()| self.send()) {
                return end;
            }
        }
    }

    /// Whether another request may be taken: the ones before are on their way, or have time.
    fn takes(&self) -> bool {
        (self.held || self.sent == self.length) && self.pending.len() < PENDING_MAX
    }

    /// Takes a request behind those that are held.
    fn take_request(&mut self) -> Result<(), End> {
        let start = self.length;
        // The kernel hands over nothing where the largest message would not fit.
        let room = &mut self.requests[start..start + MESSAGE_MAX];
        let Some(length) = read_request(&self.device, room)? else {
            return Ok(());
        };
        let request = &mut self.requests[start..start + length];
        if let Some(answer) = self.known.answer(request) {
            return give(&self.device, answer);
        }
        known::ask(request);
        self.length += length;
        let asked = opcode(request);
        self.held = PATIENT.contains(&asked) && self.length <= HELD_MAX;
        let Some(unique) = asks(request) else {
            return Ok(());
        };
        if CLOSING.contains(&asked) {
            request[8..16].fill(0);
            return give(&self.device, &answer_to(unique, 0));
        }
        self.pending.push(unique);
        Ok(())
    }

    /// Sends what the port takes of what somebody waits for.
    fn send(&mut self) -> Result<(), End> {
        while self.sent < self.length && !self.held {
            match fd::write(&self.port, &self.requests[self.sent..self.length]) {
                Moved::Bytes(count) => self.sent += count,
                Moved::Later => return Ok(()),
                Moved::Gone => return Err(End::Broken),
            }
        }
        if !self.held {
            (self.sent, self.length) = (0, 0);
        }
        Ok(())
    }

    /// Reads what has come, and hands over every answer that is whole.
    fn receive(&mut self) -> Result<(), End> {
        loop {
            match fd::read(&self.port, &mut self.answer[self.filled..]) {
                Moved::Bytes(count) => self.filled += count,
                Moved::Later => return Ok(()),
                Moved::Gone => return Err(End::Broken),
            }
            let mut start = 0;
            while let Some((length, unique)) = whole(&self.answer[start..self.filled])? {
                self.hand_over(start, length, unique)?;
                start += length;
            }
            self.answer.copy_within(start..self.filled, 0);
            self.filled -= start;
            // The rest of an answer is there or about to come: the port gives a page at a time.
            if self.filled == 0 {
                return Ok(());
            }
        }
    }

    fn hand_over(&mut self, start: usize, length: usize, unique: u64) -> Result<(), End> {
        let message = &self.answer[start..start + length];
        if let (Some(teller), true) = (&self.teller, is_batch(message)) {
            tell::send(teller, &message[OUT_HEADER..]);
            return Ok(());
        }
        if self.known.learn(message) {
            return Ok(());
        }
        let Some(place) = self.pending.iter().position(|asked| *asked == unique) else {
            return Err(End::Broken);
        };
        self.pending.swap_remove(place);
        give(&self.device, &self.answer[start..start + length])
    }

    /// Answers EIO to what waits and to all that comes, until it is unmounted.
    fn refuse(&mut self) {
        while let Some(unique) = self.pending.pop() {
            let _ = write_answer(&self.device, &failure(unique));
        }
        loop {
            match read_request(&self.device, &mut self.requests) {
                Ok(Some(length)) => {
                    if let Some(unique) = asks(&self.requests[..length]) {
                        let _ = write_answer(&self.device, &failure(unique));
                    }
                }
                Ok(None) => {
                    poll(&[(&self.device, libc::POLLIN)]);
                }
                Err(_) => return,
            }
        }
    }

    /// Waits for a request, where there is room for one, for an answer, or for room in the port.
    fn wait(&self) -> Result<Ready, End> {
        let takes = self.takes();
        let to_device = if takes { libc::POLLIN } else { 0 };
        let idle = self.held || self.sent == self.length;
        let to_port = libc::POLLIN | if idle { 0 } else { libc::POLLOUT };
        let Some([device, port]) = poll(&[(&self.device, to_device), (&self.port, to_port)]) else {
            return Ok(Ready::default());
        };
        if device != 0 && !takes {
            return Err(End::Unmounted);
        }
        Ok(Ready {
            device: device != 0,
            port: port & !libc::POLLOUT != 0,
        })
    }

    /// Ends both connections. The memory stays: freeing it would take a lock that a child of agentd may need.
    fn leave(self) {
        let Relay {
            device,
            port,
            teller,
            requests,
            answer,
            pending,
            ..
        } = self;
        std::mem::forget((requests, answer, pending));
        drop((device, port, teller));
    }
}

/// The kernel's next request, whole; None if there is none now.
fn read_request(device: &OwnedFd, buffer: &mut [u8]) -> Result<Option<usize>, End> {
    // SAFETY: `buffer` is writable for its length.
    let read = unsafe { libc::read(device.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    match usize::try_from(read) {
        Ok(length) if length >= IN_HEADER => Ok(Some(length)),
        Ok(_) => Err(End::Unmounted),
        Err(_) => match io::Error::last_os_error().raw_os_error() {
            // ENOENT: who had asked was killed before it was read.
            Some(libc::EAGAIN | libc::EINTR | libc::ENOENT) => Ok(None),
            _ => Err(End::Unmounted),
        },
    }
}

/// Hands one whole answer to the kernel, which may not want it any more.
fn give(device: &OwnedFd, answer: &[u8]) -> Result<(), End> {
    match write_answer(device, answer) {
        Ok(()) => Ok(()),
        // Who had asked was killed meanwhile.
        Err(libc::ENOENT) => Ok(()),
        Err(libc::ENODEV) => Err(End::Unmounted),
        // The kernel has ended the request by itself.
        Err(_) => Err(End::Broken),
    }
}

/// Hands one whole answer to the kernel; the error is errno.
fn write_answer(device: &OwnedFd, answer: &[u8]) -> Result<(), i32> {
    // SAFETY: `answer` is readable for its length.
    let written = unsafe { libc::write(device.as_raw_fd(), answer.as_ptr().cast(), answer.len()) };
    match written {
        -1 => Err(io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO)),
        _ => Ok(()),
    }
}

pub(super) fn opcode(request: &[u8]) -> u32 {
    u32::from_le_bytes(bytes(request, 4))
}

/// The number of a request that is answered.
fn asks(request: &[u8]) -> Option<u64> {
    (!SILENT.contains(&opcode(request))).then(|| u64::from_le_bytes(bytes(request, 8)))
}

/// Length and number of the answer that `data` begins with, once it is whole.
fn whole(data: &[u8]) -> Result<Option<(usize, u64)>, End> {
    if data.len() < OUT_HEADER {
        return Ok(None);
    }
    let length = u32::from_le_bytes(bytes(data, 0)) as usize;
    if !(OUT_HEADER..=MESSAGE_MAX).contains(&length) {
        return Err(End::Broken);
    }
    let unique = u64::from_le_bytes(bytes(data, 8));
    Ok((data.len() >= length).then_some((length, unique)))
}

/// Whether a whole message is for `attached::tell`; the kernel gives no request the number 0.
fn is_batch(message: &[u8]) -> bool {
    bytes(message, 4) == BATCH.to_le_bytes() && bytes(message, 8) == [0; 8]
}

/// The answer EIO.
fn failure(unique: u64) -> [u8; OUT_HEADER] {
    answer_to(unique, -libc::EIO)
}

/// An answer without anything but an error, or 0 for none.
pub(super) fn answer_to(unique: u64, error: i32) -> [u8; OUT_HEADER] {
    let mut answer = [0; OUT_HEADER];
    answer[..4].copy_from_slice(&(OUT_HEADER as u32).to_le_bytes());
    answer[4..8].copy_from_slice(&error.to_le_bytes());
    answer[8..].copy_from_slice(&unique.to_le_bytes());
    answer
}

/// So many bytes from `start` on; zeros where there are none.
pub(super) fn bytes<const N: usize>(data: &[u8], start: usize) -> [u8; N] {
    data.get(start..start + N)
        .and_then(|part| part.try_into().ok())
        .unwrap_or([0; N])
}

/// What has happened to each, once anything has; None if a signal came in between.
fn poll<const N: usize>(wanted: &[(&OwnedFd, libc::c_short); N]) -> Option<[libc::c_short; N]> {
    let mut entries = wanted.map(|(fd, events)| libc::pollfd {
        fd: fd.as_raw_fd(),
        events,
        revents: 0,
    });
    // SAFETY: `entries` are valid for the whole call, and as many as it is told.
    let count = unsafe { libc::poll(entries.as_mut_ptr(), N as libc::nfds_t, -1) };
    (count > 0).then(|| entries.map(|entry| entry.revents))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A failed test should say where.
    use super::*;
    use std::os::fd::FromRawFd;

    fn answer(length: u32, unique: u64) -> Vec<u8> {
        [&length.to_le_bytes()[..], &[0; 4], &unique.to_le_bytes()].concat()
    }

    #[test]
    fn an_answer_is_whole_when_all_of_it_is_there() {
        let mut data = answer(20, 7);
        assert_eq!(whole(&data[..15]), Ok(None));
        assert_eq!(whole(&data), Ok(None));
        data.extend([0; 9]);
        assert_eq!(whole(&data), Ok(Some((20, 7))));
    }

    #[test]
    fn a_batch_is_no_answer() {
        let mut message = answer(20, 0);
        assert!(!is_batch(&message));
        message[4..8].copy_from_slice(&BATCH.to_le_bytes());
        assert!(is_batch(&message));
        message[8] = 1;
        assert!(!is_batch(&message));
    }

    #[test]
    fn lengths_that_no_answer_has_are_nonsense() {
        for length in [0, 15, MESSAGE_MAX as u32 + 1, u32::MAX] {
            assert_eq!(whole(&answer(length, 1)), Err(End::Broken), "{length}");
        }
    }

    #[test]
    fn what_is_not_answered_is_not_waited_for() {
        let request = |opcode: u32| {
            let mut request = [0; IN_HEADER];
            request[4..8].copy_from_slice(&opcode.to_le_bytes());
            request[8] = 9;
            request
        };
        assert_eq!(asks(&request(1)), Some(9));
        for opcode in SILENT {
            assert_eq!(asks(&request(opcode)), None);
        }
    }

    /// A socket of whole messages, or a stream.
    fn pair(kind: libc::c_int) -> (OwnedFd, OwnedFd) {
        let mut ends = [0; 2];
        let kind = kind | libc::SOCK_NONBLOCK;
        // SAFETY: `ends` takes two descriptors, which are new and belong to nobody else.
        unsafe {
            assert_eq!(
                libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()),
                0
            );
            (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
        }
    }

    fn numbered(opcode: u32, unique: u64) -> Vec<u8> {
        let mut request = vec![0; IN_HEADER];
        request[0] = IN_HEADER as u8;
        request[4..8].copy_from_slice(&opcode.to_le_bytes());
        request[8..16].copy_from_slice(&unique.to_le_bytes());
        request
    }

    fn heard(from: &OwnedFd) -> Vec<u8> {
        let mut buffer = vec![0; 8 << 10];
        match fd::read(from, &mut buffer) {
            Moved::Bytes(count) => buffer.truncate(count),
            other => assert_eq!((other, buffer.clear()), (Moved::Later, ())),
        }
        buffer
    }

    #[test]
    fn what_is_closed_is_answered_here_and_what_is_forgotten_goes_with_the_next_request() {
        let (device, kernel) = pair(libc::SOCK_SEQPACKET);
        let (port, host) = pair(libc::SOCK_STREAM);
        let mut relay = Relay::new(device, port, None);
        fd::write(&kernel, &numbered(18, 2));
        relay.take_request().and_then(|()| relay.send()).unwrap();
        assert_eq!(heard(&host), numbered(18, 0));
        assert_eq!(heard(&kernel), answer_to(2, 0));
        fd::write(&kernel, &numbered(2, 0));
        relay.take_request().and_then(|()| relay.send()).unwrap();
        assert!(relay.takes() && heard(&host).is_empty());
        fd::write(&kernel, &numbered(1, 4));
        relay.take_request().and_then(|()| relay.send()).unwrap();
        assert_eq!(heard(&host), [numbered(2, 0), numbered(1, 4)].concat());
        assert_eq!(relay.pending, [4], "what the host answers");
        fd::write(&host, &answer_to(4, 0));
        relay.receive().unwrap();
        assert_eq!(heard(&kernel), answer_to(4, 0));
    }

    #[test]
    fn what_is_known_is_not_asked() {
        let (device, kernel) = pair(libc::SOCK_SEQPACKET);
        let (port, host) = pair(libc::SOCK_STREAM);
        let mut relay = Relay::new(device, port, None);
        let named = |name: &[u8]| [&numbered(22, 4)[..], &[0; 8], name].concat();
        fd::write(&kernel, &numbered(2, 0));
        relay.take_request().and_then(|()| relay.send()).unwrap();
        fd::write(&kernel, &named(b"security.capability\0"));
        relay.take_request().and_then(|()| relay.send()).unwrap();
        assert_eq!(heard(&kernel), answer_to(4, -libc::ENODATA));
        assert!(relay.takes() && relay.pending.is_empty() && heard(&host).is_empty());
        fd::write(&kernel, &named(b"user.a\0"));
        relay.take_request().and_then(|()| relay.send()).unwrap();
        assert_eq!(heard(&host), [numbered(2, 0), named(b"user.a\0")].concat());
        assert_eq!(relay.pending, [4]);
    }

    #[test]
    fn what_is_forgotten_goes_before_it_is_much() {
        let (device, kernel) = pair(libc::SOCK_SEQPACKET);
        let (port, host) = pair(libc::SOCK_STREAM);
        let mut relay = Relay::new(device, port, None);
        let most = HELD_MAX / IN_HEADER + 1;
        for _ in 0..most {
            assert!(heard(&host).is_empty());
            fd::write(&kernel, &numbered(2, 0));
            relay.take_request().and_then(|()| relay.send()).unwrap();
        }
        assert_eq!(heard(&host).len(), most * IN_HEADER);
    }

    #[test]
    fn a_failure_is_an_answer() {
        let told = failure(3);
        assert_eq!(whole(&told), Ok(Some((OUT_HEADER, 3))));
        assert_eq!(i32::from_le_bytes(bytes(&told, 4)), -libc::EIO);
    }
}
