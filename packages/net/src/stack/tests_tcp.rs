//! TCP to the number: a guest that writes its own segments, and servers on the loopback interface.

use super::link::Reader;
use super::packet::{self, ETHERNET};
use super::testing::{allow_all, config, ends, Guest};
use super::tests::{echo_server, server, server_that_reads};
use super::{reply, Config, Stack};
use smoltcp::socket::tcp::State;
use socket2::{Domain, SockAddr, Socket, Type};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const PSH: u8 = 8;
const ACK: u8 = 16;

/// The guest's first number.
const FIRST: u32 = 0xffff_fff0;

/// A guest's link without a TCP behind it.
pub struct Raw {
    stack: Stack,
    pub link: UnixStream,
    reader: Reader,
    port: u16,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Segment {
    pub flags: u8,
    pub sequence: u32,
    pub acknowledged: u32,
    pub window: u16,
    data: Vec<u8>,
}

impl Raw {
    pub fn new(config: Config, port: u16) -> Raw {
        let (link, far) = UnixStream::pair().unwrap();
        link.set_read_timeout(Some(Duration::from_secs(300)))
            .unwrap();
        let resolver = Box::new(super::dns::Refuser);
        let stack = Stack::start(far.into(), config, allow_all(), resolver, Arc::new(|| {}));
        let stack = stack.unwrap();
        Raw {
            stack,
            link,
            reader: Reader::default(),
            port,
        }
    }

    /// A segment from port 4000, whose number counts from `FIRST`.
    pub fn send(&mut self, flags: u8, offset: u32, acknowledged: u32, data: &[u8]) {
        self.send_with_window(flags, offset, acknowledged, data, 0xffff);
    }

    fn send_with_window(
        &mut self,
        flags: u8,
        offset: u32,
        acknowledged: u32,
        data: &[u8],
        window: u16,
    ) {
        self.send_whole((flags, 5), offset, acknowledged, data, window);
    }

    /// With a header of so many words, whose options come before the data.
    pub fn send_whole(
        &mut self,
        (flags, words): (u8, u8),
        offset: u32,
        acknowledged: u32,
        rest: &[u8],
        window: u16,
    ) {
        let mut segment = [4000u16.to_be_bytes(), self.port.to_be_bytes()].concat();
        segment.extend(FIRST.wrapping_add(offset).to_be_bytes());
        segment.extend(acknowledged.to_be_bytes());
        segment.extend([words << 4, flags]);
        segment.extend(window.to_be_bytes());
        segment.extend([0; 4]);
        segment.extend(rest);
        let ends = ends();
        let (own, target): (IpAddr, IpAddr) =
            (ends.v4.unwrap().0.into(), Ipv4Addr::LOCALHOST.into());
        let value = packet::checksum(own, target, packet::TCP, &segment);
        segment[16..18].copy_from_slice(&value.to_be_bytes());
        let packet = reply::whole(own, target, packet::TCP, &segment);
        let frame = [&ends.gateway_mac[..], &ends.guest_mac, &[8, 0], &packet].concat();
        self.link
            .write_all(&(frame.len() as u32).to_be_bytes())
            .unwrap();
        self.link.write_all(&frame).unwrap();
    }

    /// The next segment to the guest.
    pub fn next(&mut self) -> Segment {
        loop {
            if let Some(segment) = self.arrived() {
                return segment;
            }
            let count = self.link.read(self.reader.space()).unwrap();
            assert!(count > 0, "{:?}", self.stack.end());
            self.reader.filled(count);
        }
    }

    /// One that has been read.
    fn arrived(&mut self) -> Option<Segment> {
        let place = self.reader.frame_at().unwrap()?;
        let frame = self.reader.frame(place);
        assert_eq!(frame[ETHERNET + 9], packet::TCP);
        let head = &frame[ETHERNET + 20..];
        let word =
            |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        Some(Segment {
            flags: head[13],
            sequence: word(4),
            acknowledged: word(8).wrapping_sub(FIRST),
            window: u16::from_be_bytes([head[14], head[15]]),
            data: head[usize::from(head[12] >> 4) * 4..].to_vec(),
        })
    }

