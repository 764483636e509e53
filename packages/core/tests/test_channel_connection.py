"""One connection: order on the wire, credit, queues and what they cost."""

from __future__ import annotations

import sys
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from microsandbox_core.channel import (
    MAX_DATA,
    MAX_STREAMS,
    STDERR,
    STDIN,
    STDOUT,
    WINDOW_TO_GUEST,
    WINDOW_TO_HOST,
    Connection,
    ConnectionLost,
    CreditReceived,
    DataReceived,
    Ended,
    EofReceived,
    Event,
    EventReceived,
    Failed,
    Frame,
    FrameDecoder,
    GuestConnection,
    HelloReceived,
    HostConnection,
    HostHelloReceived,
    Kind,
    MessageReceived,
    Opened,
    OpenReceived,
    PeerError,
    ProtocolError,
    Side,
    StreamClosed,
    TooManyStreams,
    encode_data,
    encode_frame,
)
from microsandbox_core.channel._chunks import ORDERED_CHUNKS, Chunk, ChunkQueue


def wire(connection: Connection, limit: int = 1 << 18) -> bytes:
    parts = []
    while pieces := connection.output(limit):
        data = b"".join(pieces)
        parts.append(data)
        connection.sent(len(data))
    return b"".join(parts)


def joined() -> tuple[HostConnection, GuestConnection]:
    host, guest = HostConnection(), GuestConnection()
    assert guest.receive(wire(host)) == [HostHelloReceived(1, "microsandbox")]
    guest.hello(agent_version="1", configured=True)
    assert host.receive(wire(guest)) == [HelloReceived(1, "agentd", "1", True)]
    return host, guest


def running(host: HostConnection, guest: GuestConnection) -> int:
    stream = host.open("exec", {"argv": [b"cat"]})
    assert guest.receive(wire(host)) == [OpenReceived(stream, "exec", {"argv": [b"cat"]})]
    guest.opened(stream, {"pid": 1})
    assert host.receive(wire(guest)) == [Opened(stream, {"pid": 1})]
    return stream


def frames(side: Side, data: bytes) -> list[Frame]:
    decoder = FrameDecoder(side)
    result = decoder.feed(data)
    assert decoder.error is None
    return result


# --------------------------------------------------------------------------------------- order on the wire


def test_control_overtakes_queued_data() -> None:
    host, guest = joined()
    stream = running(host, guest)
    assert host.send_data(stream, STDIN, bytes(100_000)) == 100_000
    host.message(stream, "signal", {"signal": 2})
    kinds = [frame.kind for frame in frames(Side.GUEST, wire(host))]
    assert kinds == [Kind.MESSAGE, Kind.DATA, Kind.DATA]


@given(st.integers(1, 70_000))
def test_control_overtakes_at_a_frame_boundary_only(already: int) -> None:
    host, guest = joined()
    stream = running(host, guest)
    host.send_data(stream, STDIN, bytes(MAX_DATA) + b"\x01" * 100)
    begun = b"".join(host.output())[:already]
    host.sent(len(begun))
    host.message(stream, "signal", {"signal": 2})
    got = frames(Side.GUEST, begun + wire(host))
    kinds = [frame.kind for frame in got]
    assert sorted(kinds) == sorted([Kind.MESSAGE, Kind.DATA, Kind.DATA])
    # The frame that was begun is finished, the one that was only offered is overtaken.
    boundaries = 1 if already <= MAX_DATA + 12 else 2
    assert kinds.index(Kind.MESSAGE) == boundaries


@given(st.lists(st.integers(1, 5000), max_size=60))
def test_what_a_transport_takes_does_not_change_what_is_sent(steps: list[int]) -> None:
    host, guest = joined()
    streams = [running(host, guest) for _ in range(3)]
    sent = {stream: bytes([stream]) * (7000 * stream) for stream in streams}
    for stream in streams:
        host.send_data(stream, STDIN, sent[stream])
        host.send_eof(stream)
    data = b""
    for number, step in enumerate(steps):
        if number % 7 == 3:
            host.message(streams[0], "resize")
        offered = b"".join(host.output(3000))
        # Offering twice changes nothing.
        assert b"".join(host.output(3000)) == offered
        if number % 5 == 2:
            host.message(streams[1], "later than the offer")
        data += offered[:step]
        host.sent(min(step, len(offered)))
    data += wire(host)
    received = dict.fromkeys(streams, b"")
    for event in guest.receive(data):
        assert not isinstance(event, Failed)
        if isinstance(event, DataReceived):
            received[event.stream] += event.data
    assert received == sent


