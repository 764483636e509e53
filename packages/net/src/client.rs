//! What a TCP client sends, read for the destinations that it states: in TLS, HTTP/1, HTTP/2 without TLS, SOCKS,
//! and inside of tunnels through any of these. Every request of a connection is read, the second like the first.

use crate::address::canonical;
use crate::authority::{Authority, Host};
use crate::policy::explain::explain;
use crate::policy::{decide, Action, Flow, Pins, Policy, Protocol, Verdict};
use crate::wire::answers::{Answers, Outcome};
use crate::wire::{h2, http, second, socks, tls, Progress};
use std::mem::take;

/// Tunnels inside of tunnels that are followed.
const DEEPEST: u8 = 4;

/// Whom a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// It has a place for a name and states none, or hides it.
    Nobody,
    /// The target of its flow, by this name or address (SNI, Host, `:authority`).
    Own(Host),
    /// As a URL: the target's own, or one that a proxy is to fetch.
    Url(Host, u16),
    /// Another destination that the target is to reach for it (CONNECT, SOCKS).
    Beyond(Host, u16),
}

impl Asked {
    /// `flow`, but to whom the client asks for, as it is put on record.
    pub fn flow(&self, flow: &Flow) -> Flow {
        let (host, port) = match self {
            Asked::Nobody => return flow.clone(),
            Asked::Own(host) => (host, flow.port),
            Asked::Url(host, port) | Asked::Beyond(host, port) => (host, Some(*port)),
        };
        let address = match host {
            Host::Address(address) => *address,
            Host::Name(_) => flow.address,
        };
        Flow {
            address,
            port,
            name: host.name().cloned(),
            ..flow.clone()
        }
    }
}

/// What `policy` says to a TCP flow from the guest whose client asks for `asked`.
///
/// A request for another destination than the flow's own has to be allowed for itself as well: whoever lets a
/// sandbox speak with a proxy does not let it speak with everybody (N22).
pub fn decide_asked(flow: &Flow, asked: &Asked, policy: &Policy, pins: &Pins) -> Verdict {
    let own = |name: Option<&Host>| {
        let flow = Flow {
            name: name.and_then(Host::name).cloned(),
            ..flow.clone()
        };
        decide(&flow, policy, pins).unnamed()
    };
    let (host, port) = match asked {
        Asked::Nobody => return own(None),
        Asked::Own(host @ Host::Name(_)) => return own(Some(host)),
        Asked::Own(host @ Host::Address(_)) => (host, flow.port.unwrap_or_default()),
        Asked::Url(host, port) | Asked::Beyond(host, port) => (host, *port),
    };
    let itself = match host {
        Host::Address(address) => canonical(*address) == canonical(flow.address),
        Host::Name(name) => pins.has(name, flow.address),
    };
    if itself && !matches!(asked, Asked::Beyond(..)) {
        return own(Some(host));
    }
    let through = own(None);
    if through.action != Action::Allow {
        return through;
    }
    let inside = explain(host, Protocol::Tcp, Some(port), policy).unnamed();
    match inside.action {
        Action::Allow => through,
        _ => Verdict {
            rule: format!("{} (for the destination inside)", inside.rule),
            ..inside
        },
    }
}

/// What was found in the bytes of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// They are of something that is not whole yet.
    More,
    /// What was read may pass.
    Pass,
    /// To be decided on; if it is allowed, what was read may pass.
    Asked(Asked),
    /// Another protocol, in which nothing can be seen. All that follows passes unread.
    Nothing,
    /// The server has to answer first.
    Wait,
    /// Something that two readers could understand in two ways: refused under every policy.
    Malformed(&'static str),
}

/// Reads one client.
#[derive(Debug, Default)]
pub struct Client {
    state: State,
    /// Inside of a tunnel to this destination.
    within: Option<(Host, u16)>,
    depth: u8,
}

