//! What the host has changed, told to the guest: requests that only tell, and what the watcher asks.

use super::{Broker, Reached};
use crate::share::{self, reopen, Identity, DIRECTORY, KIND};
use crate::watch::pending::Told;
use crate::watch::{self, Watch};
use crate::wire::name::Name;
use crate::wire::reply::{self, Attributes};
use crate::wire::request::{Header, Operation};
use rustix::fs::{OFlags, RawDir};
use rustix::io::{Errno, Result};
use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

impl Broker {
    /// Who watches what is shared, if it is watched.
    pub fn watch(&self) -> Option<&Watch> {
        self.watch.as_ref()
    }

    /// Answers a request of agentd's that only tells the guest's kernel what the host has done; `None` if
    /// it is any other.
    pub(super) fn tell(
        &self,
        header: &Header,
        operation: &Operation<'_>,
        out: &mut Vec<u8>,
    ) -> Option<Result<()>> {
        use Operation::*;
        let started = self.started.load(Ordering::Acquire);
        let watch = self.watch.as_ref().filter(|_| started)?;
        if let Release { handle } = operation {
            return (*handle == watch::HANDLE).then_some(Ok(()));
        }
        if header.gid != watch::GROUP {
            return None;
        }
        let node = header.node;
        Some(match operation {
            Lookup { name } => return self.tell_lookup(watch, node, *name, out),
            SymLink { name, .. } | MakeNode { name, .. } => self.tell_made(watch, node, *name, out),
            MakeDirectory { name, .. } => self.tell_made(watch, node, *name, out).inspect(|()| {
                // Whoever in the guest is told of it looks into it: what comes after that is seen.
                let made = u64::from_le_bytes(out[16..24].try_into().expect("8 bytes"));
                if let Ok((_, directory)) = self.place_of(made) {
                    watch.add(made, directory);
                }
            }),
            Unlink { name } | RemoveDirectory { name } => {
                watch.told(node, name.bytes());
                match self.there(node, *name) {
                    // It is there again.
                    Ok(true) => Err(Errno::NOENT),
                    Ok(false) => Ok(()),
                    Err(error) => Err(error),
                }
            }
            SetAttributes(_) => self.get_attributes(node, None, out),
            Open { .. } => {
                // Without FOPEN_KEEP_CACHE: the guest drops what it has of the contents.
                reply::opened(out, watch::HANDLE, 0);
                Ok(())
            }
            StatFs => {
                watch.acknowledge();
                return None;
            }
            _ => return None,
        })
    }

    /// A name that is being made is not there yet, and one that is being removed still is.
    fn tell_lookup(
        &self,
        watch: &Watch,
        node: u64,
        name: Name<'_>,
        out: &mut Vec<u8>,
    ) -> Option<Result<()>> {
        let (told, kind) = watch.telling(node, name.bytes())?;
        match told {
            Told::Created => Some(Err(Errno::NOENT)),
            Told::Removed if self.there(node, name) == Ok(false) => {
                let identity = Identity::gone(kind);
                let adopted = self.nodes().adopt(node, name.bytes(), identity);
                Some(adopted.map(|node| {
                    let shown = Attributes {
                        inode: node,
                        mode: kind | 0o600,
                        links: 1,
                        ..Attributes::default()
                    };
                    reply::entry(out, node, &shown, Duration::ZERO);
                }))
            }
            _ => None,
        }
    }

    fn tell_made(&self, watch: &Watch, node: u64, name: Name<'_>, out: &mut Vec<u8>) -> Result<()> {
        watch.told(node, name.bytes());
        let directory = self.reach_directory(node)?;
        self.look(node, &directory, name.as_c_str(), out).map(drop)
    }

    fn there(&self, node: u64, name: Name<'_>) -> Result<bool> {
        let directory = self.reach_directory(node)?;
        match self.share.child(&directory, name.as_c_str()) {
            Err(Errno::NOENT) => Ok(false),
            reached => reached.map(|_| true),
        }
    }

