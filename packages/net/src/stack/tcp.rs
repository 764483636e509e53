//! TCP: a flow is opened towards its target before the guest's SYN is answered, and then carries bytes both
//! ways, each side at the pace of the other.
//!
//! smoltcp looks through all sockets of a set for each packet. Here each flow has a set of its own, found by
//! a hash of its addresses, so that a packet costs the same with one flow as with thousands.

use super::clock;
use super::core::Core;
use super::dns;
use super::endpoint::Endpoint;
use super::inbound::PeerPorts;
use super::limit::Limit;
use super::metrics::{add, set};
use super::naming::{self, Naming, Passed};
use super::packet::{self, Packet, Reject};
use super::prompt::{self, Prompt};
use super::reach;
use super::recovery::Recovery;
use super::reply::{self, Unreachable};
use super::rested::Rested;
use super::shaper::{self, Waiter};
use super::upstream::Upstream;
use crate::policy::{Action, Direction, Flow, Protocol, Verdict};
use rustix::io::Errno;
use smoltcp::iface::{PollIngressSingleResult, PollResult};
use smoltcp::socket::tcp::{Socket, State};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Instant;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// The target, its port and the guest's port. The guest has one address per family.
pub type Key = (IpAddr, u16, u16);

/// A SYN with every option that there is room for; one with data has no business here (no fast open).
const LARGEST_SYN: usize = 40 + 60;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// All TCP flows.
#[derive(Default)]
pub struct Table {
    entries: HashMap<Key, Entry>,
    /// By age, those whose handshake is not over.
    half_open: BTreeMap<u64, Key>,
    /// Connections of peers that the guest has not answered.
    arriving: HashSet<u64>,
    peer_ports: PeerPorts,
    /// Those to which the packets just read belong.
    touched: Vec<Rc<Tcp>>,
    rested: Rested,
    next: u64,
}

enum Entry {
    Opening(Opening),
    Open(Rc<Tcp>),
}

struct Opening {
    id: u64,
    /// The guest's last SYN.
    syn: Vec<u8>,
    flow: Flow,
    verdict: Verdict,
    task: AbortHandle,
}

