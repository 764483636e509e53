"""What a side has yet to send, in the order in which the protocol wants it sent.

Control frames go first, at frame boundaries. Behind them groups (the clients of a relay) take turns, and
within a group its streams, one data frame each.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from ._chunks import ChunkQueue
from ._wire import encode_data

# sendmsg takes at most 1,024 buffers (IOV_MAX); a data frame is two.
MAX_BUFFERS: Final = 512
ENTRY_COST: Final = 256
"""Bytes that an entry is taken to cost beyond its payload: header and Python objects."""

Piece = bytes | bytearray | memoryview


class Lane:
    """The data of one stream that waits to be sent."""

    __slots__ = ("chunks", "group", "queued", "stream")

    def __init__(self, stream: int, group: int) -> None:
        self.stream = stream
        self.group = group
        self.chunks: ChunkQueue[bytes] = ChunkQueue()
        self.queued = False


class Outbox:
    """Frames to send. `output` offers buffers, `sent` says how much of them the transport took."""

    __slots__ = (
        "_control",
        "_control_size",
        "_entries",
        "_lane_size",
        "_offered",
        "_partial",
        "_staged",
        "_staged_size",
        "_turns",
    )

    def __init__(self) -> None:
        self._partial: deque[Piece] = deque()
        self._control: deque[bytes] = deque()
        self._control_size = 0
        # Data frames whose turn has been decided, as (header, payload); EOF and END have no second part.
        self._staged: deque[tuple[bytes, bytes | bytearray]] = deque()
        self._staged_size = 0
        self._offered = 0
        self._turns: dict[int, deque[Lane]] = {}
        self._lane_size = 0
        self._entries = 0

    @property
    def size(self) -> int:
        """Memory that waits, in bytes: payloads, and `ENTRY_COST` for every entry."""
        control = self._control_size + ENTRY_COST * len(self._control)
        data = self._lane_size + ENTRY_COST * self._entries
        return control + data + self._staged_size + sum(map(len, self._partial))

    def __bool__(self) -> bool:
        """Whether anything waits to be sent."""
        return bool(self._partial or self._control or self._staged or self._turns)

    def control(self, frame: bytes) -> None:
        """Queues a control frame ahead of all data."""
        self._control.append(frame)
        self._control_size += len(frame)

    def data(self, lane: Lane, channel: int, payload: bytes | bytearray) -> None:
        """Queues 1 to 65,536 bytes of data; `payload` must not change afterwards."""
        before = len(lane.chunks)
        lane.chunks.push(channel, payload)
        self._lane_size += len(payload)
        self._entries += len(lane.chunks) - before
        if not lane.queued:
            self._enqueue(lane)

    def mark(self, lane: Lane, frame: bytes) -> None:
        """Queues EOF or END behind the data of its stream."""
        lane.chunks.push_mark(frame)
        self._entries += 1
        if not lane.queued:
            self._enqueue(lane)

    def drop(self, lane: Lane) -> int:
        """Forgets what waits on a stream, but for frames whose sending was already offered.

        Returns the bytes of data forgotten.
        """
        size = lane.chunks.size
        self._lane_size -= size
        self._entries -= len(lane.chunks)
        lane.chunks.clear()
        if lane.queued:
            lane.queued = False
            turns = self._turns[lane.group]
            turns.remove(lane)
            if not turns:
                del self._turns[lane.group]
        return size

    def _enqueue(self, lane: Lane) -> None:
        lane.queued = True
        turns = self._turns.get(lane.group)
        if turns is None:
            self._turns[lane.group] = deque((lane,))
        else:
            turns.append(lane)

    def _stage(self) -> int:
        """Moves the data frame whose turn it is to the staged ones; returns its size."""
        group, turns = next(iter(self._turns.items()))
        lane = turns.popleft()
        entry = lane.chunks.pop()
        self._entries -= 1
        if isinstance(entry, bytes):
            frame: tuple[bytes, bytes | bytearray] = (entry, b"")
        else:
            payload = entry.data
            self._lane_size -= len(payload)
            frame = (encode_data(lane.stream, entry.channel, payload), payload)
        size = len(frame[0]) + len(frame[1])
        self._staged.append(frame)
        self._staged_size += size
        if len(lane.chunks):
            turns.append(lane)
        else:
            lane.queued = False
        # Taking the group out and putting it back moves it to the end of the dictionary: its turn is over.
        del self._turns[group]
        if turns:
            self._turns[group] = turns
        return size

    def output(self, limit: int) -> list[Piece]:
        """Buffers to send now, in order, about `limit` bytes of them; empty when nothing waits."""
        pieces: list[Piece] = list(self._partial)
        total = sum(map(len, pieces))
        offered = 0
        for frame in self._control:
            if total >= limit or len(pieces) >= MAX_BUFFERS:
                break
            pieces.append(frame)
            total += len(frame)
            offered += 1
        self._offered = offered
        if offered < len(self._control):
            return pieces
        for head, body in self._staged:
            if total >= limit or len(pieces) >= MAX_BUFFERS:
                return pieces
            total += len(head) + len(body)
            pieces.append(head)
            if body:
                pieces.append(body)
        while total < limit and self._turns and len(pieces) < MAX_BUFFERS:
            total += self._stage()
            head, body = self._staged[-1]
            pieces.append(head)
            if body:
                pieces.append(body)
        return pieces

    def sent(self, count: int) -> None:
        """The transport took the first `count` bytes of what the last `output` gave."""
        count = self._consume_partial(count)
        while count:
            if self._offered:
                self._offered -= 1
                frame = self._control.popleft()
                self._control_size -= len(frame)
                self._partial.append(frame)
            else:
                head, body = self._staged.popleft()
                self._staged_size -= len(head) + len(body)
                self._partial.append(head)
                if body:
                    self._partial.append(body)
            count = self._consume_partial(count)

    def _consume_partial(self, count: int) -> int:
        partial = self._partial
        while count and partial:
            piece = partial[0]
            if len(piece) > count:
                partial[0] = memoryview(piece)[count:]
                return 0
            count -= len(piece)
            partial.popleft()
        return count

    def clear(self) -> None:
        """Forgets everything but a frame that is half sent."""
        self._control.clear()
        self._control_size = 0
        self._staged.clear()
        self._turns.clear()
        self._lane_size = self._entries = self._staged_size = self._offered = 0
