//! UDP and ICMP echo: one connected socket of the host per flow, so that answers come from the target only and
//! its refusals are known.

use super::clock;
use super::core::Core;
use super::line::Line;
use super::metrics::{add, set};
use super::packet::{Packet, Reject};
use super::path;
use super::reach;
use super::reply::{self, Unreachable};
use super::shaper::{self, Waiter};
use crate::policy::{Action, Flow, Protocol, Verdict};
use rustix::io::Errno;
use socket2::{Domain, SockRef, Socket, Type};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::Notify;

/// The larger of the two, a datagram of UDP in IPv4, has 65,507 bytes.
const LARGEST: usize = 65_535;
/// What is kept of a packet of the guest, for an ICMP error about it: IPv6 and UDP headers, and 8 bytes.
const ABOUT: usize = 56;
/// Datagrams handed to the guest before others have their turn.
const BATCH: usize = 64;
/// How long a denied target is not put on record again.
const QUIET: Duration = Duration::from_secs(1);
const QUIET_TARGETS: usize = 256;
/// How long an echo may take.
const ECHO_IDLE: Duration = Duration::from_secs(30);
/// A refusal alone does not make a socket readable.
const ANSWERS: Interest = Interest::READABLE.add(Interest::ERROR);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The guest's port and the target's.
    Udp {
        guest: u16,
        port: u16,
    },
    Echo {
        identifier: u16,
    },
}

pub type Key = (IpAddr, Kind);

/// All flows of datagrams.
pub struct Table {
    flows: HashMap<Key, Rc<Datagrams>>,
    /// Each flow once (and some that ended): who gives way when there are too many.
    order: VecDeque<(Key, u64)>,
    next: u64,
    quiet: HashMap<Key, Instant>,
    scratch: Rc<RefCell<Vec<u8>>>,
}

impl Default for Table {
    fn default() -> Table {
        Table {
            flows: HashMap::new(),
            order: VecDeque::new(),
            next: 0,
            quiet: HashMap::new(),
            scratch: Rc::new(RefCell::new(vec![0; LARGEST])),
        }
    }
}

pub struct Datagrams {
    key: Key,
    id: u64,
    flow: Flow,
    socket: UdpSocket,
    /// The head of the guest's last packet.
    about: RefCell<Vec<u8>>,
    moved: Cell<Instant>,
    /// Since somebody last looked for one who gives way.
    used: Cell<bool>,
    ended: Notify,
    over: Cell<bool>,
    /// Whether the host may cut what is sent, as its socket was told last.
    splits: Cell<Option<bool>>,
    waiting: Line<Waiting>,
    /// Answers wait for their turn.
    held: Cell<bool>,
    resumed: Notify,
}

/// A datagram that may not be sent yet.
struct Waiting {
    data: Vec<u8>,
    splits: bool,
}

