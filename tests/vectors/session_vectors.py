"""Vectors of conversations: what one side makes of what it hears, and what it puts on the wire."""

from __future__ import annotations

import struct
from typing import Any

from vector_bytes import EXEC, GUEST_HELLO, HOST_HELLO, Json, control, raw, shown

PING: Json = {"m": "ping"}
CAT: Json = {"m": "exec", "argv": [b"cat"], "env": [], "stdin": "pipe"}


def credit(stream: int, channel: int, amount: int) -> bytes:
    return raw(stream, "CREDIT", struct.pack(">I", amount), channel)


def entry(name: str, stream: int | None, value: Any, payload: bytes | None, more: Json) -> Json:
    listed: Json = {"event": name}
    if stream is not None:
        listed["stream"] = stream
    if value is not None:
        listed["control"] = shown(value)
    if payload is not None:
        listed["payload"] = payload.hex()
    return {**listed, **more}


def event(
    name: str, stream: int | None = None, value: Any = None, *, payload: bytes | None = None, **more: int
) -> Json:
    return entry(name, stream, value, payload, dict(more))


def receive(data: bytes, *events: Json) -> Json:
    return {"receive": data.hex(), "events": list(events)}


def send(
    data: bytes,
    op: str,
    stream: int | None = None,
    value: Any = None,
    *,
    payload: bytes | None = None,
    **more: int,
) -> Json:
    listed = entry(op, stream, value, payload, dict(more))
    return {"send": {"op": listed.pop("event"), **listed}, "bytes": data.hex()}


def greeted_guest(hello: Json = GUEST_HELLO) -> list[Json]:
    return [
        receive(control(0, "HELLO", HOST_HELLO), event("hello")),
        send(control(0, "HELLO", hello), "hello", None, hello),
    ]


def greeted_host() -> list[Json]:
    return [
        send(control(0, "HELLO", HOST_HELLO), "hello", None, HOST_HELLO),
        receive(control(0, "HELLO", GUEST_HELLO), event("hello")),
    ]


def guest_runs(stream: int = 1, request: Json = CAT) -> list[Json]:
    return [
        receive(control(stream, "OPEN", request), event("open", stream, request)),
        send(control(stream, "OPENED", {"pid": 7}), "opened", stream, {"pid": 7}),
    ]


def host_runs(stream: int = 1, request: Json = CAT) -> list[Json]:
    return [
        send(control(stream, "OPEN", request), "open", stream, request),
        receive(control(stream, "OPENED", {"pid": 7}), event("opened", stream, {"pid": 7})),
    ]


def session(name: str, side: str, *steps: list[Json], error: str | None = None) -> Json:
    vector: Json = {"name": name, "side": side, "steps": [step for group in steps for step in group]}
    if error is not None:
        vector["error"] = error
    return vector


