"""Commands that their clients have left, and clients that join them."""

from __future__ import annotations

from typing import Any

import pytest
from microsandbox_core.channel import (
    STDERR,
    STDIN,
    STDOUT,
    WINDOW_TO_GUEST,
    WINDOW_TO_HOST,
    Control,
    CreditReceived,
    DataReceived,
    Ended,
    EofReceived,
    Event,
    EventReceived,
    Failed,
    HostConnection,
    MessageReceived,
    Opened,
    OpenReceived,
)
from microsandbox_core.relay import SESSIONS_AT_ONCE
from microsandbox_core.relay_left import ENDED_KEPT, SCROLL

from tests.support.relay_world import World as Relayed


class World(Relayed):
    """With commands of terminals, which are left and joined."""

    def connect(self, client: int, *, privileged: bool = False) -> HostConnection:
        connection = super().connect(client, privileged=privileged)
        self.take(client)  # its greeting
        return connection

    def take(self, client: int) -> list[Event]:
        events = super().take(client)
        assert not any(isinstance(event, Failed) for event in events)
        return events

    def gone(self, client: int) -> None:
        self.pump()
        super().gone(client)

    def typed(self, client: int, **params: Any) -> tuple[int, int]:
        """A command that the guest has started: its stream at the client and at the guest."""
        asked: Control = {"argv": [b"sh"], "stdin": "pipe", "tty": {"rows": 24, "cols": 80}, **params}
        stream = self.clients[client].open("exec", asked)
        (opened,) = self.take_guest()
        assert isinstance(opened, OpenReceived)
        self.guest.opened(opened.stream, {"pid": 7})
        self.take(client)
        return stream, opened.stream

    def left(self, client: int, **params: Any) -> int:
        """A command that was started and left by a client: its number."""
        stream, session = self.typed(client, **params)
        self.clients[client].message(stream, "detach")
        assert self.take(client) == [Ended(stream, {"detached": True})]
        self.take_guest()
        return session

    def join(self, client: int, session: object) -> tuple[int, list[Event]]:
        stream = self.clients[client].open("attach", {"session": session})  # type: ignore[dict-item]
        return stream, self.take(client)

    def sessions(self, client: int, **params: Any) -> list[Any]:
        self.clients[client].open("sessions", params)
        (ended,) = self.take(client)
        assert isinstance(ended, Ended)
        found = ended.body["sessions"]
        assert isinstance(found, list)
        return found

    def outcome(self, client: int, **params: Any) -> tuple[int, list[Event]]:
        """How a command has ended, or nothing yet."""
        stream = self.clients[client].open("outcome", params)
        return stream, self.take(client)


def _kind(ended: Ended) -> object:
    error = ended.body["error"]
    assert isinstance(error, dict)
    return error["kind"]


@pytest.fixture
def world() -> World:
    world = World()
    world.connect(1)
    world.connect(2)
    return world


def test_what_was_left_is_listed_and_joined(world: World) -> None:
    session = world.left(1)
    (shown,) = world.sessions(2)
    assert shown.pop("since_ns") > 0
    assert shown == {
        "session": session, "argv": [b"sh"], "tty": True, "stdin": True, "pid": 7, "joined": False,
    }  # fmt: skip
    stream, events = world.join(2, session)
    assert events == [Opened(stream, {"pid": 7, "printed": []})]
    assert world.sessions(1)[0]["joined"]
    client = world.clients[2]
    client.send_data(stream, STDIN, b"ls\n")
    client.message(stream, "resize", {"rows": 5, "cols": 6})
    assert world.take_guest() == [
        MessageReceived(session, "resize", {"rows": 5, "cols": 6}), DataReceived(session, STDIN, b"ls\n"),
    ]  # fmt: skip
    world.guest.send_data(session, STDOUT, b"file\n")
    world.guest.event(session, "exited", {"code": 3})
    world.guest.end(session, {"code": 3})
    assert world.take(2) == [
        EventReceived(stream, "exited", {"code": 3}), DataReceived(stream, STDOUT, b"file\n"),
        Ended(stream, {"code": 3}),
    ]  # fmt: skip
    assert world.sessions(2) == []


def test_a_command_that_was_not_left_is_nobody_elses(world: World) -> None:
    _, at_guest = world.typed(1)
    assert world.sessions(2) == []
    for session in (at_guest, at_guest + 1, 0, -1, None, "1", True, [1]):
        stream, (ended,) = world.join(2, session)
        assert isinstance(ended, Ended)
        assert ended.stream == stream
        assert _kind(ended) == "no_session"
    assert world.take_guest() == []


