//! Published ports (N32): clients on the loopback interface, and a guest that serves them.

use super::namespace::{entries, inside};
use super::reply;
use super::testing::{allow_all, config, ends, Guest, Log, Rules};
use super::tests::{arrived, pattern};
use super::{Binding, Config, PortUnavailable, Stack};
use crate::policy::{Action, Direction, Flow, Protocol};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::State;
use socket2::SockRef;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

const WEB: u16 = 8080;
const NAMES: u16 = 5300;

fn publishing(protocol: Protocol, host: &str, guest: u16) -> Config {
    let host = SocketAddr::new(host.parse().unwrap(), 0);
    let mut config = config();
    config.ports = vec![Binding {
        protocol,
        host,
        guest,
    }];
    config
}

fn web() -> Config {
    publishing(Protocol::Tcp, "127.0.0.1", WEB)
}

fn open(config: Config, gate: Box<dyn super::Gate>) -> (Guest, SocketAddr) {
    let guest = Guest::new(config, gate, Box::new(super::dns::Refuser));
    let address = guest.stack.ports()[0];
    (guest, address)
}

/// A guest that serves, and a client that is connected to it.
fn served() -> (Guest, SocketHandle, TcpStream) {
    let (mut guest, address) = open(web(), allow_all());
    let handle = guest.listen(WEB);
    let client = TcpStream::connect(address).unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(300)))
        .unwrap();
    guest.accepted(handle);
    (guest, handle, client)
}

/// What the kernel says to a client whose connection was reset.
fn reset(mut client: TcpStream) -> bool {
    let error = client.read(&mut [0; 10]).map_err(|error| error.kind());
    error == Err(ErrorKind::ConnectionReset)
}

