//! A session on a stream: FUSE messages one after the other on a socket, answered by several threads.
//!
//! Each message begins with its own length (`fuse_in_header.len`, `fuse_out_header.len`), and that is all the framing
//! there is, both ways. A thread reads one whole message, lets the next thread read, answers, and writes the whole
//! reply: replies come in any order, and what takes long stops nobody else. So there are never more requests at work
//! than threads, nor more memory than two messages for each; what else the guest says waits in the socket. What is not
//! answered (FORGET, mostly) is done by the thread that takes the request behind it, after that: to wake
//! another one for it would take longer.

use crate::broker::Broker;
use crate::confine;
use crate::watch;
use crate::wire::request::{answered, Malformed};
use crate::wire::{IN_HEADER, MAX_MESSAGE};
use rustix::event::{poll, PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{recv, send, shutdown, RecvFlags, SendFlags, Shutdown, SocketType};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes that are read ahead, so that several small messages cost one system call.
const AHEAD: usize = 64 << 10;
/// Most threads of one session.
pub const MOST_THREADS: usize = 64;

/// Why a session could not go on.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    Malformed(Malformed),
    /// The queue in the guest's memory cannot be gone on with: why.
    Ring(&'static str),
    /// A system call on the stream, or one that prepares a thread: what, and how it failed.
    System(&'static str, Errno),
    /// A thread panicked: a mistake of ours.
    Broken,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Malformed(malformed) => malformed.fmt(to),
            Self::Ring(what) => write!(to, "the guest has broken its queue: {what}"),
            Self::System(what, errno) => write!(to, "{what}: {errno}"),
            Self::Broken => write!(to, "the broker failed; this is a bug"),
        }
    }
}

pub struct Session {
    stream: OwnedFd,
    input: Mutex<Input>,
    output: Mutex<()>,
    ended: AtomicBool,
    stopped: AtomicBool,
    failure: Mutex<Option<Failure>>,
}

/// What is read and not yet taken: `bytes[start..end]`.
struct Input {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Session {
    /// On a socket of streams, which is shut down when the session ends. ENOTSOCK, or EPROTOTYPE if it
    /// is one of messages.
    pub fn new(stream: OwnedFd) -> rustix::io::Result<Self> {
        if rustix::net::sockopt::socket_type(&stream)? != SocketType::STREAM {
            return Err(Errno::PROTOTYPE);
        }
        let input = Input {
            bytes: vec![0; AHEAD].into(),
            start: 0,
            end: 0,
        };
        Ok(Self {
            stream,
            input: Mutex::new(input),
            output: Mutex::default(),
            ended: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            failure: Mutex::default(),
        })
    }

    /// Serves until the stream ends or `stop` is called; then nothing is open or known any more. Threads are made and
    /// confined for it, and ended with it: 1 to `MOST_THREADS`.
    pub fn run(&self, broker: &Broker, threads: usize) -> Result<(), Failure> {
        std::thread::scope(|scope| {
            if let Some(watch) = broker.watch() {
                let watcher = || {
                    let sends = |message: &[u8]| self.write(message).unwrap_or(false);
                    if confine::thread(broker).is_ok() {
                        watch::run(broker, watch, sends);
                    }
                };
                let thread = std::thread::Builder::new().name("microsandbox-fs".into());
                // Without it the guest is told nothing, and all else goes on.
                let _ = thread.spawn_scoped(scope, watcher);
            }
            for number in 0..threads.clamp(1, MOST_THREADS) {
                let thread = std::thread::Builder::new().name("microsandbox-fs".into());
                let work = || {
                    let _end = EndIfPanicking(self);
                    if let Err(failure) = self.work(broker) {
                        self.end(Some(failure));
                    }
                    if let Some(watch) = broker.watch() {
                        watch.end();
                    }
                };
                if let Err(error) = thread.spawn_scoped(scope, work) {
                    // With fewer it is slower, without any it would never end.
                    if number == 0 {
                        let errno = Errno::from_io_error(&error).unwrap_or(Errno::AGAIN);
                        self.end(Some(Failure::System("starting a thread", errno)));
                    }
                    break;
                }
            }
        });
        // The last replies are written: now the peer sees the end too.
        let _ = shutdown(&self.stream, Shutdown::Both);
        broker.reset();
        lock(&self.failure).take().map_or(Ok(()), Err)
    }

    /// Ends the session from another thread, whatever it waits for but a system call on a file.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.end(None);
        // The peer is told, and nobody waits for it any longer.
        let _ = shutdown(&self.stream, Shutdown::Both);
    }

    fn end(&self, failure: Option<Failure>) {
        self.ended.store(true, Ordering::Release);
        if let Some(failure) = failure {
            if !self.stopped.load(Ordering::Acquire) {
                lock(&self.failure).get_or_insert(failure);
            }
            let _ = shutdown(&self.stream, Shutdown::Both);
        }
    }

