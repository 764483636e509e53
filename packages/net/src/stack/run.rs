//! A stack as its owner sees it: a thread that ends with its link, and the link with it.

use super::audit::Ring;
use super::cable::{Arrival, Cable};
use super::config::Config;
use super::core::{panic_text, watch, Bell, Core, Parts};
use super::eager;
use super::gate::{Gate, Resolver};
use super::inbound;
use super::link::Reader;
use super::metrics::{add, Metrics};
use super::prompt;
use super::publish::{self, Published};
use super::shaper;
use super::tcp;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};
use tokio::io::Interest;
use tokio::sync::mpsc;
use tokio::task::LocalSet;

/// How a stack ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Its owner stopped it.
    Stopped,
    /// The guest's side closed the link.
    Closed,
    /// Something went wrong; the guest has no network from then on.
    Failed(String),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Stopped => f.write_str("stopped"),
            End::Closed => f.write_str("the guest's side closed the link"),
            End::Failed(why) => f.write_str(why),
        }
    }
}

enum Command {
    Gate(Box<dyn Gate>),
    Stop,
    #[cfg(test)]
    Panic,
    #[cfg(test)]
    Later(std::time::Duration, std::sync::mpsc::Sender<()>),
}

/// A running stack. Dropping it stops it.
pub struct Stack {
    commands: mpsc::UnboundedSender<Command>,
    thread: Option<JoinHandle<()>>,
    metrics: Arc<Metrics>,
    audit: Arc<Mutex<Ring>>,
    end: Arc<Mutex<Option<End>>>,
    ports: Vec<SocketAddr>,
}

impl Stack {
    /// Start a stack on `link`, a connected stream socket or a TAP (see `Cable`). `bell` is called from the stack's thread
    /// when audit records are there to fetch after none were, a moment after the first, and at the end.
    ///
    /// All ports of `config` are bound when it returns. If one cannot be, none is, and the error holds a
    /// `PortUnavailable`.
    pub fn start(
        link: OwnedFd,
        config: Config,
        gate: Box<dyn Gate>,
        resolver: Box<dyn Resolver>,
        bell: Arc<dyn Fn() + Send + Sync>,
    ) -> io::Result<Stack> {
        let cable = Cable::of(link.as_fd())?;
        let published = publish::bind(&config.ports)
            .map_err(|error| io::Error::new(error.error.kind(), error))?;
        let ports = published.iter().map(Published::address);
        let ports = ports.collect::<io::Result<_>>()?;
        let (commands, inbox) = mpsc::unbounded_channel();
        let metrics = Arc::new(Metrics::default());
        let audit = Arc::new(Mutex::new(Ring::new(config.limits.audit)));
        let end = Arc::new(Mutex::new(None));
        let ring = Arc::clone(&bell);
        let parts = Parts {
            gate,
            resolver,
            metrics: Arc::clone(&metrics),
            audit: Arc::clone(&audit),
            bell: Box::new(move || ring()) as Bell,
        };
        let outcome = Arc::clone(&end);
        let down = Down(link.try_clone()?, cable);
        let thread = std::thread::Builder::new()
            .name("msb-net".to_owned())
            .spawn(move || {
                let all = || whole(link, cable, config, parts, published, inbox);
                let ended = catch_unwind(AssertUnwindSafe(all));
                let ended = ended.unwrap_or_else(|panic| {
                    End::Failed(format!("the network stack failed: {}", panic_text(&*panic)))
                });
                drop(down);
                *outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(ended);
                bell();
            })?;
        Ok(Stack {
            commands,
            thread: Some(thread),
            metrics,
            audit,
            end,
            ports,
        })
    }

    /// Decide with `gate` from now on; flows that it does not allow are reset at once.
    pub fn set_gate(&self, gate: Box<dyn Gate>) {
        // A stack that has ended has nothing left to decide.
        let _ = self.commands.send(Command::Gate(gate));
    }