    /// The next segment to the guest, if one is there already.
    pub fn there(&mut self) -> Option<Segment> {
        if let Some(segment) = self.arrived() {
            return Some(segment);
        }
        self.link.set_nonblocking(true).unwrap();
        let read = self.link.read(self.reader.space());
        self.link.set_nonblocking(false).unwrap();
        match read {
            Ok(count) => {
                assert!(count > 0, "{:?}", self.stack.end());
                self.reader.filled(count);
                self.arrived()
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                None
            }
        }
    }

    /// The first segment from now on with all of `flags`.
    fn next_with(&mut self, flags: u8) -> Segment {
        loop {
            let segment = self.next();
            if segment.flags & flags == flags {
                return segment;
            }
        }
    }

    /// A flow, and the number that the guest acknowledges next.
    fn connected(&mut self) -> u32 {
        self.send(SYN, 0, 0, &[]);
        let answer = self.next();
        assert_eq!((answer.flags, answer.acknowledged), (SYN | ACK, 1));
        let next = answer.sequence.wrapping_add(1);
        self.send(ACK, 1, next, &[]);
        next
    }

    fn metric(&self, name: &str) -> u64 {
        let all = self.stack.metrics().read();
        all.into_iter().find(|(known, _)| known == name).unwrap().1
    }

