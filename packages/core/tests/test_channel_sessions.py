"""Both sides of a connection against the shared conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from microsandbox_core.channel import (
    CancelReceived,
    Connection,
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
    ProtocolError,
    Side,
)

VECTORS = Path(__file__).parents[3] / "tests" / "vectors" / "sessions.json"
SESSIONS: list[dict[str, Any]] = json.loads(VECTORS.read_text(encoding="ascii"))


def shown(value: object) -> object:
    if isinstance(value, bytes):
        return {"bin": value.hex()}
    if isinstance(value, dict):
        return {key: shown(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shown(item) for item in value]
    return value


def unshown(value: Any) -> Any:
    if isinstance(value, dict):
        if list(value) == ["bin"]:
            return bytes.fromhex(value["bin"])
        return {key: unshown(item) for key, item in value.items()}
    if isinstance(value, list):
        return [unshown(item) for item in value]
    return value


def listed(event: Event) -> dict[str, object]:
    match event:
        case HelloReceived() | HostHelloReceived():
            return {"event": "hello"}
        case OpenReceived(stream, method, params):
            return {"event": "open", "stream": stream, "control": shown({"m": method, **params})}
        case Opened(stream, body):
            return {"event": "opened", "stream": stream, "control": shown(body)}
        case EventReceived(stream, name, body):
            return {"event": "event", "stream": stream, "control": shown({"e": name, **body})}
        case MessageReceived(stream, name, body):
            return {"event": "message", "stream": stream, "control": shown({"m": name, **body})}
        case CancelReceived(stream):
            return {"event": "cancel", "stream": stream}
        case DataReceived(stream, channel, data):
            return {"event": "data", "stream": stream, "payload": data.hex(), "channel": channel}
        case EofReceived(stream, channel):
            return {"event": "eof", "stream": stream, "channel": channel}
        case CreditReceived(stream, channel, amount):
            return {"event": "credit", "stream": stream, "channel": channel, "credit": amount}
        case Ended(stream, body):
            return {"event": "end", "stream": stream, "control": shown(body)}
        case Failed():
            pytest.fail(f"unexpected {event}")


def wire(connection: Connection) -> bytes:
    parts = []
    while pieces := connection.output():
        data = b"".join(pieces)
        parts.append(data)
        connection.sent(len(data))
    return b"".join(parts)


def frames(connection: Connection, data: bytes) -> list[Frame]:
    decoder = FrameDecoder(Side.GUEST if isinstance(connection, HostConnection) else Side.HOST)
    result = decoder.feed(data)
    assert decoder.error is None
    assert decoder.buffered == 0
    return result


def perform(connection: Connection, send: dict[str, Any]) -> None:
    op, stream, channel = send["op"], send.get("stream", 0), send.get("channel", 0)
    control = unshown(send.get("control", {}))
    match op:
        case "data":
            payload = bytes.fromhex(send["payload"])
            assert connection.send_data(stream, channel, payload) == len(payload)
            return
        case "eof":
            connection.send_eof(stream, channel)
            return
        case "consumed":
            connection.grant(stream, channel, send["credit"])
            return
    if isinstance(connection, HostConnection):
        match op:
            case "hello":
                return  # it is queued when the connection is made
            case "open":
                assert connection.open(control.pop("m"), control) == stream
                return
            case "message":
                connection.message(stream, control.pop("m"), control)
                return
            case "cancel":
                connection.cancel(stream)
                return
    assert isinstance(connection, GuestConnection)
    match op:
        case "hello":
            connection.hello(
                name=control["name"],
                agent_version=control["agent_version"],
                configured=control["configured"],
            )
        case "opened":
            connection.opened(stream, control)
        case "event":
            connection.event(stream, control.pop("e"), control)
        case "end":
            connection.end(stream, control)
        case _:
            pytest.fail(f"unknown op {op}")


@pytest.mark.parametrize("vector", SESSIONS, ids=lambda vector: vector["name"])
def test_a01_session(vector: dict[str, Any]) -> None:
    connection: Connection
    connection = HostConnection() if vector["side"] == "host" else GuestConnection()
    steps = [step for step in vector["steps"] for _ in range(step.get("times", 1))]
    for step in steps[:-1] if "error" in vector else steps:
        if "send" in step:
            perform(connection, step["send"])
            assert frames(connection, wire(connection)) == frames(connection, bytes.fromhex(step["bytes"]))
        else:
            events = connection.receive(bytes.fromhex(step["receive"]))
            assert [listed(event) for event in events] == step["events"]
    if "error" not in vector:
        assert connection.error is None
        return
    *events, failed = connection.receive(bytes.fromhex(steps[-1]["receive"]))
    assert [listed(event) for event in events] == steps[-1]["events"]
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, ProtocolError)
    assert failed.error.code == vector["error"]
    (error,) = frames(connection, wire(connection))
    assert error.kind == Kind.ERROR
    assert isinstance(error.payload, dict)
    assert error.payload["code"] == vector["error"]
    # It is over: nothing is heard and nothing said any more.
    assert connection.receive(b"\xff" * 64) == []
    assert not connection.pending
