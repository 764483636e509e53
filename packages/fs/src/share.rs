//! The shared directory, and the only way to what is in it: openat2(2), beneath its root. Or one shared file.
//!
//! A guest names single entries of directories it has been told of, and each is resolved from the root again, so
//! that what the host moves away meanwhile is out of reach. No link is ever followed, neither a symbolic one nor
//! one of `/proc`; a link is text for the guest.

use rustix::fs::{
    AtFlags, Mode, OFlags, ResolveFlags, StatxFlags, StatxTimestamp, CWD, PROC_SUPER_MAGIC,
};
use rustix::io::{Errno, Result};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a path that one system call takes, with room for a name: PATH_MAX is 4096.
const PIECE: usize = 3800;
/// The kernel asks for another try where a rename came in between.
const TRIES: usize = 16;

/// What a file is called by however it is named: no two files that exist have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    device: (u32, u32),
    inode: u64,
    /// When it was made: a number is used again, and that of an inode soon.
    born: (i64, u32),
    kind: u32,
}

impl Identity {
    pub fn is_directory(&self) -> bool {
        self.kind == DIRECTORY
    }

    /// Of something that is not there any more: like that of nothing that is.
    pub fn gone(kind: u32) -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self {
            device: (u32::MAX, u32::MAX),
            inode: LAST.fetch_add(1, Ordering::Relaxed),
            born: (0, 0),
            kind,
        }
    }

    #[cfg(test)]
    pub fn made_up(inode: u64, directory: bool) -> Self {
        Self {
            device: (0, 0),
            inode,
            born: (0, 0),
            kind: if directory { DIRECTORY } else { REGULAR },
        }
    }
}

/// statx(2) of one file.
#[derive(Clone, Copy, Debug)]
pub struct Status {
    pub identity: Identity,
    pub inode: u64,
    pub mode: u32,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub blocks: u64,
    pub block_size: u32,
    pub accessed: (i64, u32),
    pub modified: (i64, u32),
    pub changed: (i64, u32),
}

pub const KIND: u32 = 0o170_000;
pub const REGULAR: u32 = 0o100_000;
pub const DIRECTORY: u32 = 0o040_000;
pub const LINK: u32 = 0o120_000;

impl Status {
    pub fn kind(&self) -> u32 {
        self.mode & KIND
    }
}

pub struct Share {
    root: OwnedFd,
    directory: bool,
    device: (u32, u32),
    cross: bool,
    resolution: Resolution,
}

/// How paths are kept beneath the root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resolution {
    /// By openat2(2), Linux 5.6: the kernel sees to it, whatever is moved meanwhile.
    #[default]
    Kernel,
    /// Directory by directory, following no link. Weaker: what the host moves out of the share while it is walked is
    /// walked on. Taken where there is no openat2(2).
    Walk,
}

impl Share {
    /// A directory, or one regular file. ELOOP if `path` is a symbolic link and `follow` is not set (F19), ENOTDIR if
    /// it is anything else, EPERM for `/proc`, whose files are not what they are named. With `walk`, openat2(2) is not
    /// even tried.
    pub fn open(path: &Path, follow: bool, cross: bool, walk: bool) -> Result<Self> {
        let mut flags = OFlags::PATH | OFlags::CLOEXEC;
        flags.set(OFlags::NOFOLLOW, !follow);
        let root = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
        let seen = status(&root)?;
        let directory = match seen.kind() {
            DIRECTORY => true,
            REGULAR => false,
            LINK => return Err(Errno::LOOP),
            _ => return Err(Errno::NOTDIR),
        };
        if rustix::fs::fstatfs(&root)?.f_type == PROC_SUPER_MAGIC {
            return Err(Errno::PERM);
        }
        let mut share = Self {
            root,
            directory,
            device: seen.identity.device,
            cross,
            resolution: Resolution::Kernel,
        };
        if walk {
            share.resolution = Resolution::Walk;
        } else if directory {
            match share.reach(b"") {
                // EPERM: some sandboxes forbid the calls that they do not know.
                Err(Errno::NOSYS | Errno::PERM) => share.resolution = Resolution::Walk,
                reached => drop(reached?),
            }
        }
        Ok(share)
    }

    pub fn is_directory(&self) -> bool {
        self.directory
    }

    pub fn resolution(&self) -> Resolution {
        self.resolution
    }

    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// What is at `path` now, for naming and looking only (O_PATH). Names are separated by `/`; none is the root.
    pub fn reach(&self, path: &[u8]) -> Result<OwnedFd> {
        if !self.directory {
            // The file itself, whatever the host has under its name by now; there is nothing beneath it.
            return match path {
                b"" => rustix::io::fcntl_dupfd_cloexec(&self.root, 0),
                _ => Err(Errno::NOTDIR),
            };
        }
        let mut rest = path;
        let mut reached: Option<OwnedFd> = None;
        loop {
            // Paths of any depth: those that are too long for one call go in pieces.
            let end = match rest.len() {
                0..=PIECE => rest.len(),
                _ => rest[..PIECE]
                    .iter()
                    .rposition(|byte| *byte == b'/')
                    .ok_or(Errno::NAMETOOLONG)?,
            };
            let piece = match &rest[..end] {
                b"" => CString::from(c"."),
                piece => CString::new(piece).map_err(|_| Errno::INVAL)?,
            };
            let at = reached.as_ref().map_or(self.root(), |fd| fd.as_fd());
            let fd = self.resolve(at, &piece, OFlags::PATH, 0)?;
            if end == rest.len() {
                return Ok(fd);
            }
            rest = &rest[end + 1..];
            reached = Some(fd);
        }
    }

