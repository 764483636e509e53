//! Descriptors: opening, pipes, non-blocking reads and writes.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use super::{check, check_size};

/// Opens `path` below the directory `at` (or from the root, if it is absolute), close-on-exec.
pub fn open_at(
    at: RawFd,
    path: &CStr,
    flags: libc::c_int,
    mode: libc::mode_t,
) -> io::Result<OwnedFd> {
    // SAFETY: `path` is a valid C string for the whole call.
    let fd = check(unsafe { libc::openat(at, path.as_ptr(), flags | libc::O_CLOEXEC, mode) })?;
    // SAFETY: the call succeeded, so `fd` is open and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens an absolute path, close-on-exec.
pub fn open(path: &CStr, flags: libc::c_int) -> io::Result<OwnedFd> {
    open_at(libc::AT_FDCWD, path, flags, 0)
}

/// A pipe: the end to read and the end to write, both close-on-exec.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    // SAFETY: `ends` has room for the two descriptors.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // SAFETY: the call succeeded, so both are open and belong to nobody else.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

/// Sets or clears O_NONBLOCK.
pub fn set_nonblocking(fd: impl AsFd, on: bool) -> io::Result<()> {
    let flags = if on { libc::O_NONBLOCK } else { 0 };
    // SAFETY: F_SETFL takes an int; the descriptor is open for the borrow.
    check(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_SETFL, flags) })?;
    Ok(())
}

/// What a non-blocking read or write did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moved {
    Bytes(usize),
    /// Nothing now; an event will tell.
    Later,
    /// End of file, or nobody is at the other end.
    Gone,
}

fn moved(result: io::Result<usize>) -> Moved {
    match result {
        Ok(0) => Moved::Gone,
        Ok(count) => Moved::Bytes(count),
        Err(error) => match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EINTR) => Moved::Later,
            _ => Moved::Gone,
        },
    }
}

/// Reads what is there.
pub fn read(fd: impl AsFd, buffer: &mut [u8]) -> Moved {
    let raw = fd.as_fd().as_raw_fd();
    // SAFETY: `buffer` is writable for its length.
    moved(check_size(unsafe {
        libc::read(raw, buffer.as_mut_ptr().cast(), buffer.len())
    }))
}

/// Writes what fits; `bytes` is not empty.
pub fn write(fd: impl AsFd, bytes: &[u8]) -> Moved {
    let raw = fd.as_fd().as_raw_fd();
    // SAFETY: `bytes` is readable for its length.
    moved(check_size(unsafe {
        libc::write(raw, bytes.as_ptr().cast(), bytes.len())
    }))
}

/// Lets a pipe hold more. What is refused (a limit of the kernel) leaves it as it is.
pub fn grow_pipe(fd: impl AsFd, size: libc::c_int) {
    // SAFETY: F_SETPIPE_SZ takes an int; the descriptor is open for the borrow.
    unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_SETPIPE_SZ, size) };
}

/// Bytes that wait in a pipe.
pub fn waiting(fd: impl AsFd) -> usize {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD stores one int at the pointer.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::FIONREAD, &mut count) };
    if result == -1 {
        return 0;
    }
    usize::try_from(count).unwrap_or(0)
}

/// Waits until a file of the kernel's that was read has changed; false after `limit`.
pub fn await_change(fd: impl AsFd, limit: Duration) -> bool {
    let mut poll = libc::pollfd {
        fd: fd.as_fd().as_raw_fd(),
        events: libc::POLLPRI,
        revents: 0,
    };
    let limit = i32::try_from(limit.as_millis() + 1).unwrap_or(i32::MAX);
    // SAFETY: `poll` is one valid entry for the whole call.
    unsafe { libc::poll(&mut poll, 1, limit) == 1 }
}
