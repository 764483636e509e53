//! Upstream proxies, written here: what they are asked, and that nothing goes past them.

use super::proxy::Proxy;
use super::testing::{config, ends, Guest, Log};
use super::tests::{datagram, echo_server, icmp, pattern};
use super::warden::{Ward, Warden};
use crate::policy::{Name, Names, Policy, Preset};
use smoltcp::socket::tcp::State;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Where nobody is at port 443; whatever is asked of the written proxies is connected to an echo server.
const TARGET: &str = "127.0.0.80";

/// A guest whose flows go through `url`, except to `no_proxy`; `names` are pinned to the target, the last one last.
fn behind(url: &str, no_proxy: &str, names: &[&str]) -> (Guest, Ward) {
    let mut config = config();
    config.proxy = Some(Proxy::parse(url, no_proxy).unwrap());
    config.limits.connect = Duration::from_secs(2);
    let v4 = ends().v4.unwrap().1.into();
    let policy = Policy::new(Preset::AllowAll, Vec::new(), Names::PinOnly).unwrap();
    let ward = Ward::new(policy.with_host([v4]));
    for name in names {
        let name = Name::parse(name).unwrap();
        let until = Instant::now() + Duration::from_secs(600);
        let target = TARGET.parse().unwrap();
        assert!(ward.state().pins.pin(&name, target, until));
    }
    let gate = Box::new(Warden(ward.clone()));
    let guest = Guest::new(config, gate, Box::new(super::dns::Refuser));
    (guest, ward)
}

/// A server that does `work` with each client, one after the other.
fn serving(work: impl Fn(TcpStream) + Send + 'static) -> u16 {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for client in listener.incoming() {
            work(client.unwrap());
        }
    });
    port
}

/// Bytes both ways between a client and an echo server; `first` is what the target says at once.
fn carry(mut client: TcpStream, echo: u16, answer: &[u8], first: &[u8]) {
    let mut target = TcpStream::connect(("127.0.0.1", echo)).unwrap();
    // Answer and first bytes in one segment.
    client.write_all(&[answer, first].concat()).unwrap();
    let (mut from, mut to) = (client.try_clone().unwrap(), target.try_clone().unwrap());
    thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(std::net::Shutdown::Write);
    });
    thread::spawn(move || {
        let _ = std::io::copy(&mut target, &mut client);
        let _ = client.shutdown(std::net::Shutdown::Write);
    });
}

fn exactly(client: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    client.read_exact(&mut bytes).unwrap();
    bytes
}

/// A proxy of HTTP, and the heads that it was sent.
fn http_proxy() -> (u16, Log<String>) {
    let log: Log<String> = Log::default();
    let heads = Arc::clone(&log);
    let echo = echo_server("127.0.0.1");
    let port = serving(move |mut client| {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.extend(exactly(&mut client, 1));
        }
        heads.lock().unwrap().push(String::from_utf8(head).unwrap());
        carry(client, echo, b"HTTP/1.1 200 OK\r\nVia: x\r\n\r\n", b"first");
    });
    (port, log)
}

/// A proxy of SOCKS5 that wants `me` and `secret`, and the addresses that it was asked for.
fn socks_proxy() -> (u16, Log<Vec<u8>>) {
    let log: Log<Vec<u8>> = Log::default();
    let asked = Arc::clone(&log);
    let echo = echo_server("127.0.0.1");
    let port = serving(move |mut client| {
        assert_eq!(exactly(&mut client, 4), [5, 2, 0, 2]);
        client.write_all(&[5, 2]).unwrap();
        assert_eq!(exactly(&mut client, 11), b"\x01\x02me\x06secret");
        // In pieces.
        client.write_all(&[1]).unwrap();
        client.write_all(&[0]).unwrap();
        let mut request = exactly(&mut client, 5);
        let rest = match request[3] {
            1 => 3,
            4 => 15,
            _ => usize::from(request[4]),
        };
        request.extend(exactly(&mut client, rest + 2));
        asked.lock().unwrap().push(request);
        carry(client, echo, b"\x05\0\0\x03\x01x\x1f\x90", b"first");
    });
    (port, log)
}

