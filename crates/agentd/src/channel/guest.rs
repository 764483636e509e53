//! The guest's end of the connection: bytes in, events out; commands in, bytes out.

use std::collections::HashMap;

use super::error::{Code, ProtocolError, Refused};
use super::fields::Invalid;
use super::frame::{Kind, Receiver};
use super::incoming::{Frame, Incoming, Payload};
use super::msgpack::{encode, Map, Value};
use super::outgoing::{next, Item, Outgoing};
use super::stream::Stream;
use super::{has_channels, CONTROL_LIMIT, STREAMS_MAX, VERSION};

/// What the host did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A connection begins, to be answered with `Guest::hello`; streams of an earlier one are gone.
    Hello(Map),
    Open {
        stream: u32,
        request: Map,
    },
    Message {
        stream: u32,
        message: Map,
    },
    Cancel {
        stream: u32,
    },
    Data {
        stream: u32,
        bytes: Vec<u8>,
    },
    Eof {
        stream: u32,
    },
    Credit {
        stream: u32,
        channel: u8,
        amount: u32,
    },
    /// The host ended the connection.
    Error(Map),
    /// The host broke the protocol; ERROR is queued and nothing more is read.
    Broken(ProtocolError),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing but HELLO may come.
    Silent,
    /// HELLO has come and was not answered yet: its version.
    Greeted,
    Open,
    Closed,
}

/// The sans-I/O state machine of the guest.
#[derive(Debug)]
pub struct Guest {
    incoming: Incoming,
    outgoing: Outgoing,
    phase: Phase,
    /// After `configure` was opened a second HELLO is an error.
    configuring: bool,
    last_id: u32,
    streams: HashMap<u32, Stream>,
}

impl Default for Guest {
    fn default() -> Guest {
        Guest::new()
    }
}

impl Guest {
    pub fn new() -> Guest {
        Guest {
            incoming: Incoming::new(Receiver::Guest),
            outgoing: Outgoing::default(),
            phase: Phase::Silent,
            configuring: false,
            last_id: 0,
            streams: HashMap::new(),
        }
    }

