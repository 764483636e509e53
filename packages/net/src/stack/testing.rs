//! A guest without a VM: smoltcp at the other end of a stack's link, and a policy that the test writes.

use super::link::{Queue, Reader};
use super::packet::{self, Ends, ETHERNET};
use super::{Config, End, Gate, Limits, Resolver, Stack};
use crate::client::Asked;
use crate::policy::{Action, Flow, Verdict};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::wire::{HardwareAddress, IpCidr};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take before a test gives up; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(300);

/// Time as a thread has it that does nothing but wait: where the machine has none for this process, none passes.
pub struct Pace {
    ticks: Arc<AtomicU64>,
}

/// One wait of that thread.
const TICK: Duration = Duration::from_millis(1);

impl Pace {
    pub fn begin() -> Pace {
        let ticks = Arc::new(AtomicU64::new(0));
        let counted = Arc::downgrade(&ticks);
        thread::spawn(move || {
            while let Some(ticks) = counted.upgrade() {
                ticks.fetch_add(1, Ordering::Relaxed);
                drop(ticks);
                thread::sleep(TICK);
            }
        });
        Pace { ticks }
    }

    /// What has passed of it since it began.
    pub fn passed(&self) -> Duration {
        TICK * self.ticks.load(Ordering::Relaxed) as u32
    }
}

pub fn ends() -> Ends {
    Ends {
        guest_mac: [2, 0, 0, 0, 0, 2],
        gateway_mac: [2, 0, 0, 0, 0, 1],
        v4: Some(("10.9.0.2".parse().unwrap(), "10.9.0.1".parse().unwrap())),
        v6: Some(("fd09::2".parse().unwrap(), "fd09::1".parse().unwrap())),
    }
}

pub fn config() -> Config {
    Config {
        ends: ends(),
        mtu: 1500,
        limits: Limits::default(),
        ports: Vec::new(),
        proxy: None,
    }
}

type Rule = Box<dyn Fn(&Flow) -> Action + Send>;

/// A policy out of a closure, which is asked about whom a client asks for as about flows.
pub struct Rules {
    pub rule: Rule,
}

impl Rules {
    pub fn new(rule: impl Fn(&Flow) -> Action + Send + 'static) -> Box<Rules> {
        Box::new(Rules {
            rule: Box::new(rule),
        })
    }
}

impl Gate for Rules {
    fn decide(&self, flow: &Flow) -> Verdict {
        Verdict {
            action: (self.rule)(flow),
            rule: "test".to_owned(),
        }
    }

    fn decide_asked(&self, flow: &Flow, asked: &Asked) -> Verdict {
        self.decide(&asked.flow(flow)).unnamed()
    }
}

pub fn allow_all() -> Box<dyn Gate> {
    Rules::new(|_| Action::Allow)
}

/// What a link without quality does to frames: xorshift decides, always in the same way.
pub struct Faults {
    state: u64,
    /// One frame in so many is lost, comes twice, comes out of order, or has a bit turned; 0 is never.
    pub lose: u64,
    pub duplicate: u64,
    pub reorder: u64,
    pub corrupt: u64,
}

impl Faults {
    pub fn new(seed: u64) -> Faults {
        Faults {
            state: seed | 1,
            lose: 20,
            duplicate: 20,
            reorder: 20,
            corrupt: 20,
        }
    }

    fn one_in(&mut self, odds: u64) -> bool {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        odds != 0 && self.state % odds == 0
    }

    /// What becomes of the frames.
    pub fn pass(&mut self, frames: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        let mut passed: Vec<Vec<u8>> = Vec::new();
        for mut frame in frames {
            if self.one_in(self.lose) {
                continue;
            }
            if self.one_in(self.corrupt) && frame.len() > ETHERNET {
                let at = ETHERNET + self.state as usize % (frame.len() - ETHERNET);
                frame[at] ^= 1 << (self.state >> 40 & 7);
            }
            let place = match self.one_in(self.reorder) {
                true => passed.len().saturating_sub(1),
                false => passed.len(),
            };
            if self.one_in(self.duplicate) {
                passed.push(frame.clone());
            }
            let place = place.min(passed.len());
            passed.insert(place, frame);
        }
        passed
    }
}

/// The guest's network card.
struct Card {
    mtu: usize,
    arrived: VecDeque<Vec<u8>>,
    queue: Queue,
}

pub struct Arrived(Vec<u8>);

impl phy::RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, work: F) -> R {
        work(&self.0)
    }
}

pub struct Leaving<'a>(&'a mut Queue);

impl phy::TxToken for Leaving<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        self.0.push_ip(length, fill)
    }
}

