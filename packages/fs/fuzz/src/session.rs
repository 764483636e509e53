//! A guest's messages one after the other, with a real directory: each is answered in form, the tables stay within
//! their bounds, and what is beside the shared directory stays as it is.
//!
//! The bytes are pieces: opcode, node, length of the body, body.

use microsandbox_fs_native::broker::{Broker, Cache, Options};
use microsandbox_fs_native::owners::Ownership;
use microsandbox_fs_native::wire::request::Operation;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

const MOST: usize = 12;
/// It may take all the space of the disk.
const FALLOCATE: u8 = 43;

pub fn session(bytes: &[u8]) {
    let home = home();
    let share = home.join("share");
    fill(home, &share);
    let Some((&how, mut rest)) = bytes.split_first() else {
        return;
    };
    let options = Options {
        read_only: how & 1 != 0,
        ownership: match how >> 1 & 3 {
            0 => Ownership::Passthrough,
            1 => Ownership::Squash { uid: 1, gid: 1 },
            _ => Ownership::Virtual { uid: 1, gid: 1 },
        },
        link_guard: how & 8 != 0,
        cache: match how & 16 {
            0 => Cache::Auto,
            _ => Cache::Always,
        },
        nodes: MOST,
        handles: MOST,
        ..Options::default()
    };
    let broker = Broker::open(&share, options).expect("the directory is there");
    let init = [7u32, 38, 0, u32::MAX].map(u32::to_le_bytes).concat();
    say(&broker, 26, 0, &init);
    while let [opcode, node, length, after @ ..] = rest {
        let (body, next) = after.split_at(usize::from(*length).min(after.len()));
        if *opcode != FALLOCATE {
            say(&broker, u32::from(*opcode), u64::from(*node), body);
        }
        rest = next;
    }
    let (nodes, handles) = broker.usage();
    assert!(nodes <= MOST && handles <= MOST);
    if options.read_only {
        assert_eq!(fs::read(share.join("file")).expect("it is there"), b"text");
    }
    intact(home);
}

/// What is beside the shared directory is as it was.
pub fn intact(home: &Path) {
    let canary = home.join("outside/canary");
    assert_eq!(fs::read(canary).expect("it is there"), b"canary");
    for (directory, entries) in [(home, 2), (home.join("outside").as_path(), 1)] {
        assert_eq!(
            fs::read_dir(directory).expect("it is there").count(),
            entries
        );
    }
}

/// One whole request.
pub fn message(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(40 + body.len());
    message.extend((40 + body.len() as u32).to_le_bytes());
    message.extend(opcode.to_le_bytes());
    message.extend(9u64.to_le_bytes());
    message.extend(node.to_le_bytes());
    message.extend([0; 16]);
    message.extend(body);
    message
}

/// Says one message, and asks for the directory beside it; checks the form of its answer, and of what comes before it.
fn say(broker: &Broker, opcode: u32, node: u64, body: &[u8]) {
    let mut message = message(opcode, node, body);
    message[38] = 1;
    let mut answer = Vec::new();
    broker
        .answer(&message, &mut answer)
        .expect("it is a message");
    if Operation::silent(opcode) {
        return assert!(answer.is_empty());
    }
    let word = |at: usize| u32::from_le_bytes(answer[at..at + 4].try_into().expect("4 bytes"));
    let start = match word(8) {
        0 => 128,
        _ => 0,
    };
    assert!(start == 0 || (word(0), word(start + 4)) == (128, 0));
    let length = word(start) as usize;
    assert_eq!(start + length, answer.len());
    assert_eq!((word(start + 8), word(start + 12)), (9, 0));
    let error = word(start + 4) as i32;
    assert!((-511..=0).contains(&error));
    assert!(error == 0 || length == 16);
}

/// A directory of this process.
pub fn home() -> &'static PathBuf {
    static HOME: OnceLock<PathBuf> = OnceLock::new();
    HOME.get_or_init(|| {
        let home =
            std::env::temp_dir().join(format!("microsandbox-fs-fuzz-{}", std::process::id()));
        fs::create_dir_all(home.join("outside")).expect("there is a directory for temporary files");
        fs::write(home.join("outside/canary"), "canary").expect("there is room");
        home
    })
}

/// Makes the shared directory as it is before each input.
pub fn fill(home: &Path, share: &Path) {
    let _ = fs::remove_dir_all(share);
    let made = fs::create_dir_all(share.join("directory"))
        .and_then(|()| fs::write(share.join("file"), "text"))
        .and_then(|()| std::os::unix::fs::symlink(home.join("outside"), share.join("link")));
    made.expect("there is room");
}
