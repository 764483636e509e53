//! The other transport of the protocol: virtio-fs, as a device of vhost-user, whose queues are in the guest's memory.
//!
//! QEMU is at the other end of a socket and says where the memory and the queues are (`front`); what the guest asks then
//! comes by them alone (`ring`), a message for each chain of descriptors. A message is copied out of the guest's memory
//! before anything of it is looked at, for the guest can change it at any time, and goes to the same broker as that of a
//! stream. Threads take turns as they do there: one waits for the next request of a queue while the others answer, and
//! there are never more requests at work than threads, nor more memory than two messages for each.
//!
//! What is no message ends the session, and the guest is answered EIO from then on (`refuse`): it has no other way to
//! learn of it, and would wait. Only a guest that has broken its own queue waits, for that share.

mod front;
pub mod ring;

use crate::broker::Broker;
use crate::confine;
use crate::serve::{Failure, MOST_THREADS};
use crate::wire::reply;
use crate::wire::request::{Malformed, Operation};
use ring::{Ring, Taken};
use rustix::io::Errno;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One for what is not answered, which must not wait behind the rest, and one for requests.
const RINGS: usize = 2;
/// Most descriptors of one, as QEMU has it.
pub const RING_SIZE: u16 = 1024;

/// A device at one end of a socket.
pub struct Device(Arc<Shared>);

struct Shared {
    stream: UnixStream,
    rings: [Ring; RINGS],
    setup: Mutex<front::Setup>,
    serving: AtomicBool,
    halted: AtomicBool,
    gone: AtomicBool,
}

/// The threads of one call of `serve`, and why they end.
#[derive(Default)]
struct Serving {
    ended: AtomicBool,
    failure: Mutex<Option<Failure>>,
}

impl Device {
    /// At one end of a connected stream socket of Unix, at whose other end is QEMU. A thread is made that says
    /// what it asks, until the socket ends; the guest waits meanwhile for `serve`.
    pub fn open(stream: OwnedFd) -> rustix::io::Result<Self> {
        use rustix::net::{sockopt, AddressFamily, SocketType};
        if sockopt::socket_type(&stream)? != SocketType::STREAM
            || sockopt::socket_domain(&stream)? != AddressFamily::UNIX
        {
            return Err(Errno::PROTOTYPE);
        }
        let errno = |error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        let stream = UnixStream::from(stream);
        stream.set_nonblocking(false).map_err(errno)?;
        let theirs = stream.try_clone().map_err(errno)?;
        let shared = Arc::new(Shared {
            stream,
            rings: [Ring::new()?, Ring::new()?],
            setup: Mutex::default(),
            serving: AtomicBool::new(false),
            halted: AtomicBool::new(false),
            gone: AtomicBool::new(false),
        });
        let device = Self(shared.clone());
        let thread = std::thread::Builder::new().name("microsandbox-fs".into());
        let spawned = thread.spawn(move || {
            let _end = EndAtLast(&shared);
            // It opens no file at all.
            if confine::from_all().is_ok() {
                front::run(theirs, &shared);
            }
        });
        spawned.map_err(errno)?;
        Ok(device)
    }

    /// Answers what the guest asks until QEMU is gone, or `stop` or `halt` is called; then nothing is open or known any more.
    /// Threads are made and confined for it, and ended with it: one for what is not answered, and 1 to
    /// `MOST_THREADS`. EBUSY while there is another.
    pub fn serve(&self, broker: &Broker, threads: usize) -> Result<(), Failure> {
        let served = self.work(Some(broker), threads);
        broker.reset();
        served
    }

    /// Answers EIO to everything until QEMU is gone or `stop` is called.
    pub fn refuse(&self) -> Result<(), Failure> {
        // What is broken stays so: nothing more is to be said of it.
        while !self.0.is_gone() {
            match self.work(None, 1) {
                Err(Failure::Ring(_) | Failure::Malformed(_)) => {}
                done => return done,
            }
        }
        Ok(())
    }

    /// Ends `serve` from another thread, for good: the guest waits for `refuse`.
    pub fn halt(&self) {
        self.0.halted.store(true, Ordering::Release);
        self.0.rings.iter().for_each(Ring::wake);
    }

    /// Ends it from another thread, whatever that waits for but a system call on a file.
    pub fn stop(&self) {
        self.0.end();
    }