impl phy::Device for Card {
    type RxToken<'t> = Arrived;
    type TxToken<'t> = Leaving<'t>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Arrived, Leaving<'_>)> {
        Some((Arrived(self.arrived.pop_front()?), Leaving(&mut self.queue)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Leaving<'_>> {
        (!self.queue.full()).then_some(Leaving(&mut self.queue))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities
    }
}

pub struct Guest {
    pub stack: Stack,
    pub faults: Option<Faults>,
    /// Frames that are not TCP, as they came.
    pub seen: Vec<Vec<u8>>,
    pub closed: bool,
    link: UnixStream,
    reader: Reader,
    card: Card,
    interface: Interface,
    sockets: SocketSet<'static>,
    began: Instant,
    next_port: u16,
}

impl Guest {
    pub fn new(config: Config, gate: Box<dyn Gate>, resolver: Box<dyn Resolver>) -> Guest {
        Guest::over(UnixStream::pair().unwrap(), config, gate, resolver)
    }

    /// `link` and the stack's end of it are two ends of a stream.
    pub fn over(
        (link, far): (UnixStream, UnixStream),
        config: Config,
        gate: Box<dyn Gate>,
        resolver: Box<dyn Resolver>,
    ) -> Guest {
        link.set_nonblocking(true).unwrap();
        let stack =
            Stack::start(far.into(), config.clone(), gate, resolver, Arc::new(|| {})).unwrap();
        let ends = config.ends;
        let mut card = Card {
            mtu: config.mtu,
            arrived: VecDeque::new(),
            queue: Queue::new(ends.gateway_mac, ends.guest_mac),
        };
        let settings = smoltcp::iface::Config::new(HardwareAddress::Ip);
        let mut interface = Interface::new(settings, &mut card, smoltcp::time::Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            let v4 = ends.v4.map(|(guest, _)| IpCidr::new(guest.into(), 24));
            let v6 = ends.v6.map(|(guest, _)| IpCidr::new(guest.into(), 64));
            addresses.extend(v4.into_iter().chain(v6));
        });
        if let Some((_, gateway)) = ends.v4 {
            interface
                .routes_mut()
                .add_default_ipv4_route(gateway)
                .unwrap();
        }
        if let Some((_, gateway)) = ends.v6 {
            interface
                .routes_mut()
                .add_default_ipv6_route(gateway)
                .unwrap();
        }
        Guest {
            stack,
            faults: None,
            seen: Vec::new(),
            closed: false,
            link,
            reader: Reader::default(),
            card,
            interface,
            sockets: SocketSet::new(Vec::new()),
            began: Instant::now(),
            next_port: 20_000,
        }
    }

    pub fn open(gate: Box<dyn Gate>) -> Guest {
        Guest::new(config(), gate, Box::new(super::dns::Refuser))
    }