    /// The addresses that its published ports have on the host, in the order of the configuration.
    pub fn ports(&self) -> &[SocketAddr] {
        &self.ports
    }

    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The audit records since the last call.
    pub fn audit(&self) -> Vec<String> {
        self.audit
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// How it ended; None while it runs.
    pub fn end(&self) -> Option<End> {
        self.end
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Close the link and every flow, and wait for the thread.
    pub fn stop(&mut self) {
        let _ = self.commands.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    #[cfg(test)]
    pub fn panic(&self) {
        let _ = self.commands.send(Command::Panic);
    }

    /// Put the clock of the flows forward.
    #[cfg(test)]
    pub fn later(&self, time: std::time::Duration) {
        let (done, told) = std::sync::mpsc::channel();
        let _ = self.commands.send(Command::Later(time, done));
        // A stack that has ended has no clock.
        let _ = told.recv();
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The link goes down with the stack, however that ends and whoever else holds a descriptor of it.
struct Down(OwnedFd, Cable);

impl Drop for Down {
    fn drop(&mut self) {
        self.1.cut(&self.0);
    }
}

fn whole(
    link: OwnedFd,
    cable: Cable,
    config: Config,
    parts: Parts,
    published: Vec<Published>,
    inbox: mpsc::UnboundedReceiver<Command>,
) -> End {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        // For the name of a proxy, which the system resolves.
        .max_blocking_threads(1)
        .build();
    let ended = runtime.and_then(|runtime| {
        let tasks = LocalSet::new();
        let ended = tasks.block_on(&runtime, async {
            let core = Core::new(link, cable, config, parts)?;
            shaper::start(&core);
            let teller = Rc::clone(&core);
            core.spawn(async move { teller.tell().await });
            let collector = Rc::clone(&core);
            core.spawn(async move { prompt::collect(&collector).await });
            let awake = Rc::clone(&core);
            core.spawn(async move { eager::stay(&awake).await });
            inbound::serve(&core, published)?;
            let ended = serve(&core, inbox).await;
            core.forget();
            ended
        });
        // With it go all tasks, and with them all descriptors.
        drop(tasks);
        // Without waiting for the system's resolver, which may take its time.
        runtime.shutdown_background();
        ended
    });
    ended.unwrap_or_else(|error| {
        End::Failed(format!("the link of the network stack failed: {error}"))
    })
}

/// Frames from the link to the flows, and what is queued to the link, until one of them ends.
async fn serve(core: &Rc<Core>, mut inbox: mpsc::UnboundedReceiver<Command>) -> io::Result<End> {
    let mut reader = Reader::default();
    let mut outlet = Outlet::default();
    loop {
        core.flush()?;
        tcp::unblock(core);
        core.flush()?;
        let way_out = outlet.watch(core)?;
        tokio::select! {
            biased;
            () = core.failed.notified() => {
                let why = core.failure().unwrap_or_default();
                return Ok(End::Failed(format!("the network stack failed: {why}")));
            }
            command = inbox.recv() => match command {
                Some(Command::Gate(gate)) => core.regate(gate),
                Some(Command::Stop) | None => return Ok(End::Stopped),
                #[cfg(test)]
                Some(Command::Panic) => {
                    core.spawn(async { panic!("asked to") });
                }
                #[cfg(test)]
                Some(Command::Later(time, done)) => {
                    tokio::time::pause();
                    tokio::time::advance(time).await;
                    tokio::time::resume();
                    let _ = done.send(());
                }
            },
            ready = writable(way_out), if core.pending() => {
                let mut ready = ready?;
                core.flush()?;
                match core.pending() {
                    true => ready.clear_ready(),
                    false => ready.retain_ready(),
                }
            }
            () = core.busy.notified() => {}
            // A device that is gone says so by an error alone.
            ready = core.link().ready(Interest::READABLE | Interest::ERROR) => {
                let mut ready = ready?;
                let Ok(arrival) = ready.try_io(|link| match core.cable().receive(link, &mut reader) {
                    Ok(Arrival::Nothing) => Err(io::ErrorKind::WouldBlock.into()),
                    other => other,
                }) else {
                    continue;
                };
                let more = match arrival? {
                    Arrival::Frames { more } => more,
                    Arrival::End if reader.partial() => {
                        return Ok(End::Failed("the link ended inside a frame".to_owned()));
                    }
                    Arrival::End | Arrival::Nothing => return Ok(End::Closed),
                };
                if !more {
                    ready.clear_ready();
                }
                drop(ready);
                loop {
                    match reader.frame_at() {
                        Ok(Some(place)) => {
                            add(&core.metrics.frames_from_guest, 1);
                            add(&core.metrics.bytes_from_guest, place.len());
                            core.traffic.note(1, place.len() as u64);
                            core.frame(reader.frame(place));
                        }
                        Ok(None) => break,
                        Err(garbage) => return Ok(End::Failed(garbage.to_string())),
                    }
                }
                tcp::settle(core);
                core.flush()?;
                // The flows have their turn between two batches, however fast the guest sends: if there is more.
                if more {
                    tokio::task::yield_now().await;
                }
            }
        }
    }
}

/// The link as one that is waited for until it takes more. Watched for itself and only where that happens: the
/// kernel says of a stream socket that it can be written to whenever its peer has read, which would wake the
/// thread once more for each frame.
#[derive(Default)]
struct Outlet {
    watched: Option<AsyncFd<OwnedFd>>,
    /// Rounds since it was waited for.
    calm: u32,
}

impl Outlet {
    /// Rounds without a wait after which it is no longer watched.
    const CALM: u32 = 256;

    /// What to wait for, if something waits to be written.
    fn watch(&mut self, core: &Core) -> io::Result<Option<&AsyncFd<OwnedFd>>> {
        if core.pending() {
            self.calm = 0;
            if self.watched.is_none() {
                let link = core.link().get_ref().try_clone()?;
                self.watched = Some(watch(link, Interest::WRITABLE)?);
            }
        } else if self.watched.is_some() {
            self.calm += 1;
            if self.calm > Outlet::CALM {
                self.watched = None;
            }
        }
        Ok(self.watched.as_ref())
    }
}

async fn writable(link: Option<&AsyncFd<OwnedFd>>) -> io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
    match link {
        Some(link) => link.writable().await,
        None => std::future::pending().await,
    }
}
