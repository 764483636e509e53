//! How much a share may hold, and how much it holds: kept to the block and to the name, by all brokers that share it.
//!
//! What counts is the size of each regular file and symbolic link in whole blocks of 4096 bytes, holes included, once
//! however many names it has; and each name but the root's, those of hard links too. A file without a name counts as
//! long as a guest has it open.
//!
//! The account is two numbers of 64 bits (bytes, names; little-endian) in a file that all brokers of one volume have
//! open, and open file description locks on it (fcntl(2)): byte 0, shared, by all who use the account; byte 1 + inode,
//! shared, by those who have that file open; byte `TURN`, alone, by whoever changes something. The first to come, who
//! has byte 0 for itself, counts what is there. So nothing has to be put right after one that was killed.

use crate::share::{self, Identity, Share, Status, DIRECTORY, LINK, REGULAR};
use rustix::fs::{MemfdFlags, OFlags, RawDir};
use rustix::io::{Errno, Result};
use std::collections::{HashMap, HashSet};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub const BLOCK: u64 = 4096;
const TURN: i64 = i64::MAX - 1;
const PRESENT: i64 = 0;

/// Most bytes and most names.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub bytes: u64,
    pub names: u64,
}

pub struct Quota {
    pub limits: Limits,
    counter: OwnedFd,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Whether the account has been counted, or taken over from those who are there.
    present: bool,
    /// How often files are open here.
    open: HashMap<Identity, usize>,
}

/// The account while nobody else changes what it counts.
pub struct Account<'a> {
    quota: &'a Quota,
    state: MutexGuard<'a, State>,
    bytes: u64,
    names: u64,
}

/// What a file counts for.
pub fn cost(status: &Status) -> u64 {
    match status.kind() {
        REGULAR | LINK => status.size.div_ceil(BLOCK).saturating_mul(BLOCK),
        _ => 0,
    }
}

impl Quota {
    /// `counter` is open for reading and writing, and empty or another broker's of the same volume. Without one the
    /// account is this broker's alone.
    pub fn new(limits: Limits, counter: Option<OwnedFd>) -> Result<Self> {
        let counter = match counter {
            Some(counter) => counter,
            None => rustix::fs::memfd_create(c"microsandbox-fs", MemfdFlags::CLOEXEC)?,
        };
        Ok(Self {
            limits,
            counter,
            state: Mutex::default(),
        })
    }

    /// Waits for whoever has the account; the first time, what is shared is counted.
    pub fn account(&self, share: &Share) -> Result<Account<'_>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.lock(libc::F_OFD_SETLKW, libc::F_WRLCK, TURN)?;
        let mut account = Account {
            quota: self,
            state,
            bytes: 0,
            names: 0,
        };
        if !account.state.present {
            let alone = self.lock(libc::F_OFD_SETLK, libc::F_WRLCK, PRESENT).is_ok();
            if alone {
                (account.bytes, account.names) = count(share)?;
                account.store()?;
            }
            self.lock(libc::F_OFD_SETLK, libc::F_RDLCK, PRESENT)?;
            account.state.present = true;
        }
        let mut numbers = [0; 16];
        if rustix::io::pread(&self.counter, &mut numbers, 0)? != numbers.len() {
            return Err(Errno::IO);
        }
        let number = |at: usize| u64::from_le_bytes(numbers[at..at + 8].try_into().expect("8"));
        (account.bytes, account.names) = (number(0), number(8));
        Ok(account)
    }

    /// One handle of a file is closed for good.
    pub fn closed(&self, share: &Share, file: &OwnedFd) {
        // What cannot be told now is counted by the next who is alone.
        if let (Ok(mut account), Ok(status)) = (self.account(share), share::status(file)) {
            account.let_go(&status);
        }
    }

    fn lock(&self, command: i32, kind: i32, byte: i64) -> Result<i16> {
        // SAFETY: all fields are numbers, for which 0 is one.
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        lock.l_type = kind as i16;
        lock.l_whence = libc::SEEK_SET as i16;
        lock.l_start = byte;
        lock.l_len = 1;
        loop {
            // SAFETY: the structure outlives the call, and the descriptor is open.
            if unsafe { libc::fcntl(self.counter.as_raw_fd(), command, &raw mut lock) } != -1 {
                return Ok(lock.l_type);
            }
            match Errno::from_io_error(&std::io::Error::last_os_error()) {
                Some(Errno::INTR) => {}
                error => return Err(error.unwrap_or(Errno::IO)),
            }
        }
    }
}

