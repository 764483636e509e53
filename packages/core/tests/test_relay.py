"""The relay: many clients, one guest, and none of them to be trusted."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from microsandbox_core.channel import (
    MAX_DATA,
    MAX_STREAMS,
    STDERR,
    STDIN,
    STDOUT,
    WINDOW_TO_GUEST,
    WINDOW_TO_HOST,
    CancelReceived,
    ConnectionLost,
    Control,
    CreditReceived,
    DataReceived,
    Ended,
    EofReceived,
    Event,
    EventReceived,
    Failed,
    HelloReceived,
    HostConnection,
    HostHelloReceived,
    Kind,
    MessageReceived,
    Opened,
    OpenReceived,
    PeerError,
    ProtocolError,
    StreamClosed,
    encode_credit,
    encode_data,
    encode_eof,
    encode_frame,
)
from microsandbox_core.relay import (
    CLIENT_HIGH_WATER,
    EARLY_LIMIT,
    GUEST_HIGH_WATER,
    GUEST_QUEUE_LIMIT,
    Answer,
    Relay,
)

from tests.support.relay_world import World

ALLOWANCE = 4 << 20


def data_of(events: list[Event]) -> bytes:
    return b"".join(event.data for event in events if isinstance(event, DataReceived))


# ------------------------------------------------------------------------------------------- the plain way


def test_a_client_sees_the_guest_as_if_it_were_alone() -> None:
    world = World()
    world.connect(3)
    world.connect(4)
    assert world.take(3) == [HelloReceived(1, "agentd", "9", True)]
    assert world.take(4) == [HelloReceived(1, "agentd", "9", True)]
    for client in (3, 4):
        stream, at_guest = world.running(client)
        assert stream == 1
        connection = world.clients[client]
        connection.send_data(stream, STDIN, b"in")
        connection.send_eof(stream)
        connection.message(stream, "signal", {"signal": 2})
        assert world.take_guest() == [
            MessageReceived(at_guest, "signal", {"signal": 2}),
            DataReceived(at_guest, STDIN, b"in"),
            EofReceived(at_guest, STDIN),
        ]
        world.guest.event(at_guest, "exited", {"code": 5})
        world.guest.send_data(at_guest, STDERR, b"err")
        world.guest.send_eof(at_guest, STDERR)
        world.guest.end(at_guest, {"code": 5})
        assert world.take(client) == [
            EventReceived(stream, "exited", {"code": 5}),
            DataReceived(stream, STDERR, b"err"),
            EofReceived(stream, STDERR),
            Ended(stream, {"code": 5}),
        ]
        assert world.relay.streams(client) == 0


def test_a_client_that_comes_before_the_guest_waits_for_its_hello() -> None:
    ready: list[HelloReceived] = []
    world = World(Relay(on_ready=ready.append), greet=False)
    world.connect(1)
    assert world.take(1) == []
    world.guest.hello(agent_version="2", configured=False)
    assert world.take(1) == [HelloReceived(1, "agentd", "2", False)]
    assert ready == [HelloReceived(1, "agentd", "2", False)]
    world.relay.configured = True
    world.connect(2)
    assert world.take(2) == [HelloReceived(1, "agentd", "2", True)]


def test_credit_passes_from_end_to_end_and_only_there() -> None:
    world = World()
    world.connect(1)
    stream, at_guest = world.running(1)
    client = world.clients[1]
    assert world.guest.send_data(at_guest, STDOUT, bytes(2 * WINDOW_TO_HOST)) == WINDOW_TO_HOST
    assert len(data_of(world.take(1))) == WINDOW_TO_HOST
    assert world.guest.writable(at_guest, STDOUT) == 0
    client.consumed(stream, STDOUT, WINDOW_TO_HOST)
    assert world.take_guest() == [CreditReceived(at_guest, STDOUT, WINDOW_TO_HOST)]
    assert client.send_data(stream, STDIN, bytes(2 * WINDOW_TO_GUEST)) == WINDOW_TO_GUEST
    assert len(data_of(world.take_guest())) == WINDOW_TO_GUEST
    assert client.writable(stream) == 0
    world.guest.consumed(at_guest, STDIN, WINDOW_TO_GUEST)
    assert CreditReceived(stream, STDIN, WINDOW_TO_GUEST) in world.take(1)


def test_clients_share_the_guest_fairly() -> None:
    world = World()
    for client in (1, 2):
        world.connect(client)
    busy = [world.running(1)[0] for _ in range(8)]
    quiet, at_guest = world.running(2)
    world.take_guest()
    for stream in busy:
        world.clients[1].send_data(stream, STDIN, bytes(2 * MAX_DATA))
    world.clients[2].send_data(quiet, STDIN, bytes(2 * MAX_DATA))
    for client in (1, 2):
        while pieces := world.clients[client].output():
            data = b"".join(pieces)
            world.clients[client].sent(len(data))
            world.relay.client_received(client, data)
    order = [event.stream for event in world.take_guest() if isinstance(event, DataReceived)]
    assert order.index(at_guest) == 1
    assert order[3] == at_guest
    assert len(order) == 18


def test_a_client_that_leaves_takes_its_own_programs_with_it_and_nothing_else() -> None:
    world = World()
    for client in (1, 2):
        world.connect(client)
    _, first = world.running(1)
    _, second = world.running(1)
    stream, other = world.running(2)
    world.take_guest()
    world.gone(1)
    assert world.take_guest() == [CancelReceived(first), CancelReceived(second)]
    # What the guest still says about them goes nowhere, and costs it no credit.
    for _ in range(5):
        assert world.guest.send_data(first, STDOUT, bytes(WINDOW_TO_HOST)) == WINDOW_TO_HOST
        world.pump()
    world.guest.event(first, "exited", {"signal": 9})
    world.guest.end(first, {"signal": 9})
    world.guest.end(second, {"signal": 9})
    world.guest.send_data(other, STDOUT, b"still here")
    assert world.take(2)[-1] == DataReceived(stream, STDOUT, b"still here")
    assert world.relay.error is None
    assert world.guest.stream_count == 1


@pytest.mark.parametrize("last", [False, True])
def test_the_owner_hears_of_the_last_program_that_was_left(last: bool) -> None:
    world = World()
    heard: list[object] = []
    world.relay.on_last = heard.append
    world.connect(1)
    stream, at_guest = world.running(1)
    world.clients[1].message(stream, "detach", {"last": last})
    assert world.take(1) == [Ended(stream, {"detached": True})]
    world.gone(1)
    world.guest.end(at_guest, {"code": 3})
    world.pump()
    assert [event for event in heard if isinstance(event, Ended)] == ([Ended(1, {"code": 3})] if last else [])


def test_a_program_that_was_detached_from_outlives_its_client() -> None:
    world = World()
    world.connect(1)
    stream, at_guest = world.running(1)
    # The client takes none of it, so that the guest has no credit left.
    world.guest.send_data(at_guest, STDOUT, bytes(WINDOW_TO_HOST))
    world.take(1)
    assert world.guest.writable(at_guest, STDOUT) == 0
    world.clients[1].message(stream, "detach")
    assert world.take(1) == [Ended(stream, {"detached": True})]
    assert world.relay.streams(1) == 0
    world.gone(1)
    world.take_guest()
    for _ in range(5):
        assert world.guest.send_data(at_guest, STDOUT, bytes(WINDOW_TO_HOST)) == WINDOW_TO_HOST
        world.pump()
    assert all(isinstance(event, CreditReceived) for event in world.take_guest())
    world.guest.end(at_guest, {"code": 0})
    world.pump()
    assert world.relay.error is None
    assert world.guest.stream_count == 0


def test_a_client_that_gave_more_credit_than_it_took_may_leave() -> None:
    world = World()
    world.connect(1)
    stream, at_guest = world.running(1)
    world.say(1, encode_credit(stream, STDOUT, 1 << 20))
    world.gone(1)
    world.guest.send_data(at_guest, STDOUT, bytes(WINDOW_TO_HOST))
    world.pump()
    assert world.relay.error is None


def test_what_the_guest_said_before_it_ended_still_reaches_clients() -> None:
    world = World()
    world.connect(1)
    stream, at_guest = world.running(1)
    world.guest.send_data(at_guest, STDOUT, b"last words")
    world.guest.end(at_guest, {"code": 0})
    data = b"".join(world.guest.output())
    world.relay.guest_received(data)
    world.relay.guest_eof()
    assert isinstance(world.relay.error, ConnectionLost)
    assert world.relay.closed_clients() == {1}
    world.pump_client(1)
    assert world.events[1][-2:] == [DataReceived(stream, STDOUT, b"last words"), Ended(stream, {"code": 0})]


# -------------------------------------------------------------------------------------------- permissions


@pytest.mark.parametrize("method", ["exec", "files"])
def test_nothing_is_run_before_the_owner_is_done(method: str) -> None:
    world = World()
    world.relay.configured = False
    world.connect(1)
    world.take(1)
    stream = world.clients[1].open(method, {})
    given_up = world.clients[1].open(method, {})
    world.clients[1].message(stream, "signal", {"signal": 2})
    world.clients[1].cancel(given_up)
    world.connect(2)
    world.clients[2].open(method, {})
    world.pump()
    world.gone(2)
    assert world.take_guest() == []
    world.relay.configured = True
    came = world.take_guest()
    first, second = [event for event in came if isinstance(event, OpenReceived)]
    assert [event for event in came if event not in (first, second)] == [
        MessageReceived(first.stream, "signal", {"signal": 2}),
        CancelReceived(second.stream),
    ]
    world.guest.end(first.stream, {"code": 0})
    assert world.take(1) == [Ended(stream, {"code": 0})]


def test_who_asks_for_too_much_too_early_is_closed() -> None:
    world = World()
    world.relay.configured = False
    world.connect(1)
    stream = world.clients[1].open("exec", {})
    for _ in range(EARLY_LIMIT):
        world.clients[1].message(stream, "signal", {"signal": 2})
    world.pump()
    assert world.relay.closed_clients() == {1}
    world.relay.configured = True
    assert world.take_guest() == []


@pytest.mark.parametrize("method", ["configure", "hold", "network", "shutdown"])
def test_what_belongs_to_the_supervisor_is_refused_to_clients(method: str) -> None:
    world = World()
    world.connect(1)
    world.connect(2, privileged=True)
    world.take(1)
    world.clients[1].open(method, {"grace_ms": 0})
    assert world.take_guest() == []
    (end,) = world.take(1)
    assert isinstance(end, Ended)
    error = end.body["error"]
    assert isinstance(error, dict)
    assert error["kind"] == "not_permitted"
    world.clients[2].open(method, {"grace_ms": 0})
    assert world.take_guest() == [OpenReceived(1, method, {"grace_ms": 0})]


def test_the_supervisor_itself_uses_the_guest_through_the_relay() -> None:
    world = World()
    world.connect(1)
    heard: list[Event] = []
    stream = world.relay.open("exec", {"argv": [b"x"]}, heard.append)
    (opened,) = world.take_guest()
    world.guest.opened(stream, {"pid": 9})
    for _ in range(3):
        assert world.guest.send_data(stream, STDOUT, bytes(WINDOW_TO_HOST)) == WINDOW_TO_HOST
        world.pump()
    world.relay.message(stream, "signal", {"signal": 1})
    world.relay.cancel(stream)
    world.take_guest()
    world.guest.end(stream, {"signal": 9})
    world.pump()
    assert heard[0] == Opened(stream, {"pid": 9})
    assert len(data_of(heard)) == 3 * WINDOW_TO_HOST
    assert heard.pop() == Ended(stream, {"signal": 9})
    assert opened == OpenReceived(stream, "exec", {"argv": [b"x"]})
    _, at_guest = world.running(1)
    with pytest.raises(StreamClosed):
        world.relay.message(at_guest, "signal", {"signal": 9})
    world.relay.open("ping", None, heard.append)
    world.relay.guest_eof()
    assert isinstance(heard[-1], Failed)
    with pytest.raises(StreamClosed):
        world.relay.open("ping", None, heard.append)


# ------------------------------------------------------------------------------------------ hostile clients

CLIENT_CRIMES = {
    "an unknown kind": (b"\0\0\0\1\0\0\0\1\xee\0\0\0", "frame"),
    "a length that is none": (b"\xff\xff\xff\xff" + b"\0\0\0\1\x10\0\0\0", "frame"),
    "a duplicate id": (encode_frame(1, Kind.OPEN, {"m": "ping"}), "stream"),
    "the guest's id of another client's stream": (encode_frame(2, Kind.CANCEL, {}), "stream"),
    "a second hello": (encode_frame(0, Kind.HELLO, {"protocol": [1, 1], "name": "x"}), "sequence"),
    "a frame of the guest": (encode_frame(1, Kind.END, {}), "frame"),
    "stdout": (encode_data(1, STDOUT, b"x") + b"x", "frame"),
    "data after eof": (encode_eof(1, STDIN) + encode_eof(1, STDIN), "sequence"),
    "credit above 2^30": (encode_credit(1, STDOUT, 2**30), "credit"),
    "more data than credit": ((encode_data(1, 0, bytes(MAX_DATA)) + bytes(MAX_DATA)) * 3, "credit"),
    "no MessagePack": (b"\0\0\0\2\0\0\0\1\x06\0\0\0\xc1\xc1", "payload"),
}


@pytest.mark.parametrize("crime", CLIENT_CRIMES, ids=str)
def test_a01_a_hostile_client_ends_itself_only(crime: str) -> None:
    data, code = CLIENT_CRIMES[crime]
    world = World()
    world.connect(1)
    world.connect(2)
    stream, at_guest = world.running(2)
    _, mine = world.running(1)
    world.take_guest()
    world.relay.client_received(1, data)
    assert world.relay.closed_clients() == {1}
    assert not world.relay.wants_read(1)
    world.pump_client(1)
    failed = world.events[1][-1]
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, PeerError)
    assert failed.error.code == code
    world.gone(1)
    assert CancelReceived(mine) in world.take_guest()
    assert world.guest.error is None
    world.guest.send_data(at_guest, STDOUT, b"unaffected")
    assert world.take(2)[-1] == DataReceived(stream, STDOUT, b"unaffected")


@pytest.mark.parametrize("method", ["shutdown", "exec", "unheard of"])
def test_a01_what_comes_in_one_piece_with_a_crime_is_harmless(method: str) -> None:
    hello = encode_frame(0, Kind.HELLO, {"protocol": [1, 1], "name": "x"})
    world = World()
    for client, good in ((1, hello), (2, hello)):
        world.relay.client_connected(client)
        if client == 2:
            world.relay.client_received(client, hello)
            good = encode_frame(1, Kind.OPEN, {"m": method})
        world.relay.client_received(client, good + b"\xff" * 12)
        assert client in world.relay.closed_clients()
    assert world.take_guest() == []
    assert world.relay.error is None


def test_a02_a_hello_in_one_piece_with_a_crime_makes_nobody_ready() -> None:
    ready: list[HelloReceived] = []
    relay = Relay(on_ready=ready.append)
    hello = encode_frame(
        0, Kind.HELLO, {"protocol": 1, "name": "x", "agent_version": "1", "configured": True}
    )
    relay.guest_received(hello + b"\xff" * 12)
    assert isinstance(relay.error, ProtocolError)
    assert ready == []


@given(st.binary(max_size=200), st.integers(0, 30))
def test_a01_noise_from_a_client_never_reaches_the_guest(noise: bytes, skip: int) -> None:
    world = World()
    world.connect(1)
    world.connect(2)
    _, at_guest = world.running(2)
    good = encode_frame(1, Kind.OPEN, {"m": "exec", "argv": [b"x"]})
    world.relay.client_received(1, good[:skip] + noise)
    world.pump_guest()
    assert world.relay.error is None
    assert world.guest.error is None
    assert at_guest in world.guest.streams


def test_a01_one_client_cannot_use_up_all_streams_unnoticed() -> None:
    world = World()
    world.connect(1)
    world.connect(2)
    for _ in range(MAX_STREAMS):
        world.clients[1].open("ping")
    world.take(1)
    world.take(2)
    world.clients[2].open("ping")
    (end,) = world.take(2)
    assert isinstance(end, Ended)
    error = end.body["error"]
    assert isinstance(error, dict)
    assert error["kind"] == "too_many_streams"
    assert world.relay.error is None


def test_a_client_that_does_not_take_its_replies_is_not_read() -> None:
    world = World()
    world.connect(1)
    world.connect(2)
    stream = 0
    while world.relay.wants_read(1):
        stream += 1
        world.relay.client_received(1, encode_frame(stream, Kind.OPEN, {"m": "shutdown"}))
    assert stream <= CLIENT_HIGH_WATER // 256
    assert world.relay.wants_read(2)
    world.pump_client(1)
    assert world.relay.wants_read(1)


def test_no_client_is_read_while_the_guest_takes_nothing() -> None:
    world = World()
    world.connect(1)
    world.connect(2)
    sent = 0
    while world.relay.wants_read(1):
        sent += 1
        world.relay.client_received(1, encode_frame(sent, Kind.OPEN, {"m": "exec", "argv": [bytes(100_000)]}))
    assert sent <= GUEST_HIGH_WATER // 100_000 + 1
    assert not world.relay.wants_read(2)
    world.pump_guest()
    assert world.relay.wants_read(2)


# -------------------------------------------------------------------------------------------- hostile guests

GUEST_CRIMES = {
    "an unknown kind": (b"\0\0\0\1\0\0\0\1\xee\0\0\0", "frame"),
    "a frame of the host": (encode_frame(1, Kind.CANCEL, {}), "frame"),
    "a stream never opened": (encode_frame(99, Kind.END, {}), "stream"),
    "a second hello": (
        encode_frame(0, Kind.HELLO, {"protocol": 1, "name": "x", "agent_version": "1", "configured": True}),
        "sequence",
    ),
    "more data than credit": ((encode_data(1, 1, bytes(MAX_DATA)) + bytes(MAX_DATA)) * 5, "credit"),
    "stdin": (encode_data(1, STDIN, b"x") + b"x", "frame"),
    "credit above 2^30": (encode_credit(1, STDIN, 2**30), "credit"),
    "no MessagePack": (b"\0\0\0\2\0\0\0\1\x04\0\0\0\xc1\xc1", "payload"),
    "end twice": (encode_frame(1, Kind.END, {}) * 2, "sequence"),
}


@pytest.mark.parametrize("crime", GUEST_CRIMES, ids=str)
def test_a02_a_hostile_guest_ends_everything_with_a_typed_error(crime: str) -> None:
    data, code = GUEST_CRIMES[crime]
    world = World()
    world.connect(1)
    world.connect(2)
    world.running(1)
    heard: list[Event] = []
    world.relay.open("ping", None, heard.append)
    world.relay.guest_received(data)
    assert isinstance(world.relay.error, ProtocolError)
    assert world.relay.error.code == code
    assert world.relay.closed_clients() == {1, 2}
    assert isinstance(heard[-1], Failed)
    world.pump_guest()
    assert isinstance(world.guest.error, PeerError)
    assert world.guest.error.code == code


@given(st.binary(max_size=300), st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=6))
def test_a02_noise_from_the_guest_is_survived(noise: bytes, flips: list[tuple[int, int]]) -> None:
    world = World()
    world.connect(1)
    _, at_guest = world.running(1)
    speech = bytearray(
        encode_frame(at_guest, Kind.EVENT, {"e": "exited", "code": 0})
        + encode_data(at_guest, 1, b"output")
        + b"output"
        + encode_eof(at_guest, 1)
        + encode_credit(at_guest, 0, 77)
        + encode_frame(at_guest, Kind.END, {"code": 0, "more": [1, {"a": b"b"}]})
    )
    for position, value in flips:
        speech[position % len(speech)] = value
    world.relay.guest_received(bytes(speech) + noise)
    world.pump_client(1)
    # Whatever the guest said, what a client hears is well-formed.
    failures = [event for event in world.events[1] if isinstance(event, Failed)]
    assert failures == []


def test_a02_a_guest_that_floods_a_slow_client_costs_bounded_memory() -> None:
    world = World(Relay(client_queue_limit=ALLOWANCE))
    world.connect(1)
    world.connect(2)
    _, at_guest = world.running(1)
    stream, other = world.running(2)
    event = encode_frame(at_guest, Kind.EVENT, {"e": "noise", "x": bytes(1000)}) * 100
    tracemalloc.start()
    try:
        for _ in range(400):
            world.relay.guest_received(event)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * ALLOWANCE
    assert world.relay.closed_clients() == {1}
    assert world.relay.error is None
    world.gone(1)
    world.guest.send_data(other, STDOUT, b"fine")
    assert world.take(2)[-1] == DataReceived(stream, STDOUT, b"fine")


def test_a02_a_guest_that_writes_and_never_reads_is_given_up() -> None:
    world = World()
    world.connect(1)
    _, at_guest = world.running(1)
    world.gone(1)
    chunk = (encode_data(at_guest, STDOUT, b"x") + b"x") * 20_000
    for _ in range(1000):
        world.relay.guest_received(chunk)
        if world.relay.error is not None:
            break
    assert isinstance(world.relay.error, ConnectionLost)
    assert GUEST_QUEUE_LIMIT <= 64 << 20


def test_a11_one_byte_frames_for_a_slow_client_cost_little_more_than_their_bytes() -> None:
    world = World()
    world.connect(1)
    _, at_guest = world.running(1)
    count = WINDOW_TO_HOST // 8
    pair = b"".join(encode_data(at_guest, channel, b"x") + b"x" for channel in (STDOUT, STDERR))
    tracemalloc.start()
    try:
        for _ in range(count // 1024):
            world.relay.guest_received(pair * 1024)
        current, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert world.relay.error is None
    assert current < 16 * count
    assert len(data_of(world.take(1))) == 2 * count


# ------------------------------------------------------------------------------ everything at once, at random

picks = st.integers(0, 50)
sizes = st.integers(1, 2000) | st.integers(1, 200_000)
PATTERN = bytes(n % 251 for n in range(251 * 1300))


class Crowd(RuleBasedStateMachine):
    """Clients that come, work, misbehave and go; the guest answers. Bytes tell where they belong."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.next_client = 1
        # Streams by the tag in their argv, which both ends know.
        self.next_tag = 1
        self.at_client: dict[tuple[int, int], int] = {}
        self.at_guest: dict[int, int] = {}
        self.owner: dict[int, tuple[int, int]] = {}
        self.written: Counter[tuple[int, int]] = Counter()
        self.arrived: Counter[tuple[int, int]] = Counter()
        self.taken: Counter[tuple[int, int]] = Counter()
        self.ended: set[int] = set()

    def client_of(self, pick: int) -> int | None:
        clients = list(self.world.clients)
        return clients[pick % len(clients)] if clients else None

    def tag_of(self, pick: int) -> int | None:
        tags = [t for t, (client, _) in self.owner.items() if client in self.world.clients]
        return tags[pick % len(tags)] if tags else None

    def settle_events(self) -> None:
        for client in self.world.clients:
            events, self.world.events[client] = self.world.events[client], []
            for event in events:
                assert not isinstance(event, Failed), event
                if isinstance(event, DataReceived):
                    self.check(self.at_client[client, event.stream], event)
        events, self.world.guest_events = self.world.guest_events, []
        for event in events:
            assert not isinstance(event, Failed), event
            if isinstance(event, OpenReceived):
                argv = event.params["argv"]
                assert isinstance(argv, list)
                assert type(argv[0]) is bytes
                self.at_guest[int(argv[0])] = event.stream
                self.world.guest.opened(event.stream, {})
            elif isinstance(event, DataReceived):
                tag = next(t for t, s in self.at_guest.items() if s == event.stream)
                self.check(tag, event)

    def check(self, tag: int, event: DataReceived) -> None:
        key = (tag, event.channel)
        assert event.data == numbers(self.arrived[key], len(event.data))
        self.arrived[key] += len(event.data)
        assert self.arrived[key] <= self.written[key]

    @rule()
    def connect(self) -> None:
        if len(self.world.clients) < 4:
            self.world.relay.client_connected(self.next_client)
            self.world.clients[self.next_client] = HostConnection()
            self.world.events[self.next_client] = []
            self.next_client += 1

    @precondition(lambda self: self.world.clients)
    @rule(pick=picks)
    def open(self, pick: int) -> None:
        client = self.client_of(pick)
        if client is not None and self.world.clients[client].ready:
            stream = self.world.clients[client].open("exec", {"argv": [b"%d" % self.next_tag]})
            self.at_client[client, stream] = self.next_tag
            self.owner[self.next_tag] = (client, stream)
            self.next_tag += 1

    @rule(pick=picks, size=sizes)
    def client_writes(self, pick: int, size: int) -> None:
        tag = self.tag_of(pick)
        if tag is not None:
            client, stream = self.owner[tag]
            if stream in self.world.clients[client].streams:
                data = numbers(self.written[tag, STDIN], size)
                self.written[tag, STDIN] += self.world.clients[client].send_data(stream, STDIN, data)

    @rule(pick=picks, size=sizes, channel=st.sampled_from([STDOUT, STDERR]))
    def guest_writes(self, pick: int, size: int, channel: int) -> None:
        running = [tag for tag in self.at_guest if tag not in self.ended]
        if running:
            tag = running[pick % len(running)]
            data = numbers(self.written[tag, channel], size)
            self.written[tag, channel] += self.world.guest.send_data(self.at_guest[tag], channel, data)

    @rule(pick=picks, size=sizes, channel=st.sampled_from([STDIN, STDOUT, STDERR]))
    def somebody_takes(self, pick: int, size: int, channel: int) -> None:
        tag = self.tag_of(pick)
        if tag is not None and tag in self.at_guest:
            key = (tag, channel)
            size = min(size, self.arrived[key] - self.taken[key])
            self.taken[key] += size
            client, stream = self.owner[tag]
            if channel == STDIN:
                self.world.guest.consumed(self.at_guest[tag], channel, size)
            else:
                self.world.clients[client].consumed(stream, channel, size)

    @rule(pick=picks)
    def guest_ends(self, pick: int) -> None:
        running = [tag for tag in self.at_guest if tag not in self.ended]
        if running:
            tag = running[pick % len(running)]
            self.ended.add(tag)
            self.world.guest.end(self.at_guest[tag], {"code": 0})

    @rule(pick=picks)
    def client_leaves(self, pick: int) -> None:
        client = self.client_of(pick)
        if client is not None:
            self.world.gone(client)

    @rule(pick=picks, noise=st.binary(min_size=12, max_size=40))
    def client_raves(self, pick: int, noise: bytes) -> None:
        client = self.client_of(pick)
        if client is not None:
            # What it has said so far may end in the middle of a frame, which the noise would only lengthen.
            self.world.flush(client)
            self.world.relay.client_received(client, b"\xff\xff\xff\xff" + noise)
            assert client in self.world.relay.closed_clients()
            self.world.gone(client)

    @rule(limit=sizes)
    def client_wires_carry(self, limit: int) -> None:
        world = self.world
        for client, connection in world.clients.items():
            data = b"".join(connection.output())[:limit]
            connection.sent(len(data))
            world.relay.client_received(client, data)
            data = b"".join(world.relay.client_output(client))[:limit]
            world.relay.client_sent(client, len(data))
            world.events[client] += connection.receive(data)
        self.settle_events()

    @rule(limit=sizes)
    def guest_wire_carries(self, limit: int) -> None:
        world = self.world
        data = b"".join(world.guest.output())[:limit]
        world.guest.sent(len(data))
        world.relay.guest_received(data)
        data = b"".join(world.relay.guest_output())[:limit]
        world.relay.guest_sent(len(data))
        world.guest_events += world.guest.receive(data)
        self.settle_events()

    @invariant()
    def nobody_is_hurt(self) -> None:
        assert self.world.relay.error is None
        assert self.world.guest.error is None
        assert not self.world.relay.closed_clients()

    def teardown(self) -> None:
        self.world.pump()
        self.settle_events()
        self.world.pump()
        self.settle_events()
        for tag, (client, _) in self.owner.items():
            if client in self.world.clients:
                for channel in (STDOUT, STDERR):
                    assert self.arrived[tag, channel] == self.written[tag, channel]
                if tag not in self.ended:
                    assert self.arrived[tag, STDIN] == self.written[tag, STDIN]


