"""What a sandbox has logged: its commands' output, what happened to it, its console."""

from __future__ import annotations

import asyncio
import os
import re
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from microsandbox import _attach, _create, _life
from microsandbox._directory import SandboxDirectory
from microsandbox._inotify import CREATE, MODIFY, MOVED_TO, Watch
from microsandbox._log_format import Record, decode
from microsandbox._log_segments import SegmentReader
from microsandbox._state import Record as SandboxRecord
from microsandbox.errors import SandboxError, StateError

LINE_LIMIT = 1 << 16
"""Bytes after which a line that does not end is given out in parts."""
_RECHECK = 0.5  # seconds between looks at a sandbox that is just starting


class LogSource(StrEnum):
    """Where a line comes from. ``system``: what happened to the sandbox and its commands; ``console``: the
    guest's kernel and the VMM; ``supervisor``: the process on the host, mostly silent."""

    STDOUT = "stdout"
    STDERR = "stderr"
    SYSTEM = "system"
    CONSOLE = "console"
    SUPERVISOR = "supervisor"


TIMELESS = frozenset({LogSource.CONSOLE, LogSource.SUPERVISOR})
"""Sources whose lines have no time."""

OUTPUT = (LogSource.STDOUT, LogSource.STDERR)

HOLES = frozenset({"lost", "missed"})
"""Events that say that output is missing: whoever asks for output is told."""


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of a log, exactly as it was written: `data` ends with its newline, unless the line never did
    or is longer than 64 KiB, in which case the next `LogLine` of the session goes on with it.

    `time_ns`: nanoseconds since the epoch at which the line began; None on the console. `session`: the
    command, `pid`: its process id in the guest. `event` and `details`: of lines of the system.
    """

    source: LogSource
    data: bytes
    time_ns: int | None = None
    session: str | None = None
    pid: int | None = None
    event: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def time(self) -> datetime | None:
        """When the line began, to the microsecond."""
        return None if self.time_ns is None else datetime.fromtimestamp(self.time_ns / 1e9, tz=UTC)

    @property
    def text(self) -> str:
        """The line as UTF-8; what is not is replaced."""
        return self.data.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class LogFilter:
    """Which lines are wanted. `since` and `until` are nanoseconds since the epoch."""

    sources: frozenset[LogSource]
    since: int | None = None
    until: int | None = None
    grep: re.Pattern[str] | None = None

    def takes(self, line: LogLine) -> bool:
        """Whether a line is wanted."""
        if line.source not in self.sources:
            if line.event not in HOLES or self.sources.isdisjoint(OUTPUT):
                return False
        elif self.grep is not None and not self.grep.search(line.text.removesuffix("\n")):
            return False
        if line.time_ns is None:
            return True
        return (self.since is None or line.time_ns >= self.since) and (
            self.until is None or line.time_ns <= self.until
        )


class Lines:
    """Makes lines of records: pieces of output begin and end where the guest happened to write."""

    def __init__(self) -> None:
        self._open: dict[tuple[str | None, str], tuple[Record, bytearray]] = {}

    def feed(self, record: Record) -> list[LogLine]:
        """The lines that are complete with this record."""
        if record.event is not None:
            ended = record.event in ("exit", "start", "stop")
            return [*(self.rest(record.session) if ended else []), _line(record, record.data)]
        found = []
        key = (record.session, record.source)
        for part in _split(record.data):
            begun, line = self._open.setdefault(key, (record, bytearray()))
            line += part
            if part.endswith(b"\n") or len(line) >= LINE_LIMIT:
                del self._open[key]
                found.append(_line(begun, bytes(line)))
        return found

    def rest(self, session: str | None = None) -> list[LogLine]:
        """Lines that have no end, of one command or of all; they will not go on."""
        found = []
        for key in [key for key in self._open if session is None or key[0] == session]:
            begun, line = self._open.pop(key)
            found.append(_line(begun, bytes(line)))
        return found


def _split(data: bytes) -> list[bytes]:
    """At newlines and nothing else, and these kept."""
    parts = [part + b"\n" for part in data.split(b"\n")]
    last = parts.pop()[:-1]
    return [*parts, last] if last else parts


def _line(record: Record, data: bytes) -> LogLine:
    return LogLine(
        LogSource(record.source),
        data,
        record.time_ns,
        record.session,
        record.pid,
        record.event,
        record.details,
    )


class _ExecLog:
    """The log of the commands and of the system."""

    def __init__(self, directory: SandboxDirectory) -> None:
        self._reader = SegmentReader(directory.logs)
        self._lines = Lines()
        self._missed = 0

    def read(self) -> list[LogLine] | None:
        """Some more lines, maybe none; None when there is nothing more now."""
        raw = self._reader.read()
        found = []
        if self._reader.missed != self._missed:
            missed = self._reader.missed - self._missed
            self._missed = self._reader.missed
            found += self._lines.rest()
            text = f"{missed} files of the log were replaced before they could be read\n"
            found.append(LogLine(LogSource.SYSTEM, text.encode(), event="missed", details={"files": missed}))
        for line in raw:
            record = decode(line)
            if record is not None:
                found += self._lines.feed(record)
        return found if raw or found else None  # what was read may be nothing that is whole

    def rest(self) -> list[LogLine]:
        return self._lines.rest()

    def close(self) -> None:
        self._reader.close()


class _TextLog:
    """A log without times: the console's, with the file before it, or the supervisor's."""

    def __init__(self, path: Path, source: LogSource) -> None:
        self._path = path
        self._source = source
        self._file = -1
        self._rest = b""
        self._open(path.with_name(path.name + ".1"))

    def read(self) -> list[LogLine] | None:
        if self._file < 0:
            self._open(self._path)
        while True:
            data = os.read(self._file, 1 << 16) if self._file >= 0 else b""
            if data:
                parts = _split(self._rest + data)
                self._rest = b""
                if not parts[-1].endswith(b"\n") and len(parts[-1]) < LINE_LIMIT:
                    self._rest = parts.pop()
                return [LogLine(self._source, part) for part in parts]
            # At the end of this file: on with the next one, if there is another under the name by now.
            if not self._replaced():
                return None
            self._open(self._path)

    def rest(self) -> list[LogLine]:
        rest, self._rest = self._rest, b""
        return [LogLine(self._source, rest)] if rest else []

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _replaced(self) -> bool:
        try:
            now = self._path.stat()
        except OSError:
            return False
        if self._file < 0:
            return True
        open_ = os.fstat(self._file)
        return (now.st_dev, now.st_ino) != (open_.st_dev, open_.st_ino)

    def _open(self, path: Path) -> None:
        self.close()
        with suppress(FileNotFoundError):
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)


class LogReader:
    """Reads what is wanted of a sandbox's log, and what comes later. Blocks for the disk."""

    def __init__(self, directory: SandboxDirectory, wanted: LogFilter) -> None:
        self._wanted = wanted
        self._logs: list[_TextLog | _ExecLog] = []
        if LogSource.CONSOLE in wanted.sources:
            self._logs.append(_TextLog(directory.console_log, LogSource.CONSOLE))
        if LogSource.SUPERVISOR in wanted.sources:
            self._logs.append(_TextLog(directory.supervisor_log, LogSource.SUPERVISOR))
        if wanted.sources - TIMELESS:
            self._logs.append(_ExecLog(directory))

    def read(self) -> list[LogLine] | None:
        """Some more lines, maybe none; None when there is nothing more now. Raises `OSError`."""
        for log in self._logs:
            lines = log.read()
            if lines is not None:
                return [line for line in lines if self._wanted.takes(line)]
        return None

    def rest(self) -> list[LogLine]:
        """The lines that have not ended, for whoever does not wait for their ends."""
        return [line for log in self._logs for line in log.rest() if self._wanted.takes(line)]

    def close(self) -> None:
        """Close the files."""
        for log in self._logs:
            log.close()


