"""The record of a sandbox's network decisions: who was asked for, and what the policy said.

The supervisor writes it as JSON lines to `network.log` in the sandbox's directory, and keeps one file before
that, `network.log.1`. What a crash or a full disk has cut off is passed over.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, TypedDict

from microsandbox._denials import Mark, mark
from microsandbox._directory import SandboxDirectory
from microsandbox.errors import StateError

DENIED_LIMIT = 1000
"""Denials of one command that `ExecOutput.denied` has, the last ones: a guest can cause any number."""

_CHUNK = 1 << 16


class AuditRecord(NamedTuple):
    """One decision. `direction`: ``egress`` or ``ingress``; `protocol`: ``tcp``, ``udp`` or ``icmp``;
    `address`: the other side's, and `port`, where the protocol has ports: that of the other side (egress) or
    in the sandbox (ingress). `name`: what was asked for or stated, in the guest's words. `action`: ``allow``,
    ``deny``, or ``allow-if-named`` for a flow whose client had yet to state a name. `rule`: in words.
    `lost`: so many decisions before this one were not put on record, because there were too many."""

    time: datetime
    direction: str
    protocol: str
    address: str
    port: int | None
    name: str | None
    action: str
    rule: str
    lost: int = 0

    @property
    def denied(self) -> bool:
        """Whether it was stopped."""
        return self.action == "deny"


class AuditChoice(TypedDict, total=False):
    """Which records are wanted; see `Sandbox.audit_of`."""

    denied: bool
    tail: int | None
    since: datetime | None
    until: datetime | None
    follow: bool


def parse(line: bytes) -> AuditRecord | int | None:
    """A record; a number for so many that were lost; None for what is neither, such as half a line."""
    try:
        values = json.loads(line)
        if not isinstance(values, dict):
            return None
        if "lost" in values:
            return int(values["lost"])
        port, name = values.get("port"), values.get("name")
        return AuditRecord(
            datetime.fromtimestamp(values["time"], tz=UTC),
            str(values["direction"]),
            str(values["protocol"]),
            str(values["address"]),
            None if port is None else int(port),
            None if name is None else str(name),
            str(values["action"]),
            str(values["rule"]),
        )
    except (ValueError, TypeError, LookupError, OverflowError, OSError):
        return None


class AuditReader:
    """Reads the record from its beginning or from a mark, over the change of files. Blocks for the disk."""

    def __init__(self, log: Path, begin: Mark | None = None) -> None:
        self._files = (log.with_name(log.name + ".1"), log)
        self._file = -1
        self._rest = b""
        self._lost = 0
        for path in self._files:
            self._open(path)
            if self._file >= 0 and (begin is None or self._has(begin)):
                break
        else:
            # The file of the mark is gone: all that there is came later.
            begin = None
            self._open(self._files[0])
        if self._file >= 0 and begin is not None:
            os.lseek(self._file, begin.offset, os.SEEK_SET)

    def _has(self, place: Mark) -> bool:
        # An inode that was given up is given to another file.
        found = os.fstat(self._file)
        return found.st_ino == place.inode and found.st_size >= place.offset

    def read(self) -> list[AuditRecord] | None:
        """Some more records, maybe none; None when there are no more now. Raises `OSError`."""
        while True:
            data = os.read(self._file, _CHUNK) if self._file >= 0 else b""
            if data:
                *lines, self._rest = (self._rest + data).split(b"\n")
                return list(self._records(lines))
            if not self._open_next():
                return None

    def _records(self, lines: list[bytes]) -> Iterator[AuditRecord]:
        for line in lines:
            found = parse(line)
            if isinstance(found, AuditRecord):
                yield found._replace(lost=self._lost) if self._lost else found
                self._lost = 0
            elif found is not None:
                self._lost += found

    def _open_next(self) -> bool:
        """On with the file after the one that has been read to its end, if there is one by now."""
        # In this order: a change in between must not make the file we have read look like an earlier one.
        now = mark(self._files[1])
        before = mark(self._files[0])
        ours = None if self._file < 0 else os.fstat(self._file).st_ino
        if now is not None and now.inode == ours:
            return False
        # Where ours has gone there were two changes since, and the earlier file comes first.
        path = self._files[0 if before is not None and before.inode != ours else 1]
        if path is self._files[1] and now is None:
            return False
        self._rest = b""
        self._open(path)
        return self._file >= 0

    def _open(self, path: Path) -> None:
        self.close()
        with suppress(FileNotFoundError):
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def denied_since(log: Path, begin: Mark | None, moment: float) -> tuple[AuditRecord, ...]:
    """The denials behind a mark and not before a time (seconds since 1970), the last `DENIED_LIMIT`.

    Raises `StateError`.
    """
    found: deque[AuditRecord] = deque(maxlen=DENIED_LIMIT)
    earliest = datetime.fromtimestamp(moment, tz=UTC)
    try:
        reader = AuditReader(log, begin)
        try:
            while (records := reader.read()) is not None:
                found.extend(record for record in records if record.denied and record.time >= earliest)
        finally:
            reader.close()
    except OSError as error:
        raise StateError(
            f"cannot read {log}: {error.strerror}", hint="check MSB_HOME, and its disk"
        ) from error
    return tuple(found)


async def read_audit(
    directory: SandboxDirectory,
    name: str,
    *,
    denied: bool = False,
    tail: int | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    follow: bool = False,
) -> AsyncGenerator[AuditRecord, None]:
    """The records that are wanted, oldest first; see `Sandbox.audit_of`."""
    if tail is not None and tail < 0:
        raise ValueError(f"tail: {tail} is not a number of records")
    for moment in (since, until):
        if moment is not None and moment.tzinfo is None:
            raise ValueError(f"{moment.isoformat()} has no time zone")
    from microsandbox.logs import _waiter

    # Asked before the record is read: what does not run now has written everything.
    follow = follow and await asyncio.to_thread(directory.is_running)
    waiter = _waiter(directory, name, (directory.network_log,)) if follow else None
    reader = AuditReader(directory.network_log)
    lost = 0

    def chosen(records: list[AuditRecord]) -> Iterator[AuditRecord]:
        nonlocal lost
        for record in records:
            lost += record.lost
            if denied and not record.denied:
                continue
            if (since is None or record.time >= since) and (until is None or record.time <= until):
                yield record._replace(lost=lost) if lost != record.lost else record
                lost = 0

    try:
        held: deque[AuditRecord] = deque(maxlen=tail)
        while (records := await _in_thread(reader, name)) is not None:
            held.extend(chosen(records))
            if tail is None:
                while held:
                    yield held.popleft()
        while held:
            yield held.popleft()
        running = waiter is not None
        while running and waiter is not None:
            # In this order: what is written between the look and the wait ends the wait.
            running = await waiter.wait()
            while (records := await _in_thread(reader, name)) is not None:
                for record in chosen(records):
                    yield record
    finally:
        reader.close()
        if waiter is not None:
            waiter.close()


async def _in_thread(reader: AuditReader, name: str) -> list[AuditRecord] | None:
    try:
        return await asyncio.to_thread(reader.read)
    except OSError as error:
        raise StateError(
            f"the network record of {name!r} cannot be read: {error.strerror}",
            hint="check MSB_HOME, and its disk",
        ) from error
