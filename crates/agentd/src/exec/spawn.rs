//! From a checked request to a running process: everything is prepared, then one clone, then in
//! the child nothing but system calls until the program image is replaced.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr;

use super::request::Request;
use super::terminal::{self, Terminal};
use super::users::Identity;
use crate::cgroup::Cgroup;
use crate::sys::fd;

/// A process between clone and exec.
pub struct Spawned {
    pub pid: libc::pid_t,
    /// End of file: the program runs. A `Report`: it does not.
    pub report: OwnedFd,
    pub stdin: Option<OwnedFd>,
    /// Of a terminal there is one.
    pub outputs: [Option<OwnedFd>; 2],
    /// The program's side of its terminal: held, so that it does not end when nobody has it open for a while.
    pub terminal: Option<OwnedFd>,
}

/// What a child was doing when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Setup,
    Directory,
    Program,
    /// The program is there, what it names to run it with is not.
    Interpreter,
}

/// Stage and errno, as they come through the report pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    pub stage: Stage,
    pub errno: i32,
}

/// Bytes of a report on the pipe; below PIPE_BUF, so it arrives whole.
pub const REPORT: usize = 5;

impl Report {
    fn to_bytes(self) -> [u8; REPORT] {
        let [a, b, c, d] = self.errno.to_ne_bytes();
        [self.stage as u8, a, b, c, d]
    }

    pub fn from_bytes(bytes: [u8; REPORT]) -> Report {
        let [stage, errno @ ..] = bytes;
        Report {
            stage: match stage {
                1 => Stage::Directory,
                2 => Stage::Program,
                3 => Stage::Interpreter,
                _ => Stage::Setup,
            },
            errno: i32::from_ne_bytes(errno),
        }
    }
}

/// agentd's own standard input is /dev/null, opened when nobody could have removed it yet.
const NULL: RawFd = libc::STDIN_FILENO;

/// Everything the child reads, in the form in which the kernel wants it.
pub struct Plan<'a> {
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
    candidates: &'a [CString],
    cwd: &'a CStr,
    identity: &'a Identity,
    rlimits: &'a [(libc::__rlimit_resource_t, libc::rlimit)],
    stdio: [RawFd; 3],
    /// Whether the output is the terminal that will control the program.
    terminal: bool,
    report: RawFd,
}

/// Both ends of the pipes, or of the terminal, between agentd and a program.
pub struct Pipes {
    report: OwnedFd,
    stdin: Option<OwnedFd>,
    outputs: [Option<OwnedFd>; 2],
    terminal: Option<OwnedFd>,
    ends: Ends,
}

/// The ends that are the program's.
pub struct Ends {
    report: OwnedFd,
    outputs: [OwnedFd; 2],
    stdin: Option<OwnedFd>,
}

impl Pipes {
    pub fn new(with_stdin: bool) -> io::Result<Pipes> {
        let (report, report_end) = fd::pipe()?;
        let stdin_pipe = with_stdin.then(fd::pipe).transpose()?;
        let (stdin_end, stdin) = stdin_pipe.unzip();
        let (stdout, stdout_end) = fd::pipe()?;
        let (stderr, stderr_end) = fd::pipe()?;
        for ours in [&report, &stdout, &stderr].into_iter().chain(&stdin) {
            fd::set_nonblocking(ours, true)?;
        }
        Ok(Pipes {
            report,
            stdin,
            outputs: [Some(stdout), Some(stderr)],
            terminal: None,
            ends: Ends {
                report: report_end,
                outputs: [stdout_end, stderr_end],
                stdin: stdin_end,
            },
        })
    }

    /// The terminal as standard output and error, and, if it is wanted, as standard input.
    pub fn of_terminal(terminal: Terminal, with_stdin: bool) -> io::Result<Pipes> {
        let Terminal { master, slave } = terminal;
        let (report, report_end) = fd::pipe()?;
        fd::set_nonblocking(&report, true)?;
        // Copies, each with its own place in the event loop.
        let copy = |side: &OwnedFd| with_stdin.then(|| side.try_clone()).transpose();
        Ok(Pipes {
            report,
            stdin: copy(&master)?,
            outputs: [Some(master), None],
            ends: Ends {
                report: report_end,
                outputs: [slave.try_clone()?, slave.try_clone()?],
                stdin: copy(&slave)?,
            },
            terminal: Some(slave),
        })
    }

    pub fn ends(&self) -> &Ends {
        &self.ends
    }