/// Whether a connection to `address` is reset, also if that comes before the kernel has told that it was made.
fn met_by_reset(address: SocketAddr) -> bool {
    match TcpStream::connect(address) {
        Ok(client) => reset(client),
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

// -- TCP -------------------------------------------------------------------------------------------

#[test]
fn a_client_sees_the_guest_and_the_guest_its_gateway() {
    let (mut guest, handle, mut client) = served();
    let remote = guest.socket(handle).remote_endpoint().unwrap();
    assert_eq!(IpAddr::from(remote.addr), ends().v4.unwrap().1);
    assert!(remote.port >= 1 << 15);
    let data = pattern(3_000_000);
    let sent = data.clone();
    let thread = thread::spawn(move || {
        client.write_all(&sent).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut all = Vec::new();
        client.read_to_end(&mut all).unwrap();
        all
    });
    assert!(guest.read_to_end(handle).unwrap() == data);
    // The client has ended; the other direction goes on.
    guest.write(handle, &data);
    guest.socket(handle).close();
    guest.until("the client is done", |_| thread.is_finished());
    assert!(thread.join().unwrap() == data);
    guest.until("no flow is left", |guest| guest.metric("tcp_now") == 0);
    let records = guest.stack.audit();
    assert_eq!(records.len(), 1, "{records:?}");
    let told = "\"direction\":\"ingress\",\"protocol\":\"tcp\",\"address\":\"127.0.0.1\",\"port\":8080,\"action\":\"allow\"";
    assert!(records[0].contains(told), "{records:?}");
}

#[test]
fn the_guest_may_end_first() {
    let (mut guest, handle, mut client) = served();
    guest.write(handle, b"bye");
    guest.socket(handle).close();
    let thread = thread::spawn(move || {
        let mut all = Vec::new();
        client.read_to_end(&mut all).unwrap();
        client.write_all(b"still here").unwrap();
        all
    });
    assert_eq!(guest.read_to_end(handle).unwrap(), b"still here");
    assert_eq!(thread.join().unwrap(), b"bye");
    guest.until("no flow is left", |guest| guest.metric("tcp_now") == 0);
}

#[test]
fn a_port_on_which_the_guest_does_not_listen_is_reset() {
    let (mut guest, address) = open(web(), allow_all());
    let client = TcpStream::connect(address).unwrap();
    guest.until("refused", |guest| {
        guest.metric("tcp_opened") == 1 && guest.metric("tcp_now") == 0
    });
    assert!(reset(client));
}

#[test]
fn n32_a_denied_peer_is_reset_and_the_guest_sees_nothing_of_it() {
    let log: Log<Flow> = Log::default();
    let asked = Arc::clone(&log);
    let (guest, address) = open(
        web(),
        Rules::new(move |flow| {
            asked.lock().unwrap().push(flow.clone());
            Action::Deny
        }),
    );
    assert!(met_by_reset(address));
    assert_eq!(
        *log.lock().unwrap(),
        [Flow {
            direction: Direction::Ingress,
            protocol: Protocol::Tcp,
            address: "127.0.0.1".parse().unwrap(),
            port: Some(WEB),
            name: None,
        }]
    );
    assert_eq!(guest.metric("frames_to_guest"), 0);
    let records = guest.stack.audit();
    assert!(records[0].contains("\"ingress\"") && records[0].contains("\"deny\""));
}

#[test]
fn resets_pass_both_ways() {
    let (mut guest, handle, client) = served();
    guest.socket(handle).abort();
    guest.until("no flow is left", |guest| guest.metric("tcp_now") == 0);
    assert!(reset(client));

    let (mut guest, handle, client) = served();
    SockRef::from(&client)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(client);
    assert_eq!(guest.read_to_end(handle), None);
    guest.until("no flow is left", |guest| guest.metric("tcp_now") == 0);
}

#[test]
fn a_guest_that_does_not_read_stops_its_client_and_nobody_else() {
    let mut config = web();
    let other = Binding {
        guest: WEB + 1,
        ..config.ports[0]
    };
    config.ports.push(other);
    let (mut guest, address) = open(config, allow_all());
    let slow = guest.listen(WEB);
    let quick = guest.listen(WEB + 1);
    let mut client = TcpStream::connect(address).unwrap();
    let thread = thread::spawn(move || {
        client
            .set_write_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        let chunk = pattern(1 << 16);
        let mut sent = 0;
        while let Ok(count) = client.write(&chunk) {
            sent += count;
        }
        sent
    });
    guest.accepted(slow);
    let mut second = TcpStream::connect(guest.stack.ports()[1]).unwrap();
    second.write_all(b"hello").unwrap();
    second.shutdown(Shutdown::Write).unwrap();
    guest.accepted(quick);
    assert_eq!(guest.read_to_end(quick).unwrap(), b"hello");
    guest.until("the client gave up", |_| thread.is_finished());
    let sent = thread.join().unwrap();
    assert!(sent < 64 << 20, "{sent}");
    assert_eq!(guest.read_to_end(slow).unwrap().len(), sent);
}

#[test]
fn peers_count_as_connections() {
    let mut config = web();
    config.limits.connections = 2;
    let (mut guest, address) = open(config, allow_all());
    let handles = [guest.listen(WEB), guest.listen(WEB)];
    let clients = [0, 1].map(|_| TcpStream::connect(address).unwrap());
    for handle in handles {
        guest.accepted(handle);
    }
    assert!(met_by_reset(address));
    let limit = guest.stack.audit().pop().unwrap();
    assert!(limit.contains("limit: 2 TCP flows at a time"), "{limit}");
    drop(clients);
}

/// A stack whose guest never answers.
fn unanswered(config: Config) -> (Stack, UnixStream) {
    let (link, far) = UnixStream::pair().unwrap();
    let refuser = Box::new(super::dns::Refuser);
    let stack = Stack::start(far.into(), config, allow_all(), refuser, Arc::new(|| {})).unwrap();
    (stack, link)
}

#[test]
fn a_guest_that_does_not_answer_costs_its_client_the_connection() {
    let mut config = web();
    config.limits.handshake = Duration::from_millis(100);
    let (stack, _link) = unanswered(config);
    assert!(met_by_reset(stack.ports()[0]));
}

#[test]
fn connections_that_the_guest_has_not_answered_are_bounded() {
    let mut config = web();
    config.limits.half_open = 2;
    let (stack, _link) = unanswered(config);
    let _waiting = [0; 2].map(|_| TcpStream::connect(stack.ports()[0]).unwrap());
    assert!(met_by_reset(stack.ports()[0]));
    let limit = stack.audit().pop().unwrap();
    let told = "limit: 2 connections that the guest has not answered";
    assert!(limit.contains(told), "{limit}");
}

#[test]
fn a_resting_connection_ends() {
    // Enough for the guest to take it before it has rested too long, on a busy machine.
    let mut config = web();
    config.limits.tcp_idle = Duration::from_secs(2);
    let (mut guest, address) = open(config, allow_all());
    let handle = guest.listen(WEB);
    let client = TcpStream::connect(address).unwrap();
    guest.accepted(handle);
    guest.until("the guest is reset", |guest| {
        guest.state(handle) == State::Closed
    });
    assert!(reset(client));
}

#[test]
fn a_narrower_policy_cuts_peers() {
    let (mut guest, handle, client) = served();
    guest
        .stack
        .set_gate(Rules::new(|flow| match flow.direction {
            Direction::Egress => Action::Allow,
            Direction::Ingress => Action::Deny,
        }));
    guest.until("cut", |guest| guest.state(handle) == State::Closed);
    assert!(reset(client));
    let records = guest.stack.audit();
    assert!(records[1].contains("policy changed"), "{records:?}");
}

#[test]
fn both_families_are_served_also_by_a_guest_that_has_one() {
    for v6 in [true, false] {
        let mut config = publishing(Protocol::Tcp, "::1", WEB);
        if !v6 {
            config.ends.v6 = None;
        }
        let (mut guest, address) = open(config, allow_all());
        let handle = guest.listen(WEB);
        let mut client = TcpStream::connect(address).unwrap();
        guest.accepted(handle);
        let remote = guest.socket(handle).remote_endpoint().unwrap();
        let ends = ends();
        let gateway = match v6 {
            true => IpAddr::from(ends.v6.unwrap().1),
            false => ends.v4.unwrap().1.into(),
        };
        assert_eq!(IpAddr::from(remote.addr), gateway);
        client.write_all(b"hello").unwrap();
        drop(client);
        assert_eq!(guest.read_to_end(handle).unwrap(), b"hello");
        assert!(guest.stack.audit()[0].contains("\"address\":\"::1\""));
    }
}

#[test]
fn a_port_that_cannot_be_had_fails_the_start_and_leaves_nothing_bound() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = web();
    config.ports.push(Binding {
        host: taken.local_addr().unwrap(),
        ..config.ports[0]
    });
    let (_link, far) = UnixStream::pair().unwrap();
    let refuser = Box::new(super::dns::Refuser);
    let error = Stack::start(far.into(), config, allow_all(), refuser, Arc::new(|| {}));
    let error = error.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<PortUnavailable>());
    assert_eq!(inner.unwrap().binding.host, taken.local_addr().unwrap());
}

