"""What the host allows the processes of one sandbox: a control group of their own (cgroup v2).

Made only where that needs no rights and takes nothing from anybody: see `place`. A start never fails for it.
Formats and rules: Documentation/admin-guide/cgroup-v2.rst of Linux.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

OFF = "off"
"""The value of MSB_CGROUP with which no group is made."""

CONTROLLERS = ("memory", "cpu", "pids")

OVERHEAD = 256 << 20
"""Bytes that VMM and supervisor may use beside the guest's memory; an idle pair takes a fifth of them."""
TRANSLATED = 1 << 30
"""Bytes of translated code that QEMU may keep besides when it emulates (its own limit)."""
MORE_CPU = 0.5
"""Processors for the device threads of the VMM and the supervisor, beside one per vCPU."""
MORE_TASKS = 128
"""Threads beside one per vCPU: QEMU reads and writes disks with up to 64."""

PREFIX = "msb-"
ENDING = "msb-ending"
"""The group in which a supervisor spends its last moment: only a group that is empty can be removed."""

_PERIOD = 100_000  # microseconds; the kernel's default
# Where systemd and others mount version 2, alone or beside version 1.
_ROOTS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
_MEMBERSHIP = "/proc/self/cgroup"


class Limits(NamedTuple):
    """Bytes, processors, and processes with threads. None: no limit."""

    memory: int | None
    cpus: float | None
    tasks: int | None


class Place(NamedTuple):
    """The directory in which groups of sandboxes can be made, or None and the reason why there is none."""

    directory: str | None
    reason: str


def limits_for(memory_mib: int, vcpus: int, *, emulated: bool) -> Limits:
    """What a machine of this size, its VMM and its supervisor get."""
    memory = (memory_mib << 20) + OVERHEAD + (TRANSLATED if emulated else 0)
    return Limits(memory, vcpus + MORE_CPU, vcpus + MORE_TASKS)


def place(setting: str | None) -> Place:
    """Where groups can be made, by looking only.

    `setting` (MSB_CGROUP): a directory, or `OFF`. Without one, only where new groups are beside or below our
    own by rights, so that no limit that somebody has set for us is left behind: the parent of our group if
    systemd has marked it as delegated, or our own if that is the root.
    """
    if setting == OFF:
        return Place(None, "switched off by MSB_CGROUP")
    if setting is not None:
        return _usable(setting, f"MSB_CGROUP={setting}")
    root = next((root for root in _ROOTS if os.path.isfile(f"{root}/cgroup.controllers")), None)  # noqa: PTH113
    if root is None:
        return Place(None, "no cgroup v2 is mounted")
    own = _own_group()
    if own is None or own.startswith("/.."):
        return Place(None, "our own control group is not visible here")
    if own == "/":
        # The root alone may have both processes and groups with limits; it has no type.
        if os.path.isfile(f"{root}/cgroup.type"):  # noqa: PTH113
            return Place(None, "our own control group has processes in it")
        return _usable(root, root)
    parent = root + own.rpartition("/")[0]
    if not _is_delegated(parent):
        return Place(None, f"the control group {own} is in none that is delegated to this user")
    return _usable(parent, parent)


def enter(directory: str, identifier: str, limits: Limits, pids: Sequence[int]) -> str:
    """Make the group of this sandbox with as many of the limits as there are controllers for, and move these
    processes into it. Its path; raises `OSError`, and nothing is left then but what cannot be moved back.

    Slow: before it moves the first one the kernel waits for every processor, some 20 ms.
    """
    enabled = _words(f"{directory}/cgroup.subtree_control")
    for controller in CONTROLLERS:
        if controller not in enabled and controller in _words(f"{directory}/cgroup.controllers"):
            _write(f"{directory}/cgroup.subtree_control", f"+{controller}")
    group = f"{directory}/{PREFIX}{identifier}"
    try:
        os.mkdir(group, 0o755)  # noqa: PTH102 - on the way of every start
    except FileExistsError:
        pass  # of an earlier life, which was killed
    try:
        for name, value in _files(limits).items():
            try:
                _write(f"{group}/{name}", value)
            except FileNotFoundError:
                pass  # there is no such controller here
        for pid in pids:
            _write(f"{group}/cgroup.procs", str(pid))
    except OSError:
        remove(group)
        raise
    return group


