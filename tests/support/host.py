"""What the host shows of the sandboxes under one MSB_HOME: processes, files, sockets, locks, rows."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tests.support.process import Process, all_processes
from tests.support.waiting import eventually


@dataclass(frozen=True)
class RunningSandbox:
    """A sandbox that runs: its id and its two processes."""

    id: str
    directory: Path
    supervisor: Process
    vmm: Process


class Host:
    """Looks at one home from outside, never by asking the product."""

    def __init__(self, home: Path) -> None:
        self.home = home

    # -------------------------------------------------------------------------------------- processes

    def processes(self) -> list[Process]:
        """Those that work for this home: by its name in argv or environment, or by an open file."""
        prefix = f"{self.home}/"
        found = []
        for process in all_processes():
            named = any(prefix in argument for argument in process.argv)
            if (
                named
                or f"MSB_HOME={self.home}" in process.environ
                or any(target.startswith(prefix) for target in process.descriptors.values())
            ):
                found.append(process)
        return found

    def running(self) -> list[RunningSandbox]:
        """The sandboxes whose supervisor and VMM both run."""
        found = []
        everyone = self.processes()
        for supervisor in everyone:
            identifier = self._lock_of(supervisor)
            if identifier is None:
                continue
            for child in everyone:
                if child.parent == supervisor.pid and "qemu" in " ".join(child.argv[:1]):
                    directory = self.home / "sandboxes" / identifier
                    found.append(RunningSandbox(identifier, directory, supervisor, child))
        return found

    def sandbox(self, *, within: float = 60) -> RunningSandbox:
        """The one sandbox that runs, waiting for its VMM to be there."""
        (found,) = eventually(self.running, within=within, what="a running sandbox")
        return found

    def _lock_of(self, process: Process) -> str | None:
        """The id of the sandbox whose supervisor this is."""
        if "microsandbox.supervisor" not in process.argv:
            return None
        for target in process.descriptors.values():
            path = Path(target)
            if path.name == "lock" and path.parent.parent == self.home / "sandboxes":
                return path.parent.name
        return None

    # ------------------------------------------------------------------------------------------ files

    def directories(self) -> list[str]:
        """The ids of the sandboxes that have a directory."""
        parent = self.home / "sandboxes"
        return (
            sorted(p.name for p in parent.iterdir() if not p.name.startswith(".")) if parent.is_dir() else []
        )

    def tree(self, below: str = "") -> list[str]:
        """Every path under the home or one of its directories.

        Without the database's log and index: who opens it last decides whether they stay, and looking
        at rows opens it.
        """
        found = (path.relative_to(self.home) for path in _everything(self.home / below))
        return sorted(str(path) for path in found if not path.name.startswith("state.db-"))

    def digests(self, below: str) -> dict[str, str]:
        """SHA-256 of the data, holes left out, of every regular file under a directory of the home."""
        found = {}
        for path in sorted((self.home / below).rglob("*")):
            if path.is_file() and not path.is_symlink():
                found[str(path.relative_to(self.home))] = _digest(path)
        return found

    def layers(self) -> list[Path]:
        """The layer files in the image cache."""
        return sorted((self.home / "cache" / "layers").glob("*.erofs"))

    # --------------------------------------------------------------------------- sockets, locks, rows

    def sockets(self) -> list[str]:
        """Unix sockets that are bound below the home, as the kernel lists them."""
        lines = Path("/proc/net/unix").read_text().splitlines()
        return [path for line in lines if (path := line.partition("/")[2]) and self._is_below("/" + path)]

    def locks(self) -> list[str]:
        """Files below the home that somebody holds a lock on."""
        held = set()
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if "->" not in fields:
                held.add(int(fields[5].split(":")[2]))
        found = {}
        for path in _everything(self.home):
            try:
                status = path.lstat()
            except OSError:
                continue  # removed since it was listed
            if status.st_ino in held and not stat.S_ISLNK(status.st_mode):
                found[str(path)] = (status.st_dev, status.st_ino)
        if not found:
            return []
        # Another file system has files of the same numbers, and what the kernel calls its device may not be
        # what lstat() does. Whoever holds a lock on ours has it open.
        opened = set().union(*(process.identities() for process in (Process(os.getpid()), *all_processes())))
        return sorted(path for path, identity in found.items() if identity in opened)

    def rows(self) -> list[str]:
        """Names of the sandboxes in the state database."""
        path = self.home / "state.db"
        if not path.exists():
            return []
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            return [row[0] for row in connection.execute("SELECT name FROM sandboxes ORDER BY name")]

    def leftovers(self) -> list[str]:
        """What a sandbox that is gone must not leave: processes, directories, sockets, locks."""
        return [
            *(f"process {process.pid}: {' '.join(process.argv)[:200]}" for process in self.processes()),
            *(f"directory {name}" for name in self.directories()),
            *(f"socket {path}" for path in self.sockets()),
            *(f"lock {path}" for path in self.locks()),
        ]

    def wait_empty(self, *, within: float = 60.0) -> None:
        """Wait until nothing of any sandbox is left. How soon that has to be is for `test_crash.py`."""
        eventually(lambda: not self.leftovers(), within=within, what=f"gone: {self.leftovers()}")

    def _is_below(self, path: str) -> bool:
        return path.startswith(f"{self.home}/")


def _everything(below: Path) -> Iterator[Path]:
    """Every path below a directory, in which others may remove some meanwhile: rglob() fails of that."""
    for directory, directories, files in os.walk(below):
        for name in (*directories, *files):
            yield Path(directory, name)


def _digest(path: Path) -> str:
    """Covers where the data is, so that 8 GiB of holes cost nothing."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        size, position = os.fstat(file.fileno()).st_size, 0
        digest.update(b"%d" % size)
        while position < size:
            try:
                start = os.lseek(file.fileno(), position, os.SEEK_DATA)
            except OSError:  # ENXIO: only a hole is left
                break
            position = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            data = os.pread(file.fileno(), position - start, start)
            digest.update(b"@%d:" % start + data)
    return digest.hexdigest()
