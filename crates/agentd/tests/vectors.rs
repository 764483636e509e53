//! The vectors that both implementations of the channel are tested against.
#![allow(clippy::unwrap_used, clippy::expect_used)] // A failed test should say where.

use agentd::channel::{
    decode, Event, Frame, Guest, Header, Incoming, Kind, Map, Payload, Receiver, Value, HEADER,
};
use serde_json::Value as Json;

fn load(name: &str) -> Option<Vec<Json>> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors");
    if !root.exists() {
        // The source distribution of a package has the crate without the repository around it.
        return None;
    }
    let text = std::fs::read_to_string(root.join(name)).expect(name);
    Some(serde_json::from_str(&text).unwrap())
}

fn unhex(text: &Json) -> Vec<u8> {
    let text = text.as_str().unwrap().as_bytes();
    text.chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::Nil,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => Value::Int(number.to_string().parse().unwrap()),
        Json::String(text) => Value::Str(text.clone()),
        Json::Array(items) => Value::Array(items.iter().map(value).collect()),
        Json::Object(object) if object.len() == 1 && object.contains_key("bin") => {
            Value::Bin(unhex(&object["bin"]))
        }
        Json::Object(_) => Value::Map(map(json)),
    }
}

fn map(json: &Json) -> Map {
    let entries = json.as_object().unwrap().iter();
    entries.fold(Map::new(), |map, (key, item)| map.with(key, value(item)))
}

/// Maps have no order.
fn sorted(map: &Map) -> Vec<(String, String)> {
    fn show(value: &Value) -> String {
        match value {
            Value::Map(map) => format!("{:?}", sorted(map)),
            Value::Array(items) => format!("{:?}", items.iter().map(show).collect::<Vec<_>>()),
            other => format!("{other:?}"),
        }
    }
    let mut entries: Vec<_> = map
        .iter()
        .map(|(key, item)| (key.to_owned(), show(item)))
        .collect();
    entries.sort();
    entries
}

fn kind_name(kind: Kind) -> String {
    format!("{kind:?}").to_uppercase()
}

fn compare_frame(frame: &Frame, wanted: &Json, name: &str) {
    assert_eq!(u64::from(frame.stream), wanted["stream"], "{name}");
    assert_eq!(kind_name(frame.kind), wanted["kind"], "{name}");
    assert_eq!(u64::from(frame.channel), wanted["channel"], "{name}");
    match &frame.payload {
        Payload::Control(control) => {
            assert_eq!(sorted(control), sorted(&map(&wanted["control"])), "{name}");
        }
        Payload::Bytes(bytes) => assert_eq!(*bytes, unhex(&wanted["payload"]), "{name}"),
        Payload::Credit(amount) => {
            assert_eq!(
                amount.to_be_bytes()[..],
                unhex(&wanted["payload"]),
                "{name}"
            );
        }
        Payload::Nothing => assert_eq!(wanted["payload"], "", "{name}"),
    }
}

/// Feeds in pieces of `step` bytes; the frames, and the code of the error that ended it.
fn read_all(receiver: Receiver, bytes: &[u8], step: usize) -> (Vec<Frame>, Option<&'static str>) {
    let mut incoming = Incoming::new(receiver);
    let mut frames = Vec::new();
    for piece in bytes.chunks(step.max(1)) {
        incoming.feed(piece);
        loop {
            match incoming.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error.code.as_str())),
            }
        }
    }
    (frames, None)
}

#[test]
fn frames() {
    for vector in load("frames.json").unwrap_or_default() {
        let name = vector["name"].as_str().unwrap();
        let receiver = match vector["receiver"].as_str().unwrap() {
            "guest" => Receiver::Guest,
            _ => Receiver::Host,
        };
        let bytes = unhex(&vector["hex"]);
        for step in [bytes.len(), 1, 5, 4096] {
            let (frames, error) = read_all(receiver, &bytes, step);
            assert_eq!(error, vector["error"].as_str(), "{name}");
            if let Some(wanted) = vector["frames"].as_array() {
                assert_eq!(frames.len(), wanted.len(), "{name}");
                for (frame, wanted) in frames.iter().zip(wanted) {
                    compare_frame(frame, wanted, name);
                }
            }
        }
    }
}