def test_one_at_a_time(world: World) -> None:
    session = world.left(1)
    first, _ = world.join(1, session)
    _, (refused,) = world.join(2, session)
    assert isinstance(refused, Ended)
    assert refused.body["error"] == {"kind": "joined", "message": "somebody else is joined to it"}
    world.clients[1].message(first, "detach")
    assert world.take(1) == [Ended(first, {"detached": True})]
    stream, events = world.join(2, session)
    assert events == [Opened(stream, {"pid": 7, "printed": []})]


def test_who_joins_does_not_take_the_command_along(world: World) -> None:
    session = world.left(1)
    world.join(2, session)
    world.gone(2)
    assert world.take_guest() == []
    assert [(shown["session"], shown["joined"]) for shown in world.sessions(1)] == [(session, False)]
    # But may end it.
    stream, _ = world.join(1, session)
    world.clients[1].cancel(stream)
    assert len(world.take_guest()) == 1
    assert world.sessions(1) == []
    world.guest.end(session, {"signal": 9})
    assert world.take(1) == [Ended(stream, {"signal": 9})]


def test_the_end_of_what_was_printed_meanwhile_is_kept(world: World) -> None:
    session = world.left(1, tty=None)
    for round in range(20):
        data = bytes([round]) * WINDOW_TO_HOST
        assert world.guest.send_data(session, STDOUT, data) == WINDOW_TO_HOST
        world.pump()
    world.guest.send_data(session, STDERR, b"oh")
    world.guest.send_eof(session, STDERR)
    world.pump()
    stream, events = world.join(2, session)
    kept = bytes([19]) * SCROLL
    assert events == [
        Opened(stream, {"pid": 7, "printed": [[STDOUT, kept], [STDERR, b"oh"]]}),
        EofReceived(stream, STDERR),
    ]
    world.clients[2].message(stream, "detach")
    world.take(2)
    stream, events = world.join(2, session)
    assert events == [Opened(stream, {"pid": 7, "printed": []}), EofReceived(stream, STDERR)]


