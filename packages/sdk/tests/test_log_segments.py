"""The log on disk: whole lines in, the same lines out, whatever happens to the writer or its disk."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from microsandbox._log_segments import SegmentReader, SegmentWriter, segment, segments

LINES = st.lists(st.binary(max_size=40).map(lambda line: line.replace(b"\n", b"-") + b"\n"), max_size=30)


def read_all(reader: SegmentReader) -> list[bytes]:
    found = []
    while lines := reader.read():
        found += lines
    return found


def lines_of(directory: Path) -> list[bytes]:
    reader = SegmentReader(directory)
    try:
        return read_all(reader)
    finally:
        reader.close()


def append(writer: SegmentWriter, lines: Sequence[bytes]) -> None:
    assert writer.append(lines) == (len(lines), None)


@settings(deadline=None)  # it waits for the disk
@given(st.lists(LINES, max_size=8), st.integers(1, 200), st.integers(1, 5))
def test_the_newest_lines_are_kept_in_order_and_files_are_bounded(
    batches: list[list[bytes]], size: int, count: int
) -> None:
    with tempfile.TemporaryDirectory() as path:
        directory = Path(path) / "logs"
        writer = SegmentWriter(directory, size=size, count=count)
        for batch in batches:
            append(writer, batch)
        writer.close()
        every = [line[:-1] for batch in batches for line in batch]
        kept = lines_of(directory)
        assert kept == every[len(every) - len(kept) :]
        numbers = segments(directory)
        assert len(numbers) <= count
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else not every
        sizes = [segment(directory, number).stat().st_size for number in numbers]
        longest = max(map(len, every), default=0) + 1
        assert all(used <= max(size, longest) for used in sizes)
        # Nothing is thrown away while there is room: what is kept and the next older line fill the files.
        if len(kept) < len(every):
            assert len(numbers) == count


@settings(deadline=None)  # it waits for the disk
@given(st.lists(LINES, max_size=8), st.integers(1, 200))
def test_a_reader_that_keeps_up_sees_every_line_once(batches: list[list[bytes]], size: int) -> None:
    with tempfile.TemporaryDirectory() as path:
        directory = Path(path) / "logs"
        writer, reader = SegmentWriter(directory, size=size, count=1000), SegmentReader(directory)
        for batch in batches:
            append(writer, batch)
            assert read_all(reader) == [line[:-1] for line in batch]
        assert reader.missed == 0
        writer.close()
        reader.close()


@settings(deadline=None)  # it waits for the disk
@given(LINES, LINES, st.data())
def test_a_torn_last_line_is_left_out_and_the_next_writer_goes_on(
    before: list[bytes], after: list[bytes], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as path:
        directory = Path(path)
        append_and_close(directory, before)
        whole = b"".join(before)
        cut = data.draw(st.integers(0, len(whole)))
        if before:
            os.truncate(segment(directory, 1), cut)
        intact = whole[:cut].split(b"\n")
        torn = intact.pop()
        assert lines_of(directory) == intact
        append_and_close(directory, after)
        rest = [line[:-1] for line in after]
        # The torn line has got an end, and what is in it is no record: decoding it leaves it out.
        assert lines_of(directory) == [*intact, *([torn] if torn and after else []), *rest]


def append_and_close(directory: Path, lines: Sequence[bytes]) -> None:
    writer = SegmentWriter(directory)
    append(writer, lines)
    writer.close()


def test_a_line_longer_than_a_read_is_read(tmp_path: Path) -> None:
    long = b"x" * (1 << 20)
    append_and_close(tmp_path, [b"a\n", long + b"\n", b"b\n"])
    assert lines_of(tmp_path) == [b"a", long, b"b"]


def test_a_reader_that_falls_behind_goes_on_and_knows_how_much_it_missed(tmp_path: Path) -> None:
    writer, reader = SegmentWriter(tmp_path, size=4, count=2), SegmentReader(tmp_path)
    append(writer, [b"001\n"])
    assert read_all(reader) == [b"001"]
    append(writer, [b"%03d\n" % number for number in range(2, 9)])
    assert read_all(reader) == [b"007", b"008"]
    assert reader.missed == 5
    writer.close()
    reader.close()


def test_no_log_is_an_empty_log(tmp_path: Path) -> None:
    assert lines_of(tmp_path / "nowhere") == []
    assert not (tmp_path / "nowhere").exists()


def test_files_that_are_not_ours_stay(tmp_path: Path) -> None:
    (tmp_path / "notes.jsonl").write_text("mine")
    (tmp_path / "1.txt").write_text("mine")
    append_and_close(tmp_path, [b"a\n"])
    assert lines_of(tmp_path) == [b"a"]
    assert (tmp_path / "notes.jsonl").read_text() == "mine"


@settings(deadline=None)  # it waits for the disk
@given(st.integers(0, 60), st.lists(st.integers(1, 20), max_size=8))
def test_a_disk_that_is_full_tears_no_line_and_takes_more_when_there_is_room(
    room: int, lengths: list[int]
) -> None:
    lines = [b"x" * length + b"\n" for length in lengths]
    with tempfile.TemporaryDirectory() as path:
        directory = Path(path)
        writer = SegmentWriter(directory)
        with limited_files(room):
            kept, error = writer.append(lines)
        fitting = 0
        while fitting < len(lines) and sum(map(len, lines[: fitting + 1])) <= room:
            fitting += 1
        assert kept == fitting
        assert (error is None) == (fitting == len(lines))
        assert error is None or error.errno == errno.EFBIG
        assert lines_of(directory) == [line[:-1] for line in lines[:kept]]
        append(writer, lines[kept:])
        assert lines_of(directory) == [line[:-1] for line in lines]
        writer.close()


class limited_files:  # noqa: N801 - reads as a function
    """RLIMIT_FSIZE, which Python lets be an error: a write stops in the middle, as on a full disk."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __enter__(self) -> None:
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self._size, self._before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)


def test_what_a_killed_writer_has_written_is_there(tmp_path: Path) -> None:
    script = """
import sys, pathlib
from microsandbox._log_segments import SegmentWriter
writer = SegmentWriter(pathlib.Path(sys.argv[1]), size=1 << 16)
number = 0
while True:
    writer.append([b"%d\\n" % (number + i) for i in range(100)])
    number += 100
    if number == 10_000:
        print(flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    found = [int(line) for line in lines_of(tmp_path)]
    assert found == list(range(found[0], found[0] + len(found)))
    assert found[-1] >= 9_999


@pytest.mark.parametrize("victim", ["directory", "file"])
def test_a_log_that_somebody_deletes_does_not_stop_the_writer(tmp_path: Path, victim: str) -> None:
    directory = tmp_path / "logs"
    writer = SegmentWriter(directory, size=4)
    append(writer, [b"001\n"])
    segment(directory, 1).unlink()
    if victim == "directory":
        directory.rmdir()
    kept, error = writer.append([b"002\n"])
    assert (kept, error is None) in ((1, True), (0, False))
    writer.close()
    append(writer, [b"003\n"])
    assert lines_of(directory)[-1] == b"003"
    writer.close()
