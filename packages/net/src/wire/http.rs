//! The heads of HTTP/1 requests (RFC 9112), and the requests of one connection after each other.
//!
//! Read strictly: whatever a lenient server could take for another host, another length or
//! another request is malformed, not repaired (S11). HTTP/2 is read by `h2`, responses by `answers`.

use super::body::BodyReader;
use super::{Authority, Progress};

/// The longest head that is read, in bytes.
pub const LONGEST: usize = 32 * 1024;
/// The most header fields of a head.
pub const MOST_FIELDS: usize = 128;

/// How a target that is a URL begins, and the port that it then means.
const SCHEMES: [(&str, u16); 4] = [
    ("http://", 80),
    ("https://", 443),
    ("ws://", 80),
    ("wss://", 443),
];

/// What follows the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    None,
    /// That many bytes.
    Length(u64),
    Chunked,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    /// As it was written: `/path`, `http://host/path`, `host:port` (CONNECT), `*`.
    pub target: String,
    /// Whom the request is for, in all the places that say so alike. None only where a client of
    /// HTTP/1.0 does not say.
    pub authority: Option<Authority>,
    pub body: Body,
    /// It asks to go on with another protocol. Whether it does, the answer says (101).
    pub upgrade: bool,
    /// The other protocol states names too (HTTP/2, TLS).
    pub named_upgrade: bool,
    /// Where the target is a URL: the port that its scheme stands for.
    pub scheme_port: Option<u16>,
    /// Bytes of the head, the empty line included.
    pub length: usize,
}

