//! The bytes of a stream: a session ends with them, for a reason that is theirs; nothing is left open, nothing beside
//! the shared directory changes, and what it holds stays within its quota.
//!
//! The first byte says whether the rest is the stream, after INIT, or pieces that become messages as in `session`.

use crate::session::{fill, home, intact, message};
use microsandbox_fs_native::broker::{Broker, Options};
use microsandbox_fs_native::quota::{Limits, Quota};
use microsandbox_fs_native::serve::{Failure, Session};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

const BYTES: u64 = 1 << 20;
const NAMES: u64 = 32;

pub fn stream(bytes: &[u8]) {
    let home = home();
    let share = home.join("share");
    fill(home, &share);
    let Some((&how, mut rest)) = bytes.split_first() else {
        return;
    };
    let mut sent = message(
        26,
        0,
        &[7u32, 38, 0, u32::MAX].map(u32::to_le_bytes).concat(),
    );
    if how & 1 == 0 {
        sent.extend(rest);
    } else {
        while let [opcode, node, length, after @ ..] = rest {
            let (body, next) = after.split_at(usize::from(*length).min(after.len()));
            sent.extend(message(u32::from(*opcode), u64::from(*node), body));
            rest = next;
        }
    }
    let mut broker = Broker::open(&share, Options::default()).expect("the directory is there");
    let limits = Limits {
        bytes: BYTES,
        names: NAMES,
    };
    broker.limit(Quota::new(limits, None).expect("there is memory"));
    let (ours, mut theirs) = UnixStream::pair().expect("there are descriptors");
    let session = Session::new(OwnedFd::from(ours)).expect("it is a stream");
    let ended = std::thread::scope(|scope| {
        let mut writer = theirs.try_clone().expect("there are descriptors");
        scope.spawn(move || {
            let _ = writer.write_all(&sent);
            let _ = writer.shutdown(Shutdown::Write);
        });
        scope.spawn(move || theirs.read_to_end(&mut Vec::new()));
        session.run(&broker, 2)
    });
    assert!(
        matches!(ended, Ok(()) | Err(Failure::Malformed(_))),
        "{ended:?}"
    );
    assert_eq!(broker.usage(), (1, 0));
    let (held, names) = broker.counted().expect("it is counted").expect("a quota");
    assert!(held <= BYTES && names <= NAMES);
    intact(home);
}
