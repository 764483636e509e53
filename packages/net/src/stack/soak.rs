//! A guest that opens, ends, resets and rests many flows at a time on a link that loses, repeats, reorders and
//! turns bits: no stream is wrong by a byte, and nothing is left behind.
//!
//! `MSB_TEST_SOAK` is how many seconds it goes on, `MSB_TEST_SEED` what its draws begin with.

use super::namespace::{entries, inside, threads};
use super::testing::{allow_all, config, Faults, Guest, Log};
use super::tests::{datagram, pattern};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::State;
use socket2::SockRef;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

const SECONDS: u64 = 3;
const FLOWS: usize = 24;

/// What a flow does; its first byte tells the server.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// The server sends back what it gets; the guest ends first.
    Echo = 0,
    /// The same without data, until the others are done.
    Rest = 1,
    /// The server sends all, ends, and reads what the guest has.
    ServerFirst = 2,
    /// The server resets after the first bytes.
    ServerResets = 3,
    /// The server sends without end, and the guest resets.
    GuestResets = 4,
    /// The guest gives up before it knows whether there is a server.
    GivesUp = 5,
}

const KINDS: [Kind; 6] = [
    Kind::Echo,
    Kind::Rest,
    Kind::ServerFirst,
    Kind::ServerResets,
    Kind::GuestResets,
    Kind::GivesUp,
];

fn variable(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(default)
}

struct Draw(u64);

impl Draw {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Kind, number and length, and then the data of a flow.
fn stream(kind: Kind, number: u32, length: usize) -> Vec<u8> {
    let mut all = vec![kind as u8];
    all.extend_from_slice(&number.to_be_bytes());
    all.extend_from_slice(&(length as u32).to_be_bytes());
    all.extend(pattern(length + number as usize % 7).split_off(number as usize % 7));
    all
}

const HEAD: usize = 9;

fn serve(mut client: TcpStream, whole: &Log<u32>) -> std::io::Result<()> {
    let mut head = [0; HEAD];
    client.read_exact(&mut head)?;
    let number = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    let length = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) as usize;
    match KINDS[usize::from(head[0])] {
        Kind::Echo | Kind::Rest => {
            std::io::copy(&mut client.try_clone()?, &mut client)?;
        }
        Kind::ServerFirst => {
            let data = stream(Kind::ServerFirst, number, length);
            client.write_all(&data)?;
            client.shutdown(Shutdown::Write)?;
            let mut all = Vec::new();
            client.read_to_end(&mut all)?;
            if all == data[HEAD..] {
                whole.lock().unwrap().push(number);
            }
        }
        Kind::ServerResets => {
            client.read_exact(&mut [0; 1])?;
            SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
        }
        Kind::GuestResets => loop {
            client.write_all(&stream(Kind::GuestResets, number, length))?;
        },
        Kind::GivesUp => {}
    }
    Ok(())
}

/// One flow as the guest sees it.
struct Run {
    kind: Kind,
    number: u32,
    handle: SocketHandle,
    data: Vec<u8>,
    sent: usize,
    got: Vec<u8>,
    ended: bool,
    done: bool,
}

impl Run {
    fn begin(guest: &mut Guest, kind: Kind, number: u32, length: usize, port: u16) -> Run {
        let length = if kind == Kind::Rest { 0 } else { length };
        let address = if number % 3 == 0 {
            "fd09::1"
        } else {
            "127.0.0.1"
        };
        Run {
            kind,
            number,
            handle: guest.connect_with(address, port, 16 << 10),
            data: stream(kind, number, length),
            sent: 0,
            got: Vec::new(),
            ended: false,
            done: false,
        }
    }

    /// What the server sends, as far as it has come.
    fn check(&self) {
        let expected = match self.kind {
            Kind::Echo | Kind::Rest => &self.data[HEAD..],
            _ => &self.data[..],
        };
        let right = self
            .got
            .iter()
            .zip(expected.iter().cycle())
            .all(|(got, wanted)| got == wanted);
        let endless = self.kind == Kind::GuestResets;
        assert!(
            right && (endless || self.got.len() <= expected.len()),
            "{:?} {} got something else than it was sent",
            self.kind,
            self.number
        );
    }

    fn whole(&self) {
        let expected = match self.kind {
            Kind::ServerFirst => self.data.len(),
            _ => self.data.len() - HEAD,
        };
        assert_eq!(self.got.len(), expected, "{:?} {}", self.kind, self.number);
    }

    /// Do what can be done now. `rest`: those that rest go on resting.
    fn step(&mut self, guest: &mut Guest, rest: bool) {
        if self.kind == Kind::GivesUp {
            self.done = true;
            return guest.forget(self.handle);
        }
        let socket = guest.socket(self.handle);
        if socket.state() == State::SynSent {
            return;
        }
        let before = self.got.len();
        while socket.can_recv() {
            socket
                .recv(|bytes| (bytes.len(), self.got.extend_from_slice(bytes)))
                .unwrap();
        }
        if socket.may_send() && self.sent < self.data.len() {
            self.sent += socket.send_slice(&self.data[self.sent..]).unwrap();
        }
        let sent = self.sent == self.data.len();
        let (open, heard) = (socket.may_recv(), socket.state());
        match self.kind {
            Kind::Echo if sent && !self.ended => {
                self.ended = true;
                socket.close();
            }
            Kind::Rest if sent && !self.ended && !rest => {
                self.ended = true;
                socket.close();
            }
            // Only its own end ends what the server has to read.
            Kind::ServerFirst if sent && !open && !self.ended => {
                self.ended = true;
                socket.close();
            }
            Kind::ServerResets if heard == State::Closed => self.done = true,
            Kind::ServerResets if sent => {
                // A reset that was lost is repeated for whoever goes on.
                self.sent = HEAD;
            }
            Kind::GuestResets if self.got.len() >= self.data.len() => self.done = true,
            _ => {}
        }
        if self.got.len() > before {
            self.check();
        }
        if self.ended && matches!(heard, State::Closed | State::TimeWait) {
            self.whole();
            self.done = true;
        }
        if self.done {
            guest.forget(self.handle);
        }
    }
}