def guest_sessions() -> list[Json]:
    def broken(name: str, code: str, data: bytes, *before: list[Json], events: tuple[Json, ...] = ()) -> Json:
        return session(f"guest: {name}", "guest", *before, [receive(data, *events)], error=code)

    hello = control(0, "HELLO", HOST_HELLO)
    full = [
        {
            **receive(raw(1, "DATA", bytes(1024)), event("data", 1, payload=bytes(1024), channel=0)),
            "times": 131072 // 1024,
        }
    ]
    configure = {"m": "configure", "hostname": "box"}
    return [
        session(
            "guest: ping",
            "guest",
            greeted_guest(),
            [
                receive(control(1, "OPEN", PING), event("open", 1, PING)),
                send(control(1, "END", {"uptime_ns": 12}), "end", 1, {"uptime_ns": 12}),
            ],
        ),
        session(
            "guest: an exec from its start to its end",
            "guest",
            greeted_guest(),
            guest_runs(1, EXEC),
            [
                receive(raw(1, "DATA", b"in"), event("data", 1, payload=b"in", channel=0)),
                send(credit(1, 0, 2), "consumed", 1, channel=0, credit=2),
                receive(raw(1, "EOF"), event("eof", 1, channel=0)),
                send(raw(1, "DATA", b"out", 1), "data", 1, payload=b"out", channel=1),
                send(raw(1, "DATA", b"err", 2), "data", 1, payload=b"err", channel=2),
                receive(credit(1, 1, 3), event("credit", 1, channel=1, credit=3)),
                send(control(1, "EVENT", {"e": "exited", "code": 0}), "event", 1, {"e": "exited", "code": 0}),
                send(raw(1, "EOF", b"", 1), "eof", 1, channel=1),
                send(raw(1, "EOF", b"", 2), "eof", 1, channel=2),
                send(control(1, "END", {"code": 0}), "end", 1, {"code": 0}),
                # What was on its way when the stream ended is dropped, of any kind.
                receive(
                    raw(1, "DATA", b"late")
                    + raw(1, "EOF")
                    + credit(1, 2, 9)
                    + control(1, "MESSAGE", {"m": "signal", "signal": 15})
                    + control(1, "CANCEL", {})
                ),
                receive(control(2, "OPEN", PING), event("open", 2, PING)),
            ],
        ),
        session(
            "guest: messages and cancel",
            "guest",
            greeted_guest(),
            guest_runs(),
            [
                receive(
                    control(1, "MESSAGE", {"m": "signal", "signal": 2}) + control(1, "CANCEL", {}),
                    event("message", 1, {"m": "signal", "signal": 2}),
                    event("cancel", 1),
                ),
                receive(control(1, "MESSAGE", {}) + control(1, "MESSAGE", {"m": 1})),
            ],
        ),
        session(
            "guest: ids may skip, and skipped ones are dead",
            "guest",
            greeted_guest(),
            [
                receive(control(9, "OPEN", PING), event("open", 9, PING)),
                receive(control(4, "CANCEL", {}) + raw(5, "DATA", b"x")),
                receive(control(2**31 - 1, "OPEN", PING), event("open", 2**31 - 1, PING)),
            ],
        ),
        session("guest: a window of stdin", "guest", greeted_guest(), guest_runs(), full),
        session(
            "guest: credit for an ended channel is ignored",
            "guest",
            greeted_guest(),
            guest_runs(),
            [send(raw(1, "EOF", b"", 1), "eof", 1, channel=1), receive(credit(1, 1, 2**30) * 2)],
        ),
        session(
            "guest: credit up to 2^30",
            "guest",
            greeted_guest(),
            guest_runs(),
            [receive(credit(1, 1, 2**30 - 262144), event("credit", 1, channel=1, credit=2**30 - 262144))],
        ),
        session(
            "guest: hello again before configure",
            "guest",
            greeted_guest(),
            [receive(control(5, "OPEN", PING), event("open", 5, PING))],
            greeted_guest(),
            [receive(control(1, "OPEN", PING), event("open", 1, PING))],
        ),
        session(
            "guest: a host of versions to come",
            "guest",
            [
                receive(control(0, "HELLO", {"protocol": [1, 9], "name": "later"}), event("hello")),
                send(control(0, "HELLO", GUEST_HELLO), "hello", None, GUEST_HELLO),
            ],
        ),
        broken("a host too new", "version", control(0, "HELLO", {"protocol": [2, 9], "name": "x"})),
        broken("versions upside down", "payload", control(0, "HELLO", {"protocol": [2, 1], "name": "x"})),
        broken("version 0", "payload", control(0, "HELLO", {"protocol": [0, 1], "name": "x"})),
        broken("one version", "payload", control(0, "HELLO", {"protocol": 1, "name": "x"})),
        broken(
            "a version that is a bool", "payload", control(0, "HELLO", {"protocol": [True, 1], "name": "x"})
        ),
        broken("no name", "payload", control(0, "HELLO", {"protocol": [1, 1]})),
        broken("open before hello", "sequence", control(1, "OPEN", PING)),
        broken("data before hello", "sequence", raw(1, "DATA", b"x")),
        broken("credit before hello", "sequence", credit(1, 1, 1)),
        broken(
            "hello after configure",
            "sequence",
            hello,
            greeted_guest(),
            [receive(control(1, "OPEN", configure), event("open", 1, configure))],
        ),
        broken("an id twice", "stream", control(1, "OPEN", PING), greeted_guest(), guest_runs()),
        broken(
            "an id that decreases",
            "stream",
            control(2, "OPEN", PING),
            greeted_guest(),
            [receive(control(3, "OPEN", PING), event("open", 3, PING))],
        ),
        broken("data for an id never opened", "stream", raw(1, "DATA", b"x"), greeted_guest()),
        broken(
            "cancel of an id never opened", "stream", control(2, "CANCEL", {}), greeted_guest(), guest_runs()
        ),
        broken("one byte too many", "credit", raw(1, "DATA", b"x"), greeted_guest(), guest_runs(), full),
        broken(
            "one byte more than was returned",
            "credit",
            raw(1, "DATA", b"12345678901"),
            greeted_guest(),
            guest_runs(),
            full,
            [send(credit(1, 0, 10), "consumed", 1, channel=0, credit=10)],
        ),
        broken("a balance above 2^30", "credit", credit(1, 1, 2**30 - 262143), greeted_guest(), guest_runs()),
        broken(
            "data after eof",
            "sequence",
            raw(1, "EOF") + raw(1, "DATA", b"x"),
            greeted_guest(),
            guest_runs(),
            events=(event("eof", 1, channel=0),),
        ),
        broken(
            "eof twice",
            "sequence",
            raw(1, "EOF") * 2,
            greeted_guest(),
            guest_runs(),
            events=(event("eof", 1, channel=0),),
        ),
        broken(
            "data on a stream without channels",
            "frame",
            raw(1, "DATA", b"x"),
            greeted_guest(),
            [receive(control(1, "OPEN", PING), event("open", 1, PING))],
        ),
        broken(
            "credit on a stream without channels",
            "frame",
            credit(1, 1, 1),
            greeted_guest(),
            [receive(control(1, "OPEN", PING), event("open", 1, PING))],
        ),
        broken(
            "a good frame before a bad one",
            "frame",
            control(1, "OPEN", PING) + raw(1, "DATA", b"x", 7),
            greeted_guest(),
            events=(event("open", 1, PING),),
        ),
    ]


