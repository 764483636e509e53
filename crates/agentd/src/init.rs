//! The image's own init: PID 1 of a PID namespace that everything but agentd is in.
//!
//! agentd stays the machine's first process, so an init that signals everybody does not reach it, and
//! one that powers off or reboots ends its namespace (pid_namespaces(7)), which agentd hears of as of
//! the end of any child.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::time::Duration;

use crate::cgroup::Cgroup;
use crate::channel::{Invalid, Map};
use crate::exec::spawn::{fork, settle};
use crate::sys::process::{self, Status};
use crate::sys::{c_bytes, check, fd, mount::mount};

/// Where `auto` looks, in this order.
const USUAL: [&str; 4] = [
    "/sbin/init",
    "/lib/systemd/systemd",
    "/usr/lib/systemd/systemd",
    "/bin/busybox",
];
/// SIGRTMIN+3 as systemd(1) counts: what asks it to halt.
const HALT: i32 = 37;
/// How often an init is looked at that does not listen for its signal yet.
pub const PATIENCE: Duration = Duration::from_millis(20);
/// Soft and hard limit of descriptors, as the kernel's first process has them in a distribution.
const NOFILE: (u64, u64) = (1024, 1 << 19);

/// A checked request.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// None: one of the usual.
    path: Option<PathBuf>,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Request {
    pub fn parse(request: &Map) -> Result<Request, Invalid> {
        let path: Option<&[u8]> = request.field("path")?;
        if path.is_some_and(|path| !path.starts_with(b"/") || path.contains(&0)) {
            return Err(Invalid::new("`path` is not an absolute path"));
        }
        let strings = |key: &str| -> Result<Vec<CString>, Invalid> {
            let items: Vec<&[u8]> = request.field(key)?;
            let items = items.into_iter().map(c_bytes).collect::<Result<_, _>>();
            items.map_err(|_| Invalid(format!("`{key}` has a NUL byte")))
        };
        let env = strings("env")?;
        if !env.iter().all(|item| item.as_bytes().contains(&b'=')) {
            return Err(Invalid::new("`env` is not NAME=value"));
        }
        Ok(Request {
            path: path.map(|path| PathBuf::from(std::ffi::OsStr::from_bytes(path))),
            args: strings("args")?,
            env,
        })
    }
}

/// An init that runs.
pub struct Init {
    pub pid: libc::pid_t,
    pub path: PathBuf,
    signal: i32,
    asked: bool,
}

impl Init {
    /// Starts it, in this control group; from here on every child of agentd is in its namespace.
    /// `stop_signal`: what to ask it with to end, if not what its kind understands.
    pub fn start(
        request: &Request,
        stop_signal: Option<i32>,
        cgroup: Option<&Cgroup>,
        proc: &OwnedFd,
    ) -> io::Result<Init> {
        let path = match &request.path {
            Some(path) => path.clone(),
            None => usual().ok_or_else(|| {
                io::Error::other(format!("the image has none of {}", USUAL.join(", ")))
            })?,
        };
        let program = c_bytes(path.as_os_str().as_bytes())?;
        let name = match is_busybox(&path) && request.args.is_empty() {
            // By its own name it does nothing but list its applets.
            true => c"init".to_owned(),
            false => program.clone(),
        };
        let argv = pointers(std::iter::once(&name).chain(&request.args));
        let envp = pointers(&request.env);
        let (report, theirs) = fd::pipe()?;
        // SAFETY: takes no pointers. Only the children to come are concerned.
        check(unsafe { libc::unshare(libc::CLONE_NEWPID) })?;
        let pid = fork(cgroup)?;
        if pid == 0 {
            // SAFETY: this is a forked child of agentd. with all of its one thread.
            unsafe {
                let error = execute(&program, &argv, &envp, proc);
                let number = error.raw_os_error().unwrap_or(libc::EIO).to_ne_bytes();
                libc::write(theirs.as_raw_fd(), number.as_ptr().cast(), number.len());
                libc::_exit(127)
            }
        }
        drop(theirs);
        let mut number = [0; 4];
        // End of file: it runs. Nothing else of the sandbox does yet, so this may be waited for.
        if File::from(report).read_exact(&mut number).is_ok() {
            return Err(io::Error::from_raw_os_error(i32::from_ne_bytes(number)));
        }
        Ok(Init {
            pid,
            signal: stop_signal.unwrap_or_else(|| signal_of(&path)),
            path,
            asked: false,
        })
    }

    /// Asks it to end, once it listens: before that the kernel keeps the signal from the first process
    /// of a namespace. True while that is still to be done.
    pub fn ask(&mut self, proc: &OwnedFd) -> bool {
        if !self.asked && listens(self.pid, self.signal, proc) {
            self.asked = true;
            process::signal(self.pid, self.signal);
        }
        !self.asked
    }

    /// What its end means, in words.
    pub fn told(&self, status: Status) -> String {
        let how = match status {
            Status::Signal(libc::SIGHUP) => "rebooted".to_owned(),
            Status::Signal(libc::SIGINT) => "powered off".to_owned(),
            Status::Signal(signal) => format!("was killed by signal {signal}"),
            Status::Code(code) => format!("ended with code {code}"),
        };
        format!("init ({}) {how}", self.path.display())
    }
}