impl AsRef<[u8]> for Waiting {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

/// A place for one datagram, whoever receives it.
pub fn scratch(core: &Core) -> Rc<RefCell<Vec<u8>>> {
    Rc::clone(&core.datagrams.borrow().scratch)
}

/// Whether the guest has such a flow.
pub fn known(core: &Core, key: Key) -> bool {
    core.datagrams.borrow().flows.contains_key(&key)
}

/// Send a datagram of the guest on its way.
pub fn send(core: &Rc<Core>, packet: &Packet<'_>, kind: Kind, data: &[u8]) -> Result<(), Reject> {
    let key = (packet.target, kind);
    let known = core.datagrams.borrow().flows.get(&key).cloned();
    let known = match known {
        Some(known) => known,
        None => match open(core, packet, key) {
            Ok(opened) => opened,
            Err(why) => {
                core.unreachable(packet.target, why, packet.bytes);
                return Ok(());
            }
        },
    };
    known.moved.set(clock::now());
    known.used.set(true);
    {
        let mut about = known.about.borrow_mut();
        about.clear();
        about.extend_from_slice(&packet.bytes[..packet.bytes.len().min(ABOUT)]);
    }
    let free = known.waiting.is_empty();
    if free && core.shaper.egress.allowance(data.len().max(1)) > 0 {
        return known.transmit(core, data, packet.splits, packet.bytes);
    }
    known.hold(core, data, packet.splits)
}

pub fn reason(error: &io::Error) -> Unreachable {
    match Errno::from_io_error(error) {
        Some(Errno::CONNREFUSED) => Unreachable::Port,
        Some(Errno::NETUNREACH) => Unreachable::Network,
        Some(Errno::ACCESS | Errno::PERM) => Unreachable::Prohibited,
        _ => Unreachable::Host,
    }
}

fn open(core: &Rc<Core>, packet: &Packet<'_>, key: Key) -> Result<Rc<Datagrams>, Unreachable> {
    let flow = match key.1 {
        Kind::Udp { port, .. } => core.egress(Protocol::Udp, key.0, Some(port)),
        Kind::Echo { .. } => core.egress(Protocol::Icmp, key.0, None),
    };
    let verdict = core.gate.borrow().decide(&flow);
    if verdict.action != Action::Allow {
        let action = Action::Deny;
        let rule = verdict.rule;
        deny(core, key, &flow, &Verdict { action, rule });
        return Err(Unreachable::Prohibited);
    }
    if reach::proxied(core, &flow) {
        let (action, rule) = (
            Action::Deny,
            "built-in: the proxy carries TCP only".to_owned(),
        );
        deny(core, key, &flow, &Verdict { action, rule });
        return Err(Unreachable::Prohibited);
    }
    let socket = match connect(core.upstream(key.0), key.1) {
        Ok(socket) => socket,
        Err(error) => {
            add(&core.metrics.failed, 1);
            let why = reason(&error);
            if why == Unreachable::Prohibited && matches!(key.1, Kind::Echo { .. }) {
                let rule = "host: no ping sockets for this user (net.ipv4.ping_group_range)";
                let (action, rule) = (Action::Deny, rule.to_owned());
                deny(core, key, &flow, &Verdict { action, rule });
            }
            return Err(why);
        }
    };
    core.record(&flow, &verdict);
    let mut table = core.datagrams.borrow_mut();
    while table.flows.len() >= core.config.limits.datagrams.max(1) {
        table.give_way();
    }
    table.next += 1;
    let opened = Rc::new(Datagrams {
        key,
        id: table.next,
        flow,
        socket,
        about: RefCell::new(Vec::with_capacity(packet.bytes.len().min(ABOUT))),
        moved: Cell::new(clock::now()),
        used: Cell::new(true),
        ended: Notify::new(),
        over: Cell::new(false),
        splits: Cell::new(None),
        waiting: Line::default(),
        held: Cell::new(false),
        resumed: Notify::new(),
    });
    table.order.push_back((key, opened.id));
    table.flows.insert(key, Rc::clone(&opened));
    add(&core.metrics.datagrams_opened, 1);
    set(&core.metrics.datagrams_now, table.flows.len());
    core.gate.borrow().began(key.0);
    let (core, flow) = (Rc::clone(core), Rc::clone(&opened));
    Rc::clone(&core).spawn(async move {
        flow.run(&core).await;
        flow.end(&core);
    });
    Ok(opened)
}

/// Put a denial on record, unless the same one was just now: a program that repeats itself fills no ring.
pub fn deny(core: &Core, key: Key, flow: &Flow, verdict: &Verdict) {
    let now = clock::now();
    {
        let quiet = &mut core.datagrams.borrow_mut().quiet;
        let known = quiet.get(&key);
        if known.is_some_and(|since| now.duration_since(*since) < QUIET) {
            return;
        }
        if quiet.len() >= QUIET_TARGETS {
            quiet.clear();
        }
        quiet.insert(key, now);
    }
    core.record(flow, verdict);
}

fn connect(address: IpAddr, kind: Kind) -> io::Result<UdpSocket> {
    let domain = match address {
        IpAddr::V4(_) => Domain::IPV4,
        IpAddr::V6(_) => Domain::IPV6,
    };
    let (protocol, port) = match (kind, address) {
        (Kind::Udp { port, .. }, _) => (socket2::Protocol::UDP, port),
        (Kind::Echo { .. }, IpAddr::V4(_)) => (socket2::Protocol::ICMPV4, 0),
        (Kind::Echo { .. }, IpAddr::V6(_)) => (socket2::Protocol::ICMPV6, 0),
    };
    let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.connect(&SocketAddr::new(address, port).into())?;
    UdpSocket::from_std(socket.into())
}

impl Table {
    /// End the flow that rested longest, roughly: those used since the last look get a second chance.
    fn give_way(&mut self) {
        while let Some((key, id)) = self.order.pop_front() {
            let Some(flow) = self.flows.get(&key).filter(|flow| flow.id == id) else {
                continue;
            };
            if flow.used.replace(false) {
                self.order.push_back((key, id));
                continue;
            }
            flow.cut();
            self.flows.remove(&key);
            return;
        }
    }
}

impl Datagrams {
    /// Send a datagram, which the packet `about` brought.
    fn transmit(&self, core: &Core, data: &[u8], splits: bool, about: &[u8]) -> Result<(), Reject> {
        if self.splits.replace(Some(splits)) != Some(splits) {
            // A host that cannot be told cuts what is too large, as it would by itself.
            let _ = path::may_split(&self.socket, self.key.0, splits);
        }
        // What the socket returns first may be the answer to an earlier datagram. The guest is told each thing once: twice
        // would count against its next datagram.
        let mut told = None;
        for _ in 0..2 {
            // Past tokio, which believes that a new socket takes nothing until its reactor had a turn.
            match SockRef::from(&self.socket).send(data) {
                Ok(count) => {
                    add(&core.metrics.bytes_sent, count);
                    core.shaper.egress.spend(count);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(Reject::Full)
                }
                Err(error) if told == Some(error.kind()) => {}
                Err(error) => {
                    self.failed(core, &error, about);
                    told = Some(error.kind());
                }
            }
        }
        Ok(())
    }

