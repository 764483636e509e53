//! Mounting, and changing the root.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;

use super::{c_string, check};

/// Mounts `source` of type `fstype` at `target`.
pub fn mount(
    source: &str,
    target: &str,
    fstype: &str,
    flags: libc::c_ulong,
    options: &str,
) -> io::Result<()> {
    let (source, target) = (c_string(source)?, c_string(target)?);
    let (fstype, options) = (c_string(fstype)?, c_string(options)?);
    // SAFETY: all four are valid C strings for the whole call.
    check(unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            fstype.as_ptr(),
            flags,
            options.as_ptr().cast(),
        )
    })?;
    Ok(())
}

/// Moves a mount to another place.
pub fn move_mount(from: &str, to: &str) -> io::Result<()> {
    mount(from, to, "", libc::MS_MOVE, "")
}

pub fn unmount(target: &str, flags: libc::c_int) -> io::Result<()> {
    let target = c_string(target)?;
    // SAFETY: `target` is a valid C string for the whole call.
    check(unsafe { libc::umount2(target.as_ptr(), flags) })?;
    Ok(())
}

/// Makes `new_root` the root of the process and the mount namespace, and lets go of the old one
/// with all that is mounted in it: nothing there has a path afterwards.
pub fn change_root(new_root: &str) -> io::Result<()> {
    std::env::set_current_dir(new_root)?;
    let here = c".".as_ptr();
    // SAFETY: both arguments are valid C strings. With equal arguments the old root ends on top
    // of the new one (pivot_root(2)), from where the next call takes it away.
    if unsafe { libc::syscall(libc::SYS_pivot_root, here, here) } == -1 {
        return Err(io::Error::last_os_error());
    }
    unmount(".", libc::MNT_DETACH)?;
    std::env::set_current_dir("/")
}

/// Stops all writing to the file system that `directory` is on and leaves its journal empty.
pub fn freeze(directory: &OwnedFd) -> io::Result<()> {
    const FIFREEZE: libc::c_ulong = 0xc004_5877;
    // SAFETY: FIFREEZE ignores its argument.
    check(unsafe { libc::ioctl(directory.as_raw_fd(), FIFREEZE as _, ptr::null_mut::<u8>()) })?;
    Ok(())
}

/// Drops what the kernel has cached of a block device. A restored VM finds another disk behind
/// the same device than the one whose first blocks it read at boot.
pub fn drop_caches(device: &OwnedFd) -> io::Result<()> {
    const BLKFLSBUF: libc::c_ulong = 0x1261;
    // SAFETY: BLKFLSBUF ignores its argument.
    check(unsafe { libc::ioctl(device.as_raw_fd(), BLKFLSBUF as _, ptr::null_mut::<u8>()) })?;
    Ok(())
}
