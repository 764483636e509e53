//! Whose a file is, for the guest: owner, mode and device number as the guest set them, beside the host's own.
//!
//! What a guest sets is kept in the extended attribute `user.microsandbox.owner` of the file, as the text
//! `1 UID GID MODE DEVICE` (decimal, the mode octal with the bits of the type), and where the host's file system or
//! permissions do not take it, in a bounded table that ends with the broker. The host's owners and modes stay what
//! they are.

use crate::share::{path_of, Identity, Status, KIND, LINK, REGULAR};
use crate::wire::reply::Attributes;
use rustix::fs::{Mode, XattrFlags, CWD};
use rustix::io::{Errno, Result};
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Names that a guest neither sees nor sets (F22).
pub const PRIVATE: &[u8] = b"user.microsandbox.";
const ATTRIBUTE: &str = "user.microsandbox.owner";
/// The longest text: a version, four numbers of 32 bits, one of them octal.
const LONGEST: usize = 64;
/// Files whose owner is in memory.
const MOST: usize = 65_536;

const SET_UID: u32 = 0o4000;
const SET_GID: u32 = 0o2000;
const PERMISSIONS: u32 = 0o7777;

/// How owners and modes of the host and those of the guest meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// The guest's are attributes of the file, and files without them are `uid`'s and `gid`'s.
    Virtual { uid: u32, gid: u32 },
    /// The host's are shown. Permissions are set on the host, without set-id and sticky bits; owners cannot be.
    Passthrough,
    /// All files are `uid`'s and `gid`'s, and setting an owner changes nothing; else as `Passthrough`.
    Squash { uid: u32, gid: u32 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record {
    uid: u32,
    gid: u32,
    mode: u32,
    device: u32,
}

impl Record {
    fn text(&self) -> String {
        let Self {
            uid,
            gid,
            mode,
            device,
        } = self;
        format!("1 {uid} {gid} {mode:o} {device}")
    }

    /// `None` for anything that `text` does not write: the host, or another sandbox's host, may have.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut fields = text.strip_prefix("1 ")?.split(' ');
        let mut number = |radix| u32::from_str_radix(fields.next()?, radix).ok();
        let record = Self {
            uid: number(10)?,
            gid: number(10)?,
            mode: number(8)?,
            device: number(10)?,
        };
        (record.text() == text && record.mode <= 0o177_777).then_some(record)
    }
}

/// Who makes a file, and how the guest asked for it.
#[derive(Clone, Copy, Debug)]
pub struct Maker {
    pub uid: u32,
    pub gid: u32,
    /// With the bits of the type.
    pub mode: u32,
    pub device: u32,
}

/// What a guest changes about a file's owner and mode.
#[derive(Clone, Copy, Debug, Default)]
pub struct Change {
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub mode: Option<u32>,
    /// The set-id bits go, as after a write.
    pub kill: bool,
}

pub struct Owners {
    pub ownership: Ownership,
    memory: Mutex<HashMap<Identity, Record>>,
    /// How many are in `memory`, to be asked without its lock.
    remembered: AtomicUsize,
}

impl Owners {
    pub fn new(ownership: Ownership) -> Self {
        Self {
            ownership,
            memory: Mutex::default(),
            remembered: AtomicUsize::new(0),
        }
    }

    /// The mode that a new file or directory has on the host, for what the guest asked.
    pub fn host_mode(&self, asked: u32, directory: bool) -> u32 {
        match (self.ownership, directory) {
            (Ownership::Virtual { .. }, false) => 0o600,
            (Ownership::Virtual { .. }, true) => 0o700,
            _ => asked & 0o777,
        }
    }

    /// What the guest is shown of a file. `of` is open in any way.
    pub fn shown(&self, of: impl AsFd, status: &Status) -> Attributes {
        let mut shown = Attributes {
            inode: status.inode,
            size: status.size,
            blocks: status.blocks,
            accessed: status.accessed,
            modified: status.modified,
            changed: status.changed,
            // A set-id program of the host has no rights to give in the guest, and its devices no numbers.
            mode: status.mode & !(SET_UID | SET_GID),
            links: status.links,
            uid: status.uid,
            gid: status.gid,
            device: 0,
            block_size: status.block_size,
        };
        match self.ownership {
            Ownership::Passthrough => {}
            Ownership::Squash { uid, gid } => (shown.uid, shown.gid) = (uid, gid),
            Ownership::Virtual { uid, gid } => {
                (shown.uid, shown.gid) = (uid, gid);
                if let Some(record) = self.recorded(of, status) {
                    (shown.uid, shown.gid) = (record.uid, record.gid);
                    let kind = record.mode & KIND;
                    // Only an empty file of our own stands for a device; nothing else becomes something else.
                    if status.kind() == REGULAR && special(kind) {
                        shown.mode = record.mode;
                        shown.device = record.device;
                        shown.size = 0;
                    } else {
                        shown.mode = status.kind() | record.mode & PERMISSIONS;
                    }
                }
            }
        }
        shown
    }

