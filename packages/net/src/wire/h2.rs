//! HTTP/2 without TLS (RFC 9113): whom each of a client's streams is for.

use super::hpack::{Decoder, Field};
use super::{Authority, Progress};

/// What a client sends first (3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The longest header block, with its continuations.
const LONGEST: usize = 64 << 10;

const HEADERS: u8 = 1;
const PUSH_PROMISE: u8 = 5;
const CONTINUATION: u8 = 9;

const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// A request on some stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// None: it does not say.
    pub authority: Option<Authority>,
    /// It asks for a tunnel to `authority` (8.5), not for another protocol on this stream (RFC 8441).
    pub connect: bool,
}

/// Fed with what follows the preface.
#[derive(Debug, Default)]
pub struct Reader {
    state: State,
    decoder: Decoder,
    /// The block of header fields as far as it came, and its stream.
    block: Vec<u8>,
    continued: Option<u32>,
    /// The highest stream that had a request.
    highest: u32,
}

#[derive(Debug)]
enum State {
    /// The head of a frame, as far as it came.
    Head(Vec<u8>),
    /// That many bytes of a frame that states nothing.
    Skip(u64),
    /// A frame with fields: its head, its payload as far as it came, and the payload's length.
    Fields([u8; 9], Vec<u8>, usize),
    Over(&'static str),
}

impl Default for State {
    fn default() -> State {
        State::Head(Vec::new())
    }
}

impl Reader {
    /// How many bytes were read: as many as are of one kind, up to the end of a request. `NotThis` never.
    pub fn feed(&mut self, bytes: &[u8]) -> (usize, Progress<Request>) {
        let taken = match &mut self.state {
            State::Over(why) => return (0, Progress::Malformed(why)),
            State::Skip(left) => usize::try_from(*left)
                .unwrap_or(usize::MAX)
                .min(bytes.len()),
            State::Head(head) => {
                let taken = (9 - head.len()).min(bytes.len());
                head.extend_from_slice(&bytes[..taken]);
                taken
            }
            State::Fields(_, payload, length) => {
                let taken = (*length - payload.len()).min(bytes.len());
                payload.extend_from_slice(&bytes[..taken]);
                taken
            }
        };
        if let State::Skip(_) = self.state {
            self.skip(taken as u64);
            return (taken, Progress::NeedMore);
        }
        match self.advance() {
            Ok(None) => (taken, Progress::NeedMore),
            Ok(Some(request)) => (taken, Progress::Found(request)),
            Err(why) => {
                self.state = State::Over(why);
                (taken, Progress::Malformed(why))
            }
        }
    }

    /// How many of the next bytes need not be read.
    pub fn free(&self) -> u64 {
        match self.state {
            State::Skip(left) => left,
            _ => 0,
        }
    }

    /// So many of them went by.
    pub fn skip(&mut self, count: u64) {
        if let State::Skip(left) = &mut self.state {
            *left = left.saturating_sub(count);
            if *left == 0 {
                self.state = State::default();
            }
        }
    }

    /// Whether what was read last is of fields that are not whole.
    pub fn inside_fields(&self) -> bool {
        match &self.state {
            State::Fields(..) => true,
            State::Head(head) => !head.is_empty() || self.continued.is_some(),
            _ => false,
        }
    }

    fn advance(&mut self) -> Result<Option<Request>, &'static str> {
        match &mut self.state {
            State::Head(head) => {
                let Ok(whole) = <[u8; 9]>::try_from(head.as_slice()) else {
                    return Ok(None);
                };
                self.begin(whole)?;
                match self.state {
                    // A frame without a payload has no more bytes to be woken by.
                    State::Fields(_, _, 0) => self.finish(),
                    _ => Ok(None),
                }
            }
            State::Fields(_, payload, length) if payload.len() == *length => self.finish(),
            _ => Ok(None),
        }
    }

