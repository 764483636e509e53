//! What the flows of one stack share, and where a frame of the guest goes.

use super::audit;
use super::cable::Cable;
use super::clock;
use super::config::Config;
use super::eager::Traffic;
use super::endpoint::Spares;
use super::fragments::{Fragments, Whole};
use super::gate::{Gate, Resolver};
use super::link::Queue;
use super::metrics::{add, Metrics};
use super::packet::{self, Frame, Packet, Reject, ICMP4, ICMP6, TCP, UDP};
use super::port::Port;
use super::prompt::Debts;
use super::reach::Whereabouts;
use super::reply::{self, Unreachable};
use super::shaper::Shaper;
use super::{datagram, dns, inbound, stand, tcp};
use crate::policy::{Action, Direction, Flow, Protocol, Verdict};
use smoltcp::iface::Interface;
use smoltcp::wire::{HardwareAddress, IpCidr};
use std::any::Any;
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::{poll_fn, Future};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::io::{unix::AsyncFd, Interest};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// How long records gather before their owner is told: once for all, and not while somebody waits for what they are
/// about.
const GATHER: Duration = Duration::from_millis(10);

/// Called when there are audit records to fetch where there were none, from the thread of the stack.
pub type Bell = Box<dyn Fn() + Send>;

/// Lives on the thread of the stack; one borrow of each cell at a time, none across an await.
pub struct Core {
    pub config: Config,
    pub metrics: Arc<Metrics>,
    pub tcp: RefCell<tcp::Table>,
    pub datagrams: RefCell<datagram::Table>,
    pub inbound: RefCell<inbound::Table>,
    pub whereabouts: Whereabouts,
    pub gate: RefCell<Box<dyn Gate>>,
    pub resolver: RefCell<Box<dyn Resolver>>,
    pub questions: RefCell<usize>,
    pub shaper: Rc<Shaper>,
    pub debts: Debts,
    pub spares: Rc<Spares>,
    /// Told when the queue to the guest has room again.
    pub room: Notify,
    /// Flows whose segments wait for that room.
    pub blocked: RefCell<VecDeque<Rc<tcp::Tcp>>>,
    /// Told when the loop of the link has something to write or to unblock.
    pub busy: Notify,
    pub failed: Notify,
    /// Told when the first record is there to fetch.
    news: Notify,
    pub traffic: Traffic,
    failure: RefCell<Option<String>>,
    link: AsyncFd<OwnedFd>,
    cable: Cable,
    queue: RefCell<Queue>,
    fragments: RefCell<Fragments>,
    interface: RefCell<Interface>,
    audit: Arc<Mutex<audit::Ring>>,
    bell: Bell,
    began: Instant,
    datagram_id: RefCell<u32>,
}

/// What a stack is made of besides its configuration.
pub struct Parts {
    pub gate: Box<dyn Gate>,
    pub resolver: Box<dyn Resolver>,
    pub metrics: Arc<Metrics>,
    pub audit: Arc<Mutex<audit::Ring>>,
    pub bell: Bell,
}

impl Core {
    /// `link` is what `cable` says. Needs the reactor of the runtime.
    pub fn new(link: OwnedFd, cable: Cable, config: Config, parts: Parts) -> io::Result<Rc<Core>> {
        let mut queue = Queue::new(config.ends.guest_mac, config.ends.gateway_mac);
        let mut port = Port::new(config.mtu, None, &mut queue);
        let settings = smoltcp::iface::Config::new(HardwareAddress::Ip);
        let start = smoltcp::time::Instant::ZERO;
        let mut interface = Interface::new(settings, &mut port, start);
        // Any address is "ours": a flow answers as whomever the guest called.
        interface.set_any_ip(true);
        interface.update_ip_addrs(|addresses| {
            let v4 = config
                .ends
                .v4
                .map(|(_, gateway)| IpCidr::new(gateway.into(), 32));
            let v6 = config
                .ends
                .v6
                .map(|(_, gateway)| IpCidr::new(gateway.into(), 128));
            addresses.extend(v4.into_iter().chain(v6));
        });
        let routes = interface.routes_mut();
        if let Some((_, gateway)) = config.ends.v4 {
            let _ = routes.add_default_ipv4_route(gateway);
        }
        if let Some((_, gateway)) = config.ends.v6 {
            let _ = routes.add_default_ipv6_route(gateway);
        }
        let link = watch(link, Interest::READABLE)?;
        Ok(Rc::new(Core {
            metrics: parts.metrics,
            tcp: RefCell::default(),
            datagrams: RefCell::default(),
            inbound: RefCell::default(),
            whereabouts: Whereabouts::default(),
            gate: RefCell::new(parts.gate),
            resolver: RefCell::new(parts.resolver),
            questions: RefCell::new(0),
            shaper: Rc::new(Shaper::new(config.limits.rates, config.mtu)),
            debts: Debts::default(),
            spares: Rc::default(),
            room: Notify::new(),
            blocked: RefCell::default(),
            busy: Notify::new(),
            failed: Notify::new(),
            news: Notify::new(),
            traffic: Traffic::default(),
            failure: RefCell::new(None),
            link,
            cable,
            queue: RefCell::new(queue),
            fragments: RefCell::default(),
            interface: RefCell::new(interface),
            audit: parts.audit,
            bell: parts.bell,
            began: clock::now(),
            datagram_id: RefCell::new(0),
            config,
        }))
    }

