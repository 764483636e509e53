"""Starting a supervisor: what has to happen before the VM runs, and nothing else.

No asyncio here and as few imports as possible: a sandbox's start waits for this module.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import NamedTuple

import msgpack

from microsandbox._directory import SandboxDirectory
from microsandbox.errors import StartError, StateError

MESSAGE_LIMIT = 1 << 18
"""Bytes of one message on the lifeline, either way."""


class Launch(NamedTuple):
    """What the supervisor has to know; travels as MessagePack in a memory file. The three descriptors
    are set where they arrive."""

    home: str
    directory: str
    identifier: str
    name: str
    hostname: str
    image_disk: str
    cpus: int
    memory_mib: int
    attached: bool
    ephemeral: bool
    vmm: str
    require_kvm: bool
    cold: bool = False
    lock: int = -1
    lifeline: int = -1
    image_pin: int = -1


class Supervisor:
    """A supervisor process as its creator sees it: a process and the lifeline to it.

    The lifeline is a socket pair of whole messages. The supervisor says ``ready``, ``failed`` or
    ``ended`` on it, the creator ``stop``; its end tells an attached supervisor that its creator is gone.
    """

    def __init__(self, directory: SandboxDirectory, lifeline: socket.socket, pid: int) -> None:
        self.directory = directory
        self.lifeline = lifeline
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self._reaped = False

    def reap(self) -> None:
        """Collect the process, which must have ended or be about to."""
        if not self._reaped:
            self._reaped = True
            try:
                os.waitpid(self.pid, 0)
            except ChildProcessError:
                pass  # the program around us collects its children by itself
            os.close(self.pidfd)

    def close(self) -> None:
        """Let go of the lifeline: an attached sandbox ends by that."""
        self.lifeline.close()


class _Process(NamedTuple):
    """A supervisor that waits for what it is to supervise."""

    pid: int
    lifeline: socket.socket


_prepared: _Process | None = None


def prepare() -> None:
    """Start a supervisor for the next `launch`, so that its interpreter is up by then.

    For a program that is about to launch and then ends: one that is not used goes with this process.
    Does nothing when it cannot be started; `launch` then says why.
    """
    global _prepared
    if _prepared is None:
        try:
            _prepared = _spawn()
        except OSError:
            pass


def launch(asked: Launch, directory: SandboxDirectory, lock: int, image_pin: int) -> Supervisor:
    """Start the supervisor. `lock` (the directory's, held) and `image_pin` (which keeps the image's
    files) pass to it and are closed here in any case.

    Raises `StartError` when the interpreter cannot be run, `StateError` when the log cannot be made.
    """
    try:
        log = os.open(directory.supervisor_log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        os.close(lock)
        os.close(image_pin)
        raise StateError(f"cannot write {directory.supervisor_log}: {error.strerror}") from error
    config = os.memfd_create("msb-config", os.MFD_CLOEXEC)
    try:
        os.write(config, msgpack.packb(asked._asdict(), unicode_errors="surrogateescape"))
        os.lseek(config, 0, os.SEEK_SET)
        process = _hand_over((config, log, lock, image_pin))
    except OSError as error:
        raise StartError(f"cannot start the supervisor: {error.strerror}") from error
    finally:
        for descriptor in (config, log, lock, image_pin):
            os.close(descriptor)
    return Supervisor(directory, process.lifeline, process.pid)


def _hand_over(descriptors: tuple[int, ...]) -> _Process:
    """Give a supervisor what it works with: the one that was prepared, or a new one."""
    global _prepared
    process, _prepared = _prepared, None
    if process is not None:
        try:
            socket.send_fds(process.lifeline, [b"launch"], descriptors)
            return process
        except OSError:
            # Somebody has killed it; another one does as well.
            _discard(process)
    process = _spawn()
    try:
        socket.send_fds(process.lifeline, [b"launch"], descriptors)
    except OSError:
        _discard(process)
        raise
    return process


def _discard(process: _Process) -> None:
    """Let go of a supervisor that was never told anything; its end of the lifeline ends it."""
    process.lifeline.close()
    try:
        os.waitpid(process.pid, 0)
    except ChildProcessError:
        pass  # the program around us collects its children by itself


def _spawn() -> _Process:
    """Run the supervisor module in its own session, with its end of the lifeline and nothing else."""
    # posix_spawn() and not subprocess: it is safe in a program with threads, needs no import, and
    # everything that Python opens is closed by exec() unless it is handed over by an action here.
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    lifeline, spare = theirs.fileno(), theirs.fileno() + 1
    try:
        # dup2() onto itself would keep close-on-exec set; over a spare number it is cleared.
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-m", "microsandbox.supervisor", str(lifeline)],
            _environment(),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_DUP2, 1, 2),
                (os.POSIX_SPAWN_DUP2, lifeline, spare),
                (os.POSIX_SPAWN_DUP2, spare, lifeline),
                (os.POSIX_SPAWN_CLOSE, spare),
            ],
            setsid=True,
            setsigdef=[1, 2, 3, 13, 15],
            setsigmask=[],
        )
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    return _Process(pid, ours)


def _environment() -> dict[str, str]:
    """The few variables a supervisor reads. Nothing else of the caller's: it may hold secrets."""
    wanted = ("PATH", "MSB_QEMU", "MSB_KERNEL", "MSB_LIBKRUNFW", "LANG", "LC_ALL", "TMPDIR")
    return {name: os.environ[name] for name in wanted if name in os.environ}