/// The child's half; returns only if the program could not be executed.
///
/// # Safety
///
/// To be called in the child of `fork` alone, with pointers that end in null.
unsafe fn execute(
    program: &CStr,
    argv: &[*const libc::c_char],
    envp: &[*const libc::c_char],
    proc: &OwnedFd,
) -> io::Error {
    let quiet = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    // Over the one that shows the machine's processes by numbers which nobody here knows.
    if let Err(error) = mount("proc", "/proc", "proc", quiet, "") {
        return error;
    }
    // SAFETY: the contract of this function; the descriptors belong to this process alone.
    unsafe {
        // The errors of it cannot come from a forked child that has not done it yet.
        let _ = settle(proc.as_raw_fd());
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK;
        if let Ok(console) = fd::open(c"/dev/console", flags) {
            // Non-blocking only to be opened.
            let _ = fd::set_nonblocking(&console, false);
            for target in 0..3 {
                libc::dup2(console.as_raw_fd(), target);
            }
        }
        let (soft, hard) = NOFILE;
        let limit = libc::rlimit {
            rlim_cur: soft,
            rlim_max: hard,
        };
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr());
    }
    io::Error::last_os_error()
}

fn pointers<'a>(strings: impl IntoIterator<Item = &'a CString>) -> Vec<*const libc::c_char> {
    let strings = strings.into_iter().map(|text| text.as_ptr());
    strings.chain([ptr::null()]).collect()
}

fn usual() -> Option<PathBuf> {
    let runs = |path: &PathBuf| {
        fs::metadata(path)
            .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    USUAL.iter().map(PathBuf::from).find(runs)
}

fn is_busybox(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "busybox")
}

/// What asks an init of this kind to power off: the kind is what it is a link to.
fn signal_of(path: &Path) -> i32 {
    let program = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    match program.file_name().map(|name| name.as_bytes()) {
        Some(b"systemd") => HALT,
        Some(b"busybox") => libc::SIGUSR2,
        _ => libc::SIGTERM,
    }
}

/// The number by which a process is known in the innermost namespace it is in.
pub fn inner_pid(pid: libc::pid_t, proc: &OwnedFd) -> Option<libc::pid_t> {
    let status = read(pid, "status", proc).ok()?;
    let numbers = status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))?;
    numbers.split_ascii_whitespace().last()?.parse().ok()
}

fn read(pid: libc::pid_t, name: &str, proc: &OwnedFd) -> io::Result<String> {
    let path = c_bytes(format!("{pid}/{name}").as_bytes())?;
    let mut text = String::new();
    let file = fd::open_at(proc.as_raw_fd(), &path, libc::O_RDONLY, 0)?;
    File::from(file).read_to_string(&mut text)?;
    Ok(text)
}

/// Whether a process catches a signal, blocks it to read it from a descriptor, or waits for one:
/// while it does, the kernel shows what it waits for as not blocked.
fn listens(pid: libc::pid_t, signal: i32, proc: &OwnedFd) -> bool {
    read(pid, "status", proc).is_ok_and(|status| is_heard(&status, signal))
        || read(pid, "syscall", proc).is_ok_and(|call| is_wait(&call))
}

/// Whether a line of /proc/PID/syscall says rt_sigtimedwait, which is sigwaitinfo too.
fn is_wait(call: &str) -> bool {
    let number = call.split_ascii_whitespace().next();
    number.and_then(|number| number.parse().ok()) == Some(libc::SYS_rt_sigtimedwait)
}

fn is_heard(status: &str, signal: i32) -> bool {
    let masks = status.lines().filter_map(|line| {
        let mask = line
            .strip_prefix("SigBlk:")
            .or_else(|| line.strip_prefix("SigCgt:"))?;
        u64::from_str_radix(mask.trim(), 16).ok()
    });
    let all = masks.fold(0, |all, mask| all | mask);
    all >> (signal - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A failed test should say where.
    use super::*;
    use crate::channel::Value;

    #[test]
    fn a_signal_is_heard_if_it_is_caught_or_blocked() {
        let status =
            "Name:\tx\nSigBlk:\t0000001000000000\nSigIgn:\tffff\nSigCgt:\t0000000000000800\n";
        assert!(is_heard(status, 37));
        assert!(is_heard(status, 12));
        assert!(!is_heard(status, 15));
        assert!(!is_heard("", 15));
    }

    #[test]
    fn who_waits_for_signals_is_told_from_who_reads() {
        assert!(is_wait("128 0x5eb308 0x0 0x0 0x8 0x0 0x0 0x7fff 0x4167\n"));
        assert!(!is_wait("0 0x3 0x7ffe 0x1 0x0 0x0 0x0 0x7ffe 0x7f\n"));
        assert!(!is_wait("running\n"));
        assert!(!is_wait(""));
    }

    #[test]
    fn a_kind_is_asked_in_its_own_way() {
        assert_eq!(signal_of(Path::new("/nowhere/systemd")), 37);
        assert_eq!(signal_of(Path::new("/nowhere/busybox")), libc::SIGUSR2);
        assert_eq!(signal_of(Path::new("/nowhere/tini")), libc::SIGTERM);
    }

    #[test]
    fn a_request_is_a_path_arguments_and_an_environment() {
        let with = |path: Value, env: &[u8]| {
            Request::parse(
                &Map::new()
                    .with("path", path)
                    .with("args", vec![Value::Bin(b"--x".to_vec())])
                    .with("env", vec![Value::Bin(env.to_vec())]),
            )
        };
        let path = |bytes: &[u8]| Value::Bin(bytes.to_vec());
        assert_eq!(with(Value::Nil, b"A=b").unwrap().path, None);
        assert!(with(path(b"/sbin/init"), b"A=b").is_ok());
        assert!(with(path(b"init"), b"A=b").is_err());
        assert!(with(path(b"/sbin/init"), b"A").is_err());
        assert!(with(path(b"/in\0it"), b"A=b").is_err());
    }
}