def read_log(
    home: Path,
    record: SandboxRecord,
    *,
    tail: int | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    sources: Collection[LogSource | str] = OUTPUT,
    grep: re.Pattern[str] | None = None,
    follow: bool = False,
) -> AsyncGenerator[list[LogLine], None]:
    """The lines of a sandbox's log, some at a time; see `Sandbox.logs_of`."""
    wanted = LogFilter(frozenset(map(LogSource, sources)), _nanoseconds(since), _nanoseconds(until), grep)
    if wanted.sources & TIMELESS and (since is not None or until is not None):
        raise ValueError("lines of the console and of the supervisor have no times to choose by")
    if tail is not None and tail < 0:
        raise ValueError(f"tail: {tail} is not a number of lines")
    if wanted.sources - TIMELESS and not _create.is_logged(record):
        raise SandboxError(
            f"the sandbox {record.name!r} keeps no log: it was created without a name",
            hint="give it a name: msb run --name NAME",
            code="no_log",
        )
    return _read(SandboxDirectory(home, record.id), record.name, wanted, tail, follow)


async def _read(
    directory: SandboxDirectory, name: str, wanted: LogFilter, tail: int | None, follow: bool
) -> AsyncGenerator[list[LogLine], None]:
    # Asked before the log is read: what does not run now has written everything.
    follow = follow and await asyncio.to_thread(directory.is_running)
    waiter = _waiter(directory, name) if follow else None
    reader = LogReader(directory, wanted)
    try:
        held: deque[LogLine] | None = None if tail is None else deque(maxlen=tail)
        while (lines := await _in_thread(reader.read, name)) is not None:
            if held is None:
                yield lines
            else:
                held.extend(lines)
        if waiter is None:
            lines = reader.rest()
            if held is not None:
                held.extend(lines)
                lines = list(held)
            yield lines
            return
        yield list(held or ())
        running = True
        while running:
            # In this order: what is written between the look and the wait ends the wait.
            running = await waiter.wait()
            while (lines := await _in_thread(reader.read, name)) is not None:
                yield lines
        yield reader.rest()
    finally:
        reader.close()
        if waiter is not None:
            waiter.close()


