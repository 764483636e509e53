//! What comes through published ports: decided by the ingress rules before the guest sees anything of it, then
//! carried to the guest from its gateway's address.
//!
//! The guest sees the gateway as its peer and not who it really is: many peers (the host's own loopback first of
//! all) have addresses that the guest could not answer.

use super::clock;
use super::core::Core;
use super::datagram::{self, Kind};
use super::line::Line;
use super::metrics::{add, set};
use super::packet::Reject;
use super::publish::{Binding, Listening, Published};
use super::shaper::{self, Waiter};
use super::{reply, tcp};
use crate::address::canonical;
use crate::policy::{Action, Direction, Flow, Verdict};
use rustix::io::Errno;
use socket2::SockRef;
use std::cell::Cell;
use std::collections::hash_map::RandomState;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Notify;

/// The gateway's ports that stand for peers: 32,768 to 65,535.
const FIRST_PORT: u16 = 1 << 15;
/// Datagrams handed to the guest before others have their turn.
const BATCH: usize = 64;
/// How long nobody is accepted when the host has no descriptors or memory left.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// Serve `published` until the stack ends.
pub fn serve(core: &Rc<Core>, published: Vec<Published>) -> io::Result<()> {
    let mut datagrams = false;
    for (index, Published { binding, socket }) in published.into_iter().enumerate() {
        match socket {
            Listening::Tcp(listener) => {
                let listener = TcpListener::from_std(listener)?;
                core.spawn(accept(Rc::clone(core), binding, listener));
            }
            Listening::Udp(socket) => {
                datagrams = true;
                let port = Rc::new(Port {
                    index,
                    binding,
                    socket: UdpSocket::from_std(socket)?,
                    held: Cell::new(false),
                    resumed: Notify::new(),
                });
                core.spawn(collect(Rc::clone(core), port));
            }
        }
    }
    if datagrams {
        core.spawn(rest(Rc::clone(core)));
    }
    Ok(())
}

/// The flow of `peer` to `binding`.
fn ingress(binding: &Binding, peer: SocketAddr) -> Flow {
    Flow {
        direction: Direction::Ingress,
        protocol: binding.protocol,
        address: canonical(peer.ip()),
        port: Some(binding.guest),
        name: None,
    }
}

fn denied(rule: String) -> Verdict {
    let action = Action::Deny;
    Verdict { action, rule }
}

/// The guest and its gateway in the family of `address`; in the other if the guest has no such one.
fn ends(core: &Core, address: IpAddr) -> Option<(IpAddr, IpAddr)> {
    let ends = &core.config.ends;
    let v4 = ends
        .v4
        .map(|(guest, gateway)| (guest.into(), gateway.into()));
    let v6 = ends
        .v6
        .map(|(guest, gateway)| (guest.into(), gateway.into()));
    match address {
        IpAddr::V4(_) => v4.or(v6),
        IpAddr::V6(_) => v6.or(v4),
    }
}

/// Ports of the gateway, one after the other, beginning anywhere: a guest that was restored may still hold those
/// of the stack before.
pub struct PeerPorts(u16);

impl Default for PeerPorts {
    fn default() -> PeerPorts {
        PeerPorts(RandomState::new().build_hasher().finish() as u16)
    }
}

impl PeerPorts {
    /// The next port that is not `taken`. None: all are.
    pub fn next(&mut self, taken: impl Fn(u16) -> bool) -> Option<u16> {
        (0..=u16::MAX - FIRST_PORT).find_map(|_| {
            self.0 = self.0.wrapping_add(1) | FIRST_PORT;
            (!taken(self.0)).then_some(self.0)
        })
    }
}

// -- TCP -------------------------------------------------------------------------------------------

async fn accept(core: Rc<Core>, binding: Binding, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => arrived(&core, &binding, stream, peer),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    tokio::time::sleep(EXHAUSTED).await;
                }
                // That peer took it back; the next is another one.
                _ => tokio::task::yield_now().await,
            },
        }
    }
}

fn arrived(core: &Rc<Core>, binding: &Binding, stream: TcpStream, peer: SocketAddr) {
    // Until the guest has it, every end of it is a reset.
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    let flow = ingress(binding, peer);
    let verdict = core.decide(&flow);
    if verdict.action != Action::Allow {
        return;
    }
    let Some((guest, gateway)) = ends(core, peer.ip()) else {
        return;
    };
    let arrived = match tcp::place(core, gateway, binding.guest) {
        Ok(place) => tcp::arrive(core, place, guest, flow.clone(), verdict, stream),
        Err(rule) => return core.record(&flow, &denied(rule)),
    };
    if let Err(error) = arrived {
        core.record(&flow, &denied(format!("host: {error}")));
    }
}

