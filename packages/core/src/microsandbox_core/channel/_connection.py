"""What both sides of a connection share: streams, credit, data, failure.

No I/O happens here: bytes come in through `receive`, events come out of it, and bytes to send are offered
by `output`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from ._errors import ChannelError, ConnectionLost, PeerError, ProtocolError, StreamClosed
from ._events import CreditReceived, DataReceived, EofReceived, Event, Failed
from ._outbox import Lane, Outbox, Piece
from ._payload import Control
from ._wire import (
    MAX_CREDIT,
    MAX_DATA,
    WINDOW_TO_GUEST,
    WINDOW_TO_HOST,
    Frame,
    FrameDecoder,
    Kind,
    Side,
    encode_credit,
    encode_eof,
    encode_frame,
)

PROTOCOL_VERSIONS: Final = (1, 1)
"""The oldest and the newest version of the protocol spoken here."""
MAX_NAME: Final = 256
"""Characters kept of a name or version that the peer states."""
_MAX_REASON: Final = 512

Handler = Callable[[Frame, list[Event]], None]


class Sending:
    """A channel that this side sends on."""

    __slots__ = ("credit", "ended")

    def __init__(self, credit: int) -> None:
        self.credit = credit
        self.ended = False


class _Receiving:
    """A channel that the peer sends on."""

    __slots__ = ("allowance", "ended", "owed")

    def __init__(self, allowance: int) -> None:
        self.allowance = allowance
        # Bytes that the consumer has taken and whose credit has not been returned yet.
        self.owed = 0
        self.ended = False


class Stream:
    """One open stream."""

    __slots__ = ("cancelled", "id", "lane", "opened", "receiving", "sending")

    def __init__(
        self, stream: int, side: Side, send: Iterable[int], receive: Iterable[int], group: int = 0
    ) -> None:
        to_peer, to_us = (
            (WINDOW_TO_GUEST, WINDOW_TO_HOST) if side is Side.HOST else (WINDOW_TO_HOST, WINDOW_TO_GUEST)
        )
        self.id = stream
        self.opened = False
        self.cancelled = False
        self.lane = Lane(stream, group)
        self.sending = {channel: Sending(to_peer) for channel in send}
        self.receiving = {channel: _Receiving(to_us) for channel in receive}


class Connection:
    """One side of an agent channel; `HostConnection` and `GuestConnection` are its two forms."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self._window = WINDOW_TO_HOST if side is Side.HOST else WINDOW_TO_GUEST
        self._queue_bound = WINDOW_TO_GUEST if side is Side.HOST else WINDOW_TO_HOST
        self._decoder = FrameDecoder(side)
        self._outbox = Outbox()
        self._streams: dict[int, Stream] = {}
        self._last = 0
        self._handlers: dict[int, Handler] = {
            Kind.ERROR: self._on_error,
            Kind.DATA: self._on_data,
            Kind.EOF: self._on_eof,
            Kind.CREDIT: self._on_credit,
        }
        self.error: ChannelError | None = None
        """Why the connection is over, or None while it is not."""
        self.ready = False
        """Whether the handshake is done."""

    # ------------------------------------------------------------------------------------------- bytes

    @property
    def streams(self) -> frozenset[int]:
        """The ids of the open streams."""
        return frozenset(self._streams)

    @property
    def stream_count(self) -> int:
        """How many streams are open."""
        return len(self._streams)

    @property
    def queued(self) -> int:
        """Memory that waits to be sent, in bytes, with an allowance for what each frame costs."""
        return self._outbox.size

    @property
    def closed(self) -> bool:
        """Whether the connection is over; what is left to send is at most an ERROR."""
        return self.error is not None

    @property
    def pending(self) -> bool:
        """Whether anything waits to be sent."""
        return bool(self._outbox)

    def output(self, limit: int = 1 << 18) -> list[Piece]:
        """Buffers to send next, in order, about `limit` bytes of them, for one `sendmsg`.

        Report to `sent` how much of them the transport took. Until then nothing is forgotten, and a second
        call offers the same bytes again, behind control frames that have come since.
        """
        return self._outbox.output(limit)

    def sent(self, count: int) -> None:
        """The transport took the first `count` bytes of what `output` gave last."""
        self._outbox.sent(count)

    def receive(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """What the peer's bytes mean. `data` is not kept and may be any piece of the byte string.

        Never raises: if the peer breaks the protocol or ends the connection the last event is `Failed`, and
        later calls report nothing.
        """
        events: list[Event] = []
        if self.error is not None:
            return events
        handlers = self._handlers
        try:
            for frame in self._decoder.feed(data):
                handlers[frame.kind](frame, events)
                if self.closed:
                    return events
            if self._decoder.error is not None:
                raise self._decoder.error
        except ProtocolError as error:
            self._fail(error, events)
        return events

    def eof_received(self) -> list[Event]:
        """The peer's byte string has ended, or the transport failed: the connection is over."""
        return self.give_up(ConnectionLost("the peer closed the connection"))

    def give_up(self, error: ChannelError, *, flush: bool = False) -> list[Event]:
        """Ends the connection for a reason of our own. Returns `[Failed(error)]`.

        What is queued is forgotten, or with `flush` still offered by `output`. Does nothing if the
        connection is over already.
        """
        if self.error is not None:
            return []
        self.error = error
        if not flush:
            self._outbox.clear()
        return [Failed(error)]

    def _fail(self, error: ProtocolError, events: list[Event]) -> None:
        # Only the ERROR frame still goes out, behind a frame that is half sent.
        self.error = error.with_traceback(None)
        self._outbox.clear()
        body: Control = {"code": error.code, "message": error.message[:_MAX_REASON]}
        self._outbox.control(encode_frame(0, Kind.ERROR, body))
        events.append(Failed(error))

    # ------------------------------------------------------------------------------------------ frames

    def _stream_of(self, frame: Frame) -> Stream | None:
        """The open stream that a frame belongs to; None if the frame is to be dropped."""
        raise NotImplementedError

    def _on_error(self, frame: Frame, events: list[Event]) -> None:
        assert isinstance(frame.payload, dict)
        code, message = frame.payload.get("code"), frame.payload.get("message")
        if type(code) is not str or type(message) is not str:
            raise ProtocolError("payload", "ERROR without its code or message")
        self.error = PeerError(code[:MAX_NAME], message[:_MAX_REASON])
        self._outbox.clear()
        events.append(Failed(self.error))

    def _receiving(self, stream: Stream, frame: Frame) -> _Receiving:
        receiving = stream.receiving.get(frame.channel)
        if receiving is None:
            raise ProtocolError("frame", f"stream {frame.stream} has no channel {frame.channel}")
        if receiving.ended:
            raise ProtocolError("sequence", f"stream {frame.stream}, channel {frame.channel}: more after EOF")
        return receiving

    def _on_data(self, frame: Frame, events: list[Event]) -> None:
        stream = self._stream_of(frame)
        if stream is None:
            return
        receiving = self._receiving(stream, frame)
        data = frame.payload
        assert type(data) is bytes
        if len(data) > receiving.allowance:
            raise ProtocolError("credit", f"stream {frame.stream}, channel {frame.channel}: over its credit")
        receiving.allowance -= len(data)
        events.append(DataReceived(frame.stream, frame.channel, data))

    def _on_eof(self, frame: Frame, events: list[Event]) -> None:
        stream = self._stream_of(frame)
        if stream is None:
            return
        self._receiving(stream, frame).ended = True
        events.append(EofReceived(frame.stream, frame.channel))

    def _on_credit(self, frame: Frame, events: list[Event]) -> None:
        stream = self._stream_of(frame)
        if stream is None:
            return
        sending = stream.sending.get(frame.channel)
        if sending is None:
            raise ProtocolError("frame", f"stream {frame.stream} has no channel {frame.channel}")
        if sending.ended:
            return
        amount = frame.payload
        assert type(amount) is int
        if sending.credit + amount > MAX_CREDIT:
            raise ProtocolError("credit", f"stream {frame.stream}: a balance above {MAX_CREDIT}")
        sending.credit += amount
        events.append(CreditReceived(frame.stream, frame.channel, amount))

    # ------------------------------------------------------------------------------------------- sending

    def _open_stream(self, stream: int) -> Stream:
        found = self._streams.get(stream)
        if found is None or self.error is not None:
            raise StreamClosed(f"stream {stream} is not open")
        return found

    def _sending(self, stream: Stream, channel: int) -> Sending:
        sending = stream.sending.get(channel)
        if sending is None or sending.ended or stream.cancelled:
            raise StreamClosed(f"stream {stream.id}: nothing can be sent on channel {channel}")
        return sending

    def writable(self, stream: int, channel: int = 0) -> int:
        """Bytes that `send_data` would accept now. Raises `StreamClosed` if it would."""
        found = self._open_stream(stream)
        # Only a peer that gives more credit than it may ever meets this bound: one window a channel.
        room = self._queue_bound * len(found.sending) - found.lane.chunks.size
        return max(0, min(self._sending(found, channel).credit, room))

    def send_data(self, stream: int, channel: int, data: bytes | bytearray | memoryview) -> int:
        """Queues as much of `data` as credit and the stream's share of the queue allow.

        Returns the number of bytes accepted, which may be 0; the rest can be offered again after
        `CreditReceived` or when what is queued has been sent. Raises `StreamClosed`.
        """
        accepted = min(len(data), self.writable(stream, channel))
        view = memoryview(data)
        for start in range(0, accepted, MAX_DATA):
            self.forward_data(stream, channel, bytes(view[start : min(start + MAX_DATA, accepted)]))
        return accepted

    def forward_data(self, stream: int, channel: int, data: bytes) -> None:
        """Queues 1 to 65,536 bytes that the credit covers, whatever is queued already, without copying.

        Raises `StreamClosed`, and `ValueError` if the credit does not cover them.
        """
        found = self._open_stream(stream)
        sending = self._sending(found, channel)
        if not 1 <= len(data) <= min(MAX_DATA, sending.credit):
            raise ValueError(f"{len(data)} bytes of data, credit for {sending.credit}")
        sending.credit -= len(data)
        self._outbox.data(found.lane, channel, data)

    def send_eof(self, stream: int, channel: int = 0) -> None:
        """No more data follows on the channel. Raises `StreamClosed`."""
        found = self._open_stream(stream)
        self._sending(found, channel).ended = True
        self._outbox.mark(found.lane, encode_eof(stream, channel))

    # ---------------------------------------------------------------------------------------- receiving

    def consumed(self, stream: int, channel: int, count: int) -> None:
        """A consumer took `count` bytes of data: their credit goes back to the peer.

        It goes half a window at a time. Does nothing if the stream or the channel has ended. Raises
        `ValueError` if more is returned than came.
        """
        receiving = self._open_receiving(stream, channel)
        if receiving is None:
            return
        if count < 0 or receiving.allowance + receiving.owed + count > self._window:
            raise ValueError(f"{count} bytes consumed, more than came")
        receiving.owed += count
        if receiving.owed >= self._window // 2:
            amount, receiving.owed = receiving.owed, 0
            self._grant(stream, channel, receiving, amount)

    def grant(self, stream: int, channel: int, amount: int) -> None:
        """Allows the peer `amount` more bytes at once: what a relay does with credit that passes through it.

        Does nothing if the stream or the channel has ended.
        """
        receiving = self._open_receiving(stream, channel)
        if receiving is not None and amount > 0:
            self._grant(stream, channel, receiving, amount)

    def _open_receiving(self, stream: int, channel: int) -> _Receiving | None:
        found = self._streams.get(stream)
        if found is None or self.error is not None:
            return None
        receiving = found.receiving[channel]
        return None if receiving.ended else receiving

    def _grant(self, stream: int, channel: int, receiving: _Receiving, amount: int) -> None:
        receiving.allowance += amount
        self._outbox.control(encode_credit(stream, channel, amount))