def test_streams_take_turns_frame_by_frame() -> None:
    host, guest = joined()
    streams = [running(host, guest) for _ in range(3)]
    for stream in streams:
        host.send_data(stream, STDIN, bytes(2 * MAX_DATA))
    order = [frame.stream for frame in frames(Side.GUEST, wire(host))]
    assert order == streams + streams


def test_groups_take_turns_whatever_their_number_of_streams() -> None:
    host, guest = joined()
    many = [host.open("exec", group=1) for _ in range(9)]
    one = host.open("exec", group=2)
    guest.receive(wire(host))
    for stream in [*many, one]:
        host.send_data(stream, STDIN, bytes(2 * MAX_DATA))
    order = [frame.stream for frame in frames(Side.GUEST, wire(host))]
    assert order.index(one) == 1
    assert order[3] == one
    assert len(order) == 20


def test_end_follows_the_data_and_eof_of_its_stream() -> None:
    host, guest = joined()
    stream = running(host, guest)
    guest.send_data(stream, STDOUT, b"out")
    guest.send_eof(stream, STDOUT)
    guest.send_data(stream, STDERR, b"err")
    guest.end(stream, {"code": 0})
    assert host.receive(wire(guest)) == [
        DataReceived(stream, STDOUT, b"out"),
        EofReceived(stream, STDOUT),
        DataReceived(stream, STDERR, b"err"),
        Ended(stream, {"code": 0}),
    ]


def test_an_event_overtakes_data() -> None:
    host, guest = joined()
    stream = running(host, guest)
    guest.send_data(stream, STDOUT, b"out")
    guest.event(stream, "exited", {"code": 0})
    assert host.receive(wire(guest)) == [
        EventReceived(stream, "exited", {"code": 0}),
        DataReceived(stream, STDOUT, b"out"),
    ]


# ------------------------------------------------------------------------------------------------- credit