    /// Where a directory that the guest knows is now, beneath the root.
    pub(crate) fn place_of(&self, node: u64) -> Result<(Vec<u8>, impl std::os::fd::AsFd)> {
        let trace = self.nodes().trace(node)?;
        for path in trace.paths {
            if let Ok(fd) = self.share.reach(&path) {
                let status = share::status(&fd)?;
                if status.identity == trace.identity && status.kind() == DIRECTORY {
                    return Ok((path, Reached { fd, status }));
                }
            }
        }
        Err(Errno::STALE)
    }

    /// The type of what `name` is now, as the guest sees it, and whether the guest was the last to change it.
    pub(crate) fn seen_by_guest(
        &self,
        directory: impl std::os::fd::AsFd,
        name: &[u8],
    ) -> Option<(u32, bool)> {
        let name = CString::new(name).ok()?;
        let fd = self.share.child(directory, &name).ok()?;
        let status = share::status(&fd).ok()?;
        let own = self.own(&status);
        Some((self.shown(&fd, &status).mode & KIND, own))
    }

    fn own(&self, status: &share::Status) -> bool {
        let changed = time(status.changed);
        let own = self.nodes().own(&status.identity);
        own.is_some_and(|(from, to)| (from..=to).contains(&changed))
    }

    /// Calls `found` with the names in `directory` whose files have changed since then, unless the guest
    /// changed them. Whether the directory itself has changed, or `None` if not all was looked at. `left`: most
    /// entries to look at.
    pub(crate) fn changed_since(
        &self,
        directory: impl std::os::fd::AsFd,
        since: i64,
        left: &mut usize,
        mut found: impl FnMut(&[u8]),
    ) -> Option<bool> {
        let status = share::status(&directory).ok()?;
        let file = reopen(&directory, &status, OFlags::RDONLY).ok()?;
        let mut buffer = [MaybeUninit::uninit(); 32 << 10];
        let mut entries = RawDir::new(&file, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry.ok()?;
            let name: &CStr = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if *left == 0 {
                return None;
            }
            *left -= 1;
            let fd = self.share.child(&directory, name);
            let Some(status) = fd.and_then(share::status).ok() else {
                continue;
            };
            if time(status.changed) >= since && !self.own(&status) {
                found(name.to_bytes());
            }
        }
        Some(time(status.modified) >= since && !self.own(&status))
    }

    /// What a request begins with that may change something.
    pub(super) fn begun(&self, operation: &Operation<'_>) -> Option<i64> {
        use Operation::*;
        self.watch.as_ref()?;
        let changes = operation.writes() || matches!(operation, Open { .. });
        changes.then(last_tick)
    }

    /// Notes that it was the guest that changed these.
    pub(super) fn ended(&self, begun: Option<i64>, changed: &[u64]) {
        if let Some(begun) = begun {
            let mut nodes = self.nodes();
            for node in changed {
                nodes.change(*node, (begun, now()));
            }
        }
    }

    /// Renames by `rename`, and says to the watcher that the guest did: it moves `old` in `from`, and changes
    /// what `moved` finds.
    pub(super) fn renaming(
        &self,
        (from, old): (u64, Name<'_>),
        rename: impl FnOnce() -> Result<Vec<Identity>>,
    ) -> Result<()> {
        let Some(watch) = &self.watch else {
            return rename().map(drop);
        };
        let begun = last_tick();
        watch.taking(from, old.bytes());
        let moved = rename().inspect_err(|_| watch.not_taken(from, old.bytes()))?;
        let mut nodes = self.nodes();
        for identity in moved {
            nodes.change_known(&identity, (begun, now()));
        }
        Ok(())
    }
}

fn time((seconds, nanoseconds): (i64, u32)) -> i64 {
    seconds * 1_000_000_000 + i64::from(nanoseconds)
}

/// Time stamps of files may be of the clock's last tick.
fn last_tick() -> i64 {
    let clock = rustix::time::ClockId::RealtimeCoarse;
    let now = rustix::time::clock_gettime(clock);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_nanos() as i64)
}