    /// Tell the guest what the host says about the packet `about`.
    fn failed(&self, core: &Core, error: &io::Error, about: &[u8]) {
        if Errno::from_io_error(error) == Some(Errno::MSGSIZE) {
            let mtu = path::mtu(&self.socket, self.key.0);
            return core.too_big(self.key.0, mtu, about);
        }
        core.unreachable(self.key.0, reason(error), about);
    }

    /// Keep a datagram until it may be sent.
    fn hold(self: &Rc<Self>, core: &Core, data: &[u8], splits: bool) -> Result<(), Reject> {
        let data = data.to_vec();
        if !self.waiting.join(Waiting { data, splits }) {
            return Err(Reject::Rate);
        }
        shaper::queue(&core.shaper.egress, Waiter::Datagrams(Rc::clone(self)));
        Ok(())
    }

    /// Its turn to send what waited.
    pub fn release(self: &Rc<Self>, core: &Core) {
        let about = self.about.borrow();
        while let Some(Waiting { data, splits }) = self.waiting.first() {
            if core.shaper.egress.allowance(data.len().max(1)) == 0 {
                self.waiting.back(Waiting { data, splits });
                return shaper::queue(&core.shaper.egress, Waiter::Datagrams(Rc::clone(self)));
            }
            if let Err(why) = self.transmit(core, &data, splits, &about) {
                core.metrics.dropped(why);
            }
        }
    }

    /// Its turn to have answers handed over.
    pub fn resume(self: &Rc<Self>, core: &Core) {
        if self.over.get() {
            return;
        }
        self.held.set(false);
        let scratch = Rc::clone(&core.datagrams.borrow().scratch);
        self.collect(core, &mut scratch.borrow_mut());
        core.kick();
        self.resumed.notify_one();
    }

    /// Nothing more goes or comes.
    fn cut(&self) {
        self.over.set(true);
        self.waiting.clear();
        self.ended.notify_one();
    }

