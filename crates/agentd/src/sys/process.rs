//! Signals to others and the end of children.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;

use super::check;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Code(i32),
    Signal(i32),
}

/// The next child that has ended.
pub enum Reaped {
    Child(libc::pid_t, Status),
    /// Children are left, none has ended.
    Busy,
    /// There are no children.
    None,
}

pub fn reap() -> Reaped {
    let mut status = 0;
    // SAFETY: `status` is writable.
    match unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) } {
        0 => Reaped::Busy,
        -1 => Reaped::None,
        pid if libc::WIFSIGNALED(status) => {
            Reaped::Child(pid, Status::Signal(libc::WTERMSIG(status)))
        }
        pid => Reaped::Child(pid, Status::Code(libc::WEXITSTATUS(status))),
    }
}

/// Signals the process group `group`; that there is none any more is no error.
pub fn signal_group(group: libc::pid_t, signal: i32) {
    // 0 and 1 would mean agentd's own group or everything.
    if group > 1 {
        // SAFETY: takes no pointers.
        unsafe { libc::kill(-group, signal) };
    }
}

/// Signals one process.
pub fn signal(pid: libc::pid_t, signal: i32) {
    if pid > 1 {
        // SAFETY: takes no pointers.
        unsafe { libc::kill(pid, signal) };
    }
}

/// Signals every process but agentd.
pub fn signal_all(signal: i32) {
    // SAFETY: takes no pointers; from PID 1, -1 reaches everything else and not itself.
    unsafe { libc::kill(-1, signal) };
}

/// Gives every signal its default action, ignores SIGPIPE, blocks SIGCHLD and returns the
/// descriptor on which it is read instead.
pub fn take_signals() -> io::Result<OwnedFd> {
    for signal in 1..=64 {
        let action = match signal {
            libc::SIGPIPE => libc::SIG_IGN,
            _ => libc::SIG_DFL,
        };
        // SAFETY: neither action runs code of ours. SIGKILL, SIGSTOP and the two signals that the
        // C library keeps for itself refuse, which is fine.
        unsafe { libc::signal(signal, action) };
    }
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initializes `set`; the others read it or add to it.
    let fd = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
        check(libc::sigprocmask(
            libc::SIG_SETMASK,
            set.as_ptr(),
            ptr::null_mut(),
        ))?;
        check(libc::signalfd(
            -1,
            set.as_ptr(),
            libc::SFD_CLOEXEC | libc::SFD_NONBLOCK,
        ))?
    };
    // SAFETY: the call succeeded, so `fd` is open and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Resets the machine at once. The VMM ends at a reset.
pub fn reset() -> ! {
    loop {
        // SAFETY: takes no pointers. It returns only on failure, and PID 1 must not end: the
        // kernel would panic instead.
        unsafe {
            libc::reboot(libc::RB_AUTOBOOT);
            libc::sleep(1);
        }
    }
}
