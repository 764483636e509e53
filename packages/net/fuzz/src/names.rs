//! Any bytes as what a client sends, whole and in pieces of any size, with any bytes as its server's answers: what
//! is found is the same.

use microsandbox_net_native::client::{Client, Said};
use microsandbox_net_native::wire::{http, socks, tls, Progress};
use std::fmt::Debug;

fn alike<R: Default, T: PartialEq + Debug>(data: &[u8], feed: fn(&mut R, &[u8]) -> Progress<T>) {
    let whole = feed(&mut R::default(), data);
    let mut reader = R::default();
    for byte in data {
        match feed(&mut reader, &[*byte]) {
            Progress::NeedMore => {}
            end => return assert_eq!(end, whole),
        }
    }
    assert_eq!(Progress::NeedMore, whole);
}

/// What a TLS client says first.
pub fn client_hello(data: &[u8]) {
    alike::<tls::Reader, _>(data, tls::Reader::feed);
}

/// The head of a request, and requests one after the other.
pub fn http(data: &[u8]) {
    alike::<http::Reader, _>(data, http::Reader::feed);
    let mut requests = http::Requests::default();
    let mut rest = data;
    while !rest.is_empty() {
        let (read, progress) = requests.feed(rest);
        rest = &rest[read..];
        if !matches!(progress, Progress::Found(_)) {
            break;
        }
    }
}

/// Whom a client asks for in `sent`, and how many bytes passed or were read.
fn asked(sent: &[u8], answer: &[u8], size: usize) -> (Vec<Said>, usize) {
    let mut client = Client::default();
    let mut all = Vec::new();
    let (mut at, mut heard) = (0, false);
    while at < sent.len() {
        let piece = &sent[at..sent.len().min(at.saturating_add(size))];
        let free = usize::try_from(client.free()).unwrap_or(usize::MAX);
        if free > 0 {
            let count = free.min(piece.len());
            client.skip(count as u64);
            at += count;
            continue;
        }
        let (read, said) = client.feed(piece);
        at += read;
        match said {
            Said::More | Said::Pass => {}
            Said::Wait if !heard => {
                heard = true;
                answer.chunks(size).for_each(|piece| client.hear(piece));
            }
            Said::Wait => break,
            Said::Malformed(_) => {
                all.push(said);
                // Nothing of it passes, however much of it was read.
                return (all, 0);
            }
            said => all.push(said),
        }
    }
    (all, at)
}

/// Whichever of the protocols that state a destination it is. What the server answers stands behind the first
/// byte 0xff, if there is one.
pub fn names(data: &[u8]) {
    alike::<socks::Reader, _>(data, socks::Reader::feed);
    let cut = data.iter().position(|byte| *byte == 0xff);
    let (sent, answer) = data.split_at(cut.unwrap_or(data.len()));
    let whole = asked(sent, answer, usize::MAX);
    for size in [1, 7] {
        assert_eq!(asked(sent, answer, size), whole);
    }
}
