"""The record of network decisions: what is read of it, over changes of files and cuts."""

import asyncio
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from microsandbox import AuditRecord
from microsandbox._denials import Window, mark
from microsandbox._directory import SandboxDirectory
from microsandbox.audit import DENIED_LIMIT, AuditReader, denied_since, parse, read_audit

NOW = 1_800_000_000.5


def line(number: int = 0, *, action: str = "deny", time: float = NOW, **more: Any) -> bytes:
    values = {
        "time": time, "direction": "egress", "protocol": "tcp", "address": "192.0.2.1", "port": number,
        "action": action, "rule": "policy none: no rule allows it",
    }  # fmt: skip
    return json.dumps(values | more).encode() + b"\n"


@pytest.fixture
def directory(tmp_path: Path) -> SandboxDirectory:
    found = SandboxDirectory(tmp_path, "0123456789abcdef")
    found.path.mkdir(parents=True)
    return found


@pytest.fixture
def log(directory: SandboxDirectory) -> Path:
    return directory.network_log


def rotate(log: Path) -> None:
    log.replace(log.with_name("network.log.1"))


def append(log: Path, *lines: bytes) -> None:
    with log.open("ab") as file:
        file.write(b"".join(lines))


def ports(reader: AuditReader) -> list[int]:
    found: list[int] = []
    while (records := reader.read()) is not None:
        found += [record.port for record in records if record.port is not None]
    return found


def test_a_record_has_types() -> None:
    told = parse(line(443, name="example.com"))
    assert told == AuditRecord(
        datetime.fromtimestamp(NOW, tz=UTC),
        "egress",
        "tcp",
        "192.0.2.1",
        443,
        "example.com",
        "deny",
        "policy none: no rule allows it",
    )
    assert isinstance(told, AuditRecord)
    assert told.denied
    ping = json.loads(line()) | {"protocol": "icmp"}
    del ping["port"]
    found = parse(json.dumps(ping).encode())
    assert isinstance(found, AuditRecord)
    assert (found.port, found.name) == (None, None)


@pytest.mark.parametrize(
    "cut",
    [b"", b"{", b"[]", b"1", b'"x"', b"{}", line()[:-9], b'{"time": 1e300}', line(time=1e300), b"\xff\n"],
)
def test_what_is_cut_off_is_no_record(cut: bytes) -> None:
    assert parse(cut) is None


@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_no_line_is_more_than_passed_over(data: bytes) -> None:
    assert parse(data) is None or parse(data) is not None


def test_both_files_are_read_in_order_and_what_is_cut_passed_over(log: Path) -> None:
    append(log, line(1), line(2), line(3)[:-20])
    rotate(log)
    append(log, b'{"lost":7}\n', line(4), b"\0\0\0\n", line(5)[:-1])
    reader = AuditReader(log)
    records = [*(reader.read() or ()), *(reader.read() or ())]
    assert [(record.port, record.lost) for record in records] == [(1, 0), (2, 0), (4, 7)]
    # The rest of a line may come later.
    append(log, b"\n")
    assert ports(reader) == [5]
    reader.close()


def test_a_record_that_is_not_there_yet_is_empty_until_it_is(log: Path) -> None:
    reader = AuditReader(log)
    assert reader.read() is None
    append(log, line(1))
    assert ports(reader) == [1]
    reader.close()


@settings(deadline=None)
@given(st.lists(st.sampled_from(["line", "rotate", "read"]), max_size=30))
def test_who_reads_along_misses_only_what_two_changes_took(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    log = tmp_path_factory.mktemp("audit") / "network.log"
    reader, written, since = AuditReader(log), 0, 0
    seen: list[int] = []
    for step in [*steps, "read"]:
        if step == "line":
            append(log, line(written))
            written += 1
        elif step == "rotate" and log.exists():
            rotate(log)
            since += 1
        elif step == "read":
            before = len(seen)
            seen += ports(reader)
            if since < 2:
                assert seen[before:] == list(range(seen[before - 1] + 1 if before else 0, written))
            since = 0
    assert seen == sorted(set(seen))
    reader.close()


def test_the_denials_of_a_time_are_those_written_in_it(log: Path) -> None:
    append(log, line(0), line(1))
    begin = mark(log)
    append(log, line(2), line(3, action="allow"), line(4, time=NOW - 1))
    rotate(log)
    append(log, line(5))
    assert [record.port for record in denied_since(log, begin, NOW)] == [2, 5]
    # The file of the mark has gone: all that there is came later.
    rotate(log)
    append(log, line(6))
    assert [record.port for record in denied_since(log, begin, NOW)] == [5, 6]
    assert [record.port for record in denied_since(log, None, NOW)] == [5, 6]


def test_a_command_in_whose_time_nothing_was_decided_reads_nothing(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Window(log).is_empty
    append(log, line(1))
    window = Window(log)
    assert window.denied() == ()
    append(log, line(2, time=window._time))
    assert (window.is_empty, Window(log).is_empty) == (False, True)
    assert [record.port for record in window.denied()] == [2]


def test_there_is_a_limit_to_the_denials_of_a_command(log: Path) -> None:
    append(log, *(line(number) for number in range(DENIED_LIMIT + 5)))
    found = denied_since(log, None, NOW)
    assert (len(found), found[-1].port) == (DENIED_LIMIT, DENIED_LIMIT + 4)


def test_the_window_of_a_sandbox_that_has_gone_is_empty(log: Path) -> None:
    append(log, line(1))
    window = Window(log)
    log.unlink()
    assert window.denied() == ()


def read(directory: SandboxDirectory, **wanted: Any) -> list[AuditRecord]:
    async def main() -> list[AuditRecord]:
        return [record async for record in read_audit(directory, "dev", **wanted)]

    return asyncio.run(main())


def test_records_are_chosen(directory: SandboxDirectory, log: Path) -> None:
    minute = timedelta(minutes=1)
    append(
        log, line(1, time=NOW - 90), b'{"lost":3}\n', line(2, action="allow"), line(3), line(4, time=NOW + 90)
    )
    moment = datetime.fromtimestamp(NOW, tz=UTC)

    def chosen(**wanted: Any) -> list[int | None]:
        return [record.port for record in read(directory, **wanted)]

    assert chosen() == [1, 2, 3, 4]
    assert chosen(tail=2) == [3, 4]
    assert chosen(tail=0) == []
    assert chosen(denied=True) == [1, 3, 4]
    assert chosen(since=moment - minute, until=moment + minute) == [2, 3]
    # What was lost is told by the next record that is shown.
    assert [record.lost for record in read(directory, denied=True)] == [0, 3, 0]
    with pytest.raises(ValueError, match="tail: -1"):
        chosen(tail=-1)
    with pytest.raises(ValueError, match="no time zone"):
        chosen(since=datetime(2026, 1, 1))


def test_a_record_is_followed_until_the_sandbox_ends(directory: SandboxDirectory, log: Path) -> None:
    append(log, line(1))
    lock = os.open(directory.lock, os.O_CREAT | os.O_RDWR)
    import fcntl

    fcntl.flock(lock, fcntl.LOCK_EX)

    def go_on() -> None:
        rotate(log)
        append(log, line(3))

    async def main() -> list[int | None]:
        seen: list[int | None] = []
        steps: dict[int, Callable[[], object]] = {
            1: lambda: append(log, line(2)),
            2: go_on,
            3: lambda: os.close(lock),
        }
        async for record in read_audit(directory, "dev", follow=True):
            assert record.port is not None
            seen.append(record.port)
            steps[record.port]()
        return seen

    assert asyncio.run(asyncio.wait_for(main(), 120)) == [1, 2, 3]
