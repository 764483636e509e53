//! Files that the host replaces as fast as the guest looks them up.
//!
//! A node is stale (ESTALE) as soon as its name is another file's. The guest's kernel then looks the name up once more,
//! and its program fails if that node is stale as well when it is opened. So what is found under a name that was stale a
//! moment ago is held until it is opened. Nothing else is: whatever is held keeps its space when it is removed.

use rustix::io::Result;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Most names, and most files.
const MOST: usize = 8;
/// How long after a name was stale, or a file was found: machines that are emulated on a busy host take seconds.
const LONGEST: Duration = Duration::from_secs(10);

#[derive(Default)]
pub struct Raced {
    /// Whether there is anything, which is seldom so.
    any: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// A directory's node, and a name in it.
    names: VecDeque<(Instant, u64, Box<[u8]>)>,
    held: VecDeque<(Instant, u64, OwnedFd)>,
}

impl Raced {
    pub fn any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    /// What `name` in `parent` was is not there any more.
    pub fn stale(&self, parent: u64, name: &[u8]) {
        let mut state = self.state();
        let is = |at: u64, other: &[u8]| at == parent && other == name;
        state.names.retain(|(_, at, other)| !is(*at, other));
        let now = Instant::now();
        state.names.push_back((now, parent, name.into()));
        if state.names.len() > MOST {
            state.names.pop_front();
        }
        self.any.store(true, Ordering::Relaxed);
    }

    /// `name` in `parent` is `node` now, which is open for naming.
    pub fn found(&self, parent: u64, name: &[u8], node: u64, file: OwnedFd) {
        let mut state = self.state();
        let is = |at: u64, other: &[u8]| at == parent && other == name;
        if state.names.iter().any(|(_, at, other)| is(*at, other)) {
            state.held.retain(|(_, other, _)| *other != node);
            state.held.push_back((Instant::now(), node, file));
            if state.held.len() > MOST {
                state.held.pop_front();
            }
        }
    }

    /// A descriptor of it, if it is held.
    pub fn held(&self, node: u64) -> Result<Option<OwnedFd>> {
        let state = self.state();
        let held = state.held.iter().find(|(_, held, _)| *held == node);
        held.map(|(.., file)| rustix::io::fcntl_dupfd_cloexec(file, 0))
            .transpose()
    }

    /// It is open, which is enough.
    pub fn opened(&self, node: u64) {
        self.state().held.retain(|(_, held, _)| *held != node);
    }

    pub fn clear(&self) {
        *self.state() = State::default();
        self.any.store(false, Ordering::Relaxed);
    }

    /// What is not too old.
    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.names.retain(|(since, ..)| since.elapsed() < LONGEST);
        state.held.retain(|(since, ..)| since.elapsed() < LONGEST);
        let any = !state.names.is_empty() || !state.held.is_empty();
        self.any.store(any, Ordering::Relaxed);
        state
    }
}