def test_a_sender_stops_at_its_credit_and_goes_on_when_it_is_returned() -> None:
    host, guest = joined()
    stream = running(host, guest)
    assert host.send_data(stream, STDIN, bytes(WINDOW_TO_GUEST + 1)) == WINDOW_TO_GUEST
    assert host.send_data(stream, STDIN, b"x") == 0
    events = guest.receive(wire(host))
    assert sum(len(e.data) for e in events if isinstance(e, DataReceived)) == WINDOW_TO_GUEST
    guest.consumed(stream, STDIN, WINDOW_TO_GUEST // 2 - 1)
    assert wire(guest) == b""
    guest.consumed(stream, STDIN, 1)
    assert host.receive(wire(guest)) == [CreditReceived(stream, STDIN, WINDOW_TO_GUEST // 2)]
    assert host.writable(stream) == WINDOW_TO_GUEST // 2


def test_more_cannot_be_returned_than_came() -> None:
    host, guest = joined()
    stream = running(host, guest)
    guest.send_data(stream, STDOUT, b"123")
    host.receive(wire(guest))
    with pytest.raises(ValueError, match="more than came"):
        host.consumed(stream, STDOUT, 4)
    host.consumed(stream, STDOUT, 3)


def test_no_credit_is_returned_for_a_channel_that_has_ended() -> None:
    host, guest = joined()
    stream = running(host, guest)
    guest.send_data(stream, STDOUT, bytes(WINDOW_TO_HOST))
    guest.send_eof(stream, STDOUT)
    host.receive(wire(guest))
    host.consumed(stream, STDOUT, WINDOW_TO_HOST)
    assert wire(host) == b""


def test_a11_a_queue_is_bounded_whatever_credit_a_guest_gives() -> None:
    host, guest = joined()
    stream = running(host, guest)
    guest.grant(stream, STDIN, 2**30 - WINDOW_TO_GUEST)
    host.receive(wire(guest))
    assert host.send_data(stream, STDIN, bytes(1 << 20)) == WINDOW_TO_GUEST
    wire(host)
    assert host.send_data(stream, STDIN, bytes(1 << 20)) == WINDOW_TO_GUEST


def test_a_stream_without_channels_takes_no_data() -> None:
    host, guest = joined()
    stream = host.open("ping")
    with pytest.raises(StreamClosed):
        host.send_data(stream, STDIN, b"x")
    guest.receive(wire(host) + encode_data(stream, STDIN, b"x") + b"x")
    assert isinstance(guest.error, ProtocolError)
    assert guest.error.code == "frame"


# ------------------------------------------------------------------------------------- bounds of a queue


def test_a11_one_byte_frames_on_alternating_channels_cost_little_memory() -> None:
    tracemalloc.start()
    try:
        queue: ChunkQueue[bytes] = ChunkQueue()
        for number in range(WINDOW_TO_HOST):
            queue.push(1 + number % 2, b"%c" % (number % 251))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * WINDOW_TO_HOST
    received: dict[int, bytes] = {1: b"", 2: b""}
    while len(queue):
        entry = queue.pop()
        assert isinstance(entry, Chunk)
        assert 1 <= len(entry.data) <= MAX_DATA
        received[entry.channel] += entry.data
    for channel in (1, 2):
        assert received[channel] == bytes(n % 251 for n in range(WINDOW_TO_HOST) if 1 + n % 2 == channel)
    assert queue.size == 0


@given(
    st.lists(
        st.tuples(st.integers(1, 2), st.binary(min_size=1, max_size=9)) | st.just(b"mark"), max_size=300
    ),
    st.booleans(),
)
def test_a_chunk_queue_keeps_bytes_and_the_place_of_marks(
    pushes: list[tuple[int, bytes] | bytes], crowded: bool
) -> None:
    queue: ChunkQueue[bytes] = ChunkQueue()
    expected: list[dict[int, bytes]] = [{1: b"", 2: b""}]
    for number in range(ORDERED_CHUNKS if crowded else 0):
        queue.push(1 + number % 2, b".")
        expected[-1][1 + number % 2] += b"."
    for push in pushes:
        if isinstance(push, bytes):
            queue.push_mark(push)
            expected.append({1: b"", 2: b""})
        else:
            queue.push(*push)
            expected[-1][push[0]] += push[1]
    assert queue.size == sum(len(part) for parts in expected for part in parts.values())
    got: list[dict[int, bytes]] = [{1: b"", 2: b""}]
    while len(queue):
        entry = queue.pop()
        if isinstance(entry, Chunk):
            got[-1][entry.channel] += entry.data
        else:
            got.append({1: b"", 2: b""})
    assert got == expected


def test_order_between_channels_is_kept_while_few_chunks_wait() -> None:
    queue: ChunkQueue[bytes] = ChunkQueue()
    for number in range(ORDERED_CHUNKS):
        queue.push(1 + number % 2, b"x")
    channels = []
    while len(queue):
        entry = queue.pop()
        assert isinstance(entry, Chunk)
        channels.append(entry.channel)
    assert all(a != b for a, b in pairwise(channels))
    assert len(channels) == ORDERED_CHUNKS


def test_the_memory_that_waits_is_counted_exactly_down_to_nothing() -> None:
    host, guest = joined()
    streams = [running(host, guest) for _ in range(2)]
    assert host.queued == 0
    for stream in streams:
        host.send_data(stream, STDIN, bytes(100_000))
        host.send_eof(stream)
    host.message(streams[0], "resize")
    assert host.queued >= 200_000
    host.output(70_000)
    host.sent(40_000)
    assert host.queued >= 160_000
    host.cancel(streams[1])
    wire(host)
    assert host.queued == 0
    assert not host.pending


# ----------------------------------------------------------------------------------------------- streams


def test_what_a_host_sends_to_an_ended_stream_is_dropped() -> None:
    host, guest = joined()
    stream = running(host, guest)
    guest.end(stream, {"code": 0})
    late = wire(guest)
    host.send_data(stream, STDIN, bytes(WINDOW_TO_GUEST))
    host.send_eof(stream)
    host.message(stream, "signal", {"signal": 1})
    host.cancel(stream)
    assert guest.receive(wire(host)) == []
    assert guest.error is None
    assert host.receive(late) == [Ended(stream, {"code": 0})]
    with pytest.raises(StreamClosed):
        host.send_data(stream, STDIN, b"x")


def test_cancel_forgets_queued_data_and_is_said_once() -> None:
    host, guest = joined()
    stream = running(host, guest)
    host.send_data(stream, STDIN, bytes(100_000))
    host.cancel(stream)
    host.cancel(stream)
    assert [frame.kind for frame in frames(Side.GUEST, wire(host))] == [Kind.CANCEL]
    with pytest.raises(StreamClosed):
        host.send_data(stream, STDIN, b"x")


def test_only_so_many_streams_are_opened() -> None:
    host, guest = joined()
    for _ in range(MAX_STREAMS):
        host.open("ping")
    with pytest.raises(TooManyStreams):
        host.open("ping")
    guest.receive(wire(host))
    extra = guest.receive(encode_frame(5000, Kind.OPEN, {"m": "ping"}))
    assert extra == []
    (end,) = frames(Side.HOST, wire(guest))
    assert end.payload == {
        "error": {"kind": "too_many_streams", "message": f"{MAX_STREAMS} streams are open"}
    }
    guest.end(1, {})
    assert host.receive(wire(guest)) == [Ended(1, {})]
    host.open("ping")


def test_a_request_without_a_method_is_an_error_of_the_stream() -> None:
    _, guest = joined()
    assert guest.receive(encode_frame(1, Kind.OPEN, {"m": 5})) == []
    assert guest.error is None
    (end,) = frames(Side.HOST, wire(guest))
    assert isinstance(end.payload, dict)
    error = end.payload["error"]
    assert isinstance(error, dict)
    assert error["kind"] == "invalid_request"


def test_misuse_of_a_connection_is_an_error_at_once() -> None:
    host, guest = HostConnection(), GuestConnection()
    with pytest.raises(StreamClosed):
        host.open("ping")
    with pytest.raises(StreamClosed):
        guest.hello(agent_version="1", configured=False)
    host, guest = joined()
    stream = host.open("exec", {"argv": [b"cat"]})
    guest.receive(wire(host))
    with pytest.raises(StreamClosed):
        guest.event(stream, "exited")
    with pytest.raises(StreamClosed):
        guest.send_data(stream, STDOUT, b"x")
    guest.opened(stream, {})
    with pytest.raises(StreamClosed):
        guest.opened(stream, {})
    with pytest.raises(ValueError, match="credit"):
        guest.forward_data(stream, STDOUT, bytes(MAX_DATA + 1))
    guest.send_eof(stream, STDOUT)
    with pytest.raises(StreamClosed):
        guest.send_data(stream, STDOUT, b"x")
    with pytest.raises(ValueError, match="float"):
        host.message(stream, "signal", {"signal": 1.5})  # type: ignore[dict-item]
    assert host.error is None
    assert guest.error is None


def test_an_error_from_the_peer_ends_the_connection() -> None:
    host, _ = joined()
    (failed,) = host.receive(encode_frame(0, Kind.ERROR, {"code": "credit", "message": "too much"}))
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, PeerError)
    assert failed.error.code == "credit"
    assert not host.pending


def test_the_end_of_the_bytes_ends_the_connection_once() -> None:
    host, _ = joined()
    (failed,) = host.eof_received()
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, ConnectionLost)
    assert host.eof_received() == []


def test_after_a_protocol_error_only_error_follows_the_frame_half_sent() -> None:
    host, guest = joined()
    stream = running(host, guest)
    host.send_data(stream, STDIN, bytes(100_000))
    begun = b"".join(host.output())[:1000]
    host.sent(1000)
    host.receive(b"\xff" * 12)
    rest = wire(host)
    assert [frame.kind for frame in frames(Side.GUEST, begun + rest)] == [Kind.DATA, Kind.ERROR]


def test_a02_events_beyond_number_do_not_stay_in_the_connection() -> None:
    host, guest = joined()
    stream = running(host, guest)
    event = encode_frame(stream, Kind.EVENT, {"e": "noise"})
    for _ in range(200):
        events: list[Event] = host.receive(event * 100)
        assert len(events) == 100
    assert host.queued == 0


def test_events_and_messages_without_a_name_are_ignored() -> None:
    host, guest = joined()
    stream = running(host, guest)
    assert host.receive(encode_frame(stream, Kind.EVENT, {"x": 1})) == []
    assert guest.receive(encode_frame(stream, Kind.MESSAGE, {"x": 1})) == []
    assert guest.receive(encode_frame(stream, Kind.MESSAGE, {"m": "x"})) == [MessageReceived(stream, "x", {})]


def test_the_state_machine_imports_nothing_heavy() -> None:
    import subprocess

    code = (
        "import sys; before = set(sys.modules);"
        "import microsandbox_core.channel, microsandbox_core.relay, microsandbox_core.requests;"
        "print(*sorted(set(sys.modules) - before))"
    )
    out = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    heavy = {"asyncio", "dataclasses", "inspect", "logging", "json", "cffi", "subprocess", "socket"}
    assert not heavy & set(out.stdout.split())
