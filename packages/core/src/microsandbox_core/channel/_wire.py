"""The frames of the agent channel: header, kinds, caps, and the incremental decoder.

The layout is that of `docs/agent-channel.md`, section "Frames".
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple

from ._errors import ProtocolError
from ._payload import Control, decode_control, encode_control

HEADER: Final = Struct(">IIBBH")
HEADER_SIZE: Final = HEADER.size
CREDIT: Final = Struct(">I")
MAX_STREAM: Final = 2**31 - 1
MAX_CREDIT: Final = 2**30
MAX_DATA: Final = 65536

STDIN: Final = 0
STDOUT: Final = 1
STDERR: Final = 2

WINDOW_TO_GUEST: Final = 131_072
"""Credit of a channel from host to guest when its stream is opened, in bytes."""
WINDOW_TO_HOST: Final = 262_144
"""Credit of a channel from guest to host when its stream is opened, in bytes."""
MAX_STREAMS: Final = 2048
"""Streams open at a time on one connection."""


class Side(IntEnum):
    """An end of the channel."""

    HOST = 0
    GUEST = 1


class Kind(IntEnum):
    """The kind of a frame."""

    HELLO = 0x01
    OPEN = 0x02
    OPENED = 0x03
    EVENT = 0x04
    END = 0x05
    MESSAGE = 0x06
    CANCEL = 0x07
    ERROR = 0x08
    DATA = 0x10
    EOF = 0x11
    CREDIT = 0x12


CAPS: Final[dict[int, int]] = {
    Kind.HELLO: 4096,
    Kind.OPEN: 4 << 20,
    Kind.OPENED: 65536,
    Kind.EVENT: 65536,
    Kind.END: 65536,
    Kind.MESSAGE: 65536,
    Kind.CANCEL: 16,
    Kind.ERROR: 4096,
    Kind.DATA: MAX_DATA,
    Kind.EOF: 0,
    Kind.CREDIT: CREDIT.size,
}

# Plain integers: reading a member of an Enum class costs more than the rest of the comparison.
_DATA: Final = int(Kind.DATA)
_CREDIT: Final = int(Kind.CREDIT)

_CHANNELS_TO_GUEST: Final = frozenset({STDIN})
_CHANNELS_TO_HOST: Final = frozenset({STDOUT, STDERR})
_NO_CHANNEL: Final = frozenset({0})


class _Rule(NamedTuple):
    """What a header of one kind must look like at one side."""

    least: int
    most: int
    on_connection: bool
    channels: frozenset[int]


def _rules(receiver: Side) -> dict[int, _Rule]:
    host = receiver is Side.HOST
    received = _CHANNELS_TO_HOST if host else _CHANNELS_TO_GUEST
    sent = _CHANNELS_TO_GUEST if host else _CHANNELS_TO_HOST
    kinds = (Kind.OPENED, Kind.EVENT, Kind.END) if host else (Kind.OPEN, Kind.MESSAGE, Kind.CANCEL)
    rules: dict[int, _Rule] = {kind: _Rule(1, CAPS[kind], False, _NO_CHANNEL) for kind in kinds}
    for kind in (Kind.HELLO, Kind.ERROR):
        rules[kind] = _Rule(1, CAPS[kind], True, _NO_CHANNEL)
    rules[Kind.DATA] = _Rule(1, MAX_DATA, False, received)
    rules[Kind.EOF] = _Rule(0, 0, False, received)
    # A CREDIT names the channel that its receiver sends on.
    rules[Kind.CREDIT] = _Rule(CREDIT.size, CREDIT.size, False, sent)
    return rules


_RULES: Final = {side: _rules(side) for side in Side}


class Frame(NamedTuple):
    """One frame. `payload` is the bytes of DATA and EOF, the number of CREDIT, else the decoded map."""

    stream: int
    kind: int
    channel: int
    payload: bytes | int | Control


def encode_data(stream: int, channel: int, payload: bytes | bytearray) -> bytes:
    """The header of a DATA frame; the payload follows it on the wire and is not copied."""
    return HEADER.pack(len(payload), stream, Kind.DATA, channel, 0)


def encode_eof(stream: int, channel: int) -> bytes:
    """An EOF frame."""
    return HEADER.pack(0, stream, Kind.EOF, channel, 0)


def encode_credit(stream: int, channel: int, amount: int) -> bytes:
    """A CREDIT frame for `amount` bytes."""
    return HEADER.pack(CREDIT.size, stream, Kind.CREDIT, channel, 0) + CREDIT.pack(amount)


def encode_frame(stream: int, kind: Kind, control: Control) -> bytes:
    """A frame with a control payload.

    Raises `ValueError` if the payload is outside the protocol's restrictions or over the cap of its kind.
    """
    payload = encode_control(control)
    if len(payload) > CAPS[kind]:
        raise ValueError(f"{kind.name} of {len(payload)} bytes is over the cap of {CAPS[kind]} bytes")
    return HEADER.pack(len(payload), stream, kind, 0, 0) + payload


class FrameDecoder:
    """Cuts a byte string, given in any pieces, into frames.

    Holds at most one incomplete frame, never more of it than has come: a header that announces a large
    frame costs nothing until the bytes arrive.
    """

    __slots__ = ("_buffer", "_need", "_rules", "error")

    def __init__(self, receiver: Side) -> None:
        self._rules = _RULES[receiver]
        self._buffer = bytearray()
        self._need = HEADER_SIZE
        self.error: ProtocolError | None = None
        """The first error, after which nothing more is decoded."""

    @property
    def buffered(self) -> int:
        """Bytes held of an incomplete frame."""
        return len(self._buffer)

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """The frames that `data` completes, in order; then look at `error`.

        The frames own their payloads: `data` may be overwritten afterwards.
        """
        frames: list[Frame] = []
        if self.error is not None:
            return frames
        try:
            self._feed(memoryview(data), frames)
        except ProtocolError as error:
            # The traceback would keep a view of the caller's buffer alive.
            self.error = error.with_traceback(None)
            self._buffer.clear()
        return frames

    def _feed(self, data: memoryview, frames: list[Frame]) -> None:
        position, end = 0, len(data)
        buffer = self._buffer
        while buffer:
            taken = min(self._need - len(buffer), end - position)
            buffer += data[position : position + taken]
            position += taken
            if len(buffer) < self._need:
                return
            length = self._check(buffer, 0)
            if len(buffer) == HEADER_SIZE + length:
                frames.append(self._frame(buffer, 0, length))
                buffer.clear()
                self._need = HEADER_SIZE
            else:
                self._need = HEADER_SIZE + length
        while end - position >= HEADER_SIZE:
            length = self._check(data, position)
            size = HEADER_SIZE + length
            if end - position < size:
                self._need = size
                break
            frames.append(self._frame(data, position, length))
            position += size
        if position < end:
            buffer += data[position:]

    def _check(self, source: bytearray | memoryview, position: int) -> int:
        length, stream, kind, channel, flags = HEADER.unpack_from(source, position)
        rule = self._rules.get(kind)
        if rule is None:
            raise ProtocolError("frame", f"kind 0x{kind:02x} is unknown or not for this side to receive")
        if flags:
            raise ProtocolError("frame", f"flags 0x{flags:04x} are not 0")
        if not rule.least <= length <= rule.most:
            raise ProtocolError("frame", f"{Kind(kind).name} of {length} bytes, cap {rule.most}")
        if (stream != 0) if rule.on_connection else not 1 <= stream <= MAX_STREAM:
            raise ProtocolError("frame", f"{Kind(kind).name} on stream {stream}")
        if channel not in rule.channels:
            raise ProtocolError("frame", f"{Kind(kind).name} on channel {channel}")
        return int(length)

    def _frame(self, source: bytearray | memoryview, position: int, length: int) -> Frame:
        _, stream, kind, channel, _ = HEADER.unpack_from(source, position)
        start = position + HEADER_SIZE
        if kind == _CREDIT:
            (amount,) = CREDIT.unpack_from(source, start)
            if not 1 <= amount <= MAX_CREDIT:
                raise ProtocolError("credit", f"a CREDIT of {amount}")
            return Frame(stream, kind, channel, amount)
        payload = bytes(memoryview(source)[start : start + length])
        if kind >= _DATA:
            return Frame(stream, kind, channel, payload)
        return Frame(stream, kind, channel, decode_control(payload))
