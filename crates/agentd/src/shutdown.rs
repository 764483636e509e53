//! The `shutdown` method: everybody is asked to end, then made to, then the disks are closed.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use crate::cgroup::Cgroups;
use crate::channel::{Invalid, Map};
use crate::configure::World;
use crate::log;
use crate::sys::fd;
use crate::sys::mount::{freeze, unmount};
use crate::sys::process;

/// How long killed processes may take to be gone, and ended streams to be told of.
const KILL: Duration = Duration::from_secs(2);
const DRAIN: Duration = Duration::from_secs(2);
/// A grace beyond this is a mistake of the asker; it can always ask for less.
const GRACE_MAX: u64 = 3_600_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Asked,
    Killed,
    Drained,
}

/// A shutdown under way.
pub struct Shutdown {
    pub stream: u32,
    stage: Stage,
    deadline: Instant,
}

impl Shutdown {
    /// Only reads the request: asking everybody to end is the caller's.
    pub fn begin(stream: u32, request: &Map) -> Result<Shutdown, Invalid> {
        let grace = request.field::<u64>("grace_ms")?.min(GRACE_MAX);
        Ok(Shutdown {
            stream,
            stage: Stage::Asked,
            deadline: Instant::now() + Duration::from_millis(grace),
        })
    }

    /// One that nobody has asked for, after the end of the image's init. It has no stream.
    pub fn by_itself() -> Shutdown {
        Shutdown {
            stream: 0,
            stage: Stage::Asked,
            deadline: Instant::now(),
        }
    }

    /// The time at which `advance` has to be called at the latest.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Goes on if it can; true once the guest can be closed.
    pub fn advance(
        &mut self,
        now: Instant,
        cgroups: Option<&Cgroups>,
        alone: bool,
        told: bool,
    ) -> bool {
        let late = now >= self.deadline;
        if self.stage == Stage::Asked && (alone || late) {
            if !alone {
                process::signal_all(libc::SIGKILL);
                if let Some(cgroups) = cgroups {
                    cgroups.kill_all();
                }
            }
            (self.stage, self.deadline) = (Stage::Killed, now + KILL);
        }
        if self.stage == Stage::Killed && (alone || now >= self.deadline) {
            (self.stage, self.deadline) = (Stage::Drained, now + DRAIN);
        }
        self.stage == Stage::Drained && (told || now >= self.deadline)
    }
}

/// Leaves every disk as after a clean unmount.
pub fn close_disks(world: Option<&World>) {
    // In reverse order, so that what is mounted on another mount goes first. The root stays.
    let mounts = world.map(mounts).unwrap_or_default();
    for target in mounts.lines().rev().filter_map(mount_point) {
        if target != "/" {
            // What is busy is made safe by the sync below.
            let _ = unmount(&target, 0);
        }
    }
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::sync() };
    if let Some(world) = world {
        // The root cannot be unmounted by who lives in it. Frozen, its upper layer is the same on
        // disk as unmounted: everything written, and nothing in the journal.
        if let Err(error) = freeze(&world.upper) {
            log::error(&format!("freezing the upper layer: {error}"));
        }
    }
}

/// What is mounted, as agentd's own /proc has it: in the workload's there may be no agentd.
fn mounts(world: &World) -> String {
    let mut text = String::new();
    let (proc, path) = (world.proc.as_raw_fd(), c"self/mountinfo");
    if let Ok(file) = fd::open_at(proc, path, libc::O_RDONLY, 0) {
        // What was read until an error is unmounted.
        let _ = File::from(file).read_to_string(&mut text);
    }
    text
}

/// The fifth field of a line of mountinfo, with its octal escapes undone.
fn mount_point(line: &str) -> Option<String> {
    let field = line.split(' ').nth(4)?;
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        let digits = match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..]) => Some([a, b, c]),
            _ => None,
        };
        match digits {
            Some(digits) => {
                rest = &tail[3..];
                bytes.push(
                    digits
                        .iter()
                        .fold(0, |sum, digit| (sum << 3) | (**digit - b'0')),
                );
            }
            None => bytes.push(*first),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::mount_point;

    #[test]
    fn mount_points_are_unescaped() {
        let line = |field| format!("36 35 98:0 / {field} rw,noatime - ext4 /dev/vdc rw");
        let read = |field| mount_point(&line(field));
        assert_eq!(read("/mnt"), Some("/mnt".into()));
        assert_eq!(read(r"/a\040b\134\012"), Some("/a b\\\n".into()));
        assert_eq!(read(r"/a\04"), Some(r"/a\04".into()));
        assert_eq!(mount_point("1 2 3"), None);
    }
}
