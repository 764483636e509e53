//! Changes that the host makes, for a guest that watches: inotify(7) of it sees only what its own kernel does.
//!
//! Every directory that the guest was told of is watched. What changes there is gathered, and told to agentd in
//! the guest in batches, one at a time: it does to the mount what the host did, so that the guest's kernel tells its
//! programs, and the broker knows these requests by their group (`GROUP`) and changes nothing for them.
//!
//! `FUSE_NOTIFY_*` of the protocol is not used: it tells no program anything but of what was removed, and while a
//! reply is waited for it waits for the same locks as the request does.

pub mod pending;
mod run;

pub use run::run;

use crate::share;
use pending::Told;
use rustix::event::{eventfd, EventfdFlags};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::{Errno, Result};
use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The group of the requests that only tell. agentd takes it for them and for nothing else (`attached::tell`).
pub const GROUP: u32 = 0x7f4d_5342;
/// The handle of a file that agentd opens only to close it.
pub const HANDLE: u64 = u64::MAX;
/// `error` of a message with the number 0: a batch for agentd, which hands it to no kernel.
pub const BATCH: i32 = 0x4d53_4257;
/// Most bytes of one message.
const LARGEST: usize = 32 << 10;

/// Directories that are watched at once; those beyond are looked at from time to time.
pub const MOST_WATCHES: usize = 1 << 14;
/// Directories that are not watched and looked at.
const MOST_LOOKED_AT: usize = 1 << 14;
/// Names that the guest took away itself, whose events have yet to come.
const MOST_TAKEN: usize = 1 << 16;

pub struct Watch {
    /// None where the user has as many as one may have.
    inotify: Option<OwnedFd>,
    wake: OwnedFd,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    nodes: HashMap<i32, u64>,
    watches: HashMap<u64, i32>,
    /// Directories that the guest was told of since.
    wanted: VecDeque<u64>,
    /// Those that could not be watched.
    unwatched: VecDeque<u64>,
    full: bool,
    taken: HashSet<pending::Place>,
    batch: HashMap<pending::Place, (Told, u32)>,
    acknowledged: bool,
    ended: bool,
}

