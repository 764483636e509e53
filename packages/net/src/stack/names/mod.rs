//! Names as a guest meets them, frame by frame, with a name server that the test writes.

mod answers;
mod closed;
mod standing;

use super::forward::{Forwarder, Mode};
use super::namespace::inside;
use super::packet::{self, ETHERNET};
use super::reply;
use super::servers::Servers;
use super::testing::{config, ends, Guest, Log};
use super::warden::{Ward, Warden};
use crate::policy::{Name, Names, Pins, Policy, Preset};
use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::svcb::{IpHint, SvcParamKey, SvcParamValue, SVCB};
use hickory_proto::rr::rdata::{CNAME, HTTPS, SOA, TXT};
use hickory_proto::rr::{Name as Owner, RData, Record, RecordType};
use smoltcp::socket::tcp::State;
use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;

const A: u16 = 1;
const CNAME_: u16 = 5;
const NULL: u16 = 10;
const PTR: u16 = 12;
const TXT_: u16 = 16;
const AAAA: u16 = 28;
const HTTPS_: u16 = 65;

// -- A name server ---------------------------------------------------------------------------------

/// What it was asked: name, type, number, the port that asked.
type Heard = (String, u16, u16, u16);
type Knows = dyn Fn(&str, u16, bool) -> Option<Message> + Send + Sync;

fn owner(name: &str) -> Owner {
    Owner::from_ascii(format!("{name}.")).unwrap()
}

fn record(name: &str, ttl: u32, data: RData) -> Record {
    Record::from_rdata(owner(name), ttl, data)
}

fn address(name: &str, ttl: u32, text: &str) -> Record {
    let data = match text.parse().unwrap() {
        IpAddr::V4(v4) => RData::A(v4.into()),
        IpAddr::V6(v6) => RData::AAAA(v6.into()),
    };
    record(name, ttl, data)
}

fn alias(name: &str, target: &str) -> Record {
    record(name, 60, RData::CNAME(CNAME(owner(target))))
}

fn says(records: Vec<Record>) -> Option<Message> {
    let mut message = Message::new();
    message.add_answers(records);
    Some(message)
}

fn fails(code: ResponseCode) -> Option<Message> {
    let mut message = Message::new();
    message.set_response_code(code);
    Some(message)
}

/// It answers on UDP and TCP, if `knows` (of name, type, and whether it is TCP) says something.
fn serve(at: &str, knows: Arc<Knows>) -> (SocketAddr, Log<Heard>) {
    // Where the port is for us to choose, it has to be free for both.
    let (tcp, udp) = loop {
        let tcp = TcpListener::bind(at).unwrap();
        match UdpSocket::bind(tcp.local_addr().unwrap()) {
            Ok(udp) => break (tcp, udp),
            Err(error) => assert!(at.ends_with(":0"), "{at}: {error}"),
        }
    };
    let server = udp.local_addr().unwrap();
    let log: Log<Heard> = Log::default();
    let answer = move |bytes: &[u8], from: SocketAddr, over_tcp: bool, log: &Log<Heard>| {
        let asked = Message::from_vec(bytes).unwrap();
        let query = asked.query().unwrap().clone();
        let name = query.name().to_ascii();
        let name = name.trim_end_matches('.');
        let kind = u16::from(query.query_type());
        let heard = (name.to_owned(), kind, asked.id(), from.port());
        log.lock().unwrap().push(heard);
        let mut said = knows(name, kind, over_tcp)?;
        said.set_id(asked.id())
            .set_message_type(MessageType::Response)
            .add_query(query);
        Some(said.to_vec().unwrap())
    };
    let answer = Arc::new(answer);
    let (by_udp, udp_log) = (Arc::clone(&answer), Arc::clone(&log));
    thread::spawn(move || loop {
        let mut bytes = [0; 1500];
        let (count, from) = udp.recv_from(&mut bytes).unwrap();
        if let Some(said) = by_udp(&bytes[..count], from, false, &udp_log) {
            udp.send_to(&said, from).unwrap();
        }
    });
    let tcp_log = Arc::clone(&log);
    thread::spawn(move || {
        for client in tcp.incoming() {
            let mut client = client.unwrap();
            let mut length = [0; 2];
            client.read_exact(&mut length).unwrap();
            let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
            client.read_exact(&mut bytes).unwrap();
            let from = client.peer_addr().unwrap();
            if let Some(said) = answer(&bytes, from, true, &tcp_log) {
                let framed = [&(said.len() as u16).to_be_bytes()[..], &said].concat();
                client.write_all(&framed).unwrap();
            }
        }
    });
    (server, log)
}

