"""What a sandbox is doing: the record its supervisor keeps in its directory, read together with its lock.

The record says how far a life has come, the lock whether it goes on. A record of a life that goes on,
beside a lock that nobody holds, is what a crash leaves. Only who holds the lock writes the record.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import msgpack

from microsandbox._directory import SandboxDirectory, guard, is_locked, state_error


class Status(StrEnum):
    """What a sandbox is doing."""

    CREATED = "created"
    """It was asked for and has never been started."""
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    """Its processors stand still until somebody resumes it; its memory stays where it is."""
    STOPPING = "stopping"
    STOPPED = "stopped"
    CRASHED = "crashed"
    """Its VMM or its supervisor ended, or could not be started, without anybody having asked for that."""

    @property
    def active(self) -> bool:
        """Whether there is a supervisor."""
        return self in (Status.STARTING, Status.RUNNING, Status.PAUSED, Status.STOPPING)


class Cause(StrEnum):
    """Why a life ended. The last four are crashes."""

    REQUESTED = "requested"
    """It was asked to stop: its processes were ended and its disk written out."""
    KILLED = "killed"
    """It was ended at once, or had not stopped in the time it was given."""
    REPLACED = "replaced"
    """It made room for a new sandbox of its name."""
    CREATOR_GONE = "creator_gone"
    """It belonged to a program that has ended."""
    MAX_DURATION = "max_duration"
    """It has run for as long as it may."""
    COMMAND_ENDED = "command_ended"
    """The command that it was there for (``msb run -d``) has ended."""
    IDLE_TIMEOUT = "idle_timeout"
    """For as long as it may be idle nothing went in or out."""
    GUEST = "guest"
    """The guest switched itself off."""
    START_FAILED = "start_failed"
    VMM_DIED = "vmm_died"
    SILENT = "silent"
    """The guest did not answer any more."""
    SUPERVISOR_DIED = "supervisor_died"


class Life(NamedTuple):
    """One life of a sandbox, from a start to its end. Times are nanoseconds since the epoch.

    `pid` is the supervisor's, 0 until it has begun, and `ticks` when the kernel started that process:
    together they name it although numbers are used again. `vmm_exit` is the VMM's exit code, -N after
    signal N. `cause` and `reason` are there at the end, and while it is being stopped. `stage`, `hint` and
    `console` (the end of what was printed there) tell of a start that failed. `cpus` and `memory_mib` are
    what the machine of this life has, whatever was modified since; None in records of earlier versions.
    `exit_code` is that of the command it was there for, as `exit_code_of` has it; None while there is none.
    """

    status: str
    since_ns: int
    started_ns: int
    pid: int = 0
    ticks: int = 0
    vmm_pid: int = 0
    isolation: str | None = None
    cause: str | None = None
    reason: str | None = None
    vmm_exit: int | None = None
    stage: str | None = None
    hint: str | None = None
    console: str | None = None
    cpus: int | None = None
    memory_mib: int | None = None
    exit_code: int | None = None

    @property
    def goes_on(self) -> bool:
        """Whether the record says that this life has not ended."""
        return self.status not in (Status.STOPPED, Status.CRASHED)


_FIELDS = frozenset(Life._fields)


class Seen(NamedTuple):
    """A sandbox as it was at one moment; `held`: whether somebody holds its lock."""

    status: Status
    life: Life | None
    held: bool


TIMED_OUT = 124
"""The exit code of a command that was killed because its time was up."""


def exit_code_of(code: object, number: object, *, timed_out: bool) -> int | None:
    """What `msb` exits with for a command that ended with `code`, or by signal `number`; None if it ended
    with neither."""
    if timed_out:
        return TIMED_OUT
    if type(number) is int:
        return 128 + number
    return code if type(code) is int else None


def begun() -> Life:
    """The record of a life that begins now and has no supervisor yet."""
    now = time.time_ns()
    return Life(Status.STARTING, now, now)


def write(directory: SandboxDirectory, life: Life, *, quiet: bool = False) -> bool:
    """Replace the record; for who holds the lock. False when it could not be written.

    A disk that is full does not end a sandbox for this: the old record's place is used then. If that cannot
    be either, there is no record rather than an old one. Unless `quiet`, standard error (the supervisor's
    log) has the reason.
    """
    path = f"{directory.path}/life"
    packed = _packed(life)
    try:
        _put(f"{path}.new", os.O_CREAT | os.O_TRUNC, packed)
        os.replace(f"{path}.new", path)  # noqa: PTH105 - on the way of every start
    except OSError as error:
        if not quiet:
            sys.stderr.write(f"cannot note in {path} that it is {life.status}: {error.strerror}\n")
    else:
        return True
    _forget(f"{path}.new")
    try:
        # Not in one step: who reads in between finds what is no record.
        _put(path, 0, packed)
    except OSError:
        _forget(path)
        return False
    return True


def _put(path: str, flags: int, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | flags, 0o600)
    try:
        os.write(descriptor, content)
        os.ftruncate(descriptor, len(content))
    finally:
        os.close(descriptor)


def _forget(path: str) -> None:
    """Remove what is not true, or of no use."""
    try:
        os.unlink(path)  # noqa: PTH108 - as above
    except OSError:
        pass  # there never was one, or who looks is misled


def _packed(life: Life) -> bytes:
    values = {key: value for key, value in life._asdict().items() if value is not None}
    packed = msgpack.packb(values, unicode_errors="surrogateescape")
    assert isinstance(packed, bytes)
    return packed


def read(directory: SandboxDirectory) -> Life | None:
    """The record; None if there is none that can be read."""
    return _read(f"{directory.path}/life")


def _read(path: str) -> Life | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        values = msgpack.unpackb(os.read(descriptor, 1 << 16), unicode_errors="surrogateescape")
        values["status"] = Status(values["status"])
        if not _FIELDS.issuperset(values):
            values = {key: values[key] for key in Life._fields if key in values}  # of a later version
        return Life(**values)
    except (OSError, ValueError, TypeError, KeyError, msgpack.exceptions.UnpackException):
        return None
    finally:
        os.close(descriptor)


def look(directory: SandboxDirectory) -> Seen:
    """What a sandbox is doing now."""
    while True:
        life = read(directory)
        held = directory.is_running()
        # When the two do not go together the record may have changed since it was read.
        if held == (life is not None and life.goes_on) or read(directory) == life:
            return Seen(_status(directory, life, held), life, held)


def look_at(home: Path, identifiers: Iterable[str], held: Iterable[str]) -> dict[str, Seen]:
    """`look` at many, of which `held` were locked a moment ago."""
    locked = frozenset(held)
    parent = home / "sandboxes"
    found = {}
    for identifier in identifiers:
        life = _read(f"{parent}/{identifier}/life")
        was_held = identifier in locked
        if life is not None and was_held == life.goes_on:
            found[identifier] = Seen(Status(life.status), life, was_held)
        else:
            found[identifier] = look(SandboxDirectory(home, identifier))
    return found


def directories(home: Path) -> dict[str, bool]:
    """Every sandbox's directory by its id, and whether its lock is held. Raises `StateError`."""
    parent = home / "sandboxes"
    try:
        if not parent.is_dir():
            return {}
        with guard(parent, fcntl.LOCK_SH), os.scandir(parent) as entries:
            return {
                entry.name: is_locked(f"{entry.path}/lock")
                for entry in entries
                if not entry.name.startswith(".") and entry.is_dir()
            }
    except OSError as error:
        raise state_error("read", parent, error) from error


def open_supervisor(life: Life) -> int | None:
    """A pidfd of the supervisor that wrote this record; None if it has ended."""
    if not life.pid:
        return None
    try:
        pidfd = os.pidfd_open(life.pid)
    except ProcessLookupError:
        return None
    # The number may be another process's by now. That one was not started at the same tick.
    if started_at(life.pid) == life.ticks:
        return pidfd
    os.close(pidfd)
    return None


def started_at(pid: int) -> int:
    """When a process was started, in clock ticks since the boot (proc(5), field 22); 0 if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - on the way of every start
            # The command's name, in parentheses, may contain anything.
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


def _status(directory: SandboxDirectory, life: Life | None, held: bool) -> Status:
    if held:
        if life is None:
            # One that could not write its record, because the disk was full, still listens.
            return Status.RUNNING if directory.socket.exists() else Status.STARTING
        # The end is noted, and the supervisor about to go; or somebody is removing what it has left.
        return Status(life.status) if life.goes_on else Status.STOPPING
    if life is None:
        # One that has a disk has run: there was a time before these records. One without a directory is gone.
        was_there = directory.upper.exists() or not directory.path.exists()
        return Status.STOPPED if was_there else Status.CREATED
    return Status.CRASHED if life.goes_on else Status(life.status)
