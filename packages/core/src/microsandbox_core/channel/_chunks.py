"""Bytes that wait: a first-in first-out queue of data whose memory is bounded by its bytes.

A peer with 256 KiB of credit may send it as 262,144 frames of one byte, and alternate between two
channels so that neighbours never match. Kept as they came they would cost a hundred times their size.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Generic, TypeVar

from ._wire import MAX_DATA

ORDERED_CHUNKS: Final = 256
"""Chunks up to which the order between two channels is kept. Beyond it bytes join the last chunk of their
own channel: order within a channel is a promise of the protocol, order between channels a courtesy."""

MarkT = TypeVar("MarkT")


class Chunk:
    """Data of one channel, 1 to 65,536 bytes."""

    __slots__ = ("channel", "data")

    def __init__(self, channel: int, data: bytes | bytearray) -> None:
        self.channel = channel
        self.data = data


class ChunkQueue(Generic[MarkT]):
    """Chunks of data of several channels, and marks (end of file, end of stream) that keep their place."""

    __slots__ = ("_entries", "_open", "size")

    def __init__(self) -> None:
        self._entries: deque[Chunk | MarkT] = deque()
        self._open: dict[int, Chunk] = {}
        self.size = 0
        """Bytes of data in the queue."""

    def __len__(self) -> int:
        """Entries in the queue."""
        return len(self._entries)

    def push(self, channel: int, data: bytes | bytearray) -> None:
        """Appends `data`, which the queue may keep: it must not be changed afterwards."""
        self.size += len(data)
        last = self._open.get(channel)
        if (
            last is not None
            and len(last.data) + len(data) <= MAX_DATA
            and (len(self._entries) >= ORDERED_CHUNKS or self._entries[-1] is last)
        ):
            if type(last.data) is not bytearray:
                last.data = bytearray(last.data)
            last.data += data
            return
        chunk = Chunk(channel, data)
        self._open[channel] = chunk
        self._entries.append(chunk)

    def push_mark(self, mark: MarkT) -> None:
        """Appends a mark. Data pushed later does not pass it."""
        self._open.clear()
        self._entries.append(mark)

    def pop(self) -> Chunk | MarkT:
        """Takes the first entry, a chunk or a mark. Raises `IndexError` if there is none."""
        entry = self._entries.popleft()
        if isinstance(entry, Chunk):
            if self._open.get(entry.channel) is entry:
                del self._open[entry.channel]
            self.size -= len(entry.data)
        return entry

    def clear(self) -> None:
        """Drops everything."""
        self._entries.clear()
        self._open.clear()
        self.size = 0