    /// Lets go of the program's ends.
    pub fn spawned(self, pid: libc::pid_t) -> Spawned {
        Spawned {
            pid,
            report: self.report,
            stdin: self.stdin,
            outputs: self.outputs,
            terminal: self.terminal,
        }
    }
}

impl Ends {
    /// In the order in which `from_descriptors` takes them.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let [stdout, stderr] = &self.outputs;
        [&self.report, stdout, stderr]
            .into_iter()
            .chain(&self.stdin)
            .map(AsRawFd::as_raw_fd)
            .collect()
    }

    pub fn from_descriptors(descriptors: Vec<OwnedFd>) -> Option<Ends> {
        let mut rest = descriptors.into_iter();
        let ends = Ends {
            report: rest.next()?,
            outputs: [rest.next()?, rest.next()?],
            stdin: rest.next(),
        };
        rest.next().is_none().then_some(ends)
    }
}

/// Starts a program. Returns as soon as there is a process; whether the program could be executed
/// comes through the report: executing may wait for a file system, and the agent must not.
pub fn spawn(
    pipes: Pipes,
    request: &Request,
    identity: &Identity,
    cgroup: Option<&Cgroup>,
    proc: &OwnedFd,
) -> io::Result<Spawned> {
    let plan = Plan::new(request, identity, pipes.ends());
    let pid = clone(cgroup)?;
    if pid == 0 {
        // SAFETY: this is the child of a single-threaded process, and `plan` was made before.
        unsafe {
            let settled = settle(proc.as_raw_fd());
            become_program(&plan, settled)
        }
    }
    Ok(pipes.spawned(pid))
}

impl Plan<'_> {
    pub fn new<'a>(request: &'a Request, identity: &'a Identity, ends: &Ends) -> Plan<'a> {
        let [stdout, stderr] = &ends.outputs;
        Plan {
            argv: pointers(&request.argv),
            envp: pointers(&request.env),
            candidates: &request.candidates,
            cwd: &request.cwd,
            identity,
            rlimits: &request.rlimits,
            stdio: [
                ends.stdin.as_ref().map_or(NULL, AsRawFd::as_raw_fd),
                stdout.as_raw_fd(),
                stderr.as_raw_fd(),
            ],
            terminal: request.terminal.is_some(),
            report: ends.report.as_raw_fd(),
        }
    }
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    let end = [ptr::null()];
    strings
        .iter()
        .map(|text| text.as_ptr())
        .chain(end)
        .collect()
}

/// The C library's constant is too narrow for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Forks, with the child born in its control group: there is no moment in which it is outside.
pub fn clone(cgroup: Option<&Cgroup>) -> io::Result<libc::pid_t> {
    // SAFETY: all-zero bytes are a valid clone_args: nothing asked for.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.exit_signal = libc::SIGCHLD as u64;
    if let Some(group) = cgroup {
        arguments.flags = CLONE_INTO_CGROUP;
        arguments.cgroup = group.directory().as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM this is fork: the child has its own copy of everything. The C
    // library does not know of it, but the child uses only calls that keep no state there.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &arguments,
            std::mem::size_of::<libc::clone_args>(),
        )
    };
    if pid == -1 {
        return Err(io::Error::last_os_error());
    }
    // A pid is at most 2^22.
    Ok(pid as libc::pid_t)
}

/// The child's half. Allocates nothing and takes no lock; every call is async-signal-safe.
///
/// # Safety
///
/// To be called in the child of `clone` alone, with pointers in `plan` that end in null.
pub unsafe fn become_program(plan: &Plan<'_>, settled: Result<(), Report>) -> ! {
    // SAFETY: the contract of this function.
    let failure = unsafe {
        match settled.and_then(|()| prepare(plan)) {
            Err(failure) => failure,
            Ok(()) => execute(plan),
        }
    };
    // SAFETY: the contract of this function.
    unsafe { give_up(plan, failure) }
}

/// The child's half where no program is executed: calls `work` and ends with the code it returns.
///
/// # Safety
///
/// As for `become_program`.
pub unsafe fn become_helper(
    plan: &Plan<'_>,
    settled: Result<(), Report>,
    work: impl FnOnce() -> i32,
) -> ! {
    // SAFETY: the contract of this function.
    unsafe {
        if let Err(failure) = settled.and_then(|()| prepare(plan)) {
            give_up(plan, failure)
        }
        // As executing a program would: the report too, whose end says that all is well.
        libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0);
        libc::_exit(work())
    }
}

/// SAFETY: as for `become_program`.
unsafe fn give_up(plan: &Plan<'_>, failure: Report) -> ! {
    let bytes = failure.to_bytes();
    // SAFETY: `bytes` is readable; _exit runs nothing of the parent's.
    unsafe {
        libc::write(plan.report, bytes.as_ptr().cast(), bytes.len());
        libc::_exit(127)
    }
}

