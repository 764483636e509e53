"""A sandbox's log on disk: JSON lines in numbered files, of which the newest few are kept.

`logs/00000001.jsonl`, `00000002.jsonl`, ... A file that is full is followed by the next number, and the
oldest goes. Numbers never come again, so a reader that is at one file knows which is next, and how many it
missed.
A whole line that was written stays as long as its file; a torn one is cut off, or left for readers to skip.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

SEGMENT_SIZE: Final = 4 << 20
"""Bytes of a file. A single line may be longer, and then has a file of its own."""
SEGMENTS: Final = 4
"""Files that are kept, the one that is written to among them."""

_SUFFIX: Final = ".jsonl"
_READ_SIZE: Final = 1 << 18


def segments(directory: Path) -> list[int]:
    """The numbers of the files that there are, oldest first; none if there is no log."""
    try:
        names = os.listdir(directory)  # noqa: PTH208 - names are what is wanted
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(
        int(name[: -len(_SUFFIX)])
        for name in names
        if name.endswith(_SUFFIX) and name[: -len(_SUFFIX)].isdecimal()
    )


def segment(directory: Path, number: int) -> Path:
    """The file of a number."""
    return directory / f"{number:08d}{_SUFFIX}"


class SegmentWriter:
    """Appends lines; one writer at a time, which the sandbox's lock sees to. Opens at the first `append`."""

    def __init__(self, directory: Path, *, size: int = SEGMENT_SIZE, count: int = SEGMENTS) -> None:
        self._directory = directory
        self._limit = size
        self._count = count
        self._file = -1
        self._number = 0
        self._size = 0

    def append(self, lines: Sequence[bytes]) -> tuple[int, OSError | None]:
        """Write lines, each with its newline. How many are in the log now, and what stopped the others."""
        done = 0
        while done < len(lines):
            try:
                if self._file < 0:
                    self._open()
                end, size = done, self._size
                while end < len(lines) and (size == 0 or size + len(lines[end]) <= self._limit):
                    size += len(lines[end])
                    end += 1
                if end == done:
                    self._next()
                    continue
            except OSError as error:
                return done, error
            kept, failure = self._write(b"".join(lines[done:end]))
            if failure is not None:
                return done + kept, failure
            done = end
        return done, None

    def close(self) -> None:
        """Close the file; the next `append` opens it again."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _write(self, data: bytes) -> tuple[int, OSError | None]:
        """Write whole lines: how many came to be whole, and why not all."""
        written = 0
        try:
            while written < len(data):
                written += os.write(self._file, data[written:] if written else data)
        except OSError as error:
            # Only what is torn is cut off: a reader may have seen the rest.
            whole = data.rfind(b"\n", 0, written) + 1
            self._size += whole
            try:
                os.ftruncate(self._file, self._size)
            except OSError:
                self.close()  # opening it again puts a newline behind what is torn
            return data.count(b"\n", 0, whole), error
        self._size += written
        return 0, None

    def _open(self) -> None:
        """Go on with the newest file, or begin the first."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        found = segments(self._directory)
        if not found:
            self._begin(self._number + 1)
            return
        file = os.open(
            segment(self._directory, found[-1]), os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        )
        try:
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, size - 1) != b"\n":
                # An earlier writer was killed in the middle of a line.
                size += os.write(file, b"\n")
        except OSError:
            os.close(file)
            raise
        self._file, self._number, self._size = file, found[-1], size

    def _next(self) -> None:
        """Turn to the next file. The oldest goes first, which makes room where there is none."""
        for number in segments(self._directory):
            if number <= self._number + 1 - self._count:
                segment(self._directory, number).unlink(missing_ok=True)
        file = self._file
        self._begin(self._number + 1)
        os.close(file)

    def _begin(self, number: int) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.open(segment(self._directory, number), flags, 0o600)
        self._number, self._size = number, 0


class SegmentReader:
    """Reads the lines that there are, and later those that have come since."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = -1
        self._number = 0
        self._offset = 0
        self._long = b""
        self.missed = 0
        """Files that were gone before they could be read, because the writer was that much ahead."""

    def read(self) -> list[bytes]:
        """The next lines, without their newlines, some 256 KiB of them; empty when there are no more now.

        Raises `OSError`.
        """
        while True:
            if self._file >= 0 and (lines := self._lines()):
                return lines
            # Asked before the last look: what is in this file then is all that ever comes.
            later = [number for number in segments(self._directory) if number > self._number]
            if not later:
                return []
            if self._file >= 0 and (lines := self._lines()):
                return lines
            self._turn_to(later)

    def close(self) -> None:
        """Let go of the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _lines(self) -> list[bytes]:
        """Whole lines from here on; a line that is being written is read when it is whole."""
        while data := os.pread(self._file, _READ_SIZE, self._offset + len(self._long)):
            whole = data.rfind(b"\n") + 1
            if whole:
                found = (self._long + data[:whole]).split(b"\n")
                self._offset += len(self._long) + whole
                self._long = b""
                found.pop()
                return found
            self._long += data
        self._long = b""  # it may yet be cut off, and something else written there
        return []

    def _turn_to(self, later: list[int]) -> None:
        self.close()
        for number in later:
            if self._number:
                self.missed += number - self._number - 1
            self._number, self._offset, self._long = number, 0, b""
            try:
                self._file = os.open(segment(self._directory, number), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                self.missed += 1
                continue
            return
