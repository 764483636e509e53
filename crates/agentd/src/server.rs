//! The event loop: the port, the children, the timers, and which handler each concerns.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crate::cgroup::Cgroups;
use crate::channel::{Event, Guest, Map};
use crate::configure::{self, Configuration, Disks, Failure, Preparation, World};
use crate::context::{Context, Handler, Token};
use crate::port::{Port, Read};
use crate::shutdown::{close_disks, Shutdown};
use crate::sys::describe;
use crate::sys::epoll::Ready;
use crate::sys::fd::{self, Moved};
use crate::sys::process::{self, Reaped};
use crate::{exec, exec::Spare, log};

/// Roles of the descriptors that belong to no stream; so does the timer of stream 0.
const PORT: u8 = 0;
const SIGNALS: u8 = 1;
/// Data queued for the port above which no more output is read.
const QUEUE: usize = 256 << 10;
/// Reads of the port before other work gets its turn.
const READS: usize = 16;
/// How often control groups of ended execs are looked at while processes in them end.
const SWEEP: Duration = Duration::from_secs(1);

/// What `mount` has made.
enum Root {
    None,
    Mounted(Disks, World),
    Failed,
}

pub struct Server {
    context: Context,
    handlers: HashMap<u32, Box<dyn Handler>>,
    port: Port,
    signals: OwnedFd,
    shutdown: Option<Shutdown>,
    root: Root,
    configure_tried: bool,
    /// Whether the last look at the children found that there are none.
    alone: bool,
}

impl Server {
    pub fn new(port: OwnedFd, signals: OwnedFd, cgroups: Option<Cgroups>) -> io::Result<Server> {
        let context = Context::new(cgroups)?;
        let token = |role| Token::Stream(0, role).number();
        context.epoll.add(&port, token(PORT), true, true)?;
        context.epoll.add(&signals, token(SIGNALS), true, false)?;
        Ok(Server {
            context,
            handlers: HashMap::new(),
            port: Port::new(port),
            signals,
            shutdown: None,
            root: Root::None,
            configure_tried: false,
            alone: true,
        })
    }

    /// Serves until the VM ends.
    pub fn run(mut self) -> ! {
        let mut events = Vec::new();
        loop {
            let now = Instant::now();
            let timeout = match self.has_work() {
                true => Some(Duration::ZERO),
                false => self.context.timers.next(now),
            };
            self.context
                .epoll
                .wait(timeout, |token, ready| events.push((token, ready)));
            for (token, ready) in events.drain(..) {
                match Token::of(token) {
                    Token::Stream(0, PORT) => self.port_ready(ready),
                    Token::Stream(0, _) => self.reap(),
                    Token::Stream(stream, role) => {
                        self.with(stream, |handler, context| {
                            handler.ready(context, role, ready)
                        });
                    }
                    Token::Sink(number) => self.context.drain_sink(number),
                }
            }
            self.fire_timers();
            self.read_port();
            self.pump();
            if self.port.writable {
                self.port.write_from(&mut self.context.guest);
            }
            // When the host has heard of their ends, because it may not want more of this sandbox.
            if let Some(cgroups) = &mut self.context.cgroups {
                cgroups.remove_retired();
            }
            self.advance_shutdown();
            if self.context.guest.is_closed() && self.context.guest.pending().is_empty() {
                self.connection_over();
            }
        }
    }

    fn has_work(&mut self) -> bool {
        let guest = &mut self.context.guest;
        (self.port.readable && guest.wants_input())
            || (!self.context.turns.is_empty() && guest.queued_data() < QUEUE)
            || (self.port.writable && !guest.pending().is_empty())
    }

    /// Calls the handler of a stream, and drops it when it is done.
    fn with(&mut self, stream: u32, call: impl FnOnce(&mut dyn Handler, &mut Context)) {
        if let Some(handler) = self.handlers.get_mut(&stream) {
            call(handler.as_mut(), &mut self.context);
            if handler.done() {
                self.handlers.remove(&stream);
            }
        }
    }

    fn port_ready(&mut self, ready: Ready) {
        self.port.writable |= ready.writable();
        self.port.readable |= ready.readable();
        if ready.hung_up() && self.port.hang_up() {
            self.host_gone();
        }
    }

    /// Before `configure` another host may come (a VM restored from a template has a new one);
    /// after it a guest without its host has no reason to live.
    fn host_gone(&mut self) {
        if self.context.world.is_some() || self.configure_tried {
            log::error("the host has gone");
            process::reset();
        }
        self.context.guest = Guest::new();
        self.handlers.clear();
        self.shutdown = None;
    }

