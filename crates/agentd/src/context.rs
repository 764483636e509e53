//! What every stream's handler works with: the channel, readiness, timers, children, the guest.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::cgroup::Cgroups;
use crate::channel::{Guest, Map, DATA_MAX};
use crate::configure::World;
use crate::confine::Confinement;
use crate::exec::{Launch, Spare};
use crate::init::inner_pid;
use crate::sys::epoll::{Epoll, Ready};
use crate::sys::fd::{self, Moved};
use crate::sys::process::Status;

/// One stream's side of the agent. A method of the protocol is one implementation of this.
pub trait Handler {
    fn data(&mut self, _context: &mut Context, _bytes: Vec<u8>) {}
    fn eof(&mut self, _context: &mut Context) {}
    fn message(&mut self, context: &mut Context, message: &Map);
    fn cancel(&mut self, context: &mut Context);
    /// The host may be sent more on `channel`.
    fn credit(&mut self, _context: &mut Context, _channel: u8) {}
    /// A descriptor that was watched under `role` is ready.
    fn ready(&mut self, _context: &mut Context, _role: u8, _ready: Ready) {}
    /// Its turn to send at most one frame of data; false when it has nothing or no credit.
    fn pump(&mut self, _context: &mut Context) -> bool {
        false
    }
    /// The time it had set has come.
    fn timer(&mut self, _context: &mut Context, _now: Instant) {}
    /// Its child has ended.
    fn child_ended(&mut self, _context: &mut Context, _status: Status) {}
    /// Its host is another machine's: what it started goes on without being heard.
    fn disown(&mut self, _context: &mut Context) {}
    /// Every process has been asked to end by SIGTERM.
    fn shutting_down(&mut self) {}
    /// Whether it has sent END and can be dropped.
    fn done(&self) -> bool;
}

/// One deadline per stream.
#[derive(Default)]
pub struct Timers {
    order: BTreeSet<(Instant, u32)>,
    of_stream: HashMap<u32, Instant>,
}

impl Timers {
    /// Replaces the stream's deadline.
    pub fn set(&mut self, stream: u32, deadline: Option<Instant>) {
        let old = match deadline {
            Some(deadline) => self.of_stream.insert(stream, deadline),
            None => self.of_stream.remove(&stream),
        };
        if let Some(old) = old {
            self.order.remove(&(old, stream));
        }
        if let Some(deadline) = deadline {
            self.order.insert((deadline, stream));
        }
    }

    /// Takes a stream whose deadline has come.
    pub fn expired(&mut self, now: Instant) -> Option<u32> {
        let (deadline, stream) = *self.order.first()?;
        if deadline > now {
            return None;
        }
        self.order.pop_first();
        self.of_stream.remove(&stream);
        Some(stream)
    }

    /// Time until the next deadline.
    pub fn next(&self, now: Instant) -> Option<Duration> {
        let (deadline, _) = self.order.first()?;
        Some(deadline.saturating_duration_since(now))
    }

    pub fn is_set(&self, stream: u32) -> bool {
        self.of_stream.contains_key(&stream)
    }
}

/// Outputs of execs that have ended while a descendant still had them open. What comes is thrown
/// away: closing them instead would kill a daemon at its next line of log.
#[derive(Default)]
pub struct Sinks {
    open: HashMap<u64, OwnedFd>,
    count: u64,
}

/// Above this the daemon gets its SIGPIPE after all.
const SINKS_MAX: usize = 4096;

/// What a token of the event loop stands for.
#[derive(Debug, PartialEq, Eq)]
pub enum Token {
    Stream(u32, u8),
    Sink(u64),
}

const SINK: u64 = 1 << 63;

impl Token {
    pub fn number(&self) -> u64 {
        match self {
            Token::Stream(stream, role) => u64::from(*stream) << 8 | u64::from(*role),
            Token::Sink(number) => SINK | number,
        }
    }

    pub fn of(number: u64) -> Token {
        if number & SINK != 0 {
            return Token::Sink(number & !SINK);
        }
        // Both parts were put there by `number`.
        Token::Stream((number >> 8) as u32, number as u8)
    }
}