impl Watch {
    pub fn new() -> Result<Self> {
        let inotify = match inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK) {
            Err(Errno::MFILE) => None,
            made => Some(made?),
        };
        let state = State {
            full: inotify.is_none(),
            acknowledged: true,
            ..State::default()
        };
        Ok(Self {
            inotify,
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            state: Mutex::new(state),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// The session is over.
    pub fn end(&self) {
        self.state().ended = true;
        self.wake();
    }

    /// The guest knows the directory that is `node`. It is watched soon after.
    pub fn want(&self, node: u64) {
        let mut state = self.state();
        if state.watches.contains_key(&node) {
            return;
        }
        state.wanted.push_back(node);
        if state.wanted.len() > MOST_WATCHES {
            state.wanted.pop_front();
        }
        if state.wanted.len() == 1 {
            drop(state);
            self.wake();
        }
    }

    /// Watches the directory `node`, reached as `directory`. What cannot be watched is looked at.
    pub fn add(&self, node: u64, directory: impl AsFd) {
        let mut state = self.state();
        if state.watches.contains_key(&node) {
            return;
        }
        if state.watches.len() < MOST_WATCHES {
            if let Some(inotify) = &self.inotify {
                let what = WatchFlags::CREATE
                    | WatchFlags::DELETE
                    | WatchFlags::MODIFY
                    | WatchFlags::ATTRIB
                    | WatchFlags::MOVE
                    | WatchFlags::ONLYDIR
                    | WatchFlags::EXCL_UNLINK;
                match inotify::add_watch(inotify, share::path_of(&directory), what) {
                    Ok(watch) => {
                        // The same directory has another number when the guest had forgotten it.
                        if let Some(old) = state.nodes.insert(watch, node) {
                            state.watches.remove(&old);
                        }
                        state.watches.insert(node, watch);
                        return;
                    }
                    Err(Errno::NOSPC | Errno::NOMEM) => {}
                    // Gone, or not for reading: nothing of it can be seen.
                    Err(_) => return,
                }
            }
        }
        state.full = true;
        if !state.unwatched.contains(&node) && state.unwatched.len() < MOST_LOOKED_AT {
            state.unwatched.push_back(node);
        }
    }

    fn remove(&self, node: u64) {
        let mut state = self.state();
        if let (Some(watch), Some(inotify)) = (state.watches.remove(&node), &self.inotify) {
            state.nodes.remove(&watch);
            let _ = inotify::remove_watch(inotify, watch);
        }
        state.taken.retain(|(directory, _)| *directory != node);
    }

    /// The guest is about to take away `name` itself: the event that follows is nothing new.
    pub fn taking(&self, directory: u64, name: &[u8]) {
        let mut state = self.state();
        if state.watches.contains_key(&directory) {
            if state.taken.len() == MOST_TAKEN {
                state.taken.clear();
            }
            state.taken.insert((directory, name.into()));
        }
    }

    /// It could not.
    pub fn not_taken(&self, directory: u64, name: &[u8]) {
        self.state().taken.remove(&(directory, Box::from(name)));
    }

    /// What is being told of this name, with the type that it had.
    pub fn telling(&self, directory: u64, name: &[u8]) -> Option<(Told, u32)> {
        let place = (directory, Box::from(name));
        self.state().batch.get(&place).copied()
    }

    /// It is told: from here on the name is what it is.
    pub fn told(&self, directory: u64, name: &[u8]) {
        self.state().batch.remove(&(directory, Box::from(name)));
    }

    /// agentd has done all of a batch.
    pub fn acknowledge(&self) {
        let mut state = self.state();
        state.batch.clear();
        state.acknowledged = true;
        drop(state);
        self.wake();
    }
}

/// A message for agentd: `struct fuse_out_header` with the number 0 and the error `BATCH`, then for each name
/// what is told (1 created, 2 modified, 3 attributes, 4 removed), its type as a DT_ number, and the length of its
/// path beneath the root in 16 bits; then the path and a NUL. The directory itself is told by an empty name.
pub struct Message(Vec<u8>);

impl Default for Message {
    fn default() -> Self {
        let mut bytes = Vec::new();
        crate::wire::reply::begin(&mut bytes);
        Self(bytes)
    }
}

impl Message {
    pub fn is_empty(&self) -> bool {
        self.0.len() == crate::wire::OUT_HEADER
    }

    /// Whether there was room for it. What has no room even in an empty message is left out.
    pub fn add(&mut self, told: Told, kind: u32, path: &[u8]) -> bool {
        let Ok(length) = u16::try_from(path.len()) else {
            return true;
        };
        if self.0.len() + 5 + path.len() > LARGEST {
            return self.is_empty();
        }
        let what = match told {
            Told::Created => 1,
            Told::Modified => 2,
            Told::Attributes => 3,
            Told::Removed => 4,
        };
        self.0.extend([what, (kind >> 12) as u8]);
        self.0.extend(length.to_le_bytes());
        self.0.extend(path);
        self.0.push(0);
        true
    }

    pub fn finish(mut self) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_le_bytes());
        self.0[4..8].copy_from_slice(&BATCH.to_le_bytes());
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::share::{DIRECTORY, REGULAR};

    #[test]
    fn a_message_is_what_agentd_reads() {
        let mut message = Message::default();
        assert!(message.is_empty());
        assert!(message.add(Told::Created, REGULAR, b"a/b"));
        assert!(message.add(Told::Attributes, DIRECTORY, b""));
        let expected = [
            &[29, 0, 0, 0][..],
            b"WBSM",
            &[0; 8],
            &[1, 8, 3, 0],
            b"a/b\0",
            &[3, 4, 0, 0, 0],
        ];
        let bytes = message.finish();
        assert_eq!(bytes, expected.concat());
    }

    #[test]
    fn a_message_has_an_end() {
        let mut message = Message::default();
        let mut added = 0;
        while message.add(Told::Removed, REGULAR, &[b'x'; 1000]) {
            added += 1;
        }
        assert_eq!(added, (LARGEST - 16) / 1005);
        assert!(message.finish().len() <= LARGEST);
        // What fits nowhere holds nothing up.
        assert!(Message::default().add(Told::Removed, REGULAR, &[b'x'; 40_000]));
        assert!(Message::default().add(Told::Removed, REGULAR, &[b'x'; 70_000]));
    }
}
