//! From a checked request to a running process: everything is prepared, then one clone, then in
//! the child nothing but system calls until the program image is replaced.

use std::ffi::{c_long, c_void, CString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr;
use std::rc::Rc;

use super::request::Request;
use super::terminal::{self, Terminal};
use super::users::Identity;
use crate::cgroup::Cgroup;
use crate::confine::Confinement;
use crate::sys::{fd, raw};

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
    /// A resource limit; which one is the detail.
    Limit,
}

/// Stage and errno, as they come through the report pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    pub stage: Stage,
    pub detail: u8,
    pub errno: i32,
}

/// Bytes of a report on the pipe; below PIPE_BUF, so it arrives whole.
pub const REPORT: usize = 6;

impl Report {
    fn new(stage: Stage, errno: i32) -> Report {
        Report {
            stage,
            detail: 0,
            errno,
        }
    }

    fn to_bytes(self) -> [u8; REPORT] {
        let [a, b, c, d] = self.errno.to_ne_bytes();
        [self.stage as u8, self.detail, a, b, c, d]
    }

    pub fn from_bytes(bytes: [u8; REPORT]) -> Report {
        let [stage, detail, errno @ ..] = bytes;
        Report {
            stage: match stage {
                1 => Stage::Directory,
                2 => Stage::Program,
                3 => Stage::Interpreter,
                4 => Stage::Limit,
                _ => Stage::Setup,
            },
            detail,
            errno: i32::from_ne_bytes(errno),
        }
    }
}

/// agentd's own standard input is /dev/null, opened when nobody could have removed it yet.
const NULL: RawFd = libc::STDIN_FILENO;

/// Everything the child reads, in the form in which the kernel wants it.
pub struct Plan {
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
    request: Rc<Request>,
    identity: Rc<Identity>,
    confinement: Option<Rc<Confinement>>,
    stdio: [RawFd; 3],
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

    pub fn from_descriptors(mut rest: impl Iterator<Item = OwnedFd>) -> Option<Ends> {
        let ends = Ends {
            report: rest.next()?,
            outputs: [rest.next()?, rest.next()?],
            stdin: rest.next(),
        };
        rest.next().is_none().then_some(ends)
    }
}

/// A child that has agentd's memory until it executes its program, or ends: what it reads, and its stack. To be
/// kept until then.
pub struct Launch {
    plan: Plan,
    proc: RawFd,
    stack: Vec<u128>,
}

/// Bytes of the stack: the child's few functions take a tenth of it.
const STACK: usize = 32 << 10;

/// Starts a program. Returns as soon as there is a process; whether the program could be executed
/// comes through the report: executing may wait for a file system, and the agent must not.
///
/// The child does not get a copy of agentd's memory, which would be most of the work, but the memory itself,
/// as with vfork(2). Other than there agentd goes on meanwhile.
pub fn spawn(
    pipes: Pipes,
    plan: Plan,
    cgroup: Option<&Cgroup>,
    proc: &OwnedFd,
) -> io::Result<(Spawned, Box<Launch>)> {
    let launch = Box::new(Launch {
        plan,
        proc: proc.as_raw_fd(),
        stack: Vec::with_capacity(STACK / size_of::<u128>()),
    });
    let mut arguments = clone_arguments(cgroup);
    arguments.flags |= libc::CLONE_VM as u64;
    arguments.stack = launch.stack.as_ptr() as u64;
    arguments.stack_size = STACK as u64;
    // SAFETY: `launch` is on the heap and returned to be kept. The child makes only system calls, past the C
    // library, and writes to nothing but its stack.
    let pid = unsafe { raw::clone(&arguments, enter, (&raw const *launch).cast()) }
        .map_err(io::Error::from_raw_os_error)?;
    Ok((pipes.spawned(pid), launch))
}

/// Where the child begins.
///
/// SAFETY: `launch` is one.
unsafe extern "C" fn enter(launch: *const c_void) -> ! {
    // SAFETY: the contract of this function, and of `spawn`.
    unsafe {
        let launch = &*launch.cast::<Launch>();
        become_program(&launch.plan, settle(launch.proc))
    }
}