/// A flow whose target has been reached.
pub struct Tcp {
    key: Key,
    id: u64,
    flow: Flow,
    upstream: Upstream,
    inner: RefCell<Inner>,
    touched: Cell<bool>,
    blocked: Cell<bool>,
    /// It is among those that owe an acknowledgement.
    indebted: Cell<bool>,
    done: Cell<bool>,
    /// What the task of the flow should wait for, what it does wait for (None: it is running), and how to wake it.
    wants: Cell<Wants>,
    armed: Cell<Option<Wants>>,
    changed: Notify,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
struct Wants {
    read: bool,
    write: bool,
    deadline: Option<Instant>,
}

struct Inner {
    endpoint: Endpoint,
    verdict: Verdict,
    /// None: nothing that the client states matters.
    naming: Option<Naming>,
    /// The policy or the clock ended it: not a byte more passes.
    cut: bool,
    established: bool,
    guest_finished: bool,
    upstream_finished: bool,
    /// The guest's end was passed on.
    passed_on: bool,
    limit: Limit,
    recovery: Recovery,
    prompt: Prompt,
    /// When the guest last said something, or was asked to.
    heard: Instant,
    began: Instant,
    moved: Instant,
}

/// A segment of the guest. Its checksum is looked at here and nowhere else.
pub fn segment(core: &Rc<Core>, packet: &Packet<'_>) -> Result<(), Reject> {
    let segment = packet.payload;
    let head: [u8; 20] = *segment.first_chunk().ok_or(Reject::Malformed)?;
    let from = u16::from_be_bytes([head[0], head[1]]);
    let to = u16::from_be_bytes([head[2], head[3]]);
    let flags = head[13];
    if from == 0 || to == 0 {
        return Err(Reject::Malformed);
    }
    if packet::checksum(packet.source, packet.target, packet::TCP, segment) != 0 {
        return Err(Reject::Checksum);
    }
    let key = (packet.target, to, from);
    let begins = flags & (SYN | ACK | RST | FIN) == SYN;
    let mut table = core.tcp.borrow_mut();
    let Table {
        entries, touched, ..
    } = &mut *table;
    match entries.get_mut(&key) {
        Some(Entry::Open(tcp)) => {
            tcp.feed(core, packet.bytes);
            if !tcp.touched.replace(true) {
                touched.push(Rc::clone(tcp));
            }
            return Ok(());
        }
        Some(Entry::Opening(opening)) if begins && packet.bytes.len() <= LARGEST_SYN => {
            packet.bytes.clone_into(&mut opening.syn);
            return Ok(());
        }
        // Only the next number after the SYN's is the guest's own word (RFC 5961, 3.2).
        Some(Entry::Opening(opening)) if flags & RST != 0 && follows(&opening.syn, head) => {
            opening.task.abort();
            let id = opening.id;
            table.half_open.remove(&id);
            table.entries.remove(&key);
            set(&core.metrics.tcp_now, table.entries.len());
            return Ok(());
        }
        Some(Entry::Opening(_)) => return Err(Reject::Stray),
        None => {}
    }
    if begins {
        table.rested.remove(key);
    } else if table
        .rested
        .has(key, clock::now(), core.config.limits.time_wait)
    {
        drop(table);
        let repeated = reply::acknowledge(packet.source, packet.target, segment);
        return repeated
            .map(|answer| core.answer(answer))
            .ok_or(Reject::Stray);
    }
    drop(table);
    if begins && packet.bytes.len() <= LARGEST_SYN {
        open(core, key, packet);
        return Ok(());
    }
    refuse(core, packet.source, packet.target, segment);
    Err(Reject::Stray)
}

/// Whether the segment with `head` is the next of a guest that sent `syn`, a whole packet.
fn follows(syn: &[u8], head: [u8; 20]) -> bool {
    let number = |head: &[u8]| {
        head.get(4..8)
            .map(|word| [word[0], word[1], word[2], word[3]])
    };
    let first = segment_of(syn).and_then(number).map(u32::from_be_bytes);
    let next = number(&head).map(u32::from_be_bytes);
    first.map(|first| first.wrapping_add(1)) == next
}

fn refuse(core: &Core, source: IpAddr, target: IpAddr, segment: &[u8]) {
    if let Some(reset) = reply::reset(source, target, segment) {
        core.answer(reset);
    }
}

/// What a batch of packets of the guest changed.
pub fn settle(core: &Rc<Core>) {
    let touched = std::mem::take(&mut core.tcp.borrow_mut().touched);
    for tcp in touched {
        tcp.touched.set(false);
        tcp.pump(core);
    }
    unblock(core);
}

/// Let flows go on that waited for the link, as far as it has room.
pub fn unblock(core: &Rc<Core>) {
    while !core.full() {
        let Some(tcp) = core.blocked.borrow_mut().pop_front() else {
            return;
        };
        tcp.blocked.set(false);
        tcp.pump(core);
    }
}

fn open(core: &Rc<Core>, key: Key, packet: &Packet<'_>) {
    let flow = core.egress(Protocol::Tcp, key.0, Some(key.1));
    let for_resolver = key.1 == dns::PORT;
    let verdict = match for_resolver {
        true => Verdict {
            action: Action::Allow,
            rule: "dns: answered by the resolver".to_owned(),
        },
        false => core.decide(&flow),
    };
    if verdict.action == Action::Deny {
        return refuse(core, packet.source, packet.target, packet.payload);
    }
    make_room(core);
    if core.tcp.borrow().entries.len() >= core.config.limits.connections {
        let verdict = Verdict {
            action: Action::Deny,
            rule: format!(
                "limit: {} TCP flows at a time",
                core.config.limits.connections
            ),
        };
        core.record(&flow, &verdict);
        return refuse(core, packet.source, packet.target, packet.payload);
    }
    let mut table = core.tcp.borrow_mut();
    table.next += 1;
    let id = table.next;
    // Now, for what was decided on: an address that stands for a name may lead elsewhere later.
    let address = (!for_resolver).then(|| core.upstream(key.0));
    let task = core.spawn(connect(Rc::clone(core), key, id, address));
    table.half_open.insert(id, key);
    let opening = Opening {
        id,
        syn: packet.bytes.to_vec(),
        flow,
        verdict,
        task,
    };
    table.entries.insert(key, Entry::Opening(opening));
    add(&core.metrics.tcp_opened, 1);
    set(&core.metrics.tcp_now, table.entries.len());
}

/// The oldest flow without a whole handshake gives way: a guest that floods harms its own old SYNs only,
/// and those it repeats.
fn make_room(core: &Rc<Core>) {
    let oldest = {
        let limits = &core.config.limits;
        // Never all connections, unless there are very few: a flood leaves room for the flows that are open.
        let most = limits.half_open.min((limits.connections / 2).max(8));
        let mut table = core.tcp.borrow_mut();
        if table.half_open.len() < most {
            return;
        }
        let Some((id, key)) = table.half_open.pop_first() else {
            return;
        };
        match table.entries.get(&key) {
            Some(Entry::Opening(opening)) if opening.id == id => {
                opening.task.abort();
                table.entries.remove(&key);
                None
            }
            Some(Entry::Open(tcp)) if tcp.id == id => Some(Rc::clone(tcp)),
            _ => None,
        }
    };
    if let Some(tcp) = oldest {
        tcp.finish(core, false);
    }
}

/// Reach the target, which is at `address` or else the resolver, answer the SYN accordingly, and see the flow
/// to its end.
async fn connect(core: Rc<Core>, key: Key, id: u64, address: Option<IpAddr>) {
    let reached = match address {
        None => dns::stream(&core, key.0),
        Some(address) => {
            core.shaper.opening().await;
            let flow = core.egress(Protocol::Tcp, key.0, Some(key.1));
            reach::reach(&core, &flow, address).await
        }
    };
    let opening = {
        let mut table = core.tcp.borrow_mut();
        match table.entries.remove(&key) {
            Some(Entry::Opening(opening)) if opening.id == id => opening,
            // The guest took it back, or it gave way, and somebody else is here now.
            Some(other) => {
                table.entries.insert(key, other);
                return;
            }
            None => return,
        }
    };
    let flows = core.tcp.borrow().entries.len();
    let ready = reached.and_then(|upstream| Ok((upstream, Endpoint::new(flows, &core.spares)?)));
    match ready {
        Ok((upstream, endpoint)) => {
            let Opening { flow, verdict, .. } = opening;
            let tcp = Tcp::new(&core, key, upstream, endpoint, id, flow, verdict);
            // Fails for port 0 only, with which no flow begins.
            let _ = tcp.inner.borrow_mut().socket().listen((key.0, key.1));
            core.gate.borrow().began(key.0);
            let entry = Entry::Open(Rc::clone(&tcp));
            core.tcp.borrow_mut().entries.insert(key, entry);
            tcp.feed(&core, &opening.syn);
            tcp.pump(&core);
            core.kick();
            tcp.run(&core).await;
        }
        Err(error) => {
            let mut table = core.tcp.borrow_mut();
            table.half_open.remove(&id);
            set(&core.metrics.tcp_now, table.entries.len());
            drop(table);
            add(&core.metrics.failed, 1);
            core.gate.borrow().missed(key.0);
            failed(&core, key, &opening.syn, &error);
            core.kick();
        }
    }
}

/// A number and a key for a connection of a peer from `gateway` to the guest's `port`. An error says what limit it
/// meets.
pub fn place(core: &Core, gateway: IpAddr, port: u16) -> Result<(u64, Key), String> {
    let limits = &core.config.limits;
    let mut table = core.tcp.borrow_mut();
    if table.entries.len() >= limits.connections {
        return Err(format!("limit: {} TCP flows at a time", limits.connections));
    }
    // Apart from those that the guest opens: peers cannot make these give way.
    if table.arriving.len() >= limits.half_open {
        let most = limits.half_open;
        return Err(format!(
            "limit: {most} connections that the guest has not answered"
        ));
    }
    let Table {
        entries,
        peer_ports,
        ..
    } = &mut *table;
    let through = peer_ports.next(|through| entries.contains_key(&(gateway, through, port)));
    let through = through.ok_or("limit: the gateway has no port left for this one")?;
    table.next += 1;
    Ok((table.next, (gateway, through, port)))
}

/// Connect a peer to the `guest`, at the place that was made for it.
pub fn arrive(
    core: &Rc<Core>,
    (id, key): (u64, Key),
    guest: IpAddr,
    flow: Flow,
    verdict: Verdict,
    stream: TcpStream,
) -> io::Result<()> {
    let endpoint = Endpoint::new(core.tcp.borrow().entries.len(), &core.spares)?;
    let upstream = Upstream::over(stream)?;
    let tcp = Tcp::new(core, key, upstream, endpoint, id, flow, verdict);
    {
        let inner = &mut *tcp.inner.borrow_mut();
        let socket = inner.endpoint.socket();
        let connected = core.drive(None, |interface, _| {
            socket.connect(interface.context(), (guest, key.2), (key.0, key.1))
        });
        connected.map_err(|error| io::Error::other(error.to_string()))?;
    }
    core.gate.borrow().began(key.0);
    let mut table = core.tcp.borrow_mut();
    table.arriving.insert(id);
    table.entries.insert(key, Entry::Open(Rc::clone(&tcp)));
    add(&core.metrics.tcp_opened, 1);
    set(&core.metrics.tcp_now, table.entries.len());
    drop(table);
    let core = Rc::clone(core);
    Rc::clone(&core).spawn(async move {
        tcp.pump(&core);
        core.kick();
        tcp.run(&core).await;
    });
    Ok(())
}

/// Tell the guest why its target was not reached.
fn failed(core: &Core, key: Key, syn: &[u8], error: &io::Error) {
    let why = match Errno::from_io_error(error) {
        Some(Errno::CONNREFUSED | Errno::CONNRESET) => {
            if let (Some((guest, _)), Some(segment)) = (core.ends(key.0), segment_of(syn)) {
                refuse(core, guest, key.0, segment);
            }
            return;
        }
        Some(Errno::NETUNREACH) => Unreachable::Network,
        Some(Errno::ACCESS | Errno::PERM) => Unreachable::Prohibited,
        _ => Unreachable::Host,
    };
    core.unreachable(key.0, why, syn);
}

/// The segment in a packet without extensions.
fn segment_of(packet: &[u8]) -> Option<&[u8]> {
    match packet.first()? >> 4 {
        4 => packet.get(20..),
        _ => packet.get(40..),
    }
}

impl Tcp {
    fn new(
        core: &Core,
        key: Key,
        upstream: Upstream,
        endpoint: Endpoint,
        id: u64,
        flow: Flow,
        verdict: Verdict,
    ) -> Rc<Tcp> {
        let now = clock::now();
        upstream.pace(&core.shaper);
        let naming = match &upstream {
            Upstream::Tcp(_) if flow.direction == Direction::Egress => Some(Naming::default()),
            _ => None,
        };
        Rc::new(Tcp {
            key,
            id,
            flow,
            upstream,
            inner: RefCell::new(Inner {
                endpoint,
                verdict,
                naming,
                cut: false,
                established: false,
                guest_finished: false,
                upstream_finished: false,
                passed_on: false,
                limit: Limit::default(),
                recovery: Recovery::default(),
                prompt: Prompt::default(),
                heard: now,
                began: now,
                moved: now,
            }),
            touched: Cell::new(false),
            blocked: Cell::new(false),
            indebted: Cell::new(false),
            done: Cell::new(false),
            wants: Cell::default(),
            armed: Cell::new(None),
            changed: Notify::new(),
        })
    }

