//! What holds for any input: no panic, bounded memory, and only lawful answers.
#![allow(clippy::unwrap_used, clippy::expect_used)] // A failed test should say where.

mod support;

use agentd::channel::{decode, encode, Header, Incoming, Kind, Map, Receiver, Value};
use proptest::prelude::*;
use support::Auditor;

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Nil),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(|number| Value::Int(number.into())),
        any::<u64>().prop_map(|number| Value::Int(number.into())),
        (-300i64..70_000).prop_map(|number| Value::Int(number.into())),
        ".{0,40}".prop_map(Value::Str),
        prop::collection::vec(any::<u8>(), 0..300).prop_map(Value::Bin),
    ];
    leaf.prop_recursive(5, 64, 20, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..20).prop_map(Value::Array),
            map_of(inner).prop_map(Value::Map),
        ]
    })
}

fn map_of(inner: impl Strategy<Value = Value>) -> impl Strategy<Value = Map> {
    prop::collection::btree_map(".{0,40}", inner, 0..20).prop_map(|entries| {
        entries
            .into_iter()
            .fold(Map::new(), |map, (key, value)| map.with(&key, value))
    })
}

fn frame(stream: u32, kind: Kind, channel: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    Header {
        length: payload.len() as u32,
        stream,
        kind,
        channel,
    }
    .emit(&mut bytes);
    bytes.extend_from_slice(payload);
    bytes
}

/// Frames that a host might send, mostly lawful ones.
fn host_frame() -> impl Strategy<Value = Vec<u8>> {
    let open = |method: &'static str| {
        move |id| frame(id, Kind::Open, 0, &encode(&Map::new().with("m", method)))
    };
    let hello = Map::new()
        .with("protocol", vec![1u64.into(), 1u64.into()])
        .with("name", "host");
    prop_oneof![
        2 => Just(frame(0, Kind::Hello, 0, &encode(&hello))),
        6 => (1u32..60).prop_map(open("exec")),
        2 => (1u32..60).prop_map(open("ping")),
        1 => (1u32..60).prop_map(open("configure")),
        6 => (1u32..60, 1usize..70_000).prop_map(|(id, length)| frame(id, Kind::Data, 0, &vec![1; length])),
        2 => (1u32..60).prop_map(|id| frame(id, Kind::Eof, 0, &[])),
        4 => (1u32..60, 0u8..4, any::<u32>()).prop_map(|(id, channel, amount)| {
            frame(id, Kind::Credit, channel, &(amount >> (amount % 32)).to_be_bytes())
        }),
        2 => (1u32..60).prop_map(|id| frame(id, Kind::Message, 0, &encode(&Map::new().with("m", "x")))),
        1 => (1u32..60).prop_map(|id| frame(id, Kind::Cancel, 0, &[0x80])),
        1 => prop::collection::vec(any::<u8>(), 0..40),
    ]
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(map in map_of(value())) {
        prop_assert_eq!(decode(&encode(&map)).unwrap(), map);
    }

    #[test]
    fn any_payload_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        if let Ok(map) = decode(&bytes) {
            prop_assert_eq!(decode(&encode(&map)).unwrap(), map);
        }
    }

    #[test]
    fn a_damaged_payload_is_read_or_refused(
        map in map_of(value()), place in any::<prop::sample::Index>(), byte in any::<u8>()
    ) {
        let mut bytes = encode(&map);
        let place = place.index(bytes.len());
        bytes[place] = byte;
        let _ = decode(&bytes);
        let _ = decode(&bytes[..place]);
    }

    #[test]
    fn pieces_do_not_matter(
        frames in prop::collection::vec(host_frame(), 0..20), step in 1usize..5000
    ) {
        let read = |step: usize| {
            let bytes = frames.concat();
            let mut incoming = Incoming::new(Receiver::Guest);
            let mut frames = Vec::new();
            for piece in bytes.chunks(step) {
                incoming.feed(piece);
                loop {
                    match incoming.next_frame() {
                        Ok(Some(frame)) => frames.push(frame),
                        Ok(None) => break,
                        Err(error) => return (frames, Some(error)),
                    }
                }
            }
            (frames, None)
        };
        prop_assert_eq!(read(step), read(usize::MAX));
    }

    #[test]
    fn answers_are_lawful_whatever_the_host_and_the_handlers_do(
        steps in prop::collection::vec((host_frame(), prop::collection::vec(any::<u8>(), 0..12)), 0..60)
    ) {
        let mut program = Vec::new();
        for (frame, noise) in steps {
            for piece in frame.chunks(255) {
                program.extend_from_slice(&[0, piece.len() as u8]);
                program.extend_from_slice(piece);
            }
            // Commands and reads only: op 2 and 3 of the auditor.
            for pair in noise.chunks_exact(2) {
                program.extend_from_slice(&[pair[0] | 2, pair[1]]);
            }
        }
        Auditor::default().run(&program);
    }

    #[test]
    fn noise_is_survived(program in prop::collection::vec(any::<u8>(), 0..4000)) {
        Auditor::default().run(&program);
    }
}

/// A host that opens streams for ever and reads nothing (A02 from the other side).
#[test]
fn a_host_that_never_reads_is_not_read_from() {
    let mut auditor = Auditor::default();
    let hello = Map::new()
        .with("protocol", vec![1u64.into(), 1u64.into()])
        .with("name", "host");
    auditor.receive(&frame(0, Kind::Hello, 0, &encode(&hello)));
    let open = encode(&Map::new().with("m", "exec"));
    let mut sent = 0;
    for id in 1..10_000_000 {
        if !auditor.wants_input() {
            break;
        }
        let bytes = frame(id, Kind::Open, 0, &open);
        sent += bytes.len();
        auditor.receive(&bytes);
    }
    assert!(!auditor.wants_input());
    assert_eq!(auditor.queued(), 0);
    assert!(sent < Auditor::QUEUE);
}