fn server(
    knows: impl Fn(&str, u16, bool) -> Option<Message> + Send + Sync + 'static,
) -> (SocketAddr, Log<Heard>) {
    serve("127.0.0.1:0", Arc::new(knows))
}

fn names(log: &Log<Heard>) -> Vec<String> {
    let heard = log.lock().unwrap();
    heard.iter().map(|(name, ..)| name.clone()).collect()
}

// -- A guest that asks -----------------------------------------------------------------------------

fn policy(preset: Preset, rules: &[&str]) -> Policy {
    let rules = rules.iter().map(|rule| rule.parse().unwrap()).collect();
    let gateway: IpAddr = ends().v4.unwrap().1.into();
    let gateway6: IpAddr = ends().v6.unwrap().1.into();
    Policy::new(preset, rules, Names::Strict)
        .unwrap()
        .with_host([gateway, gateway6])
}

struct Asking {
    guest: Guest,
    ward: Ward,
    next: u16,
    records: Vec<String>,
}

impl Asking {
    fn new(policy: Policy, servers: Vec<SocketAddr>) -> Asking {
        Asking::with(config(), policy, Servers::fixed(servers), Mode::Resolve)
    }

    fn with(config: super::Config, policy: Policy, servers: Servers, mode: Mode) -> Asking {
        let ward = Ward::new(policy);
        let forwarder = Forwarder::over(ward.clone(), config.ends, servers, mode);
        let gate = Box::new(Warden(ward.clone()));
        Asking {
            guest: Guest::new(config, gate, Box::new(forwarder)),
            ward,
            next: 100,
            records: Vec::new(),
        }
    }

    /// Send a question as it is written, and give its number.
    fn send(&mut self, name: &str, kind: u16, edns: Option<u16>) -> u16 {
        self.next += 1;
        let message = question(self.next, name, kind, edns);
        let packet = reply::udp(
            (own("8.8.8.8"), 4000),
            ("8.8.8.8".parse().unwrap(), 53),
            &message,
        );
        self.guest.packet(&packet);
        self.next
    }

    fn receive(&mut self, id: u16) -> Vec<u8> {
        self.guest.find("an answer", |frame| {
            delivered(frame, 4000).filter(|answer| answer[..2] == id.to_be_bytes())
        })
    }

    fn ask(&mut self, name: &str, kind: u16) -> Message {
        let id = self.send(name, kind, None);
        Message::from_vec(&self.receive(id)).unwrap()
    }

    /// The same over TCP.
    fn ask_over_tcp(&mut self, name: &str, kind: u16) -> Message {
        let message = question(9, name, kind, None);
        let handle = self.guest.connected("8.8.8.8", 53);
        let framed = [&(message.len() as u16).to_be_bytes()[..], &message].concat();
        self.guest.write(handle, &framed);
        self.guest.socket(handle).close();
        let answer = self.guest.read_to_end(handle).unwrap();
        Message::from_vec(&answer[2..]).unwrap()
    }

    /// The code of an answer and the addresses in it.
    fn told(&mut self, name: &str, kind: u16) -> (ResponseCode, Vec<String>) {
        let message = self.ask(name, kind);
        (message.response_code(), told(&message))
    }

