//! A forked part of agentd that works for one request and executes nothing; otherwise it is an exec.

use std::ffi::CString;
use std::os::fd::AsRawFd;
use std::rc::Rc;

use super::request::Request;
use super::spawn::{become_helper, fork, settle, Pipes, Plan};
use super::users::Identity;
use super::{begin, or_refuse, Exec, Refusal};
use crate::channel::Map;
use crate::context::Context;
use crate::files::{carry_out, Operation};

/// Answers OPEN of `files`: a handler, or an END with the reason why not.
pub fn open(context: &mut Context, stream: u32, request: &Map) -> Option<Exec> {
    let started = start(context, stream, request);
    or_refuse(context, stream, started)
}

fn start(context: &mut Context, stream: u32, message: &Map) -> Result<Exec, Refusal> {
    let operation =
        Operation::parse(message).map_err(|what| Refusal::new("invalid_request", what.0))?;
    let Some(world) = &context.world else {
        return Err(Refusal::new("not_configured", "`configure` comes first"));
    };
    let request = Rc::new(request());
    let identity = Rc::new(Identity {
        uid: 0,
        gid: 0,
        groups: vec![0],
        home: Vec::new(),
    });
    let pipes = Pipes::new(true).map_err(Refusal::failed("pipes"))?;
    let cgroup = match &mut context.cgroups {
        Some(cgroups) => Some(cgroups.create().map_err(Refusal::failed("control group"))?),
        None => None,
    };
    let proc = world.proc.as_raw_fd();
    // Confined like a program: it works in places that the workload has prepared.
    let plan = Plan::new(
        &request,
        &identity,
        context.confinement.as_ref(),
        pipes.ends(),
    );
    match fork(cgroup.as_ref()) {
        // SAFETY: this is a forked child of agentd, with 0, 1 and 2 of its own by the time the
        // operation is carried out. Unlike one that executes a program it may allocate: it has
        // everything of the thread that forked it.
        Ok(0) => unsafe { become_helper(&plan, settle(proc), || carry_out(&operation)) },
        Ok(pid) => begin(context, stream, pipes.spawned(pid), cgroup, &request),
        Err(error) => {
            if let (Some(cgroups), Some(cgroup)) = (&mut context.cgroups, cgroup) {
                cgroups.retire(cgroup);
            }
            Err(Refusal::failed("starting a process")(error))
        }
    }
}

/// What an exec is known by; nothing of it is executed.
fn request() -> Request {
    Request {
        argv: Vec::new(),
        candidates: Vec::new(),
        env: Vec::new(),
        cwd: CString::from(c"/"),
        user: None,
        stdin: true,
        terminal: None,
        rlimits: Vec::new(),
        timeout_ms: None,
    }
}
