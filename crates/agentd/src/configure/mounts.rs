//! The workload's file systems, and the change to its root.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;

use crate::sys::c_string;
use crate::sys::fd;
use crate::sys::mount::{change_root, drop_caches, mount, move_mount};

/// Where agentd puts the new root together, on the boot disk.
const NEW_ROOT: &str = "/newroot";

fn disk(
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

/// The writable layer. Returns a directory of it.
pub fn upper(device: &str) -> io::Result<OwnedFd> {
    // noinit_itable: zeroing the inode tables in the background would fill a sparse disk.
    disk(
        device,
        "/upper",
        "ext4",
        libc::MS_NOATIME | libc::MS_NODEV,
        "noinit_itable",
    )?;
    create_directory("/upper/upper", 0o755)?;
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

/// Makes the overlay the root and mounts the kernel's file systems in it. Returns agentd's own
/// hold on /proc and on the cgroup tree, which the workload cannot unmount.
pub fn enter() -> io::Result<(OwnedFd, Option<OwnedFd>)> {
    let quiet = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    let shared = libc::MS_NOSUID | libc::MS_NODEV;
    for name in ["/dev", "/proc", "/sys"] {
        let target = format!("{NEW_ROOT}{name}");
        create_directory(&target, 0o755)?;
        move_mount(name, &target)?;
    }
    change_root(NEW_ROOT)?;
    create_directory("/tmp", 0o1777)?;
    mount("tmpfs", "/tmp", "tmpfs", shared, "mode=1777,size=50%")?;
    create_directory("/dev/pts", 0o755)?;
    mount(
        "devpts",
        "/dev/pts",
        "devpts",
        libc::MS_NOSUID | libc::MS_NOEXEC,
        "newinstance,ptmxmode=0666,mode=620,gid=5",
    )?;
    create_directory("/dev/shm", 0o1777)?;
    mount("tmpfs", "/dev/shm", "tmpfs", shared, "mode=1777,size=50%")?;
    create_directory("/dev/mqueue", 0o1777)?;
    optional(mount("mqueue", "/dev/mqueue", "mqueue", quiet, ""))?;
    for (name, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        std::os::unix::fs::symlink(target, name)?;
    }
    let proc = fd::open(c"/proc", libc::O_PATH | libc::O_DIRECTORY)?;
    let options = "nsdelegate,memory_recursiveprot";
    optional(mount(
        "cgroup2",
        "/sys/fs/cgroup",
        "cgroup2",
        quiet,
        options,
    ))?;
    let cgroup = fd::open(c"/sys/fs/cgroup", libc::O_RDONLY | libc::O_DIRECTORY).ok();
    Ok((proc, cgroup))
}

/// A file system that a kernel may have been built without.
fn optional(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        other => other,
    }
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
