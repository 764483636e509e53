//! A queue in the guest's memory: chains of descriptors, each a request and the place for its answer. Whatever is written
//! there may be wrong, and may change while it is read.

use super::{lock, malformed, RING_SIZE};
use crate::serve::Failure;
use crate::wire::{MAX_MESSAGE, OUT_HEADER};
use rustix::event::{eventfd, poll, EventfdFlags, PollFd, PollFlags};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex};
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub type Memory = GuestMemoryMmap<()>;

/// Most bytes of an answer: as many as a READ has, and its header.
const MOST_ROOM: usize = MAX_MESSAGE;
/// How often an empty queue is looked at that says it is none.
const TRIES: usize = 8;
/// Where the header of a request has what only a stream's carrier may set, and the guest's kernel leaves 0.
const PADDING: std::ops::Range<usize> = 38..40;

pub struct Ring {
    /// Who has it takes the next request, and waits for it.
    turn: Mutex<()>,
    state: Mutex<State>,
    /// Nothing is at work.
    quiet: Condvar,
    wake: OwnedFd,
}

struct State {
    queue: Queue,
    memory: Option<Arc<Memory>>,
    kick: Option<Arc<OwnedFd>>,
    call: Option<OwnedFd>,
    enabled: bool,
    /// It is there and whole: told by QEMU, and not found broken since.
    started: bool,
    at_work: usize,
}

/// A request that was taken and has not been answered.
pub struct Request {
    chain: DescriptorChain<Arc<Memory>>,
    memory: Arc<Memory>,
}

/// What a thread has of a request.
#[derive(Default)]
pub struct Taken {
    bytes: Vec<u8>,
    length: usize,
    places: Vec<(GuestAddress, usize)>,
    /// Bytes that an answer may have.
    pub room: usize,
}

