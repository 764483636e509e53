"""The asynchronous half of a start: waiting for the supervisor's word, and for its end."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
from microsandbox_core.unix_socket import connect_unix

from microsandbox._create import Pending
from microsandbox._launch import MESSAGE_LIMIT
from microsandbox._life import Cause
from microsandbox.errors import (
    BootFailed,
    ConfigError,
    ImageError,
    NoHypervisor,
    NotRunning,
    Replaced,
    StartError,
    StateError,
    VolumeError,
    VolumeInUse,
)

_KINDS: Mapping[str, type[StartError | StateError | ConfigError | ImageError | VolumeError]] = {
    "DiskInUse": VolumeInUse,
    "DiskRefused": VolumeError,
    "StorageError": StateError,
    "StateError": StateError,
    "SpecInvalid": ConfigError,
    "VmmError": NoHypervisor,
    "VmmNotFound": NoHypervisor,
}


class Ready(NamedTuple):
    """What the supervisor said when the sandbox was up. `timings`: milliseconds since the
    supervisor began, by step; `agent`: microseconds that agentd took for each step; `cold`: why the
    kernel was booted, empty when the sandbox was started from a template; `mounting`: why its image had to
    be mounted, empty when the template had it."""

    isolation: str
    cold: str
    mounting: str
    timings: Mapping[str, float]
    agent: Mapping[str, int]
    vmm_pid: int


async def wait_ready(pending: Pending, phase: Callable[[str], None] | None = None) -> Ready:
    """Wait until the sandbox is up; `phase` is told of what takes long. Raises `StartError` and its kin when
    it does not come up."""
    lifeline = pending.supervisor.lifeline
    lifeline.setblocking(False)
    while (message := await receive(lifeline)) is not None and message.get("t") == "phase":
        if phase is not None:
            phase(str(message["phase"]))
    if message is None:
        await gone(pending.supervisor.pidfd)
        said = _last_words(pending)
        raise StartError(
            f"the supervisor of {pending.record.name!r} ended before the sandbox was up"
            + (f": {said}" if said else ""),
            hint="run `msb doctor` to check this machine",
            code="supervisor",
        )
    if message.get("t") == "ready":
        return Ready(
            str(message["isolation"]),
            str(message["cold"]),
            str(message["mounting"]),
            message["timings"],
            message["agent"],
            int(message["vmm_pid"]),
        )
    if message.get("t") == "ended":
        name = pending.record.name
        if message.get("cause") == Cause.REPLACED:
            raise Replaced(f"the sandbox {name!r} was replaced by another one while it was starting")
        raise NotRunning(f"the sandbox {name!r} was stopped while it was starting")
    text, hint = str(message.get("message")), message.get("hint")
    if message.get("kind") == "BootFailed":
        raise BootFailed(
            text, stage=str(message.get("stage")), console=str(message.get("console", "")), hint=hint
        )
    kind = _KINDS.get(str(message.get("kind")), StartError)
    raise kind(text, hint=hint, code=message.get("code"))


async def receive(lifeline: socket.socket) -> dict[str, Any] | None:
    """The supervisor's next message; None when it has ended."""
    try:
        packed = await asyncio.get_running_loop().sock_recv(lifeline, MESSAGE_LIMIT)
    except ConnectionResetError:
        return None
    if not packed:
        return None
    message = msgpack.unpackb(packed, unicode_errors="surrogateescape")
    assert isinstance(message, dict)
    return message


def limit_reached(lifeline: socket.socket) -> str | None:
    """What the supervisor has said about a limit for which it stops the sandbox; None if nothing."""
    while True:
        try:
            packed = lifeline.recv(MESSAGE_LIMIT, socket.MSG_DONTWAIT)
        except OSError:
            return None  # nothing has come yet, or the lifeline is closed
        if not packed:
            return None
        message = msgpack.unpackb(packed, unicode_errors="surrogateescape")
        if message.get("t") == "stopping":
            return str(message["reason"])


async def gone(pidfd: int) -> None:
    """Wait until the process has ended. The descriptor is the caller's own, and open meanwhile."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(pidfd)


def wait_gone(pidfd: int, timeout: float | None = None) -> bool:
    """`gone` without an event loop; False if it has not ended after `timeout` seconds."""
    poll = select.poll()  # not select(), which takes no descriptor above 1023
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(None if timeout is None else timeout * 1000))


def supervisor_of(path: Path) -> int | None:
    """A pidfd of the supervisor that listens on this agent socket; None if none does.

    The kernel tells who listens there. That process can only have been replaced by another one of the same
    number if the connection is dead, which is looked at after the pidfd is open.
    """
    try:
        connection = connect_unix(path)
    except OSError:
        return None
    with connection:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        try:
            pidfd = os.pidfd_open(struct.unpack("iII", credentials)[0])
        except ProcessLookupError:
            return None
        if select.select([connection], [], [], 0)[0] and not connection.recv(1, socket.MSG_PEEK):
            os.close(pidfd)
            return None
    return pidfd


def terminate(pidfd: int, number: int = signal.SIGTERM) -> None:
    """Ask a supervisor to kill its VM and go; nothing happens if it has gone."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        pass  # that is what was wanted


def _last_words(pending: Pending) -> str:
    """The last line of the supervisor's log: its traceback ends with what happened."""
    try:
        lines = pending.directory.supervisor_log.read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""  # removed with the directory
    return lines[-1][:400] if lines else ""