// -- UDP -------------------------------------------------------------------------------------------

/// A published port of UDP.
pub struct Port {
    index: usize,
    binding: Binding,
    socket: UdpSocket,
    /// What comes waits for its turn.
    held: Cell<bool>,
    resumed: Notify,
}

/// The gateway's address and port, and the port in the guest.
type Place = (IpAddr, u16, u16);
/// The published port, and who sends to it.
type From = (usize, SocketAddr);

/// Whoever sends datagrams to a published port.
pub struct Peer {
    id: u64,
    from: From,
    place: Place,
    guest: IpAddr,
    flow: Flow,
    port: Rc<Port>,
    moved: Cell<Instant>,
    /// Since somebody last looked for one who gives way.
    used: Cell<bool>,
    /// Answers that may not be sent yet.
    waiting: Line<Vec<u8>>,
}

/// All peers of the published ports of UDP.
#[derive(Default)]
pub struct Table {
    peers: HashMap<From, Rc<Peer>>,
    places: HashMap<Place, Rc<Peer>>,
    /// Each peer once (and some that are gone): who gives way when there are too many.
    order: VecDeque<(From, u64)>,
    ports: PeerPorts,
    next: u64,
}

impl Table {
    fn remove(&mut self, peer: &Peer) {
        self.peers.remove(&peer.from);
        self.places.remove(&peer.place);
        peer.waiting.clear();
        let Table { peers, order, .. } = self;
        if order.len() > 2 * peers.len() + 64 {
            order.retain(|(from, id)| peers.get(from).is_some_and(|peer| peer.id == *id));
        }
    }

    /// Forget the peer that rested longest, roughly: those used since the last look get a second chance.
    fn give_way(&mut self) {
        while let Some((from, id)) = self.order.pop_front() {
            let Some(peer) = self.peers.get(&from).filter(|peer| peer.id == id).cloned() else {
                continue;
            };
            if !peer.used.replace(false) {
                return self.remove(&peer);
            }
            self.order.push_back((from, id));
        }
    }
}

/// Hand to the guest what comes, as far as the link has room and the rate allows.
async fn collect(core: Rc<Core>, port: Rc<Port>) {
    let scratch = datagram::scratch(&core);
    loop {
        let room = core.room.notified();
        if port.held.get() {
            port.resumed.notified().await;
            continue;
        }
        if core.full() {
            room.await;
            continue;
        }
        if port.socket.readable().await.is_err() {
            return;
        }
        receive(&core, &port, &mut scratch.borrow_mut());
        core.kick();
        tokio::task::yield_now().await;
    }
}