    /// A packet of the guest for this flow.
    fn feed(self: &Rc<Self>, core: &Core, packet: &[u8]) {
        let inner = &mut *self.inner.borrow_mut();
        inner.heard = clock::now();
        let waits = inner.prompt.heard(packet, inner.heard);
        inner.socket().set_ack_delay(waits.then_some(prompt::DELAY));
        if waits {
            core.debts.note(self, &self.indebted);
        }
        let packet = &*inner.limit.cut(packet);
        let taken = inner.take(core, packet);
        // What the link had no room for is lost; the socket knows nothing of it.
        if !matches!(taken, PollIngressSingleResult::None) {
            let state = inner.socket().state();
            inner.recovery.heard(state, packet);
        }
    }

    /// Acknowledge what is not answered yet, if it has waited long enough.
    pub fn settle_debt(self: &Rc<Self>, core: &Rc<Core>) {
        self.indebted.set(false);
        if self.done.get() {
            return;
        }
        let (late, owes) = {
            let prompt = &mut self.inner.borrow_mut().prompt;
            (prompt.late(clock::now()), prompt.owes())
        };
        if owes {
            core.debts.note(self, &self.indebted);
        }
        if late {
            self.pump(core);
        }
    }

    /// It may move bytes that had to wait for the rate.
    pub fn turn(self: &Rc<Self>, core: &Rc<Core>) {
        self.pump(core);
        core.kick();
    }

