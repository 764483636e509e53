//! The event loop: the port, the children, the timers, and which handler each concerns.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::cgroup::Cgroups;
use crate::channel::{Event, Guest, Map};
use crate::configure::{self, Configuration, Disks, Failure, Preparation, World};
use crate::context::{Context, Handler, Token};
use crate::hold::{self, Held, Role};
use crate::init::{self, Init};
use crate::network::{Card, Network};
use crate::patch::Patch;
use crate::port::{Port, Read};
use crate::shutdown::{close_disks, Shutdown};
use crate::sys::epoll::Ready;
use crate::sys::fd::{self, Moved};
use crate::sys::process::{self, Reaped, Status};
use crate::sys::{describe, shown};
use crate::{exec, exec::Spare, log, metrics};

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
    /// The image's own, if it has been started.
    init: Option<Init>,
    /// What asks processes to end; None: what is usual.
    stop_signal: Option<i32>,
    card: Option<Card>,
    root: Root,
    configure_tried: bool,
    /// Of which the root was made, once there is one.
    disks: Option<Disks>,
    /// Whether the workload of another machine waits for `configure`.
    is_copy: bool,
    /// Whether the last look at the children found that there are none.
    alone: bool,
}

impl Server {
    pub fn new(
        port: OwnedFd,
        signals: OwnedFd,
        cgroups: Option<Cgroups>,
        card: Option<Card>,
    ) -> io::Result<Server> {
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
            init: None,
            stop_signal: None,
            card,
            root: Root::None,
            configure_tried: false,
            disks: None,
            is_copy: false,
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
                cgroups.tidy();
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
            Ok("hold") => self.hold(stream, request),
            Ok("configure") => self.configure(stream, request),
            Ok("exec") => {
                if let Some(exec) = exec::open(&mut self.context, stream, request) {
                    self.alone = false;
                    self.handlers.insert(stream, Box::new(exec));
                }
            }
            Ok("patch") => self.patch(stream, request),
            Ok("network") => self.join_network(stream, request),
            Ok("init") => self.start_init(stream, request),
            Ok("files") => {
                if let Some(helper) = exec::helper::open(&mut self.context, stream, request) {
                    self.alone = false;
                    self.handlers.insert(stream, Box::new(helper));
                }
            }
            Ok("metrics") => match &self.context.world {
                Some(world) => {
                    let end = metrics::measure(world, &self.context, self.handlers.len());
                    self.end(stream, &end);
                }
                None => self.fail(stream, "not_configured", "`configure` comes first"),
            },
            Ok("shutdown") => match Shutdown::begin(stream, request) {
                Ok(shutdown) => self.begin_shutdown(shutdown),
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
        let error = Map::new()
            .with("kind", kind)
            .with("message", shown(message));
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
        match configure::apply(&configuration, mounted, self.card.as_mut(), self.is_copy) {
            Ok((world, timings)) => {
                self.context.world = Some(world);
                self.stop_signal = configuration.options.stop_signal;
                self.context.confinement = configuration.security.confinement().map(Rc::new);
                self.disks = Some(configuration.disks);
                if std::mem::take(&mut self.is_copy) {
                    self.freeze(false);
                }
                self.end(stream, &Map::new().with("timings", timings));
            }
            Err(failure) => self.fail_step(stream, "configure_failed", &failure),
        }
    }

    fn patch(&mut self, stream: u32, request: &Map) {
        if self.context.world.is_none() {
            return self.fail(stream, "not_configured", "`configure` comes first");
        }
        match Patch::parse(request) {
            Err(what) => self.fail(stream, "invalid_request", &what.0),
            Ok(patch) => match patch.apply() {
                Ok(()) => self.end(stream, &Map::new()),
                Err(error) => {
                    let stage = "patch";
                    self.fail_step(stream, "patch_failed", &Failure { stage, error });
                }
            },
        }
    }

    fn join_network(&mut self, stream: u32, request: &Map) {
        if self.context.world.is_none() {
            return self.fail(stream, "not_configured", "`configure` comes first");
        }
        let network = match Network::read(request) {
            Ok(Some(network)) => network,
            Ok(None) => return self.fail(stream, "invalid_request", "`network` is missing"),
            Err(what) => return self.fail(stream, "invalid_request", &what.0),
        };
        match configure::join(&network, self.card.as_mut()) {
            Ok(()) => self.end(stream, &Map::new()),
            Err(error) => {
                let stage = "network";
                self.fail_step(stream, "network_failed", &Failure { stage, error });
            }
        }
    }

    fn start_init(&mut self, stream: u32, request: &Map) {
        let Some(world) = &self.context.world else {
            return self.fail(stream, "not_configured", "`configure` comes first");
        };
        if self.init.is_some() || !self.handlers.is_empty() {
            return self.fail(stream, "invalid_request", "it is too late for `init`");
        }
        if self.context.confinement.is_some() {
            return self.fail(
                stream,
                "invalid_request",
                "no `init` where programs are restricted",
            );
        }
        let request = match init::Request::parse(request) {
            Ok(request) => request,
            Err(what) => return self.fail(stream, "invalid_request", &what.0),
        };
        // It would be outside of the namespace.
        if let Some(spare) = self.context.spare.take() {
            spare.end(&mut self.context.cgroups);
        }
        let group = self.context.cgroups.as_mut().map(Cgroups::create_init);
        let started = group
            .transpose()
            .and_then(|group| Init::start(&request, self.stop_signal, group.as_ref(), &world.proc));
        match started {
            Ok(init) => {
                self.alone = false;
                self.init = Some(init);
                self.context.has_init = true;
                self.end(stream, &Map::new());
            }
            Err(error) => {
                let stage = "init";
                self.fail_step(stream, "init_failed", &Failure { stage, error });
            }
        }
    }

    /// Stands still until the host says whether this is the machine that was held or a copy of it.
    fn hold(&mut self, stream: u32, request: &Map) {
        if self.context.world.is_none() {
            return self.fail(stream, "not_configured", "`configure` comes first");
        }
        let mut held = match Held::new(request) {
            Ok(held) => held,
            Err(what) => return self.fail(stream, "invalid_request", &what.0),
        };
        self.freeze(true);
        // OPENED is the last that is said, so who hears it knows that nothing is under way.
        self.port.flush(&mut self.context.guest);
        let _ = self.context.guest.opened(stream, &Map::new());
        self.port.flush(&mut self.context.guest);
        let Some(release) = self.port.await_release(&mut held) else {
            return self.host_gone();
        };
        match release.role {
            Role::Original => {
                configure::keep_clock(release.time_ns);
                self.context.guest.feed(&release.before);
                self.freeze(false);
                self.end(stream, &Map::new());
            }
            Role::Copy => self.become_copy(),
        }
        self.context.guest.feed(&release.after);
    }

    /// The workload goes on when `configure` has made it somebody else's.
    fn become_copy(&mut self) {
        for (_, mut handler) in self.handlers.drain() {
            handler.disown(&mut self.context);
        }
        self.context.forget_streams();
        if let (Some(disks), Some(world)) = (self.disks.take(), self.context.world.take()) {
            self.root = Root::Mounted(disks, world);
        }
        (self.configure_tried, self.is_copy) = (false, true);
    }

    fn freeze(&self, on: bool) {
        if let Some(cgroups) = &self.context.cgroups {
            cgroups.freeze(on);
            if on && !cgroups.await_frozen(hold::FREEZE) {
                log::error("not all processes have stopped in time");
            }
        }
    }

    /// The namespace of everything that ran is gone, and nothing can be started in it any more.
    fn init_ended(&mut self, init: &Init, status: Status) {
        log::error(&init.told(status));
        if self.shutdown.is_none() {
            self.shutdown = Some(Shutdown::by_itself());
        }
    }

    fn begin_shutdown(&mut self, shutdown: Shutdown) {
        self.shutdown = Some(shutdown);
        // It would wait for a program through every signal whose default is to be ignored.
        if let Some(spare) = self.context.spare.take() {
            spare.end(&mut self.context.cgroups);
        }
        let groups = self.context.children.keys().copied();
        match &self.init {
            // It has its own way with what it has started, and hears of it in `advance_shutdown`.
            Some(_) => groups.for_each(|group| {
                process::signal_group(group, libc::SIGTERM);
                process::signal_group(group, libc::SIGCONT);
            }),
            None => {
                process::signal_all(self.stop_signal.unwrap_or(libc::SIGTERM));
                // What is stopped would hear of it only when it goes on.
                process::signal_all(libc::SIGCONT);
            }
        }
        self.handlers
            .values_mut()
            .for_each(|handler| handler.shutting_down());
        self.reap();
    }

    fn fail_step(&mut self, stream: u32, kind: &str, failure: &Failure) {
        let mut error = Map::new()
            .with("kind", kind)
            .with("message", shown(&describe(&failure.error)))
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
                    self.context.launches.remove(&pid);
                    if let Some(spare) = self.context.spare.take_if(|spare| spare.pid == pid) {
                        spare.end(&mut self.context.cgroups);
                    }
                    if let Some(init) = self.init.take_if(|init| init.pid == pid) {
                        self.init_ended(&init, status);
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
        let now = Instant::now();
        let waits = match (&mut self.init, &self.context.world) {
            (Some(init), Some(world)) => init.ask(&world.proc),
            _ => false,
        };
        let told = self.handlers.is_empty() && self.context.guest.pending().is_empty();
        let cgroups = self.context.cgroups.as_ref();
        if shutdown.advance(now, cgroups, self.alone, told) {
            close_disks(self.context.world.as_ref());
            let stream = shutdown.stream;
            self.end(stream, &Map::new());
            self.port.flush(&mut self.context.guest);
            process::reset();
        }
        let mut deadline = shutdown.deadline();
        if waits {
            deadline = deadline.min(now + init::PATIENCE);
        }
        self.context.timers.set(shutdown.stream, Some(deadline));
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
