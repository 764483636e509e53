//! Control groups: one for the whole workload, with less memory than the machine has, and one in
//! it per exec, so that everything an exec started can be found, counted and killed.

use std::ffi::CString;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::log;
use crate::sys;
use crate::sys::fd::{self, Moved};

/// The group of the workload.
const WORKLOAD: &str = "msb";
/// Memory left to agentd and to what the kernel charges to nobody: without it the workload's
/// out-of-memory would be the machine's. A thirty-second of what is there, within these bounds.
const RESERVE_LEAST: u64 = 8 << 20;
const RESERVE_MOST: u64 = 64 << 20;

/// The workload's group.
pub struct Cgroups {
    /// Held open, so that the workload unmounting /sys/fs/cgroup changes nothing here.
    workload: OwnedFd,
    count: u64,
    /// Made for the next exec. A new one for each: what a program did to its group, kills and freezes and limits, is
    /// not the next one's.
    ready: Option<Cgroup>,
    /// Groups of execs that have ended.
    retired: Vec<CString>,
    /// Those of them that still have processes in them.
    left: Vec<CString>,
}

/// The group of one exec.
pub struct Cgroup {
    name: CString,
    directory: OwnedFd,
}

impl Cgroup {
    /// The directory, for clone3's CLONE_INTO_CGROUP.
    pub fn directory(&self) -> &OwnedFd {
        &self.directory
    }

    /// Whether nobody has removed it: empty, it looks like one that was left over.
    fn exists(&self) -> bool {
        let (at, name) = (self.directory.as_raw_fd(), c"cgroup.procs");
        // SAFETY: `name` is a valid C string.
        unsafe { libc::faccessat(at, name.as_ptr(), libc::F_OK, 0) == 0 }
    }

    /// Kills every process in the group, also those that left the process group.
    pub fn kill(&self) {
        if let Err(error) = write_at(&self.directory, c"cgroup.kill", b"1") {
            log::error(&format!("cgroup.kill: {error}"));
        }
    }

    /// Whether there is a process in the group, also one that is just ending.
    pub fn populated(&self) -> bool {
        read_at(&self.directory, c"cgroup.events").is_ok_and(|text| text.contains("populated 1"))
    }

    /// Whether the kernel killed a process of this group for memory.
    pub fn oom_killed(&self) -> bool {
        read_at(&self.directory, c"memory.events").is_ok_and(|text| oom_kills(&text) > 0)
    }
}

impl Cgroups {
    /// Makes the workload's group; without it (a kernel without cgroups) execs run in none.
    pub fn new(root: Option<OwnedFd>) -> Option<Cgroups> {
        match workload(&root?) {
            Ok(workload) => Some(Cgroups {
                workload,
                count: 0,
                ready: None,
                retired: Vec::new(),
                left: Vec::new(),
            }),
            Err(error) => {
                log::error(&format!("no control group: {error}"));
                None
            }
        }
    }

    /// A group for one exec.
    pub fn create(&mut self) -> io::Result<Cgroup> {
        match self.ready.take().filter(Cgroup::exists) {
            Some(group) => Ok(group),
            None => self.make(),
        }
    }

    fn make(&mut self) -> io::Result<Cgroup> {
        self.count += 1;
        let name = CString::new(format!("exec-{}", self.count))?;
        Ok(Cgroup {
            directory: make(&self.workload, &name)?,
            name,
        })
    }

    /// The group of an init: not an exec's, and with what it may want to divide among its services.
    pub fn create_init(&mut self) -> io::Result<Cgroup> {
        write_at(&self.workload, c"cgroup.subtree_control", b"+cpu +pids")?;
        let name = CString::from(c"init");
        Ok(Cgroup {
            directory: make(&self.workload, &name)?,
            name,
        })
    }

    /// Gives a group back when its exec has ended. It goes when its last process does.
    pub fn retire(&mut self, group: Cgroup) {
        self.retired.push(group.name);
    }

    /// For when the host has heard of an end. Removes the groups that were given back but the last, which waits
    /// for the next, and then makes one for the next exec: most sandboxes run one program, and need not do
    /// the work that costs more than its exec did.
    pub fn tidy(&mut self) {
        let count = self.retired.len().saturating_sub(1);
        for name in self.retired.drain(..count).collect::<Vec<_>>() {
            if !self.remove(&name) {
                self.left.push(name);
            }
        }
        if count > 0 && self.ready.is_none() {
            // What is wrong now is said when somebody needs it.
            self.ready = self.make().ok();
        }
    }

    /// Removes the groups whose last process has ended since.
    pub fn sweep(&mut self) {
        let mut left = std::mem::take(&mut self.left);
        left.retain(|name| !self.remove(name));
        self.left = left;
    }

    pub fn has_left(&self) -> bool {
        !self.left.is_empty()
    }

    /// Kills the whole workload at once: what forks faster than signals come cannot escape.
    pub fn kill_all(&self) {
        if let Err(error) = write_at(&self.workload, c"cgroup.kill", b"1") {
            log::error(&format!("cgroup.kill: {error}"));
        }
    }

    /// Processes and threads in the workload's group and those in it.
    pub fn tasks(&self) -> Option<u64> {
        let text = read_at(&self.workload, c"pids.current").ok()?;
        text.trim().parse().ok()
    }