    /// Hand answers to the guest until nothing came or went for long enough.
    async fn run(self: &Rc<Self>, core: &Rc<Core>) {
        let idle = match self.key.1 {
            Kind::Udp { .. } => core.config.limits.udp_idle,
            Kind::Echo { .. } => ECHO_IDLE,
        };
        let scratch = scratch(core);
        loop {
            let end = self.moved.get() + idle;
            let room = core.room.notified();
            let full = core.full();
            tokio::select! {
                () = self.ended.notified() => return,
                () = room, if full => continue,
                () = self.resumed.notified() => continue,
                ready = self.socket.ready(ANSWERS), if !full && !self.held.get() => {
                    if ready.is_err() {
                        return;
                    }
                }
                () = tokio::time::sleep_until(end.into()) => {
                    if self.moved.get() + idle <= clock::now() {
                        return;
                    }
                    continue;
                }
            }
            self.collect(core, &mut scratch.borrow_mut());
            core.kick();
            tokio::task::yield_now().await;
        }
    }

    /// Hand over what is there, as far as the link has room.
    fn collect(self: &Rc<Self>, core: &Core, scratch: &mut [u8]) {
        let pacer = &core.shaper.ingress;
        for _ in 0..BATCH {
            if pacer.allowance(1) == 0 {
                self.held.set(true);
                return shaper::queue(pacer, Waiter::Datagrams(Rc::clone(self)));
            }
            let mut receive = || {
                let flags = rustix::net::RecvFlags::DONTWAIT;
                let (count, _) = rustix::net::recv(&self.socket, &mut *scratch, flags)?;
                Ok(count)
            };
            // tokio knows the two by themselves only.
            let mut received = self.socket.try_io(Interest::READABLE, &mut receive);
            if matches!(&received, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
                received = self.socket.try_io(Interest::ERROR, receive);
            }
            match received {
                Ok(count) => {
                    pacer.spend(count);
                    self.deliver(core, &scratch[..count]);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => self.failed(core, &error, &self.about.borrow()),
            }
            if core.full() {
                break;
            }
        }
    }

    fn deliver(&self, core: &Core, data: &[u8]) {
        let Some((guest, _)) = core.ends(self.key.0) else {
            return;
        };
        self.moved.set(clock::now());
        self.used.set(true);
        add(&core.metrics.bytes_received, data.len());
        match self.key.1 {
            Kind::Udp {
                guest: port,
                port: from,
            } => {
                core.answer(reply::udp((self.key.0, from), (guest, port), data));
            }
            Kind::Echo { identifier } => {
                let answer = if guest.is_ipv4() { 0 } else { 129 };
                if data.first() == Some(&answer) && data.len() >= 8 {
                    core.answer(reply::echo(self.key.0, guest, identifier, &data[6..]));
                }
            }
        }
    }

    fn end(&self, core: &Core) {
        self.over.set(true);
        let mut table = core.datagrams.borrow_mut();
        if table
            .flows
            .get(&self.key)
            .is_some_and(|flow| flow.id == self.id)
        {
            table.flows.remove(&self.key);
        }
        let Table { flows, order, .. } = &mut *table;
        // What ended is forgotten now and then, so that the list of who gives way stays short.
        if order.len() > 2 * flows.len() + 64 {
            order.retain(|(key, id)| flows.get(key).is_some_and(|flow| flow.id == *id));
        }
        set(&core.metrics.datagrams_now, flows.len());
        core.gate.borrow().ended(self.key.0);
    }
}

/// End the flows that the policy of now does not allow.
pub fn review(core: &Rc<Core>) {
    let flows: Vec<_> = core.datagrams.borrow().flows.values().cloned().collect();
    for flow in flows {
        let verdict = core.gate.borrow().decide(&flow.flow);
        if verdict.action != Action::Allow {
            let action = Action::Deny;
            let rule = format!("policy changed: {}", verdict.rule);
            core.record(&flow.flow, &Verdict { action, rule });
            core.datagrams.borrow_mut().flows.remove(&flow.key);
            flow.cut();
        }
    }
}