#[derive(Debug)]
enum State {
    /// The first bytes, as far as they could be HTTP/2's.
    New(Vec<u8>),
    Tls(tls::Reader),
    /// The ClientHello has been read; the server may want another.
    TlsAnswered(Box<tls::ClientHello>, second::Answer),
    TlsAgain(Box<tls::ClientHello>, second::Hello),
    /// A SOCKS client that sent so many bytes.
    Socks(socks::Reader, usize),
    Http(Box<Http>),
    H2(Box<h2::Reader>),
    Free,
    Over(&'static str),
}

#[derive(Debug, Default)]
struct Http {
    requests: http::Requests,
    answers: Answers,
    /// How many requests were read.
    count: usize,
    switch: Option<Switch>,
    switched: bool,
}

/// What the client asks to go on with.
#[derive(Clone, Debug)]
enum Switch {
    /// A protocol that states no names.
    Unnamed,
    /// One that does.
    Named,
    Tunnel(Host, u16),
}

impl Default for State {
    fn default() -> State {
        State::New(Vec::new())
    }
}

impl Client {
    /// How many of the bytes were read, and what was found. Call again with the rest.
    pub fn feed(&mut self, bytes: &[u8]) -> (usize, Said) {
        if bytes.is_empty() {
            return (0, Said::More);
        }
        let (read, said) = match &mut self.state {
            State::New(_) => self.begin(bytes),
            State::Tls(reader) => match reader.read(bytes) {
                (read, Progress::NeedMore) => (read, Said::More),
                (read, Progress::Found(hello)) => {
                    let asked = match hello.name() {
                        Some(name) => Asked::Own(Host::Name(name.clone())),
                        None => Asked::Nobody,
                    };
                    self.state = State::TlsAnswered(Box::new(hello), second::Answer::default());
                    (read, Said::Asked(asked))
                }
                (read, Progress::NotThis) => (read, Said::Nothing),
                (read, Progress::Malformed(why)) => (read, Said::Malformed(why)),
            },
            State::TlsAnswered(..) => (0, Said::Wait),
            State::TlsAgain(first, reader) => match reader.read(bytes) {
                (read, Progress::NeedMore) => (read, Said::More),
                (read, Progress::Found(hello))
                    if (&hello.server_name, hello.encrypted)
                        == (&first.server_name, first.encrypted) =>
                {
                    self.state = State::Free;
                    (read, Said::Pass)
                }
                (read, Progress::Malformed(why)) => (read, Said::Malformed(why)),
                (read, _) => (
                    read,
                    Said::Malformed("a second ClientHello unlike the first"),
                ),
            },
            State::Socks(reader, fed) => match reader.feed(bytes) {
                Progress::NeedMore => {
                    *fed += bytes.len();
                    (bytes.len(), Said::More)
                }
                Progress::Found(request) => {
                    let read = request.length.saturating_sub(*fed).min(bytes.len());
                    match request.command {
                        socks::Command::Connect => {
                            let (host, port) = (request.host, request.port);
                            self.enter(Some((host.clone(), port)));
                            (read, Said::Asked(Asked::Beyond(host, port)))
                        }
                        _ => (read, Said::Malformed("a SOCKS request other than CONNECT")),
                    }
                }
                Progress::NotThis => (bytes.len(), Said::Nothing),
                Progress::Malformed(why) => (bytes.len(), Said::Malformed(why)),
            },
            State::Http(http) => {
                if http.switch.is_some() && http.requests.between() {
                    if !http.switched {
                        return (0, Said::Wait);
                    }
                    match http.switch.take() {
                        Some(Switch::Tunnel(host, port)) => self.enter(Some((host, port))),
                        Some(Switch::Named) => self.enter(None),
                        _ => self.state = State::Free,
                    }
                    return (0, Said::Pass);
                }
                http.feed(bytes)
            }
            State::H2(reader) => match reader.feed(bytes) {
                (read, Progress::NeedMore) if reader.inside_fields() => (read, Said::More),
                (read, Progress::NeedMore) => (read, Said::Pass),
                (read, Progress::Found(request)) => (read, Said::Asked(asked_h2(request))),
                (read, Progress::NotThis) => (read, Said::Nothing),
                (read, Progress::Malformed(why)) => (read, Said::Malformed(why)),
            },
            State::Free => (bytes.len(), Said::Pass),
            State::Over(why) => (0, Said::Malformed(why)),
        };
        match said {
            Said::Nothing => self.state = State::Free,
            Said::Malformed(why) => self.state = State::Over(why),
            _ => {}
        }
        (read, self.placed(said))
    }

    /// Which of the protocols it is. The first byte tells those apart that are not text.
    fn begin(&mut self, bytes: &[u8]) -> (usize, Said) {
        let State::New(seen) = &mut self.state else {
            return (0, Said::Pass);
        };
        match bytes[0] {
            22 if seen.is_empty() => {
                self.state = State::Tls(tls::Reader::default());
                return (0, Said::Pass);
            }
            4 | 5 if seen.is_empty() => {
                self.state = State::Socks(socks::Reader::default(), 0);
                // Whatever it will ask for, it states no name of the server itself.
                return (0, Said::Asked(Asked::Nobody));
            }
            _ => {}
        }
        for (index, byte) in bytes.iter().enumerate() {
            if h2::PREFACE.get(seen.len()) != Some(byte) {
                let seen = take(seen);
                let mut http = Box::<Http>::default();
                // A part of the preface is no whole head.
                let said = match seen.is_empty() {
                    true => Said::Pass,
                    false => http.feed(&seen).1,
                };
                self.state = State::Http(http);
                return (index, said);
            }
            seen.push(*byte);
            if seen.len() == h2::PREFACE.len() {
                self.state = State::H2(Box::default());
                return (index + 1, Said::Pass);
            }
        }
        (bytes.len(), Said::More)
    }

