//! Asking a proxy for a tunnel: CONNECT of HTTP (RFC 9110, 9.3.6) and SOCKS5 (RFC 1928, RFC 1929). What the proxy
//! says is as little to be trusted as anything else from the network.

use super::{Bytes, Host};
use std::net::IpAddr;

/// The longest head of an answer, in bytes.
pub const LONGEST: usize = 16 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http,
    Socks5,
}

/// What the proxy said instead of yes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// An answer of its protocol, and what it says about the target.
    Refused(Reach, String),
    /// It wants credentials, or others.
    Credentials,
    /// Something that no such proxy says.
    Garbage(&'static str),
}

/// What a refusal says about the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    Refused,
    Network,
    Host,
    Prohibited,
}

/// How far the handshake is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Bytes of what was fed that belong to the handshake. What follows an `Open` comes from the target.
    pub used: usize,
    pub next: Next,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Wait for more.
    Read,
    /// Send this, then wait.
    Send(Vec<u8>),
    /// The tunnel is there.
    Open,
    Refused(Refusal),
}

/// One handshake; does no input and output.
pub struct Handshake {
    state: State,
    held: Vec<u8>,
    credentials: Option<(Vec<u8>, Vec<u8>)>,
    request: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Http,
    Method,
    Login,
    Reply,
    Over,
}

impl Handshake {
    /// A tunnel to `host` and `port`, and what to send first. `credentials`: user and password; for SOCKS5 each of
    /// 1 to 255 bytes.
    pub fn new(
        protocol: Protocol,
        credentials: Option<(&[u8], &[u8])>,
        host: &Host,
        port: u16,
    ) -> (Handshake, Vec<u8>) {
        let (state, request, first) = match protocol {
            Protocol::Http => {
                let first = http_request(credentials, host, port);
                (State::Http, Vec::new(), first)
            }
            Protocol::Socks5 => {
                let methods: &[u8] = match credentials {
                    Some(_) => &[5, 2, 0, 2],
                    None => &[5, 1, 0],
                };
                (State::Method, socks_request(host, port), methods.to_vec())
            }
        };
        let handshake = Handshake {
            state,
            held: Vec::new(),
            credentials: credentials.map(|(user, password)| (user.to_vec(), password.to_vec())),
            request,
        };
        (handshake, first)
    }

    /// What came from the proxy. The same, however it is divided.
    pub fn feed(&mut self, bytes: &[u8]) -> Step {
        let mut used = 0;
        for byte in bytes {
            used += 1;
            self.held.push(*byte);
            let next = match self.state {
                State::Http => self.http(),
                State::Method => self.method(),
                State::Login => self.login(),
                State::Reply => self.reply(),
                State::Over => garbage("more after the end"),
            };
            if next != Next::Read {
                self.held.clear();
                if !matches!(next, Next::Send(_)) {
                    self.state = State::Over;
                }
                return Step { used, next };
            }
        }
        let next = Next::Read;
        Step { used, next }
    }

    fn http(&mut self) -> Next {
        const START: &[u8] = b"HTTP/1.";
        let held = &self.held;
        if !START.starts_with(&held[..held.len().min(START.len())]) {
            return garbage("no answer of HTTP/1");
        }
        if held.len() > LONGEST {
            return garbage("a head of more than 16 KiB");
        }
        if !(held.ends_with(b"\n\r\n") || held.ends_with(b"\n\n")) {
            return Next::Read;
        }
        // HTTP/1.1 200 Connection established
        let status = match held.get(START.len()..START.len() + 6) {
            Some([b'0' | b'1', b' ', a, b, c, b' ' | b'\r' | b'\n']) => [*a, *b, *c],
            _ => return garbage("a status line that is none"),
        };
        let text = String::from_utf8_lossy(&status).into_owned();
        match status {
            [b'1'..=b'5', b, c] if !(b.is_ascii_digit() && c.is_ascii_digit()) => {
                garbage("a status line that is none")
            }
            [b'1', ..] => {
                // Something in between; the answer follows.
                self.held.clear();
                Next::Read
            }
            [b'2', ..] => Next::Open,
            [b'4', b'0', b'7'] => Next::Refused(Refusal::Credentials),
            [b'4', b'0', b'3'] => refused(Reach::Prohibited, format!("status {text}")),
            [b'3'..=b'5', ..] => refused(Reach::Host, format!("status {text}")),
            _ => garbage("a status that does not exist"),
        }
    }