impl Plan {
    pub fn new(
        request: &Rc<Request>,
        identity: &Rc<Identity>,
        confinement: Option<&Rc<Confinement>>,
        ends: &Ends,
    ) -> Plan {
        let [stdout, stderr] = &ends.outputs;
        Plan {
            argv: pointers(&request.argv),
            envp: pointers(&request.env),
            request: Rc::clone(request),
            identity: Rc::clone(identity),
            confinement: confinement.cloned(),
            stdio: [
                ends.stdin.as_ref().map_or(NULL, AsRawFd::as_raw_fd),
                stdout.as_raw_fd(),
                stderr.as_raw_fd(),
            ],
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

/// For a child that is born in its control group: there is no moment in which it is outside.
fn clone_arguments(cgroup: Option<&Cgroup>) -> libc::clone_args {
    // SAFETY: all-zero bytes are a valid clone_args: nothing asked for.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.exit_signal = libc::SIGCHLD as u64;
    if let Some(group) = cgroup {
        arguments.flags = CLONE_INTO_CGROUP;
        arguments.cgroup = group.directory().as_raw_fd() as u64;
    }
    arguments
}

/// Forks: 0 in the child, which has its own copy of everything.
pub fn fork(cgroup: Option<&Cgroup>) -> io::Result<libc::pid_t> {
    let arguments = clone_arguments(cgroup);
    let size = size_of::<libc::clone_args>();
    // SAFETY: without CLONE_VM this is fork. The C library does not know of it, but there are no other threads
    // than those of `attached::relay` and `attached::tell`, which hold nothing that a child could miss.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &arguments, size) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        // A pid is at most 2^22.
        pid => Ok(pid as libc::pid_t),
    }
}

/// The child's half. Allocates nothing, takes no lock, and does not call the C library: its memory may be agentd's.
///
/// # Safety
///
/// To be called in a child of agentd's alone, with a `plan` that stays.
pub unsafe fn become_program(plan: &Plan, settled: Result<(), Report>) -> ! {
    // SAFETY: the contract of this function.
    let failure = unsafe {
        match settled.and_then(|()| prepare(plan)) {
            Err(failure) => failure,
            Ok(()) => execute(plan),
        }
    };
    give_up(plan, failure)
}

/// The child's half where no program is executed: calls `work` and ends with the code it returns.
///
/// # Safety
///
/// As for `become_program`, in a child that was forked.
pub unsafe fn become_helper(
    plan: &Plan,
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

fn give_up(plan: &Plan, failure: Report) -> ! {
    let bytes = failure.to_bytes();
    let write = [plan.report as usize, bytes.as_ptr() as usize, REPORT, 0, 0];
    // SAFETY: `bytes` is readable. What cannot be told shows as an end by 127.
    let _ = unsafe { raw::call(libc::SYS_write, write) };
    raw::exit(127)
}

/// A call that has to succeed.
///
/// SAFETY: as for `raw::call`.
unsafe fn must(number: c_long, arguments: [usize; 3], stage: Stage) -> Result<(), Report> {
    let [a, b, c] = arguments;
    // SAFETY: the contract of this function.
    match unsafe { raw::call(number, [a, b, c, 0, 0]) } {
        Ok(_) => Ok(()),
        Err(errno) => Err(Report::new(stage, errno)),
    }
}

/// What a child does whatever it is to run: it stops being a part of agentd.
///
/// # Safety
///
/// To be called in a child of agentd's alone.
pub unsafe fn settle(proc: RawFd) -> Result<(), Report> {
    /// What the kernel has for a set of signals, in bytes.
    const SIGNALS: usize = 8;
    let none = 0u64;
    // struct sigaction as the kernel has it: handler, flags, restorer, mask. 0 is SIG_DFL.
    let default = [0usize; 4];
    let set_mask = [
        libc::SIG_SETMASK as usize,
        &raw const none as usize,
        0,
        SIGNALS,
        0,
    ];
    let pipe = [
        libc::SIGPIPE as usize,
        default.as_ptr() as usize,
        0,
        SIGNALS,
        0,
    ];
    // SAFETY: what the arguments point to outlives the calls.
    unsafe {
        // A session of its own: signals reach its group, and no terminal of ours.
        must(libc::SYS_setsid, [0; 3], Stage::Setup)?;
        let setup = |errno| Report::new(Stage::Setup, errno);
        raw::call(libc::SYS_rt_sigaction, pipe).map_err(setup)?;
        raw::call(libc::SYS_rt_sigprocmask, set_mask).map_err(setup)?;
        become_killable(proc);
        must(libc::SYS_umask, [0o022, 0, 0], Stage::Setup)
    }
}

/// SAFETY of all calls below: pointers come from `plan`, whose owner outlives the child's use.
unsafe fn prepare(plan: &Plan) -> Result<(), Report> {
    let (request, identity) = (&*plan.request, &*plan.identity);
    let confinement = plan.confinement.as_deref();
    let setup = |errno| Report::new(Stage::Setup, errno);
    // SAFETY: see above.
    unsafe {
        for (target, source) in plan.stdio.into_iter().enumerate() {
            if source as usize != target {
                must(libc::SYS_dup3, [source as usize, target, 0], Stage::Setup)?;
            }
        }
        if request.terminal.is_some() {
            terminal::take(libc::STDOUT_FILENO).map_err(setup)?;
        }
        // Everything of the agent's is close-on-exec already; this holds for mistakes too.
        let others = [3, u32::MAX as usize, libc::CLOSE_RANGE_CLOEXEC as usize];
        let _ = must(libc::SYS_close_range, others, Stage::Setup);
        for (resource, limit) in &request.rlimits {
            // As the kernel numbers them, each below 16.
            let resource = *resource as usize;
            let set = [0, resource, &raw const *limit as usize, 0, 0];
            raw::call(libc::SYS_prlimit64, set).map_err(|errno| Report {
                detail: resource as u8,
                ..Report::new(Stage::Limit, errno)
            })?;
        }
        // Not through the C library, whose versions of these three signal its threads, too.
        let (groups, gid, uid) = (&identity.groups, identity.gid, identity.uid);
        let list = [groups.len(), groups.as_ptr() as usize, 0];
        must(libc::SYS_setgroups, list, Stage::Setup)?;
        must(libc::SYS_setresgid, [gid as usize; 3], Stage::Setup)?;
        if let Some(confinement) = confinement {
            confinement.lower_ceiling().map_err(setup)?;
        }
        must(libc::SYS_setresuid, [uid as usize; 3], Stage::Setup)?;
        let cwd = [request.cwd.as_ptr() as usize, 0, 0];
        must(libc::SYS_chdir, cwd, Stage::Directory)?;
        match confinement {
            Some(confinement) => confinement.enter(uid).map_err(setup),
            None => Ok(()),
        }
    }
}

/// Undoes agentd's own protection from the out-of-memory killer, which was inherited.
unsafe fn become_killable(proc: RawFd) {
    let path = c"self/oom_score_adj".as_ptr() as usize;
    let flags = (libc::O_WRONLY | libc::O_CLOEXEC) as usize;
    let score = c"0".as_ptr() as usize;
    // SAFETY: constant C strings and one byte; a failure leaves the score as it is.
    unsafe {
        if let Ok(file) = raw::call(libc::SYS_openat, [proc as usize, path, flags, 0, 0]) {
            let _ = raw::call(libc::SYS_write, [file, score, 1, 0, 0]);
            let _ = raw::call(libc::SYS_close, [file, 0, 0, 0, 0]);
        }
    }
}

/// Tries the candidates as execvp(3) does; returns only if none could be executed.
unsafe fn execute(plan: &Plan) -> Report {
    let mut failure = Report::new(Stage::Program, libc::ENOENT);
    for candidate in &plan.request.candidates {
        let path = candidate.as_ptr() as usize;
        let (argv, envp) = (plan.argv.as_ptr() as usize, plan.envp.as_ptr() as usize);
        // SAFETY: see `prepare`.
        match unsafe { raw::call(libc::SYS_execve, [path, argv, envp, 0, 0]) } {
            // It does not return if it succeeds.
            Ok(_) | Err(libc::ENOENT | libc::ENOTDIR) => {}
            // Another directory may have one that may be run.
            Err(libc::EACCES) => failure.errno = libc::EACCES,
            Err(other) => {
                failure.errno = other;
                return failure;
            }
        }
    }
    // Looked at only now, because most programs are in one of the last directories.
    let exists = |candidate: &CString| {
        let here = libc::AT_FDCWD as usize;
        let look = [here, candidate.as_ptr() as usize, libc::F_OK as usize, 0, 0];
        // SAFETY: see `prepare`.
        unsafe { raw::call(libc::SYS_faccessat, look) }.is_ok()
    };
    if failure.errno == libc::ENOENT && plan.request.candidates.iter().any(exists) {
        return Report::new(Stage::Interpreter, libc::ENOENT);
    }
    failure
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
            Stage::Limit,
        ] {
            let report = Report {
                detail: 7,
                ..Report::new(stage, 13)
            };
            assert_eq!(Report::from_bytes(report.to_bytes()), report);
        }
    }
}