/// Hand over what is there. All peers of a port have its turns together.
fn receive(core: &Core, port: &Rc<Port>, scratch: &mut [u8]) {
    let pacer = &core.shaper.ingress;
    for _ in 0..BATCH {
        if pacer.allowance(1) == 0 {
            port.held.set(true);
            return shaper::queue(pacer, Waiter::Port(Rc::clone(port)));
        }
        match port.socket.try_recv_from(scratch) {
            Ok((count, from)) => deliver(core, port, from, &scratch[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            // About something sent earlier; nobody waits for it.
            Err(_) => {}
        }
        if core.full() {
            break;
        }
    }
}

/// Its turn to have handed over what came.
pub fn resume(core: &Core, port: &Rc<Port>) {
    port.held.set(false);
    let scratch = datagram::scratch(core);
    receive(core, port, &mut scratch.borrow_mut());
    core.kick();
    port.resumed.notify_one();
}

fn deliver(core: &Core, port: &Rc<Port>, from: SocketAddr, data: &[u8]) {
    let known = core
        .inbound
        .borrow()
        .peers
        .get(&(port.index, from))
        .cloned();
    let Some(peer) = known.or_else(|| open(core, port, from)) else {
        return;
    };
    peer.moved.set(clock::now());
    peer.used.set(true);
    add(&core.metrics.bytes_received, data.len());
    // What is dropped costs nothing: who may not come slows nobody who may.
    core.shaper.ingress.spend(data.len());
    let (gateway, through, to) = peer.place;
    core.answer(reply::udp((gateway, through), (peer.guest, to), data));
}

/// Decide on the first datagram of `from`. None: it is dropped.
fn open(core: &Core, port: &Rc<Port>, from: SocketAddr) -> Option<Rc<Peer>> {
    let to = port.binding.guest;
    let flow = ingress(&port.binding, from);
    let verdict = core.gate.borrow().decide(&flow);
    if verdict.action != Action::Allow {
        // No flow of the guest's own goes to port 0.
        let key = (flow.address, Kind::Udp { guest: to, port: 0 });
        datagram::deny(core, key, &flow, &denied(verdict.rule));
        return None;
    }
    let (guest, gateway) = ends(core, from.ip())?;
    let mut table = core.inbound.borrow_mut();
    while table.peers.len() >= core.config.limits.datagrams.max(1) {
        table.give_way();
    }
    let Table { places, ports, .. } = &mut *table;
    let through = ports.next(|through| {
        let kind = Kind::Udp {
            guest: to,
            port: through,
        };
        places.contains_key(&(gateway, through, to)) || datagram::known(core, (gateway, kind))
    })?;
    table.next += 1;
    let peer = Rc::new(Peer {
        id: table.next,
        from: (port.index, from),
        place: (gateway, through, to),
        guest,
        flow,
        port: Rc::clone(port),
        moved: Cell::new(clock::now()),
        used: Cell::new(true),
        waiting: Line::default(),
    });
    table.order.push_back((peer.from, peer.id));
    table.peers.insert(peer.from, Rc::clone(&peer));
    table.places.insert(peer.place, Rc::clone(&peer));
    set(&core.metrics.peers_now, table.peers.len());
    drop(table);
    core.record(&peer.flow, &verdict);
    Some(peer)
}

/// A datagram of the guest from its port `guest` to `port` of `target`: None if no peer is behind that.
pub fn answer(
    core: &Core,
    target: IpAddr,
    port: u16,
    guest: u16,
    packet: &[u8],
    data: &[u8],
) -> Option<Result<(), Reject>> {
    let peer = core
        .inbound
        .borrow()
        .places
        .get(&(target, port, guest))
        .cloned()?;
    peer.moved.set(clock::now());
    peer.used.set(true);
    let free = peer.waiting.is_empty();
    if free && core.shaper.egress.allowance(data.len().max(1)) > 0 {
        return Some(transmit(core, &peer, data, packet));
    }
    if !peer.waiting.join(data.to_vec()) {
        return Some(Err(Reject::Rate));
    }
    shaper::queue(&core.shaper.egress, Waiter::Peer(peer));
    Some(Ok(()))
}

/// Send `data`, which the packet `about` brought; an empty one is not known any more.
fn transmit(core: &Core, peer: &Peer, data: &[u8], about: &[u8]) -> Result<(), Reject> {
    let (_, to) = peer.from;
    // Past tokio, which believes that a new socket takes nothing until its reactor had a turn.
    match SockRef::from(&peer.port.socket).send_to(data, &to.into()) {
        Ok(count) => {
            add(&core.metrics.bytes_sent, count);
            core.shaper.egress.spend(count);
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Reject::Full),
        Err(_) if about.is_empty() => Ok(()),
        Err(error) => {
            core.unreachable(peer.place.0, datagram::reason(&error), about);
            Ok(())
        }
    }
}

/// Its turn to be sent what waited.
pub fn release(core: &Core, peer: &Rc<Peer>) {
    while let Some(data) = peer.waiting.first() {
        if core.shaper.egress.allowance(data.len().max(1)) == 0 {
            peer.waiting.back(data);
            return shaper::queue(&core.shaper.egress, Waiter::Peer(Rc::clone(peer)));
        }
        if let Err(why) = transmit(core, peer, &data, &[]) {
            core.metrics.dropped(why);
        }
    }
}

/// Forget peers that rest: after once to one and a half times the time that they may.
async fn rest(core: Rc<Core>) {
    let idle = core.config.limits.udp_idle;
    loop {
        tokio::time::sleep(idle / 2).await;
        let now = clock::now();
        forget(&core, |peer| now.duration_since(peer.moved.get()) >= idle);
    }
}

fn forget(core: &Core, goes: impl Fn(&Peer) -> bool) {
    let mut table = core.inbound.borrow_mut();
    let gone: Vec<_> = table
        .peers
        .values()
        .filter(|peer| goes(peer))
        .cloned()
        .collect();
    for peer in gone {
        table.remove(&peer);
    }
    set(&core.metrics.peers_now, table.peers.len());
}

/// End what the policy of now does not allow.
pub fn review(core: &Core) {
    forget(core, |peer| {
        let verdict = core.gate.borrow().decide(&peer.flow);
        let cut = verdict.action != Action::Allow;
        if cut {
            core.record(
                &peer.flow,
                &denied(format!("policy changed: {}", verdict.rule)),
            );
        }
        cut
    });
}