def test_output_is_credited_from_end_to_end_for_every_client(world: World) -> None:
    session = world.left(1)
    for client in (1, 2, 1):
        stream, _ = world.join(client, session)
        # It takes nothing, and the guest is told so.
        assert world.guest.send_data(session, STDOUT, bytes(2 * WINDOW_TO_HOST)) == WINDOW_TO_HOST
        world.take(client)
        assert world.guest.writable(session, STDOUT) == 0
        world.clients[client].consumed(stream, STDOUT, WINDOW_TO_HOST // 2)
        world.pump()
        assert world.guest.writable(session, STDOUT) == WINDOW_TO_HOST // 2
        world.clients[client].message(stream, "detach")
        world.take(client)
        assert world.guest.writable(session, STDOUT) == WINDOW_TO_HOST


def test_input_that_nobody_reads_is_bounded_whoever_types(world: World) -> None:
    stream, session = world.typed(1)
    assert world.clients[1].send_data(stream, STDIN, b"a" * (2 * WINDOW_TO_GUEST)) == WINDOW_TO_GUEST
    world.pump()
    world.clients[1].message(stream, "detach")
    world.take(1)
    assert sum(len(e.data) for e in world.take_guest() if isinstance(e, DataReceived)) == WINDOW_TO_GUEST
    for client in (1, 2):
        stream, _ = world.join(client, session)
        # A client may always send a window: the guest has not allowed any of it.
        assert world.clients[client].send_data(stream, STDIN, b"b" * WINDOW_TO_GUEST) == WINDOW_TO_GUEST
        assert world.take(client) == []
        assert world.take_guest() == []
        if client == 1:
            world.clients[1].message(stream, "detach")
            world.take(1)
    # What was not read when its client left is gone; of the one that is there all arrives, in order.
    world.clients[2].send_eof(stream)
    world.guest.consumed(session, STDIN, WINDOW_TO_GUEST // 2)
    world.pump()
    world.guest.consumed(session, STDIN, WINDOW_TO_GUEST // 2)
    *typed, end = world.take_guest()
    assert b"".join(e.data for e in typed if isinstance(e, DataReceived)) == b"b" * WINDOW_TO_GUEST
    assert end == EofReceived(session, STDIN)
    assert not any(isinstance(event, CreditReceived) for event in world.take(2))


def test_credit_beyond_the_debt_is_the_clients(world: World) -> None:
    stream, session = world.typed(1)
    world.clients[1].send_data(stream, STDIN, b"a" * 1000)
    world.pump()
    world.clients[1].message(stream, "detach")
    world.take(1)
    stream, _ = world.join(2, session)
    client = world.clients[2]
    assert client.send_data(stream, STDIN, b"b" * WINDOW_TO_GUEST) == WINDOW_TO_GUEST
    world.pump()
    # The guest returns it by halves of a window.
    world.guest.consumed(session, STDIN, WINDOW_TO_GUEST // 2)
    world.pump()
    assert client.writable(stream) == WINDOW_TO_GUEST // 2 - 1000
    world.guest.consumed(session, STDIN, WINDOW_TO_GUEST // 2)
    world.pump()
    assert client.writable(stream) == WINDOW_TO_GUEST - 1000


def test_an_input_that_was_ended_stays_ended(world: World) -> None:
    session = world.left(1)
    stream, _ = world.join(2, session)
    world.clients[2].send_eof(stream)
    assert world.take_guest() == [EofReceived(session, STDIN)]
    world.clients[2].message(stream, "detach")
    world.take(2)
    stream, events = world.join(1, session)
    assert events == [Opened(stream, {"pid": 7, "printed": []}), EventReceived(stream, "stdin_closed", {})]
    world.clients[1].send_data(stream, STDIN, b"x" * 70_000)
    world.clients[1].send_eof(stream)
    assert world.take_guest() == []
    assert world.relay.error is None


def test_a_program_that_has_closed_its_input_is_told_again(world: World) -> None:
    session = world.left(1)
    world.guest.event(session, "stdin_closed")
    stream, events = world.join(2, session)
    assert events[1:] == [EventReceived(stream, "stdin_closed", {})]


def test_who_allowed_more_than_there_is_leaves_nothing_to_join(world: World) -> None:
    stream, session = world.typed(1)
    world.clients[1].grant(stream, STDOUT, 5)
    world.clients[1].message(stream, "detach")
    world.take(1)
    _, (ended,) = world.join(2, session)
    assert isinstance(ended, Ended)
    assert _kind(ended) == "no_session"


def test_nothing_is_joined_before_it_has_started(world: World) -> None:
    stream = world.clients[1].open("exec", {"argv": [b"sh"]})
    world.clients[1].message(stream, "detach")
    world.take(1)
    (opened, _) = (*world.take_guest(), None)
    assert isinstance(opened, OpenReceived)
    assert world.sessions(2) == []
    _, (ended,) = world.join(2, opened.stream)
    assert isinstance(ended, Ended)
    # Whatever the guest says that its process is.
    world.guest.opened(opened.stream, {"pid": {"deep": [b"x" * 1000]}})
    world.pump()
    _, events = world.join(2, opened.stream)
    assert isinstance(events[0], Opened)
    assert events[0].body["pid"] == 0


def test_the_last_one_is_told_to_who_has_joined_it_and_to_the_owner(world: World) -> None:
    heard: list[Event] = []
    world.relay.on_last = heard.append
    stream, session = world.typed(1)
    world.clients[1].message(stream, "detach", {"last": True})
    world.take(1)
    assert world.sessions(1)[0]["last"]
    stream, _ = world.join(2, session)
    world.guest.end(session, {"code": 4})
    assert world.take(2) == [Ended(stream, {"code": 4})]
    assert heard == [Ended(session, {"code": 4})]


def test_a_long_list_comes_in_parts(world: World) -> None:
    made = [world.left(1, argv=[b"x" * 300, b"y" * 300, b"z"]) for _ in range(SESSIONS_AT_ONCE + 3)]
    found: list[int] = []
    more = True
    while more:
        world.clients[2].open("sessions", {"after": found[-1] if found else 0})
        (ended,) = world.take(2)
        assert isinstance(ended, Ended)
        shown = ended.body["sessions"]
        assert isinstance(shown, list)
        for session in shown:
            assert isinstance(session, dict)
            assert session["argv"] == [b"x" * 300, b"y" * 211]
            assert isinstance(session["session"], int)
            found.append(session["session"])
        more = ended.body["more"] is True
    assert found == made


def test_a_list_fits_into_its_answer_whatever_the_words(world: World) -> None:
    for _ in range(SESSIONS_AT_ONCE):
        world.left(1, argv=[b""] * 1000)
    assert len(world.sessions(2)) == SESSIONS_AT_ONCE


def test_to_look_at_them_is_no_activity(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.left(1)
    monkeypatch.setattr("microsandbox_core.relay.monotonic", lambda: -1.0)
    before = world.relay.active_at
    world.sessions(2)
    assert world.relay.active_at == before


# ------------------------------------------------------------------------------------------ how it ended


def test_how_one_ended_that_nobody_had_joined_is_remembered(world: World) -> None:
    session, other = world.left(1), world.left(1)
    assert [shown["session"] for shown in world.sessions(2, ended=True)] == [session, other]
    world.guest.end(session, {"code": 7, "anything": "else"})
    world.take_guest()
    assert [shown["session"] for shown in world.sessions(2)] == [other]
    told, _ = world.sessions(2, ended=True)
    assert told.pop("ended_ns") >= told.pop("since_ns") > 0
    assert told == {
        "session": session, "argv": [b"sh"], "tty": True, "stdin": True, "pid": 7, "joined": False,
        "outcome": {"code": 7},
    }  # fmt: skip
    stream, events = world.outcome(2, session=session)
    assert events == [Ended(stream, {"code": 7})]
    # It cannot be joined any more.
    _, (refused,) = world.join(2, session)
    assert isinstance(refused, Ended)
    assert _kind(refused) == "no_session"


def test_who_waits_is_told_of_the_end(world: World) -> None:
    session = world.left(1)
    joined, _ = world.join(1, session)
    first, events = world.outcome(2, session=session)
    second, none = world.outcome(2, session=session)
    assert events == [Opened(first, {})]
    assert none == [Opened(second, {})]
    world.clients[2].cancel(second)
    (cancelled,) = world.take(2)
    assert isinstance(cancelled, Ended)
    assert (cancelled.stream, _kind(cancelled)) == (second, "cancelled")
    world.connect(3)
    world.outcome(3, session=session)
    world.gone(3)
    world.connect(3)  # of the same number, and it has asked for nothing
    world.guest.end(session, {"signal": 9, "timed_out": True})
    assert world.take(1) == [Ended(joined, {"signal": 9, "timed_out": True})]
    assert world.take(2) == [Ended(first, {"signal": 9, "timed_out": True})]
    assert world.take(3) == []


def test_one_that_ends_before_it_could_be_left_is_remembered_if_that_is_asked_for(world: World) -> None:
    _, fast = world.typed(1, keep=True)
    _, other = world.typed(1)
    waiting, _ = world.outcome(2, session=fast)
    world.guest.end(fast, {"code": 0})
    world.guest.end(other, {"code": 1})
    assert world.take(2) == [Ended(waiting, {"code": 0})]
    assert [shown["session"] for shown in world.sessions(2, ended=True)] == [fast]
    # One that was never started is not there; whoever waits for it hears why.
    world.clients[1].open("exec", {"argv": [b"nothing"], "keep": True})
    (opened,) = world.take_guest()
    assert isinstance(opened, OpenReceived)
    assert "keep" not in opened.params
    world.outcome(2, session=opened.stream)
    world.guest.end_error(opened.stream, "not_found", "nothing")
    (refused,) = world.take(2)
    assert isinstance(refused, Ended)
    assert _kind(refused) == "not_found"
    assert len(world.sessions(2, ended=True)) == 1


def test_the_end_of_the_main_command_is_told_whenever_it_comes(world: World) -> None:
    early, none = world.outcome(2)
    assert none == [Opened(early, {})]
    _, other = world.typed(1)
    world.guest.end(other, {"code": 1})
    assert world.take(2) == []
    _, main = world.typed(1, main=True)
    world.guest.end(main, {"code": 3})
    assert world.take(2) == [Ended(early, {"code": 3})]
    late, events = world.outcome(2)
    assert events == [Ended(late, {"code": 3})]


def test_of_many_the_last_are_remembered_and_told_in_parts(world: World) -> None:
    sessions = [world.left(1) for _ in range(ENDED_KEPT + 2)]
    for session in sessions[:-1]:
        world.guest.end(session, {"code": 0})
        world.take_guest()
    found: list[int] = []
    for _ in range(ENDED_KEPT // SESSIONS_AT_ONCE + 1):
        after = found[-1] if found else 0
        found += [shown["session"] for shown in world.sessions(2, ended=True, after=after)]
    assert found == sessions[1:]


@pytest.mark.parametrize("session", [999, 0, -1, "1", True, [1]])
def test_nobody_waits_for_what_was_not_left(world: World, session: Any) -> None:
    world.typed(1)
    _, (refused,) = world.outcome(2, session=session)
    assert isinstance(refused, Ended)
    assert _kind(refused) == "no_session"


def test_what_the_guest_says_of_an_end_is_passed_on_in_part(world: World) -> None:
    session = world.left(1)
    world.guest.end(session, {"code": "x", "signal": [1], "oom_killed": True, "more": b"y" * 1000})
    world.take_guest()
    (told,) = world.sessions(2, ended=True)
    assert told["outcome"] == {"oom_killed": True}
