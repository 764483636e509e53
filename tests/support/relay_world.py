"""A relay between a guest and clients, without sockets: for tests of what it passes on."""

from __future__ import annotations

from microsandbox_core.channel import (
    Event,
    GuestConnection,
    HostConnection,
    Opened,
    OpenReceived,
)
from microsandbox_core.relay import Relay


class World:
    """A relay, its guest and its clients, with wires that carry when told to."""

    def __init__(self, relay: Relay | None = None, *, greet: bool = True) -> None:
        self.relay = relay or Relay()
        self.guest = GuestConnection()
        self.clients: dict[int, HostConnection] = {}
        self.guest_events: list[Event] = []
        self.events: dict[int, list[Event]] = {}
        if greet:
            self.pump()
            self.guest.hello(agent_version="9", configured=True)
            self.pump()
            self.guest_events.clear()

    def connect(self, client: int, *, privileged: bool = False) -> HostConnection:
        self.relay.client_connected(client, privileged=privileged)
        self.clients[client] = HostConnection(f"client {client}")
        self.events[client] = []
        self.pump()
        return self.clients[client]

    def gone(self, client: int) -> None:
        self.relay.client_gone(client)
        del self.clients[client]

    def pump_guest(self) -> None:
        while pieces := self.relay.guest_output():
            data = b"".join(pieces)
            self.relay.guest_sent(len(data))
            self.guest_events += self.guest.receive(data)

    def pump_client(self, client: int) -> None:
        while pieces := self.relay.client_output(client):
            data = b"".join(pieces)
            self.relay.client_sent(client, len(data))
            self.events[client] += self.clients[client].receive(data)

    def flush(self, client: int) -> bool:
        """Carries all that a client has to say to the relay. True if there was anything."""
        connection = self.clients[client]
        said = False
        while pieces := connection.output():
            said = True
            data = b"".join(pieces)
            connection.sent(len(data))
            self.relay.client_received(client, data)
        return said

    def pump(self) -> None:
        """Carries everything everywhere until nothing moves."""
        moving = True
        while moving:
            moving = False
            for client in self.clients:
                moving |= self.flush(client)
            while pieces := self.guest.output():
                moving = True
                data = b"".join(pieces)
                self.guest.sent(len(data))
                self.relay.guest_received(data)
            self.pump_guest()
            for client in self.clients:
                self.pump_client(client)

    def say(self, client: int, data: bytes) -> None:
        self.relay.client_received(client, data)
        self.pump()

    def take(self, client: int) -> list[Event]:
        self.pump()
        events, self.events[client] = self.events[client], []
        return events

    def take_guest(self) -> list[Event]:
        self.pump()
        events, self.guest_events = self.guest_events, []
        return events

    def running(self, client: int) -> tuple[int, int]:
        """An exec that the guest accepted: its id at the client and at the guest."""
        self.take_guest()
        stream = self.clients[client].open("exec", {"argv": [b"cat"]})
        (opened,) = self.take_guest()
        assert isinstance(opened, OpenReceived)
        self.guest.opened(opened.stream, {"pid": 3})
        assert Opened(stream, {"pid": 3}) in self.take(client)
        return stream, opened.stream
