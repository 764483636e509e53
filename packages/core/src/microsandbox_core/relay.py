"""Shares one guest among many clients, without I/O: each client sees a guest of its own.

A relay is host to the guest and guest to each client. It decodes and re-encodes control frames, so nothing
malformed passes in either direction, and moves data as it is. Credit passes from end to end, and so does
its absence: the relay holds of every stream at most what its receiver allowed.

What bounds its memory:

* data towards a client: the credit that the client gave; a client that gives more than it takes is cut off
  at `CLIENT_QUEUE_LIMIT`, since waiting for it would make the others wait;
* replies and events for a client: the same limit, and no more requests are read from a client that does
  not take its replies (`wants_read`);
* a command that its client has left: the end of what it printed (`relay_left`), and a window of input;
* everything towards the guest: no client is read while `GUEST_HIGH_WATER` bytes wait; a guest that lets
  the relay's own frames pile up to `GUEST_QUEUE_LIMIT` is given up.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from operator import itemgetter
from time import monotonic, time_ns
from typing import TYPE_CHECKING, Any, Final, Protocol

from .channel import (
    STDIN,
    WINDOW_TO_GUEST,
    WINDOW_TO_HOST,
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
    Value,
)

if TYPE_CHECKING:
    from .relay_left import Left, Outcomes

GUEST_HIGH_WATER: Final = 2 << 20
"""Bytes waiting for the guest above which no client is read."""
CLIENT_HIGH_WATER: Final = 8 << 20
"""Bytes waiting for a client above which it is not read."""
GUEST_QUEUE_LIMIT: Final = 64 << 20
"""Bytes waiting for the guest at which it is given up."""
CLIENT_QUEUE_LIMIT: Final = 256 << 20
"""Bytes waiting for a client at which it is cut off."""
EARLY_LIMIT: Final = 2048
"""What a client may say about streams before the guest is ready: beyond it is cut off."""

PRIVILEGED: Final = frozenset({"configure", "mount", "patch", "init", "hold", "network", "shutdown"})
"""Methods that a client may use only if it was connected with `privileged=True`."""

PASSIVE: Final = frozenset({"metrics", "network.metrics", "outcome", "sessions"})
"""Methods that are no activity: who watches a sandbox, however often, does not keep it from being idle."""

SESSIONS_AT_ONCE: Final = 32
"""Commands that one answer to `sessions` tells of: it fits into an END, whatever their command lines."""

_OUTCOME: Final = ("code", "signal", "timed_out", "oom_killed")
"""What END says of how a command ended."""

_NO_SESSION: Final = "no command of this number was left here"

_SHOWN: Final = 512  # bytes of a command line that are kept to be shown

_INTERNAL_GROUP: Final = 0

OnEvent = Callable[[Event], None]
Answer = Callable[[Control], None]


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


_ClientEvent = OpenReceived | DataReceived | EofReceived | CreditReceived | MessageReceived | CancelReceived


class _Client:
    __slots__ = ("connection", "early", "early_streams", "group", "id", "privileged", "streams", "waiting")

    def __init__(self, client: int, group: int, privileged: bool) -> None:
        self.id = client
        self.group = group
        self.privileged = privileged
        self.connection = GuestConnection(one_hello=True)
        # The client's stream id to the guest's.
        self.streams: dict[int, int] = {}
        self.waiting = False
        # What it has asked for before the guest was ready, and these streams.
        self.early: list[_ClientEvent] = []
        self.early_streams: set[int] = set()


class _Route:
    """Where the frames of one of the guest's streams go: to a client, to a function, or nowhere."""

    __slots__ = (
        "about", "client", "keep", "left", "main", "observer", "on_event", "passive", "pid", "stream",
    )  # fmt: skip

    def __init__(
        self,
        client: _Client | None,
        stream: int,
        on_event: OnEvent | None,
        observer: Observer | None = None,
        passive: bool = False,
        about: Control | None = None,
        main: bool = False,
        keep: bool = False,
    ) -> None:
        # What a command is, for those who may join it when its client has left it; then what is kept of it.
        self.about = about
        self.left: Left | None = None
        # None: not started yet.
        self.pid: int | None = None
        self.client = client
        self.stream = stream
        self.on_event = on_event
        self.observer = observer
        self.passive = passive
        # Whether it is the command that the sandbox is there for.
        self.main = main
        # Whether its end is remembered also if it comes before its client has left it.
        self.keep = keep

    @property
    def kept(self) -> bool:
        """Whether its end is remembered."""
        return self.keep or self.left is not None


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
        # Made when there is something to remember, or somebody waits for an end.
        self._outcomes: Outcomes | None = None
        self._main_outcome: Control | None = None
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
        """`time.monotonic()` when a client last sent anything but a greeting or a request of `PASSIVE`,
        or was last sent output."""
        self.on_last: OnEvent | None = None
        """Who is told of what comes on a stream that a client has left with the word that it is the last."""
        self.on_main_end: Callable[[Control], None] | None = None
        """Who is told how the command ended that a client has called the main one: the body of END."""
        self.methods: dict[str, Callable[[Control, Answer], None]] = {}
        """Methods of clients that the guest never hears of: called with the parameters, and with what to
        call, once and whenever it suits, with the body of the stream's END."""
        self.gate: Callable[[str], Control | None] | None = None
        """Is asked whether a client's request may go to the guest: the error to end it with, or None."""
        self.before_exec_end: Callable[[], None] = lambda: None
        """Is called before a client hears that its command has ended."""
        self.broken: Control | None = None
        """The error with which every command of a client ends from now on, whatever became of it."""
        self._configured = False

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

    @property
    def configured(self) -> bool:
        """Whether clients are told that the guest is configured, and may run anything.

        Set it when `configure`, and whatever else comes before them, has succeeded. What they want to run
        waits until then.
        """
        return self._configured

    @configured.setter
    def configured(self, configured: bool) -> None:
        self._configured = configured
        if not configured:
            return
        for client in tuple(self._clients.values()):
            early, client.early = client.early, []
            client.early_streams.clear()
            for event in early:
                self._from_client[type(event)](client, event)

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
        if route.left is not None:
            route.left.keep(channel, data)
        # Of a stream without a reader too: its writer has to come to its end. Not `consumed`, which keeps
        # count: the client that has left may have given more credit than it took.
        self._host.grant(stream, channel, len(data))

    def _on_stream(self, event: Opened | EventReceived | EofReceived | CreditReceived) -> None:
        route = self._routes[event.stream]
        client = route.client
        if isinstance(event, Opened):
            pid = event.body.get("pid")
            route.pid = pid if type(pid) is int else 0
            if route.observer is not None:
                route.observer.exec_started(event.stream, event.body)
        if route.left is not None and self._take_note(route, route.left, event):
            return
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
        if route.main and self.on_main_end is not None:
            self.on_main_end(event.body)
        body = event.body
        if route.about is not None:
            self.before_exec_end()
            if self.broken is not None and "error" not in body:
                body = {**body, "error": self.broken}
        if client is not None:
            if not route.passive:
                self.active_at = monotonic()
            self._touched.add(client.id)
            del client.streams[route.stream]
            client.connection.end(route.stream, body)
        if route.main or route.kept:
            self._note_end(event.stream, route, event.body)
        if route.on_event is not None:
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
        self._touched.add(client)
        events = found.connection.receive(data)
        # A part of a frame counts: of a request that does not, the rest comes at once.
        if not events or not all(self._is_passive(found, event) for event in events):
            self.active_at = monotonic()
        for event in events:
            self._from_client[type(event)](found, event)
        self._check_guest_queue()

    def _is_passive(self, client: _Client, event: Event) -> bool:
        if isinstance(event, OpenReceived):
            return event.method in PASSIVE
        if isinstance(event, CancelReceived):
            route = self._routes.get(client.streams.get(event.stream, 0))
            return route is not None and route.passive
        return isinstance(event, HostHelloReceived)

    def client_gone(self, client: int) -> None:
        """A client's connection has ended: its streams are cancelled, and nothing else is."""
        found = self._clients.pop(client)
        self._touched.discard(client)
        self._closed.discard(client)
        if self._outcomes is not None:
            self._outcomes.forget(client)
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
        if event.stream in client.early_streams:
            self._keep_early(client, event)
            return
        stream = client.streams.get(event.stream)
        if stream is None:
            # The guest has ended it, and END waits for the client behind its data; or it never had it.
            outcomes = self._outcomes if isinstance(event, CancelReceived) else None
            if outcomes is not None and outcomes.forget(client.id, event.stream):
                client.connection.end_error(event.stream, "cancelled", "nobody waits any more")
            return
        host = self._host
        if isinstance(event, CreditReceived):
            host.grant(stream, event.channel, event.amount)
        elif isinstance(event, CancelReceived):
            host.cancel(stream)
        elif isinstance(event, MessageReceived) and event.name == "detach":
            self._detach(client, event.stream, stream, last=event.body.get("last") is True)
        elif isinstance(event, MessageReceived):
            host.message(stream, event.name, event.body)
        elif host.is_cancelled(stream):
            # Data that its own CANCEL has overtaken.
            return
        elif (left := self._routes[stream].left) is not None:
            self._take_input(client, left, event)
            self._feed(stream, left)
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
        if not self.configured and event.method in ("exec", "files"):
            # Its owner may have more to do in the guest, which nobody else's programs may see half done.
            client.early_streams.add(event.stream)
            self._keep_early(client, event)
            return
        if event.method in self.methods:
            self.methods[event.method](event.params, self._answer(client, event.stream))
            return
        if event.method == "sessions":
            client.connection.end(event.stream, self._sessions(event.params))
            return
        if event.method == "outcome":
            self._tell_outcome(client, event.stream, event.params.get("session"))
            return
        refusal = None if self.gate is None else self.gate(event.method)
        if refusal is not None:
            client.connection.end(event.stream, {"error": refusal})
            return
        if event.method == "attach":
            self._join(client, event.stream, event.params.get("session"))
            return
        is_exec = event.method == "exec"
        main = is_exec and event.params.pop("main", None) is True  # words for us
        keep = is_exec and event.params.pop("keep", None) is True
        try:
            stream = self._host.open(event.method, event.params, group=client.group)
        except TooManyStreams as error:
            client.connection.end_error(event.stream, error.code, str(error))
            return
        client.streams[event.stream] = stream
        observer = self.observer if is_exec else None
        about = _about(event.params) if is_exec else None
        passive = event.method in PASSIVE
        self._routes[stream] = _Route(client, event.stream, None, observer, passive, about, main, keep)
        if observer is not None:
            observer.exec_opened(stream, event.params)
        if self._on_request is not None:
            self._on_request(event.method)

    def _keep_early(self, client: _Client, event: _ClientEvent) -> None:
        client.early.append(event)
        if len(client.early) > EARLY_LIMIT:
            self._close(client, flush=True)

    def _answer(self, client: _Client, theirs: int) -> Answer:
        def end(body: Control) -> None:
            if self._clients.get(client.id) is client and not client.connection.closed:
                client.connection.end(theirs, body)
                self._touched.add(client.id)

        return end

    def _detach(self, client: _Client, theirs: int, stream: int, *, last: bool) -> None:
        """The client leaves a program to itself: what it writes goes to the observer, and to who joins it."""
        del client.streams[theirs]
        route = self._routes[stream]
        if route.about is not None and route.left is None:
            from .relay_left import Left  # most programs are not left

            route.left = Left(route.about)
        if last:
            route.on_event = self.on_last
            if route.left is not None:
                route.left.about["last"] = True
        self._part(stream, route)
        client.connection.end(theirs, {"detached": True})
        self._touched.add(client.id)

    def _part(self, stream: int, route: _Route) -> None:
        """Nobody is joined to a program any more."""
        route.client = None
        if route.left is not None:
            route.left.part()
        # What the client has not taken it never will, and the program must not stop for that.
        self._host.refill(stream)

    def _abandon(self, client: _Client) -> None:
        for stream in client.streams.values():
            route = self._routes[stream]
            if route.left is not None:
                # It was left once, and does not belong to who has joined it.
                self._part(stream, route)
                continue
            route.client = None
            self._host.cancel(stream)
        client.streams.clear()

    # ---------------------------------------------------------------------------------------- joining

    def _sessions(self, params: Control) -> Control:
        """The programs that were left, by the guest's number, above the one given, if it is asked for also
        those that have ended; how many there are is not the answer's to say, which has a limit."""
        after = params.get("after")
        least = after if type(after) is int else 0
        found: list[tuple[int, _Route | Control]] = [
            (stream, route)
            for stream, route in self._routes.items()
            if route.left is not None and stream > least and self._is_there(stream)
        ]
        if params.get("ended") is True and self._outcomes is not None:
            for told in self._outcomes.ended:
                session = told["session"]
                if type(session) is int and session > least:
                    found.append((session, told))
            found.sort(key=itemgetter(0))
        shown: list[Value] = [
            self._told(stream, each) if isinstance(each, _Route) else each
            for stream, each in found[:SESSIONS_AT_ONCE]
        ]
        return {"sessions": shown, "more": len(found) > SESSIONS_AT_ONCE}

    def _told(self, stream: int, route: _Route) -> Control:
        """What a program is that was left."""
        return {
            **((route.about or {}) if route.left is None else route.left.about),
            "session": stream,
            "pid": route.pid or 0,
            "since_ns": time_ns() if route.left is None else route.left.since_ns,
            "joined": route.client is not None,
        }

    def _tell_outcome(self, client: _Client, theirs: int, session: Value) -> None:
        """How a program has ended that was left, or the main one, now or when it has."""
        from .relay_left import Outcomes  # few ask

        outcomes = self._outcomes = self._outcomes or Outcomes()
        if session is None:
            known: Value = self._main_outcome
        elif type(session) is int:
            known = outcomes.find(session)
            route = self._routes.get(session)
            if known is None and (route is None or not route.kept):
                client.connection.end_error(theirs, "no_session", _NO_SESSION)
                return
        else:
            client.connection.end_error(theirs, "no_session", _NO_SESSION)
            return
        if isinstance(known, dict):
            client.connection.end(theirs, known)
        else:
            # Who was told so knows of an end that was not seen when the connection is lost.
            client.connection.opened(theirs, {})
            outcomes.wait(client.id, theirs, session, self._answer(client, theirs))

    def _note_end(self, stream: int, route: _Route, body: Control) -> None:
        """Remember how a program ended, for those who ask; one that was never started is not listed."""
        outcome: Control
        if "error" in body:
            outcome = {"error": body["error"]}
        else:
            outcome = {name: body[name] for name in _OUTCOME if isinstance(body.get(name), int)}
        if route.main:
            self._main_outcome = outcome
        if "error" not in body and route.kept:
            from .relay_left import Outcomes

            self._outcomes = self._outcomes or Outcomes()
            told = {**self._told(stream, route), "joined": False, "ended_ns": time_ns(), "outcome": outcome}
            self._outcomes.ended.append(told)
        if self._outcomes is not None:
            self._outcomes.tell(stream, outcome)
            if route.main:
                self._outcomes.tell(None, outcome)

    def _is_there(self, stream: int) -> bool:
        """Whether a program has been started, and nobody has asked for its end."""
        return self._routes[stream].pid is not None and not self._host.is_cancelled(stream)

    def _join(self, client: _Client, theirs: int, session: Value) -> None:
        """The client takes the place of the one that has left a program: one at a time."""
        route = self._routes.get(session) if type(session) is int else None
        if type(session) is not int or route is None or route.left is None or not self._is_there(session):
            client.connection.end_error(theirs, "no_session", _NO_SESSION)
            return
        if route.client is not None:
            client.connection.end_error(theirs, "joined", "somebody else is joined to it")
            return
        left = route.left
        credit, allowed = self._host.windows(session)
        if any(room is not None and room > WINDOW_TO_HOST for room in allowed.values()):
            # An earlier client has allowed the guest more than it took, and this one need not take it.
            client.connection.end_error(theirs, "no_session", "the command cannot be joined any more")
            return
        client.streams[theirs] = session
        route.client, route.stream = client, theirs
        connection = client.connection
        printed = left.join(0 if credit is None else WINDOW_TO_GUEST - credit)
        connection.opened(theirs, {"pid": route.pid, "printed": printed})
        for channel, room in allowed.items():
            if room is None:
                connection.send_eof(theirs, channel)
        if credit is None or left.input_closed:
            connection.event(theirs, "stdin_closed")

    def _take_note(self, route: _Route, left: Left, event: Event) -> bool:
        """What the guest says of a program that was left and that concerns who joins it; whether that was all
        there is to do about it."""
        if isinstance(event, EventReceived) and event.name == "stdin_closed":
            left.input_closed = True
        if not isinstance(event, CreditReceived):
            return False
        over = left.pay(event.amount)
        self._feed(event.stream, left)
        if route.client is not None and over:
            route.client.connection.grant(route.stream, event.channel, over)
            self._touched.add(route.client.id)
        return True

    def _take_input(self, client: _Client, left: Left, event: DataReceived | EofReceived) -> None:
        """What is typed into a program that was left. The guest may not have allowed it yet: each client may
        send a window, whatever others have sent before."""
        if isinstance(event, EofReceived):
            left.input.append(b"")
        elif not left.input_ended:
            left.input.append(event.data)
        else:
            client.connection.grant(event.stream, event.channel, len(event.data))

    def _feed(self, stream: int, left: Left) -> None:
        while left.input and not self._host.is_cancelled(stream):
            credit, _ = self._host.windows(stream)
            data = left.input[0]
            if credit is None or not data:
                if credit is not None:
                    self._host.send_eof(stream, STDIN)
                left.input_ended = True
                left.input.clear()
            elif credit <= 0:
                return
            else:
                self._host.forward_data(stream, STDIN, data[:credit])
                left.take(min(credit, len(data)))

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


def _about(params: Control) -> Control:
    """What a command is, as much of it as is shown to who may join it."""
    argv, left = [], _SHOWN
    words = params.get("argv")
    for word in words if type(words) is list else ():
        if left <= 0 or type(word) is not bytes:
            break
        argv.append(word[:left])
        left -= len(word) + 1
    shown: list[Value] = [*argv]
    return {"argv": shown, "tty": params.get("tty") is not None, "stdin": params.get("stdin") == "pipe"}
