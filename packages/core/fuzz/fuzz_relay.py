"""Fuzzes the relay: a hostile guest and a hostile client beside an honest one; nothing may make it raise."""

from __future__ import annotations

import sys

import atheris  # type: ignore[import-untyped]  # it has no annotations

with atheris.instrument_imports(include=["microsandbox_core"]):
    from microsandbox_core.channel import Failed, HostConnection, Kind, encode_frame
    from microsandbox_core.relay import Relay

GUEST_HELLO = encode_frame(
    0, Kind.HELLO, {"protocol": 1, "name": "g", "agent_version": "1", "configured": True}
)
HOST_HELLO = encode_frame(0, Kind.HELLO, {"protocol": [1, 1], "name": "h"})
HONEST, HOSTILE = 1, 2


def drain(relay: Relay, honest: HostConnection) -> None:
    while pieces := relay.guest_output():
        relay.guest_sent(sum(map(len, pieces)))
    while pieces := relay.client_output(HONEST):
        data = b"".join(pieces)
        relay.client_sent(HONEST, len(data))
        # Whatever the guest said, an honest client hears nothing malformed.
        assert not any(isinstance(event, Failed) for event in honest.receive(data))
    for client in relay.closed_clients() & {HOSTILE}:
        relay.client_gone(client)


def one_input(data: bytes) -> None:
    relay = Relay(client_queue_limit=1 << 16)
    honest = HostConnection()
    relay.client_connected(HONEST)
    relay.client_connected(HOSTILE)
    relay.guest_received(GUEST_HELLO)
    relay.client_received(HONEST, HOST_HELLO)
    relay.client_received(HOSTILE, HOST_HELLO)
    drain(relay, honest)
    for _ in range(2):
        honest.open("exec")
    pieces = honest.output()
    # Its own HELLO was said above.
    relay.client_received(HONEST, b"".join(pieces)[len(b"".join(HostConnection().output())) :])
    provider = atheris.FuzzedDataProvider(data)
    while provider.remaining_bytes():
        chunk = provider.ConsumeBytes(provider.ConsumeIntInRange(1, 64))
        if provider.ConsumeBool():
            relay.guest_received(chunk)
        elif HOSTILE in relay.clients:
            relay.client_received(HOSTILE, chunk)
        drain(relay, honest)
        if relay.error is None:
            assert HONEST not in relay.closed_clients()


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
