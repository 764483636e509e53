//! What a server of HTTP/1 answers (RFC 9112), as far as it takes to know whether it agreed to go on with another
//! protocol. A client's word for that is not enough.
//!
//! Whatever is not plain is the end of reading: then no switch is believed, and the client goes on being read as one
//! of HTTP.

use super::body::BodyReader;
use super::http::{Body, Request};
use std::collections::VecDeque;

/// The longest head that is read, in bytes.
const LONGEST: usize = 64 << 10;
/// Requests that may wait for their answers; clients do not pipeline further.
const MOST_WAITING: usize = 256;

/// What an answer depends on in its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    Connect,
    Upgrade,
    Head,
    Other,
}

/// What became of a request for another protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// What the server sends from here on is of the other protocol.
    Switched,
    /// It goes on with HTTP.
    Declined,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Between,
    Head(Vec<u8>),
    Body(BodyReader),
    /// Nothing more is known.
    Over,
}

/// The answers of one connection after each other.
#[derive(Debug, Default)]
pub struct Answers {
    state: State,
    waiting: VecDeque<Waiting>,
}

impl Answers {
    /// `request` has been allowed to go to the server.
    pub fn expect(&mut self, request: &Request) {
        let waiting = match request.method.as_str() {
            "CONNECT" => Waiting::Connect,
            _ if request.upgrade => Waiting::Upgrade,
            "HEAD" => Waiting::Head,
            _ => Waiting::Other,
        };
        if self.waiting.len() == MOST_WAITING {
            self.state = State::Over;
        } else {
            self.waiting.push_back(waiting);
        }
    }

    /// Whether anything can still be learnt.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// What the server sent. Some once it is known whether it agreed to switch.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Option<Outcome> {
        while let Some(first) = bytes.first() {
            match &mut self.state {
                State::Over => return None,
                State::Between if self.waiting.is_empty() => self.state = State::Over,
                State::Between => self.state = State::Head(Vec::new()),
                State::Head(head) => {
                    head.push(*first);
                    bytes = &bytes[1..];
                    if head.ends_with(b"\r\n\r\n") {
                        let head = std::mem::take(head);
                        self.state = State::Over;
                        if let Some(outcome) = self.answered(&head) {
                            return Some(outcome);
                        }
                    } else if head.len() == LONGEST {
                        self.state = State::Over;
                    }
                }
                State::Body(body) => {
                    let (taken, ended) = body.feed(bytes);
                    bytes = &bytes[taken..];
                    match ended {
                        Ok(false) => {}
                        Ok(true) => self.state = State::Between,
                        Err(_) => self.state = State::Over,
                    }
                }
            }
        }
        None
    }

    /// A whole head. The state is `Over` unless it can be said what follows.
    fn answered(&mut self, head: &[u8]) -> Option<Outcome> {
        let waiting = *self.waiting.front()?;
        let (status, body) = parse(head)?;
        let switches = match waiting {
            Waiting::Connect => (200..300).contains(&status),
            Waiting::Upgrade => status == 101,
            Waiting::Head | Waiting::Other => false,
        };
        if switches {
            return Some(Outcome::Switched);
        }
        if status < 200 {
            // 101 to somebody who did not ask is nothing that goes on as HTTP.
            if status != 101 {
                self.state = State::Between;
            }
            return None;
        }
        self.waiting.pop_front();
        let body = match (waiting, status) {
            (Waiting::Head, _) | (_, 204 | 304) => Some(Body::None),
            _ => body,
        };
        if let Some(body) = body {
            self.state = BodyReader::new(body).map_or(State::Between, State::Body);
        }
        matches!(waiting, Waiting::Connect | Waiting::Upgrade).then_some(Outcome::Declined)
    }
}

/// Status and body; None where readers could differ. The body is None where it lasts as long as the connection.
fn parse(head: &[u8]) -> Option<(u16, Option<Body>)> {
    let text = std::str::from_utf8(head).ok()?;
    let mut lines = text.strip_suffix("\r\n\r\n")?.split("\r\n");
    let first = lines.next()?;
    let rest = first
        .strip_prefix("HTTP/1.1 ")
        .or(first.strip_prefix("HTTP/1.0 "))?;
    let digits = rest
        .get(..3)
        .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    let status = digits.parse().ok().filter(|status| *status >= 100)?;
    let sound = rest[3..].is_empty() || rest[3..].starts_with(' ');
    if !sound || first.contains(['\r', '\n']) {
        return None;
    }
    let mut length = None;
    let mut chunked = false;
    for line in lines {
        let (name, value) = line.split_once(':')?;
        let value = value.trim();
        if line.contains(['\r', '\n']) || name.is_empty() || name.contains([' ', '\t']) {
            return None;
        }
        if name.eq_ignore_ascii_case("content-length") {
            let digits = value.bytes().all(|byte| byte.is_ascii_digit());
            let seen: u64 = value.parse().ok().filter(|_| digits)?;
            if length.replace(seen).is_some() {
                return None;
            }
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            if chunked || !value.eq_ignore_ascii_case("chunked") {
                return None;
            }
            chunked = true;
        }
    }
    let body = match (length, chunked) {
        (Some(_), true) => return None,
        (None, true) => Some(Body::Chunked),
        (Some(length), false) => Some(Body::Length(length)),
        (None, false) => None,
    };
    Some((status, body))
}

