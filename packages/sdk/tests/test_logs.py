"""A sandbox's log from what the relay reports to what a reader gets: any bytes in, the same bytes out."""

from __future__ import annotations

import errno
import os
import re
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from microsandbox._directory import SandboxDirectory
from microsandbox._log_format import Record, decode, encode_event, encode_output, timestamp
from microsandbox._log_segments import SegmentReader, SegmentWriter, segment, segments
from microsandbox._state import Record as SandboxRecord
from microsandbox.errors import SandboxError
from microsandbox.logs import LINE_LIMIT, Lines, LogFilter, LogLine, LogReader, LogSource, read_log
from microsandbox.supervisor._exec_log import PIECE, ExecLog
from microsandbox.supervisor._log_writer import QUEUE_LIMIT, LogWriter
from microsandbox_core.relay_server import RelayServer

EVERYTHING = frozenset(LogSource)


class Clock:
    """The part of the relay's loop that a log uses: calls that are due later, made when the test says so."""

    def __init__(self) -> None:
        self.due: list[Callable[[], None]] = []

    def call_later(self, delay: float, callback: Callable[[], None]) -> None:
        assert delay > 0
        self.due.append(callback)

    def pass_by(self) -> None:
        due, self.due = self.due, []
        for callback in due:
            callback()


def new_log(directory: Path, **limits: int) -> tuple[ExecLog, Clock]:
    clock = Clock()
    return ExecLog(cast(RelayServer, clock), LogWriter(SegmentWriter(directory, **limits))), clock


def records_of(directory: Path) -> list[Record]:
    reader = SegmentReader(directory)
    found = []
    while lines := reader.read():
        decoded = [decode(line) for line in lines]
        found += [record for record in decoded if record is not None]
    reader.close()
    return found


def lines_of(home: Path, sources: frozenset[LogSource] = EVERYTHING) -> list[LogLine]:
    reader = LogReader(SandboxDirectory(home, ""), LogFilter(sources))
    found = []
    while (lines := reader.read()) is not None:
        found += lines
    found += reader.rest()
    reader.close()
    return found


# --------------------------------------------------------------------------------------------- the format


@given(
    st.binary() | st.text().map(str.encode) | st.text('\0\t\r\n"\\\x7fa').map(str.encode),
    st.integers(0, 2**62),
    st.none() | st.integers(0, 2**32),
)
def test_a_record_keeps_its_bytes_and_its_nanosecond(data: bytes, time_ns: int, pid: int | None) -> None:
    try:
        text = isinstance(data.decode(), str)
    except UnicodeDecodeError:
        text = False
    line = encode_output(time_ns, "stdout", "1-2", pid, data, text=text)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode(line) == Record(time_ns, "stdout", "1-2", pid, data)
    # What programs do that know RFC 3339 and no nanoseconds:
    if time_ns < 2**61:
        whole = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_ns // 1000)
        assert datetime.fromisoformat(timestamp(time_ns)) == whole


@given(st.binary().map(lambda data: data.decode(errors="surrogateescape")))
def test_an_event_takes_any_text(text: str) -> None:
    line = encode_event(1, "exec", text, session="1", details={"argv": [text]})
    assert line.count(b"\n") == 1
    record = decode(line)
    assert record is not None
    assert record.data == os.fsencode(text) + b"\n"
    assert record.details == {"argv": [text]}


@given(
    st.binary() | st.sampled_from([b"", b"{}", b"[]", b"null", b'{"time":1}', b'{"time":"x","source":"y"}'])
)
def test_what_is_no_record_is_left_out(line: bytes) -> None:
    assert decode(line) is None


@given(st.integers(1, 500))
def test_a_torn_record_is_left_out(cut: int) -> None:
    line = encode_output(1, "stdout", "1-2", 7, b"x" * 400, text=True)
    assert decode(line[: min(cut, len(line) - 2)]) is None


# --------------------------------------------------------------------------------------------- the writer

OUTPUTS = st.lists(
    st.tuples(
        st.integers(1, 3),
        st.sampled_from([1, 2]),
        st.binary(max_size=50) | st.text(max_size=20).map(str.encode) | st.sampled_from([b"\xc3", b"\xa4\n"]),
        st.booleans(),
    ),
    max_size=40,
)