#[test]
fn a_stack_that_ended_serves_no_port() {
    for stops in [true, false] {
        let (mut guest, handle, client) = served();
        let address = guest.stack.ports()[0];
        if stops {
            guest.stack.stop();
        } else {
            guest.hang_up();
            guest.ended();
        }
        let refused = TcpStream::connect(address).unwrap_err().kind();
        assert_eq!(refused, ErrorKind::ConnectionRefused);
        // Another can have the port at once, whatever is left of the old connections.
        TcpListener::bind(address).unwrap();
        drop((handle, client));
    }
}

// -- UDP -------------------------------------------------------------------------------------------

fn client(address: SocketAddr) -> UdpSocket {
    let own: IpAddr = match address {
        SocketAddr::V4(_) => "127.0.0.1".parse().unwrap(),
        SocketAddr::V6(_) => "::1".parse().unwrap(),
    };
    let socket = UdpSocket::bind((own, 0)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(300)))
        .unwrap();
    socket.connect(address).unwrap();
    socket
}

#[test]
fn each_peer_has_its_own_flow_and_answers_go_to_it() {
    for address in ["127.0.0.1", "::1"] {
        let config = publishing(Protocol::Udp, address, NAMES);
        let (mut guest, address) = open(config, allow_all());
        let clients = [client(address), client(address)];
        let mut places = Vec::new();
        for (client, data) in clients.iter().zip([&b"one"[..], b"two"]) {
            client.send(data).unwrap();
            let (gateway, from, to, got) = guest.find("a datagram", arrived);
            assert_eq!((to, &got[..]), (NAMES, data));
            places.push((gateway, from));
        }
        assert!(places[0].0 == places[1].0 && places[0].1 != places[1].1);
        let ends = ends();
        let own: IpAddr = match address {
            SocketAddr::V4(_) => ends.v4.unwrap().0.into(),
            SocketAddr::V6(_) => ends.v6.unwrap().0.into(),
        };
        let mut sent = 0;
        for (client, place) in clients.iter().zip(&places) {
            let data = place.1.to_be_bytes();
            guest.packet(&reply::udp((own, NAMES), *place, &data));
            let mut got = [0; 10];
            sent += 2;
            guest.until("sent", |guest| guest.metric("bytes_sent") == sent);
            assert_eq!(client.recv(&mut got).unwrap(), 2);
            assert_eq!(got[..2], data);
        }
        // The same peer again is the same flow, without another record.
        clients[0].send(b"again").unwrap();
        assert_eq!(guest.find("a datagram", arrived).1, places[0].1);
        assert_eq!(guest.stack.audit().len(), 2);
        assert_eq!(guest.metric("peers_now"), 2);
        // From another port of the guest it is a flow of the guest's own to the gateway.
        guest.packet(&reply::udp((own, NAMES + 1), places[0], b"x"));
        guest.until("an own flow", |guest| guest.metric("datagrams_now") == 1);
    }
}