#[cfg(test)]
mod tests {
    use super::super::http::Requests;
    use super::super::Progress;
    use super::*;

    const GET: &str = "GET / HTTP/1.1\r\nHost: a.b\r\n\r\n";
    const HEAD: &str = "HEAD / HTTP/1.1\r\nHost: a.b\r\n\r\n";
    const UPGRADE: &str = "GET / HTTP/1.1\r\nHost: a.b\r\nUpgrade: websocket\r\n\r\n";
    const CONNECT: &str = "CONNECT a.b:443 HTTP/1.1\r\nHost: a.b:443\r\n\r\n";

    /// What is learnt from `answer` to `asked`, in pieces of whatever size.
    fn outcome(asked: &[&str], answer: &str) -> Option<Outcome> {
        let outcomes = [1, 3, 1000].map(|size| {
            let mut answers = Answers::default();
            for text in asked {
                let Progress::Found(request) = Requests::default().feed(text.as_bytes()).1 else {
                    panic!("{text:?}");
                };
                answers.expect(&request);
            }
            answer
                .as_bytes()
                .chunks(size)
                .find_map(|piece| answers.feed(piece))
        });
        assert!(
            outcomes.iter().all(|outcome| *outcome == outcomes[0]),
            "{answer:?}: {outcomes:?}"
        );
        outcomes[0]
    }

    #[test]
    fn a_switch_is_believed_where_it_answers_the_request_for_it() {
        let switched = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n";
        let ok = "HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nHTTP/1.1 101";
        let chunks = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        let early = "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n";
        let nothing = "HTTP/1.1 204\r\n\r\n";
        let length_only = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n";
        let (yes, no) = (Some(Outcome::Switched), Some(Outcome::Declined));
        for (asked, answer, expected) in [
            (&[UPGRADE][..], switched.to_string(), yes),
            (&[UPGRADE], format!("{early}{switched}"), yes),
            (&[UPGRADE], ok.to_string(), no),
            (
                &[CONNECT],
                "HTTP/1.1 200 Connection established\r\n\r\n".to_string(),
                yes,
            ),
            (
                &[CONNECT],
                "HTTP/1.0 407 No\r\nContent-Length: 0\r\n\r\n".to_string(),
                no,
            ),
            (&[CONNECT], switched.to_string(), None),
            (&[GET, UPGRADE], format!("{ok}{switched}"), yes),
            (&[GET, UPGRADE], format!("{chunks}{switched}"), yes),
            (&[GET, UPGRADE], format!("{nothing}{switched}"), yes),
            (&[HEAD, UPGRADE], format!("{length_only}{switched}"), yes),
            (&[GET, UPGRADE], format!("{length_only}{switched}"), None),
            // It answers the first request, who did not ask.
            (&[GET, UPGRADE], switched.to_string(), None),
            // Lasts as long as the connection.
            (
                &[GET, UPGRADE],
                format!("HTTP/1.1 200 OK\r\n\r\n{switched}"),
                None,
            ),
            (&[], switched.to_string(), None),
        ] {
            assert_eq!(outcome(asked, &answer), expected, "{asked:?} {answer:?}");
        }
    }

    #[test]
    fn what_is_not_plain_is_not_believed() {
        for head in [
            "HTTP/1.1 101 x\n\r\n\r\n",
            "HTTP/1.1 101\r\n folded\r\n\r\n",
            "HTTP/1.1 1015\r\n\r\n",
            "HTTP/1.1 099\r\n\r\n",
            "HTTP/2 101\r\n\r\n",
            "\r\n\r\nHTTP/1.1 101\r\n\r\n",
            "HTTP/1.1 101\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            "HTTP/1.1 101\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 101\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "SSH-2.0-x\r\n\r\n",
        ] {
            assert_eq!(outcome(&[UPGRADE], head), None, "{head:?}");
        }
    }
}
