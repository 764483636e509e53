//! The second ClientHello: a server of TLS 1.3 may ask for one (RFC 8446 4.1.4), and it states a name once more.

use super::tls::{ClientHello, Reader};
use super::Progress;

/// The random of a ServerHello that asks for another ClientHello (RFC 8446 4.1.3).
pub const RETRY: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91,
    0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];
/// Where it is in what a server sends first: behind the heads of record and message, and a version.
const PLACE: usize = 5 + 4 + 2;

/// What a server of TLS answers first, as far as it tells whether it asks for another ClientHello.
#[derive(Debug, Default)]
pub struct Answer(Vec<u8>);

impl Answer {
    /// Some once it is known.
    pub fn feed(&mut self, bytes: &[u8]) -> Option<bool> {
        let room = PLACE + RETRY.len() - self.0.len();
        self.0.extend_from_slice(&bytes[..bytes.len().min(room)]);
        // A handshake record that begins with a ServerHello.
        let hello = [(0, 22), (5, 2)]
            .iter()
            .all(|(at, wanted)| self.0.get(*at).is_none_or(|seen| seen == wanted));
        let random = &self.0[self.0.len().min(PLACE)..];
        if !hello || !RETRY.starts_with(random) {
            return Some(false);
        }
        (random.len() == RETRY.len()).then_some(true)
    }
}

/// Fed with what follows the first ClientHello, once the server asked for another: records of other kinds
/// (early data, a change of ciphers that changes none) come before it.
#[derive(Debug, Default)]
pub struct Hello {
    head: Vec<u8>,
    left: usize,
    reader: Option<Reader>,
}

impl Hello {
    /// The number of bytes that were read comes first.
    pub fn read(&mut self, bytes: &[u8]) -> (usize, Progress<ClientHello>) {
        let mut read = 0;
        while read < bytes.len() {
            let rest = &bytes[read..];
            if let Some(reader) = &mut self.reader {
                let (taken, progress) = reader.read(rest);
                return (read + taken, progress);
            }
            if self.left > 0 {
                let taken = self.left.min(rest.len());
                self.left -= taken;
                read += taken;
                continue;
            }
            self.head.push(rest[0]);
            read += 1;
            if self.head.len() == 5 {
                let head = std::mem::take(&mut self.head);
                if head[0] == 22 {
                    let mut reader = Reader::default();
                    if let end @ (Progress::Malformed(_) | Progress::NotThis) = reader.feed(&head) {
                        return (read, end);
                    }
                    self.reader = Some(reader);
                } else {
                    self.left = usize::from(u16::from_be_bytes([head[3], head[4]]));
                }
            }
        }
        (read, Progress::NeedMore)
    }
}