impl Taken {
    pub fn message(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Request {
    /// Copies the message out of the guest's memory. If it is none, what was read of it is there, for the place of its
    /// answer is looked for all the same.
    pub fn hear(&self, taken: &mut Taken) -> Result<(), Failure> {
        (taken.length, taken.room) = (0, 0);
        taken.places.clear();
        let (mut more, mut wrong) = (true, None);
        for descriptor in self.chain.clone() {
            more = descriptor.has_next();
            let length = descriptor.len() as usize;
            if descriptor.is_write_only() {
                // What lies beyond is never written to.
                let length = length.min(MOST_ROOM - taken.room);
                if length > 0 {
                    taken.places.push((descriptor.addr(), length));
                    taken.room += length;
                }
                continue;
            }
            if wrong.is_some() {
                continue;
            }
            if taken.room > 0 {
                wrong = Some("it goes on after the place for its answer");
                continue;
            }
            let end = taken.length + length;
            if end > MAX_MESSAGE {
                wrong = Some("longer than any request");
                continue;
            }
            if taken.bytes.len() < end {
                taken.bytes.resize(end, 0);
            }
            let into = &mut taken.bytes[taken.length..end];
            let read = self.memory.read_slice(into, descriptor.addr());
            match read {
                Ok(()) => taken.length = end,
                Err(_) => wrong = Some("it is outside of the guest's memory"),
            }
        }
        if more {
            wrong = Some("its descriptors do not end");
        }
        if taken.length >= PADDING.end {
            taken.bytes[PADDING].fill(0);
        }
        wrong.map_or(Ok(()), |what| Err(malformed(what)))
    }

    /// Writes the answer into its place; how many bytes are there then.
    pub fn say(&self, taken: &Taken, reply: &[u8]) -> u32 {
        if reply.len() > taken.room {
            return 0;
        }
        let mut rest = reply;
        for (address, length) in &taken.places {
            let (now, after) = rest.split_at(rest.len().min(*length));
            if self.memory.write_slice(now, *address).is_err() {
                return 0;
            }
            rest = after;
        }
        reply.len() as u32
    }
}

impl Ring {
    pub fn new() -> rustix::io::Result<Self> {
        let queue = Queue::new(RING_SIZE).map_err(|_| Errno::INVAL)?;
        Ok(Self {
            turn: Mutex::default(),
            state: Mutex::new(State {
                queue,
                memory: None,
                kick: None,
                call: None,
                enabled: false,
                started: false,
                at_work: 0,
            }),
            quiet: Condvar::new(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// Lets whoever waits look again.
    pub fn wake(&self) {
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        self.quiet.notify_all();
    }

    /// The next request, once there is one; `None` when it has `ended`.
    pub fn take(&self, ended: &impl Fn() -> bool) -> Result<Option<Request>, Failure> {
        let _turn = lock(&self.turn);
        loop {
            if ended() {
                return Ok(None);
            }
            let kick = {
                if let Some(request) = self.look()? {
                    return Ok(Some(request));
                }
                let state = lock(&self.state);
                state.kick.clone().filter(|_| state.runs())
            };
            self.wait(kick.as_deref())?;
        }
    }

    /// The next request, if there is one.
    pub fn look(&self) -> Result<Option<Request>, Failure> {
        lock(&self.state).take()
    }

    fn wait(&self, kick: Option<&OwnedFd>) -> Result<(), Failure> {
        let wake = PollFd::new(&self.wake, PollFlags::IN);
        let woken = match kick {
            None => poll(&mut [wake], None),
            Some(kick) => {
                let mut both = [wake, PollFd::new(kick, PollFlags::IN)];
                let woken = poll(&mut both, None);
                let said = both[1].revents();
                if said.contains(PollFlags::IN) {
                    let _ = rustix::io::read(kick, &mut [0; 8]);
                } else if !said.is_empty() {
                    return Err(self.broken("it cannot be waited for"));
                }
                woken
            }
        };
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        match woken {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(Failure::System("waiting for the guest", errno)),
        }
    }

    /// Gives a request back, with as many bytes of an answer.
    pub fn finish(&self, request: Request, said: u32) -> Result<(), Failure> {
        let mut state = lock(&self.state);
        state.at_work -= 1;
        if state.at_work == 0 {
            self.quiet.notify_all();
        }
        if !state.started {
            return Ok(());
        }
        let head = request.chain.head_index();
        let memory = &*request.memory;
        let given = state.queue.add_used(memory, head, said);
        match given.and_then(|()| state.queue.needs_notification(memory)) {
            Ok(true) => {
                if let Some(call) = &state.call {
                    let _ = rustix::io::write(call, &1u64.to_ne_bytes());
                }
                Ok(())
            }
            Ok(false) => Ok(()),
            Err(_) => Err(state.broken("a request is none of its own")),
        }
    }

    fn broken(&self, what: &'static str) -> Failure {
        lock(&self.state).broken(what)
    }

    // ---------------------------------------------------------------------------------- what QEMU says of it

    pub fn set_memory(&self, memory: Arc<Memory>) {
        lock(&self.state).memory = Some(memory);
    }

    pub fn set_event_index(&self, enabled: bool) {
        lock(&self.state).queue.set_event_idx(enabled);
    }

    pub fn set_size(&self, size: u16) -> Option<()> {
        lock(&self.state).queue.try_set_size(size).ok()
    }

    pub fn set_addresses(&self, table: u64, available: u64, used: u64) -> Option<()> {
        let queue = &mut lock(&self.state).queue;
        queue.try_set_desc_table_address(GuestAddress(table)).ok()?;
        let available = GuestAddress(available);
        queue.try_set_avail_ring_address(available).ok()?;
        queue.try_set_used_ring_address(GuestAddress(used)).ok()
    }

    pub fn set_next(&self, next: u16) {
        lock(&self.state).queue.set_next_avail(next);
    }

    pub fn set_call(&self, call: Option<OwnedFd>) {
        lock(&self.state).call = call;
    }

    pub fn set_enabled(&self, enabled: bool) {
        lock(&self.state).enabled = enabled;
        self.wake();
    }

    /// Everything has been said; `kick` is readable whenever there is something new.
    pub fn start(&self, kick: OwnedFd) -> Option<()> {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        let memory = state.memory.as_deref()?;
        state.queue.set_ready(true);
        if !state.queue.is_valid(memory) {
            return None;
        }
        let used = state
            .queue
            .used_idx(memory, std::sync::atomic::Ordering::Acquire);
        state.queue.set_next_used(used.ok()?.0);
        state.kick = Some(Arc::new(kick));
        state.started = true;
        drop(guard);
        self.wake();
        Some(())
    }

    /// Takes nothing more and waits for what is at work, unless it has `ended`; where it would go on.
    pub fn stop(&self, ended: impl Fn() -> bool) -> u16 {
        let mut state = lock(&self.state);
        state.enabled = false;
        // It is finished all the same.
        while state.at_work > 0 && !ended() {
            let waited = self.quiet.wait(state);
            state = waited.unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        (state.started, state.kick, state.call) = (false, None, None);
        state.queue.set_ready(false);
        let next = state.queue.next_avail();
        drop(state);
        self.wake();
        next
    }
}

impl State {
    fn runs(&self) -> bool {
        self.started && self.enabled
    }

    fn broken(&mut self, what: &'static str) -> Failure {
        self.started = false;
        Failure::Ring(what)
    }

    fn take(&mut self) -> Result<Option<Request>, Failure> {
        let Some(memory) = self.memory.clone().filter(|_| self.runs()) else {
            return Ok(None);
        };
        // Something may come between the two looks, but not so that there is nothing again.
        for _ in 0..TRIES {
            match self
                .queue
                .iter(memory.clone())
                .map(|mut chains| chains.next())
            {
                Ok(Some(chain)) => {
                    if self.queue.disable_notification(&*memory).is_err() {
                        return Err(self.broken("it is outside of the guest's memory"));
                    }
                    self.at_work += 1;
                    return Ok(Some(Request { chain, memory }));
                }
                Ok(None) => match self.queue.enable_notification(&*memory) {
                    Ok(true) => {}
                    Ok(false) => return Ok(None),
                    Err(_) => return Err(self.broken("it is outside of the guest's memory")),
                },
                Err(_) => return Err(self.broken("it has more requests than places")),
            }
        }
        Err(self.broken("its requests come and go"))
    }
}

const _: () = assert!(MOST_ROOM > OUT_HEADER);