/// What was received, in the form of the vectors.
fn compare_event(event: &Event, wanted: &Json, name: &str) {
    let (kind, stream, channel, control, payload, credit) = match event {
        Event::Hello(map) => ("hello", None, None, Some(map), None, None),
        Event::Open { stream, request } => ("open", Some(*stream), None, Some(request), None, None),
        Event::Message { stream, message } => {
            ("message", Some(*stream), None, Some(message), None, None)
        }
        Event::Cancel { stream } => ("cancel", Some(*stream), None, None, None, None),
        Event::Data { stream, bytes } => ("data", Some(*stream), Some(0), None, Some(bytes), None),
        Event::Eof { stream } => ("eof", Some(*stream), Some(0), None, None, None),
        Event::Credit {
            stream,
            channel,
            amount,
        } => (
            "credit",
            Some(*stream),
            Some(*channel),
            None,
            None,
            Some(*amount),
        ),
        Event::Error(map) => ("error", None, None, Some(map), None, None),
        Event::Broken(error) => panic!("{name}: {error}"),
    };
    assert_eq!(kind, wanted["event"], "{name}");
    let same = |key: &str, is: Option<u64>| {
        if let Some(wanted) = wanted.get(key) {
            assert_eq!(is, wanted.as_u64(), "{name}: {key}");
        }
    };
    same("stream", stream.map(u64::from));
    same("channel", channel.map(u64::from));
    same("credit", credit.map(u64::from));
    if let Some(wanted) = wanted.get("control") {
        let control = control.cloned().unwrap_or_default();
        assert_eq!(sorted(&control), sorted(&map(wanted)), "{name}");
    }
    if let Some(wanted) = wanted.get("payload") {
        assert_eq!(*payload.unwrap(), unhex(wanted), "{name}");
    }
}

fn carry_out(guest: &mut Guest, send: &Json) {
    let stream = send["stream"].as_u64().unwrap_or(0) as u32;
    let channel = send["channel"].as_u64().unwrap_or(0) as u8;
    let control = || map(&send["control"]);
    let outcome = match send["op"].as_str().unwrap() {
        "hello" => {
            let hello = &send["control"];
            guest.hello(
                hello["name"].as_str().unwrap(),
                hello["agent_version"].as_str().unwrap(),
                hello["configured"].as_bool().unwrap(),
            )
        }
        "opened" => guest.opened(stream, &control()),
        "event" => guest.event(stream, &control()),
        "end" => guest.end(stream, &control()),
        "data" => guest.data(stream, channel, unhex(&send["payload"])),
        "eof" => guest.eof(stream, channel),
        "consumed" => guest.consumed(stream, send["credit"].as_u64().unwrap() as u32),
        other => panic!("unknown op {other}"),
    };
    outcome.unwrap_or_else(|refused| panic!("{refused:?}: {send}"));
}

fn flush(guest: &mut Guest) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let pending = guest.pending();
        if pending.is_empty() {
            return bytes;
        }
        let count = pending.len();
        bytes.extend_from_slice(pending);
        guest.advance(count);
    }
}

/// Frame by frame, control payloads as values.
fn compare_bytes(is: &[u8], wanted: &[u8], name: &str) {
    let split = |mut bytes: &[u8]| {
        let mut frames = Vec::new();
        while let Some((head, rest)) = bytes.split_first_chunk::<HEADER>() {
            let header = Header::parse(head, Receiver::Host).unwrap();
            let (body, rest) = rest.split_at(header.length as usize);
            let body = match header.kind {
                Kind::Data | Kind::Eof | Kind::Credit => format!("{body:?}"),
                _ => format!("{:?}", sorted(&decode(body).unwrap())),
            };
            frames.push((header, body));
            bytes = rest;
        }
        frames
    };
    assert_eq!(split(is), split(wanted), "{name}");
}

#[test]
fn sessions() {
    let sessions = load("sessions.json").unwrap_or_default();
    for vector in sessions.iter().filter(|vector| vector["side"] == "guest") {
        let name = vector["name"].as_str().unwrap();
        let mut guest = Guest::new();
        let steps: Vec<&Json> = (vector["steps"].as_array().unwrap().iter())
            .flat_map(|step| {
                let times = step.get("times").map_or(1, |times| times.as_u64().unwrap());
                std::iter::repeat_n(step, times as usize)
            })
            .collect();
        for (index, step) in steps.iter().enumerate() {
            if let Some(bytes) = step.get("receive") {
                guest.feed(&unhex(bytes));
                let mut events = Vec::new();
                let mut broken = None;
                while let Some(event) = guest.next_event() {
                    match event {
                        Event::Broken(error) => broken = Some(error),
                        event => events.push(event),
                    }
                }
                let wanted = step["events"].as_array().unwrap();
                assert_eq!(events.len(), wanted.len(), "{name}: {events:?}");
                for (event, wanted) in events.iter().zip(wanted) {
                    compare_event(event, wanted, name);
                }
                let code = match index + 1 == steps.len() {
                    true => vector["error"].as_str(),
                    false => None,
                };
                assert_eq!(
                    broken.as_ref().map(|error| error.code.as_str()),
                    code,
                    "{name}"
                );
                if let Some(code) = code {
                    let sent = flush(&mut guest);
                    let error = decode(&sent[HEADER..]).unwrap();
                    assert_eq!(error.field("code"), Ok(code), "{name}");
                    assert!(guest.is_closed());
                }
                if let Some(bytes) = step.get("bytes") {
                    compare_bytes(&flush(&mut guest), &unhex(bytes), name);
                }
            } else {
                carry_out(&mut guest, &step["send"]);
                compare_bytes(&flush(&mut guest), &unhex(&step["bytes"]), name);
            }
        }
    }
}