/// The target has spoken first, and sends back what it gets until the guest ends.
fn talks(guest: &mut Guest, address: &str) {
    let handle = guest.connected(address, 443);
    let data = pattern(300_000);
    guest.write(handle, &data);
    guest.socket(handle).close();
    let all = guest.read_to_end(handle).unwrap();
    assert!(all.starts_with(b"first") && all[5..] == data);
    guest.until("no flow is left", |guest| guest.metric("tcp_now") == 0);
}

#[test]
fn a_proxy_of_http_carries_flows_by_name_where_one_is_known() {
    let (port, log) = http_proxy();
    let url = format!("http://localhost:{port}");
    // Of several names the one that was resolved last.
    let (mut guest, ward) = behind(&url, "", &["old.example", "web.example"]);
    talks(&mut guest, TARGET);
    talks(&mut guest, "127.0.0.9");
    let again = Name::parse("old.example").unwrap();
    ward.state()
        .pins
        .pin(&again, TARGET.parse().unwrap(), Instant::now());
    talks(&mut guest, TARGET);
    let asked: Vec<_> = ["web.example:443", "127.0.0.9:443", "old.example:443"]
        .iter()
        .map(|target| format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"))
        .collect();
    assert_eq!(*log.lock().unwrap(), asked);
}

#[test]
fn a_proxy_of_socks5_carries_flows_by_name_where_one_is_known() {
    let (port, log) = socks_proxy();
    let url = format!("socks5://me:secret@127.0.0.1:{port}");
    let (mut guest, _ward) = behind(&url, "", &["web.example"]);
    talks(&mut guest, TARGET);
    talks(&mut guest, "2001:db8::9");
    let by_name = b"\x05\x01\x00\x03\x0bweb.example\x01\xbb".to_vec();
    let by_address = b"\x05\x01\x00\x04\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x09\x01\xbb".to_vec();
    assert_eq!(*log.lock().unwrap(), [by_name, by_address]);
}

#[test]
fn a_proxy_that_does_not_say_yes_makes_the_target_unreachable_and_nothing_goes_straight() {
    let canary = TcpListener::bind("127.0.0.1:0").unwrap();
    canary.set_nonblocking(true).unwrap();
    let target = canary.local_addr().unwrap().port();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let dead = nobody.local_addr().unwrap().port();
    drop(nobody);
    let answering = |answer: &'static [u8]| {
        serving(move |mut client| {
            let _ = client.read(&mut [0; 1000]);
            let _ = client.write_all(answer);
            // The end only once the other side has had enough.
            let _ = client.read(&mut [0; 1000]);
        })
    };
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let secretive = silent.local_addr().unwrap().port();
    for (scheme, port, told, why) in [
        ("http", dead, (3, 1), "Connection refused"),
        ("socks5", dead, (3, 1), "Connection refused"),
        ("http", secretive, (3, 1), "no answer within 2 s"),
        ("http", serving(drop), (3, 1), "proxy http://127.0.0.1:"),
        (
            "http",
            answering(b"HTTP/1.1 403 No\r\n\r\n"),
            (3, 13),
            "it refused with status 403",
        ),
        (
            "http",
            answering(b"HTTP/1.1 502 Bad\r\n\r\n"),
            (3, 1),
            "it refused with status 502",
        ),
        (
            "http",
            answering(b"HTTP/1.1 407 Who\r\n\r\n"),
            (3, 1),
            "it wants a user and a password",
        ),
        (
            "http",
            answering(b"SSH-2.0-OpenSSH_9\r\n"),
            (3, 1),
            "it does not speak the protocol",
        ),
        (
            "socks5",
            answering(b"\x05\xff"),
            (3, 1),
            "it wants a user and a password",
        ),
        (
            "socks5",
            answering(b"\x05\x00\x05\x03\x00\x01"),
            (3, 0),
            "it refused with code 3",
        ),
        (
            "socks5",
            answering(b"HTTP/1.1 400 Bad\r\n\r\n"),
            (3, 1),
            "it does not speak the protocol",
        ),
    ] {
        let (mut guest, _ward) = behind(&format!("{scheme}://127.0.0.1:{port}"), "", &[]);
        let handle = guest.connect("127.0.0.1", target);
        assert_eq!(guest.find("an ICMP error", icmp), told, "{why}");
        assert_eq!(guest.state(handle), State::SynSent);
        let records = guest.stack.audit();
        assert!(
            records[1].contains(why) && records[1].contains("\"deny\""),
            "{records:?}"
        );
        guest.until("no flow is left", |guest| guest.metric("tcp_now") == 0);
    }
    // The target refused, as the proxy says: that is a reset.
    let refusing = answering(b"\x05\x00\x05\x05\x00\x01");
    let (mut guest, _ward) = behind(&format!("socks5://127.0.0.1:{refusing}"), "", &[]);
    let handle = guest.connect("127.0.0.1", target);
    guest.until("refused", |guest| guest.state(handle) == State::Closed);
    assert!(canary.accept().is_err());
}

