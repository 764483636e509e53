"""Shares one guest among many clients, without I/O: each client sees a guest of its own.

A relay is host to the guest and guest to each client. It decodes and re-encodes control frames, so nothing
malformed passes in either direction, and moves data as it is. Credit passes from end to end, and so does
its absence: the relay holds of every stream at most what its receiver allowed.

What bounds its memory:

* data towards a client: the credit that the client gave; a client that gives more than it takes is cut off
  at `CLIENT_QUEUE_LIMIT`, since waiting for it would make the others wait;
* replies and events for a client: the same limit, and no more requests are read from a client that does
  not take its replies (`wants_read`);
* everything towards the guest: no client is read while `GUEST_HIGH_WATER` bytes wait; a guest that lets
  the relay's own frames pile up to `GUEST_QUEUE_LIMIT` is given up.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from time import monotonic
from typing import Any, Final, Protocol

from .channel import (
    CancelReceived,
    ChannelError,
    ConnectionLost,
    Control,
    CreditReceived,
    DataReceived,
    Ended,
    EofReceived,
    Event,
    EventReceived,
    Failed,
    GuestConnection,
    HelloReceived,
    HostConnection,
    HostHelloReceived,
    MessageReceived,
    Opened,
    OpenReceived,
    Piece,
    StreamClosed,
    TooManyStreams,
)

GUEST_HIGH_WATER: Final = 2 << 20
"""Bytes waiting for the guest above which no client is read."""
CLIENT_HIGH_WATER: Final = 8 << 20
"""Bytes waiting for a client above which it is not read."""
GUEST_QUEUE_LIMIT: Final = 64 << 20
"""Bytes waiting for the guest at which it is given up."""
CLIENT_QUEUE_LIMIT: Final = 256 << 20
"""Bytes waiting for a client at which it is cut off."""

PRIVILEGED: Final = frozenset({"configure", "mount", "shutdown"})
"""Methods that a client may use only if it was connected with `privileged=True`."""

_INTERNAL_GROUP: Final = 0

OnEvent = Callable[[Event], None]


class Observer(Protocol):
    """Is told of the commands of all clients, in the order in which the relay learns of them."""

    def exec_opened(self, stream: int, params: Control) -> None:
        """A client asked for one; `stream` is the guest's number for it, used once in a connection."""

    def exec_started(self, stream: int, body: Control) -> None:
        """The guest has started it: the body of OPENED."""

    def exec_output(self, stream: int, channel: int, data: bytes) -> None:
        """It has printed something, whether or not its client is still there."""

    def exec_ended(self, stream: int, body: Control) -> None:
        """It has ended, or was not started: the body of END. Does not come when the connection fails."""


class _Client:
    __slots__ = ("connection", "group", "id", "privileged", "streams", "waiting")

    def __init__(self, client: int, group: int, privileged: bool) -> None:
        self.id = client
        self.group = group
        self.privileged = privileged
        self.connection = GuestConnection(one_hello=True)
        # The client's stream id to the guest's.
        self.streams: dict[int, int] = {}
        self.waiting = False


class _Route:
    """Where the frames of one of the guest's streams go: to a client, to a function, or nowhere."""

    __slots__ = ("client", "observer", "on_event", "stream")

    def __init__(
        self,
        client: _Client | None,
        stream: int,
        on_event: OnEvent | None,
        observer: Observer | None = None,
    ) -> None:
        self.client = client
        self.stream = stream
        self.on_event = on_event
        self.observer = observer