impl Request {
    /// Whether it asks for a tunnel to `authority`, which is then to be decided on as a flow.
    pub fn is_connect(&self) -> bool {
        self.method == "CONNECT"
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Reads one head.
#[derive(Debug, Default)]
pub struct Reader {
    line: Vec<u8>,
    length: usize,
    fields: usize,
    request: Option<Request>,
    minor: u8,
    host: Option<Authority>,
    hosts: usize,
    content_length: Option<u64>,
    chunked: bool,
}

impl Reader {
    /// Bytes after the head are left alone; `Request::length` tells where it ended.
    pub fn feed(&mut self, bytes: &[u8]) -> Progress<Request> {
        self.read(bytes).1
    }

    /// The number of bytes that were read comes first.
    fn read(&mut self, bytes: &[u8]) -> (usize, Progress<Request>) {
        for (index, byte) in bytes.iter().enumerate() {
            match self.step(*byte) {
                Progress::NeedMore => {}
                end => return (index + 1, end),
            }
        }
        (bytes.len(), Progress::NeedMore)
    }

    fn step(&mut self, byte: u8) -> Progress<Request> {
        self.length += 1;
        if self.length > LONGEST {
            return self.unsound("an HTTP head that is too long");
        }
        if self.request.is_none() {
            if let Some(end) = self.first_line(byte) {
                return end;
            }
        }
        let after_cr = self.line.last() == Some(&b'\r');
        match byte {
            b'\n' if after_cr => {
                self.line.pop();
                let line = std::mem::take(&mut self.line);
                match self.finish_line(&line) {
                    Ok(None) => Progress::NeedMore,
                    Ok(Some(request)) => Progress::Found(request),
                    Err(end) => end,
                }
            }
            b'\n' => self.unsound("a line of HTTP that ends in LF alone"),
            _ if after_cr => self.unsound("CR inside a line of HTTP"),
            b'\r' | b'\t' | b' '..=b'~' | 0x80.. => {
                self.line.push(byte);
                Progress::NeedMore
            }
            _ => self.unsound("a control character in an HTTP head"),
        }
    }

    /// Malformed, if it is HTTP at all: before the first line has ended its beginning tells.
    fn unsound(&self, why: &'static str) -> Progress<Request> {
        const METHODS: [&[u8]; 9] = [
            b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH",
        ];
        let method = self
            .line
            .split(|byte| *byte == b' ')
            .next()
            .unwrap_or_default();
        let http = METHODS
            .iter()
            .any(|known| known.eq_ignore_ascii_case(method))
            || self.line.windows(5).any(|part| part == b"HTTP/");
        if self.request.is_some() || http {
            Progress::Malformed(why)
        } else {
            Progress::NotThis
        }
    }

    /// Ends early when the first line cannot be a request's.
    fn first_line(&self, byte: u8) -> Option<Progress<Request>> {
        let has_space = self.line.contains(&b' ');
        match byte {
            b'\r' | b'\n' if self.line.is_empty() => {
                Some(Progress::Malformed("an empty line before the request"))
            }
            b' ' if self.line.is_empty() => Some(Progress::NotThis),
            b'\n' if !has_space => Some(Progress::NotThis),
            b'\n' => None,
            // No method is so long.
            _ if !has_space && self.line.len() == 32 && byte != b' ' => Some(Progress::NotThis),
            b' ' | b'\r' => None,
            byte if !has_space && !is_token(byte) => Some(Progress::NotThis),
            _ => None,
        }
    }

    fn finish_line(&mut self, line: &[u8]) -> Result<Option<Request>, Progress<Request>> {
        if self.request.is_none() {
            return self.request_line(line).map(|()| None);
        }
        if line.is_empty() {
            return self.finish().map(Some).map_err(Progress::Malformed);
        }
        self.field(line).map(|()| None).map_err(Progress::Malformed)
    }

    fn request_line(&mut self, line: &[u8]) -> Result<(), Progress<Request>> {
        let text = std::str::from_utf8(line).map_err(|_| Progress::NotThis)?;
        let mut parts = text.split(' ');
        let (method, target, version) = (parts.next(), parts.next(), parts.next());
        let (Some(method), Some(target)) = (method, target) else {
            return Err(Progress::NotThis);
        };
        if method == "PRI" && version == Some("HTTP/2.0") {
            return Err(Progress::NotThis);
        }
        let minor = match version {
            Some("HTTP/1.1") => 1,
            Some("HTTP/1.0") => 0,
            // Servers that know HTTP/0.9, or that skip spaces, find a request in these.
            _ if method.eq_ignore_ascii_case("GET") || text.contains("HTTP/") => {
                return Err(Progress::Malformed("a request line that is not of HTTP/1"))
            }
            _ => return Err(Progress::NotThis),
        };
        let graphic = !target.is_empty() && target.bytes().all(|byte| byte.is_ascii_graphic());
        if parts.next().is_some() || !graphic {
            return Err(Progress::Malformed(
                "a request line with odd spaces or characters",
            ));
        }
        self.minor = minor;
        self.request = Some(Request {
            method: method.to_string(),
            target: target.to_string(),
            authority: None,
            body: Body::None,
            upgrade: false,
            named_upgrade: false,
            scheme_port: None,
            length: 0,
        });
        Ok(())
    }

    fn field(&mut self, line: &[u8]) -> Result<(), &'static str> {
        self.fields += 1;
        if self.fields > MOST_FIELDS {
            return Err("too many header fields");
        }
        if matches!(line[0], b' ' | b'\t') {
            return Err("a folded header field");
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let (name, value) = line.split_at(colon.ok_or("a header field without a colon")?);
        if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
            return Err("a header field whose name is no token");
        }
        // A name that differs in `_` alone is the same one to servers that make variables of it.
        let name = name.to_ascii_lowercase();
        let name: Vec<u8> = name
            .iter()
            .map(|b| if *b == b'_' { b'-' } else { *b })
            .collect();
        let value = value[1..].trim_ascii();
        match name.as_slice() {
            b"host" => {
                self.hosts += 1;
                if self.hosts > 1 {
                    return Err("more than one Host");
                }
                if !value.is_empty() {
                    let text = std::str::from_utf8(value).ok();
                    let authority = text.and_then(Authority::parse);
                    self.host = Some(authority.ok_or("a Host that is no host")?);
                }
            }
            b"content-length" => {
                let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
                let text = std::str::from_utf8(value).ok().filter(|_| digits);
                let length = text.and_then(|text| text.parse::<u64>().ok());
                if self.content_length.is_some() {
                    return Err("more than one Content-Length");
                }
                self.content_length = Some(length.ok_or("a Content-Length that is no number")?);
            }
            b"transfer-encoding" => {
                if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err("a Transfer-Encoding other than chunked");
                }
                self.chunked = true;
            }
            b"upgrade" => {
                if let Some(request) = &mut self.request {
                    request.upgrade = true;
                    let value = value.to_ascii_lowercase();
                    request.named_upgrade |= [&b"h2c"[..], b"http", b"tls"]
                        .iter()
                        .any(|known| value.windows(known.len()).any(|part| part == *known));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<Request, &'static str> {
        let mut request = self.request.take().ok_or("no request line")?;
        request.length = self.length;
        request.body = match (self.content_length, self.chunked) {
            (Some(_), true) => return Err("both Content-Length and Transfer-Encoding"),
            (None, true) if self.minor == 0 => return Err("Transfer-Encoding in HTTP/1.0"),
            (None, true) => Body::Chunked,
            (Some(0) | None, false) => Body::None,
            (Some(length), false) => Body::Length(length),
        };
        if self.minor == 1 && self.hosts == 0 {
            return Err("no Host");
        }
        let lower = request.target.to_ascii_lowercase();
        let stated = if request.is_connect() {
            let authority = Authority::parse(&request.target);
            let authority = authority.filter(|authority| authority.port.is_some());
            Some(authority.ok_or("a CONNECT to something that is no host:port")?)
        } else if request.target.starts_with('/') || request.target == "*" {
            None
        } else if let Some((rest, port)) = SCHEMES
            .iter()
            .find_map(|(scheme, port)| Some((lower.strip_prefix(scheme)?, *port)))
        {
            request.scheme_port = Some(port);
            let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            Some(Authority::parse(&rest[..end]).ok_or("a target whose host is no host")?)
        } else {
            return Err("a target that is neither a path nor a URL");
        };
        let host = self.host.take();
        request.authority = match (stated, host) {
            // RFC 9112 3.2.2 would have a proxy ignore Host; who does not would go elsewhere.
            (Some(stated), Some(host)) if stated.host != host.host => {
                return Err("a target and a Host that differ")
            }
            (Some(stated), _) => Some(stated),
            (None, Some(host)) => Some(host),
            (None, None) if self.hosts > 0 => return Err("an empty Host"),
            (None, None) => None,
        };
        Ok(request)
    }
}

/// All the requests of one connection: every head is to be decided on, the second like the first
/// (N04).
#[derive(Debug, Default)]
pub struct Requests {
    state: State,
}

#[derive(Debug)]
enum State {
    Head(Box<Reader>),
    Body(BodyReader),
    /// No longer HTTP.
    Tunnel,
    Over(&'static str),
}

impl Default for State {
    fn default() -> State {
        State::Head(Box::default())
    }
}

impl Requests {
    /// How many of the bytes belong to what was allowed so far, or to the head that was found:
    /// it has to be decided on before they, and those after them, go anywhere. Call again with
    /// the rest. `NotThis` is possible for the first request only.
    pub fn feed(&mut self, bytes: &[u8]) -> (usize, Progress<Request>) {
        let mut read = 0;
        while read < bytes.len() {
            match self.step(&bytes[read..]) {
                (taken, Progress::NeedMore) => read += taken,
                (taken, end) => return (read + taken, end),
            }
        }
        (read, Progress::NeedMore)
    }

    /// As `feed`, for as many bytes as are of one kind.
    pub fn step(&mut self, bytes: &[u8]) -> (usize, Progress<Request>) {
        let State::Head(reader) = &mut self.state else {
            let (taken, ended) = match &mut self.state {
                State::Body(body) => body.feed(bytes),
                State::Tunnel => (bytes.len(), Ok(false)),
                State::Over(why) => (0, Err(*why)),
                State::Head(_) => (0, Ok(false)),
            };
            return match ended {
                Ok(ended) => {
                    if ended {
                        self.state = State::default();
                    }
                    (taken, Progress::NeedMore)
                }
                Err(why) => {
                    self.state = State::Over(why);
                    (taken, Progress::Malformed(why))
                }
            };
        };
        match reader.read(bytes) {
            (taken, Progress::NeedMore) => (taken, Progress::NeedMore),
            (taken, Progress::Found(request)) => {
                self.state = match BodyReader::new(request.body) {
                    Some(body) => State::Body(body),
                    None => State::default(),
                };
                (taken, Progress::Found(request))
            }
            (taken, end) => {
                self.state = State::Over("what follows is no HTTP");
                (taken, end)
            }
        }
    }

    /// How many of the next bytes need not be read: they are of a body.
    pub fn free(&self) -> u64 {
        match &self.state {
            State::Body(body) => body.free(),
            State::Tunnel => u64::MAX,
            State::Head(_) | State::Over(_) => 0,
        }
    }

    /// So many of them went by.
    pub fn skip(&mut self, count: u64) {
        if let State::Body(body) = &mut self.state {
            if body.skip(count) {
                self.state = State::default();
            }
        }
    }

    /// Whether all that was read belongs to whole requests.
    pub fn between(&self) -> bool {
        matches!(&self.state, State::Head(reader) if reader.length == 0)
    }

    /// Whether what was read last is of a head that is not whole.
    pub fn inside_head(&self) -> bool {
        matches!(&self.state, State::Head(reader) if reader.length > 0)
    }

    /// The server agreed to go on with another protocol (101, or 2xx to a CONNECT): what follows
    /// is passed on unread. Never on the client's word alone.
    pub fn switch(&mut self) {
        self.state = State::Tunnel;
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::whole_and_in_pieces;
    use super::super::Host;
    use super::*;
    use crate::policy::Name;
    use proptest::prelude::*;

    fn read(text: &str) -> Progress<Request> {
        whole_and_in_pieces(text.as_bytes(), Reader::default, Reader::feed)
    }

    fn found(text: &str) -> Request {
        match read(text) {
            Progress::Found(request) => request,
            other => panic!("{text:?}: {other:?}"),
        }
    }

    fn host(request: &Request) -> Option<String> {
        match &request.authority.as_ref()?.host {
            Host::Name(name) => Some(name.to_string()),
            Host::Address(address) => Some(address.to_string()),
        }
    }

    #[test]
    fn the_host_is_found_in_every_form_of_request() {
        for (head, expected, port) in [
            ("GET / HTTP/1.1\r\nHost: Example.com", "example.com", None),
            (
                "get /a?b HTTP/1.1\r\nhOST:example.com:8080 ",
                "example.com",
                Some(8080),
            ),
            (
                "GET http://example.com/ HTTP/1.1\r\nHost: example.com",
                "example.com",
                None,
            ),
            (
                "GET HTTP://Example.com?x HTTP/1.1\r\nHost: example.com:80",
                "example.com",
                None,
            ),
            (
                "CONNECT example.com:22 HTTP/1.1\r\nHost: example.com",
                "example.com",
                Some(22),
            ),
            ("CONNECT [2001:db8::1]:22 HTTP/1.0", "2001:db8::1", Some(22)),
            (
                "OPTIONS * HTTP/1.1\r\nHost: example.com",
                "example.com",
                None,
            ),
            ("GET / HTTP/1.1\r\nHost: 192.0.2.1", "192.0.2.1", None),
        ] {
            let text = format!("{head}\r\nAccept: */*\r\n\r\nrest");
            let request = found(&text);
            assert_eq!(host(&request).as_deref(), Some(expected), "{head}");
            assert_eq!(request.authority.as_ref().unwrap().port, port, "{head}");
            assert_eq!(request.length, text.len() - 4);
        }
        assert_eq!(found("GET / HTTP/1.0\r\n\r\n").authority, None);
        assert!(found("GET / HTTP/1.1\r\nHost: a.b\r\nUpgrade: websocket\r\n\r\n").upgrade);
    }

    #[test]
    fn s11_n04_what_two_servers_could_understand_differently_is_malformed() {
        for head in [
            "GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example",
            "GET / HTTP/1.1\r\nHost: a.example\r\nHost: a.example",
            "GET / HTTP/1.1\r\nHost: a.example, b.example",
            "GET / HTTP/1.1\r\nHost: user@a.example",
            "GET / HTTP/1.1\r\nHost: 0x7f.1",
            "GET / HTTP/1.1\r\nHost: a.example\r\n b.example",
            "GET / HTTP/1.1\r\nX: y\r\n\tHost: b.example\r\nHost: a.example",
            "GET / HTTP/1.1\r\nHost : a.example",
            "GET / HTTP/1.1\r\n Host: a.example",
            "GET / HTTP/1.1\r\nHo st: a.example",
            "GET / HTTP/1.1\r\nHost",
            "GET / HTTP/1.1\r\nHost:",
            "GET / HTTP/1.1\r\nAccept: x",
            "GET http://a.example/ HTTP/1.1\r\nHost: b.example",
            "GET http://a.example@b.example/ HTTP/1.1\r\nHost: a.example",
            "GET http://a.example\\@b.example/ HTTP/1.1\r\nHost: a.example",
            "GET ftp://a.example/ HTTP/1.1\r\nHost: a.example",
            "GET a.example/ HTTP/1.1\r\nHost: a.example",
            "CONNECT a.example HTTP/1.1\r\nHost: a.example",
            "CONNECT a.example:443 HTTP/1.1\r\nHost: b.example",
            "CONNECT http://a.example:443 HTTP/1.1\r\nHost: a.example",
            "GET  / HTTP/1.1\r\nHost: a.example",
            "GET / x HTTP/1.1\r\nHost: a.example",
            "GET / HTTP/1.1 \r\nHost: a.example",
            "GET / HTTP/1.2\r\nHost: a.example",
            "GET / http/1.1\r\nHost: a.example",
            "GET /\r\nHost: a.example",
            "GET / HTTP/1.1\nHost: a.example",
            "GET / HTTP/1.1\r\nHost: a.example\nX: y",
            "GET / HTTP/1.1\r\nHost: a.example\rX: y",
            "GET / HTTP/1.1\r\nHost: a.example\0",
            "\r\nGET / HTTP/1.1\r\nHost: a.example",
            "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1\r\nContent-Length: 1",
            "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1, 1",
            "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: +1",
            "POST / HTTP/1.1\r\nHost: a.example\r\nContent_Length: 1\r\nContent-Length: 2",
            "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 99999999999999999999",
            "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1\r\nTransfer-Encoding: chunked",
            "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked, identity",
            "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: xchunked",
            "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding:\x0bchunked",
            "POST / HTTP/1.0\r\nHost: a.example\r\nTransfer-Encoding: chunked",
        ] {
            let seen = read(&format!("{head}\r\n\r\n"));
            assert!(matches!(seen, Progress::Malformed(_)), "{head:?}: {seen:?}");
        }
    }

    #[test]
    fn other_protocols_are_none_of_its_business() {
        for text in [
            "\x16\x03\x01",
            "\x05\x01\x00",
            "SSH-2.0-OpenSSH_9.6 Debian-1\r\n",
            "EHLO me\r\n",
            "* OK\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "{\"a\": 1}",
            " GET / HTTP/1.1\r\n",
            "QUIT\r\n",
            "QUIT\n",
            "USER anonymous\r\n",
            "USER anonymous\n",
            "abc \0",
        ] {
            assert_eq!(read(text), Progress::NotThis, "{text:?}");
        }
        assert_eq!(read("GE"), Progress::NeedMore);
    }

    #[test]
    fn a_head_is_bounded() {
        let long = format!(
            "GET / HTTP/1.1\r\nHost: a.b\r\nX: {}\r\n\r\n",
            "x".repeat(LONGEST)
        );
        assert!(matches!(read(&long), Progress::Malformed(_)));
        let many = format!(
            "GET / HTTP/1.1\r\nHost: a.b\r\n{}\r\n",
            "X: y\r\n".repeat(MOST_FIELDS)
        );
        assert!(matches!(read(&many), Progress::Malformed(_)));
    }

    /// The requests of `bytes`, fed in pieces of `size`, and how it ended.
    fn requests(bytes: &[u8], size: usize) -> (Vec<String>, Progress<()>) {
        let mut connection = Requests::default();
        let mut hosts = Vec::new();
        for mut piece in bytes.chunks(size) {
            while !piece.is_empty() {
                let (read, progress) = connection.feed(piece);
                piece = &piece[read..];
                match progress {
                    Progress::NeedMore => assert!(piece.is_empty()),
                    Progress::Found(request) => hosts.push(host(&request).unwrap_or_default()),
                    Progress::NotThis => return (hosts, Progress::NotThis),
                    Progress::Malformed(why) => return (hosts, Progress::Malformed(why)),
                }
            }
        }
        (hosts, Progress::NeedMore)
    }

    #[test]
    fn n04_every_request_of_a_connection_is_seen() {
        let text = "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\n\r\nGET /\
                    PUT / HTTP/1.1\r\nHost: b.example\r\nTransfer-Encoding: chunked\r\n\r\n\
                    a\r\n0123456789\r\n1\r\n\n\r\n0\r\n\r\n\
                    GET / HTTP/1.1\r\nHost: c.example\r\n\r\n";
        for size in [1, 2, 7, 1000] {
            let (hosts, end) = requests(text.as_bytes(), size);
            assert_eq!(hosts, ["a.example", "b.example", "c.example"]);
            assert_eq!(end, Progress::NeedMore);
        }
    }

    #[test]
    fn s11_bodies_whose_end_is_open_to_opinion_are_malformed() {
        let head = "PUT / HTTP/1.1\r\nHost: a.b\r\nTransfer-Encoding: chunked\r\n\r\n";
        for body in [
            "5;a=b\r\n",
            "0x5\r\n",
            "+5\r\n",
            "\r\n",
            "5\n01234",
            "5\r\n01234x",
            "5\r\n01234\n",
            "fffffffffffffffff\r\n",
            "0\r\nX: y\r\n\r\n",
            " 5\r\n",
            "5 \r\n",
            "-1\r\n",
        ] {
            for size in [1, 1000] {
                let text = format!("{head}{body}0123456789012345678901234567890123456789\r\n\r\n");
                let (_, end) = requests(text.as_bytes(), size);
                assert!(matches!(end, Progress::Malformed(_)), "{body:?}: {end:?}");
            }
        }
        let (hosts, end) = requests(b"GET / HTTP/1.1\r\nHost: a.b\r\n\r\n\x16\x03\x01", 100);
        assert_eq!((hosts.len(), end), (1, Progress::NotThis));
    }

    #[test]
    fn a_switch_of_protocols_is_the_servers_word() {
        let head = b"GET / HTTP/1.1\r\nHost: a.b\r\nUpgrade: websocket\r\n\r\n";
        let mut connection = Requests::default();
        assert!(matches!(connection.feed(head).1, Progress::Found(_)));
        connection.switch();
        assert_eq!(connection.feed(b"\x81\x00any"), (5, Progress::NeedMore));
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces(
            change in prop::collection::vec((0..90usize, any::<u8>()), 0..5), size in 1..60usize,
        ) {
            let mut bytes = b"POST http://a.b/ HTTP/1.1\r\nHost: a.b\r\nTransfer-Encoding: chunked\r\n\
                              \r\n3\r\nabc\r\n0\r\n\r\nGET / HTTP/1.1\r\n".to_vec();
            for (at, value) in change {
                let length = bytes.len();
                bytes[at % length] = value;
            }
            whole_and_in_pieces(&bytes, Reader::default, Reader::feed);
            prop_assert_eq!(requests(&bytes, size), requests(&bytes, 1000));
            prop_assert_eq!(Name::from_bytes(&bytes), None);
        }
    }
}