    fn work(&self, broker: &Broker) -> Result<(), Failure> {
        confine::thread(broker).map_err(|errno| Failure::System("confining a thread", errno))?;
        let (mut message, mut reply, mut aside) = (Vec::new(), Vec::new(), Vec::new());
        loop {
            let Some(length) = self.read(&mut message, &mut aside)? else {
                self.end(None);
                return Ok(());
            };
            let answered = broker.answer(&message[..length], &mut reply);
            answered.map_err(Failure::Malformed)?;
            if !reply.is_empty() && !self.write(&reply)? {
                self.end(None);
                return Ok(());
            }
            let mut rest = &aside[..];
            while let Some(length) = whole(rest) {
                let done = broker.answer(&rest[..length], &mut reply);
                done.map_err(Failure::Malformed)?;
                rest = &rest[length..];
            }
            aside.clear();
        }
    }

    /// Reads one message to the beginning of `message`; returns its length, or `None` at the end of the stream. What
    /// came before it and is not answered is appended to `aside`.
    fn read(&self, message: &mut Vec<u8>, aside: &mut Vec<u8>) -> Result<Option<usize>, Failure> {
        let mut input = lock(&self.input);
        let malformed = |what| Failure::Malformed(Malformed(what));
        while input.end - input.start < 4 {
            // Ended by another thread, which has read the end and with it all that was whole.
            if self.ended.load(Ordering::Acquire) {
                return Ok(None);
            }
            let Input { bytes, start, end } = &mut *input;
            bytes.copy_within(*start..*end, 0);
            (*start, *end) = (0, *end - *start);
            match self.receive(&mut bytes[*end..])? {
                0 if *end == 0 || self.ended.load(Ordering::Acquire) => return Ok(None),
                0 => return Err(malformed("the stream ended within it")),
                more => *end += more,
            }
        }
        if self.ended.load(Ordering::Acquire) {
            return Ok(None);
        }
        let Input { bytes, start, end } = &mut *input;
        while let Some(length) = whole(&bytes[*start..*end]) {
            let next = *start + length;
            if answered(&bytes[*start..next]) || whole(&bytes[next..*end]).is_none() {
                break;
            }
            aside.extend_from_slice(&bytes[*start..next]);
            *start = next;
        }
        let length = bytes[*start..*start + 4].try_into().expect("four bytes");
        let length = u32::from_le_bytes(length) as usize;
        match length {
            0..IN_HEADER => return Err(malformed("shorter than a header")),
            IN_HEADER..=MAX_MESSAGE => {}
            _ => return Err(malformed("longer than any request")),
        }
        if message.len() < length {
            message.resize(length, 0);
        }
        let mut taken = length.min(*end - *start);
        message[..taken].copy_from_slice(&bytes[*start..*start + taken]);
        *start += taken;
        while taken < length {
            match self.receive(&mut message[taken..length])? {
                0 if self.ended.load(Ordering::Acquire) => return Ok(None),
                0 => return Err(malformed("the stream ended within it")),
                more => taken += more,
            }
        }
        Ok(Some(length))
    }

    /// 0 at the end of the stream.
    fn receive(&self, into: &mut [u8]) -> Result<usize, Failure> {
        loop {
            match recv(&self.stream, &mut *into, RecvFlags::empty()) {
                Ok((received, _)) => return Ok(received),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait(PollFlags::IN)?,
                Err(Errno::CONNRESET) => return Ok(0),
                Err(errno) => return Err(Failure::System("reading from the stream", errno)),
            }
        }
    }

    /// Whether there still is somebody to write to.
    fn write(&self, mut rest: &[u8]) -> Result<bool, Failure> {
        let _whole = lock(&self.output);
        while !rest.is_empty() {
            match send(&self.stream, rest, SendFlags::NOSIGNAL) {
                Ok(sent) => rest = &rest[sent..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT)?,
                Err(Errno::PIPE | Errno::CONNRESET) => return Ok(false),
                Err(errno) => return Err(Failure::System("writing to the stream", errno)),
            }
        }
        Ok(true)
    }

    /// For sockets that do not wait by themselves.
    fn wait(&self, for_what: PollFlags) -> Result<(), Failure> {
        match poll(&mut [PollFd::new(&self.stream, for_what)], None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(Failure::System("waiting for the stream", errno)),
        }
    }
}

/// Ends the session with the thread that panics, for others would wait for its stream for ever.
struct EndIfPanicking<'a>(&'a Session);

impl Drop for EndIfPanicking<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.end(Some(Failure::Broken));
        }
    }
}

/// The length of the message that `bytes` begin with, if all of it is there and it is as long as a header at least.
fn whole(bytes: &[u8]) -> Option<usize> {
    let length = u32::from_le_bytes(*bytes.first_chunk()?) as usize;
    (length >= IN_HEADER && bytes.len() >= length).then_some(length)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
