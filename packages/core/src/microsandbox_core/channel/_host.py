"""The host's side of a connection: it opens streams."""

from __future__ import annotations

from ._connection import MAX_NAME, PROTOCOL_VERSIONS, Connection, Stream
from ._errors import ProtocolError, StreamClosed, TooManyStreams
from ._events import Ended, Event, EventReceived, HelloReceived, Opened
from ._methods import TO_GUEST, TO_HOST
from ._payload import Control
from ._wire import MAX_STREAM, MAX_STREAMS, STDIN, Frame, Kind, Side, encode_frame


class HostConnection(Connection):
    """The side that opens streams: an agent client, or a relay towards the guest.

    Its HELLO is queued when it is made; `ready` is True once the guest's has come.
    """

    def __init__(self, name: str = "microsandbox") -> None:
        super().__init__(Side.HOST)
        self._handlers[Kind.HELLO] = self._on_hello
        self._handlers[Kind.OPENED] = self._on_opened
        self._handlers[Kind.EVENT] = self._on_event
        self._handlers[Kind.END] = self._on_end
        self._outbox.control(encode_frame(0, Kind.HELLO, {"protocol": list(PROTOCOL_VERSIONS), "name": name}))

    def open(self, method: str, params: Control | None = None, *, group: int = 0) -> int:
        """Opens a stream for a request and returns its id.

        Streams of different `group`s share the connection fairly, whatever the number of streams in each.
        Raises `StreamClosed` before the handshake or after the end, `TooManyStreams`, and `ValueError` for
        parameters that the protocol cannot carry.
        """
        if self.error is not None or not self.ready:
            raise StreamClosed("the connection is not open")
        if len(self._streams) >= MAX_STREAMS:
            raise TooManyStreams(f"{MAX_STREAMS} streams are open")
        if self._last >= MAX_STREAM:
            raise TooManyStreams("the connection has used up its stream ids")
        stream = self._last + 1
        frame = encode_frame(stream, Kind.OPEN, {"m": method, **(params or {})})
        self._last = stream
        self._streams[stream] = Stream(
            stream, Side.HOST, TO_GUEST.get(method, ()), TO_HOST.get(method, ()), group
        )
        self._outbox.control(frame)
        return stream

    def message(self, stream: int, name: str, body: Control | None = None) -> None:
        """Sends MESSAGE, ahead of queued data. Raises `StreamClosed`, `ValueError`."""
        self._open_stream(stream)
        self._outbox.control(encode_frame(stream, Kind.MESSAGE, {"m": name, **(body or {})}))

    def cancel(self, stream: int) -> None:
        """Asks for the stream's end and forgets data still queued for it. `Ended` will come.

        Does nothing if the stream is over or was cancelled before.
        """
        found = self._streams.get(stream)
        if found is None or found.cancelled or self.error is not None:
            return
        found.cancelled = True
        self._outbox.drop(found.lane)
        self._outbox.control(encode_frame(stream, Kind.CANCEL, {}))

    def is_cancelled(self, stream: int) -> bool:
        """Whether `cancel` was called on an open stream."""
        found = self._streams.get(stream)
        return found is not None and found.cancelled

    def refill(self, stream: int) -> None:
        """Gives the guest all its credit back: what it has sent is of no interest any more."""
        for channel, receiving in self._open_stream(stream).receiving.items():
            self.grant(stream, channel, self._window - receiving.allowance)

    def windows(self, stream: int) -> tuple[int | None, dict[int, int | None]]:
        """Bytes that may still be sent on channel 0, and that the guest may send, by channel; None where
        there was an EOF. For a stream that has channels."""
        found = self._open_stream(stream)
        sending = found.sending[STDIN]
        allowed = {
            channel: None if receiving.ended else receiving.allowance
            for channel, receiving in found.receiving.items()
        }
        return None if sending.ended else sending.credit, allowed

    def _on_hello(self, frame: Frame, events: list[Event]) -> None:
        if self.ready:
            raise ProtocolError("sequence", "a second HELLO")
        body = frame.payload
        assert isinstance(body, dict)
        protocol, name = body.get("protocol"), body.get("name")
        version, configured = body.get("agent_version"), body.get("configured")
        if (
            type(protocol) is not int
            or type(name) is not str
            or type(version) is not str
            or type(configured) is not bool
        ):
            raise ProtocolError("payload", "HELLO with a missing or wrongly typed key")
        if not PROTOCOL_VERSIONS[0] <= protocol <= PROTOCOL_VERSIONS[1]:
            raise ProtocolError("version", f"the guest chose version {protocol}")
        self.ready = True
        events.append(HelloReceived(protocol, name[:MAX_NAME], version[:MAX_NAME], configured))

    def _known(self, frame: Frame) -> Stream:
        found = self._streams.get(frame.stream)
        if found is not None:
            return found
        if not self.ready:
            raise ProtocolError("sequence", "a frame before HELLO")
        if frame.stream > self._last:
            raise ProtocolError("stream", f"stream {frame.stream} was never opened")
        raise ProtocolError("sequence", f"stream {frame.stream} has ended")

    def _stream_of(self, frame: Frame) -> Stream | None:
        stream = self._known(frame)
        if not stream.opened and frame.kind != Kind.CREDIT:
            raise ProtocolError("sequence", f"stream {frame.stream}: {Kind(frame.kind).name} before OPENED")
        return stream

    def _on_opened(self, frame: Frame, events: list[Event]) -> None:
        stream = self._known(frame)
        if stream.opened:
            raise ProtocolError("sequence", f"stream {frame.stream} was OPENED twice")
        stream.opened = True
        assert isinstance(frame.payload, dict)
        events.append(Opened(frame.stream, frame.payload))

    def _on_event(self, frame: Frame, events: list[Event]) -> None:
        self._stream_of(frame)
        assert isinstance(frame.payload, dict)
        name = frame.payload.pop("e", None)
        if type(name) is str:
            events.append(EventReceived(frame.stream, name, frame.payload))

    def _on_end(self, frame: Frame, events: list[Event]) -> None:
        stream = self._known(frame)
        del self._streams[frame.stream]
        self._outbox.drop(stream.lane)
        assert isinstance(frame.payload, dict)
        events.append(Ended(frame.stream, frame.payload))