    /// Wait for the upstream side, the clock, or word of the others, until the flow is over.
    async fn run(self: &Rc<Self>, core: &Rc<Core>) {
        while !self.done.get() {
            let wants = self.wants.get();
            self.armed.set(Some(wants));
            let interest = match (wants.read, wants.write) {
                (true, true) => Some(Interest::READABLE | Interest::WRITABLE),
                (true, false) => Some(Interest::READABLE),
                (false, true) => Some(Interest::WRITABLE),
                (false, false) => None,
            };
            let deadline = wants.deadline.unwrap_or_else(clock::now);
            tokio::select! {
                () = self.changed.notified() => {}
                _ = self.upstream.ready(interest.unwrap_or(Interest::READABLE)), if interest.is_some() => {}
                () = tokio::time::sleep_until(deadline.into()), if wants.deadline.is_some() => {}
            }
            self.armed.set(None);
            if !self.done.get() {
                self.pump(core);
                core.kick();
            }
        }
    }

    /// Move what can be moved both ways, and say what has to happen before more can.
    fn pump(self: &Rc<Self>, core: &Rc<Core>) {
        if self.done.get() {
            return;
        }
        let now = clock::now();
        let mut wants = Wants::default();
        let mut inner = self.inner.borrow_mut();
        inner.note(core, self.id);
        inner.expire(core, now);
        if inner.recovery.late(now) {
            for told in inner.recovery.words() {
                inner.take(core, &told);
            }
            if let Some(question) = inner.recovery.question() {
                core.answer(question);
            }
        }
        self.upstream.release();
        wants.write = self.to_upstream(core, &mut inner, now);
        wants.read = self.to_guest(core, &mut inner, now);
        if inner.naming.as_ref().is_some_and(Naming::is_waiting) {
            wants.write = self.to_upstream(core, &mut inner, now);
        }
        let (read, write) = self.upstream.held();
        if read {
            wants.read = false;
            shaper::queue(&core.shaper.ingress, Waiter::Tcp(Rc::clone(self)));
        }
        if write {
            wants.write = false;
            shaper::queue(&core.shaper.egress, Waiter::Tcp(Rc::clone(self)));
        }
        let blocked = inner.send(core);
        inner.note(core, self.id);
        if blocked {
            if !self.blocked.replace(true) {
                core.blocked.borrow_mut().push_back(Rc::clone(self));
            }
        } else if let Some(clean) = inner.over() {
            drop(inner);
            return self.finish(core, clean);
        }
        wants.deadline = inner.deadline(core, blocked);
        drop(inner);
        self.wants.set(wants);
        if let Some(armed) = self.armed.get() {
            let later = match (armed.deadline, wants.deadline) {
                (Some(armed), Some(wanted)) => wanted < armed,
                (None, Some(_)) => true,
                (_, None) => false,
            };
            if later || (armed.read, armed.write) != (wants.read, wants.write) {
                self.changed.notify_one();
            }
        }
    }