    fn pinned(&self, name: &str, address: &str) -> bool {
        let name = Name::parse(name).unwrap();
        let pins: &Pins = &self.ward.state().pins;
        pins.has(&name, address.parse().unwrap())
    }

    /// Whether a record that was made since the start says `text`.
    fn recorded(&mut self, text: &str) -> bool {
        self.records.extend(self.guest.stack.audit());
        self.records.iter().any(|line| line.contains(text))
    }

    /// What becomes of a connection: whether it is made.
    fn connects(&mut self, address: &str, port: u16) -> bool {
        let handle = self.guest.connect(address, port);
        self.guest.until("an end", |guest| {
            !matches!(guest.state(handle), State::SynSent) || refused(guest)
        });
        let made = self.guest.state(handle) == State::Established;
        self.guest.socket(handle).abort();
        made
    }

    /// Whether a datagram is answered with "prohibited".
    fn prohibited(&mut self, address: &str, port: u16) -> bool {
        self.guest.seen.clear();
        let packet = reply::udp(
            (own(address), 4001),
            (address.parse().unwrap(), port),
            b"secret",
        );
        self.guest.packet(&packet);
        let told = self.guest.find("an ICMP message", icmp);
        matches!(told, (3, 13) | (1, 1))
    }
}

/// Whether an ICMP message came that ends a connection attempt.
fn refused(guest: &mut Guest) -> bool {
    let place = guest.seen.iter().position(|frame| icmp(frame).is_some());
    place.map(|place| guest.seen.remove(place)).is_some()
}

fn own(target: &str) -> IpAddr {
    match target.parse().unwrap() {
        IpAddr::V4(_) => ends().v4.unwrap().0.into(),
        IpAddr::V6(_) => ends().v6.unwrap().0.into(),
    }
}

fn question(id: u16, name: &str, kind: u16, edns: Option<u16>) -> Vec<u8> {
    let additional = u8::from(edns.is_some());
    let mut message = [
        &id.to_be_bytes()[..],
        &[1, 0, 0, 1, 0, 0, 0, 0, 0, additional],
    ]
    .concat();
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend_from_slice(label.as_bytes());
    }
    message.push(0);
    message.extend_from_slice(&kind.to_be_bytes());
    message.extend_from_slice(&[0, 1]);
    if let Some(payload) = edns {
        message.extend_from_slice(&[0, 0, 41]);
        message.extend_from_slice(&payload.to_be_bytes());
        message.extend_from_slice(&[0; 6]);
    }
    message
}

fn told(message: &Message) -> Vec<String> {
    let addresses = message.answers().iter().filter_map(|record| {
        let data = record.data();
        data.ip_addr().map(|address| address.to_string())
    });
    addresses.collect()
}

/// The data of a UDP datagram to the guest's port `to`.
fn delivered(frame: &[u8], to: u16) -> Option<Vec<u8>> {
    let packet = frame.get(ETHERNET..)?;
    let body = match packet.first()? >> 4 {
        4 if packet.get(9) == Some(&packet::UDP) => packet.get(20..)?,
        6 if packet.get(6) == Some(&packet::UDP) => packet.get(40..)?,
        _ => return None,
    };
    (body.get(2..4)? == to.to_be_bytes()).then(|| body[8..].to_vec())
}

/// Type and code of an ICMP message.
fn icmp(frame: &[u8]) -> Option<(u8, u8)> {
    let packet = frame.get(ETHERNET..)?;
    let body = match packet.first()? >> 4 {
        4 if packet.get(9) == Some(&packet::ICMP4) => packet.get(20..)?,
        6 if packet.get(6) == Some(&packet::ICMP6) && packet.get(40)? < &128 => packet.get(40..)?,
        _ => return None,
    };
    Some((*body.first()?, *body.get(1)?))
}

const GOOD: &str = "93.184.215.14";