async def _in_thread(read: Callable[[], list[LogLine] | None], name: str) -> list[LogLine] | None:
    try:
        return await asyncio.to_thread(read)
    except OSError as error:
        raise StateError(
            f"the log of {name!r} cannot be read: {error.strerror}", hint="check MSB_HOME, and its disk"
        ) from error


def _waiter(directory: SandboxDirectory, name: str, files: Sequence[Path] | None = None) -> _Waiter:
    if files is None:
        files = (directory.console_log, directory.supervisor_log)
    try:
        return _Waiter(directory, files)
    except OSError as error:
        raise StateError(
            f"the log of {name!r} cannot be followed: {error.strerror}",
            hint="raise fs.inotify.max_user_instances, or leave out -f",
        ) from error


class _Waiter:
    """Waits for something new in a sandbox's logs or in these files of its directory, or for its end.

    Made before the first look at the log, so that nothing falls between that and the first wait.
    """

    def __init__(self, directory: SandboxDirectory, files: Sequence[Path]) -> None:
        self._directory = directory
        self._files = files
        self._pidfd: int | None = None
        self._watch = Watch()
        try:
            self._look_out()
        except OSError:
            self._watch.close()
            raise

    async def wait(self) -> bool:
        """Wait for a change. False if the sandbox does not run any more: then all has been written."""
        if self._pidfd is None:
            self._pidfd = await asyncio.to_thread(self._find)
            if self._pidfd is None and not await asyncio.to_thread(self._directory.is_running):
                return False
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()
        descriptors = [self._watch.descriptor, *([] if self._pidfd is None else [self._pidfd])]
        for descriptor in descriptors:
            loop.add_reader(descriptor, woken.set)
        try:
            # While it starts there is nothing yet by which the kernel would tell of its end.
            with suppress(TimeoutError):
                async with asyncio.timeout(_RECHECK if self._pidfd is None else None):
                    await woken.wait()
        finally:
            for descriptor in descriptors:
                loop.remove_reader(descriptor)
        ended = self._pidfd is not None and _attach.wait_gone(self._pidfd, 0)
        self._watch.clear()
        self._look_out()
        return not ended

    def _look_out(self) -> None:
        """Watch what there is by now. Not all that is written in the directory: the guest's disk is in it."""
        directory = self._directory
        self._watch.add(directory.path, CREATE | MOVED_TO)
        self._watch.add(directory.logs, CREATE | MODIFY)
        for path in self._files:
            self._watch.add(path, MODIFY)

    def _find(self) -> int | None:
        life = _life.read(self._directory)
        pidfd = None if life is None else _life.open_supervisor(life)
        # It may not have been able to write its record: the disk was full.
        return _attach.supervisor_of(self._directory.socket) if pidfd is None else pidfd

    def close(self) -> None:
        self._watch.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None


def _nanoseconds(moment: datetime | None) -> int | None:
    if moment is None:
        return None
    if moment.tzinfo is None:
        raise ValueError(f"{moment.isoformat()} has no time zone")
    whole = moment.replace(microsecond=0)
    return int(whole.timestamp()) * 1_000_000_000 + moment.microsecond * 1000
