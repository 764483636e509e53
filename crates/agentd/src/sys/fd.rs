//! Descriptors: opening, pipes, non-blocking reads and writes.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

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

/// Two connected sockets that keep messages apart, both close-on-exec.
pub fn message_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: `ends` has room for the two descriptors.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so both are open and belong to nobody else.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

/// Room for the control message with `count` descriptors, aligned as the kernel wants it.
fn control_space(count: usize) -> Vec<libc::cmsghdr> {
    let bytes = u32::try_from(count * size_of::<RawFd>()).unwrap_or(u32::MAX);
    // SAFETY: an arithmetic macro.
    let space = unsafe { libc::CMSG_SPACE(bytes) } as usize;
    // SAFETY: all-zero bytes are a valid cmsghdr.
    vec![unsafe { std::mem::zeroed() }; space.div_ceil(size_of::<libc::cmsghdr>())]
}

/// Sends one message with descriptors, or nothing. Does not wait.
pub fn send(socket: &OwnedFd, message: &[u8], descriptors: &[RawFd]) -> io::Result<()> {
    let mut part = libc::iovec {
        iov_base: message.as_ptr().cast_mut().cast(),
        iov_len: message.len(),
    };
    let mut control = control_space(descriptors.len());
    // SAFETY: all-zero bytes are a valid msghdr; every pointer in it outlives the calls, and `control` has
    // the space for the header and the descriptors that are copied into it.
    let sent = unsafe {
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_iov = &mut part;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = libc::CMSG_SPACE(std::mem::size_of_val(descriptors) as u32) as _;
        let first = libc::CMSG_FIRSTHDR(&header);
        (*first).cmsg_level = libc::SOL_SOCKET;
        (*first).cmsg_type = libc::SCM_RIGHTS;
        (*first).cmsg_len = libc::CMSG_LEN(std::mem::size_of_val(descriptors) as u32) as _;
        let data = libc::CMSG_DATA(first).cast::<RawFd>();
        std::ptr::copy_nonoverlapping(descriptors.as_ptr(), data, descriptors.len());
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        check_size(libc::sendmsg(socket.as_raw_fd(), &header, flags))?
    };
    match sent == message.len() {
        true => Ok(()),
        false => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// Waits for a message of at most `limit` bytes, and takes at most N descriptors, close-on-exec.
pub fn receive<const N: usize>(
    socket: &OwnedFd,
    limit: usize,
) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut message = vec![0; limit];
    let mut part = libc::iovec {
        iov_base: message.as_mut_ptr().cast(),
        iov_len: message.len(),
    };
    let mut control = control_space(N);
    let mut descriptors = Vec::new();
    // SAFETY: as in `send`; what the kernel stored are descriptors that belong to nobody else.
    let (size, flags) = unsafe {
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_iov = &mut part;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = std::mem::size_of_val(control.as_slice()) as _;
        let flags = libc::MSG_CMSG_CLOEXEC;
        let size = check_size(libc::recvmsg(socket.as_raw_fd(), &mut header, flags))?;
        let first = libc::CMSG_FIRSTHDR(&header);
        if !first.is_null() && (*first).cmsg_type == libc::SCM_RIGHTS {
            let length = (*first).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
            let data = libc::CMSG_DATA(first).cast::<RawFd>();
            for index in 0..length / size_of::<RawFd>() {
                descriptors.push(OwnedFd::from_raw_fd(data.add(index).read_unaligned()));
            }
        }
        (size, header.msg_flags)
    };
    if size == 0 || flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    message.truncate(size);
    Ok((message, descriptors))
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A failed test should say where.
    use super::*;

    #[test]
    fn a_message_arrives_with_its_descriptors() {
        let (ours, theirs) = message_pair().unwrap();
        let (reader, writer) = pipe().unwrap();
        send(&ours, b"hello", &[writer.as_raw_fd(), reader.as_raw_fd()]).unwrap();
        drop(writer);
        let (message, descriptors) = receive::<4>(&theirs, 100).unwrap();
        assert_eq!((message.as_slice(), descriptors.len()), (&b"hello"[..], 2));
        assert_eq!(write(&descriptors[0], b"x"), Moved::Bytes(1));
        drop(descriptors);
        let mut buffer = [0; 2];
        assert_eq!(read(&reader, &mut buffer), Moved::Bytes(1));
        assert_eq!(read(&reader, &mut buffer), Moved::Gone);
        // More than there is room for is an error, and so is the other's end.
        send(&ours, b"hello", &[reader.as_raw_fd()]).unwrap();
        assert!(receive::<4>(&theirs, 4).is_err());
        drop(ours);
        assert!(receive::<4>(&theirs, 4).is_err());
        assert!(send(&theirs, b"x", &[reader.as_raw_fd()]).is_err());
    }
}