#[test]
fn what_is_exempt_and_the_host_itself_go_past_the_proxy() {
    let (port, log) = http_proxy();
    let echo = echo_server("127.0.0.1");
    let url = format!("http://127.0.0.1:{port}");
    let (mut guest, _ward) = behind(&url, "10.0.0.0/8,127.0.0.0/8", &[]);
    for address in ["127.0.0.1", "10.9.0.1"] {
        let handle = guest.connected(address, echo);
        guest.write(handle, b"hello");
        guest.socket(handle).close();
        assert_eq!(guest.read_to_end(handle).unwrap(), b"hello");
    }
    assert!(log.lock().unwrap().is_empty());
}

#[test]
fn a_name_is_exempt_if_all_names_of_its_address_are() {
    for (names, carried) in [
        (&["a.corp.example"][..], false),
        (&["a.corp.example", "b.corp.example"], false),
        (&["a.corp.example", "b.example"], true),
        (&[], true),
    ] {
        let (port, log) = http_proxy();
        let url = format!("http://127.0.0.1:{port}");
        let (mut guest, _ward) = behind(&url, ".corp.example", names);
        let target = serving(|mut client| client.write_all(b"straight").unwrap());
        let target = match carried {
            true => 443,
            false => target,
        };
        let handle = guest.connected(TARGET, target);
        guest.socket(handle).close();
        let told = guest.read_to_end(handle).unwrap();
        let expected = if carried { &b"first"[..] } else { b"straight" };
        assert_eq!(told, expected, "{names:?}");
        assert_eq!(log.lock().unwrap().len(), usize::from(carried));
    }
}

#[test]
fn datagrams_and_echo_do_not_go_round_the_proxy() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    server
        .set_read_timeout(Some(Duration::from_secs(300)))
        .unwrap();
    let port = server.local_addr().unwrap().port();
    let (mut guest, _ward) = behind("http://127.0.0.1:1", "", &[]);
    guest.packet(&datagram("127.0.0.1", 999, port, b"round"));
    assert_eq!(guest.find("prohibited", icmp), (3, 13));
    let records = guest.stack.audit();
    assert!(
        records[0].contains("built-in: the proxy carries TCP only"),
        "{records:?}"
    );
    // To the host itself, and to what is exempt, there is no proxy.
    guest.packet(&datagram("10.9.0.1", 999, port, b"host"));
    let mut got = [0; 10];
    assert_eq!(server.recv(&mut got).unwrap(), 4);
    assert_eq!(got[..4], *b"host");
    let (mut guest, _ward) = behind("http://127.0.0.1:1", "127.0.0.1", &[]);
    guest.packet(&datagram("127.0.0.1", 999, port, b"exempt"));
    assert_eq!(server.recv(&mut got).unwrap(), 6);
}

#[test]
fn the_proxy_itself_is_out_of_reach() {
    let (port, log) = http_proxy();
    for url in [
        format!("http://127.0.0.1:{port}"),
        format!("http://localhost:{port}"),
    ] {
        for no_proxy in ["", "*"] {
            let (mut guest, _ward) = behind(&url, no_proxy, &[]);
            // By its own address, as the host's gateway, and by another of the host's addresses.
            for address in ["127.0.0.1", "10.9.0.1", "127.0.0.2"] {
                guest.connect(address, port);
                assert_eq!(guest.find("prohibited", icmp), (3, 13), "{address}");
            }
            let records = guest.stack.audit();
            let told = "built-in: the proxy is not for the sandbox to reach";
            let count = records.iter().filter(|line| line.contains(told)).count();
            assert_eq!(count, 3, "{records:?}");
        }
    }
    assert!(log.lock().unwrap().is_empty());
}