fn must(result: libc::c_int, stage: Stage) -> Result<(), Report> {
    match result {
        -1 => Err(Report {
            stage,
            errno: errno(),
        }),
        _ => Ok(()),
    }
}

/// What a child does whatever it is to run: it stops being a part of agentd.
///
/// # Safety
///
/// To be called in the child of `clone` alone.
pub unsafe fn settle(proc: RawFd) -> Result<(), Report> {
    // SAFETY: `signals` is initialized: all-zero bytes are a valid, empty set on Linux.
    unsafe {
        // A session of its own: signals reach its group, and no terminal of ours.
        must(libc::setsid(), Stage::Setup)?;
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let signals: libc::sigset_t = std::mem::zeroed();
        must(
            libc::sigprocmask(libc::SIG_SETMASK, &signals, ptr::null_mut()),
            Stage::Setup,
        )?;
        become_killable(proc);
        libc::umask(0o022);
    }
    Ok(())
}

/// SAFETY of all calls below: pointers come from `plan`, whose owner outlives the child's use.
unsafe fn prepare(plan: &Plan<'_>) -> Result<(), Report> {
    let identity = plan.identity;
    // SAFETY: see above.
    unsafe {
        for (target, source) in plan.stdio.into_iter().enumerate() {
            must(libc::dup2(source, target as libc::c_int), Stage::Setup)?;
        }
        if plan.terminal {
            must(terminal::take(libc::STDOUT_FILENO), Stage::Setup)?;
        }
        // Everything of the agent's is close-on-exec already; this holds for mistakes too.
        libc::syscall(
            libc::SYS_close_range,
            3,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        );
        for (resource, limit) in plan.rlimits {
            must(libc::setrlimit(*resource, limit), Stage::Setup)?;
        }
        // Not through the C library, whose versions of these three lock and signal its threads.
        let (groups, gid, uid) = (&identity.groups, identity.gid, identity.uid);
        let set_groups = libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr());
        must(set_groups as libc::c_int, Stage::Setup)?;
        let set_gid = libc::syscall(libc::SYS_setresgid, gid, gid, gid);
        must(set_gid as libc::c_int, Stage::Setup)?;
        let set_uid = libc::syscall(libc::SYS_setresuid, uid, uid, uid);
        must(set_uid as libc::c_int, Stage::Setup)?;
        must(libc::chdir(plan.cwd.as_ptr()), Stage::Directory)
    }
}

/// Undoes agentd's own protection from the out-of-memory killer, which was inherited.
unsafe fn become_killable(proc: RawFd) {
    // SAFETY: constant C strings and one byte; a failure leaves the score as it is.
    unsafe {
        let path = c"self/oom_score_adj".as_ptr();
        let file = libc::openat(proc, path, libc::O_WRONLY | libc::O_CLOEXEC);
        if file >= 0 {
            libc::write(file, c"0".as_ptr().cast(), 1);
            libc::close(file);
        }
    }
}

/// Tries the candidates as execvp(3) does; returns only if none could be executed.
unsafe fn execute(plan: &Plan<'_>) -> Report {
    let mut failure = Report {
        stage: Stage::Program,
        errno: libc::ENOENT,
    };
    for candidate in plan.candidates {
        // SAFETY: see `prepare`.
        unsafe { libc::execve(candidate.as_ptr(), plan.argv.as_ptr(), plan.envp.as_ptr()) };
        match errno() {
            libc::ENOENT => {
                // SAFETY: see `prepare`.
                let there = unsafe { libc::access(candidate.as_ptr(), libc::F_OK) } == 0;
                if there {
                    return Report {
                        stage: Stage::Interpreter,
                        errno: libc::ENOENT,
                    };
                }
            }
            libc::ENOTDIR => {}
            // Another directory may have one that may be run.
            libc::EACCES => failure.errno = libc::EACCES,
            other => {
                failure.errno = other;
                return failure;
            }
        }
    }
    failure
}

fn errno() -> i32 {
    // SAFETY: the location is valid in every process.
    unsafe { *libc::__errno_location() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_comes_through_the_pipe_as_it_was() {
        for stage in [
            Stage::Setup,
            Stage::Directory,
            Stage::Program,
            Stage::Interpreter,
        ] {
            let report = Report { stage, errno: 13 };
            assert_eq!(Report::from_bytes(report.to_bytes()), report);
        }
    }
}
