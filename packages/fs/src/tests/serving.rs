//! Sessions on a stream: cut anywhere, garbage, slow and gone peers. F23 on the wire.

use super::support::*;
use crate::broker::{Broker, Options};
use crate::serve::{Failure, Session};
use crate::wire::request::Malformed;
use crate::wire::{MAX_MESSAGE, ROOT};
use proptest::prelude::*;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

/// What a session comes to while `guest` has the other end of its stream.
fn session(
    home: &Home,
    threads: usize,
    guest: impl FnOnce(UnixStream, &Session, &Broker),
) -> Result<(), Failure> {
    let broker = Broker::open(&home.share(), Options::default()).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let session = Session::new(OwnedFd::from(ours)).unwrap();
    let ended = std::thread::scope(|scope| {
        let run = scope.spawn(|| session.run(&broker, threads));
        guest(theirs, &session, &broker);
        run.join().unwrap()
    });
    assert_eq!(broker.usage(), (1, 0), "nothing is left open or known");
    home.intact();
    ended
}

fn init(unique: u64) -> Vec<u8> {
    let sent = body(&[7, 38, 1 << 17, u32::MAX], &[&[0; 48]]);
    message(26, unique, 0, 0, &sent)
}

/// The number, the error and the rest of the next reply.
fn reply(stream: &mut UnixStream) -> (u64, i32, Vec<u8>) {
    let mut header = [0; 16];
    stream.read_exact(&mut header).unwrap();
    let mut rest = vec![0; u32_at(&header, 0) as usize - 16];
    stream.read_exact(&mut rest).unwrap();
    (u64_at(&header, 8), u32_at(&header, 4) as i32, rest)
}

fn begin(stream: &mut UnixStream) {
    stream.write_all(&init(1)).unwrap();
    assert_eq!(reply(stream).0, 1);
}

#[test]
fn many_requests_are_answered_each_once_and_whole() {
    let home = Home::new();
    let data: Vec<u8> = (0..1u32 << 20).map(|at| at as u8).collect();
    std::fs::write(home.share().join("file"), &data).unwrap();
    let ended = session(&home, 4, |mut stream, _, _| {
        begin(&mut stream);
        stream
            .write_all(&message(1, 2, ROOT, 0, b"file\0"))
            .unwrap();
        let node = entry(&reply(&mut stream).2).node;
        stream.write_all(&message(14, 3, node, 0, &[0; 8])).unwrap();
        let handle = long(u64_at(&reply(&mut stream).2, 0));
        let read = body(&[&handle[..], &[0, 0, 1 << 20], &[0; 5]].concat(), &[]);
        let mut sender = stream.try_clone().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for unique in 10..60 {
                    let sent = match unique % 2 {
                        0 => message(15, unique, node, 0, &read),
                        _ => message(3, unique, node, 0, &[0; 16]),
                    };
                    sender.write_all(&sent).unwrap();
                }
                sender.shutdown(Shutdown::Write).unwrap();
            });
            let mut answered: Vec<u64> = Vec::new();
            for _ in 10..60 {
                let (unique, error, rest) = reply(&mut stream);
                assert_eq!(error, 0);
                assert!(unique % 2 == 1 || rest == data);
                answered.push(unique);
            }
            answered.sort_unstable();
            assert!(answered.into_iter().eq(10..60));
        });
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    });
    assert_eq!(ended, Ok(()));
}

#[test]
fn what_is_not_answered_is_done_after_the_request_behind_it() {
    let home = Home::new();
    std::fs::write(home.share().join("file"), "text").unwrap();
    let ended = session(&home, 1, |mut stream, _, broker| {
        begin(&mut stream);
        stream
            .write_all(&message(1, 2, ROOT, 0, b"file\0"))
            .unwrap();
        let node = entry(&reply(&mut stream).2).node;
        stream.write_all(&message(14, 3, node, 0, &[0; 8])).unwrap();
        let handle = long(u64_at(&reply(&mut stream).2, 0));
        let release = message(18, 0, node, 0, &body(&handle, &[&[0; 16]]));
        let forget = message(2, 0, node, 0, &1u64.to_le_bytes());
        let asked = message(3, 4, node, 0, &[0; 16]);
        stream
            .write_all(&[release, forget, asked].concat())
            .unwrap();
        let (unique, error, _) = reply(&mut stream);
        assert_eq!((unique, error), (4, 0), "it was known then");
        // The thread is one: it reads this when the rest is done.
        stream.write_all(&message(3, 5, node, 0, &[0; 16])).unwrap();
        let (unique, error, _) = reply(&mut stream);
        assert_eq!((unique, error), (5, -ESTALE));
        assert_eq!(broker.usage(), (1, 0));
        stream.shutdown(Shutdown::Both).unwrap();
    });
    assert_eq!(ended, Ok(()));
}