    /// The head of a frame.
    fn begin(&mut self, head: [u8; 9]) -> Result<(), &'static str> {
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let expected = match self.continued {
            Some(stream) if stream == stream_of(head) => head[3] == CONTINUATION,
            Some(_) => false,
            None => head[3] != CONTINUATION,
        };
        if !expected {
            return Err("an HTTP/2 frame where header fields go on, or the other way round");
        }
        self.state = match head[3] {
            PUSH_PROMISE => return Err("an HTTP/2 client that pushes"),
            HEADERS | CONTINUATION if self.block.len() + length > LONGEST => {
                return Err("HTTP/2 header fields that are too long")
            }
            HEADERS | CONTINUATION => State::Fields(head, Vec::new(), length),
            _ if length == 0 => State::default(),
            _ => State::Skip(length as u64),
        };
        Ok(())
    }

    /// A whole frame with fields.
    fn finish(&mut self) -> Result<Option<Request>, &'static str> {
        let State::Fields(head, payload, _) = std::mem::take(&mut self.state) else {
            return Ok(None);
        };
        let (flags, stream) = (head[4], stream_of(head));
        let fragment = match head[3] {
            HEADERS => strip(flags, &payload).ok_or("an HTTP/2 frame whose lengths do not fit")?,
            _ => &payload,
        };
        self.block.extend_from_slice(fragment);
        if flags & END_HEADERS == 0 {
            self.continued = Some(stream);
            return Ok(None);
        }
        self.continued = None;
        let block = std::mem::take(&mut self.block);
        let fields = self.decoder.block(&block);
        let fields = fields.ok_or("HTTP/2 header fields that cannot be read")?;
        let trailers = !fields.iter().any(|(name, _)| name == b":method");
        if trailers {
            let restated = |(name, _): &Field| name.starts_with(b":") || name == b"host";
            if stream > self.highest || fields.iter().any(restated) {
                return Err("HTTP/2 header fields without a method");
            }
            return Ok(None);
        }
        if stream % 2 == 0 {
            return Err("an HTTP/2 request on a stream that is no client's");
        }
        self.highest = self.highest.max(stream);
        request(&fields).map(Some)
    }
}

fn stream_of(head: [u8; 9]) -> u32 {
    u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff
}

/// The fields of a HEADERS frame without padding and priority.
fn strip(flags: u8, payload: &[u8]) -> Option<&[u8]> {
    let mut rest = payload;
    if flags & PADDED != 0 {
        let (padding, behind) = rest.split_first()?;
        rest = behind.get(..behind.len().checked_sub(usize::from(*padding))?)?;
    }
    if flags & PRIORITY != 0 {
        rest = rest.get(5..)?;
    }
    Some(rest)
}