    /// The guest's bytes and its end. True if the upstream side has to become writable first.
    fn to_upstream(&self, core: &Core, inner: &mut Inner, now: Instant) -> bool {
        if inner.cut {
            return false;
        }
        let write = |bytes: &[u8]| {
            let count = self.upstream.write(bytes)?;
            add(&core.metrics.bytes_sent, count);
            Ok(count)
        };
        let finished = inner.guest_finished;
        let socket = inner.endpoint.socket();
        let waiting = socket.recv_queue();
        let passed = match &mut inner.naming {
            Some(naming) => {
                let decided = (&self.flow, &inner.verdict);
                naming.pass(core, decided, socket, &write, finished)
            }
            None => naming::pass_all(socket, &write),
        };
        if socket.recv_queue() < waiting {
            inner.moved = now;
        }
        let rest = socket.recv_queue() > 0 || inner.naming.as_ref().is_some_and(Naming::holds);
        match passed {
            Ok(Passed::Blocked) => return true,
            Ok(Passed::Done) => {}
            Ok(Passed::Denied) | Err(_) => {
                inner.abort();
                return false;
            }
        }
        if finished && !rest && !inner.passed_on {
            inner.passed_on = true;
            self.upstream.finish();
        }
        false
    }

    /// The target's bytes and its end. True if it has to become readable first.
    fn to_guest(&self, core: &Core, inner: &mut Inner, now: Instant) -> bool {
        if inner.cut {
            return false;
        }
        let socket = inner.endpoint.socket();
        let naming = &mut inner.naming;
        while !inner.upstream_finished && socket.can_send() {
            let read = socket.send(|space| match self.upstream.read(space) {
                Ok(count) => {
                    if let Some(naming) = naming {
                        naming.hear(&space[..count]);
                    }
                    (count, Ok(count))
                }
                Err(error) => (0, Err(error)),
            });
            match read {
                Ok(Ok(0)) => {
                    inner.upstream_finished = true;
                    inner.moved = now;
                    socket.close();
                }
                Ok(Ok(count)) => {
                    inner.moved = now;
                    inner.prompt.answered(now);
                    add(&core.metrics.bytes_received, count);
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(_)) | Err(_) => {
                    inner.abort();
                    return false;
                }
            }
        }
        false
    }