def numbers(start: int, size: int) -> bytes:
    offset = start % 251
    return PATTERN[offset : offset + size]


TestCrowd = Crowd.TestCase
TestCrowd.settings = settings(
    max_examples=50, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@given(cut=st.integers(1, 3000), noise=st.binary(max_size=40))
def test_a_client_that_raves_in_the_middle_of_a_frame_is_closed_alone(cut: int, noise: bytes) -> None:
    world = World()
    world.connect(1)
    world.connect(2)
    stream, _ = world.running(1)
    payload = bytes(3000)
    frame = encode_data(stream, STDIN, payload) + payload
    world.relay.client_received(1, frame[:cut])
    # Longer than any frame that the cut and the noise have begun.
    world.relay.client_received(1, noise + b"\xff" * (2 * MAX_DATA))
    assert world.relay.closed_clients() == {1}
    world.gone(1)
    world.running(2)
    assert world.relay.error is None


def test_a_hello_of_the_guest_is_done_once() -> None:
    world = World(greet=False)
    world.pump()
    assert world.take_guest() == [HostHelloReceived(1, "microsandbox")]
    world.guest.hello(agent_version="1", configured=True)
    for client in range(5):
        world.connect(client)
    assert world.take_guest() == []


# ------------------------------------------------------------------------------ the relay's own methods


def _ended(world: World, client: int) -> list[Control]:
    return [event.body for event in world.events[client] if isinstance(event, Ended)]


def test_the_guest_does_not_hear_of_the_relays_own_methods() -> None:
    asked: list[tuple[Control, Answer]] = []
    world = World()
    world.relay.methods["pause"] = lambda params, answer: asked.append((params, answer))
    one, two = world.connect(1), world.connect(2)
    one.open("pause", {"x": 1})
    two.open("pause", {"x": 2})
    world.pump()
    assert [params for params, _ in asked] == [{"x": 1}, {"x": 2}]
    assert _ended(world, 1) == _ended(world, 2) == []
    asked[1][1]({"done": True})
    world.pump()
    assert (_ended(world, 1), _ended(world, 2)) == ([], [{"done": True}])
    assert not [event for event in world.guest_events if isinstance(event, OpenReceived)]


def test_an_answer_to_a_client_that_has_gone_goes_nowhere() -> None:
    asked: list[Answer] = []
    world = World()
    world.relay.methods["pause"] = lambda _, answer: asked.append(answer)
    world.connect(1).open("pause", {})
    world.pump()
    world.relay.client_gone(1)
    del world.clients[1]
    # Another one with its number is another one.
    world.connect(1)
    world.pump()
    asked[0]({})
    world.pump()
    assert _ended(world, 1) == []


def test_the_gate_refuses_with_its_error() -> None:
    error: dict[str, Any] = {"kind": "paused", "message": "it is paused"}
    world = World(Relay(privileged_methods=()))
    world.relay.gate = lambda method: None if method == "shutdown" else error
    client = world.connect(1)
    client.open("ping", {})
    client.open("shutdown", {"grace_ms": 1})
    world.pump()
    assert _ended(world, 1) == [{"error": error}]
    opened = [event.method for event in world.guest_events if isinstance(event, OpenReceived)]
    assert opened == ["shutdown"]
