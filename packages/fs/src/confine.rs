//! What a thread of a session gives up before it reads the first message: all files but the shared ones.
//!
//! Landlock (landlock(7), Documentation/userspace-api/landlock.rst of Linux) for the thread alone, so that the rest of
//! the process goes on. It is the second wall: what is resolved beneath the root would not need it. From its second
//! version on, Linux 5.19: the first forbids every rename from one directory to another.

use crate::broker::Broker;
use rustix::fs::Mode;
use rustix::io::{Errno, Result};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const VERSION: u32 = 1 << 0;
const PATH_BENEATH: u32 = 1;
const OLDEST: u32 = 2;

/// LANDLOCK_ACCESS_FS_*.
mod access {
    pub const WRITE_FILE: u64 = 1 << 1;
    pub const READ_FILE: u64 = 1 << 2;
    pub const READ_DIRECTORY: u64 = 1 << 3;
    pub const REMOVE_DIRECTORY: u64 = 1 << 4;
    pub const REMOVE_FILE: u64 = 1 << 5;
    pub const MAKE_DIRECTORY: u64 = 1 << 7;
    pub const MAKE_REGULAR: u64 = 1 << 8;
    pub const MAKE_LINK: u64 = 1 << 12;
    pub const REFER: u64 = 1 << 13;
    pub const TRUNCATE: u64 = 1 << 14;
}

/// `struct landlock_ruleset_attr`: what is forbidden unless a rule allows it.
#[repr(C)]
struct Ruleset {
    files: u64,
    network: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct Beneath {
    allowed: u64,
    parent: i32,
}

/// Everything that a version of Landlock can forbid.
fn forbidden(version: u32) -> Ruleset {
    let files = match version {
        ..=2 => (1 << 14) - 1,
        3..=4 => (1 << 15) - 1,
        _ => (1 << 16) - 1,
    };
    Ruleset {
        files,
        // Binding and connecting TCP.
        network: if version >= 4 { 3 } else { 0 },
        // Abstract Unix sockets, and signals to others.
        scoped: if version >= 6 { 3 } else { 0 },
    }
}

/// What a broker does with what it shares: neither executing nor making devices, fifos and sockets.
fn allowed(read_only: bool, directory: bool) -> u64 {
    use access::*;
    let file = match read_only {
        true => READ_FILE,
        false => READ_FILE | WRITE_FILE | TRUNCATE,
    };
    match (directory, read_only) {
        (false, _) => file,
        (true, true) => file | READ_DIRECTORY,
        (true, false) => {
            let made = MAKE_DIRECTORY | MAKE_REGULAR | MAKE_LINK;
            file | READ_DIRECTORY | REMOVE_DIRECTORY | REMOVE_FILE | made | REFER
        }
    }
}

/// Whether this kernel can confine a thread.
pub fn available() -> bool {
    version() >= OLDEST
}

/// Confines the calling thread to what `broker` shares, for ever; without effect on kernels that cannot. Its umask
/// becomes 0 and is its own: the modes of what it makes are those that it says.
pub fn thread(broker: &Broker) -> Result<()> {
    let rights = allowed(broker.read_only(), broker.is_directory());
    confined(Some((broker.root(), rights)))
}

/// Confines the calling thread to what it has open already, for ever.
pub fn from_all() -> Result<()> {
    confined(None)
}

fn confined(left: Option<(BorrowedFd<'_>, u64)>) -> Result<()> {
    // SAFETY: no memory is shared that was not; the thread has its own umask and working directory from here on.
    if unsafe { libc::unshare(libc::CLONE_FS) } == -1 {
        return Err(last());
    }
    rustix::process::umask(Mode::empty());
    rustix::thread::set_no_new_privs(true)?;
    match version() {
        version @ OLDEST.. => restrict(left, version),
        _ => Ok(()),
    }
}

/// To what is beneath a directory, if there is one, with these rights.
fn restrict(left: Option<(BorrowedFd<'_>, u64)>, version: u32) -> Result<()> {
    let handled = forbidden(version);
    let size = match version {
        ..=3 => 8,
        4..=5 => 16,
        _ => size_of::<Ruleset>(),
    };
    // SAFETY: the structure outlives the call and is at least `size` long; what is returned is a new descriptor.
    let rules = unsafe {
        let number = libc::syscall(
            libc::SYS_landlock_create_ruleset,
            &raw const handled,
            size,
            0,
        );
        match i32::try_from(number) {
            Ok(number @ 0..) => OwnedFd::from_raw_fd(number),
            _ => return Err(last()),
        }
    };
    let number = rules.as_fd().as_raw_fd();
    if let Some((root, rights)) = left {
        let rule = Beneath {
            allowed: rights & handled.files,
            parent: root.as_raw_fd(),
        };
        // SAFETY: the structure outlives the call.
        let added = unsafe {
            libc::syscall(
                libc::SYS_landlock_add_rule,
                number,
                PATH_BENEATH,
                &raw const rule,
                0,
            )
        };
        if added != 0 {
            return Err(last());
        }
    }
    // SAFETY: numbers only; the calling thread loses rights and nothing else.
    match unsafe { libc::syscall(libc::SYS_landlock_restrict_self, number, 0) } {
        0 => Ok(()),
        _ => Err(last()),
    }
}

/// 0 where the kernel has none, or has it switched off.
fn version() -> u32 {
    // SAFETY: asked so, it takes no structure.
    let version = unsafe {
        let none = std::ptr::null::<Ruleset>();
        libc::syscall(libc::SYS_landlock_create_ruleset, none, 0, VERSION)
    };
    version.try_into().unwrap_or(0)
}

fn last() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