    /// The flow is over. Unless it ended `clean`, its target sees a reset.
    fn finish(&self, core: &Core, clean: bool) {
        if self.done.replace(true) {
            return;
        }
        if !clean {
            self.upstream.reset();
        }
        let mut table = core.tcp.borrow_mut();
        table.half_open.remove(&self.id);
        table.arriving.remove(&self.id);
        if matches!(table.entries.get(&self.key), Some(Entry::Open(tcp)) if tcp.id == self.id) {
            table.entries.remove(&self.key);
        }
        set(&core.metrics.tcp_now, table.entries.len());
        if clean {
            let lasting = core.config.limits.time_wait;
            table.rested.add(self.key, clock::now(), lasting);
        }
        core.gate.borrow().ended(self.key.0);
        self.changed.notify_one();
    }

    /// Why the policy of now does not allow the flow any more; None if it does.
    fn denied(&self, core: &Core) -> Option<Verdict> {
        if matches!(self.upstream, Upstream::Local(_)) {
            return None;
        }
        let mut inner = self.inner.borrow_mut();
        inner.verdict = core.gate.borrow().decide(&self.flow);
        let inner = &*inner;
        match &inner.naming {
            Some(naming) => naming.denied(core, &self.flow, &inner.verdict),
            None => (inner.verdict.action == Action::Deny).then(|| inner.verdict.clone()),
        }
    }
}

impl Inner {
    fn socket(&mut self) -> &mut Socket<'static> {
        self.endpoint.socket()
    }

    /// The guest gets a reset. What smoltcp still held for the target is of no more use.
    fn abort(&mut self) {
        self.cut = true;
        self.guest_finished = false;
        self.socket().abort();
    }

    /// Note what the state of the guest's side says.
    fn note(&mut self, core: &Core, id: u64) {
        match self.socket().state() {
            State::Established | State::FinWait1 | State::FinWait2 => {}
            State::CloseWait | State::Closing | State::LastAck | State::TimeWait => {
                self.guest_finished = true;
            }
            _ => return,
        }
        if !self.established {
            self.established = true;
            let mut table = core.tcp.borrow_mut();
            table.half_open.remove(&id);
            table.arriving.remove(&id);
        }
    }

    /// Give up a handshake or a flow that rested too long.
    fn expire(&mut self, core: &Core, now: Instant) {
        let limits = &core.config.limits;
        if self.established && now.duration_since(self.heard) >= limits.keepalive {
            self.heard = now;
            if let Some(probe) = self.recovery.probe() {
                core.answer(probe);
            }
        }
        let since = now.duration_since(self.moved);
        if since >= limits.tcp_idle || (!self.established && since >= limits.handshake) {
            self.abort();
        }
    }