    /// Notes who made a file, just after it was made.
    pub fn made(&self, of: impl AsFd, status: &Status, maker: Maker) -> Result<()> {
        match self.ownership {
            Ownership::Virtual { .. } => {
                let record = Record {
                    uid: maker.uid,
                    gid: maker.gid,
                    mode: maker.mode,
                    device: maker.device,
                };
                self.record(of, status, record)
            }
            // The process's umask took some of them away.
            _ if status.kind() != LINK => set_mode(of, status, maker.mode),
            _ => Ok(()),
        }
    }

    pub fn change(&self, of: impl AsFd, status: &Status, change: Change) -> Result<()> {
        let Change {
            uid,
            gid,
            mode,
            kill,
        } = change;
        match self.ownership {
            Ownership::Virtual { .. } => {
                let shown = self.shown(&of, status);
                let mut bits = mode.unwrap_or(shown.mode) & PERMISSIONS;
                if kill {
                    bits = without_set_id(bits);
                }
                let record = Record {
                    uid: uid.unwrap_or(shown.uid),
                    gid: gid.unwrap_or(shown.gid),
                    mode: shown.mode & KIND | bits,
                    device: shown.device,
                };
                let same =
                    (record.uid, record.gid, record.mode) == (shown.uid, shown.gid, shown.mode);
                match same {
                    true => Ok(()),
                    false => self.record(of, status, record),
                }
            }
            Ownership::Passthrough if uid.is_some_and(|uid| uid != status.uid) => Err(Errno::PERM),
            Ownership::Passthrough if gid.is_some_and(|gid| gid != status.gid) => Err(Errno::PERM),
            _ => match mode {
                Some(_) if status.kind() == LINK => Err(Errno::OPNOTSUPP),
                Some(mode) => set_mode(of, status, mode),
                None => Ok(()),
            },
        }
    }

    /// A file is gone: what was remembered of it goes.
    pub fn gone(&self, identity: &Identity) {
        if self.remembered.load(Ordering::Relaxed) > 0 {
            let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
            memory.remove(identity);
            self.remembered.store(memory.len(), Ordering::Relaxed);
        }
    }

    fn recorded(&self, of: impl AsFd, status: &Status) -> Option<Record> {
        if self.remembered.load(Ordering::Relaxed) > 0 {
            let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(record) = memory.get(&status.identity) {
                return Some(*record);
            }
        }
        if status.kind() == LINK {
            // Linux has no attributes of users on links.
            return None;
        }
        let mut text = [0; LONGEST];
        let length = rustix::fs::getxattr(path_of(of), ATTRIBUTE, &mut text[..]).ok()?;
        Record::parse(&text[..length])
    }

    fn record(&self, of: impl AsFd, status: &Status, record: Record) -> Result<()> {
        let text = record.text();
        let flags = XattrFlags::empty();
        match rustix::fs::setxattr(path_of(of), ATTRIBUTE, text.as_bytes(), flags) {
            Ok(()) => {
                self.gone(&status.identity);
                Ok(())
            }
            // After the broker's end it would be an empty file.
            Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) if special(record.mode & KIND) => {
                Err(Errno::PERM)
            }
            Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => {
                let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
                if memory.len() >= MOST && !memory.contains_key(&status.identity) {
                    return Err(Errno::NOSPC);
                }
                memory.insert(status.identity, record);
                self.remembered.store(memory.len(), Ordering::Relaxed);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

/// Types that only a guest has: character and block devices, fifos and sockets.
pub fn special(kind: u32) -> bool {
    matches!(kind, 0o020_000 | 0o060_000 | 0o010_000 | 0o140_000)
}

/// What a write leaves of a mode: no set-user-id, and no set-group-id where the group may execute (inode(7)).
fn without_set_id(mode: u32) -> u32 {
    match mode & 0o010 {
        0 => mode & !SET_UID,
        _ => mode & !(SET_UID | SET_GID),
    }
}

/// Sets the permissions on the host, never more than those.
fn set_mode(of: impl AsFd, status: &Status, mode: u32) -> Result<()> {
    let mode = mode & 0o777;
    match status.mode & PERMISSIONS == mode {
        true => Ok(()),
        false => rustix::fs::chmodat(
            CWD,
            path_of(of),
            Mode::from_raw_mode(mode),
            rustix::fs::AtFlags::empty(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_record_is_read_as_it_was_written(uid: u32, gid: u32, mode in 0..=0o177_777u32, device: u32) {
            let record = Record { uid, gid, mode, device };
            prop_assert!(record.text().len() <= LONGEST);
            prop_assert_eq!(Record::parse(record.text().as_bytes()), Some(record));
        }

        #[test]
        fn other_bytes_are_no_record_or_are_written_alike(bytes: Vec<u8>) {
            if let Some(record) = Record::parse(&bytes) {
                prop_assert_eq!(record.text().into_bytes(), bytes);
            }
        }
    }

    #[test]
    fn signs_spaces_and_other_versions_are_no_record() {
        for text in [
            "",
            "1 ",
            "2 0 0 100644 0",
            "1 +0 0 100644 0",
            "1 0 0 100644 0 ",
            "1 0 0 777777 0",
        ] {
            assert_eq!(Record::parse(text.as_bytes()), None, "{text:?}");
        }
    }
}