def host_sessions() -> list[Json]:
    def broken(name: str, code: str, data: bytes, *before: list[Json], events: tuple[Json, ...] = ()) -> Json:
        return session(f"host: {name}", "host", *before, [receive(data, *events)], error=code)

    said_hello = greeted_host()[:1]
    end = control(1, "END", {"code": 0})
    opened = [send(control(1, "OPEN", CAT), "open", 1, CAT)]
    window = [
        {
            **receive(raw(1, "DATA", bytes(1024), 1), event("data", 1, payload=bytes(1024), channel=1)),
            "times": 262144 // 1024,
        }
    ]
    return [
        session(
            "host: an exec from its start to its end",
            "host",
            greeted_host(),
            host_runs(1, EXEC),
            [
                send(raw(1, "DATA", b"in"), "data", 1, payload=b"in", channel=0),
                receive(credit(1, 0, 2), event("credit", 1, channel=0, credit=2)),
                send(raw(1, "EOF"), "eof", 1, channel=0),
                receive(
                    raw(1, "DATA", b"out", 1) + raw(1, "DATA", b"err", 2) + raw(1, "EOF", b"", 2),
                    event("data", 1, payload=b"out", channel=1),
                    event("data", 1, payload=b"err", channel=2),
                    event("eof", 1, channel=2),
                ),
                send(credit(1, 1, 3), "consumed", 1, channel=1, credit=3),
                receive(
                    control(1, "EVENT", {"e": "exited", "code": 0}) + end,
                    event("event", 1, {"e": "exited", "code": 0}),
                    event("end", 1, {"code": 0}),
                ),
            ],
        ),
        session(
            "host: refused",
            "host",
            greeted_host(),
            [
                send(control(1, "OPEN", CAT), "open", 1, CAT),
                receive(
                    control(1, "END", {"error": {"kind": "not_found", "message": "cat", "errno": 2}}),
                    event("end", 1, {"error": {"kind": "not_found", "message": "cat", "errno": 2}}),
                ),
                send(control(2, "OPEN", PING), "open", 2, PING),
            ],
        ),
        session(
            "host: signal and cancel",
            "host",
            greeted_host(),
            host_runs(),
            [
                send(
                    control(1, "MESSAGE", {"m": "signal", "signal": 15}),
                    "message",
                    1,
                    {"m": "signal", "signal": 15},
                ),
                send(control(1, "CANCEL", {}), "cancel", 1),
                receive(control(1, "END", {"signal": 9}), event("end", 1, {"signal": 9})),
            ],
        ),
        session(
            "host: credit may come before opened",
            "host",
            greeted_host(),
            opened,
            [receive(credit(1, 0, 5), event("credit", 1, channel=0, credit=5))],
        ),
        session(
            "host: an event without a name is dropped",
            "host",
            greeted_host(),
            host_runs(),
            [receive(control(1, "EVENT", {}) + control(1, "EVENT", {"e": 5}))],
        ),
        session("host: a window of stdout", "host", greeted_host(), host_runs(), window),
        broken(
            "a version that was not offered",
            "version",
            control(0, "HELLO", {**GUEST_HELLO, "protocol": 2}),
            said_hello,
        ),
        broken("hello without a version", "payload", control(0, "HELLO", {"name": "agentd"}), said_hello),
        broken("opened before hello", "sequence", control(1, "OPENED", {}), said_hello),
        broken("data before hello", "sequence", raw(1, "DATA", b"x", 1), said_hello),
        broken("hello twice", "sequence", control(0, "HELLO", GUEST_HELLO), greeted_host()),
        broken("opened for an id never opened", "stream", control(1, "OPENED", {}), greeted_host()),
        broken("data for an id never opened", "stream", raw(2, "DATA", b"x", 1), greeted_host(), host_runs()),
        broken("opened twice", "sequence", control(1, "OPENED", {}), greeted_host(), host_runs()),
        broken("data before opened", "sequence", raw(1, "DATA", b"x", 1), greeted_host(), opened),
        broken("event before opened", "sequence", control(1, "EVENT", {"e": "x"}), greeted_host(), opened),
        broken("eof before opened", "sequence", raw(1, "EOF", b"", 1), greeted_host(), opened),
        broken(
            "end twice",
            "sequence",
            end * 2,
            greeted_host(),
            host_runs(),
            events=(event("end", 1, {"code": 0}),),
        ),
        broken(
            "data after end",
            "sequence",
            end + raw(1, "DATA", b"x", 1),
            greeted_host(),
            host_runs(),
            events=(event("end", 1, {"code": 0}),),
        ),
        broken(
            "credit after end",
            "sequence",
            end + credit(1, 0, 1),
            greeted_host(),
            host_runs(),
            events=(event("end", 1, {"code": 0}),),
        ),
        broken(
            "data after eof",
            "sequence",
            raw(1, "EOF", b"", 1) + raw(1, "DATA", b"x", 1),
            greeted_host(),
            host_runs(),
            events=(event("eof", 1, channel=1),),
        ),
        broken("one byte too many", "credit", raw(1, "DATA", b"x", 1), greeted_host(), host_runs(), window),
        broken("a balance above 2^30", "credit", credit(1, 0, 2**30), greeted_host(), host_runs()),
        broken(
            "data on a stream without channels",
            "frame",
            control(1, "OPENED", {}) + raw(1, "DATA", b"x", 1),
            greeted_host(),
            [send(control(1, "OPEN", PING), "open", 1, PING)],
            events=(event("opened", 1, {}),),
        ),
        broken("error without a code", "payload", control(0, "ERROR", {"message": "?"}), greeted_host()),
    ]


def session_vectors() -> list[Json]:
    return guest_sessions() + host_sessions()
