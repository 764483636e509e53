"""Fuzzes the decoder and both connections: bytes mean the same in any pieces, or are a typed error."""

from __future__ import annotations

import sys

import atheris  # type: ignore[import-untyped]  # it has no annotations

with atheris.instrument_imports(include=["microsandbox_core"]):
    from microsandbox_core.channel import (
        ChannelError,
        DataReceived,
        Event,
        Failed,
        FrameDecoder,
        GuestConnection,
        HostConnection,
        HostHelloReceived,
        Kind,
        OpenReceived,
        Side,
        encode_frame,
    )

GUEST_HELLO = encode_frame(
    0, Kind.HELLO, {"protocol": 1, "name": "g", "agent_version": "1", "configured": False}
)
HOST_HELLO = encode_frame(0, Kind.HELLO, {"protocol": [1, 1], "name": "h"})


def decode(side: Side, pieces: list[bytes]) -> tuple[list[object], str | None]:
    decoder = FrameDecoder(side)
    frames: list[object] = [frame for piece in pieces for frame in decoder.feed(piece)]
    return frames, decoder.error.code if decoder.error else None


def host_hears(data: bytes) -> None:
    host = HostConnection()
    host.receive(GUEST_HELLO)
    for method in ("exec", "ping", "exec"):
        host.open(method)
    check(host, host.receive(data))


def guest_hears(data: bytes) -> None:
    guest = GuestConnection()
    guest.receive(HOST_HELLO)
    guest.hello(agent_version="1", configured=False)
    # In pieces, so that streams are accepted while more comes.
    for start in range(0, len(data), 24):
        events = guest.receive(data[start : start + 24])
        for event in events:
            if guest.closed:
                break
            if isinstance(event, HostHelloReceived):
                guest.hello(agent_version="1", configured=False)
            elif isinstance(event, OpenReceived) and event.stream in guest.streams:
                guest.opened(event.stream, {})
        check(guest, events)


def check(connection: HostConnection | GuestConnection, events: list[Event]) -> None:
    for event in events:
        if isinstance(event, DataReceived):
            connection.consumed(event.stream, event.channel, len(event.data))
        elif isinstance(event, Failed):
            assert isinstance(event.error, ChannelError)
            assert event is events[-1]
    while pieces := connection.output(4096):
        connection.sent(max(1, sum(map(len, pieces)) // 2))
    assert connection.queued == 0


def one_input(data: bytes) -> None:
    if len(data) < 2:
        return
    side = Side(data[0] & 1)
    step = 1 + data[0] // 2 % 61
    body = data[1:]
    whole = decode(side, [body])
    assert decode(side, [body[i : i + step] for i in range(0, len(body), step)]) == whole
    if side is Side.HOST:
        host_hears(body)
    else:
        guest_hears(body)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
