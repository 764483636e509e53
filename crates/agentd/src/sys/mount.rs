//! Mounting, and changing the root.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
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

/// Mounts what is at `from` at `to` as well.
pub fn bind(from: &str, to: &str) -> io::Result<()> {
    mount(from, to, "", libc::MS_BIND, "")
}

/// A tree of mounts that is nowhere, but can be put in a place.
pub struct Tree(OwnedFd);

impl Tree {
    /// A copy of what is mounted at `path` and below it.
    pub fn copy(path: &str) -> io::Result<Tree> {
        let path = c_string(path)?;
        let flags =
            libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_RECURSIVE as libc::c_uint;
        // SAFETY: `path` is a valid C string for the whole call.
        let tree =
            unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
        let tree = check(tree as libc::c_int)?;
        // SAFETY: the call succeeded, so the descriptor is open and belongs to nobody else.
        Ok(Tree(unsafe { OwnedFd::from_raw_fd(tree) }))
    }

    /// Its root, which it goes with.
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// Mounts it, over what may be mounted there.
    pub fn put(&self, path: &str) -> io::Result<()> {
        const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
        let path = c_string(path)?;
        // SAFETY: both paths are valid C strings for the whole call.
        let moved = unsafe {
            libc::syscall(
                libc::SYS_move_mount,
                self.0.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_FDCWD,
                path.as_ptr(),
                MOVE_MOUNT_F_EMPTY_PATH,
            )
        };
        check(moved as libc::c_int)?;
        Ok(())
    }
}

/// Sets the flags of the mount at `target`, whatever they were, and leaves its file system's alone.
pub fn remount(target: &str, flags: libc::c_ulong) -> io::Result<()> {
    mount("", target, "", libc::MS_REMOUNT | libc::MS_BIND | flags, "")
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

/// Mounts a device nowhere, and gives its root: for reading, wherever else it is mounted. `read_only`: whether
/// the file system is, there as well as here; it cannot be both.
pub fn detached(device: &str, fstype: &str, read_only: bool) -> io::Result<OwnedFd> {
    // fsopen(2), fsconfig(2) and fsmount(2); linux/mount.h.
    const CLOEXEC: libc::c_uint = 1;
    const SET_FLAG: libc::c_uint = 0;
    const SET_STRING: libc::c_uint = 1;
    const CMD_CREATE: libc::c_uint = 6;
    const ATTR_RDONLY: libc::c_uint = 1;
    let (device, fstype) = (c_string(device)?, c_string(fstype)?);
    // SAFETY: `fstype` is a valid C string for the whole call.
    let context = unsafe { libc::syscall(libc::SYS_fsopen, fstype.as_ptr(), CLOEXEC) };
    // SAFETY: the call succeeded, so the descriptor is open and belongs to nobody else.
    let context = unsafe { OwnedFd::from_raw_fd(check(context as libc::c_int)?) };
    let set = |command: libc::c_uint, key: *const libc::c_char, value: *const libc::c_char| {
        // SAFETY: `key` and `value` are null or valid C strings for the whole call.
        let done = unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                context.as_raw_fd(),
                command,
                key,
                value,
                0,
            )
        };
        check(done as libc::c_int).map(drop)
    };
    set(SET_STRING, c"source".as_ptr(), device.as_ptr())?;
    if read_only {
        set(SET_FLAG, c"ro".as_ptr(), ptr::null())?;
    }
    set(CMD_CREATE, ptr::null(), ptr::null())?;
    // SAFETY: takes no pointers.
    let mounted =
        unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), CLOEXEC, ATTR_RDONLY) };
    // SAFETY: the call succeeded, so the descriptor is open and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(check(mounted as libc::c_int)?) })
}

/// Drops what the kernel has cached of a block device. A restored VM finds another disk behind
/// the same device than the one whose first blocks it read at boot.
pub fn drop_caches(device: &OwnedFd) -> io::Result<()> {
    const BLKFLSBUF: libc::c_ulong = 0x1261;
    // SAFETY: BLKFLSBUF ignores its argument.
    check(unsafe { libc::ioctl(device.as_raw_fd(), BLKFLSBUF as _, ptr::null_mut::<u8>()) })?;
    Ok(())
}
