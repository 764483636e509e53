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
    ignore("dumpable", hide_memory());
    ignore("idle", be_quiet());
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

/// Children share agentd's memory until they execute their programs, and by then are another user: without this a
/// process of that user could trace them, and so write to agentd.
fn hide_memory() -> io::Result<()> {
    // SAFETY: takes no pointers.
    sys::check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) })?;
    Ok(())
}

/// Keeps an idle kernel from waking up twice a second to see whether memory is in fragments, and once to
/// fold statistics: three quarters of what a hundred idle machines would cost. Memory is still compacted when
/// a large piece is wanted, and a statistic is off by half a megabyte for each processor at most.
fn be_quiet() -> io::Result<()> {
    std::fs::write("/proc/sys/vm/compaction_proactiveness", "0")?;
    std::fs::write("/proc/sys/vm/stat_interval", "30")
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

/// Opens the agent's port.
pub fn open_agent_port() -> io::Result<OwnedFd> {
    open_port(PORT, PORT_DEADLINE)
}

/// Opens the port of this name, as soon as it is there. The kernel lets a port be open once: from here on
/// nobody else gets it.
pub fn open_port(name: &str, deadline: Duration) -> io::Result<OwnedFd> {
    let pause = Duration::from_millis(1);
    let mut waited = Duration::ZERO;
    loop {
        if let Some(device) = find_port(name) {
            let path = CString::new(format!("/dev/{device}"))?;
            return fd::open(&path, libc::O_RDWR | libc::O_NONBLOCK);
        }
        if waited > deadline {
            return Err(io::Error::other(format!("no console port named {name}")));
        }
        // Normally it is there before PID 1 starts. A port gets its name by a message of the VMM,
        // for which there is no event without a netlink socket.
        std::thread::sleep(pause);
        waited += pause;
    }
}

fn find_port(wanted: &str) -> Option<String> {
    std::fs::read_dir(PORTS).ok()?.flatten().find_map(|entry| {
        let name = std::fs::read_to_string(entry.path().join("name")).ok()?;
        let device = entry.file_name().into_string().ok()?;
        (name.trim_end() == wanted).then_some(device)
    })
}
