"""Faults at any step of a verb: what the product is made to meet, without a line in it for that.

This file is two things. Run as a program it is `msb` with every operation on the host counted: files and
directories of the home, locks, sockets, processes, statements of the database. Each is a **step**, numbered
from 1 in each process; the supervisor, which the program makes begin with this file too, counts its own. At
one step, or from that one on, the process meets its fault. Imported it is what tests give such a program its
orders with (`environment`), and read what it did (`steps`, `met`).

It has nothing but the standard library, for it also runs where there is nothing else.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ORDERS = "MSB_FAULTS"
"""The environment variable with an `Orders` as JSON."""

MSB, SUPERVISOR = "msb", "supervisor"

ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EMFILE": errno.EMFILE}
_SLOWNESS = 0.02  # seconds that a slow disk takes longer for each step

# Which errors an operation of the kernel can end with.
_DESCRIPTORS = ("EMFILE",)
_READS = ("EIO", "EMFILE")
_WRITES = ("ENOSPC", "EIO")
_CREATES = ("ENOSPC", "EIO", "EMFILE")
ERRORS_OF: Mapping[str, tuple[str, ...]] = {
    "open": _READS, "create": _CREATES, "list": _READS, "mkdir": _WRITES, "rename": _WRITES,
    "remove": ("EIO",), "rmdir": ("EIO",), "truncate": _WRITES, "write": _WRITES, "copy": _WRITES,
    "sync": _WRITES, "bind": _WRITES, "flock": (), "spawn": _DESCRIPTORS, "fork": (), "socket": _DESCRIPTORS,
    "memory file": _DESCRIPTORS, "pidfd": _DESCRIPTORS, "send": (), "database": _CREATES, "sql": _WRITES,
    "sql read": ("EIO",),
}  # fmt: skip

_SQLITE_MESSAGES = {
    "ENOSPC": "database or disk is full",
    "EIO": "disk I/O error",
    "EMFILE": "unable to open database file",
}


class Fault(NamedTuple):
    """What one process of a command meets. `role`: `MSB` or `SUPERVISOR`. `kind`: ``kill``, ``kill vmm``
    (of the supervisor's), ``slow``, or a name in `ERRORS`. `lasting`: at every later step that can, too."""

    role: str
    step: int
    kind: str
    lasting: bool = False

    def __str__(self) -> str:
        return f"{self.role} step {self.step}: {self.kind}{' from then on' if self.lasting else ''}"


class Step(NamedTuple):
    """One operation: who does it, which one in a row it is, and what it is about."""

    role: str
    number: int
    operation: str
    subject: str

    def faults(self) -> list[Fault]:
        """All that can be met here."""
        kinds = ["kill", "slow", *ERRORS_OF[self.operation]]
        if self.role == SUPERVISOR:
            kinds.append("kill vmm")
        lasting = {"slow": (True,), "kill": (False,), "kill vmm": (False,)}
        return [
            Fault(self.role, self.number, kind, last)
            for kind in kinds
            for last in lasting.get(kind, (False, True))
        ]


def environment(
    home: Path,
    notes: Path,
    fault: Fault | None = None,
    *,
    settings: Mapping[str, float] | None = None,
    agent: Path | None = None,
) -> dict[str, str]:
    """The variables for a program that meets `fault`, and writes to `notes` what it does and met.

    `settings`: constants of the supervisor, ``module.NAME``, that are to have another value. `agent`: what is
    put into guests in place of agentd.
    """
    orders = {
        "home": str(home), "notes": str(notes), "fault": fault, "settings": settings or {},
        "agent": None if agent is None else str(agent),
    }  # fmt: skip
    return {ORDERS: json.dumps(orders)}


def steps(notes: Path) -> list[Step]:
    """What the processes did, as far as they came, in the order of the notes."""
    return [Step(*entry[1:]) for entry in _entries(notes) if entry[0] == "step"]


def met(notes: Path) -> list[Step]:
    """The steps at which the fault was met."""
    return [Step(*entry[1:]) for entry in _entries(notes) if entry[0] == "met"]


def disarm(notes: Path) -> None:
    """From now on nobody who writes to these notes meets anything."""
    Path(_disarmed(str(notes))).touch()


def fresh(notes: Path) -> None:
    """Begin new notes, whose faults are met."""
    notes.unlink(missing_ok=True)
    Path(_disarmed(str(notes))).unlink(missing_ok=True)


def _disarmed(notes: str) -> str:
    return f"{notes}.disarmed"


def _entries(notes: Path) -> list[list[Any]]:
    return [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []


# ------------------------------------------------------------------------ in the processes of the product


class _Counter:
    """Counts the steps of this process, and lets it meet its fault."""

    def __init__(self, role: str, orders: Mapping[str, Any]) -> None:
        self.role = role
        self.home = orders["home"] + "/"
        fault = None if orders["fault"] is None else Fault(*orders["fault"])
        self.fault = fault if fault is not None and fault.role == role else None
        self.pid = os.getpid()
        self.notes = os.open(orders["notes"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        # Where the supervisor's closing of everything that is not its own does not reach.
        self.notes = fcntl.fcntl(self.notes, fcntl.F_DUPFD_CLOEXEC, 200)
        self.disarmed = _disarmed(orders["notes"])
        self.number = 0
        self.lock = threading.Lock()
        self.busy = threading.local()

    def step(self, operation: str, subject: str) -> None:
        """Count it; raises `OSError`, or does not return, if that is the fault."""
        if getattr(self.busy, "now", False) or os.getpid() != self.pid:
            return  # our own doing, or a child's that has yet to become another program
        self.busy.now = True
        try:
            with self.lock:
                self.number += 1
                number = self.number
                self._note("step", number, operation, subject)
            fault = self.fault
            if fault is None or not (number == fault.step or (fault.lasting and number > fault.step)):
                return
            if fault.kind in ERRORS and fault.kind not in ERRORS_OF[operation]:
                return
            if os.path.exists(self.disarmed):  # noqa: PTH110
                return
            self._note("met", number, operation, subject)
            self._meet(fault.kind, operation)
        finally:
            self.busy.now = False

    def _meet(self, kind: str, operation: str) -> None:
        if kind == "kill":
            os.kill(self.pid, signal.SIGKILL)
            signal.pause()
        elif kind == "kill vmm":
            for child in _children(self.pid):
                os.kill(child, signal.SIGKILL)
        elif kind == "slow":
            time.sleep(_SLOWNESS)
        elif operation in ("sql", "sql read", "database"):
            raise sqlite3.OperationalError(_SQLITE_MESSAGES[kind])
        else:
            raise OSError(ERRORS[kind], os.strerror(ERRORS[kind]))

    def _note(self, what: str, number: int, operation: str, subject: str) -> None:
        os.write(self.notes, json.dumps([what, self.role, number, operation, subject]).encode() + b"\n")

    def below(self, path: object) -> str | None:
        """A path's place in the home; None for one that is not there."""
        if isinstance(path, int):
            try:
                path = os.readlink(f"/proc/self/fd/{path}")  # noqa: PTH115
            except OSError:
                return None
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        text = str(path)
        return text[len(self.home) :] if text.startswith(self.home) else None


def _children(pid: int) -> list[int]:
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208
        with open(f"/proc/{pid}/task/{task}/children") as file:  # noqa: PTH123
            found += [int(child) for child in file.read().split()]
    return found


_PATH_EVENTS = {
    "os.mkdir": "mkdir", "os.rename": "rename", "os.remove": "remove", "os.rmdir": "rmdir",
    "os.listdir": "list", "os.scandir": "list", "os.truncate": "truncate", "socket.bind": "bind",
}  # fmt: skip
_OTHER_EVENTS = {
    "os.posix_spawn": "spawn", "os.fork": "fork", "fcntl.flock": "flock", "socket.__new__": "socket",
    "socket.sendmsg": "send",
}  # fmt: skip


def _watch(counter: _Counter) -> None:
    """Count what Python announces before it does it, and what it does not announce but is a step as well."""

    def on_event(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            place = counter.below(arguments[0])
            if place is not None:
                flags = arguments[2] if isinstance(arguments[2], int) else 0
                counter.step("create" if flags & os.O_CREAT else "open", place)
        elif event in _PATH_EVENTS:
            place = counter.below(arguments[1] if event == "socket.bind" else arguments[0])
            if place is not None:
                counter.step(_PATH_EVENTS[event], place)
        elif event in _OTHER_EVENTS:
            counter.step(_OTHER_EVENTS[event], event)

    def before(operation: str, function: Callable[..., Any], *, of_file: bool = True) -> Callable[..., Any]:
        def counted(*arguments: Any, **keywords: Any) -> Any:
            place = counter.below(arguments[0]) if of_file else operation
            if place is not None:
                counter.step(operation, place)
            return function(*arguments, **keywords)

        return counted

    os.write = before("write", os.write)
    os.ftruncate = before("truncate", os.ftruncate)
    os.fsync = before("sync", os.fsync)
    os.copy_file_range = before("copy", os.copy_file_range)
    os.memfd_create = before("memory file", os.memfd_create, of_file=False)
    os.pidfd_open = before("pidfd", os.pidfd_open, of_file=False)

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
            words = sql.split()
            reads = words[0] in ("SELECT", "ROLLBACK", "PRAGMA") or words[:2] == ["BEGIN"]
            counter.step("sql read" if reads else "sql", " ".join(words[:3]))
            return super().execute(sql, *arguments)

    connect = sqlite3.connect

    def counted_connect(path: Any, **keywords: Any) -> sqlite3.Connection:
        counter.step("database", "state.db")
        found: sqlite3.Connection = connect(path, factory=Connection, **keywords)
        return found

    sqlite3.connect = counted_connect  # type: ignore[assignment]
    sys.addaudithook(on_event)


def install(role: str) -> None:
    """Begin to count in this process, as its environment orders."""
    orders = json.loads(os.environ[ORDERS])
    if role == MSB:
        from microsandbox import _spawn

        this, given = str(Path(__file__).resolve()), _spawn._environment
        start = f"_f = {{'__name__': 'faults', '__file__': {this!r}}}; exec(open({this!r}).read(), _f)"
        _spawn._BOOTSTRAP = (
            f"{_spawn._BOOTSTRAP.partition('from microsandbox')[0]}{start}\n_f['install']('supervisor')\n"
            "from microsandbox.supervisor.__main__ import run; run(int(sys.argv[2]))"
        )
        _spawn._environment = lambda: {**given(), ORDERS: os.environ[ORDERS]}
    else:
        import importlib

        for name, value in orders["settings"].items():
            module, _, constant = name.rpartition(".")
            setattr(importlib.import_module(module), constant, value)
        if orders["agent"] is not None:
            from microsandbox_core import bootdisk

            agent = Path(orders["agent"])
            bootdisk.agent_binary = lambda: agent
    _watch(_Counter(role, orders))


def _main() -> None:
    install(MSB)
    from microsandbox_cli.__main__ import main

    main()


if __name__ == "__main__":
    _main()