    fn method(&mut self) -> Next {
        match (self.held.as_slice(), &self.credentials) {
            ([5], _) => Next::Read,
            ([5, 0], _) => {
                self.state = State::Reply;
                Next::Send(std::mem::take(&mut self.request))
            }
            ([5, 2], Some((user, password))) => {
                self.state = State::Login;
                let text = |part: &[u8]| [&[part.len() as u8][..], part].concat();
                Next::Send([vec![1], text(user), text(password)].concat())
            }
            ([5, 2 | 0xff], _) => Next::Refused(Refusal::Credentials),
            _ => garbage("no answer of SOCKS5"),
        }
    }

    fn login(&mut self) -> Next {
        match self.held.as_slice() {
            [1] => Next::Read,
            [1, 0] => {
                self.state = State::Reply;
                Next::Send(std::mem::take(&mut self.request))
            }
            [1, _] => Next::Refused(Refusal::Credentials),
            _ => garbage("no answer to the password of SOCKS5"),
        }
    }

    fn reply(&mut self) -> Next {
        let held = &mut Bytes(&self.held);
        if held.u8() != Some(5) {
            return garbage("no answer of SOCKS5");
        }
        let Some(code) = held.u8() else {
            return Next::Read;
        };
        if code != 0 {
            return refused(reach(code), format!("code {code}"));
        }
        match held.u8() {
            None => return Next::Read,
            Some(0) => {}
            Some(_) => return garbage("a reserved byte of SOCKS5 that is not 0"),
        }
        // Where the proxy connects from is of no interest, but has to be read.
        let length = match held.u8() {
            None => return Next::Read,
            Some(1) => 4,
            Some(4) => 16,
            Some(3) => match held.u8() {
                None => return Next::Read,
                Some(length) => usize::from(length),
            },
            Some(_) => return garbage("an address of SOCKS5 of a type that does not exist"),
        };
        match held.take(length + 2) {
            Some(_) => Next::Open,
            None => Next::Read,
        }
    }
}

fn garbage(why: &'static str) -> Next {
    Next::Refused(Refusal::Garbage(why))
}

fn refused(reach: Reach, why: String) -> Next {
    Next::Refused(Refusal::Refused(reach, why))
}

/// RFC 1928, 6.
fn reach(code: u8) -> Reach {
    match code {
        2 => Reach::Prohibited,
        3 => Reach::Network,
        5 => Reach::Refused,
        _ => Reach::Host,
    }
}

fn http_request(credentials: Option<(&[u8], &[u8])>, host: &Host, port: u16) -> Vec<u8> {
    let target = match host {
        Host::Name(name) => format!("{name}:{port}"),
        Host::Address(IpAddr::V4(v4)) => format!("{v4}:{port}"),
        Host::Address(IpAddr::V6(v6)) => format!("[{v6}]:{port}"),
    };
    let mut text = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
    if let Some((user, password)) = credentials {
        text += "Proxy-Authorization: Basic ";
        text += &base64(&[user, b":", password].concat());
        text += "\r\n";
    }
    text += "\r\n";
    text.into_bytes()
}

fn socks_request(host: &Host, port: u16) -> Vec<u8> {
    let mut request = vec![5, 1, 0];
    match host {
        Host::Address(IpAddr::V4(v4)) => {
            request.push(1);
            request.extend_from_slice(&v4.octets());
        }
        Host::Address(IpAddr::V6(v6)) => {
            request.push(4);
            request.extend_from_slice(&v6.octets());
        }
        Host::Name(name) => {
            // A name has at most 253 bytes.
            request.extend_from_slice(&[3, name.as_str().len() as u8]);
            request.extend_from_slice(name.as_str().as_bytes());
        }
    }
    request.extend_from_slice(&port.to_be_bytes());
    request
}