pub struct Context {
    pub guest: Guest,
    pub epoll: Epoll,
    pub timers: Timers,
    /// Which stream a child belongs to.
    pub children: HashMap<libc::pid_t, u32>,
    /// Streams that may have data to send, each at most once.
    pub turns: VecDeque<u32>,
    /// None on a kernel without them.
    pub cgroups: Option<Cgroups>,
    /// There after `configure`.
    pub world: Option<World>,
    /// Whether programs run in the namespace of an init, where they have other numbers.
    pub has_init: bool,
    /// What everything that is started enters; None in the default profile.
    pub confinement: Option<Rc<Confinement>>,
    /// What children that have not executed their programs yet read and stand on.
    pub launches: HashMap<libc::pid_t, Box<Launch>>,
    /// For the first exec of a machine that was made ready for one.
    pub spare: Option<Spare>,
    sinks: Sinks,
    /// Output is read into this and copied out in its real length.
    scratch: Vec<u8>,
}

impl Context {
    pub fn new(cgroups: Option<Cgroups>) -> io::Result<Context> {
        Ok(Context {
            guest: Guest::new(),
            epoll: Epoll::new()?,
            timers: Timers::default(),
            children: HashMap::new(),
            turns: VecDeque::new(),
            cgroups,
            world: None,
            has_init: false,
            confinement: None,
            launches: HashMap::new(),
            spare: None,
            sinks: Sinks::default(),
            scratch: vec![0; DATA_MAX],
        })
    }

    /// The number of a child as the workload knows it.
    pub fn pid_inside(&self, pid: libc::pid_t) -> libc::pid_t {
        match &self.world {
            Some(world) if self.has_init => inner_pid(pid, &world.proc).unwrap_or(pid),
            _ => pid,
        }
    }

    /// Forgets everything that streams have set: there are none, and their numbers are used again.
    pub fn forget_streams(&mut self) {
        self.guest = Guest::new();
        self.timers = Timers::default();
        self.children.clear();
        self.turns.clear();
    }

    /// Watches a descriptor for a stream.
    pub fn watch(&self, fd: impl AsFd, stream: u32, role: u8, input: bool) -> io::Result<()> {
        let token = Token::Stream(stream, role).number();
        self.epoll.add(fd, token, input, !input)
    }

    /// Reads at most `room` bytes.
    pub fn read(&mut self, fd: &OwnedFd, room: usize) -> Result<Vec<u8>, Moved> {
        let room = room.min(self.scratch.len());
        match fd::read(fd, &mut self.scratch[..room]) {
            Moved::Bytes(count) => Ok(self.scratch[..count].to_vec()),
            other => Err(other),
        }
    }

    /// Goes on reading from a descriptor that nobody wants to hear of any more.
    pub fn sink(&mut self, fd: OwnedFd) {
        if self.sinks.open.len() >= SINKS_MAX {
            return;
        }
        self.sinks.count += 1;
        let number = self.sinks.count;
        let token = Token::Sink(number).number();
        if self.epoll.hand_over(&fd, token).is_ok() {
            self.sinks.open.insert(number, fd);
        }
    }

    /// One read of a sink that is ready.
    pub fn drain_sink(&mut self, number: u64) {
        if let Some(fd) = self.sinks.open.get(&number) {
            if fd::read(fd, &mut self.scratch) == Moved::Gone {
                self.sinks.open.remove(&number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_kernel() {
        for token in [
            Token::Stream(0, 1),
            Token::Stream(u32::MAX, 255),
            Token::Sink(7),
        ] {
            assert_eq!(Token::of(token.number()), token);
        }
    }

    #[test]
    fn a_stream_has_one_deadline() {
        let mut timers = Timers::default();
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        timers.set(1, Some(later));
        timers.set(2, Some(now));
        timers.set(1, Some(now));
        assert_eq!(timers.expired(now), Some(1));
        assert_eq!(timers.expired(now), Some(2));
        assert_eq!(timers.expired(later), None);
        timers.set(3, Some(later));
        timers.set(3, None);
        assert_eq!(timers.next(now), None);
    }
}
