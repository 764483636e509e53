//! Tells the guest's programs what the host has changed in a share: inotify(7) knows only of what this kernel does,
//! so it is done here once more, in the mount, and the host changes nothing for it. A thread for each share that
//! is watched.
//!
//! The thread allocates nothing once it runs, as that of `relay`. It is another one than that, whose answers its
//! own requests wait for.

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Barrier};

use crate::sys::mount::{remount, Tree};
use crate::sys::{check, fd, resolve};

/// The group of these requests, by which the host knows them (`watch::GROUP` of microsandbox-fs).
const GROUP: libc::gid_t = 0x7f4d_5342;
/// More than a batch has.
const BATCH_MAX: usize = 64 << 10;
const STACK: usize = 64 << 10;
/// Beneath the share, through no link and into no other mount.
const RULES: u64 = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_XDEV;

const CREATED: u8 = 1;
const MODIFIED: u8 = 2;
const ATTRIBUTES: u8 = 3;
const REMOVED: u8 = 4;

pub struct Teller {
    /// The share, in a mount of its own: what is mounted in it or is read-only elsewhere does not matter here.
    root: OwnedFd,
    batches: OwnedFd,
    batch: Vec<u8>,
}

impl Teller {
    /// For the share that has just been mounted at `target`, writable; sets the mount's flags. Returns it, and
    /// where batches are to be sent, each in one piece.
    pub fn new(target: &[u8], flags: libc::c_ulong) -> io::Result<(Teller, OwnedFd)> {
        let path = resolve::directory(target, resolve::PLAIN)?;
        let root = Tree::copy(&resolve::path_of(&path))?.into_fd();
        if flags & libc::MS_RDONLY != 0 {
            remount(&resolve::path_of(&path), flags)?;
        }
        let (batches, sender) = pair()?;
        let batch = vec![0; BATCH_MAX];
        let teller = Teller {
            root,
            batches,
            batch,
        };
        Ok((teller, sender))
    }

    /// Starts the thread, and returns when it runs. It ends when nobody can send any more.
    pub fn start(self) -> io::Result<()> {
        let begun = Arc::new(Barrier::new(2));
        let theirs = Arc::clone(&begun);
        std::thread::Builder::new()
            .stack_size(STACK)
            .spawn(move || {
                let mut teller = self;
                theirs.wait();
                // Dropping it would free memory.
                std::mem::forget(theirs);
                // SAFETY: numbers only; of this thread alone.
                unsafe { libc::syscall(libc::SYS_setfsgid, GROUP) };
                while let fd::Moved::Bytes(length) = fd::read(&teller.batches, &mut teller.batch) {
                    teller.tell(length);
                }
                let Teller {
                    root,
                    batches,
                    batch,
                } = teller;
                std::mem::forget(batch);
                drop((root, batches));
            })?;
        begun.wait();
        Ok(())
    }

    fn tell(&mut self, length: usize) {
        let root = self.root.as_raw_fd();
        let mut rest = &mut self.batch[..length];
        while let Some((what, kind, path, others)) = item(rest) {
            // What cannot be told has changed again meanwhile, and is told then.
            let _ = act(root, what, kind, path);
            rest = others;
        }
        // The host waits for this one before it sends more.
        let mut status = MaybeUninit::<libc::statfs>::uninit();
        // SAFETY: `status` has room for what is stored.
        unsafe { libc::fstatfs(root, status.as_mut_ptr()) };
    }
}

/// Two ends of a connection that keeps messages apart.
fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: `ends` has room for the two descriptors.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so both are open and belong to nobody else.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

/// Sends a batch; one that has no room is dropped, as the host sends only one at a time.
pub fn send(sender: &OwnedFd, batch: &[u8]) {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: `batch` is readable for its length.
    unsafe {
        libc::send(
            sender.as_raw_fd(),
            batch.as_ptr().cast(),
            batch.len(),
            flags,
        )
    };
}

/// What is told first in a batch: what, a DT_ number, a path with its NUL; and the rest.
fn item(batch: &mut [u8]) -> Option<(u8, u8, &mut [u8], &mut [u8])> {
    let (head, rest) = batch.split_at_mut_checked(4)?;
    let length = usize::from(u16::from_le_bytes([head[2], head[3]])) + 1;
    let (path, others) = rest.split_at_mut_checked(length)?;
    (path.last() == Some(&0)).then_some((head[0], head[1], path, others))
}

