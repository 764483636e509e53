//! The `hold` method: the workload stands still and nothing is under way on the port, so that the host
//! can stop the machine and make a copy of it. Both then wait to be told which of them they are.

use std::time::Duration;

use crate::channel::{Invalid, Map};

/// Bytes of the token that a release begins with.
const TOKEN: usize = 16;
/// What follows the token: which of the two it is, and the host's time.
const RELEASE: usize = TOKEN + 1 + 8;
/// For how long the workload is waited for. What has not stopped by then is in the kernel and stops
/// before it executes anything of its own.
pub const FREEZE: Duration = Duration::from_millis(100);

/// What the machine is when it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The one that was held.
    Original,
    /// A copy, with a host of its own.
    Copy,
}

/// What ends a hold. Around it lies what the host sends anyway: of frames that it had begun before it
/// knew of the hold, and after the release.
#[derive(Debug, PartialEq, Eq)]
pub struct Release {
    pub role: Role,
    pub time_ns: u64,
    pub before: Vec<u8>,
    pub after: Vec<u8>,
}

/// Looks for the release in what comes from the host.
pub struct Held {
    token: Vec<u8>,
    read: Vec<u8>,
}

impl Held {
    pub fn new(request: &Map) -> Result<Held, Invalid> {
        let token: &[u8] = request.field("token")?;
        if token.len() != TOKEN {
            return Err(Invalid(format!("`token` is not {TOKEN} bytes")));
        }
        Ok(Held {
            token: token.to_vec(),
            read: Vec::new(),
        })
    }

    /// Takes what was read of the port; the release once it is complete.
    pub fn feed(&mut self, bytes: &[u8]) -> Option<Release> {
        // The token may be split among two reads.
        let from = self.read.len().saturating_sub(RELEASE);
        self.read.extend_from_slice(bytes);
        let found = self.read[from..]
            .windows(TOKEN)
            .position(|window| window == self.token)?;
        let start = from + found;
        let release: [u8; RELEASE] = self.read.get(start..start + RELEASE)?.try_into().ok()?;
        let (_, tail) = release.split_at(TOKEN);
        let time: [u8; 8] = tail[1..].try_into().ok()?;
        let after = self.read.split_off(start + RELEASE);
        self.read.truncate(start);
        Some(Release {
            role: match tail[0] {
                0 => Role::Original,
                _ => Role::Copy,
            },
            time_ns: u64::from_be_bytes(time),
            before: std::mem::take(&mut self.read),
            after,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A failed test should say where.
    use super::*;

    fn held() -> Held {
        Held::new(&Map::new().with("token", crate::channel::Value::Bin(vec![7; TOKEN]))).unwrap()
    }

    fn release(role: u8) -> Vec<u8> {
        [&[7; TOKEN][..], &[role], &5u64.to_be_bytes()].concat()
    }

    #[test]
    fn a_release_is_found_wherever_it_is_split() {
        let sent = [b"before".as_slice(), &release(1), b"after"].concat();
        for size in 1..=sent.len() {
            let mut held = held();
            let mut pieces = sent.chunks(size);
            let mut found = pieces.by_ref().find_map(|piece| held.feed(piece)).unwrap();
            pieces.for_each(|piece| found.after.extend_from_slice(piece));
            assert_eq!((found.role, found.time_ns), (Role::Copy, 5));
            assert_eq!(
                (&found.before[..], &found.after[..]),
                (&b"before"[..], &b"after"[..])
            );
        }
    }

    #[test]
    fn the_original_goes_on_with_what_it_was_sent() {
        let found = held().feed(&release(0)).unwrap();
        assert_eq!(found.role, Role::Original);
        assert!(found.before.is_empty() && found.after.is_empty());
        assert_eq!(held().feed(&release(0)[..RELEASE - 1]), None);
    }

    #[test]
    fn a_token_has_its_length() {
        let request =
            |length| Map::new().with("token", crate::channel::Value::Bin(vec![0; length]));
        assert!(Held::new(&request(TOKEN)).is_ok());
        assert!(Held::new(&request(TOKEN - 1)).is_err());
        assert!(Held::new(&Map::new()).is_err());
    }
}
