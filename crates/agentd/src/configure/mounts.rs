//! The workload's file systems, and the change to its root.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::sync::OnceLock;

use super::{root, Disks};
use crate::sys::c_string;
use crate::sys::fd;
use crate::sys::mount::{change_root, drop_caches, mount, move_mount};

/// Where agentd puts the new root together, on the boot disk.
const NEW_ROOT: &str = "/newroot";

/// What the root is made of; set once, a machine from a template has it from there.
static DISKS: OnceLock<Disks> = OnceLock::new();

/// Has the devices of the root known to who compares them.
pub fn remember(disks: &Disks) {
    let _ = DISKS.set(disks.clone());
}

/// The disk of the lower layer.
pub fn image_device() -> io::Result<String> {
    let disks = DISKS.get().ok_or(io::ErrorKind::NotFound)?;
    Ok(disks.image.clone())
}

/// The disk of the writable layer.
pub fn upper_device() -> io::Result<String> {
    let disks = DISKS.get().ok_or(io::ErrorKind::NotFound)?;
    Ok(disks.upper.clone())
}

/// Mounts a disk, of which nothing that was read before counts.
pub fn disk(
    device: &str,
    target: &str,
    fstype: &str,
    flags: libc::c_ulong,
    options: &str,
) -> io::Result<()> {
    drop_caches(&fd::open(&c_string(device)?, libc::O_RDONLY)?)?;
    mount(device, target, fstype, flags, options)
}

/// The lower layer.
pub fn image(device: &str) -> io::Result<()> {
    disk(
        device,
        "/image",
        "erofs",
        libc::MS_RDONLY | libc::MS_NODEV,
        "",
    )
}

/// The writable layer, over the image that is mounted. Returns a directory of it.
pub fn upper(device: &str) -> io::Result<OwnedFd> {
    // noinit_itable: zeroing the inode tables in the background would fill a sparse disk. The other spares
    // a fresh file system a thread that reads what is known to be empty.
    disk(
        device,
        "/upper",
        "ext4",
        libc::MS_NOATIME | libc::MS_NODEV,
        "noinit_itable,no_prefetch_block_bitmaps",
    )?;
    root::ensure("/upper/upper".as_ref(), "/image".as_ref())?;
    create_directory("/upper/work", 0o755)?;
    fd::open(c"/upper", libc::O_RDONLY | libc::O_DIRECTORY)
}

/// Both as one tree. `redirect_dir=on`: a directory of the image can be renamed as on any file
/// system. Without index and metacopy every changed file lies whole in the upper.
pub fn overlay() -> io::Result<()> {
    let options = "lowerdir=/image,upperdir=/upper/upper,workdir=/upper/work,\
                   redirect_dir=on,index=off,metacopy=off,xino=auto";
    mount("overlay", NEW_ROOT, "overlay", 0, options)
}

/// Makes the overlay the root, with the file systems that were mounted at boot in it. Returns
/// agentd's own hold on /proc and /dev/pts, which the workload cannot unmount.
pub fn enter() -> io::Result<(OwnedFd, OwnedFd)> {
    for name in ["/dev", "/proc", "/sys", "/tmp"] {
        let target = format!("{NEW_ROOT}{name}");
        create_directory(&target, 0o755)?;
        move_mount(name, &target)?;
    }
    change_root(NEW_ROOT)?;
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    Ok((fd::open(c"/proc", flags)?, fd::open(c"/dev/pts", flags)?))
}

/// Makes sure that there is a directory at `path`. What an image has in its place (a file, a
/// link to somewhere else) gives way: a mount must not land where a link points.
pub fn create_directory(path: &str, mode: u32) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(_) => fs::remove_file(path)?,
        Err(_) => {}
    }
    fs::create_dir(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}