@settings(deadline=None)  # it waits for the disk
@given(OUTPUTS, st.integers(1, 400))
def test_any_bytes_in_the_same_bytes_out(outputs: list[tuple[int, int, bytes, bool]], size: int) -> None:
    with tempfile.TemporaryDirectory() as path:
        home = Path(path)
        directory = SandboxDirectory(home, "").logs
        directory.parent.mkdir()
        log, clock = new_log(directory, size=size, count=10_000)
        expected: dict[tuple[str, str], bytes] = defaultdict(bytes)
        for stream in (1, 2, 3):
            log.exec_opened(stream, {"argv": [b"%d" % stream]})
            log.exec_started(stream, {"pid": stream + 100})
        for stream, channel, data, pause in outputs:
            if data:
                log.exec_output(stream, channel, data)
                expected[str(stream), {1: "stdout", 2: "stderr"}[channel]] += data
            if pause:
                clock.pass_by()
        log.exec_ended(1, {"code": 0})
        log.close()
        found: dict[tuple[str, str], bytes] = defaultdict(bytes)
        for line in lines_of(home):
            if line.source is not LogSource.SYSTEM:
                assert line.session is not None
                stream_name = line.session.partition("-")[2]
                assert line.pid == int(stream_name) + 100
                found[stream_name, line.source] += line.data
                assert line.data.count(b"\n") - line.data.endswith(b"\n") == 0
        assert found == expected


@settings(deadline=None)  # it waits for the disk
@given(st.text(min_size=1), st.data())
def test_text_stays_text_however_it_is_cut(text: str, data: st.DataObject) -> None:
    encoded = text.encode()
    with tempfile.TemporaryDirectory() as path:
        log, clock = new_log(Path(path))
        log.exec_opened(1, {"argv": [b"x"]})
        while encoded:
            cut = data.draw(st.integers(1, len(encoded)))
            log.exec_output(1, 1, encoded[:cut])
            encoded = encoded[cut:]
            clock.pass_by()
        log.exec_ended(1, {"code": 0})
        log.close()
        raw = b"".join(segment(Path(path), number).read_bytes() for number in segments(Path(path)))
        assert b"base64" not in raw
        records = records_of(Path(path))
        assert b"".join(r.data for r in records if r.source == "stdout").decode() == text


def test_the_life_of_a_command_is_recorded_in_order(tmp_path: Path) -> None:
    log, _ = new_log(tmp_path)
    log.event("start", "started (kvm)", details={"isolation": "kvm"})
    log.exec_opened(
        3, {"argv": [b"sh", b"-c", b"a\xff b"], "user": "demo", "cwd": b"/srv", "env": [b"S=secret"]}
    )
    log.exec_started(3, {"pid": 7})
    log.exec_output(3, 1, b"out")
    log.exec_output(3, 2, b"err")
    log.exec_ended(3, {"signal": 9, "timed_out": True, "oom_killed": False})
    log.exec_opened(4, {"argv": [b"nothing"]})
    log.exec_ended(4, {"error": {"kind": "not_found", "message": "no such file"}})
    log.event("stop", "ended: idle for 30 s", details={"reason": "idle for 30 s"})
    log.close()
    records = records_of(tmp_path)
    assert [record.event or record.source for record in records] == [
        "start", "exec", "stdout", "stderr", "exit", "exec", "failed", "stop",
    ]  # fmt: skip
    asked, out, _, ended = records[1:5]
    assert asked.details == {"argv": ["sh", "-c", "a\udcff b"], "user": "demo", "cwd": "/srv"}
    assert (out.session, out.pid, out.data) == (asked.session, 7, b"out")
    assert ended.details == {"signal": 9, "timed_out": True}
    assert ended.data == b"exec ended: signal 9, timed out\n"
    assert records[6].data == b"exec failed: not_found: no such file\n"
    assert records[7].details == {"reason": "idle for 30 s"}
    # Variables are where secrets are.
    assert b"secret" not in segment(tmp_path, 1).read_bytes()


def test_a_long_command_line_is_cut(tmp_path: Path) -> None:
    log, _ = new_log(tmp_path)
    log.exec_opened(1, {"argv": [b"x" * 3000, b"y" * 3000, b"z", *[b""] * 10_000]})
    log.close()
    (record,) = records_of(tmp_path)
    assert record.details["cut"]
    assert [argument[0] for argument in record.details["argv"]] == ["x", "y"]
    assert len(record.data) < 6000


