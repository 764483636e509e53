//! The method `metrics`: what the guest uses of what it has. The host takes it for the guest's word, and
//! a figure that cannot be had is left out.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};

use crate::channel::Map;
use crate::configure::World;
use crate::context::Context;
use crate::sys::{self, fd};

/// Of a file of /proc: /proc/diskstats has a hundred bytes for each of a few disks.
const FILE_MAX: u64 = 64 << 10;
/// Linux counts a disk's traffic in these, whatever the disk's own sectors are.
const SECTOR: u64 = 512;

/// Bytes, but for `execs`, the commands and file operations under way, and `tasks`, the processes and
/// threads of the workload.
pub fn measure(world: &World, context: &Context, execs: usize) -> Map {
    let mut found = Map::new().with("execs", u64::try_from(execs).unwrap_or(u64::MAX));
    let mut add = |key, value: Option<u64>| {
        if let Some(value) = value {
            found = std::mem::take(&mut found).with(key, value);
        }
    };
    let tasks = context.cgroups.as_ref().and_then(|groups| groups.tasks());
    // The one that waits for a program is nobody's yet.
    let spare = u64::from(context.spare.is_some());
    add("tasks", tasks.map(|count| count.saturating_sub(spare)));
    let memory = read(&world.proc, c"meminfo").unwrap_or_default();
    add("memory_total", meminfo(&memory, "MemTotal:"));
    add("memory_available", meminfo(&memory, "MemAvailable:"));
    if let Ok((total, used)) = space(&world.upper) {
        add("upper_total", Some(total));
        add("upper_used", Some(used));
    }
    if let Ok(text) = read(&world.proc, c"diskstats") {
        let (from, to) = traffic(&text);
        add("disk_read", Some(from));
        add("disk_written", Some(to));
    }
    found
}

fn read(proc: &OwnedFd, name: &CStr) -> io::Result<String> {
    let file = fd::open_at(proc.as_raw_fd(), name, libc::O_RDONLY, 0)?;
    let mut text = String::new();
    File::from(file).take(FILE_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// Bytes of a line of /proc/meminfo.
fn meminfo(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kilobytes: u64 = rest.trim().strip_suffix(" kB")?.parse().ok()?;
    kilobytes.checked_mul(1024)
}

/// Bytes that the file system of `directory` can hold and holds.
fn space(directory: &OwnedFd) -> io::Result<(u64, u64)> {
    // SAFETY: all-zero bytes are a valid statvfs.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `found` is writable, the descriptor open.
    sys::check(unsafe { libc::fstatvfs(directory.as_raw_fd(), &mut found) })?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    let used = found.f_blocks.saturating_sub(found.f_bfree);
    Ok((bytes(found.f_blocks), bytes(used)))
}

/// Bytes read from and written to all virtio disks: the sixth and the tenth field of a line of
/// /proc/diskstats (Documentation/admin-guide/iostats.rst).
fn traffic(text: &str) -> (u64, u64) {
    let (mut from, mut to) = (0u64, 0u64);
    for line in text.lines() {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
        if fields.get(2).is_some_and(|name| name.starts_with("vd")) {
            from = from.saturating_add(number(5).unwrap_or(0).saturating_mul(SECTOR));
            to = to.saturating_add(number(9).unwrap_or(0).saturating_mul(SECTOR));
        }
    }
    (from, to)
}

#[cfg(test)]
mod tests {
    use super::{meminfo, traffic};

    #[test]
    fn memory_is_in_bytes() {
        let text = "MemTotal:  494336 kB\nMemFree: 1 kB\nMemAvailable:     452828 kB\n";
        assert_eq!(meminfo(text, "MemTotal:"), Some(494_336 * 1024));
        assert_eq!(meminfo(text, "MemAvailable:"), Some(452_828 * 1024));
        assert_eq!(meminfo(text, "SwapTotal:"), None);
        assert_eq!(meminfo("MemTotal: x kB", "MemTotal:"), None);
    }

    #[test]
    fn traffic_is_that_of_the_virtio_disks() {
        let text = "   1       0 ram0 9 9 9 9 9 9 9 9 0 0 0\n \
                    254      16 vdb 70 0 560 4 0 0 0 0 0 4 4 0 0 0 0 0 0\n \
                    254      32 vdc 10 0 80 1 5 1 48 2 0 1 3 0 0 0 0 0 0\n \
                    254      48 vdd 1\n";
        assert_eq!(traffic(text), (640 * 512, 48 * 512));
        assert_eq!(traffic(""), (0, 0));
    }
}