    /// The entry `name` of `directory`, not followed, for naming and looking only.
    pub fn child(&self, directory: impl AsFd, name: &CStr) -> Result<OwnedFd> {
        self.resolve(directory.as_fd(), name, OFlags::PATH, 0)
    }

    /// Makes and opens the file `name`, which is not there yet: EEXIST otherwise.
    pub fn create(
        &self,
        directory: impl AsFd,
        name: &CStr,
        flags: OFlags,
        mode: u32,
    ) -> Result<OwnedFd> {
        let flags = flags | OFlags::CREATE | OFlags::EXCL;
        self.resolve(directory.as_fd(), name, flags, mode)
    }

    fn resolve(
        &self,
        at: BorrowedFd<'_>,
        path: &CStr,
        flags: OFlags,
        mode: u32,
    ) -> Result<OwnedFd> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if self.resolution == Resolution::Walk {
            return self.walk(at, path, flags, mode);
        }
        let mut rules =
            ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
        rules.set(ResolveFlags::NO_XDEV, !self.cross);
        let mut last = Errno::AGAIN;
        for _ in 0..TRIES {
            match rustix::fs::openat2(at, path, flags, Mode::from_raw_mode(mode), rules) {
                Err(again @ (Errno::AGAIN | Errno::INTR)) => last = again,
                done => return done,
            }
        }
        Err(last)
    }

    /// As openat2(2) would, one name after the other. `path` has no `..`: its names are those of entries.
    fn walk(&self, at: BorrowedFd<'_>, path: &CStr, flags: OFlags, mode: u32) -> Result<OwnedFd> {
        let mut names = path.to_bytes().split(|byte| *byte == b'/').peekable();
        let mut reached: Option<OwnedFd> = None;
        while let Some(name) = names.next() {
            let name = CString::new(name).map_err(|_| Errno::INVAL)?;
            let at = reached.as_ref().map_or(at, |fd| fd.as_fd());
            let last = names.peek().is_none();
            let flags = match last {
                true => flags,
                // A link is no directory, and without O_PATH an automount would be set off.
                false => OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            };
            let fd = rustix::fs::openat(at, &name, flags, Mode::from_raw_mode(mode))?;
            if !self.cross && status(&fd)?.identity.device != self.device {
                return Err(Errno::XDEV);
            }
            reached = Some(fd);
        }
        reached.ok_or(Errno::NOENT)
    }
}

/// Whether this kernel has openat2(2), and nothing around the process forbids it.
pub fn has_openat2() -> bool {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::openat2(CWD, c".", flags, Mode::empty(), ResolveFlags::BENEATH).is_ok()
}

/// The path by which the kernel reaches exactly what is open, as no name does.
pub fn path_of(open: impl AsFd) -> String {
    format!("/proc/self/fd/{}", open.as_fd().as_raw_fd())
}

/// Opens for use the regular file or directory that `reached` is. Anything else would act when opened (ELOOP for a
/// link, F08; EPERM for devices, fifos and sockets).
pub fn reopen(reached: impl AsFd, status: &Status, flags: OFlags) -> Result<OwnedFd> {
    let flags = match status.kind() {
        REGULAR => flags,
        DIRECTORY => flags | OFlags::DIRECTORY,
        LINK => return Err(Errno::LOOP),
        _ => return Err(Errno::PERM),
    };
    let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    rustix::fs::openat(CWD, path_of(reached), flags, Mode::empty())
}

pub fn status(of: impl AsFd) -> Result<Status> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let seen = rustix::fs::statx(of, c"", AtFlags::EMPTY_PATH, wanted)?;
    let time = |time: StatxTimestamp| (time.tv_sec, time.tv_nsec);
    let mode = u32::from(seen.stx_mode);
    let born = match StatxFlags::from_bits_retain(seen.stx_mask).contains(StatxFlags::BTIME) {
        true => time(seen.stx_btime),
        false => (0, 0),
    };
    Ok(Status {
        identity: Identity {
            device: (seen.stx_dev_major, seen.stx_dev_minor),
            inode: seen.stx_ino,
            born,
            kind: mode & KIND,
        },
        inode: seen.stx_ino,
        mode,
        links: seen.stx_nlink,
        uid: seen.stx_uid,
        gid: seen.stx_gid,
        size: seen.stx_size,
        blocks: seen.stx_blocks,
        block_size: seen.stx_blksize,
        accessed: time(seen.stx_atime),
        modified: time(seen.stx_mtime),
        changed: time(seen.stx_ctime),
    })
}