/// RFC 4648, 4.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let mut whole = [0; 4];
        whole[1..=group.len()].copy_from_slice(group);
        let bits = u32::from_be_bytes(whole);
        for place in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * place) & 63) as usize];
            let used = place <= group.len();
            text.push(if used { char::from(letter) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Name;
    use proptest::prelude::*;

    const LOGIN: Option<(&[u8], &[u8])> = Some((b"me", b"s:cret"));

    fn host(text: &str) -> Host {
        match text.parse() {
            Ok(address) => Host::Address(address),
            Err(_) => Host::Name(Name::parse(text).unwrap()),
        }
    }

    /// What one side of a handshake has sent in the end, how it ended, and what was left of the answers.
    fn run(
        protocol: Protocol,
        credentials: Option<(&[u8], &[u8])>,
        answers: &[u8],
        step: usize,
    ) -> (Vec<u8>, Next, Vec<u8>) {
        let target = host("example.com");
        let (mut handshake, mut sent) = Handshake::new(protocol, credentials, &target, 443);
        let mut at = 0;
        while at < answers.len() {
            let piece = &answers[at..(at + step).min(answers.len())];
            let Step { used, next } = handshake.feed(piece);
            assert!(used <= piece.len() && used > 0);
            at += used;
            match next {
                Next::Read => assert_eq!(used, piece.len()),
                Next::Send(bytes) => sent.extend(bytes),
                end => return (sent, end, answers[at..].to_vec()),
            }
        }
        (sent, Next::Read, Vec::new())
    }

    fn whole(protocol: Protocol, answers: &[u8]) -> Next {
        let ends = [1, 2, 7, 100_000].map(|step| run(protocol, LOGIN, answers, step));
        assert!(ends.iter().all(|end| *end == ends[0]));
        ends[0].1.clone()
    }

    #[test]
    fn what_is_sent() {
        let (_, first) = Handshake::new(Protocol::Http, None, &host("2001:db8::1"), 22);
        let told = "CONNECT [2001:db8::1]:22 HTTP/1.1\r\nHost: [2001:db8::1]:22\r\n\r\n";
        assert_eq!(String::from_utf8(first).unwrap(), told);
        let (_, first) = Handshake::new(Protocol::Http, LOGIN, &host("example.com"), 443);
        let told = "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\nProxy-Authorization: Basic bWU6czpjcmV0\r\n\r\n";
        assert_eq!(String::from_utf8(first).unwrap(), told);

        let plain = run(Protocol::Socks5, None, b"\x05\x00", 1);
        assert_eq!(
            plain.0,
            b"\x05\x01\x00\x05\x01\x00\x03\x0bexample.com\x01\xbb"
        );
        let login = run(Protocol::Socks5, LOGIN, b"\x05\x02\x01\x00", 1);
        let told = b"\x05\x02\x00\x02\x01\x02me\x06s:cret\x05\x01\x00\x03\x0bexample.com\x01\xbb";
        assert_eq!(login.0, told);
        let v4 = socks_request(&host("192.0.2.1"), 80);
        assert_eq!(v4, [5, 1, 0, 1, 192, 0, 2, 1, 0, 80]);
        let v6 = socks_request(&host("::1"), 80);
        assert_eq!(
            v6,
            b"\x05\x01\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\x50"
        );
    }

    #[test]
    fn what_comes_after_the_answer_is_left_to_the_flow() {
        for step in [1, 5, 1000] {
            let http =
                b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nSSH-2.0";
            let (_, end, rest) = run(Protocol::Http, None, http, step);
            assert_eq!((end, &rest[..]), (Next::Open, &b"SSH-2.0"[..]));
            for bound in [
                &b"\x01\x7f\0\0\x01"[..],
                b"\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01",
                b"\x03\x03a.b",
                b"\x03\x00",
            ] {
                let answer = [b"\x05\x00\x05\x00\x00", bound, b"\x1f\x90SSH-2.0"].concat();
                let (_, end, rest) = run(Protocol::Socks5, None, &answer, step);
                assert_eq!((end, &rest[..]), (Next::Open, &b"SSH-2.0"[..]));
            }
        }
    }

    #[test]
    fn what_is_no_yes() {
        for (answer, reach, why) in [
            (
                "HTTP/1.1 403 Forbidden\r\n\r\n",
                Reach::Prohibited,
                "status 403",
            ),
            (
                "HTTP/1.0 502 Bad Gateway\r\nVia: x\r\n\r\n",
                Reach::Host,
                "status 502",
            ),
            ("HTTP/1.1 302\r\n\r\n", Reach::Host, "status 302"),
        ] {
            let end = Next::Refused(Refusal::Refused(reach, why.to_owned()));
            assert_eq!(whole(Protocol::Http, answer.as_bytes()), end);
        }
        let credentials = Next::Refused(Refusal::Credentials);
        let asked = b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n";
        assert_eq!(whole(Protocol::Http, asked), credentials);
        assert_eq!(whole(Protocol::Socks5, b"\x05\xff"), credentials);
        assert_eq!(whole(Protocol::Socks5, b"\x05\x02\x01\x01"), credentials);
        assert_eq!(run(Protocol::Socks5, None, b"\x05\x02", 1).1, credentials);
        for (code, reach) in [
            (1, Reach::Host),
            (2, Reach::Prohibited),
            (3, Reach::Network),
            (4, Reach::Host),
            (5, Reach::Refused),
            (99, Reach::Host),
        ] {
            let end = Next::Refused(Refusal::Refused(reach, format!("code {code}")));
            assert_eq!(whole(Protocol::Socks5, &[5, 0, 5, code]), end);
        }
        for answer in [
            &b"SSH-2.0-OpenSSH\r\n"[..],
            b"HTTP/2 200\r\n\r\n",
            b"HTTP/1.1 20\r\n\r\n",
            b"HTTP/1.1 2000\r\n\r\n",
            b"HTTP/1.1  200\r\n\r\n",
            b"HTTP/1.1 2xx OK\r\n\r\n",
            b"HTTP/1.1 600 x\r\n\r\n",
            b"\x05\x00",
            &[&b"HTTP/1.1 200 OK\r\n"[..], &[b'x'; LONGEST]].concat(),
        ] {
            let end = whole(Protocol::Http, answer);
            assert!(matches!(end, Next::Refused(Refusal::Garbage(_))), "{end:?}");
        }
        for answer in [
            &b"HTTP/1.1 400"[..],
            b"\x04\x00",
            b"\x05\x01",
            b"\x05\x00\x04",
            b"\x05\x00\x05\x00\x01",
            b"\x05\x00\x05\x00\x00\x02",
            b"\x05\x02\x05\x00",
        ] {
            let end = whole(Protocol::Socks5, answer);
            assert!(matches!(end, Next::Refused(Refusal::Garbage(_))), "{end:?}");
        }
    }

    #[test]
    fn base64_as_in_the_rfc() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    /// Answers that are mostly right, so that the later states are met.
    fn answers() -> impl Strategy<Value = Vec<u8>> {
        let known = prop::sample::select(vec![
            &b"HTTP/1.1 200 OK\r\n"[..],
            b"HTTP/1.1 100 C\r\n\r\n",
            b"HTTP/1.0 407 x",
            b"\r\n",
            b"\n",
            b"\x05\x00",
            b"\x05\x02",
            b"\x01\x00",
            b"\x05\x00\x00\x01\x7f\x00\x00\x01",
            b"\x00\x03\x04",
        ]);
        let piece = prop_oneof![
            known.prop_map(<[u8]>::to_vec),
            prop::collection::vec(any::<u8>(), 0..8)
        ];
        prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn the_end_does_not_depend_on_how_the_answer_is_divided(bytes in answers(), step in 1usize..40, socks: bool, login: bool) {
            let protocol = if socks { Protocol::Socks5 } else { Protocol::Http };
            let credentials = LOGIN.filter(|_| login);
            let divided = run(protocol, credentials, &bytes, step);
            prop_assert_eq!(run(protocol, credentials, &bytes, bytes.len().max(1)), divided);
        }
    }
}