    fn work(&self, broker: Option<&Broker>, threads: usize) -> Result<(), Failure> {
        let shared = &*self.0;
        if shared.serving.swap(true, Ordering::AcqRel) {
            return Err(Failure::System("serving a device", Errno::BUSY));
        }
        let serving = Serving::default();
        std::thread::scope(|scope| {
            let counts = [1, threads.clamp(1, MOST_THREADS)];
            for (ring, count) in shared.rings.iter().zip(counts) {
                for number in 0..count {
                    let thread = std::thread::Builder::new().name("microsandbox-fs".into());
                    let work = || {
                        if let Err(failure) = shared.work(ring, broker, &serving) {
                            shared.fail(&serving, failure);
                        }
                    };
                    if let Err(error) = thread.spawn_scoped(scope, work) {
                        if number == 0 {
                            let errno = Errno::from_io_error(&error).unwrap_or(Errno::AGAIN);
                            shared.fail(&serving, Failure::System("starting a thread", errno));
                        }
                        break;
                    }
                }
            }
        });
        shared.serving.store(false, Ordering::Release);
        let failure = lock(&serving.failure).take();
        failure.map_or(Ok(()), Err)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    fn end(&self) {
        self.gone.store(true, Ordering::Release);
        let _ = self.stream.shutdown(Shutdown::Both);
        self.rings.iter().for_each(Ring::wake);
    }

    fn fail(&self, serving: &Serving, failure: Failure) {
        // What goes wrong when there is nobody any more does not matter.
        if !self.is_gone() {
            lock(&serving.failure).get_or_insert(failure);
        }
        serving.ended.store(true, Ordering::Release);
        self.rings.iter().for_each(Ring::wake);
    }

    /// Without a broker all is refused.
    fn work(&self, ring: &Ring, broker: Option<&Broker>, serving: &Serving) -> Result<(), Failure> {
        broker
            .map_or_else(confine::from_all, confine::thread)
            .map_err(|errno| Failure::System("confining a thread", errno))?;
        let halted = || broker.is_some() && self.halted.load(Ordering::Acquire);
        let ended = || self.is_gone() || serving.ended.load(Ordering::Acquire) || halted();
        let (mut taken, mut reply) = (Taken::default(), Vec::new());
        while let Some(request) = ring.take(&ended)? {
            let heard = request.hear(&mut taken);
            let answered = match broker {
                Some(broker) => heard.and_then(|()| answer(broker, taken.message(), &mut reply)),
                None => {
                    refuse(taken.message(), &mut reply);
                    Ok(())
                }
            };
            let failed = answered.is_err();
            if let Err(failure) = answered {
                // Before it is answered, so that nothing that is asked then is done.
                self.fail(serving, failure);
                refuse(taken.message(), &mut reply);
            }
            if reply.len() > taken.room {
                // Its own mistake: what it waits for has no place.
                refuse(taken.message(), &mut reply);
            }
            let said = request.say(&taken, &reply);
            ring.finish(request, said)?;
            if failed {
                break;
            }
        }
        Ok(())
    }
}

fn answer(broker: &Broker, message: &[u8], reply: &mut Vec<u8>) -> Result<(), Failure> {
    // One that is lost would be waited for.
    let answered = catch_unwind(AssertUnwindSafe(|| broker.answer(message, reply)));
    match answered {
        Ok(answered) => answered.map_err(Failure::Malformed),
        Err(_) => Err(Failure::Broken),
    }
}

/// EIO, if what begins so has an answer.
fn refuse(message: &[u8], reply: &mut Vec<u8>) {
    reply.clear();
    let opcode = message.get(4..8).and_then(|bytes| bytes.try_into().ok());
    let unique = message.get(8..16).and_then(|bytes| bytes.try_into().ok());
    if let (Some(opcode), Some(unique)) = (opcode, unique) {
        if !Operation::silent(u32::from_le_bytes(opcode)) {
            reply::begin(reply);
            reply::finish(reply, u64::from_le_bytes(unique), Err(Errno::IO));
        }
    }
}

/// Whatever becomes of the thread that talks to QEMU, nobody waits for it.
struct EndAtLast<'a>(&'a Shared);

impl Drop for EndAtLast<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

fn malformed(what: &'static str) -> Failure {
    Failure::Malformed(Malformed(what))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
