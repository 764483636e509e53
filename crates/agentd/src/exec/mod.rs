//! The `exec` method: a program with pipes, from the request to the last byte of its output.

pub mod helper;
mod request;
mod running;
mod spare;
pub mod spawn;
mod stdin;
mod terminal;
mod users;

use std::io;
use std::rc::Rc;

use crate::cgroup::Cgroup;
use crate::channel::{Invalid, Map};
use crate::confine::Security;
use crate::context::Context;
use crate::sys::{describe, process, shown};
use request::Request;
use running::Exec;
pub use spare::Spare;
pub use spawn::Launch;
use spawn::{Pipes, Plan, Report, Spawned, Stage};
use terminal::Terminal;
pub use users::Accounts;
use users::Identity;

/// An error of a stream.
struct Refusal {
    kind: &'static str,
    message: String,
    errno: Option<i32>,
}

impl Refusal {
    fn new(kind: &'static str, message: impl Into<String>) -> Refusal {
        Refusal {
            kind,
            message: message.into(),
            errno: None,
        }
    }

    /// What became of the attempt to do `what`.
    fn failed(what: &'static str) -> impl Fn(io::Error) -> Refusal {
        move |error| Refusal {
            kind: "exec_failed",
            message: format!("{what}: {}", describe(&error)),
            errno: error.raw_os_error(),
        }
    }

    fn end(&self) -> Map {
        let mut error = Map::new()
            .with("kind", self.kind)
            .with("message", shown(&self.message));
        if let Some(errno) = self.errno {
            error = error.with("errno", i64::from(errno));
        }
        Map::new().with("error", error)
    }
}

impl From<Invalid> for Refusal {
    fn from(what: Invalid) -> Refusal {
        Refusal::new("invalid_request", what.0)
    }
}

/// Answers OPEN: a handler, or an END with the reason why not.
pub fn open(context: &mut Context, stream: u32, request: &Map) -> Option<Exec> {
    let started = start(context, stream, request);
    or_refuse(context, stream, started)
}

/// What has been started, or an END with the reason why not.
fn or_refuse(context: &mut Context, stream: u32, started: Result<Exec, Refusal>) -> Option<Exec> {
    match started {
        Ok(exec) => Some(exec),
        Err(refusal) => {
            // The stream is open and a refusal is short: the queue takes it.
            let _ = context.guest.end(stream, &refusal.end());
            None
        }
    }
}

fn start(context: &mut Context, stream: u32, message: &Map) -> Result<Exec, Refusal> {
    let mut request = Request::parse(message)?;
    if context.world.is_none() {
        return Err(Refusal::new("not_configured", "`configure` comes first"));
    }
    let identity = Accounts::read()
        .resolve(request.user.as_deref())
        .map_err(|what| Refusal::new("user_not_found", what))?;
    request.add_home(&identity.home);
    let (request, identity) = (Rc::new(request), Rc::new(identity));
    let (spawned, cgroup) = spawn(context, message, &request, &identity)
        .map_err(|(what, error)| Refusal::failed(what)(error))?;
    begin(context, stream, spawned, cgroup, &request)
}

/// Hears of what has been started from now on.
fn begin(
    context: &mut Context,
    stream: u32,
    spawned: Spawned,
    cgroup: Option<Cgroup>,
    request: &Request,
) -> Result<Exec, Refusal> {
    let pid = spawned.pid;
    let exec = Exec::new(stream, spawned, cgroup, request);
    if let Err(error) = exec.watch(context) {
        // Out of memory for readiness: the child is reaped as an orphan.
        process::signal(pid, libc::SIGKILL);
        exec.abandon(context);
        return Err(Refusal::failed("watching")(error));
    }
    context.children.insert(pid, stream);
    Ok(exec)
}

/// The process, by the spare if there is one, else by a fork, with its control group.
fn spawn(
    context: &mut Context,
    message: &Map,
    request: &Rc<Request>,
    identity: &Rc<Identity>,
) -> Result<(Spawned, Option<Cgroup>), (&'static str, io::Error)> {
    if let Some(spare) = context.spare.take() {
        let security = match context.confinement {
            Some(_) => Security::Restricted,
            None => Security::Default,
        };
        match spare.start(message, request, identity, security) {
            Ok(started) => return Ok(started),
            Err(spare) => spare.end(&mut context.cgroups),
        }
    }
    let Some(world) = &context.world else {
        return Err(("starting a process", io::ErrorKind::NotFound.into()));
    };
    let pipes = match request.terminal {
        Some(size) => Terminal::open(&world.terminals, size, identity.uid)
            .and_then(|terminal| Pipes::of_terminal(terminal, request.stdin))
            .map_err(|error| ("terminal", error))?,
        None => Pipes::new(request.stdin).map_err(|error| ("pipes", error))?,
    };
    let cgroup = match &mut context.cgroups {
        Some(cgroups) => Some(cgroups.create().map_err(|error| ("control group", error))?),
        None => None,
    };
    let confinement = context.confinement.as_ref();
    let plan = Plan::new(request, identity, confinement, pipes.ends());
    match spawn::spawn(pipes, plan, cgroup.as_ref(), &world.proc) {
        Ok((spawned, launch)) => {
            context.launches.insert(spawned.pid, launch);
            Ok((spawned, cgroup))
        }
        Err(error) => {
            if let (Some(cgroups), Some(cgroup)) = (&mut context.cgroups, cgroup) {
                cgroups.retire(cgroup);
            }
            Err(("starting a process", error))
        }
    }
}

/// Turns a child's report into the error of its stream.
fn explain(report: Report, program: &str, cwd: &str) -> Refusal {
    let reason = describe(&std::io::Error::from_raw_os_error(report.errno));
    let (kind, message) = match (report.stage, report.errno) {
        (Stage::Directory, _) => ("bad_cwd", format!("{cwd}: {reason}")),
        (Stage::Limit, libc::EPERM) => (
            "exec_failed",
            format!(
                "the hard limit of {} is above the guest's maximum",
                request::resource_name(report.detail)
            ),
        ),
        (Stage::Limit, _) => (
            "exec_failed",
            format!(
                "the limit of {}: {reason}",
                request::resource_name(report.detail)
            ),
        ),
        (Stage::Setup, _) => ("exec_failed", format!("preparing the process: {reason}")),
        (Stage::Interpreter, _) => (
            "not_found",
            format!("{program}: its interpreter does not exist"),
        ),
        (Stage::Program, libc::ENOENT | libc::ENOTDIR) => {
            ("not_found", format!("{program}: {reason}"))
        }
        (Stage::Program, libc::EACCES | libc::EPERM) => {
            ("permission_denied", format!("{program}: {reason}"))
        }
        (Stage::Program, _) => ("exec_failed", format!("{program}: {reason}")),
    };
    Refusal {
        kind,
        message,
        errno: Some(report.errno),
    }
}