    /// After an ERROR: nothing more can be said. Unconfigured, the next host starts anew.
    fn connection_over(&mut self) {
        if self.context.world.is_some() || self.configure_tried {
            process::reset();
        }
        // Nothing is read until this host hangs up; `host_gone` then makes a new machine.
        self.port.readable = false;
    }

    fn read_port(&mut self) {
        for _ in 0..READS {
            if !self.port.readable || !self.context.guest.wants_input() {
                return;
            }
            match self.port.read_into(&mut self.context.guest) {
                Read::Some => {}
                Read::Nothing => return,
                Read::HungUp => return self.host_gone(),
            }
            while let Some(event) = self.context.guest.next_event() {
                self.receive(event);
            }
        }
    }

    fn receive(&mut self, event: Event) {
        match event {
            Event::Hello(_) => self.hello(),
            Event::Open { stream, request } => self.open(stream, &request),
            Event::Message { stream, message } => {
                self.with(stream, |handler, context| {
                    handler.message(context, &message)
                });
            }
            Event::Cancel { stream } => {
                self.with(stream, |handler, context| handler.cancel(context))
            }
            Event::Data { stream, bytes } => {
                self.with(stream, |handler, context| handler.data(context, bytes));
            }
            Event::Eof { stream } => self.with(stream, |handler, context| handler.eof(context)),
            Event::Credit {
                stream, channel, ..
            } => self.with(stream, |handler, context| handler.credit(context, channel)),
            Event::Error(error) => {
                let message = error.field::<&str>("message").unwrap_or_default();
                log::error(&format!("the host ended the connection: {message}"));
            }
            Event::Broken(error) => log::error(&format!("the host broke the protocol: {error}")),
        }
    }

    fn hello(&mut self) {
        self.handlers.clear();
        let configured = self.context.world.is_some();
        let version = env!("CARGO_PKG_VERSION");
        // The machine has just asked for it.
        let _ = self.context.guest.hello("agentd", version, configured);
    }

    fn open(&mut self, stream: u32, request: &Map) {
        let method = request.field::<&str>("m");
        match method {
            Err(what) => self.fail(stream, "invalid_request", &what.0),
            Ok("ping") => {
                if let Ok(Some(now)) = request.field::<Option<u64>>("time_ns") {
                    configure::keep_clock(now);
                }
                let end = Map::new().with("uptime_ns", uptime_ns());
                self.end(stream, &end);
            }
            Ok(_) if self.shutdown.is_some() => {
                self.fail(stream, "shutting_down", "the guest is shutting down");
            }
            Ok("mount") => self.mount(stream, request),
            Ok("configure") => self.configure(stream, request),
            Ok("exec") => {
                if let Some(exec) = exec::open(&mut self.context, stream, request) {
                    self.alone = false;
                    self.handlers.insert(stream, Box::new(exec));
                }
            }
            Ok("files") => {
                if let Some(helper) = exec::helper::open(&mut self.context, stream, request) {
                    self.alone = false;
                    self.handlers.insert(stream, Box::new(helper));
                }
            }
            Ok("shutdown") => match Shutdown::begin(stream, request) {
                Ok(shutdown) => {
                    self.context.timers.set(stream, Some(shutdown.deadline()));
                    self.shutdown = Some(shutdown);
                    self.handlers
                        .values_mut()
                        .for_each(|handler| handler.shutting_down());
                    self.reap();
                }
                Err(what) => self.fail(stream, "invalid_request", &what.0),
            },
            Ok(_) => self.fail(stream, "unknown_method", "no such method"),
        }
    }

    fn end(&mut self, stream: u32, end: &Map) {
        // The stream was opened by the event that is answered here.
        let _ = self.context.guest.end(stream, end);
    }

    fn fail(&mut self, stream: u32, kind: &str, message: &str) {
        let error = Map::new().with("kind", kind).with("message", message);
        self.end(stream, &Map::new().with("error", error));
    }

    fn mount(&mut self, stream: u32, request: &Map) {
        if self.configure_tried || !matches!(self.root, Root::None) {
            return self.fail(stream, "invalid_request", "it is too late for `mount`");
        }
        let preparation = match Preparation::parse(request) {
            Ok(preparation) => preparation,
            Err(what) => return self.fail(stream, "invalid_request", &what.0),
        };
        self.root = Root::Failed;
        match configure::prepare(&preparation) {
            Ok((world, timings)) => {
                match Spare::new(&mut self.context.cgroups, &world.proc) {
                    Ok(spare) => self.context.spare = Some(spare),
                    Err(error) => log::error(&format!("no spare process: {error}")),
                }
                self.root = Root::Mounted(preparation.disks, world);
                self.end(stream, &Map::new().with("timings", timings));
            }
            Err(failure) => self.fail_step(stream, "mount_failed", &failure),
        }
    }

