"""What a relay tells of commands and of activity."""

from __future__ import annotations

import pytest
from microsandbox_core import relay as relay_module
from microsandbox_core.channel import Control, GuestConnection, HostConnection, OpenReceived
from microsandbox_core.relay import Relay


class Notes:
    """An observer that writes everything down."""

    def __init__(self) -> None:
        self.seen: list[tuple[object, ...]] = []

    def exec_opened(self, stream: int, params: Control) -> None:
        self.seen.append(("opened", stream, params["argv"]))

    def exec_started(self, stream: int, body: Control) -> None:
        self.seen.append(("started", stream, body["pid"]))

    def exec_output(self, stream: int, channel: int, data: bytes) -> None:
        self.seen.append(("output", stream, channel, bytes(data)))

    def exec_ended(self, stream: int, body: Control) -> None:
        self.seen.append(("ended", stream, body.get("code")))


class World:
    """A relay with an observer, one client and a clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(relay_module, "monotonic", lambda: self.now)
        self.relay = Relay()
        self.notes = Notes()
        self.relay.observer = self.notes
        self.guest = GuestConnection()
        self.client = HostConnection()
        self.opened: list[int] = []
        self.pump_guest()
        self.guest.hello(agent_version="1", configured=True)
        self.pump_guest()
        self.relay.client_connected(1)
        self.pump()

    def pump_guest(self) -> None:
        while pieces := self.relay.guest_output():
            data = b"".join(pieces)
            self.relay.guest_sent(len(data))
            self.opened += [e.stream for e in self.guest.receive(data) if isinstance(e, OpenReceived)]
        while pieces := self.guest.output():
            data = b"".join(pieces)
            self.guest.sent(len(data))
            self.relay.guest_received(data)

    def pump(self) -> None:
        while pieces := self.client.output():
            data = b"".join(pieces)
            self.client.sent(len(data))
            self.relay.client_received(1, data)
        self.pump_guest()
        while 1 in self.relay.clients and (pieces := self.relay.client_output(1)):
            data = b"".join(pieces)
            self.relay.client_sent(1, len(data))
            self.client.receive(data)


def test_commands_are_told_from_beginning_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.client.open("ping")
    world.client.open("exec", {"argv": [b"echo"]})
    world.pump()
    _, stream = world.opened
    world.guest.opened(stream, {"pid": 5})
    world.guest.forward_data(stream, 1, b"out")
    world.guest.forward_data(stream, 2, b"err")
    world.guest.end(stream, {"code": 0})
    world.pump()
    assert world.notes.seen == [
        ("opened", stream, [b"echo"]),
        ("started", stream, 5),
        ("output", stream, 1, b"out"),
        ("output", stream, 2, b"err"),
        ("ended", stream, 0),
    ]


def test_a_command_whose_client_has_gone_is_told_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.client.open("exec", {"argv": [b"x"]})
    world.pump()
    (stream,) = world.opened
    world.guest.opened(stream, {"pid": 5})
    world.pump()
    world.relay.client_gone(1)
    world.guest.forward_data(stream, 1, b"late")
    world.guest.end(stream, {"signal": 9})
    world.pump_guest()
    assert world.notes.seen[2:] == [("output", stream, 1, b"late"), ("ended", stream, None)]


def test_a_command_that_was_detached_from_is_told_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    theirs = world.client.open("exec", {"argv": [b"x"]})
    world.pump()
    (stream,) = world.opened
    world.guest.opened(stream, {"pid": 5})
    world.pump()
    world.now = 10
    world.client.message(theirs, "detach")
    world.pump()
    assert world.relay.active_at == 10
    world.now = 20
    world.guest.forward_data(stream, 1, b"more")
    world.guest.end(stream, {"code": 0})
    world.pump()
    assert world.notes.seen[2:] == [("output", stream, 1, b"more"), ("ended", stream, 0)]
    # Nobody was sent any of it.
    assert world.relay.active_at == 10


def test_activity_is_what_clients_do_and_not_what_the_supervisor_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    world.now = 10
    world.client.open("exec", {"argv": [b"x"]})
    world.pump()
    (stream,) = world.opened
    assert world.relay.active_at == 10
    world.now = 20
    world.guest.opened(stream, {"pid": 5})
    world.relay.open("ping", {}, lambda event: None)
    world.pump()
    world.guest.end(world.opened[-1], {"uptime_ns": 1})
    world.pump()
    assert world.relay.active_at == 10
    world.now = 30
    world.guest.forward_data(stream, 1, b"out")
    world.pump()
    assert world.relay.active_at == 30
    world.relay.client_gone(1)
    world.now = 40
    world.guest.forward_data(stream, 1, b"to nobody")
    world.guest.end(stream, {"signal": 9})
    world.pump_guest()
    assert world.relay.active_at == 30


def test_who_only_watches_does_not_keep_a_sandbox_from_being_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.relay.active_at = 0
    world.now = 10
    world.client.open("metrics", {})
    world.pump()
    world.guest.end(world.opened[-1], {"execs": 0})
    world.pump()
    world.relay.methods["network.metrics"] = lambda _, answer: answer({})
    world.client.open("network.metrics", {})
    theirs = world.client.open("metrics", {})
    world.pump()
    world.client.cancel(theirs)
    world.pump()
    assert world.relay.active_at == 0
    # With anything else it is activity.
    world.client.open("metrics", {})
    world.client.open("ping", {})
    world.pump()
    assert world.relay.active_at == 10