    /// Raw bytes on the link.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.link.set_nonblocking(false).unwrap();
        self.link.write_all(bytes).unwrap();
        self.link.set_nonblocking(true).unwrap();
    }

    /// A frame of the guest with an IP packet.
    pub fn packet(&mut self, packet: &[u8]) {
        let kind = match packet.first().map(|byte| byte >> 4) {
            Some(6) => packet::IPV6,
            _ => packet::IPV4,
        };
        let ends = ends();
        let frame = [
            &ends.gateway_mac[..],
            &ends.guest_mac,
            &kind.to_be_bytes(),
            packet,
        ]
        .concat();
        self.frame(&frame);
    }

    pub fn frame(&mut self, frame: &[u8]) {
        let framed = [&(frame.len() as u32).to_be_bytes()[..], frame].concat();
        self.bytes(&framed);
    }

    fn receive(&mut self) {
        let mut frames = Vec::new();
        loop {
            match self.link.read(self.reader.space()) {
                Ok(0) => {
                    self.closed = true;
                    break;
                }
                Ok(count) => self.reader.filled(count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.closed = true;
                    break;
                }
            }
            while let Some(place) = self.reader.frame_at().expect("frames") {
                frames.push(self.reader.frame(place).to_vec());
            }
        }
        if let Some(faults) = &mut self.faults {
            frames = faults.pass(frames);
        }
        for frame in frames {
            let ip = frame[12..14] != packet::ARP.to_be_bytes();
            let upper = match frame.get(ETHERNET) {
                Some(first) if first >> 4 == 4 => frame.get(ETHERNET + 9),
                _ => frame.get(ETHERNET + 6),
            };
            if ip && upper == Some(&packet::TCP) {
                self.card.arrived.push_back(frame[ETHERNET..].to_vec());
            } else {
                self.seen.push(frame);
            }
        }
    }

    fn send(&mut self) {
        if let Some(faults) = &mut self.faults {
            let mut frames = Vec::new();
            let mut rest = self.card.queue.pending();
            while let Some((head, behind)) = rest.split_first_chunk::<4>() {
                let (frame, behind) = behind.split_at(u32::from_be_bytes(*head) as usize);
                frames.push(frame.to_vec());
                rest = behind;
            }
            let count = self.card.queue.pending().len();
            self.card.queue.advance(count);
            for frame in faults.pass(frames) {
                self.frame(&frame);
            }
            return;
        }
        while !self.card.queue.pending().is_empty() {
            match self.link.write(self.card.queue.pending()) {
                Ok(count) => self.card.queue.advance(count),
                Err(_) => break,
            }
        }
    }

    fn now(&self) -> smoltcp::time::Instant {
        smoltcp::time::Instant::from_micros(self.began.elapsed().as_micros() as i64)
    }

    /// One round of the guest's kernel.
    pub fn turn(&mut self) {
        self.receive();
        let now = self.now();
        self.interface.poll(now, &mut self.card, &mut self.sockets);
        self.send();
    }

    /// What the guest's kernel has to send, without a look at what came.
    pub fn send_only(&mut self) {
        let now = self.now();
        self.interface
            .poll_egress(now, &mut self.card, &mut self.sockets);
        self.send();
    }

    /// Go on until `what` is so.
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&mut Guest) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.turn();
            if done(self) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "never: {what} ({:?}, {:?})",
                self.stack.end(),
                self.stack.metrics().read()
            );
            // Wakes for frames; what happens elsewhere is looked at again soon.
            let mut flags = PollFlags::IN;
            if !self.card.queue.pending().is_empty() {
                flags |= PollFlags::OUT;
            }
            let timeout = Timespec {
                tv_sec: 0,
                tv_nsec: 2_000_000,
            };
            if !self.closed {
                poll(&mut [PollFd::new(&self.link, flags)], Some(&timeout)).unwrap();
            }
        }
    }

    /// Begin a connection.
    pub fn connect(&mut self, address: &str, port: u16) -> SocketHandle {
        self.connect_with(address, port, 256 << 10)
    }

    pub fn connect_with(&mut self, address: &str, port: u16, window: usize) -> SocketHandle {
        let buffer = || SocketBuffer::new(vec![0; window]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        self.next_port += 1;
        let target: IpAddr = address.parse().unwrap();
        let from = self.next_port;
        socket
            .connect(self.interface.context(), (target, port), from)
            .unwrap();
        self.sockets.add(socket)
    }

    /// A server's socket, for one connection.
    pub fn listen(&mut self, port: u16) -> SocketHandle {
        let buffer = || SocketBuffer::new(vec![0; 256 << 10]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        socket.listen(port).unwrap();
        self.sockets.add(socket)
    }

    /// The connection for which `handle` listens must come.
    pub fn accepted(&mut self, handle: SocketHandle) {
        self.until("accepted", |guest| {
            !matches!(guest.state(handle), State::Listen | State::SynReceived)
        });
    }

    pub fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Know nothing of a connection any more: what still comes of it is answered with a reset.
    pub fn forget(&mut self, handle: SocketHandle) {
        self.sockets.remove(handle);
    }

    pub fn state(&mut self, handle: SocketHandle) -> State {
        self.socket(handle).state()
    }

    /// A connection that must come about.
    pub fn connected(&mut self, address: &str, port: u16) -> SocketHandle {
        let handle = self.connect(address, port);
        self.until("connected", |guest| guest.state(handle) != State::SynSent);
        assert_eq!(self.state(handle), State::Established);
        handle
    }

    /// Send all of `data`.
    pub fn write(&mut self, handle: SocketHandle, data: &[u8]) {
        let mut sent = 0;
        self.until("written", |guest| {
            sent += guest.socket(handle).send_slice(&data[sent..]).unwrap();
            sent == data.len()
        });
    }

    /// All that comes until the target's end, or None if it was a reset.
    pub fn read_to_end(&mut self, handle: SocketHandle) -> Option<Vec<u8>> {
        let mut all = Vec::new();
        let mut reset = false;
        self.until("end of stream", |guest| {
            let socket = guest.socket(handle);
            while socket.can_recv() {
                socket
                    .recv(|bytes| (bytes.len(), all.extend_from_slice(bytes)))
                    .unwrap();
            }
            reset = socket.state() == State::Closed;
            reset || !socket.may_recv()
        });
        (!reset).then_some(all)
    }

    /// The first frame that is not TCP and for which `wanted` gives something.
    pub fn find<T>(&mut self, what: &str, wanted: impl Fn(&[u8]) -> Option<T>) -> T {
        let mut found = None;
        self.until(what, |guest| {
            let place = guest.seen.iter().position(|frame| wanted(frame).is_some());
            if let Some(place) = place {
                found = wanted(&guest.seen.remove(place));
            }
            found.is_some()
        });
        found.unwrap()
    }

    pub fn metric(&self, name: &str) -> u64 {
        let all = self.stack.metrics().read();
        all.into_iter().find(|(known, _)| known == name).unwrap().1
    }

    /// How the stack ended, once it did.
    pub fn ended(&mut self) -> End {
        self.until("the end of the stack", |guest| guest.stack.end().is_some());
        self.stack.end().unwrap()
    }
}

/// A shared list that a test's closures write to.
pub type Log<T> = Arc<Mutex<Vec<T>>>;

impl Guest {
    /// The machine is gone.
    pub fn hang_up(&mut self) {
        self.link.shutdown(std::net::Shutdown::Both).unwrap();
    }
}
