"""A host and a guest joined by a slow wire: whatever both do in whatever order, the promises hold."""

from __future__ import annotations

from collections import Counter

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from microsandbox_core.channel import (
    STDERR,
    STDIN,
    STDOUT,
    WINDOW_TO_GUEST,
    WINDOW_TO_HOST,
    CancelReceived,
    Connection,
    DataReceived,
    Ended,
    EofReceived,
    Event,
    Failed,
    GuestConnection,
    HostConnection,
    HostHelloReceived,
    Opened,
    OpenReceived,
)

WINDOWS = {STDIN: WINDOW_TO_GUEST, STDOUT: WINDOW_TO_HOST, STDERR: WINDOW_TO_HOST}
sizes = st.integers(1, 3000) | st.integers(1, 300_000)
picks = st.integers(0, 100)


class Pair(RuleBasedStateMachine):
    """What either side accepted for sending is noted as numbers, and arrives as them, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.host, self.guest = HostConnection(), GuestConnection()
        self.to_guest, self.to_host = bytearray(), bytearray()
        self.open: list[int] = []
        self.accepted: list[int] = []
        self.asked: list[int] = []
        self.written: Counter[tuple[int, int]] = Counter()
        self.arrived: Counter[tuple[int, int]] = Counter()
        self.taken: Counter[tuple[int, int]] = Counter()
        self.eof_sent: set[tuple[int, int]] = set()
        self.eof_seen: set[tuple[int, int]] = set()
        self.cancelled: set[int] = set()
        self.ended: set[int] = set()
        self.ends_seen: set[int] = set()

    # ---------------------------------------------------------------------------------------- the wire

    def carry(self, source: Connection, limit: int) -> bytes:
        data = b"".join(source.output(1 << 14))[:limit]
        source.sent(len(data))
        return data

    @rule(limit=sizes)
    def host_sends(self, limit: int) -> None:
        self.see_guest(self.guest.receive(self.carry(self.host, limit)))

    @rule(limit=sizes)
    def guest_sends(self, limit: int) -> None:
        self.see_host(self.host.receive(self.carry(self.guest, limit)))

    def see(self, event: Event, channels: tuple[int, ...]) -> None:
        assert not isinstance(event, Failed), event
        if isinstance(event, DataReceived):
            key = (event.stream, event.channel)
            assert event.channel in channels
            assert key not in self.eof_seen
            start = self.arrived[key]
            self.arrived[key] += len(event.data)
            assert event.data == numbers(start, len(event.data))
            assert self.arrived[key] <= self.written[key]
            assert self.arrived[key] - self.taken[key] <= WINDOWS[event.channel]
        elif isinstance(event, EofReceived):
            key = (event.stream, event.channel)
            assert key in self.eof_sent
            assert self.arrived[key] == self.written[key]
            self.eof_seen.add(key)

    def see_guest(self, events: list[Event]) -> None:
        for event in events:
            self.see(event, (STDIN,))
            if isinstance(event, HostHelloReceived):
                self.guest.hello(agent_version="1", configured=False)
            elif isinstance(event, OpenReceived):
                self.asked.append(event.stream)
            elif isinstance(event, CancelReceived):
                assert event.stream in self.cancelled

    def see_host(self, events: list[Event]) -> None:
        for event in events:
            self.see(event, (STDOUT, STDERR))
            if isinstance(event, Opened):
                assert event.stream in self.accepted
            elif isinstance(event, Ended):
                assert event.stream in self.ended
                for channel in (STDOUT, STDERR):
                    key = (event.stream, channel)
                    assert self.arrived[key] == self.written[key]
                self.ends_seen.add(event.stream)
                self.open.remove(event.stream)

    # ------------------------------------------------------------------------------------------ the host

    @precondition(lambda self: self.host.ready)
    @rule()
    def host_opens(self) -> None:
        self.open.append(self.host.open("exec", {"argv": [b"x"]}))

    def host_stream(self, pick: int) -> int | None:
        usable = [s for s in self.open if s not in self.cancelled and (s, STDIN) not in self.eof_sent]
        return usable[pick % len(usable)] if usable else None

    @rule(pick=picks, size=sizes)
    def host_writes(self, pick: int, size: int) -> None:
        stream = self.host_stream(pick)
        if stream is not None:
            data = numbers(self.written[stream, STDIN], size)
            self.written[stream, STDIN] += self.host.send_data(stream, STDIN, data)

    @rule(pick=picks)
    def host_closes_stdin(self, pick: int) -> None:
        stream = self.host_stream(pick)
        if stream is not None:
            self.host.send_eof(stream)
            self.eof_sent.add((stream, STDIN))

    @rule(pick=picks)
    def host_messages(self, pick: int) -> None:
        if self.open:
            self.host.message(self.open[pick % len(self.open)], "signal", {"signal": 2})

    @rule(pick=picks)
    def host_cancels(self, pick: int) -> None:
        if self.open:
            stream = self.open[pick % len(self.open)]
            self.host.cancel(stream)
            self.cancelled.add(stream)

    @rule(pick=picks, channel=st.sampled_from([STDOUT, STDERR]), size=sizes)
    def host_takes(self, pick: int, channel: int, size: int) -> None:
        if self.open:
            self.take(self.host, self.open[pick % len(self.open)], channel, size)

    def take(self, side: Connection, stream: int, channel: int, size: int) -> None:
        key = (stream, channel)
        size = min(size, self.arrived[key] - self.taken[key])
        self.taken[key] += size
        side.consumed(stream, channel, size)

    # ----------------------------------------------------------------------------------------- the guest

    def guest_stream(self, pick: int) -> int | None:
        usable = [s for s in self.accepted if s not in self.ended]
        return usable[pick % len(usable)] if usable else None

    @rule(refuse=st.booleans())
    def guest_answers(self, refuse: bool) -> None:
        if self.asked:
            stream = self.asked.pop(0)
            if refuse:
                self.ended.add(stream)
                self.guest.end_error(stream, "not_found")
            else:
                self.accepted.append(stream)
                self.guest.opened(stream, {"pid": stream})

    @rule(pick=picks, channel=st.sampled_from([STDOUT, STDERR]), size=sizes)
    def guest_writes(self, pick: int, channel: int, size: int) -> None:
        stream = self.guest_stream(pick)
        if stream is not None and (stream, channel) not in self.eof_sent:
            data = numbers(self.written[stream, channel], size)
            self.written[stream, channel] += self.guest.send_data(stream, channel, data)

    @rule(pick=picks, channel=st.sampled_from([STDOUT, STDERR]))
    def guest_closes(self, pick: int, channel: int) -> None:
        stream = self.guest_stream(pick)
        if stream is not None and (stream, channel) not in self.eof_sent:
            self.guest.send_eof(stream, channel)
            self.eof_sent.add((stream, channel))

    @rule(pick=picks, size=sizes)
    def guest_takes(self, pick: int, size: int) -> None:
        stream = self.guest_stream(pick)
        if stream is not None:
            self.take(self.guest, stream, STDIN, size)

    @rule(pick=picks)
    def guest_reports(self, pick: int) -> None:
        stream = self.guest_stream(pick)
        if stream is not None:
            self.guest.event(stream, "exited", {"code": 0})

    @rule(pick=picks)
    def guest_ends(self, pick: int) -> None:
        stream = self.guest_stream(pick)
        if stream is not None:
            self.guest.end(stream, {"code": 0})
            self.ended.add(stream)

    # ---------------------------------------------------------------------------------------- the promises

    @invariant()
    def nothing_broke(self) -> None:
        assert self.host.error is None
        assert self.guest.error is None

    def settle(self) -> None:
        """Carries everything, with all that comes taken, until nothing moves."""
        while self.host.pending or self.guest.pending:
            self.see_guest(self.guest.receive(self.carry(self.host, 1 << 20)))
            self.see_host(self.host.receive(self.carry(self.guest, 1 << 20)))
            for stream in self.open:
                self.take(self.host, stream, STDOUT, 1 << 30)
                self.take(self.host, stream, STDERR, 1 << 30)
            for stream in self.accepted:
                self.take(self.guest, stream, STDIN, 1 << 30)

    def teardown(self) -> None:
        """With consumers that take what comes nothing is stuck: all arrives, and half a window is free."""
        self.settle()
        while self.asked:
            self.guest_answers(False)
        self.settle()
        assert self.host.queued == 0
        assert self.guest.queued == 0
        assert self.ended == self.ends_seen
        for stream in self.accepted:
            if stream in self.ended:
                continue
            for channel in (STDOUT, STDERR):
                key = (stream, channel)
                assert self.arrived[key] == self.written[key]
                if key in self.eof_sent:
                    assert key in self.eof_seen
                else:
                    assert self.guest.writable(stream, channel) > WINDOW_TO_HOST // 2 - 1
            if stream not in self.cancelled:
                key = (stream, STDIN)
                assert self.arrived[key] == self.written[key]
                if key not in self.eof_sent:
                    assert self.host.writable(stream) > WINDOW_TO_GUEST // 2 - 1


PATTERN = bytes(n % 251 for n in range(251 * 1300))


def numbers(start: int, size: int) -> bytes:
    """Bytes that say where in their channel they belong."""
    offset = start % 251
    return PATTERN[offset : offset + size]


TestPair = Pair.TestCase
TestPair.settings = settings(
    max_examples=60, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