def leave(group: str) -> None:
    """Move this process, the last in the group, out of it, and remove the group. What cannot be done is left
    to whoever looks."""
    ending = f"{group.rpartition('/')[0]}/{ENDING}"
    try:
        try:
            os.mkdir(ending, 0o755)  # noqa: PTH102
        except FileExistsError:
            pass
        _write(f"{ending}/cgroup.procs", "0")
    except OSError:
        return
    remove(group)


def remove(group: str) -> bool:
    """Remove a group if no process is in it; whether it is gone. Removes nothing that is not a sandbox's."""
    if not group.rpartition("/")[2].startswith(PREFIX):
        return False
    try:
        os.rmdir(group)  # noqa: PTH106
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def limits_of(group: str) -> Limits | None:
    """The limits that hold in a group; None if it is not there."""
    if not os.path.isdir(group):  # noqa: PTH112
        return None
    memory, tasks = _read(f"{group}/memory.max"), _read(f"{group}/pids.max")
    quota, _, period = _read(f"{group}/cpu.max").partition(" ")
    return Limits(
        int(memory) if memory.isdigit() else None,
        int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None,
        int(tasks) if tasks.isdigit() else None,
    )


def widen(group: str, size: int) -> int | None:
    """Let a group use so many bytes more than its limit. What the limit was, for `narrow`; None if there is
    none. Raises `OSError`."""
    found = limits_of(group)
    if found is None or found.memory is None:
        return None
    _write(f"{group}/memory.max", str(found.memory + size))
    return found.memory


def narrow(group: str, memory: int) -> None:
    """Set the limit of a group, in bytes. Raises `OSError`."""
    _write(f"{group}/memory.max", str(memory))


def _files(limits: Limits) -> dict[str, str]:
    cpus = None if limits.cpus is None else f"{round(limits.cpus * _PERIOD)} {_PERIOD}"
    return {
        name: "max" if value is None else str(value)
        for name, value in (
            ("memory.max", limits.memory),
            ("cpu.max", cpus),
            ("pids.max", limits.tasks),
        )
    }


def _usable(directory: str, shown: str) -> Place:
    available = [name for name in CONTROLLERS if name in _words(f"{directory}/cgroup.controllers")]
    if not os.path.isfile(f"{directory}/cgroup.controllers"):  # noqa: PTH113
        return Place(None, f"{shown} is no directory of cgroup v2")
    if not available:
        return Place(None, f"{shown} has none of the controllers {', '.join(CONTROLLERS)}")
    needed = [directory, f"{directory}/cgroup.procs"]
    if not set(available) <= _words(f"{directory}/cgroup.subtree_control"):
        needed.append(f"{directory}/cgroup.subtree_control")
    for path in needed:
        if not os.access(path, os.W_OK):
            return Place(None, f"{path} is not writable")
    return Place(directory, f"{', '.join(available)} in {directory}")


def _own_group() -> str | None:
    for line in _read(_MEMBERSHIP).splitlines():
        if line.startswith("0::"):
            return line[3:]
    return None


def _is_delegated(directory: str) -> bool:
    """Whether systemd says so (`Delegate=yes`): by an attribute of the directory since version 251."""
    for name in ("user.delegate", "trusted.delegate"):
        try:
            if os.getxattr(directory, name) == b"1":
                return True
        except OSError:
            pass
    return False


def _words(path: str) -> set[str]:
    return set(_read(path).split())


def _read(path: str) -> str:
    """The content without its final newline; empty if it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(descriptor, 1 << 16).decode(errors="replace").rstrip("\n")
        finally:
            os.close(descriptor)
    except OSError:
        return ""


def _write(path: str, value: str) -> None:
    # Without O_CREAT: the files of a group are the kernel's.
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)