/// Kilobytes of memory of this process.
pub fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let words: Vec<_> = line.unwrap().split_whitespace().collect();
    words[1].parse().unwrap()
}

#[test]
fn mixed_load_on_a_faulty_link_leaves_nothing_behind() {
    inside(
        "soak::mixed_load_on_a_faulty_link_leaves_nothing_behind",
        soak,
    );
}

fn soak() {
    let seconds = Duration::from_secs(variable("MSB_TEST_SOAK", SECONDS));
    let seed = variable("MSB_TEST_SEED", 1);
    let whole: Log<u32> = Log::default();
    let ports = ["127.0.0.1", "::1"].map(|address| {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let whole = Arc::clone(&whole);
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, whole) = (client.unwrap(), Arc::clone(&whole));
                // What goes wrong is what the guest sees.
                thread::spawn(move || drop(serve(client, &whole)));
            }
        });
        port
    });
    let echo = UdpSocket::bind("127.0.0.1:0").unwrap();
    let udp = echo.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut bytes = [0; 2000];
        while let Ok((count, from)) = echo.recv_from(&mut bytes) {
            let _ = echo.send_to(&bytes[..count], from);
        }
    });
    let mut settings = config();
    settings.limits.udp_idle = Duration::from_millis(200);
    settings.limits.keepalive = Duration::from_secs(1);
    // Every answer to a SYN may be lost several times in a row.
    settings.limits.handshake = Duration::from_secs(60);
    let mut guest = Guest::new(settings, allow_all(), Box::new(super::dns::Refuser));
    let mut draw = Draw(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let began = Instant::now();
    let (mut round, mut number) = (0u64, 0u32);
    let (mut baseline, mut memory) = (None, 0);
    while round < 2 || began.elapsed() < seconds {
        round += 1;
        // One round of four on a link as it should be.
        guest.faults = (round % 4 != 0).then(|| Faults::new(draw.below(u64::MAX)));
        whole.lock().unwrap().clear();
        let mut runs: Vec<Run> = (0..FLOWS)
            .map(|_| {
                number += 1;
                let kind = match KINDS[draw.below(KINDS.len() as u64) as usize] {
                    // The guest's smoltcp forgets to repeat what is lost after the server's end.
                    Kind::ServerFirst if guest.faults.is_some() => Kind::Echo,
                    kind => kind,
                };
                let length = 1 + draw.below(30_000) as usize;
                let port = if number % 3 == 0 { ports[1] } else { ports[0] };
                Run::begin(&mut guest, kind, number, length, port)
            })
            .collect();
        let (begun, mut told) = (Instant::now(), false);
        guest.until(&format!("round {round} of seed {seed}"), |guest| {
            if begun.elapsed() > Duration::from_secs(45) && !std::mem::replace(&mut told, true) {
                for run in runs.iter().filter(|run| !run.done) {
                    let (kind, number, length) = (run.kind, run.number, run.data.len());
                    let (state, sent, got) = (guest.state(run.handle), run.sent, run.got.len());
                    println!("{kind:?} {number}: {state:?}, sent {sent} of {length}, got {got}");
                }
            }
            if draw.below(8) == 0 {
                let from = 1000 + draw.below(50) as u16;
                let size = draw.below(1200) as usize;
                guest.packet(&datagram("127.0.0.1", from, udp, &pattern(size)));
            }
            guest.seen.clear();
            let busy = runs.iter().any(|run| !run.done && run.kind != Kind::Rest);
            for run in runs.iter_mut().filter(|run| !run.done) {
                run.step(guest, busy);
            }
            runs.iter().all(|run| run.done)
        });
        // The servers have all that they were sent; a flow that gave up may still be on its way.
        guest.faults = None;
        guest.until("no flow is left", |guest| {
            guest.metric("tcp_now") == 0 && guest.metric("datagrams_now") == 0
        });
        let first = runs.iter().filter(|run| run.kind == Kind::ServerFirst);
        let first: Vec<u32> = first.map(|run| run.number).collect();
        guest.until("the servers are done", |_| {
            let whole = whole.lock().unwrap();
            first.iter().all(|number| whole.contains(number))
        });
        match baseline {
            None => {
                let mut same = 0;
                let mut last = (0, 0);
                guest.until("the servers' threads are gone", |_| {
                    let now = (entries("/proc/self/fd").len(), threads());
                    same = if now == last { same + 1 } else { 0 };
                    last = now;
                    same > 20
                });
                baseline = Some(last);
                memory = resident();
            }
            // Fewer are no leak: a thread of the first round may have been late to end.
            Some(before) => guest.until("descriptors and threads are given back", |_| {
                entries("/proc/self/fd").len() <= before.0 && threads() <= before.1
            }),
        }
        guest.stack.audit();
    }
    assert_eq!(guest.stack.end(), None);
    let grown = resident().saturating_sub(memory);
    println!(
        "{round} rounds, {number} flows, {} frames, {} kB more memory than after the first",
        guest.metric("frames_from_guest") + guest.metric("frames_to_guest"),
        grown
    );
    assert!(
        grown < 64 << 10,
        "{grown} kB more than after the first round"
    );
}
