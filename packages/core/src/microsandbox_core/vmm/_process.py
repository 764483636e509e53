"""The VMM as a child process that can never outlive us and inherits nothing it was not given."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from collections.abc import Sequence

from microsandbox_core.errors import BootFailed

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_THP_DISABLE = 41

_libc = ctypes.CDLL(None, use_errno=True)


class Child:
    """A process started by `spawn`. Not for use by several threads."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self._status: int | None = None

    def kill(self) -> None:
        """SIGKILL, unless it has been reaped."""
        if self._status is None:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def reap(self) -> int:
        """Wait for the end; the exit code, negative for a signal."""
        if self._status is None:
            _, status = os.waitpid(self.pid, 0)
            self._status = os.waitstatus_to_exitcode(status)
            os.close(self.pidfd)
        return self._status


def spawn(arguments: Sequence[str], *, inherit: Sequence[int], output: int) -> Child:
    """Run `arguments[0]` with these descriptors, `output` as stdout and stderr, and nothing else.

    The child gets its own session (so that a terminal's Ctrl-C does not reach it), no new
    privileges, no core dumps, an empty environment, and SIGKILL when the calling thread ends.
    Call from a process with one thread: the child runs Python between fork and exec.
    Raises `BootFailed` when the program cannot be run.
    """
    parent = os.getpid()
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    report, complain = os.pipe2(os.O_CLOEXEC)
    # Whoever ends us here would leave a child that still has all our descriptors, locks among them.
    held = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    pid = os.fork()
    if pid == 0:
        try:
            _become(arguments, inherit, output, null, complain, parent)
        except OSError as error:
            os.write(complain, str(error.errno).encode())
        finally:
            os._exit(127)
    os.close(complain)
    os.close(null)
    child = Child(pid)
    with os.fdopen(report, "rb") as pipe:
        failure = pipe.read(16)  # ends empty when exec() closes the other end
    signal.pthread_sigmask(signal.SIG_SETMASK, held)
    if failure:
        child.reap()
        raise BootFailed(
            f"cannot run {arguments[0]}: {os.strerror(int(failure))}",
            stage="spawn",
            hint="run `msb doctor` to see what this machine lacks",
        )
    return child


def _become(
    arguments: Sequence[str], inherit: Sequence[int], output: int, null: int, complain: int, parent: int
) -> None:
    os.setsid()
    # The order matters: the parent may have died before the request for its death signal took hold.
    if _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:
        os._exit(127)
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    # QEMU asks for huge pages for translated code: memory that most sandboxes never fill. Old kernels refuse.
    _libc.prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGPIPE, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    os.dup2(null, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    wanted = sorted({*inherit, complain})
    start = 3
    for descriptor in wanted:
        os.closerange(start, descriptor)
        start = descriptor + 1
    os.closerange(start, os.sysconf("SC_OPEN_MAX"))
    for descriptor in inherit:
        os.set_inheritable(descriptor, True)
    os.execve(arguments[0], list(arguments), {"LC_ALL": "C"})
