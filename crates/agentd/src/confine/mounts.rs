//! The file systems of a restricted sandbox. None of it can be undone without the right to mount.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;

use crate::configure::create_directory;
use crate::sys::c_string;
use crate::sys::mount::{bind, mount, remount, unmount, Tree};

/// What of the kernel's the sandbox's root could otherwise change: files that belong to root, for which no
/// capability is asked. The process 1 is agentd.
const READ_ONLY: [&str; 6] = ["1", "bus", "fs", "irq", "sys", "sysrq-trigger"];
/// What would tell of the kernel's memory.
const HIDDEN: [&str; 8] = [
    "kallsyms",
    "kcore",
    "keys",
    "kpagecgroup",
    "kpagecount",
    "kpageflags",
    "timer_list",
    "vmallocinfo",
];
/// The devices of a container, with their numbers: nothing behind them but the kernel's own code.
const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];
/// Where the trees are put together, before anybody else is there.
const WORKSHOP: &str = "/tmp/.restricted";

const KERNEL: libc::c_ulong = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;

/// The trees, made but not used yet: what takes the time is done when a machine is saved, for all that
/// start from it.
pub struct Restricted {
    dev: Tree,
    proc: Tree,
    sys: Tree,
}

impl Restricted {
    pub fn prepare() -> io::Result<Restricted> {
        let prepared = Restricted {
            dev: made(dev)?,
            proc: made(proc)?,
            sys: made(sys)?,
        };
        Ok(prepared)
    }

    /// Makes them what everybody sees. agentd goes on with the descriptors that it has of what is below:
    /// it writes to the control groups.
    pub fn apply(&self) -> io::Result<()> {
        self.dev.put("/dev")?;
        self.proc.put("/proc")?;
        self.sys.put("/sys")?;
        // Set-user-id bits and device files mean nothing; /tmp and /dev/shm are mounted so from the beginning.
        remount("/", libc::MS_NOSUID | libc::MS_NODEV)
    }
}

/// A tree that `build` has put together in the workshop, which is left as it was.
fn made(build: fn() -> io::Result<()>) -> io::Result<Tree> {
    create_directory(WORKSHOP, 0o700)?;
    let tree = build().and_then(|()| Tree::copy(WORKSHOP));
    // What could not be mounted leaves nothing to unmount.
    let _ = unmount(WORKSHOP, libc::MNT_DETACH);
    fs::remove_dir(WORKSHOP)?;
    tree
}

/// A /dev with few devices: disks and memory are not among them.
fn dev() -> io::Result<()> {
    let flags = libc::MS_NOSUID | libc::MS_NOEXEC;
    mount("tmpfs", WORKSHOP, "tmpfs", flags, "mode=755,size=64k")?;
    for (name, major, minor) in DEVICES {
        let path = c_string(&format!("{WORKSHOP}/{name}"))?;
        let device = libc::makedev(major, minor);
        // SAFETY: `path` is a valid C string for both calls. The mode of the first is subject to the umask.
        unsafe {
            crate::sys::check(libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o666, device))?;
            crate::sys::check(libc::chmod(path.as_ptr(), 0o666))?;
        }
    }
    for (name, target) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlink(target, format!("{WORKSHOP}/{name}"))?;
    }
    for name in ["pts", "shm", "mqueue"] {
        let (old, new) = (format!("/dev/{name}"), format!("{WORKSHOP}/{name}"));
        create_directory(&new, 0o755)?;
        bind(&old, &new)?;
    }
    Ok(())
}

fn proc() -> io::Result<()> {
    bind("/proc", WORKSHOP)?;
    for name in READ_ONLY {
        let path = format!("{WORKSHOP}/{name}");
        if present(bind(&path, &path))? {
            remount(&path, KERNEL | libc::MS_RDONLY)?;
        }
    }
    for name in HIDDEN {
        present(bind("/dev/null", &format!("{WORKSHOP}/{name}")))?;
    }
    Ok(())
}

fn sys() -> io::Result<()> {
    bind("/sys", WORKSHOP)?;
    remount(WORKSHOP, KERNEL | libc::MS_RDONLY)?;
    let cgroups = format!("{WORKSHOP}/fs/cgroup");
    if present(bind("/sys/fs/cgroup", &cgroups))? {
        remount(&cgroups, KERNEL | libc::MS_RDONLY)?;
    }
    Ok(())
}

/// Whether there was something to mount on: a kernel may be built without it.
fn present(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        other => other.map(|()| true),
    }
}