class Relay:
    """The state of a relay. Clients are named by integers of the driver's choice (their descriptors).

    A driver feeds `guest_received`, `client_connected`, `client_received` and `client_gone`, and after each
    of them sends what `guest_output` and the `client_output` of every client in `take_touched` offer, and
    closes the `closed_clients`.
    """

    def __init__(
        self,
        *,
        name: str = "microsandbox",
        privileged_methods: Collection[str] = PRIVILEGED,
        client_queue_limit: int = CLIENT_QUEUE_LIMIT,
        on_ready: Callable[[HelloReceived], None] | None = None,
        on_request: Callable[[str], None] | None = None,
    ) -> None:
        """`on_request` is called with the method of each request of a client that the guest gets."""
        self._host = HostConnection(name)
        self._privileged_methods = frozenset(privileged_methods)
        self._client_queue_limit = client_queue_limit
        self._on_ready = on_ready
        self._on_request = on_request
        self._clients: dict[int, _Client] = {}
        self._routes: dict[int, _Route] = {}
        self._groups = _INTERNAL_GROUP
        self._touched: set[int] = set()
        self._closed: set[int] = set()
        # By the exact type of the event: this is done for every frame.
        self._from_guest: dict[type, Callable[[Any], None]] = {
            HelloReceived: self._on_hello,
            Failed: self._on_guest_failed,
            DataReceived: self._on_data,
            Opened: self._on_stream,
            EventReceived: self._on_stream,
            EofReceived: self._on_stream,
            CreditReceived: self._on_stream,
            Ended: self._on_ended,
        }
        self._from_client: dict[type, Callable[[_Client, Any], None]] = {
            HostHelloReceived: self._on_host_hello,
            OpenReceived: self._on_open,
            Failed: self._on_client_failed,
            DataReceived: self._on_client_stream,
            EofReceived: self._on_client_stream,
            CreditReceived: self._on_client_stream,
            MessageReceived: self._on_client_stream,
            CancelReceived: self._on_client_stream,
        }
        self.guest_hello: HelloReceived | None = None
        """The guest's HELLO, once it has come."""
        self.observer: Observer | None = None
        """Who is told of the commands that clients open from now on."""
        self.active_at = monotonic()
        """`time.monotonic()` when a client last sent anything, or was last sent output."""
        self.configured = False
        """Whether clients are told that the guest is configured: set it when `configure` has succeeded."""

    # ------------------------------------------------------------------------------------------- guest

    @property
    def error(self) -> ChannelError | None:
        """Why the guest's connection is over, or None. When it is, all clients are closed."""
        return self._host.error

    @property
    def guest_pending(self) -> bool:
        """Whether anything waits to be sent to the guest."""
        return self._host.pending

    def guest_received(self, data: bytes | bytearray | memoryview) -> None:
        """Bytes came from the guest; `data` is not kept."""
        self._handle_guest(self._host.receive(data))
        limit = self._client_queue_limit
        for client_id in tuple(self._touched):
            client = self._clients[client_id]
            if client.connection.queued > limit:
                # It does not take what it asked for, and waiting for it would make the others wait.
                self._close(client, flush=False)
        self._check_guest_queue()

    def guest_eof(self) -> None:
        """The guest's byte stream has ended."""
        self._handle_guest(self._host.eof_received())

    def guest_output(self, limit: int = 1 << 18) -> list[Piece]:
        """Buffers to send to the guest, in order, about `limit` bytes of them."""
        return self._host.output(limit)

    def guest_sent(self, count: int) -> None:
        """The port took the first `count` bytes of the last `guest_output`."""
        self._host.sent(count)

    def _check_guest_queue(self) -> None:
        if self._host.error is None and self._host.queued > GUEST_QUEUE_LIMIT:
            self._handle_guest(self._host.give_up(ConnectionLost("the guest does not take what it is sent")))

    def _handle_guest(self, events: list[Event]) -> None:
        for event in events:
            self._from_guest[type(event)](event)

    def _on_hello(self, event: HelloReceived) -> None:
        self.guest_hello = event
        self.configured = event.configured
        for client in self._clients.values():
            if client.waiting:
                client.waiting = False
                self._greet(client)
        if self._on_ready is not None and not self._host.closed:
            self._on_ready(event)

    def _on_guest_failed(self, event: Failed) -> None:
        routes, self._routes = self._routes, {}
        for client in self._clients.values():
            client.streams.clear()
            # What the guest had said before it ended is still theirs.
            self._close(client, flush=True)
        for route in routes.values():
            if route.on_event is not None:
                route.on_event(event)

    def _on_data(self, event: DataReceived) -> None:
        stream, channel, data = event
        route = self._routes[stream]
        client = route.client
        if route.observer is not None:
            route.observer.exec_output(stream, channel, data)
        if client is not None:
            self.active_at = monotonic()
            self._touched.add(client.id)
            client.connection.forward_data(route.stream, channel, data)
            return
        if route.on_event is not None:
            route.on_event(event)
        # Of a stream without a reader too: its writer has to come to its end. Not `consumed`, which keeps
        # count: the client that has left may have given more credit than it took.
        self._host.grant(stream, channel, len(data))

    def _on_stream(self, event: Opened | EventReceived | EofReceived | CreditReceived) -> None:
        route = self._routes[event.stream]
        client = route.client
        if route.observer is not None and isinstance(event, Opened):
            route.observer.exec_started(event.stream, event.body)
        if client is None:
            if route.on_event is not None:
                route.on_event(event)
            return
        self._touched.add(client.id)
        if isinstance(event, CreditReceived):
            client.connection.grant(route.stream, event.channel, event.amount)
        elif isinstance(event, EventReceived):
            client.connection.event(route.stream, event.name, event.body)
        elif isinstance(event, EofReceived):
            client.connection.send_eof(route.stream, event.channel)
        else:
            client.connection.opened(route.stream, event.body)

    def _on_ended(self, event: Ended) -> None:
        route = self._routes.pop(event.stream)
        client = route.client
        if route.observer is not None:
            route.observer.exec_ended(event.stream, event.body)
        if client is not None:
            self.active_at = monotonic()
            self._touched.add(client.id)
            del client.streams[route.stream]
            client.connection.end(route.stream, event.body)
        elif route.on_event is not None:
            route.on_event(event)

    # ----------------------------------------------------------------------------------------- clients

    @property
    def clients(self) -> frozenset[int]:
        """The clients that are connected."""
        return frozenset(self._clients)

    def client_connected(self, client: int, *, privileged: bool = False) -> None:
        """A client connected. `privileged` allows it `configure`, `mount` and `shutdown`."""
        self._groups += 1
        self._clients[client] = _Client(client, self._groups, privileged)
        if self.error is not None:
            self._close(self._clients[client], flush=False)

    def client_received(self, client: int, data: bytes | bytearray | memoryview) -> None:
        """Bytes came from a client; `data` is not kept."""
        found = self._clients[client]
        self.active_at = monotonic()
        self._touched.add(client)
        for event in found.connection.receive(data):
            self._from_client[type(event)](found, event)
        self._check_guest_queue()

    def client_gone(self, client: int) -> None:
        """A client's connection has ended: its streams are cancelled, and nothing else is."""
        found = self._clients.pop(client)
        self._touched.discard(client)
        self._closed.discard(client)
        self._abandon(found)

    def client_output(self, client: int, limit: int = 1 << 18) -> list[Piece]:
        """Buffers to send to a client, in order, about `limit` bytes of them."""
        return self._clients[client].connection.output(limit)

    def client_sent(self, client: int, count: int) -> None:
        """A client's socket took the first `count` bytes of its last `client_output`."""
        self._clients[client].connection.sent(count)

    def client_pending(self, client: int) -> bool:
        """Whether anything waits to be sent to a client."""
        return self._clients[client].connection.pending

    def take_touched(self) -> set[int]:
        """Clients that may have something to be sent since the last call."""
        touched, self._touched = self._touched, set()
        return touched

    def closed_clients(self) -> frozenset[int]:
        """Clients whose connection is over: send what is left, close the socket, say `client_gone`."""
        return frozenset(self._closed)

    def wants_read(self, client: int) -> bool:
        """Whether bytes of this client should be read now."""
        return self.accepts_input and self.takes_replies(client)

    @property
    def accepts_input(self) -> bool:
        """Whether the guest takes what it is sent: while it does not, no client should be read."""
        return self._host.queued < GUEST_HIGH_WATER

    def takes_replies(self, client: int) -> bool:
        """Whether this client takes what it is sent: while it does not, it should not be read."""
        connection = self._clients[client].connection
        return not connection.closed and connection.queued < CLIENT_HIGH_WATER

    def streams(self, client: int) -> int:
        """How many streams of a client the guest has not ended."""
        return len(self._clients[client].streams)

    def _greet(self, client: _Client) -> None:
        hello = self.guest_hello
        assert hello is not None
        if client.connection.closed:
            # What followed its HELLO in the same piece of bytes ended it.
            return
        client.connection.hello(
            name=hello.name, agent_version=hello.agent_version, configured=self.configured
        )
        self._touched.add(client.id)

    def _on_host_hello(self, client: _Client, event: HostHelloReceived) -> None:
        if self.guest_hello is None:
            client.waiting = True
        else:
            self._greet(client)

    def _on_client_failed(self, client: _Client, event: Failed) -> None:
        self._close(client, flush=True)

    def _on_client_stream(
        self,
        client: _Client,
        event: DataReceived | EofReceived | CreditReceived | MessageReceived | CancelReceived,
    ) -> None:
        stream = client.streams.get(event.stream)
        if stream is None:
            # The guest has ended it, and END waits for the client behind its data.
            return
        host = self._host
        if isinstance(event, CreditReceived):
            host.grant(stream, event.channel, event.amount)
        elif isinstance(event, CancelReceived):
            host.cancel(stream)
        elif isinstance(event, MessageReceived) and event.name == "detach":
            self._detach(client, event.stream, stream)
        elif isinstance(event, MessageReceived):
            host.message(stream, event.name, event.body)
        elif host.is_cancelled(stream):
            # Data that its own CANCEL has overtaken.
            return
        elif isinstance(event, DataReceived):
            host.forward_data(stream, event.channel, event.data)
        else:
            host.send_eof(stream, event.channel)

    def _on_open(self, client: _Client, event: OpenReceived) -> None:
        if client.connection.closed:
            # As in `_greet`: there is nobody left to run it for.
            return
        if event.method in self._privileged_methods and not client.privileged:
            client.connection.end_error(
                event.stream, "not_permitted", f"{event.method} is for the sandbox's supervisor"
            )
            return
        try:
            stream = self._host.open(event.method, event.params, group=client.group)
        except TooManyStreams as error:
            client.connection.end_error(event.stream, error.code, str(error))
            return
        client.streams[event.stream] = stream
        observer = self.observer if event.method == "exec" else None
        self._routes[stream] = _Route(client, event.stream, None, observer)
        if observer is not None:
            observer.exec_opened(stream, event.params)
        if self._on_request is not None:
            self._on_request(event.method)

    def _detach(self, client: _Client, theirs: int, stream: int) -> None:
        """The client leaves a program to itself: what it writes goes nowhere but to the observer."""
        del client.streams[theirs]
        self._routes[stream].client = None
        # What the client has not taken it never will, and the program must not stop for that.
        self._host.refill(stream)
        client.connection.end(theirs, {"detached": True})
        self._touched.add(client.id)

    def _abandon(self, client: _Client) -> None:
        for stream in client.streams.values():
            self._routes[stream].client = None
            self._host.cancel(stream)
        client.streams.clear()

    def _close(self, client: _Client, *, flush: bool) -> None:
        self._abandon(client)
        client.connection.give_up(ConnectionLost("the relay closed the connection"), flush=flush)
        self._closed.add(client.id)
        self._touched.add(client.id)

    # ---------------------------------------------------------------------------------------- internal

    def open(self, method: str, params: Control | None, on_event: OnEvent) -> int:
        """Opens a stream for the program that holds the relay; returns an id for `message` and `cancel`.

        `on_event` is called with `Opened`, `EventReceived`, `DataReceived`, `EofReceived`, `CreditReceived`,
        and at last `Ended` or `Failed`; data counts as taken when it returns. Raises `StreamClosed` before
        the guest's HELLO (`on_ready`) and after the end, `TooManyStreams`, `ValueError`.
        """
        stream = self._host.open(method, params, group=_INTERNAL_GROUP)
        self._routes[stream] = _Route(None, 0, on_event)
        return stream

    def message(self, stream: int, name: str, body: Control | None = None) -> None:
        """Sends MESSAGE on a stream of `open`. Raises `StreamClosed`, `ValueError`."""
        self._own(stream)
        self._host.message(stream, name, body)

    def cancel(self, stream: int) -> None:
        """Cancels a stream of `open`; does nothing if it has ended."""
        if stream in self._routes:
            self._own(stream)
            self._host.cancel(stream)

    def _own(self, stream: int) -> None:
        route = self._routes.get(stream)
        if route is None or route.on_event is None:
            raise StreamClosed(f"stream {stream} is not the relay's own")