    fn until(&self, name: &str, count: u64) {
        let deadline = Instant::now() + Duration::from_secs(300);
        while self.metric(name) != count {
            assert!(Instant::now() < deadline, "{name} is {}", self.metric(name));
            std::thread::yield_now();
        }
    }
}

#[test]
fn an_end_that_is_repeated_is_acknowledged_once_more() {
    let (port, thread) = server(|client| client.shutdown(Shutdown::Write).unwrap());
    let mut raw = Raw::new(config(), port);
    let next = raw.connected();
    let end = raw.next_with(FIN);
    assert_eq!(end.sequence, next);
    thread.join().unwrap();
    let next = next.wrapping_add(1);
    raw.send(FIN | ACK, 1, next, &[]);
    let last = raw.next_with(ACK);
    assert_eq!((last.sequence, last.acknowledged), (next, 2));
    raw.until("tcp_now", 0);
    // As if the last acknowledgement had been lost.
    raw.send(FIN | ACK, 1, next, &[]);
    let again = raw.next();
    assert_eq!(
        (again.flags, again.sequence, again.acknowledged),
        (ACK, next, 2)
    );
    // What else comes to a flow that is over is nobody's, and answered by nothing that could end another.
    raw.send(RST, 2, 0, &[]);
    raw.until("dropped_stray", 1);
}

#[test]
fn an_end_right_behind_a_request_is_acknowledged() {
    let (port, thread) = server(|mut client| {
        client.shutdown(Shutdown::Write).unwrap();
        let mut read = Vec::new();
        client.read_to_end(&mut read).unwrap();
        assert_eq!(read, b"x");
    });
    let mut raw = Raw::new(config(), port);
    let next = raw.connected();
    assert_eq!(raw.next_with(FIN).sequence, next);
    let next = next.wrapping_add(1);
    // What is owed for the first is owed for both, and is paid although the flow is over.
    raw.send(ACK | PSH, 1, next, b"x");
    raw.send(FIN | ACK, 2, next, &[]);
    while raw.next_with(ACK).acknowledged != 3 {}
    raw.until("tcp_now", 0);
    thread.join().unwrap();
}

#[test]
fn a_flow_may_begin_anew_at_once() {
    let port = echo_server("127.0.0.1");
    let mut raw = Raw::new(config(), port);
    for _ in 0..3 {
        let next = raw.connected();
        raw.send(ACK | PSH | FIN, 1, next, b"hello");
        let mut seen = Vec::new();
        let end = loop {
            let segment = raw.next();
            seen.extend_from_slice(&segment.data);
            if segment.flags & FIN != 0 {
                break segment;
            }
        };
        assert_eq!(seen, b"hello");
        let next = end.sequence.wrapping_add(end.data.len() as u32 + 1);
        raw.send(ACK, 7, next, &[]);
        raw.until("tcp_now", 0);
    }
}

#[test]
fn both_sides_may_end_at_the_same_time() {
    let (port, thread) = server(|mut client| {
        client.shutdown(Shutdown::Write).unwrap();
        client
            .read_to_end(&mut Vec::new())
            .map_err(|error| error.kind())
    });
    let mut raw = Raw::new(config(), port);
    let next = raw.connected();
    let end = raw.next_with(FIN);
    // The guest ended before it saw that: its end does not acknowledge the other one.
    raw.send(FIN | ACK, 1, next, &[]);
    let answer = raw.next_with(ACK);
    assert_eq!(answer.acknowledged, 2);
    raw.send(ACK, 2, end.sequence.wrapping_add(1), &[]);
    raw.until("tcp_now", 0);
    assert_eq!(thread.join().unwrap(), Ok(0));
}

#[test]
fn a_reset_counts_inside_the_window_only() {
    let port = echo_server("127.0.0.1");
    let mut raw = Raw::new(config(), port);
    let next = raw.connected();
    for offset in [0u32.wrapping_sub(1000), 8_000_000, 0x8000_0000] {
        raw.send(RST, offset, 0, &[]);
    }
    raw.send(ACK | PSH, 1, next, b"x");
    assert_eq!(raw.next_with(PSH).data, b"x");
    assert_eq!(raw.metric("tcp_now"), 1);
    raw.send(RST, 2, 0, &[]);
    raw.until("tcp_now", 0);
}

#[test]
fn an_opening_ends_by_the_guest_s_own_reset_only() {
    let (listener, _full, port) = full_listener();
    let mut raw = Raw::new(config(), port);
    raw.send(SYN, 0, 0, &[]);
    raw.until("tcp_now", 1);
    raw.send(RST, 77, 0, &[]);
    raw.until("dropped_stray", 1);
    assert_eq!(raw.metric("tcp_now"), 1);
    raw.send(RST, 1, 0, &[]);
    raw.until("tcp_now", 0);
    drop(listener);
}

#[test]
fn keep_alives_and_window_probes_are_answered() {
    let port = echo_server("127.0.0.1");
    let mut raw = Raw::new(config(), port);
    let next = raw.connected();
    // One number back, without data.
    raw.send(ACK, 0, next, &[]);
    let answer = raw.next();
    assert_eq!(
        (answer.flags, answer.sequence, answer.acknowledged),
        (ACK, next, 1)
    );
    assert!(answer.window > 0);
}

#[test]
fn requests_that_nobody_answers_are_acknowledged() {
    let (port, thread) = server_that_reads();
    let mut raw = Raw::new(config(), port);
    let next = raw.connected();
    // The first one may wait for an answer, and those after it need not.
    for offset in 1..5 {
        raw.send(ACK | PSH, offset, next, b"x");
        let answer = raw.next();
        assert_eq!(
            (answer.flags, answer.sequence, answer.acknowledged),
            (ACK, next, offset + 1)
        );
    }
    raw.send(RST | ACK, 5, next, &[]);
    raw.until("tcp_now", 0);
    assert!(b"xxxx".starts_with(&thread.join().unwrap()));
}

#[test]
fn a_window_of_zero_is_kept() {
    let port = echo_server("127.0.0.1");
    let mut raw = Raw::new(config(), port);
    let next = raw.connected();
    raw.send_with_window(ACK | PSH, 1, next, b"echo", 0);
    raw.until("bytes_received", 4);
    // What the stack says now is said with the window closed.
    raw.send_with_window(ACK, 0, next, &[], 0);
    let answer = raw.next_with(ACK);
    assert_eq!((answer.data.len(), answer.acknowledged), (0, 5));
    raw.send(ACK, 5, next, &[]);
    assert_eq!(raw.next_with(PSH).data, b"echo");
}

/// A question about the window: what was acknowledged already, without data (as Linux asks).
fn is_question(segment: &Segment, next: u32) -> bool {
    segment.flags == ACK && segment.sequence == next.wrapping_sub(1) && segment.data.is_empty()
}

/// The word of a guest whose window opens again is lost on the way, whether or not the guest has ended its side.
#[test]
fn a_guest_whose_window_is_closed_is_asked_again() {
    for end in [0, FIN] {
        let port = echo_server("127.0.0.1");
        let mut raw = Raw::new(config(), port);
        let next = raw.connected();
        raw.send_with_window(ACK | PSH | end, 1, next, b"echo", 0);
        let behind = 5 + u32::from(end);
        let mut asked = Vec::new();
        while asked.len() < 3 {
            let segment = raw.next();
            assert!(segment.data.is_empty());
            if is_question(&segment, next) {
                assert_eq!(segment.acknowledged, behind);
                asked.push(Instant::now());
                // Still closed: the next question comes later.
                raw.send_with_window(ACK, behind, next, &[], 0);
            }
        }
        assert!(asked[2] - asked[1] > asked[1] - asked[0]);
        raw.send(ACK, behind, next, &[]);
        let mut answer = raw.next();
        while answer.data.is_empty() {
            answer = raw.next();
        }
        assert_eq!((&answer.data[..], answer.sequence), (&b"echo"[..], next));
    }
}

/// A listener that takes no more connections: a SYN to it is not answered.
fn full_listener() -> (Socket, Vec<Socket>, u16) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any: SockAddr = SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into();
    listener.bind(&any).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let waiting = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let reached = socket.connect_timeout(&address, Duration::from_millis(300));
        (socket, reached)
    };
    let mut full = Vec::new();
    loop {
        let (socket, reached) = waiting();
        full.push(socket);
        if reached.is_err_and(|error| error.kind() == ErrorKind::TimedOut) {
            return (listener, full, address.as_socket().unwrap().port());
        }
        assert!(full.len() < 100);
    }
}