    /// Let the socket have a packet of the guest.
    fn take(&mut self, core: &Core, packet: &[u8]) -> PollIngressSingleResult {
        let before = self.socket().recv_queue();
        let (taken, said) = core.drive(Some(packet), |interface, port| {
            let sockets = self.endpoint.sockets();
            let taken = interface.poll_ingress_single(core.now(), port, sockets);
            (taken, port.said())
        });
        let count = self.socket().recv_queue().saturating_sub(before);
        self.limit.took(count);
        if let Some(said) = said {
            self.limit.told(said);
        }
        taken
    }

    /// Send what there is to send. True if the link has no room for all.
    fn send(&mut self, core: &Core) -> bool {
        core.drive(None, |interface, port| loop {
            if port.full() {
                return true;
            }
            let sent = interface.poll_egress(core.now(), port, self.endpoint.sockets());
            if let Some(said) = port.said() {
                self.limit.told(said);
            }
            if sent == PollResult::None {
                return false;
            }
        })
    }

    /// Whether nothing is left to do, and if so whether both sides ended in order.
    fn over(&mut self) -> Option<bool> {
        let rest = self.socket().recv_queue();
        match self.socket().state() {
            State::Closed | State::Listen => {
                let clean = self.guest_finished && self.upstream_finished;
                (!clean || (rest == 0 && self.passed_on)).then_some(clean)
            }
            // Both ends are known to both sides, once the guest's was acknowledged; the link loses nothing that would
            // have to be repeated.
            State::TimeWait => (rest == 0 && self.passed_on && !self.prompt.owes()).then_some(true),
            _ => None,
        }
    }

    /// When the flow has to be looked at even if nothing happens.
    fn deadline(&mut self, core: &Core, blocked: bool) -> Option<Instant> {
        let limits = &core.config.limits;
        let rest = match self.established {
            true => self.moved + limits.tcp_idle,
            false => self.began + limits.handshake,
        };
        let since = self.naming.as_ref().and_then(Naming::since);
        let naming = since.map(|since| since + limits.naming);
        // What is owed has a clock of its own.
        let blocked = blocked || self.prompt.owes();
        let timer = match blocked {
            true => None,
            false => core.drive(None, |interface, _| {
                interface.poll_at(core.now(), self.endpoint.sockets())
            }),
        };
        let timer = timer.map(|at| core.when(at));
        let socket = self.endpoint.socket();
        let lost = match blocked {
            true => None,
            false => self.recovery.due(socket, timer),
        };
        let alive = self.established.then(|| self.heard + limits.keepalive);
        [Some(rest), naming, timer, lost, alive]
            .into_iter()
            .flatten()
            .min()
    }
}

/// End the flows that the policy of now does not allow.
pub fn review(core: &Rc<Core>) {
    let mut cut = Vec::new();
    let mut stopped = Vec::new();
    {
        let mut table = core.tcp.borrow_mut();
        let mut ended = Vec::new();
        for (key, entry) in &mut table.entries {
            match entry {
                Entry::Open(tcp) => {
                    let denied = tcp.denied(core);
                    cut.extend(denied.map(|verdict| (Rc::clone(tcp), verdict)));
                }
                Entry::Opening(opening) if key.1 != dns::PORT => {
                    opening.verdict = core.gate.borrow().decide(&opening.flow);
                    if opening.verdict.action == Action::Deny {
                        ended.push((*key, opening.id));
                    }
                }
                _ => {}
            }
        }
        for (key, id) in ended {
            table.half_open.remove(&id);
            if let Some(Entry::Opening(opening)) = table.entries.remove(&key) {
                opening.task.abort();
                stopped.push((key, opening));
            }
        }
        set(&core.metrics.tcp_now, table.entries.len());
    }
    for (key, opening) in stopped {
        core.record(&opening.flow, &opening.verdict);
        if let (Some((guest, _)), Some(segment)) = (core.ends(key.0), segment_of(&opening.syn)) {
            refuse(core, guest, key.0, segment);
        }
    }
    for (tcp, verdict) in cut {
        let rule = format!("policy changed: {}", verdict.rule);
        let action = Action::Deny;
        core.record(&tcp.flow, &Verdict { action, rule });
        tcp.upstream.reset();
        tcp.inner.borrow_mut().abort();
        tcp.pump(core);
    }
}
