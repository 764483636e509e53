//! A process that is there before a program is asked for. Forking, with a control group, is most of
//! what a restored machine has to do for its first program; in a template it is done once for all.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::request::Request;
use super::spawn::{become_program, clone, settle, Ends, Pipes, Plan, Spawned};
use super::users::Identity;
use crate::cgroup::{Cgroup, Cgroups};
use crate::channel::{decode, encode, Field, Invalid, Map, Value};
use crate::sys::{fd, process};

/// A request that is longer is left to a fork: it might not fit into the socket at once.
const MESSAGE_MAX: usize = 32 << 10;
/// Report, output, errors and input.
const ENDS_MAX: usize = 4;
/// The spare's own descriptor of the socket. Nothing of agentd's is open in it but 0, 1 and 2.
const SOCKET: RawFd = 3;

/// A forked child that waits for its program.
pub struct Spare {
    pub pid: libc::pid_t,
    socket: OwnedFd,
    cgroup: Option<Cgroup>,
}

impl Spare {
    pub fn new(cgroups: &mut Option<Cgroups>, proc: &OwnedFd) -> io::Result<Spare> {
        let (socket, theirs) = fd::message_pair()?;
        let cgroup = cgroups.as_mut().map(Cgroups::create).transpose()?;
        let pid = clone(cgroup.as_ref())?;
        if pid == 0 {
            // SAFETY: this is the child of a single-threaded process.
            unsafe { wait(&theirs, proc) }
        }
        Ok(Spare {
            pid,
            socket,
            cgroup,
        })
    }

    /// Lets it become the program. What it cannot be told comes back, to be forked for.
    pub fn start(
        self,
        pipes: Pipes,
        request: &Map,
        identity: &Identity,
    ) -> Result<(Spawned, Option<Cgroup>), (Spare, Pipes)> {
        let number = |id: &u32| Value::from(u64::from(*id));
        let message = encode(
            &Map::new()
                // Encoded on its own, because it may be as deeply nested as a message may be.
                .with("request", Value::Bin(encode(request)))
                .with("uid", u64::from(identity.uid))
                .with("gid", u64::from(identity.gid))
                .with(
                    "groups",
                    identity.groups.iter().map(number).collect::<Vec<_>>(),
                )
                .with("home", Value::Bin(identity.home.clone())),
        );
        let sent = message.len() <= MESSAGE_MAX
            && fd::send(&self.socket, &message, &pipes.ends().descriptors()).is_ok();
        match sent {
            true => Ok((pipes.spawned(self.pid), self.cgroup)),
            false => Err((self, pipes)),
        }
    }

    /// Ends it. Its end is reaped like that of any child.
    pub fn end(self, cgroups: &mut Option<Cgroups>) {
        process::signal(self.pid, libc::SIGKILL);
        if let (Some(cgroups), Some(cgroup)) = (cgroups, self.cgroup) {
            cgroups.retire(cgroup);
        }
    }
}

/// The child's life.
///
/// # Safety
///
/// To be called in the child of `clone` alone. Unlike one that is forked for a request it may allocate:
/// agentd has one thread, and the child everything of it.
unsafe fn wait(socket: &OwnedFd, proc: &OwnedFd) -> ! {
    // SAFETY: the contract of this function; the calls take no pointers but those of `plan`.
    unsafe {
        let settled = settle(proc.as_raw_fd());
        // Open here, agentd's port would stay open when agentd closes it.
        let kept = libc::dup3(socket.as_raw_fd(), SOCKET, libc::O_CLOEXEC) == SOCKET
            || socket.as_raw_fd() == SOCKET;
        libc::syscall(libc::SYS_close_range, SOCKET + 1, u32::MAX, 0);
        if kept {
            let socket = OwnedFd::from_raw_fd(SOCKET);
            if let Some((request, identity, ends)) = receive(&socket) {
                become_program(&Plan::new(&request, &identity, &ends), settled);
            }
        }
        libc::_exit(127)
    }
}

/// The one message. None if agentd has ended this instead, which leaves nobody to be told.
fn receive(socket: &OwnedFd) -> Option<(Request, Identity, Ends)> {
    let (message, descriptors) = fd::receive::<ENDS_MAX>(socket, MESSAGE_MAX).ok()?;
    let message = decode(&message).ok()?;
    let (request, identity) = read(&message).ok()?;
    Some((request, identity, Ends::from_descriptors(descriptors)?))
}

fn read(message: &Map) -> Result<(Request, Identity), Invalid> {
    let id = |number: u64| u32::try_from(number).map_err(|_| Invalid::new("not an id"));
    let groups: &[Value] = message.field("groups")?;
    let groups = groups
        .iter()
        .map(|item| id(<u64>::read(item).ok_or_else(|| Invalid::new("not a number"))?));
    let identity = Identity {
        uid: id(message.field("uid")?)?,
        gid: id(message.field("gid")?)?,
        groups: groups.collect::<Result<_, _>>()?,
        home: message.field::<&[u8]>("home")?.to_vec(),
    };
    let refused = || Invalid::new("not a request that was accepted before");
    let request = decode(message.field("request")?).map_err(|_| refused())?;
    let mut request = Request::parse(&request).map_err(|_| refused())?;
    request.add_home(&identity.home);
    Ok((request, identity))
}
