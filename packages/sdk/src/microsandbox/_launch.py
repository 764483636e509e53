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
    """What the supervisor has to know; travels as MessagePack over an inherited descriptor."""

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


def launch(asked: Launch, directory: SandboxDirectory, lock: int, image_pin: int) -> Supervisor:
    """Start the supervisor. `lock` (the directory's, held) and `image_pin` (which keeps the image's
    files) pass to it and are closed here in any case.

    Raises `StartError` when the interpreter cannot be run, `StateError` when the log cannot be made.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        log = os.open(directory.supervisor_log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        ours.close()
        theirs.close()
        os.close(lock)
        os.close(image_pin)
        raise StateError(f"cannot write {directory.supervisor_log}: {error.strerror}") from error
    config = os.memfd_create("msb-config", os.MFD_CLOEXEC)
    try:
        inherit = (lock, theirs.fileno(), image_pin)
        asked = asked._replace(lock=lock, lifeline=theirs.fileno(), image_pin=image_pin)
        os.write(config, msgpack.packb(asked._asdict(), unicode_errors="surrogateescape"))
        os.lseek(config, 0, os.SEEK_SET)
        pid = _spawn(config, inherit, log)
    except OSError as error:
        ours.close()
        raise StartError(f"cannot start the supervisor: {error.strerror}") from error
    finally:
        for descriptor in (config, log, lock, image_pin):
            os.close(descriptor)
        theirs.close()
    return Supervisor(directory, ours, pid)


def _spawn(config: int, inherit: tuple[int, ...], log: int) -> int:
    """Run the supervisor module in its own session, with these descriptors and no others."""
    # posix_spawn() and not subprocess: it is safe in a program with threads, needs no import, and
    # everything that Python opens is closed by exec() unless it is handed over by an action here.
    spare = max(config, log, *inherit) + 1
    actions: list[tuple[int, int, int] | tuple[int, int] | tuple[int, int, str, int, int]] = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, log, 1),
        (os.POSIX_SPAWN_DUP2, log, 2),
    ]
    # dup2() onto itself would keep close-on-exec set; over a spare number it is cleared.
    for descriptor in (config, *inherit):
        actions.append((os.POSIX_SPAWN_DUP2, descriptor, spare))
        actions.append((os.POSIX_SPAWN_DUP2, spare, descriptor))
        actions.append((os.POSIX_SPAWN_CLOSE, spare))
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-m", "microsandbox.supervisor", str(config)],
        _environment(),
        file_actions=actions,
        setsid=True,
        setsigdef=[1, 2, 3, 13, 15],
        setsigmask=[],
    )


def _environment() -> dict[str, str]:
    """The few variables a supervisor reads. Nothing else of the caller's: it may hold secrets."""
    wanted = ("PATH", "MSB_QEMU", "MSB_KERNEL", "MSB_LIBKRUNFW", "LANG", "LC_ALL", "TMPDIR")
    return {name: os.environ[name] for name in wanted if name in os.environ}