    /// What follows is of another client, in a tunnel.
    fn enter(&mut self, to: Option<(Host, u16)>) {
        self.depth += 1;
        self.within = to.or(self.within.take());
        self.state = match self.depth > DEEPEST {
            true => State::Over("tunnels inside of tunnels, deeper than is followed"),
            false => State::default(),
        };
    }

    /// What is asked for inside of a tunnel is asked of where it leads.
    fn placed(&self, said: Said) -> Said {
        match (said, &self.within) {
            (Said::Asked(Asked::Own(host)), Some((_, port))) => {
                Said::Asked(Asked::Beyond(host, *port))
            }
            (Said::Asked(Asked::Url(host, port)), Some(_)) => {
                Said::Asked(Asked::Beyond(host, port))
            }
            // The tunnel itself was decided on.
            (Said::Asked(Asked::Nobody) | Said::Nothing, Some(_)) => Said::Pass,
            (said, _) => said,
        }
    }

    /// How many of the next bytes need not be read.
    pub fn free(&self) -> u64 {
        match &self.state {
            State::Free => u64::MAX,
            State::Http(http) => http.requests.free(),
            State::H2(reader) => reader.free(),
            _ => 0,
        }
    }

    /// So many of them went by.
    pub fn skip(&mut self, count: u64) {
        match &mut self.state {
            State::Http(http) => http.requests.skip(count),
            State::H2(reader) => reader.skip(count),
            _ => {}
        }
    }

    /// Whether what the server sends matters.
    pub fn listens(&self) -> bool {
        match &self.state {
            State::TlsAnswered(..) => true,
            State::Http(http) => !http.switched && !http.answers.is_over(),
            _ => false,
        }
    }

    /// What the server sent.
    pub fn hear(&mut self, bytes: &[u8]) {
        match &mut self.state {
            State::TlsAnswered(hello, answer) => match answer.feed(bytes) {
                Some(true) => {
                    let again = second::Hello::default();
                    self.state = State::TlsAgain(hello.clone(), again);
                }
                Some(false) => self.state = State::Free,
                None => {}
            },
            State::Http(http) => http.hear(bytes),
            _ => {}
        }
    }

    /// The client has ended: it can answer nothing that the server says.
    pub fn ended(&mut self) {
        if matches!(self.state, State::TlsAnswered(..)) {
            self.state = State::Free;
        }
    }
}

impl Http {
    fn feed(&mut self, bytes: &[u8]) -> (usize, Said) {
        let (read, progress) = self.requests.step(bytes);
        let said = match progress {
            Progress::NeedMore if self.requests.inside_head() => Said::More,
            Progress::NeedMore => Said::Pass,
            Progress::Found(request) => {
                self.count += 1;
                self.answers.expect(&request);
                let asked = asked_http(&request);
                self.switch = match &asked {
                    Asked::Beyond(host, port) => Some(Switch::Tunnel(host.clone(), *port)),
                    _ if !request.upgrade => None,
                    _ if request.named_upgrade => Some(Switch::Named),
                    _ => Some(Switch::Unnamed),
                };
                if self.answers.is_over() {
                    self.switch = None;
                }
                Said::Asked(asked)
            }
            Progress::NotThis if self.count > 0 => Said::Malformed("no HTTP behind a request"),
            Progress::NotThis => Said::Nothing,
            Progress::Malformed(why) => Said::Malformed(why),
        };
        (read, said)
    }

    fn hear(&mut self, bytes: &[u8]) {
        match self.answers.feed(bytes) {
            Some(Outcome::Switched) => self.switched = true,
            Some(Outcome::Declined) => self.switch = None,
            // No switch will be believed.
            None if self.answers.is_over() => self.switch = None,
            None => {}
        }
    }
}

fn asked_http(request: &http::Request) -> Asked {
    let Some(Authority { host, port }) = request.authority.clone() else {
        return Asked::Nobody;
    };
    match request.scheme_port {
        // The reader wants a port with CONNECT.
        _ if request.is_connect() => Asked::Beyond(host, port.unwrap_or_default()),
        Some(default) => Asked::Url(host, port.unwrap_or(default)),
        None => Asked::Own(host),
    }
}

fn asked_h2(request: h2::Request) -> Asked {
    match request.authority {
        None => Asked::Nobody,
        Some(Authority { host, port }) if request.connect => {
            Asked::Beyond(host, port.unwrap_or_default())
        }
        Some(authority) => Asked::Own(authority.host),
    }
}

#[cfg(test)]
pub mod tests;
