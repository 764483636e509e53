//! What every guest has, whoever it will be: done at boot, so that a VM restored from a template
//! has it already.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::cgroup::Cgroups;
use crate::configure::create_directory;
use crate::sys::mount::mount;
use crate::sys::{self, fd};

/// Mounts below /dev and /sys, which move with them into the root to come, and /tmp; brings up
/// the loopback interface; makes the workload's control group.
pub fn prepare() -> io::Result<Option<Cgroups>> {
    let quiet = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    let shared = libc::MS_NOSUID | libc::MS_NODEV;
    let terminals = libc::MS_NOSUID | libc::MS_NOEXEC;
    let options = "newinstance,ptmxmode=0666,mode=620,gid=5";
    create_directory("/dev/pts", 0o755)?;
    mount("devpts", "/dev/pts", "devpts", terminals, options)?;
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
    mount("tmpfs", "/tmp", "tmpfs", shared, "mode=1777,size=50%")?;
    loopback_up()?;
    let options = "nsdelegate,memory_recursiveprot";
    optional(mount(
        "cgroup2",
        "/sys/fs/cgroup",
        "cgroup2",
        quiet,
        options,
    ))?;
    let root = fd::open(c"/sys/fs/cgroup", libc::O_RDONLY | libc::O_DIRECTORY).ok();
    Ok(Cgroups::new(root))
}

/// A file system that a kernel may have been built without.
fn optional(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        other => other,
    }
}

/// Brings up 127.0.0.1 and ::1; the kernel assigns both when the interface goes up.
fn loopback_up() -> io::Result<()> {
    // SAFETY: takes no pointers.
    let socket = sys::check(unsafe {
        libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0)
    })?;
    // SAFETY: the call succeeded, so the descriptor is open and belongs to nobody else.
    let socket: OwnedFd = unsafe { std::os::fd::FromRawFd::from_raw_fd(socket) };
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads the name and the flags, both set above.
    sys::check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) })?;
    Ok(())
}
