//! The `exec` method: a program with pipes, from the request to the last byte of its output.

pub mod helper;
mod request;
mod running;
mod spare;
mod spawn;
mod stdin;
mod terminal;
mod users;

use std::io;

use crate::cgroup::Cgroup;
use crate::channel::{Invalid, Map};
use crate::context::Context;
use crate::sys::{describe, process};
use request::Request;
use running::Exec;
pub use spare::Spare;
use spawn::{Pipes, Report, Spawned, Stage};
use terminal::Terminal;
use users::{Accounts, Identity};

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

    fn end(&self) -> Map {
        let mut error = Map::new()
            .with("kind", self.kind)
            .with("message", self.message.as_str());
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
    match start(context, stream, request) {
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
    let failed = |what: &'static str| {
        move |error: io::Error| Refusal {
            kind: "exec_failed",
            message: format!("{what}: {}", describe(&error)),
            errno: error.raw_os_error(),
        }
    };
    let pipes = match (request.terminal, &context.world) {
        (Some(size), Some(world)) => Terminal::open(&world.terminals, size, identity.uid)
            .and_then(|terminal| Pipes::of_terminal(terminal, request.stdin))
            .map_err(failed("terminal"))?,
        _ => Pipes::new(request.stdin).map_err(failed("pipes"))?,
    };
    let (spawned, cgroup) = spawn(context, pipes, message, &request, &identity)
        .map_err(|(what, error)| failed(what)(error))?;
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
        return Err(Refusal {
            kind: "exec_failed",
            message: format!("watching: {}", describe(&error)),
            errno: error.raw_os_error(),
        });
    }
    context.children.insert(pid, stream);
    Ok(exec)
}

/// The process, by the spare if there is one, else by a fork, with its control group.
fn spawn(
    context: &mut Context,
    mut pipes: Pipes,
    message: &Map,
    request: &Request,
    identity: &Identity,
) -> Result<(Spawned, Option<Cgroup>), (&'static str, io::Error)> {
    if let Some(spare) = context.spare.take() {
        match spare.start(pipes, message, identity) {
            Ok(started) => return Ok(started),
            Err((spare, unused)) => {
                spare.end(&mut context.cgroups);
                pipes = unused;
            }
        }
    }
    let Some(world) = &context.world else {
        return Err(("starting a process", io::ErrorKind::NotFound.into()));
    };
    let cgroup = match &mut context.cgroups {
        Some(cgroups) => Some(cgroups.create().map_err(|error| ("control group", error))?),
        None => None,
    };
    match spawn::spawn(pipes, request, identity, cgroup.as_ref(), &world.proc) {
        Ok(spawned) => Ok((spawned, cgroup)),
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