    /// Stops every process of the workload, or lets them go on. They stop before they next execute anything
    /// of their own.
    pub fn freeze(&self, on: bool) {
        let text: &[u8] = if on { b"1" } else { b"0" };
        if let Err(error) = write_at(&self.workload, c"cgroup.freeze", text) {
            log::error(&format!("cgroup.freeze: {error}"));
        }
    }

    /// Waits until all of them have stopped; false after `limit`.
    pub fn await_frozen(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        while let Ok(events) = fd::open_at(
            self.workload.as_raw_fd(),
            c"cgroup.events",
            libc::O_RDONLY,
            0,
        ) {
            let mut text = [0; 256];
            let count = match fd::read(&events, &mut text) {
                Moved::Bytes(count) => count,
                Moved::Later | Moved::Gone => 0,
            };
            if text[..count].windows(8).any(|part| part == b"frozen 1") {
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || !fd::await_change(&events, left) {
                break;
            }
        }
        false
    }

    fn remove(&self, name: &CString) -> bool {
        let at = self.workload.as_raw_fd();
        // SAFETY: `name` is a valid C string for the whole call.
        let result = unsafe { libc::unlinkat(at, name.as_ptr(), libc::AT_REMOVEDIR) };
        // Anything but "busy" means that there is nothing to come back for.
        result == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::EBUSY)
    }
}

fn workload(root: &OwnedFd) -> io::Result<OwnedFd> {
    let name = CString::new(WORKLOAD)?;
    // cpu: a fork bomb is one competitor of agentd, not thousands.
    write_at(root, c"cgroup.subtree_control", b"+cpu +memory +pids")?;
    let group = make(root, &name)?;
    // memory: of each exec, to know whether the kernel killed a process of it.
    write_at(&group, c"cgroup.subtree_control", b"+memory")?;
    let available = available_memory()?;
    let reserve = (available / 32).clamp(RESERVE_LEAST, RESERVE_MOST);
    let limit = available.saturating_sub(reserve).to_string();
    write_at(&group, c"memory.max", limit.as_bytes())?;
    Ok(group)
}

fn make(at: &OwnedFd, name: &CString) -> io::Result<OwnedFd> {
    // SAFETY: `name` is a valid C string for the whole call.
    sys::check(unsafe { libc::mkdirat(at.as_raw_fd(), name.as_ptr(), 0o755) })?;
    fd::open_at(at.as_raw_fd(), name, libc::O_RDONLY | libc::O_DIRECTORY, 0)
}

fn write_at(at: &OwnedFd, name: &std::ffi::CStr, text: &[u8]) -> io::Result<()> {
    let file = fd::open_at(at.as_raw_fd(), name, libc::O_WRONLY, 0)?;
    std::fs::File::from(file).write_all(text)
}

fn read_at(at: &OwnedFd, name: &std::ffi::CStr) -> io::Result<String> {
    let file = fd::open_at(at.as_raw_fd(), name, libc::O_RDONLY, 0)?;
    let mut text = String::new();
    std::fs::File::from(file).read_to_string(&mut text)?;
    Ok(text)
}

/// What the kernel could give to programs now, in bytes.
fn available_memory() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    parse_available(&text).ok_or_else(|| io::Error::other("no MemAvailable"))
}

fn parse_available(meminfo: &str) -> Option<u64> {
    let rest = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = rest.trim().strip_suffix(" kB")?.parse().ok()?;
    kilobytes.checked_mul(1024)
}

/// The `oom_kill` count of a memory.events file.
fn oom_kills(events: &str) -> u64 {
    events
        .lines()
        .filter_map(|line| line.strip_prefix("oom_kill "))
        .find_map(|count| count.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A failed test should say where.
    use super::*;

    #[test]
    fn a_group_made_in_advance_is_used_while_it_is_there() {
        let place = std::env::temp_dir().join(format!("agentd-cgroup-{}", std::process::id()));
        std::fs::create_dir(&place).unwrap();
        let path = CString::new(place.to_str().unwrap()).unwrap();
        let mut groups = Cgroups {
            workload: fd::open(&path, libc::O_RDONLY | libc::O_DIRECTORY).unwrap(),
            count: 0,
            ready: None,
            retired: Vec::new(),
            left: Vec::new(),
        };
        groups.ready = Some(groups.make().unwrap());
        std::fs::write(place.join("exec-1/cgroup.procs"), "").unwrap();
        assert_eq!(groups.create().unwrap().name.as_c_str(), c"exec-1");
        groups.ready = Some(groups.make().unwrap());
        std::fs::remove_dir(place.join("exec-2")).unwrap();
        assert_eq!(groups.create().unwrap().name.as_c_str(), c"exec-3");
        std::fs::remove_dir_all(&place).unwrap();
    }

    #[test]
    fn the_count_of_kills_is_not_the_count_of_group_kills() {
        let text = "low 0\nhigh 0\nmax 4\noom 1\noom_kill 3\noom_group_kill 9\n";
        assert_eq!(oom_kills(text), 3);
        assert_eq!(oom_kills("oom 7\n"), 0);
        assert_eq!(oom_kills(""), 0);
    }

    #[test]
    fn available_memory_is_in_bytes() {
        let text = "MemTotal:  494336 kB\nMemFree: 1 kB\nMemAvailable:     452828 kB\n";
        assert_eq!(parse_available(text), Some(452_828 * 1024));
        assert_eq!(parse_available("MemAvailable: x kB"), None);
    }
}
