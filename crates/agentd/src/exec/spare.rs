//! A process that is there before a program is asked for. Forking, with a control group, is most of
//! what a restored machine has to do for its first program; in a template it is done once for all.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::rc::Rc;

use super::request::Request;
use super::spawn::{become_program, fork, settle, Ends, Pipes, Plan, Spawned};
use super::users::Identity;
use crate::cgroup::{Cgroup, Cgroups};
use crate::channel::{decode, encode, Field, Invalid, Map, Value};
use crate::confine::Security;
use crate::sys::fd::{self, Moved};
use crate::sys::process;

/// A request that is longer is left to a fork: it might not fit into the pipe at once.
const MESSAGE_MAX: usize = 32 << 10;
/// What the spare keeps open has these numbers and those behind them: above all that is agentd's, below
/// those for which the kernel would make its table larger.
const KEPT: RawFd = 48;

/// A forked child that waits for its program. It has the pipes that this will have, because making them and
/// handing them over is much of what is left to do.
pub struct Spare {
    pub pid: libc::pid_t,
    order: OwnedFd,
    spawned: Spawned,
    cgroup: Option<Cgroup>,
}

impl Spare {
    pub fn new(cgroups: &mut Option<Cgroups>, proc: &OwnedFd) -> io::Result<Spare> {
        let (theirs, order) = fd::pipe()?;
        fd::set_nonblocking(&order, true)?;
        let pipes = Pipes::new(true)?;
        let cgroup = cgroups.as_mut().map(Cgroups::create).transpose()?;
        let pid = fork(cgroup.as_ref())?;
        if pid == 0 {
            // SAFETY: this is a forked child of agentd.
            unsafe { wait(&theirs, pipes.ends(), proc) }
        }
        Ok(Spare {
            pid,
            order,
            spawned: pipes.spawned(pid),
            cgroup,
        })
    }

    /// Lets it become the program. It comes back if it cannot: it has no terminal, or cannot be told.
    pub fn start(
        mut self,
        message: &Map,
        request: &Request,
        identity: &Identity,
        security: Security,
    ) -> Result<(Spawned, Option<Cgroup>), Spare> {
        if request.terminal.is_some() {
            return Err(self);
        }
        let number = |id: &u32| Value::from(u64::from(*id));
        let order = encode(
            &Map::new()
                // Encoded on its own, because it may be as deeply nested as a message may be.
                .with("request", Value::Bin(encode(message)))
                .with("uid", u64::from(identity.uid))
                .with("gid", u64::from(identity.gid))
                .with(
                    "groups",
                    identity.groups.iter().map(number).collect::<Vec<_>>(),
                )
                .with("home", Value::Bin(identity.home.clone()))
                .with("security", security.name()),
        );
        if order.len() > MESSAGE_MAX || fd::write(&self.order, &order) != Moved::Bytes(order.len())
        {
            return Err(self);
        }
        if !request.stdin {
            self.spawned.stdin = None;
        }
        Ok((self.spawned, self.cgroup))
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
unsafe fn wait(order: &OwnedFd, ends: &Ends, proc: &OwnedFd) -> ! {
    // SAFETY: the contract of this function; the calls take no pointers but those of `plan`.
    unsafe {
        let settled = settle(proc.as_raw_fd());
        let mut kept = KEPT;
        for each in [order.as_raw_fd()].into_iter().chain(ends.descriptors()) {
            if libc::fcntl(each, libc::F_DUPFD_CLOEXEC, kept) != kept {
                libc::_exit(127)
            }
            kept += 1;
        }
        // Open here, agentd's port would stay open when agentd closes it.
        libc::syscall(libc::SYS_close_range, 3, KEPT - 1, 0);
        libc::syscall(libc::SYS_close_range, kept, u32::MAX, 0);
        let mut mine = (KEPT..kept).map(|each| OwnedFd::from_raw_fd(each));
        if let Some((plan, _ends)) = mine.next().and_then(|order| receive(order, mine)) {
            become_program(&plan, settled);
        }
        libc::_exit(127)
    }
}

/// The one message. None if agentd has ended this instead, which leaves nobody to be told.
fn receive(order: OwnedFd, ends: impl Iterator<Item = OwnedFd>) -> Option<(Plan, Ends)> {
    let mut message = Vec::new();
    File::from(order).read_to_end(&mut message).ok()?;
    let message = decode(&message).ok()?;
    let (request, identity) = read(&message).ok()?;
    // It was forked before anybody knew which.
    let confinement = Security::read(&message).ok()?.confinement().map(Rc::new);
    let ends = Ends::from_descriptors(ends.take(if request.stdin { 4 } else { 3 }))?;
    let plan = Plan::new(
        &Rc::new(request),
        &Rc::new(identity),
        confinement.as_ref(),
        &ends,
    );
    Some((plan, ends))
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