#[test]
fn a_denied_datagram_is_dropped_and_put_on_record_once() {
    let config = publishing(Protocol::Udp, "127.0.0.1", NAMES);
    let (guest, address) = open(config, Rules::new(|_| Action::Deny));
    let client = client(address);
    for _ in 0..100 {
        client.send(b"x").unwrap();
    }
    let mut guest = guest;
    guest.until("denied", |guest| guest.metric("denied") > 0);
    assert_eq!(guest.metric("frames_to_guest"), 0);
    assert!(guest.stack.audit().len() < 10);
}

#[test]
fn peers_rest_are_bounded_and_are_cut() {
    let mut config = publishing(Protocol::Udp, "127.0.0.1", NAMES);
    config.limits.datagrams = 8;
    let (mut guest, address) = open(config.clone(), allow_all());
    let clients: Vec<_> = (0..40).map(|_| client(address)).collect();
    for client in &clients {
        client.send(b"x").unwrap();
    }
    guest.until("all came", |guest| guest.metric("bytes_received") == 40);
    assert_eq!(guest.metric("peers_now"), 8);
    guest.stack.set_gate(Rules::new(|_| Action::Deny));
    guest.until("cut", |guest| guest.metric("peers_now") == 0);

    config.limits.udp_idle = Duration::from_millis(100);
    let (mut guest, address) = open(config, allow_all());
    client(address).send(b"x").unwrap();
    guest.until("came", |guest| guest.metric("bytes_received") == 1);
    guest.until("rested", |guest| guest.metric("peers_now") == 0);
}

#[test]
fn large_datagrams_reach_the_guest_in_fragments() {
    let config = publishing(Protocol::Udp, "127.0.0.1", NAMES);
    let (mut guest, address) = open(config, allow_all());
    client(address).send(&pattern(9000)).unwrap();
    guest.until("fragments", |guest| guest.seen.len() == 7);
}

#[test]
fn nothing_is_left_of_published_ports() {
    // In a process of its own: the descriptors are the process's.
    inside("inbound_tests::nothing_is_left_of_published_ports", || {
        let before = entries("/proc/self/fd");
        for stops in [true, false] {
            let mut config = web();
            config.ports.push(Binding {
                protocol: Protocol::Udp,
                ..config.ports[0]
            });
            let (mut guest, address) = open(config, allow_all());
            let handles: Vec<_> = (0..50).map(|_| guest.listen(WEB)).collect();
            let clients: Vec<_> = (0..60)
                .map(|_| TcpStream::connect(address).unwrap())
                .collect();
            for handle in handles {
                guest.accepted(handle);
            }
            let peers: Vec<_> = (0..50).map(|_| client(guest.stack.ports()[1])).collect();
            for peer in &peers {
                peer.send(b"x").unwrap();
            }
            // Ten more met no socket and were reset.
            guest.until("peers", |guest| {
                guest.metric("tcp_now") == 50 && guest.metric("peers_now") == 50
            });
            if stops {
                guest.stack.stop();
            } else {
                guest.hang_up();
                guest.ended();
            }
            drop((guest, clients, peers));
            assert_eq!(entries("/proc/self/fd"), before);
        }
    });
}
