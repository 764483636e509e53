//! Paths of an image, resolved under rules: openat2(2).

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::{c_bytes, check, fd};

/// No link anywhere on the way.
pub const PLAIN: u64 = libc::RESOLVE_NO_SYMLINKS;
/// Links are followed as in a root of their own, and none leads onto another file system.
pub const CONTAINED: u64 =
    libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS | libc::RESOLVE_NO_XDEV;

/// Opens `path` below `at`, close-on-exec. `mode` is for what O_CREAT makes.
pub fn open(
    at: RawFd,
    path: &CStr,
    flags: libc::c_int,
    mode: u32,
    rules: u64,
) -> io::Result<OwnedFd> {
    // SAFETY: all-zero bytes are a valid open_how.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = u64::from((flags | libc::O_CLOEXEC) as u32);
    how.mode = u64::from(mode);
    how.resolve = rules;
    // SAFETY: `path` is a valid C string and `how` readable for its size.
    let fd = unsafe {
        let size = std::mem::size_of::<libc::open_how>();
        libc::syscall(libc::SYS_openat2, at, path.as_ptr(), &how, size)
    };
    // A descriptor or -1: both are narrower.
    let fd = check(fd as libc::c_int)?;
    // SAFETY: the call succeeded, so `fd` is open and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens the directory `path`, an absolute one, and makes what is missing of it: root's, 0755.
pub fn directory(path: &[u8], rules: u64) -> io::Result<OwnedFd> {
    let root = fd::open(c"/", libc::O_PATH | libc::O_DIRECTORY)?;
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    let mut reached = open(root.as_raw_fd(), c".", flags, 0, rules)?;
    let mut so_far = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        if name.is_empty() || name == b"." {
            continue;
        }
        so_far.extend_from_slice(name);
        let whole = c_bytes(&so_far)?;
        reached = match open(root.as_raw_fd(), &whole, flags, 0, rules) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                make(&reached, &c_bytes(name)?)?;
                open(root.as_raw_fd(), &whole, flags, 0, rules)?
            }
            opened => opened?,
        };
        so_far.push(b'/');
    }
    Ok(reached)
}

fn make(at: &OwnedFd, name: &CString) -> io::Result<()> {
    // SAFETY: `name` is a valid C string for the whole call.
    match check(unsafe { libc::mkdirat(at.as_raw_fd(), name.as_ptr(), 0o755) }) {
        // What was not found is there: a link to nowhere.
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
            Err(io::Error::from_raw_os_error(libc::ENOENT))
        }
        made => made.map(drop),
    }
}

/// A path by which the kernel reaches exactly what is open.
pub fn path_of(open: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", open.as_raw_fd())
}