    /// Adds bytes that were read; then call `next_event` until there is none.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.phase != Phase::Closed {
            self.incoming.feed(bytes);
        }
    }

    /// Whether the caller should read on. A host that asks and never reads the answers is not
    /// read from any more, so that the answers it left stay bounded.
    pub fn wants_input(&self) -> bool {
        self.phase != Phase::Closed && self.outgoing.control_bytes() < CONTROL_LIMIT
    }

    /// Whether an ERROR was sent or received.
    pub fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    pub fn next_event(&mut self) -> Option<Event> {
        while self.phase != Phase::Closed {
            let outcome = match self.incoming.next_frame() {
                Ok(Some(frame)) => self.receive(frame),
                Ok(None) => return None,
                Err(error) => Err(error),
            };
            match outcome {
                Ok(None) => {}
                Ok(event) => return event,
                Err(error) => {
                    self.break_off(&error);
                    return Some(Event::Broken(error));
                }
            }
        }
        None
    }

    fn break_off(&mut self, error: &ProtocolError) {
        self.close();
        let payload = Map::new()
            .with("code", error.code.as_str())
            .with("message", error.message.as_str());
        self.outgoing.control(0, Kind::Error, 0, &encode(&payload));
    }

    fn close(&mut self) {
        self.phase = Phase::Closed;
        self.streams.clear();
        self.outgoing.clear();
        self.incoming = Incoming::new(Receiver::Guest);
    }

    fn receive(&mut self, frame: Frame) -> Result<Option<Event>, ProtocolError> {
        let Frame {
            stream,
            kind,
            channel,
            payload,
        } = frame;
        match (kind, payload) {
            (Kind::Hello, Payload::Control(hello)) => self.receive_hello(hello).map(Some),
            (Kind::Error, Payload::Control(error)) => {
                let told = error
                    .field::<&str>("code")
                    .and(error.field::<&str>("message"));
                told.map_err(malformed)?;
                self.close();
                Ok(Some(Event::Error(error)))
            }
            _ if self.phase != Phase::Open => Err(sequence("nothing but HELLO may come now")),
            (Kind::Open, Payload::Control(request)) => self.receive_open(stream, request),
            (kind, payload) => self.receive_on_stream(stream, kind, channel, payload),
        }
    }

    fn receive_hello(&mut self, hello: Map) -> Result<Event, ProtocolError> {
        if self.phase == Phase::Greeted || self.configuring {
            return Err(sequence("a HELLO too many"));
        }
        let protocol: Vec<u64> = hello.field("protocol").map_err(malformed)?;
        hello.field::<&str>("name").map_err(malformed)?;
        let [least, most] = protocol[..] else {
            return Err(malformed(Invalid::new("`protocol` is not a range")));
        };
        if least == 0 || least > most {
            return Err(malformed(Invalid::new("`protocol` is not a range")));
        }
        if !(least..=most).contains(&VERSION) {
            return Err(ProtocolError::new(
                Code::Version,
                format!("this guest speaks version {VERSION}, not {least} to {most}"),
            ));
        }
        // The host of a restored VM starts anew; nothing of its predecessor may reach it.
        self.streams.clear();
        self.outgoing.clear();
        self.last_id = 0;
        self.phase = Phase::Greeted;
        Ok(Event::Hello(hello))
    }

    fn receive_open(&mut self, id: u32, request: Map) -> Result<Option<Event>, ProtocolError> {
        if id <= self.last_id {
            return Err(ProtocolError::new(
                Code::Stream,
                format!("stream {id} after {}", self.last_id),
            ));
        }
        self.last_id = id;
        let method = request.field::<&str>("m").unwrap_or_default();
        if self.streams.len() >= STREAMS_MAX {
            let error = Map::new().with("kind", "too_many_streams").with(
                "message",
                format!("{STREAMS_MAX} streams are open").as_str(),
            );
            let end = encode(&Map::new().with("error", error));
            self.outgoing.control(id, Kind::End, 0, &end);
            return Ok(None);
        }
        self.configuring |= method == "configure";
        self.streams.insert(id, Stream::new(has_channels(method)));
        Ok(Some(Event::Open {
            stream: id,
            request,
        }))
    }

    fn receive_on_stream(
        &mut self,
        id: u32,
        kind: Kind,
        channel: u8,
        payload: Payload,
    ) -> Result<Option<Event>, ProtocolError> {
        if id > self.last_id {
            return Err(ProtocolError::new(
                Code::Stream,
                format!("stream {id} was never opened"),
            ));
        }
        // What was under way when END was sent is not the host's fault.
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.ended) else {
            return Ok(None);
        };
        Ok(match (kind, payload) {
            (Kind::Data, Payload::Bytes(bytes)) => {
                stream.receive_data(bytes.len())?;
                Some(Event::Data { stream: id, bytes })
            }
            (Kind::Eof, _) => {
                stream.receive_eof()?;
                Some(Event::Eof { stream: id })
            }
            (Kind::Credit, Payload::Credit(amount)) => stream
                .receive_credit(channel, amount)?
                .then_some(Event::Credit {
                    stream: id,
                    channel,
                    amount,
                }),
            // A message without a name is one of the unknown ones, which are ignored.
            (Kind::Message, Payload::Control(message)) => {
                let named = message.field::<&str>("m").is_ok();
                named.then_some(Event::Message {
                    stream: id,
                    message,
                })
            }
            (Kind::Cancel, _) => Some(Event::Cancel { stream: id }),
            // `Header::parse` lets no other kind through to a guest.
            _ => return Err(ProtocolError::new(Code::Frame, "unexpected frame")),
        })
    }

    fn open(&mut self, id: u32) -> Result<&mut Stream, Refused> {
        match self.streams.get_mut(&id) {
            Some(stream) if !stream.ended => Ok(stream),
            _ => Err(Refused::NotOpen),
        }
    }

    /// Answers HELLO.
    pub fn hello(
        &mut self,
        name: &str,
        agent_version: &str,
        configured: bool,
    ) -> Result<(), Refused> {
        if self.phase != Phase::Greeted {
            return Err(Refused::NotOpen);
        }
        let hello = Map::new()
            .with("protocol", VERSION)
            .with("name", name)
            .with("agent_version", agent_version)
            .with("configured", configured);
        self.outgoing.control(0, Kind::Hello, 0, &encode(&hello));
        self.phase = Phase::Open;
        Ok(())
    }

    fn send_control(&mut self, id: u32, kind: Kind, payload: &Map) -> Result<(), Refused> {
        let payload = encode(payload);
        if payload.len() > kind.lengths().1 as usize {
            return Err(Refused::TooLong);
        }
        self.outgoing.control(id, kind, 0, &payload);
        Ok(())
    }

    /// Accepts the request of a stream.
    pub fn opened(&mut self, id: u32, payload: &Map) -> Result<(), Refused> {
        if self.open(id)?.opened {
            return Err(Refused::NotOpen);
        }
        self.send_control(id, Kind::Opened, payload)?;
        self.open(id)?.opened = true;
        Ok(())
    }

    /// Tells that something happened on an accepted stream.
    pub fn event(&mut self, id: u32, payload: &Map) -> Result<(), Refused> {
        if !self.open(id)?.opened {
            return Err(Refused::NotOpen);
        }
        self.send_control(id, Kind::Event, payload)
    }

    /// Ends a stream, after the data it still has in the queue.
    pub fn end(&mut self, id: u32, payload: &Map) -> Result<(), Refused> {
        let payload = encode(payload);
        let stream = match self.streams.get_mut(&id) {
            Some(stream) if !stream.ended => stream,
            _ => return Err(Refused::NotOpen),
        };
        if payload.len() > Kind::End.lengths().1 as usize {
            return Err(Refused::TooLong);
        }
        stream.ended = true;
        self.outgoing
            .item(id, &mut stream.lane, Item::End { payload });
        Ok(())
    }

    /// Ends a stream with an error.
    pub fn fail(&mut self, id: u32, kind: &str, message: &str) -> Result<(), Refused> {
        let error = Map::new().with("kind", kind).with("message", message);
        self.end(id, &Map::new().with("error", error))
    }

    /// Bytes that one DATA frame on `channel` may carry now.
    pub fn room(&mut self, id: u32, channel: u8) -> usize {
        self.open(id).map_or(0, |stream| stream.room(channel))
    }

    pub fn data(&mut self, id: u32, channel: u8, bytes: Vec<u8>) -> Result<(), Refused> {
        let stream = match self.streams.get_mut(&id) {
            Some(stream) if stream.opened && !stream.ended => stream,
            _ => return Err(Refused::NotOpen),
        };
        stream.send_data(channel, bytes.len())?;
        self.outgoing
            .item(id, &mut stream.lane, Item::Data { channel, bytes });
        Ok(())
    }

    pub fn eof(&mut self, id: u32, channel: u8) -> Result<(), Refused> {
        let stream = match self.streams.get_mut(&id) {
            Some(stream) if stream.opened && !stream.ended => stream,
            _ => return Err(Refused::NotOpen),
        };
        stream.send_eof(channel)?;
        self.outgoing
            .item(id, &mut stream.lane, Item::Eof { channel });
        Ok(())
    }

    /// Gives the host credit for bytes of channel 0 that were taken.
    pub fn consumed(&mut self, id: u32, amount: u32) -> Result<(), Refused> {
        if self.open(id)?.consumed(amount)? {
            self.outgoing
                .control(id, Kind::Credit, 0, &amount.to_be_bytes());
        }
        Ok(())
    }

    /// Bytes of DATA that wait; the caller reads no more output while there are many.
    pub fn queued_data(&self) -> usize {
        self.outgoing.data_bytes()
    }

    /// The bytes to write next; empty if there are none.
    pub fn pending(&mut self) -> &[u8] {
        let streams = &mut self.streams;
        self.outgoing.fill(|id| {
            let stream = streams.get_mut(&id)?;
            let (item, more) = next(&mut stream.lane)?;
            if matches!(item, Item::End { .. }) {
                streams.remove(&id);
            }
            Some((item, more))
        });
        self.outgoing.unsent()
    }

    /// `count` bytes of `pending` were written.
    pub fn advance(&mut self, count: usize) {
        self.outgoing.advance(count);
    }
}

fn malformed(what: Invalid) -> ProtocolError {
    ProtocolError::new(Code::Payload, what.0)
}

fn sequence(what: &str) -> ProtocolError {
    ProtocolError::new(Code::Sequence, what)
}

impl From<Vec<Value>> for Value {
    fn from(items: Vec<Value>) -> Value {
        Value::Array(items)
    }
}