fn request(fields: &[Field]) -> Result<Request, &'static str> {
    if fields
        .iter()
        .any(|(name, _)| name.iter().any(u8::is_ascii_uppercase) || name.is_empty())
    {
        return Err("an HTTP/2 header field whose name is none");
    }
    let one = |wanted: &[u8]| {
        let mut values = fields
            .iter()
            .filter(|(name, _)| name == wanted)
            .map(|(_, value)| value);
        match (values.next(), values.next()) {
            (value, None) => Ok(value),
            _ => Err("an HTTP/2 header field twice that there is one of"),
        }
    };
    let parsed = |value: &Vec<u8>| {
        let text = std::str::from_utf8(value).ok();
        text.and_then(Authority::parse)
            .ok_or("an authority that is none")
    };
    let connect = one(b":method")?.is_some_and(|method| method == b"CONNECT");
    let tunnel = connect && one(b":protocol")?.is_none();
    let (authority, host) = (one(b":authority")?, one(b"host")?);
    let authority = match (authority, host) {
        (Some(authority), Some(host)) if !authority.eq_ignore_ascii_case(host) => {
            return Err(":authority and host that differ")
        }
        (Some(stated), _) | (None, Some(stated)) => Some(parsed(stated)?),
        (None, None) => None,
    };
    let port = authority.as_ref().and_then(|authority| authority.port);
    if tunnel && port.is_none() {
        return Err("a CONNECT to something that is no host:port");
    }
    Ok(Request {
        authority,
        connect: tunnel,
    })
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use proptest::prelude::*;

    pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    /// Fields as literals that no table keeps.
    pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
        let text = |text: &str| [&[text.len() as u8][..], text.as_bytes()].concat();
        let field = |(name, value): &(&str, &str)| [vec![0], text(name), text(value)].concat();
        fields.iter().flat_map(field).collect()
    }

    pub fn get(stream: u32, authority: &str) -> Vec<u8> {
        let fields = [
            (":method", "GET"),
            (":path", "/"),
            (":authority", authority),
        ];
        frame(HEADERS, END_HEADERS, stream, &block(&fields))
    }

    /// The hosts of all requests, and how it ended, the same in pieces of any size.
    fn requests(bytes: &[u8]) -> (Vec<String>, Progress<()>) {
        let ends = [1, 2, 5, 1000, 1 << 20].map(|size| {
            let mut reader = Reader::default();
            let mut hosts = Vec::new();
            for mut piece in bytes.chunks(size) {
                while !piece.is_empty() {
                    let (read, progress) = reader.feed(piece);
                    piece = &piece[read..];
                    match progress {
                        Progress::NeedMore => {}
                        Progress::Found(request) => hosts.push(format!("{:?}", request.authority)),
                        Progress::NotThis => panic!("never"),
                        Progress::Malformed(why) => return (hosts, Progress::Malformed(why)),
                    }
                }
            }
            (hosts, Progress::NeedMore)
        });
        assert!(ends.iter().all(|end| *end == ends[0]), "{ends:?}");
        ends[0].clone()
    }

    fn first(fields: &[(&str, &str)]) -> Result<Request, &'static str> {
        let bytes = frame(HEADERS, END_HEADERS, 1, &block(fields));
        match Reader::default().feed(&bytes[..9]).1 {
            Progress::NeedMore => {}
            other => panic!("{other:?}"),
        }
        let mut reader = Reader::default();
        reader.feed(&bytes[..9]);
        match reader.feed(&bytes[9..]).1 {
            Progress::Found(request) => Ok(request),
            Progress::Malformed(why) => Err(why),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn n04_every_stream_is_seen() {
        let settings = frame(4, 0, 0, &[0, 3, 0, 0, 0, 100]);
        let padded = [
            &[3][..],
            &[0; 5],
            &block(&[(":method", "POST"), ("host", "b.example")]),
            &[0; 3],
        ]
        .concat();
        let long = block(&[
            (":method", "GET"),
            ("x", "y"),
            (":authority", "c.example:80"),
        ]);
        let bytes = [
            settings,
            get(1, "a.example"),
            frame(0, 0, 1, &[7; 3000]),
            frame(8, 0, 0, &[0, 0, 1, 0]),
            frame(HEADERS, END_HEADERS | PADDED | PRIORITY, 3, &padded),
            frame(HEADERS, END_HEADERS | 1, 1, &block(&[("grpc-status", "0")])),
            frame(HEADERS, 0, 5, &long[..7]),
            frame(CONTINUATION, 0, 5, &[]),
            frame(CONTINUATION, 0, 5, &long[7..20]),
            frame(CONTINUATION, END_HEADERS, 5, &long[20..]),
            frame(4, 1, 0, &[]),
        ];
        let (hosts, end) = requests(&bytes.concat());
        assert_eq!(end, Progress::NeedMore);
        let expected = ["a.example", "b.example", "c.example:80"]
            .map(|text| format!("{:?}", Authority::parse(text)));
        assert_eq!(hosts, expected);
    }

    #[test]
    fn whom_a_request_is_for() {
        let get = (":method", "GET");
        let connect = (":method", "CONNECT");
        let seen = first(&[connect, (":authority", "a.example:22")]).unwrap();
        assert_eq!(
            (seen.connect, seen.authority),
            (true, Authority::parse("a.example:22"))
        );
        let seen = first(&[
            connect,
            (":protocol", "websocket"),
            (":authority", "a.example"),
        ])
        .unwrap();
        assert_eq!(
            (seen.connect, seen.authority),
            (false, Authority::parse("a.example"))
        );
        assert_eq!(first(&[get]).unwrap().authority, None);
        let both = [get, (":authority", "A.example"), ("host", "a.example")];
        assert_eq!(
            first(&both).unwrap().authority,
            Authority::parse("a.example")
        );
        for fields in [
            &[get, (":authority", "a.example"), ("host", "b.example")][..],
            &[
                get,
                (":authority", "a.example"),
                (":authority", "a.example"),
            ],
            &[get, ("host", "a.example"), ("host", "b.example")],
            &[get, get, (":authority", "a.example")],
            &[get, (":authority", "")],
            &[get, (":authority", "user@a.example")],
            &[get, ("Host", "a.example")],
            &[connect, (":authority", "a.example")],
            &[connect],
            &[("x", "y")],
        ] {
            assert!(first(fields).is_err(), "{fields:?}");
        }
    }

    #[test]
    fn frames_that_no_client_sends() {
        let head = frame(HEADERS, 0, 1, &block(&[(":method", "GET")]));
        for bytes in [
            frame(CONTINUATION, END_HEADERS, 1, &[]),
            frame(PUSH_PROMISE, END_HEADERS, 1, &[0; 10]),
            frame(HEADERS, END_HEADERS | PADDED, 1, &[200, 0]),
            frame(HEADERS, END_HEADERS | PRIORITY, 1, &[0; 4]),
            frame(HEADERS, END_HEADERS, 2, &block(&[(":method", "GET")])),
            frame(HEADERS, END_HEADERS, 1, &[0x80]),
            [head.clone(), frame(0, 0, 1, &[1])].concat(),
            [head.clone(), frame(CONTINUATION, END_HEADERS, 3, &[])].concat(),
            [
                get(1, "a.example"),
                frame(HEADERS, END_HEADERS, 1, &block(&[("host", "b.example")])),
            ]
            .concat(),
            [
                head,
                frame(CONTINUATION, 0, 1, &[0; 40_000]),
                frame(CONTINUATION, 0, 1, &[0; 40_000]),
            ]
            .concat(),
        ] {
            assert!(
                matches!(requests(&bytes).1, Progress::Malformed(_)),
                "{:?}",
                &bytes[..9]
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces(change in prop::collection::vec((0..200usize, any::<u8>()), 0..6)) {
            let mut bytes = [get(1, "a.example"), frame(0, 0, 1, &[1; 20]), get(3, "b.example")].concat();
            for (at, value) in change {
                let length = bytes.len();
                bytes[at % length] = value;
            }
            requests(&bytes);
        }
    }
}
