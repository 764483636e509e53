//! From the kernel's hand-over to an open port: early mounts, the console port.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use crate::log;
use crate::sys::{self, fd, mount};

/// The name that the VMM gives to the port of the agent channel.
const PORT: &str = "msb.agent";
const PORTS: &str = "/sys/class/virtio-ports";
/// How long a VMM may take to announce the port.
const PORT_DEADLINE: Duration = Duration::from_secs(10);

/// Mounts what agentd itself needs, and takes over the standard descriptors.
pub fn prepare() -> io::Result<()> {
    let quiet = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    mount_once("devtmpfs", "/dev", "devtmpfs", libc::MS_NOSUID, "mode=755")?;
    standard_descriptors()?;
    log::take_panics();
    mount_once("proc", "/proc", "proc", quiet, "")?;
    mount_once("sysfs", "/sys", "sysfs", quiet, "")?;
    // A panic of the kernel must end the VM, not leave it spinning.
    ignore(
        "kernel.panic",
        std::fs::write("/proc/sys/kernel/panic", "-1"),
    );
    // The kernel kills what has the highest score; -1000 is never chosen. Children get 0 again.
    ignore(
        "oom_score_adj",
        std::fs::write("/proc/self/oom_score_adj", "-1000"),
    );
    ignore("nofile", raise_descriptor_limit());
    Ok(())
}

/// The kernel may have mounted it already.
fn mount_once(
    source: &str,
    target: &str,
    fstype: &str,
    flags: libc::c_ulong,
    options: &str,
) -> io::Result<()> {
    match mount::mount(source, target, fstype, flags, options) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(()),
        other => other,
    }
}

/// Reports what the guest can do without.
fn ignore(what: &str, result: io::Result<()>) {
    if let Err(error) = result {
        log::error(&format!("{what}: {error}"));
    }
}

/// Input from nowhere, output to the kernel log.
fn standard_descriptors() -> io::Result<()> {
    let null = fd::open(c"/dev/null", libc::O_RDONLY)?;
    let kmsg = fd::open(c"/dev/kmsg", libc::O_WRONLY)?;
    for (from, to) in [(&null, 0), (&kmsg, 1), (&kmsg, 2)] {
        if from.as_raw_fd() != to {
            // SAFETY: takes no pointers; 0, 1 and 2 are owned by nobody.
            sys::check(unsafe { libc::dup2(from.as_raw_fd(), to) })?;
        }
    }
    // Opened onto a standard number (if the kernel found no console) they have to stay open.
    for fd in [null, kmsg] {
        if fd.as_raw_fd() <= 2 {
            std::mem::forget(fd);
        }
    }
    Ok(())
}

/// A thousand execs have four descriptors each.
fn raise_descriptor_limit() -> io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: 1 << 20,
        rlim_max: 1 << 20,
    };
    // SAFETY: `limit` is valid for the call.
    sys::check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) })?;
    Ok(())
}

/// Opens the agent's port. The kernel lets a port be open once: from here on nobody else gets it.
pub fn open_port() -> io::Result<OwnedFd> {
    let pause = Duration::from_millis(1);
    let mut waited = Duration::ZERO;
    loop {
        if let Some(device) = find_port() {
            let path = CString::new(format!("/dev/{device}"))?;
            return fd::open(&path, libc::O_RDWR | libc::O_NONBLOCK);
        }
        if waited > PORT_DEADLINE {
            return Err(io::Error::other(format!("no console port named {PORT}")));
        }
        // Normally it is there before PID 1 starts. A port gets its name by a message of the VMM,
        // for which there is no event without a netlink socket.
        std::thread::sleep(pause);
        waited += pause;
    }
}

fn find_port() -> Option<String> {
    std::fs::read_dir(PORTS).ok()?.flatten().find_map(|entry| {
        let name = std::fs::read_to_string(entry.path().join("name")).ok()?;
        let device = entry.file_name().into_string().ok()?;
        (name.trim_end() == PORT).then_some(device)
    })
}
