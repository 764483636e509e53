//! System calls relative to an open directory, and its entries one by one.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;

use crate::sys::{check, check_size};

pub fn stat(at: RawFd, name: &CStr) -> io::Result<libc::stat> {
    // SAFETY: all-zero bytes are a valid stat.
    let mut found: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `name` is a valid C string and `found` writable for the whole call.
    check(unsafe { libc::fstatat(at, name.as_ptr(), &mut found, libc::AT_SYMLINK_NOFOLLOW) })?;
    Ok(found)
}

pub fn stat_open(file: RawFd) -> io::Result<libc::stat> {
    // SAFETY: all-zero bytes are a valid stat.
    let mut found: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `found` is writable for the whole call.
    check(unsafe { libc::fstat(file, &mut found) })?;
    Ok(found)
}

/// The number by which statfs(2) knows the type of a file system.
pub fn filesystem(file: RawFd) -> io::Result<u64> {
    // SAFETY: all-zero bytes are a valid statfs.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `found` is writable for the whole call.
    check(unsafe { libc::fstatfs(file, &mut found) })?;
    Ok(found.f_type as u64)
}

pub fn read_link(at: RawFd, name: &CStr) -> io::Result<Vec<u8>> {
    let mut target = vec![0; libc::PATH_MAX as usize];
    // SAFETY: `target` is writable for its length, `name` a valid C string.
    let size = check_size(unsafe {
        libc::readlinkat(at, name.as_ptr(), target.as_mut_ptr().cast(), target.len())
    })?;
    target.truncate(size);
    Ok(target)
}

pub fn make_directory(at: RawFd, name: &CStr) -> io::Result<()> {
    // SAFETY: `name` is a valid C string for the whole call.
    check(unsafe { libc::mkdirat(at, name.as_ptr(), 0o700) }).map(drop)
}

pub fn make_link(at: RawFd, name: &CStr, target: &CStr) -> io::Result<()> {
    // SAFETY: both are valid C strings for the whole call.
    check(unsafe { libc::symlinkat(target.as_ptr(), at, name.as_ptr()) }).map(drop)
}

pub fn rename(at: RawFd, from: &CStr, to: &CStr) -> io::Result<()> {
    // SAFETY: both are valid C strings for the whole call.
    check(unsafe { libc::renameat(at, from.as_ptr(), at, to.as_ptr()) }).map(drop)
}

pub fn unlink(at: RawFd, name: &CStr) -> io::Result<()> {
    // SAFETY: `name` is a valid C string for the whole call.
    check(unsafe { libc::unlinkat(at, name.as_ptr(), 0) }).map(drop)
}

pub fn set_mode(file: RawFd, mode: u32) -> io::Result<()> {
    // SAFETY: the call takes no pointers.
    check(unsafe { libc::fchmod(file, mode) }).map(drop)
}

/// The time of the last change; that of the last access becomes the same. `name`: of a link itself.
pub fn set_time(at: RawFd, name: Option<&CStr>, seconds: i64, nanoseconds: u32) -> io::Result<()> {
    let time = libc::timespec {
        tv_sec: seconds,
        tv_nsec: i64::from(nanoseconds.min(999_999_999)),
    };
    let times = [time, time];
    // SAFETY: `times` has both, and `name` is null (for `at` itself) or a valid C string.
    check(unsafe {
        match name {
            Some(name) => {
                libc::utimensat(at, name.as_ptr(), times.as_ptr(), libc::AT_SYMLINK_NOFOLLOW)
            }
            None => libc::futimens(at, times.as_ptr()),
        }
    })
    .map(drop)
}

/// Where the next data or hole begins at or after `offset`. None: no data is left.
pub fn seek(file: RawFd, offset: u64, whence: libc::c_int) -> io::Result<Option<u64>> {
    let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the call takes no pointers.
    match unsafe { libc::lseek(file, offset, whence) } {
        -1 => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            error => Err(error),
        },
        found => Ok(u64::try_from(found).ok()),
    }
}

/// The entries of a directory, read as they are asked for.
pub struct Entries {
    stream: NonNull<libc::DIR>,
}

impl Entries {
    pub fn of(directory: OwnedFd) -> io::Result<Entries> {
        let fd = directory.into_raw_fd();
        // SAFETY: `fd` is open and given away; on success the stream owns it.
        match NonNull::new(unsafe { libc::fdopendir(fd) }) {
            Some(stream) => Ok(Entries { stream }),
            None => Err(io::Error::last_os_error()),
        }
    }

    /// The next name that is not `.` or `..`.
    pub fn next(&mut self) -> io::Result<Option<CString>> {
        loop {
            // SAFETY: the location is valid in every process; the stream is open.
            let entry = unsafe {
                *libc::__errno_location() = 0;
                libc::readdir(self.stream.as_ptr())
            };
            if entry.is_null() {
                let error = io::Error::last_os_error();
                return match error.raw_os_error() {
                    Some(0) | None => Ok(None),
                    _ => Err(error),
                };
            }
            // SAFETY: readdir returned an entry, whose name ends with a NUL; it is copied at once.
            let name = unsafe { CStr::from_ptr((*entry).d_name.as_ptr()) };
            if !matches!(name.to_bytes(), b"." | b"..") {
                return Ok(Some(name.to_owned()));
            }
        }
    }
}

impl AsRawFd for Entries {
    fn as_raw_fd(&self) -> RawFd {
        // SAFETY: the stream is open.
        unsafe { libc::dirfd(self.stream.as_ptr()) }
    }
}

impl Drop for Entries {
    fn drop(&mut self) {
        // SAFETY: the stream is open, and closed only here.
        unsafe { libc::closedir(self.stream.as_ptr()) };
    }
}