#[test]
fn what_takes_long_stops_no_other() {
    let home = Home::new();
    std::fs::write(home.share().join("file"), "text").unwrap();
    let ended = session(&home, 2, |mut stream, _, broker| {
        begin(&mut stream);
        stream.write_all(&message(27, 2, ROOT, 0, &[0; 8])).unwrap();
        let handle = u64_at(&reply(&mut stream).2, 0);
        let list = body(&[&long(handle)[..], &[0, 0, 4096], &[0; 5]].concat(), &[]);
        // As long as the directory is being read by somebody else.
        broker.while_read(handle, || {
            stream.write_all(&message(28, 3, ROOT, 0, &list)).unwrap();
            for unique in 4..20 {
                // INTERRUPT of it and FORGET are heard, and the others answered.
                stream
                    .write_all(&message(36, 3, 0, 0, &3u64.to_le_bytes()))
                    .unwrap();
                stream.write_all(&message(2, 3, 99, 0, &[0; 8])).unwrap();
                stream
                    .write_all(&message(1, unique, ROOT, 0, b"file\0"))
                    .unwrap();
                assert_eq!(reply(&mut stream).0, unique);
            }
        });
        assert_eq!(reply(&mut stream).0, 3);
    });
    assert_eq!(ended, Ok(()));
}

#[test]
fn a_stream_of_no_messages_ends_with_the_reason() {
    let home = Home::new();
    let whole = message(1, 7, ROOT, 0, b"name\0");
    let long = ((MAX_MESSAGE + 1) as u32).to_le_bytes();
    let cases: [(&[u8], &str); 8] = [
        (&whole[..3], "the stream ended within it"),
        (&whole[..4], "the stream ended within it"),
        (&whole[..44], "the stream ended within it"),
        (&[0; 64], "shorter than a header"),
        (&[39, 0, 0, 0], "shorter than a header"),
        (&[0xff; 64], "longer than any request"),
        (&long, "longer than any request"),
        (&message(1, 0, ROOT, 0, b"name\0"), "its number is 0"),
    ];
    for (sent, reason) in cases {
        let ended = session(&home, 2, |mut stream, _, _| {
            begin(&mut stream);
            stream.write_all(sent).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            // The end, and nothing before it.
            assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
        });
        assert_eq!(ended, Err(Failure::Malformed(Malformed(reason))));
    }
}

#[test]
fn it_is_stopped_whatever_it_waits_for() {
    let home = Home::new();
    std::fs::write(home.share().join("file"), vec![7; 1 << 20]).unwrap();
    // Idle, within a message, and before it begins.
    for sent in [init(1), init(1)[..50].to_vec(), vec![]] {
        let ended = session(&home, 3, |mut stream, session, _| {
            stream.write_all(&sent).unwrap();
            session.stop();
        });
        assert_eq!(ended, Ok(()));
    }
    // A guest that asks and does not listen.
    let ended = session(&home, 2, |mut stream, session, broker| {
        begin(&mut stream);
        stream
            .write_all(&message(1, 2, ROOT, 0, b"file\0"))
            .unwrap();
        let node = entry(&reply(&mut stream).2).node;
        stream.write_all(&message(14, 3, node, 0, &[0; 8])).unwrap();
        let handle = long(u64_at(&reply(&mut stream).2, 0));
        let read = body(&[&handle[..], &[0, 0, 1 << 20], &[0; 5]].concat(), &[]);
        for unique in 10..20 {
            stream
                .write_all(&message(15, unique, node, 0, &read))
                .unwrap();
        }
        assert_eq!(broker.usage(), (2, 1));
        session.stop();
    });
    assert_eq!(ended, Ok(()));
}

#[test]
fn a_peer_that_is_gone_and_a_stream_that_is_none() {
    let home = Home::new();
    let ended = session(&home, 2, |mut stream, _, _| {
        stream.write_all(&init(1)).unwrap();
        // With the reply unread.
        drop(stream);
    });
    assert_eq!(ended, Ok(()));
    let file = std::fs::File::open(home.outside().join("secret")).unwrap();
    assert!(Session::new(file.into()).is_err());
    let (messages, _) = std::os::unix::net::UnixDatagram::pair().unwrap();
    assert!(Session::new(messages.into()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// However the bytes are cut on their way, the answers are the same.
    #[test]
    fn messages_arrive_in_any_pieces(cuts in prop::collection::vec(1usize..90, 1..12)) {
        let home = Home::new();
        let sent: Vec<u8> = (2..12u64).flat_map(|unique| message(1, unique, ROOT, 0, b"name\0")).collect();
        let ended = session(&home, 2, |mut stream, _, _| {
            begin(&mut stream);
            let mut rest = &sent[..];
            for cut in cuts.iter().cycle() {
                let (piece, after) = rest.split_at((*cut).min(rest.len()));
                stream.write_all(piece).unwrap();
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            let mut answered: Vec<u64> = (2..12).map(|_| reply(&mut stream).0).collect();
            answered.sort_unstable();
            assert!(answered.into_iter().eq(2..12));
        });
        prop_assert_eq!(ended, Ok(()));
    }

    /// Any bytes end the session or are answered; it never hangs and nothing outside changes.
    #[test]
    fn any_bytes_end_it(bytes in prop::collection::vec(any::<u8>(), 0..200), framed: bool) {
        let home = Home::new();
        let ended = session(&home, 2, |mut stream, _, _| {
            begin(&mut stream);
            let mut sent = bytes.clone();
            if framed && sent.len() >= 40 {
                let length = (sent.len() as u32).to_le_bytes();
                sent[..4].copy_from_slice(&length);
            }
            let _ = stream.write_all(&sent);
            let _ = stream.shutdown(Shutdown::Write);
            let _ = stream.read_to_end(&mut Vec::new());
        });
        prop_assert!(!matches!(ended, Err(Failure::Broken | Failure::System(..))), "{:?}", ended);
    }
}