    pub fn link(&self) -> &AsyncFd<OwnedFd> {
        &self.link
    }

    pub fn cable(&self) -> Cable {
        self.cable
    }

    /// Run `future` beside the others. A panic in it ends the stack: it never goes on with less.
    pub fn spawn(self: &Rc<Core>, future: impl Future<Output = ()> + 'static) -> AbortHandle {
        let core = Rc::clone(self);
        let mut future = Box::pin(future);
        let task = tokio::task::spawn_local(async move {
            let guarded = poll_fn(|context| {
                let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context)));
                match polled {
                    Ok(state) => state.map(Ok),
                    Err(panic) => std::task::Poll::Ready(Err(panic)),
                }
            });
            if let Err(panic) = guarded.await {
                *core.failure.borrow_mut() = Some(panic_text(&*panic));
                core.failed.notify_one();
            }
        });
        task.abort_handle()
    }

    /// What a task that panicked said.
    pub fn failure(&self) -> Option<String> {
        self.failure.borrow().clone()
    }

    /// Let go of the flows, which hold descriptors that their tasks hold too.
    pub fn forget(&self) {
        *self.tcp.borrow_mut() = tcp::Table::default();
        *self.datagrams.borrow_mut() = datagram::Table::default();
        *self.inbound.borrow_mut() = inbound::Table::default();
        self.blocked.borrow_mut().clear();
        self.debts.forget();
        self.shaper.forget();
    }

    // -- Towards the guest ---------------------------------------------------------------------

    /// Write what the link takes now. An error is the end of the link.
    pub fn flush(&self) -> io::Result<()> {
        let mut queue = self.queue.borrow_mut();
        self.cable.send(self.link.get_ref(), &mut queue)?;
        let frames = std::mem::take(&mut queue.frames);
        add(&self.metrics.frames_to_guest, frames as usize);
        let octets = std::mem::take(&mut queue.octets);
        add(&self.metrics.bytes_to_guest, octets as usize);
        if frames > 0 {
            self.traffic.note(frames, octets);
        }
        if !queue.full() {
            self.room.notify_waiters();
        }
        Ok(())
    }

    /// `flush` for a flow: what is left, and an error, are for the loop of the link.
    pub fn kick(&self) {
        let failed = self.flush().is_err();
        if failed || self.pending() || (!self.blocked.borrow().is_empty() && !self.full()) {
            self.busy.notify_one();
        }
    }

    /// Whether something waits for the link.
    pub fn pending(&self) -> bool {
        !self.queue.borrow().pending().is_empty()
    }

    /// Whether flows have to wait for the link.
    pub fn full(&self) -> bool {
        self.queue.borrow().full()
    }

    /// Queue an IP packet for the guest; it is dropped where even answers have no room.
    pub fn answer(&self, packet: Vec<u8>) {
        let mut queue = self.queue.borrow_mut();
        if queue.overfull() {
            return self.metrics.dropped(Reject::Full);
        }
        let id = {
            let mut id = self.datagram_id.borrow_mut();
            *id = id.wrapping_add(1);
            *id
        };
        for piece in reply::fragments(packet, self.config.mtu, id) {
            queue.push_ip(piece.len(), |body| body.copy_from_slice(&piece));
        }
    }

    /// Tell the guest that its packet `about` to `target` went nowhere.
    pub fn unreachable(&self, target: IpAddr, why: Unreachable, about: &[u8]) {
        if let Some((guest, gateway)) = self.ends(target) {
            self.answer(reply::unreachable(gateway, guest, why, about));
        }
    }

    /// Tell the guest that its packet `about` to `target` is larger than the `mtu` of the way.
    pub fn too_big(&self, target: IpAddr, mtu: u32, about: &[u8]) {
        if let Some((guest, gateway)) = self.ends(target) {
            self.answer(reply::too_big(gateway, guest, mtu, about));
        }
    }

    /// The guest and the gateway in the family of `address`.
    pub fn ends(&self, address: IpAddr) -> Option<(IpAddr, IpAddr)> {
        let ends = &self.config.ends;
        match address {
            IpAddr::V4(_) => ends
                .v4
                .map(|(guest, gateway)| (guest.into(), gateway.into())),
            IpAddr::V6(_) => ends
                .v6
                .map(|(guest, gateway)| (guest.into(), gateway.into())),
        }
    }

    /// Where the host's socket for `target` goes: the gateway stands for the host itself.
    pub fn upstream(&self, target: IpAddr) -> IpAddr {
        let target = self.gate.borrow().real(target);
        match self.ends(target) {
            Some((_, gateway)) if gateway == target => match target {
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            },
            _ => target,
        }
    }

    // -- smoltcp -------------------------------------------------------------------------------

    /// The time since the stack began, as smoltcp counts it.
    pub fn now(&self) -> smoltcp::time::Instant {
        smoltcp::time::Instant::from_micros(
            clock::now().duration_since(self.began).as_micros() as i64
        )
    }

    /// When smoltcp's `at` is; never in the past, so that a timer cannot spin.
    pub fn when(&self, at: smoltcp::time::Instant) -> Instant {
        let then = self.began + Duration::from_micros(at.total_micros().max(0) as u64);
        then.max(clock::now() + Duration::from_millis(1))
    }

    /// Let the interface work on one flow's socket: with a packet of the guest, or with what it has to send.
    pub fn drive<R>(
        &self,
        packet: Option<&[u8]>,
        work: impl FnOnce(&mut Interface, &mut Port<'_>) -> R,
    ) -> R {
        let mut queue = self.queue.borrow_mut();
        let mut port = Port::new(self.config.mtu, packet, &mut queue);
        work(&mut self.interface.borrow_mut(), &mut port)
    }

    // -- Decisions -----------------------------------------------------------------------------

    /// What the policy says about `flow`, put on record.
    pub fn decide(&self, flow: &Flow) -> Verdict {
        let verdict = self.gate.borrow().decide(flow);
        self.record(flow, &verdict);
        verdict
    }

    pub fn record(&self, flow: &Flow, verdict: &Verdict) {
        match verdict.action {
            Action::Deny => add(&self.metrics.denied, 1),
            _ => add(&self.metrics.allowed, 1),
        }
        let mut flow = Cow::Borrowed(flow);
        if flow.name.is_none() {
            if let Some(name) = self.gate.borrow().name_of(flow.address) {
                flow.to_mut().name = Some(name);
            }
        }
        let line = audit::line(SystemTime::now(), &flow, verdict);
        let ring = self.audit.lock();
        let first = ring.unwrap_or_else(PoisonError::into_inner).push(line);
        if first {
            self.news.notify_one();
        }
    }

    /// Tell the owner of records, as long as the stack runs.
    pub async fn tell(&self) {
        loop {
            self.news.notified().await;
            tokio::time::sleep(GATHER).await;
            (self.bell)();
        }
    }

    // -- From the guest ------------------------------------------------------------------------

    /// A frame of the guest, whatever it holds.
    pub fn frame(self: &Rc<Core>, frame: &[u8]) {
        let done = match packet::parse(frame, &self.config.ends) {
            Ok(Frame::WhoHasGateway) => {
                self.introduce(frame);
                Ok(())
            }
            Ok(Frame::Ip(packet)) => self.packet(packet),
            Err(why) => Err(why),
        };
        if let Err(why) = done {
            self.metrics.dropped(why);
        }
    }

    /// Tell the guest the gateway's Ethernet address.
    fn introduce(&self, frame: &[u8]) {
        if frame[12..14] == packet::ARP.to_be_bytes() {
            let mut queue = self.queue.borrow_mut();
            let body = reply::arp(&self.config.ends).filter(|_| !queue.overfull());
            if let Some(body) = body {
                queue.push(packet::ARP, body.len(), |place| {
                    place.copy_from_slice(&body)
                });
            }
        } else if let Some(source) = frame
            .get(packet::ETHERNET + 8..)
            .and_then(<[u8]>::first_chunk::<16>)
        {
            let packet = reply::neighbour(&self.config.ends, IpAddr::from(*source));
            if let Some(packet) = packet {
                self.answer(packet);
            }
        }
    }

    fn packet(self: &Rc<Core>, packet: Packet<'_>) -> Result<(), Reject> {
        let Some(fragment) = packet.fragment else {
            return self.route(packet);
        };
        let now = clock::now();
        let whole = self.fragments.borrow_mut().add(&packet, fragment, now)?;
        let Some(Whole {
            source,
            target,
            protocol,
            hops,
            payload,
        }) = whole
        else {
            return Ok(());
        };
        let bytes = reply::whole(source, target, protocol, &payload);
        self.route(Packet {
            source,
            target,
            protocol,
            hops,
            payload: &payload,
            bytes: &bytes,
            fragment: None,
            splits: true,
        })
    }

    /// A whole packet.
    fn route(self: &Rc<Core>, packet: Packet<'_>) -> Result<(), Reject> {
        let (guest, gateway) = self.ends(packet.target).ok_or(Reject::Target)?;
        if packet.hops <= 1 && packet.target != gateway {
            self.answer(reply::time_exceeded(gateway, guest, packet.bytes));
            return Ok(());
        }
        if stand::begins(&packet) {
            let standing = self.resolver.borrow().standing(packet.target);
            if let Some(standing) = standing {
                return stand::wait(self, &packet, standing);
            }
        }
        self.hand_on(&packet, gateway)
    }

    /// A whole packet whose target is known.
    pub fn hand_on(self: &Rc<Core>, packet: &Packet<'_>, gateway: IpAddr) -> Result<(), Reject> {
        match packet.protocol {
            TCP => tcp::segment(self, packet),
            UDP => self.udp(packet),
            ICMP4 | ICMP6 => self.icmp(packet, gateway),
            _ => Err(Reject::Protocol),
        }
    }

    fn udp(self: &Rc<Core>, packet: &Packet<'_>) -> Result<(), Reject> {
        let head: [u8; 8] = *packet.payload.first_chunk().ok_or(Reject::Malformed)?;
        let word = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        let (from, to, length, sum) = (word(0), word(2), usize::from(word(4)), word(6));
        let body = packet.payload.get(..length).ok_or(Reject::Malformed)?;
        let data = body.get(8..).ok_or(Reject::Malformed)?;
        let summed = sum != 0 || packet.target.is_ipv6();
        if summed && packet::checksum(packet.source, packet.target, UDP, body) != 0 {
            return Err(Reject::Checksum);
        }
        if from == 0 || to == 0 {
            return Err(Reject::Malformed);
        }
        if to == dns::PORT {
            return dns::question(self, packet, from, data);
        }
        let answered = inbound::answer(self, packet.target, to, from, packet.bytes, data);
        if let Some(done) = answered {
            return done;
        }
        let kind = datagram::Kind::Udp {
            guest: from,
            port: to,
        };
        datagram::send(self, packet, kind, data)
    }

    fn icmp(self: &Rc<Core>, packet: &Packet<'_>, gateway: IpAddr) -> Result<(), Reject> {
        let head: [u8; 8] = *packet.payload.first_chunk().ok_or(Reject::Malformed)?;
        let right = match packet.target {
            IpAddr::V4(_) => packet::sum(packet.payload, 0) == 0xffff,
            IpAddr::V6(_) => {
                packet::checksum(packet.source, packet.target, ICMP6, packet.payload) == 0
            }
        };
        if !right {
            return Err(Reject::Checksum);
        }
        let request = if packet.target.is_ipv4() { 8 } else { 128 };
        if head[0] != request || head[1] != 0 {
            return Err(Reject::Protocol);
        }
        let identifier = u16::from_be_bytes([head[4], head[5]]);
        if packet.target == gateway {
            let rest = &packet.payload[6..];
            self.answer(reply::echo(gateway, packet.source, identifier, rest));
            return Ok(());
        }
        datagram::send(
            self,
            packet,
            datagram::Kind::Echo { identifier },
            packet.payload,
        )
    }

    /// A flow that the guest begins.
    pub fn egress(&self, protocol: Protocol, address: IpAddr, port: Option<u16>) -> Flow {
        Flow {
            direction: Direction::Egress,
            protocol,
            address,
            port,
            name: None,
        }
    }

    /// Other rules from now on: flows that they do not allow end now.
    pub fn regate(self: &Rc<Core>, gate: Box<dyn Gate>) {
        *self.gate.borrow_mut() = gate;
        tcp::review(self);
        datagram::review(self);
        inbound::review(self);
    }
}

/// `link` as the reactor watches it for `interest`.
pub fn watch(link: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: `OwnedFd` gives the same open descriptor for as long as it lives, which is as long as the
    // `AsyncFd` that owns it.
    Ok(unsafe { AsyncFd::register_with_interest(link, interest) }?)
}

/// What a panic says.
pub fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a text".to_owned())
}