impl Account<'_> {
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn names(&self) -> u64 {
        self.names
    }

    /// Bytes that more may come.
    pub fn room(&self) -> u64 {
        self.quota.limits.bytes.saturating_sub(self.bytes)
    }

    /// EDQUOT if one more name of something that counts for `bytes` does not fit.
    pub fn fits(&self, bytes: u64) -> Result<()> {
        match self.names < self.quota.limits.names && bytes <= self.room() {
            true => Ok(()),
            false => Err(Errno::DQUOT),
        }
    }

    pub fn named(&mut self, bytes: u64) -> Result<()> {
        self.names = self.names.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes);
        self.store()
    }

    /// One name of what has this status since is gone.
    pub fn unnamed(&mut self, status: &Status) -> Result<()> {
        self.names = self.names.saturating_sub(1);
        if status.links == 0 && !self.held(&status.identity) && !self.held_elsewhere(status) {
            self.bytes = self.bytes.saturating_sub(cost(status));
        }
        self.store()
    }

    /// The cost of a file has changed.
    pub fn changed(&mut self, before: u64, after: u64) -> Result<()> {
        if before == after {
            return Ok(());
        }
        self.bytes = self.bytes.saturating_add(after).saturating_sub(before);
        self.store()
    }

    /// Whether the file is open here.
    pub fn held(&self, identity: &Identity) -> bool {
        self.state.open.contains_key(identity)
    }

    /// The file is open once more. ESTALE if it has lost its name, and with it its place in the account.
    pub fn hold(&mut self, status: &Status) -> Result<()> {
        if let Some(times) = self.state.open.get_mut(&status.identity) {
            *times += 1;
            return Ok(());
        }
        if status.links == 0 {
            return Err(Errno::STALE);
        }
        self.quota
            .lock(libc::F_OFD_SETLK, libc::F_RDLCK, byte_of(status))?;
        self.state.open.insert(status.identity, 1);
        Ok(())
    }

    fn let_go(&mut self, status: &Status) {
        match self.state.open.get_mut(&status.identity) {
            Some(times) if *times > 1 => *times -= 1,
            Some(_) => {
                self.state.open.remove(&status.identity);
                let byte = byte_of(status);
                let _ = self.quota.lock(libc::F_OFD_SETLK, libc::F_UNLCK, byte);
                if status.links == 0 && !self.held_elsewhere(status) {
                    let _ = self.changed(cost(status), 0);
                }
            }
            None => {}
        }
    }

    /// Whether another broker has the file open, which then sees to it.
    fn held_elsewhere(&self, status: &Status) -> bool {
        let asked = self
            .quota
            .lock(libc::F_OFD_GETLK, libc::F_WRLCK, byte_of(status));
        asked.is_ok_and(|kind| i32::from(kind) != libc::F_UNLCK)
    }

    fn store(&self) -> Result<()> {
        let numbers = [self.bytes.to_le_bytes(), self.names.to_le_bytes()].concat();
        rustix::io::pwrite(&self.quota.counter, &numbers, 0).map(drop)
    }
}

impl Drop for Account<'_> {
    fn drop(&mut self) {
        let _ = self.quota.lock(libc::F_OFD_SETLK, libc::F_UNLCK, TURN);
    }
}

fn byte_of(status: &Status) -> i64 {
    1 + (status.inode & ((1 << 62) - 1)) as i64
}

/// Bytes and names of everything that is there. Directories that cannot be read count as one name.
fn count(share: &Share) -> Result<(u64, u64)> {
    if !share.is_directory() {
        return Ok((cost(&share::status(share.root())?), 0));
    }
    let (mut bytes, mut names) = (0u64, 0u64);
    let mut several = HashSet::new();
    let mut buffer = [MaybeUninit::uninit(); 32 << 10];
    let mut paths: Vec<Vec<u8>> = vec![Vec::new()];
    while let Some(path) = paths.pop() {
        let Ok(directory) = open_directory(share, &path) else {
            continue;
        };
        let mut entries = RawDir::new(&directory, &mut buffer);
        while let Some(Ok(entry)) = entries.next() {
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let seen = share.child(&directory, name).and_then(share::status);
            let Ok(status) = seen else { continue };
            names += 1;
            if status.kind() == DIRECTORY {
                let parts = [&path[..], name.to_bytes()];
                let below = match path.is_empty() {
                    true => parts[1].to_vec(),
                    false => parts.join(&b'/'),
                };
                paths.push(below);
            } else if status.links == 1 || several.insert(status.identity) {
                bytes = bytes.saturating_add(cost(&status));
            }
        }
    }
    Ok((bytes, names))
}

fn open_directory(share: &Share, path: &[u8]) -> Result<OwnedFd> {
    let reached = share.reach(path)?;
    let status = share::status(reached.as_fd())?;
    share::reopen(&reached, &status, OFlags::RDONLY)
}