def test_single_bytes_become_few_records_and_large_output_does_not_wait(tmp_path: Path) -> None:
    log, clock = new_log(tmp_path)
    log.exec_opened(1, {"argv": [b"x"]})
    clock.pass_by()
    for _ in range(10_000):
        log.exec_output(1, 1, b"y")
    assert len(clock.due) == 1
    clock.pass_by()
    for _ in range(20):
        log.exec_output(1, 1, b"z" * PIECE)
    log.close()
    records = [record for record in records_of(tmp_path) if record.source == "stdout"]
    assert [len(record.data) for record in records] == [10_000, *[PIECE] * 20]


class Disk(SegmentWriter):
    """A log's files on a disk that is full, or stuck, when the test says so."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.full = False
        self.works = threading.Event()
        self.works.set()
        self.reached = threading.Event()

    def append(self, lines: Sequence[bytes]) -> tuple[int, OSError | None]:
        self.reached.set()
        self.works.wait(120)
        if self.full:
            return 0, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().append(lines)


def output(number: int) -> bytes:
    return encode_output(number, "stdout", "1-1", None, b"x", text=True)


def test_what_a_full_disk_did_not_take_is_counted_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("microsandbox.supervisor._log_writer.RETRY", 0)
    disk = Disk(tmp_path)
    writer = LogWriter(disk)
    writer.write([output(1)], [10])
    drain(writer)
    disk.full = True
    for number in range(2, 5):
        writer.write([output(number)], [10])
    drain(writer)
    disk.full = False
    writer.write([output(5)], [10])
    assert writer.close(120)
    before, lost, after = records_of(tmp_path)
    assert (before.time_ns, after.time_ns) == (1, 5)
    assert lost.event == "lost"
    assert lost.details == {"bytes": 30, "reason": os.strerror(errno.ENOSPC)}


def test_what_was_lost_at_the_end_is_counted_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However long it takes to come to the second one.
    monkeypatch.setattr("microsandbox.supervisor._log_writer.RETRY", 3600)
    disk = Disk(tmp_path)
    writer = LogWriter(disk)
    disk.full = True
    writer.write([output(1)], [10])
    drain(writer)
    disk.full = False
    writer.write([output(2)], [10])  # too soon after the failure: the disk is not tried
    drain(writer)
    assert writer.close(120)
    (lost,) = records_of(tmp_path)
    assert lost.details["bytes"] == 20


def test_a_stuck_disk_holds_up_nobody_and_memory_is_bounded(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    writer = LogWriter(disk)
    disk.works.clear()
    line = encode_output(1, "stdout", "1-1", None, b"x" * PIECE, text=True)
    count = 4 * QUEUE_LIMIT // PIECE
    for _ in range(count):
        writer.write([line], [PIECE])
    assert not writer.close(0.01)
    disk.works.set()
    assert writer.close(120)
    records = records_of(tmp_path)
    kept = [record for record in records if record.source == "stdout"]
    (lost,) = [record for record in records if record.event == "lost"]
    assert len(kept) * PIECE + lost.details["bytes"] == count * PIECE
    assert QUEUE_LIMIT - 2 * len(line) <= len(kept) * len(line) <= QUEUE_LIMIT


def test_a_log_without_anything_to_say_starts_no_thread(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    log, _ = new_log(tmp_path / "logs")
    log.close()
    assert set(threading.enumerate()) <= before
    assert not (tmp_path / "logs").exists()


def drain(writer: LogWriter) -> None:
    """Wait until the thread has dealt with all that was handed to it."""
    done = threading.Event()

    class Marker(list[bytes]):
        def __iter__(self) -> Any:
            done.set()
            return super().__iter__()

    writer._queue.put((Marker(), []))
    assert done.wait(120)


# --------------------------------------------------------------------------------------------- the reader


def piece(data: bytes, *, session: str = "1", source: str = "stdout", time_ns: int = 1) -> Record:
    return Record(time_ns, source, session, None, data)


def test_lines_of_several_commands_do_not_mix() -> None:
    lines = Lines()
    assert lines.feed(piece(b"one ", time_ns=1)) == []
    assert lines.feed(piece(b"two ", session="2", time_ns=2)) == []
    assert lines.feed(piece(b"err\r\n", source="stderr")) == [LogLine(LogSource.STDERR, b"err\r\n", 1, "1")]
    assert lines.feed(piece(b"end\nnext", time_ns=3)) == [LogLine(LogSource.STDOUT, b"one end\n", 1, "1")]
    ended = Record(4, "system", "1", None, b"exec ended\n", "exit")
    assert [line.data for line in lines.feed(ended)] == [b"next", b"exec ended\n"]
    assert [line.data for line in lines.rest()] == [b"two "]


def test_a_line_without_end_is_given_out_in_parts() -> None:
    lines = Lines()
    found = [line for _ in range(10) for line in lines.feed(piece(b"x" * (LINE_LIMIT // 4)))]
    assert [len(line.data) for line in found] == [LINE_LIMIT] * 2


def test_the_console_is_read_over_its_rotation(tmp_path: Path) -> None:
    directory = SandboxDirectory(tmp_path, "")
    directory.path.mkdir()
    old = directory.console_log.with_name("console.log.1")
    old.write_bytes(b"a\n")
    directory.console_log.write_bytes(b"b\nc")
    reader = LogReader(directory, LogFilter(frozenset({LogSource.CONSOLE})))

    def read() -> list[bytes]:
        found = []
        while (lines := reader.read()) is not None:
            found += [line.data for line in lines]
        return found

    assert read() == [b"a\n", b"b\n"]
    with directory.console_log.open("ab") as file:
        file.write(b"d\n")
    directory.console_log.replace(old)
    directory.console_log.write_bytes(b"e")
    assert read() == [b"cd\n"]
    assert [line.data for line in reader.rest()] == [b"e"]
    reader.close()


def record(name: str, *, ephemeral: bool) -> SandboxRecord:
    return SandboxRecord("0123456789abcdef", name, ephemeral, 0, "busybox", "sha256:0", b"")


def test_a_sandbox_without_a_log_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="keeps no log"):
        read_log(tmp_path, record("msb-01234567", ephemeral=True))
    read_log(tmp_path, record("msb-01234567", ephemeral=True), sources=["console"])
    read_log(tmp_path, record("dev", ephemeral=True))


@pytest.mark.asyncio
async def test_what_is_wanted_of_a_log(tmp_path: Path) -> None:
    kept = record("dev", ephemeral=False)
    directory = SandboxDirectory(tmp_path, kept.id).logs
    directory.mkdir(parents=True)
    writer = SegmentWriter(directory)
    second = 1_000_000_000
    writer.append(
        [
            encode_output(n * second, "stdout" if n % 2 else "stderr", "1", 5, b"line %d\n" % n, text=True)
            for n in range(10)
        ]
    )
    writer.append([encode_event(20 * second, "lost", "30 bytes were not logged", details={"bytes": 30})])
    writer.append([encode_output(21 * second, "stdout", "1", 5, b"rest", text=True)])
    writer.close()

    async def read(**wanted: Any) -> list[str]:
        return [line.text.strip() async for lines_ in _batches(kept, wanted) for line in lines_]

    def _batches(found: SandboxRecord, wanted: dict[str, Any]) -> Any:
        return read_log(tmp_path, found, **wanted)

    every = [f"line {n}" for n in range(10)]
    hole = "30 bytes were not logged"
    assert await read() == [*every, hole, "rest"]
    assert await read(tail=3) == ["line 9", hole, "rest"]
    assert await read(tail=0) == []
    assert await read(sources=["stderr"]) == [*every[::2], hole]
    assert await read(grep=re.compile("[45]$")) == ["line 4", "line 5", hole]
    at = datetime.fromtimestamp(4, tz=UTC)
    assert await read(since=at, until=at + timedelta(seconds=2)) == ["line 4", "line 5", "line 6"]
    assert await read(follow=True, tail=1) == ["rest"]  # nobody runs it
    for wrong in (
        {"tail": -1},
        {"sources": ["nonsense"]},
        {"since": datetime(2026, 1, 1)},
        {"since": at, "sources": ["console"]},
    ):
        with pytest.raises(ValueError, match=r"tail|nonsense|zone|times"):
            await read(**wrong)
