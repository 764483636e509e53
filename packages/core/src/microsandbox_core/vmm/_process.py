"""The VMM as a child process that can never outlive us and inherits nothing it was not given."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
from collections.abc import Sequence

from microsandbox_core.errors import BootFailed, TemplateFailed
from microsandbox_core.vmm._confine import confine
from microsandbox_core.vmm._handover import Handover, Offer, install

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
        self._handover: Handover | None = None

    def hand_over(self, listener: int, offer: Offer) -> None:
        """Begin the hand-over; see `Handover`, which takes over `listener`. Raises `TemplateFailed`."""
        self._handover = Handover(listener, self.pid, self.pidfd, offer)

    def kill(self) -> None:
        """SIGKILL, unless it has been reaped."""
        if self._status is None:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def reap(self) -> int:
        """Wait for the end; the exit code, negative for a signal."""
        if self._status is None:
            _, status = os.waitpid(self.pid, 0)
            self._status = os.waitstatus_to_exitcode(status)
            if self._handover is not None:
                self._handover.join()  # until then it watches the descriptor
            os.close(self.pidfd)
        return self._status


def spawn(
    arguments: Sequence[str],
    *,
    inherit: Sequence[int],
    output: int,
    readable: Sequence[str] | None,
    offer: Offer | None = None,
) -> Child:
    """Run `arguments[0]` with these descriptors, `output` as stdout and stderr, and nothing else.

    The child gets its own session (so that a terminal's Ctrl-C does not reach it), no new
    privileges, no core dumps, an empty environment, and SIGKILL when the calling thread ends. It can
    open its program's own files and those of the paths `readable`, and connect to nothing, unless they are
    None: see `confine`.
    When it opens what `offer` names it gets the descriptor in it, while this process goes on.
    Call from a process with one thread: the child runs Python between fork and exec.
    Raises `BootFailed` when the program cannot be run, `TemplateFailed` when this host has no such offers.
    """
    parent = os.getpid()
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    report, complain = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # Whoever ends us here would leave a child that still has all our descriptors, locks among them.
    held = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    pid = os.fork()
    if pid == 0:
        try:
            _become(arguments, inherit, output, readable, null, complain, parent, offer is not None)
        except OSError as error:
            complain.send(str(error.errno).encode())
        finally:
            os._exit(127)
    complain.close()
    os.close(null)
    child = Child(pid)
    with report:
        told, listeners, _, _ = socket.recv_fds(report, 16, 1, socket.MSG_CMSG_CLOEXEC)
        if listeners:
            told = report.recv(16)
    # What was told last is empty when exec() closed the other end.
    signal.pthread_sigmask(signal.SIG_SETMASK, held)
    try:
        if offer is not None and not listeners:
            reason = os.strerror(int(told)) if told else "the child was killed"
            raise TemplateFailed(f"a file cannot be offered to {arguments[0]}: {reason}")
        if told:
            raise BootFailed(
                f"cannot run {arguments[0]}: {os.strerror(int(told))}",
                stage="spawn",
                hint="run `msb doctor` to see what this machine lacks",
            )
        if offer is not None:
            child.hand_over(listeners.pop(), offer)
    except BaseException:
        for listener in listeners:
            os.close(listener)
        child.kill()
        child.reap()
        raise
    return child


def _become(
    arguments: Sequence[str],
    inherit: Sequence[int],
    output: int,
    readable: Sequence[str] | None,
    null: int,
    complain: socket.socket,
    parent: int,
    listened_to: bool,
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
    wanted = sorted({*inherit, complain.fileno()})
    start = 3
    for descriptor in wanted:
        os.closerange(start, descriptor)
        start = descriptor + 1
    os.closerange(start, os.sysconf("SC_OPEN_MAX"))
    for descriptor in inherit:
        os.set_inheritable(descriptor, True)
    if readable is not None:
        confine(arguments[0], readable)
    if listened_to:
        socket.send_fds(complain, [b"0"], [install()])
    os.execve(arguments[0], list(arguments), {"LC_ALL": "C"})
