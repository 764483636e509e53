"""Starting a supervisor: what has to happen before the VM runs, and nothing else.

No asyncio here and as few imports as possible: a sandbox's start waits for this module.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgpack

from microsandbox import _spawn
from microsandbox._directory import SandboxDirectory
from microsandbox.errors import StartError, StateError

MESSAGE_LIMIT = 1 << 18
"""Bytes of one message on the lifeline, either way."""


class Launch(NamedTuple):
    """What the supervisor has to know; travels as MessagePack in a memory file. The descriptors at its end
    are set where they arrive; `client` is the creator's connection to the agent. `guest` and `init` are
    parameters of the agent's methods; `network` is a packed `NetworkConfig`, `mounts` are plain
    `MountConfig`s, volumes with their sources; `user`: whose what they hold is by default."""

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
    logged: bool = False
    max_duration: float | None = None
    idle_timeout: float | None = None
    guest: Mapping[str, Any] = {}
    init: Mapping[str, Any] | None = None
    root_disk: int | None = None
    security: str = "default"
    mounts: Sequence[Mapping[str, Any]] = ()
    user: str | None = None
    network: bytes = b"\x80"
    fork_token: bytes = b""
    fork_basis: str = ""
    lock: int = -1
    lifeline: int = -1
    image_pin: int = -1
    client: int = -1


class Supervisor:
    """A supervisor process as its creator sees it: a process and the lifeline to it.

    The lifeline is a socket pair of whole messages. The supervisor says ``ready``, ``failed`` or
    ``ended`` on it, and before that ``phase`` when a start takes long; its end tells an attached supervisor
    that its creator is gone, unless that has said ``leave``.

    `agent` is a connection to the guest's agent that the supervisor serves from when it listens on.
    """

    def __init__(
        self,
        directory: SandboxDirectory,
        lifeline: socket.socket,
        pid: int,
        agent: socket.socket | None = None,
    ) -> None:
        self.directory = directory
        self.lifeline = lifeline
        self.pid = pid
        self._agent = agent
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

    def take_agent(self) -> socket.socket | None:
        """The connection to the agent, once; the caller closes it."""
        agent, self._agent = self._agent, None
        return agent

    def leave(self) -> None:
        """Let it go on by itself when the lifeline is closed. Does nothing if it has ended."""
        try:
            self.lifeline.send(msgpack.packb({"t": "leave"}))
        except OSError:
            pass  # there is nobody left to go on

    def close(self) -> None:
        """Let go of the lifeline: an attached sandbox ends by that."""
        self.lifeline.close()
        if self._agent is not None:
            self._agent.close()


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
        agent, theirs = socket.socketpair()
        try:
            pid, lifeline = _hand_over((config, log, lock, image_pin, theirs.fileno()))
        except BaseException:
            agent.close()
            raise
        finally:
            theirs.close()
    except OSError as error:
        raise StartError(f"cannot start the supervisor: {error.strerror}") from error
    finally:
        for descriptor in (config, log, lock, image_pin):
            os.close(descriptor)
    return Supervisor(directory, lifeline, pid, agent)


def _hand_over(descriptors: tuple[int, ...]) -> tuple[int, socket.socket]:
    """Give a supervisor what it works with: the one that was prepared, or a new one. Its pid and lifeline."""
    process = _spawn.take_prepared()
    if process is not None:
        try:
            return _tell(process, descriptors)
        except OSError:
            pass  # somebody has killed it; another one does as well
    return _tell(_spawn.spawn(), descriptors)


def _tell(process: _spawn.Process, descriptors: tuple[int, ...]) -> tuple[int, socket.socket]:
    """Let a supervisor begin. Raises `OSError`; then it is discarded."""
    lifeline = socket.socket(fileno=process.lifeline)
    try:
        socket.send_fds(lifeline, [b"launch"], descriptors)
    except OSError:
        lifeline.detach()
        process.discard()
        raise
    return process.pid, lifeline
