//! What every guest has, whoever it will be: done at boot, so that a VM restored from a template
//! has it already.

use std::io;

use crate::cgroup::Cgroups;
use crate::configure::create_directory;
use crate::network;
use crate::sys::fd;
use crate::sys::mount::mount;

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
    for (path, value) in SETTINGS {
        // A kernel may be built without it.
        let _ = std::fs::write(path, value);
    }
    network::up("lo")?;
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

/// What distributions and container engines set, too.
const SETTINGS: [(&str, &str); 2] = [
    // `ping` without the right to raw packets.
    ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647"),
    // Nobody types into the terminal of another user.
    ("/proc/sys/dev/tty/legacy_tiocsti", "0"),
];

/// A file system that a kernel may have been built without.
fn optional(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        other => other,
    }
}
