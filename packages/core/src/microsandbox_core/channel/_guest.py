"""The guest's side of a connection: it answers. A relay is this to its clients."""

from __future__ import annotations

from ._connection import MAX_NAME, PROTOCOL_VERSIONS, Connection, Sending, Stream
from ._errors import ProtocolError, StreamClosed
from ._events import CancelReceived, Event, HostHelloReceived, MessageReceived, OpenReceived
from ._methods import TO_GUEST, TO_HOST
from ._payload import Control, Value
from ._wire import MAX_STREAMS, Frame, Kind, Side, encode_frame


class GuestConnection(Connection):
    """The side that answers.

    With `one_hello` a second HELLO is an error at once, as a relay wants it; without, it is one after
    `configure` was opened, as in a guest that may be saved and restored before it.
    """

    def __init__(self, *, one_hello: bool = False) -> None:
        super().__init__(Side.GUEST)
        self._one_hello = one_hello
        self._greeted = False
        self._hello_closed = False
        self._protocol = 0
        self._handlers[Kind.HELLO] = self._on_hello
        self._handlers[Kind.OPEN] = self._on_open
        self._handlers[Kind.MESSAGE] = self._on_message
        self._handlers[Kind.CANCEL] = self._on_cancel

    # ------------------------------------------------------------------------------------------ answers

    def hello(self, *, agent_version: str, configured: bool, name: str = "agentd") -> None:
        """Answers the host's HELLO. Raises `StreamClosed` if there is none to answer."""
        if not self._greeted or self.ready or self.error is not None:
            raise StreamClosed("there is no HELLO to answer")
        self.ready = True
        body: Control = {
            "protocol": self._protocol,
            "name": name,
            "agent_version": agent_version,
            "configured": configured,
        }
        self._outbox.control(encode_frame(0, Kind.HELLO, body))

    def opened(self, stream: int, body: Control) -> None:
        """Accepts the request. Raises `StreamClosed` if that was said before or the stream is over."""
        found = self._open_stream(stream)
        if found.opened:
            raise StreamClosed(f"stream {stream} was accepted before")
        frame = encode_frame(stream, Kind.OPENED, body)
        found.opened = True
        self._outbox.control(frame)

    def event(self, stream: int, name: str, body: Control | None = None) -> None:
        """Reports that something happened. Raises `StreamClosed`, `ValueError`."""
        if not self._open_stream(stream).opened:
            raise StreamClosed(f"stream {stream} was not accepted yet")
        self._outbox.control(encode_frame(stream, Kind.EVENT, {"e": name, **(body or {})}))

    def end(self, stream: int, body: Control) -> None:
        """Ends the stream behind its data; what the host still sends on it is dropped.

        Raises `StreamClosed` and `ValueError`.
        """
        found = self._open_stream(stream)
        frame = encode_frame(stream, Kind.END, body)
        del self._streams[stream]
        self._outbox.mark(found.lane, frame)

    def end_error(self, stream: int, kind: str, message: str = "", errno: int | None = None) -> None:
        """Ends the stream with an error. Raises `StreamClosed`."""
        self.end(stream, error_body(kind, message, errno))

    def _sending(self, stream: Stream, channel: int) -> Sending:
        if not stream.opened:
            raise StreamClosed(f"stream {stream.id} was not accepted yet")
        return super()._sending(stream, channel)

    # ------------------------------------------------------------------------------------------- frames

    def _on_hello(self, frame: Frame, events: list[Event]) -> None:
        if self._hello_closed or (self._greeted and not self.ready):
            raise ProtocolError("sequence", "a HELLO too many")
        body = frame.payload
        assert isinstance(body, dict)
        versions, name = body.get("protocol"), body.get("name")
        if type(versions) is not list or len(versions) != 2 or type(name) is not str:
            raise ProtocolError("payload", "HELLO with a missing or wrongly typed key")
        oldest, newest = versions
        if type(oldest) is not int or type(newest) is not int or not 1 <= oldest <= newest:
            raise ProtocolError("payload", "HELLO with a range of versions that is none")
        if oldest > PROTOCOL_VERSIONS[1] or newest < PROTOCOL_VERSIONS[0]:
            raise ProtocolError(
                "version", f"the host speaks {oldest} to {newest}, this side {list(PROTOCOL_VERSIONS)}"
            )
        if self.ready:
            # The host of a restored template: whatever the first host left behind is not its business.
            for stream in self._streams.values():
                self._outbox.drop(stream.lane)
            self._streams.clear()
            self._last = 0
            self.ready = False
        self._greeted = True
        self._hello_closed = self._one_hello
        self._protocol = min(newest, PROTOCOL_VERSIONS[1])
        events.append(HostHelloReceived(self._protocol, name[:MAX_NAME]))

    def _stream_of(self, frame: Frame) -> Stream | None:
        found = self._streams.get(frame.stream)
        if found is not None:
            return found
        if not self.ready:
            raise ProtocolError("sequence", f"{Kind(frame.kind).name} before the handshake")
        if frame.stream > self._last:
            raise ProtocolError("stream", f"stream {frame.stream} was never opened")
        return None

    def _on_open(self, frame: Frame, events: list[Event]) -> None:
        if not self.ready:
            raise ProtocolError("sequence", "OPEN before the handshake")
        if frame.stream <= self._last:
            raise ProtocolError("stream", f"OPEN of {frame.stream} after {self._last}")
        self._last = frame.stream
        params = frame.payload
        assert isinstance(params, dict)
        method = params.pop("m", None)
        known = method if type(method) is str else ""
        stream = Stream(frame.stream, Side.GUEST, TO_HOST.get(known, ()), TO_GUEST.get(known, ()))
        if type(method) is not str:
            refusal = error_body("invalid_request", "a request without its method")
        elif len(self._streams) >= MAX_STREAMS:
            refusal = error_body("too_many_streams", f"{MAX_STREAMS} streams are open")
        else:
            self._streams[frame.stream] = stream
            if method == "configure":
                self._hello_closed = True
            events.append(OpenReceived(frame.stream, method, params))
            return
        self._outbox.mark(stream.lane, encode_frame(frame.stream, Kind.END, refusal))

    def _on_message(self, frame: Frame, events: list[Event]) -> None:
        if self._stream_of(frame) is None:
            return
        assert isinstance(frame.payload, dict)
        name = frame.payload.pop("m", None)
        if type(name) is str:
            events.append(MessageReceived(frame.stream, name, frame.payload))

    def _on_cancel(self, frame: Frame, events: list[Event]) -> None:
        if self._stream_of(frame) is not None:
            events.append(CancelReceived(frame.stream))


def error_body(kind: str, message: str = "", errno: int | None = None) -> Control:
    """The body of an END that carries an error."""
    error: dict[str, Value] = {"kind": kind, "message": message}
    if errno is not None:
        error["errno"] = errno
    return {"error": error}