    fn configure(&mut self, stream: u32, request: &Map) {
        if self.configure_tried {
            return self.fail(
                stream,
                "invalid_request",
                "`configure` has been tried before",
            );
        }
        let configuration = match Configuration::parse(request) {
            Ok(configuration) => configuration,
            Err(what) => return self.fail(stream, "invalid_request", &what.0),
        };
        self.configure_tried = true;
        let mounted = match std::mem::replace(&mut self.root, Root::None) {
            Root::None => None,
            Root::Mounted(disks, world) if disks == configuration.disks => Some(world),
            Root::Mounted(..) => {
                return self.fail(stream, "invalid_request", "other disks have been mounted");
            }
            Root::Failed => {
                return self.fail(stream, "invalid_request", "`mount` has failed before");
            }
        };
        match configure::apply(&configuration, mounted) {
            Ok((world, timings)) => {
                self.context.world = Some(world);
                self.end(stream, &Map::new().with("timings", timings));
            }
            Err(failure) => self.fail_step(stream, "configure_failed", &failure),
        }
    }

    fn fail_step(&mut self, stream: u32, kind: &str, failure: &Failure) {
        let mut error = Map::new()
            .with("kind", kind)
            .with("message", describe(&failure.error).as_str())
            .with("stage", failure.stage);
        if let Some(errno) = failure.error.raw_os_error() {
            error = error.with("errno", i64::from(errno));
        }
        self.end(stream, &Map::new().with("error", error));
    }

    /// Takes every child that has ended: those of streams and, as PID 1, all orphans.
    fn reap(&mut self) {
        let mut scratch = [0; 512];
        while matches!(fd::read(&self.signals, &mut scratch), Moved::Bytes(_)) {}
        self.alone = loop {
            match process::reap() {
                Reaped::Child(pid, status) => {
                    if let Some(spare) = self.context.spare.take_if(|spare| spare.pid == pid) {
                        spare.end(&mut self.context.cgroups);
                    }
                    if let Some(stream) = self.context.children.remove(&pid) {
                        self.with(stream, |handler, context| {
                            handler.child_ended(context, status);
                        });
                    }
                }
                Reaped::Busy => break false,
                Reaped::None => break true,
            }
        };
        let cgroups = self.context.cgroups.as_ref();
        let left = cgroups.is_some_and(Cgroups::has_left);
        if left && !self.context.timers.is_set(0) {
            self.context.timers.set(0, Some(Instant::now() + SWEEP));
        }
    }

    fn fire_timers(&mut self) {
        let now = Instant::now();
        while let Some(stream) = self.context.timers.expired(now) {
            if stream == 0 {
                if let Some(cgroups) = &mut self.context.cgroups {
                    cgroups.sweep();
                }
            }
            self.with(stream, |handler, context| handler.timer(context, now));
        }
    }

    /// Lets streams with output read one chunk each, in turns, while the port takes it.
    fn pump(&mut self) {
        while self.context.guest.queued_data() < QUEUE {
            let Some(stream) = self.context.turns.pop_front() else {
                return;
            };
            let mut again = false;
            self.with(stream, |handler, context| again = handler.pump(context));
            if again {
                self.context.turns.push_back(stream);
            }
        }
    }

    fn advance_shutdown(&mut self) {
        let Some(shutdown) = &mut self.shutdown else {
            return;
        };
        let told = self.handlers.is_empty() && self.context.guest.pending().is_empty();
        let cgroups = self.context.cgroups.as_ref();
        if shutdown.advance(Instant::now(), cgroups, self.alone, told) {
            close_disks(self.context.world.as_ref());
            let stream = shutdown.stream;
            self.end(stream, &Map::new());
            self.port.flush(&mut self.context.guest);
            process::reset();
        }
        let deadline = Some(shutdown.deadline());
        self.context.timers.set(shutdown.stream, deadline);
    }
}

/// Nanoseconds since the kernel started.
fn uptime_ns() -> u64 {
    // SAFETY: all-zero bytes are a valid timespec.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: `time` is writable. This clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
    let part = |number: i64| u64::try_from(number).unwrap_or(0);
    part(time.tv_sec) * 1_000_000_000 + part(time.tv_nsec)
}
