"""What this machine allows its user: files, processes, and what the state's file system can do."""

from __future__ import annotations

import fcntl
import os
import resource
import tempfile
from pathlib import Path

from microsandbox_core.host.doctor import Check, Status

_FEW_FILES = 1024
_FEW_PROCESSES = 64
_FICLONE = 0x40049409  # ioctl_ficlonerange(2)
_REMOTE = ("9p", "afs", "ceph", "cifs", "nfs", "nfs4", "smb3", "smbfs")


def examine_limits(home: Path, *, proc: Path = Path("/proc")) -> tuple[Check, ...]:
    """Look at what is not needed for a sandbox, but for many of them, or for all that one can do."""
    place = next((path for path in (home, *home.parents) if path.is_dir()), home)
    return (_check_file_system(place, proc), _check_files(), _check_processes(proc))


def _check_file_system(place: Path, proc: Path) -> Check:
    name = "file system"
    kind = _kind(place, proc)
    if kind in _REMOTE:
        return Check(
            name,
            Status.WARNING,
            f"{kind} at {place}: locks and databases are not reliable over a network",
            "set MSB_HOME to a local disk",
        )
    if kind in ("tmpfs", "ramfs"):
        return Check(
            name,
            Status.WARNING,
            f"{kind} at {place}: sandboxes and images take memory, and are gone after a reboot",
            "set MSB_HOME to a directory on a disk",
        )
    copies = "copies share their blocks (reflink)" if _clones(place) else "copies are sparse (no reflink)"
    return Check(name, Status.OK, f"{kind} at {place}: {copies}")


def _kind(place: Path, proc: Path) -> str:
    """The type of the file system that a directory is on, by mountinfo (proc(5))."""
    device = place.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    best = ("", "unknown")
    try:
        lines = (proc / "self/mountinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        fields = line.split()
        kind = fields[fields.index("-") + 1]
        if fields[2] == wanted:
            return kind
        # btrfs shows other numbers in stat(2) than here.
        if str(place.absolute()).startswith(fields[4]) and len(fields[4]) >= len(best[0]):
            best = (fields[4], kind)
    return best[1]


def _clones(place: Path) -> bool:
    """Whether a file there can be a copy of another one without taking space, by trying."""
    try:
        with tempfile.TemporaryFile(dir=place) as one, tempfile.TemporaryFile(dir=place) as other:
            one.write(bytes(4096))
            one.flush()
            fcntl.ioctl(other.fileno(), _FICLONE, one.fileno())
    except OSError:
        return False
    return True


def _check_files() -> Check:
    name = "open files"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    seen = f"{_number(soft)} for each process, at most {_number(hard)}"
    if soft != resource.RLIM_INFINITY and soft < _FEW_FILES:
        return Check(name, Status.WARNING, seen, f"ulimit -n {_FEW_FILES}")
    return Check(name, Status.OK, seen)


def _check_processes(proc: Path) -> Check:
    name = "processes"
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    if soft == resource.RLIM_INFINITY or os.geteuid() == 0:
        return Check(name, Status.OK, f"{_number(soft)}" if os.geteuid() else "not limited for root")
    used = sum(_threads(entry) for entry in proc.iterdir() if entry.name.isdigit())
    seen = f"{used} threads of yours run, {soft} may (at most {_number(hard)})"
    if soft - used < _FEW_PROCESSES:
        return Check(name, Status.WARNING, seen, "ulimit -u, up to the hard limit; a sandbox needs about 8")
    return Check(name, Status.OK, seen)


def _threads(process: Path) -> int:
    """Threads of a process of this user; 0 for others', and for one that is gone."""
    try:
        return len(list((process / "task").iterdir())) if process.stat().st_uid == os.getuid() else 0
    except OSError:
        return 0


def _number(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else str(limit)
