"""A process of the host, as /proc shows it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.waiting import readable

_PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """One process by its number. What is asked of one that has ended is empty."""

    pid: int

    @property
    def argv(self) -> list[str]:
        """Its arguments; empty for a kernel thread and for one that waits to be reaped."""
        return self._strings("cmdline")

    @property
    def environ(self) -> list[str]:
        """Its environment as it was at exec()."""
        return self._strings("environ")

    @property
    def parent(self) -> int:
        """The parent's number, 0 if there is none."""
        return int(self.status.get("PPid", "0"))

    @property
    def status(self) -> dict[str, str]:
        """`/proc/PID/status` by its fields' names."""
        lines = self._read("status").decode(errors="replace").splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    @property
    def is_zombie(self) -> bool:
        """Whether it has ended and nobody has reaped it."""
        return self.status.get("State", "").startswith("Z")

    @property
    def peak_memory(self) -> int:
        """The most memory in bytes that it ever had resident."""
        return int(self.status["VmHWM"].split()[0]) << 10

    @property
    def descriptors(self) -> dict[int, str]:
        """What each open descriptor refers to."""
        found = {}
        for entry in self._entries("fd"):
            try:
                found[int(entry.name)] = str(entry.readlink())
            except OSError:
                continue  # closed since it was listed
        return found

    def identities(self) -> set[tuple[int, int]]:
        """Device and inode of each open descriptor."""
        found = set()
        for entry in self._entries("fd"):
            try:
                status = entry.stat()
            except OSError:
                continue
            found.add((status.st_dev, status.st_ino))
        return found

    def limits(self) -> dict[str, list[str]]:
        """`/proc/PID/limits`: soft and hard values by the limit's name."""
        lines = self._read("limits").decode().splitlines()[1:]
        return {line[:26].strip(): line[26:].split()[:2] for line in lines}

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; nothing happens if it has ended."""
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            pass  # that is what was wanted

    def wait_gone(self, *, within: float) -> None:
        """Wait for its end, whoever its parent is."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            readable(pidfd, within=within, what=f"the end of process {self.pid}")
        finally:
            os.close(pidfd)

    def _strings(self, name: str) -> list[str]:
        content = self._read(name)
        return [os.fsdecode(part) for part in content.rstrip(b"\0").split(b"\0")] if content else []

    def _entries(self, name: str) -> Iterator[Path]:
        try:
            yield from sorted((_PROC / str(self.pid) / name).iterdir())
        except OSError:
            return

    def _read(self, name: str) -> bytes:
        try:
            return (_PROC / str(self.pid) / name).read_bytes()
        except OSError:
            return b""


def all_processes() -> Iterator[Process]:
    """Every process of the machine but this one."""
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            yield Process(int(entry.name))


def zombies_of(parent: int) -> list[Process]:
    """The ended children that `parent` has not reaped."""
    return [process for process in all_processes() if process.is_zombie and process.parent == parent]