#[test]
fn a_thousand_flows_carry_their_own_bytes() {
    let port = echo_server("127.0.0.1");
    let mut guest = Guest::open(allow_all());
    let handles: Vec<_> = (0..1000)
        .map(|_| guest.connect_with("127.0.0.1", port, 4096))
        .collect();
    let sent: Vec<Vec<u8>> = (0..1000u32)
        .map(|n| n.to_be_bytes().repeat(1 + n as usize % 200))
        .collect();
    let mut asked = vec![false; handles.len()];
    let mut open: Vec<usize> = (0..handles.len()).collect();
    let mut came = vec![Vec::new(); handles.len()];
    // Read as they come: a socket that is left alone forgets what it holds when its wait for late segments is over.
    guest.until("all have ended", |guest| {
        open.retain(|&index| {
            let socket = guest.socket(handles[index]);
            if !asked[index] && socket.may_send() {
                asked[index] = socket.send_slice(&sent[index]).unwrap() == sent[index].len();
                socket.close();
            }
            while socket.can_recv() {
                socket
                    .recv(|bytes| (bytes.len(), came[index].extend_from_slice(bytes)))
                    .unwrap();
            }
            socket.state() != State::Closed && (!asked[index] || socket.may_recv())
        });
        open.is_empty()
    });
    for (index, (came, sent)) in came.iter().zip(&sent).enumerate() {
        assert!(
            came == sent,
            "flow {index}: {} of {}",
            came.len(),
            sent.len()
        );
    }
    guest.until("no flow is left", |guest| guest.metric("tcp_now") == 0);
}
