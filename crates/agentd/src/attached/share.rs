//! A directory or file of the host: FUSE, whose messages pass as they are through a console port; or a device of
//! virtio-fs has them, and the port is for the greeting alone.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use super::relay::Relay;
use super::tell::Teller;
use super::PORT_MAX;
use crate::boot::open_port;
use crate::channel::{Invalid, Map};
use crate::exec::Accounts;
use crate::sys::mount::mount;
use crate::sys::{self, fd};

/// What the stream begins with, before any message: these bytes, then user and group of the files whose owner
/// nobody has set, 32 bits each, little endian. The host cannot know them: names are the image's.
const GREETING: [u8; 4] = *b"MSBF";

/// How long the host may take until it has its end of the port open.
const DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug, PartialEq, Eq)]
pub struct Share {
    port: String,
    /// The tag of its device, if the machine has one for it.
    device: Option<String>,
    /// As a program's user; None: root.
    owner: Option<String>,
    pub is_file: bool,
    /// Programs are told what the host changes: of a directory.
    watch: bool,
}

impl Share {
    pub fn parse(map: &Map, is_file: bool) -> Result<Share, Invalid> {
        let port: &str = map.field("port")?;
        if !(1..=PORT_MAX).contains(&port.len()) {
            return Err(Invalid(format!("`port` is not 1 to {PORT_MAX} bytes")));
        }
        let owner: Option<&str> = map.field("owner")?;
        let device: Option<&str> = match map.get("device") {
            None => None,
            Some(_) => map.field("device")?,
        };
        if device.is_some_and(|tag| !is_tag(tag)) {
            return Err(Invalid(format!(
                "`device` is not 1 to {PORT_MAX} letters and digits"
            )));
        }
        let watch: Option<bool> = match map.get("watch") {
            None => None,
            Some(_) => map.field("watch")?,
        };
        Ok(Share {
            port: port.to_owned(),
            // The kernel takes the root of such a mount for a directory, and is told nothing that it has not asked.
            device: device
                .filter(|_| !is_file && watch != Some(true))
                .map(str::to_owned),
            watch: watch == Some(true) && !is_file,
            owner: owner.map(str::to_owned),
            is_file,
        })
    }

    /// Mounts it at `target`, whose own path is `path`, and starts what carries its messages.
    pub fn mount(&self, target: &str, path: &[u8], flags: libc::c_ulong) -> io::Result<()> {
        let port = open_port(&self.port, DEADLINE)?;
        await_host(&port)?;
        if let Some(tag) = &self.device {
            self.greet(&port)?;
            // Everybody may use it, and the kernel decides who may do what: such mounts have no other way.
            mount(tag, target, "virtiofs", flags, "")?;
            let _ = tune();
            return Ok(());
        }
        let device = fd::open(c"/dev/fuse", libc::O_RDWR | libc::O_NONBLOCK)?;
        let kind = match self.is_file {
            true => libc::S_IFREG,
            false => libc::S_IFDIR,
        };
        // The kernel decides who may do what, by the owners and modes that it is told.
        let options = format!(
            "fd={},rootmode={kind:o},user_id=0,group_id=0,allow_other,default_permissions",
            device.as_raw_fd()
        );
        let at_first = match self.watch {
            // What only tells is done in another mount of it.
            true => flags & !libc::MS_RDONLY,
            false => flags,
        };
        mount("share", target, "fuse", at_first, &options)?;
        self.greet(&port)?;
        let mut sender = None;
        if self.watch {
            let (teller, batches) = Teller::new(path, flags)?;
            teller.start()?;
            sender = Some(batches);
        }
        Relay::new(device, port, sender).start()?;
        // Without it, it is slower.
        let _ = tune();
        Ok(())
    }

    fn greet(&self, port: &OwnedFd) -> io::Result<()> {
        let (uid, gid) = self.owner_ids();
        let greeting = [GREETING, uid.to_le_bytes(), gid.to_le_bytes()].concat();
        match fd::write(port, &greeting) {
            fd::Moved::Bytes(count) if count == greeting.len() => Ok(()),
            _ => Err(io::Error::other(format!("{} takes nothing", self.port))),
        }
    }

    /// User and group of what nobody has given an owner.
    pub fn owner_ids(&self) -> (u32, u32) {
        // Who does not exist owns nothing, and is told so by the first program that is to run as that user.
        let owner = Accounts::read().resolve(self.owner.as_deref());
        owner.map_or((0, 0), |owner| (owner.uid, owner.gid))
    }
}

/// Whether it can name a device: no more than that passes into a mount.
fn is_tag(text: &str) -> bool {
    let mut bytes = text.bytes();
    (1..=PORT_MAX).contains(&text.len()) && bytes.all(|byte| byte.is_ascii_alphanumeric())
}

/// What the kernel may do with the share that was mounted last: read ahead in KiB as much as a message takes, instead of 128; and
/// have of all dirty pages not one in a hundred, as of file systems that anybody may serve, but half.
const TUNED: [(&str, &str); 2] = [("read_ahead_kb", "1024"), ("max_ratio", "50")];

fn tune() -> io::Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    if let Some(device) = last_share(&mounts) {
        for (name, value) in TUNED {
            std::fs::write(format!("/sys/class/bdi/{device}/{name}"), value)?;
        }
    }
    Ok(())
}

/// Its device, `MAJOR:MINOR`, as `/proc/PID/mountinfo` has it (proc_pid_mountinfo(5)): mounts come in the order in which they
/// were made.
fn last_share(mounts: &str) -> Option<&str> {
    let kinds = [" - fuse share ", " - virtiofs "];
    let ours = |line: &&str| kinds.iter().any(|kind| line.contains(kind));
    mounts.lines().rfind(ours)?.split(' ').nth(2)
}

/// Waits until somebody is at the other end: before, the port takes nothing and looks as if it had been left.
fn await_host(port: &impl AsRawFd) -> io::Result<()> {
    let pause = Duration::from_millis(1);
    let mut waited = Duration::ZERO;
    loop {
        let mut poll = libc::pollfd {
            fd: port.as_raw_fd(),
            events: 0,
            revents: 0,
        };
        // SAFETY: `poll` is one valid entry for the whole call.
        sys::check(unsafe { libc::poll(&mut poll, 1, 0) })?;
        if poll.revents & libc::POLLHUP == 0 {
            return Ok(());
        }
        if waited > DEADLINE {
            return Err(io::Error::other("nobody is at the other end of its port"));
        }
        std::thread::sleep(pause);
        waited += pause;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_has_a_device() {
        let mounts = "24 20 0:21 / /proc rw - proc proc rw\n\
            40 20 0:45 / /a rw,nodev - fuse share rw,user_id=0\n\
            41 20 0:46 / /b rw shared:3 - fuse share rw,user_id=0\n\
            42 20 0:47 / /c rw - tmpfs tmpfs rw\n";
        assert_eq!(last_share(mounts), Some("0:46"));
        let device = "43 20 0:48 / /d rw - virtiofs share0 rw\n";
        assert_eq!(last_share(&format!("{mounts}{device}")), Some("0:48"));
        assert_eq!(last_share("24 20 0:21 / /proc rw - proc proc rw\n"), None);
    }
}