/// Does to `path`, which ends with a NUL, what the host has done.
fn act(root: libc::c_int, what: u8, kind: u8, path: &mut [u8]) -> io::Result<()> {
    let named = |bytes| CStr::from_bytes_with_nul(bytes).map_err(|_| libc::EINVAL);
    let invalid = io::Error::from_raw_os_error;
    let (directory, name): (&[u8], &[u8]) = match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => {
            path[at] = 0;
            (&path[..=at], &path[at + 1..])
        }
        None if path.len() == 1 => (b".\0", b".\0"),
        None => (b".\0", path),
    };
    let (directory, name) = (
        named(directory).map_err(invalid)?,
        named(name).map_err(invalid)?,
    );
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    let directory = resolve::open(root, directory, flags, 0, RULES)?;
    let at = directory.as_raw_fd();
    match what {
        CREATED => {
            make(at, kind, name)?;
            match kind {
                libc::DT_REG => write(at, name),
                _ => Ok(()),
            }
        }
        MODIFIED => write(at, name),
        ATTRIBUTES => set_times(at, name, [libc::UTIME_NOW; 2]),
        REMOVED => match remove(at, kind, name) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                // The kernel remembers that it is not there. Making it asks the host in any case, who says that it
                // is there as long as this is being told.
                let _ = make(at, libc::DT_DIR, name);
                remove(at, kind, name)
            }
            removed => removed,
        },
        _ => Ok(()),
    }
}

/// IN_DELETE.
fn remove(at: libc::c_int, kind: u8, name: &CStr) -> io::Result<()> {
    let flags = match kind {
        libc::DT_DIR => libc::AT_REMOVEDIR,
        _ => 0,
    };
    // SAFETY: `name` is a valid C string for the whole call.
    check(unsafe { libc::unlinkat(at, name.as_ptr(), flags) }).map(drop)
}

/// IN_CREATE.
fn make(at: libc::c_int, kind: u8, name: &CStr) -> io::Result<()> {
    let name = name.as_ptr();
    // SAFETY: all strings are valid C strings for the whole call.
    let made = unsafe {
        match kind {
            libc::DT_DIR => libc::mkdirat(at, name, 0o700),
            libc::DT_LNK => libc::symlinkat(c"-".as_ptr(), at, name),
            _ => libc::mknodat(at, name, libc::mode_t::from(kind) << 12 | 0o600, 0),
        }
    };
    check(made).map(drop)
}

/// IN_MODIFY, for who watches only that; then IN_OPEN and IN_CLOSE_WRITE.
fn write(at: libc::c_int, name: &CStr) -> io::Result<()> {
    set_times(at, name, [libc::UTIME_OMIT, libc::UTIME_NOW])?;
    let flags = libc::O_WRONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    fd::open_at(at, name, flags, 0).map(drop)
}

/// Of access and modification. Both are IN_ATTRIB, the latter alone is IN_MODIFY: as the kernel has it
/// (`fsnotify_change`).
fn set_times(at: libc::c_int, name: &CStr, which: [libc::c_long; 2]) -> io::Result<()> {
    let times = which.map(|tv_nsec| libc::timespec { tv_sec: 0, tv_nsec });
    let flags = libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: `name` is a valid C string and `times` two entries for the whole call.
    check(unsafe { libc::utimensat(at, name.as_ptr(), times.as_ptr(), flags) }).map(drop)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A failed test should say where.
    use super::*;

    #[test]
    fn a_batch_is_cut_into_its_items() {
        let mut batch = [&[1, 8, 3, 0][..], b"a/b\0", &[3, 4, 0, 0, 0], b"rest"].concat();
        let (what, kind, path, rest) = item(&mut batch).unwrap();
        assert_eq!((what, kind, &*path), (CREATED, libc::DT_REG, &b"a/b\0"[..]));
        let (what, kind, path, rest) = item(rest).unwrap();
        assert_eq!((what, kind, &*path), (ATTRIBUTES, libc::DT_DIR, &b"\0"[..]));
        assert!(item(rest).is_none());
    }

    #[test]
    fn what_is_cut_off_is_no_item() {
        for batch in [
            &b""[..],
            &[1, 8, 3],
            &[1, 8, 3, 0, b'a'],
            &[1, 8, 0, 0, b'a'],
        ] {
            assert!(item(&mut batch.to_vec()).is_none(), "{batch:?}");
        }
    }

    #[test]
    fn nothing_outside_is_told() {
        let home = std::env::temp_dir().join(format!("agentd-tell-{}", std::process::id()));
        std::fs::create_dir_all(home.join("share")).unwrap();
        std::fs::write(home.join("file"), "outside").unwrap();
        std::os::unix::fs::symlink("..", home.join("share/link")).unwrap();
        let root = std::fs::File::open(home.join("share")).unwrap();
        for path in [&b"../file\0"[..], b"link/file\0", b"/file\0", b"a\0b/c\0"] {
            for what in [CREATED, MODIFIED, ATTRIBUTES, REMOVED] {
                let done = act(root.as_raw_fd(), what, libc::DT_REG, &mut path.to_vec());
                assert!(done.is_err(), "{path:?}");
            }
        }
        assert_eq!(std::fs::read(home.join("file")).unwrap(), b"outside");
        std::fs::remove_dir_all(&home).unwrap();
    }
}
