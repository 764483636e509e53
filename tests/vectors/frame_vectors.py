"""Vectors of whole byte strings: which frames they hold, or which error."""

from __future__ import annotations

import struct
from typing import Any

import msgpack
from vector_bytes import (
    CAPS,
    EXEC,
    FROM_GUEST,
    FROM_HOST,
    GUEST_HELLO,
    HOST_HELLO,
    KINDS,
    Json,
    control,
    header,
    raw,
    shown,
)


class Frame:
    """One well-formed frame: its bytes and how it is listed."""

    def __init__(self, stream: int, kind: str, value: Any = None, *, payload: bytes = b"", channel: int = 0):
        self.bytes = raw(stream, kind, payload, channel) if value is None else control(stream, kind, value)
        self.listed: Json = {"stream": stream, "kind": kind, "channel": channel}
        if value is None:
            self.listed["payload"] = payload.hex()
        else:
            self.listed["control"] = shown(value)


def good(name: str, receiver: str, *frames: Frame, tail: bytes = b"") -> Json:
    data = b"".join(frame.bytes for frame in frames) + tail
    return {"name": name, "receiver": receiver, "hex": data.hex(), "frames": [f.listed for f in frames]}


def bad(name: str, receiver: str, data: bytes, code: str) -> Json:
    return {"name": name, "receiver": receiver, "hex": data.hex(), "error": code}


def nested(depth: int) -> Any:
    value: Any = {}
    for level in range(depth - 1):
        value = {"k": value} if level == depth - 2 else [value]
    return value


def good_frames() -> list[Json]:
    credit = struct.Struct(">I")
    return [
        good("nothing", "guest"),
        good("host hello", "guest", Frame(0, "HELLO", HOST_HELLO)),
        good("guest hello", "host", Frame(0, "HELLO", GUEST_HELLO)),
        good(
            "hello with keys of a later version",
            "guest",
            Frame(0, "HELLO", {"protocol": [1, 3], "name": "x", "features": ["pty", 7, None]}),
        ),
        good("open exec", "guest", Frame(1, "OPEN", EXEC)),
        good("highest stream", "guest", Frame(2**31 - 1, "OPEN", {"m": "ping"})),
        good("open without a method is for the stream to refuse", "guest", Frame(1, "OPEN", {})),
        good("opened", "host", Frame(1, "OPENED", {"pid": 4194304})),
        good("event exited", "host", Frame(1, "EVENT", {"e": "exited", "code": 0})),
        good("end", "host", Frame(1, "END", {"code": 7, "timed_out": False, "oom_killed": False})),
        good(
            "end with an error",
            "host",
            Frame(3, "END", {"error": {"kind": "not_found", "message": "no such file: naïve ☃", "errno": 2}}),
        ),
        good("message signal", "guest", Frame(1, "MESSAGE", {"m": "signal", "signal": 9})),
        good("cancel", "guest", Frame(1, "CANCEL", {})),
        good("cancel with an unknown key", "guest", Frame(1, "CANCEL", {"why": 1})),
        good("error to guest", "guest", Frame(0, "ERROR", {"code": "credit", "message": "too much"})),
        good("error to host", "host", Frame(0, "ERROR", {"code": "version", "message": "1 is all I know"})),
        good("data to guest", "guest", Frame(1, "DATA", payload=b"\x00\xff\n")),
        good("data of stdout", "host", Frame(1, "DATA", payload=b"out", channel=1)),
        good("data of stderr", "host", Frame(2**31 - 1, "DATA", payload=b"e", channel=2)),
        good("the largest data frame", "host", Frame(1, "DATA", payload=bytes(range(256)) * 256, channel=1)),
        good("eof to guest", "guest", Frame(1, "EOF")),
        good("eof of stderr", "host", Frame(1, "EOF", channel=2)),
        good("credit to guest", "guest", Frame(1, "CREDIT", payload=credit.pack(131072), channel=1)),
        good("credit to host", "host", Frame(1, "CREDIT", payload=credit.pack(1))),
        good("the largest credit", "guest", Frame(1, "CREDIT", payload=credit.pack(2**30), channel=2)),
        good(
            "every kind of value",
            "guest",
            Frame(
                1,
                "MESSAGE",
                {
                    "m": "values",
                    "nil": None,
                    "yes": True,
                    "no": False,
                    "zero": 0,
                    "fixint": 127,
                    "u8": 255,
                    "u16": 65535,
                    "u32": 2**32 - 1,
                    "u64": 2**64 - 1,
                    "negative": -1,
                    "i8": -128,
                    "i16": -32768,
                    "i32": -(2**31),
                    "i64": -(2**63),
                    "str": "é\x00☃😀",
                    "long": "s" * 300,
                    "bytes": b"\x00\x80\xff",
                    "list": [1, [2, [3]], {}],
                    "map": {"a": {"b": {}}},
                    "": "the empty key",
                },
            ),
        ),
        good("eight levels", "guest", Frame(1, "MESSAGE", nested(8))),
        good(
            "several frames",
            "host",
            Frame(0, "HELLO", GUEST_HELLO),
            Frame(1, "OPENED", {"pid": 2}),
            Frame(1, "DATA", payload=b"a", channel=1),
            Frame(1, "DATA", payload=b"b", channel=2),
            Frame(1, "EOF", channel=1),
            Frame(1, "EOF", channel=2),
            Frame(1, "EVENT", {"e": "exited", "signal": 15}),
            Frame(1, "END", {"signal": 15}),
        ),
        good("half a header", "guest", Frame(1, "OPEN", {"m": "ping"}), tail=header(5, 1, "DATA")[:7]),
        good("a header and nothing else", "guest", tail=header(5, 1, "DATA")),
        good("all but the last byte", "guest", tail=raw(1, "DATA", b"12345")[:-1]),
        good("a large frame that has not come yet", "guest", tail=header(4 << 20, 1, "OPEN")),
        {
            "name": "integers, strings and maps in longer forms than needed",
            "receiver": "guest",
            "hex": raw(
                1,
                "MESSAGE",
                b"\xde\x00\x04"
                b"\xa1a\xd3\x00\x00\x00\x00\x00\x00\x00\x01"
                b"\xd9\x01b\xcd\x00\x02"
                b"\xda\x00\x01c\xdd\x00\x00\x00\x01\xd0\x03"
                b"\xdb\x00\x00\x00\x01d\xc6\x00\x00\x00\x01\x04",
            ).hex(),
            "frames": [
                {
                    "stream": 1,
                    "kind": "MESSAGE",
                    "channel": 0,
                    "control": {"a": 1, "b": 2, "c": [3], "d": {"bin": "04"}},
                }
            ],
        },
    ]


def bad_headers() -> list[Json]:
    cases = [
        bad("kind 0", "guest", header(1, 1, 0), "frame"),
        bad("kind 9", "guest", header(1, 1, 9), "frame"),
        bad("kind 0x13", "host", header(1, 1, 0x13), "frame"),
        bad("kind 255", "host", header(1, 1, 255), "frame"),
        bad("flags", "guest", raw(1, "DATA", b"x", flags=1), "frame"),
        bad("high flag", "host", raw(1, "END", b"\x80", flags=0x8000), "frame"),
        bad("credit of two bytes", "guest", raw(1, "CREDIT", b"\x00\x01", 1), "frame"),
        bad("credit of eight bytes", "guest", header(8, 1, "CREDIT", 1), "frame"),
        bad("credit without payload", "host", header(0, 1, "CREDIT", 0), "frame"),
        bad("eof with a payload", "guest", header(1, 1, "EOF"), "frame"),
        bad("data without payload", "guest", header(0, 1, "DATA"), "frame"),
        bad("hello without payload", "guest", header(0, 0, "HELLO"), "frame"),
        bad("cancel without payload", "guest", header(0, 1, "CANCEL"), "frame"),
        bad("length 2^32-1", "guest", header(2**32 - 1, 1, "DATA"), "frame"),
        bad("length 2^31", "host", header(2**31, 1, "END"), "frame"),
        bad("hello on a stream", "guest", control(1, "HELLO", HOST_HELLO), "frame"),
        bad("error on a stream", "host", control(1, "ERROR", {"code": "frame", "message": ""}), "frame"),
        bad("data on stream 0", "guest", raw(0, "DATA", b"x"), "frame"),
        bad("open on stream 0", "guest", control(0, "OPEN", {"m": "ping"}), "frame"),
        bad("end on stream 0", "host", control(0, "END", {}), "frame"),
        bad("eof on stream 0", "guest", raw(0, "EOF"), "frame"),
        bad("stream 2^31", "guest", control(2**31, "OPEN", {"m": "ping"}), "frame"),
        bad("stream 2^32-1", "host", control(2**32 - 1, "END", {}), "frame"),
        bad("open on channel 1", "guest", raw(1, "OPEN", b"\x80", 1), "frame"),
        bad("end on channel 1", "host", raw(1, "END", b"\x80", 1), "frame"),
        bad("stdout from the host", "guest", raw(1, "DATA", b"x", 1), "frame"),
        bad("stdin from the guest", "host", raw(1, "DATA", b"x", 0), "frame"),
        bad("channel 3 from the guest", "host", raw(1, "DATA", b"x", 3), "frame"),
        bad("channel 255 from the host", "guest", raw(1, "DATA", b"x", 255), "frame"),
        bad("eof of stdout from the host", "guest", raw(1, "EOF", b"", 1), "frame"),
        bad("eof of stdin from the guest", "host", raw(1, "EOF", b"", 0), "frame"),
        bad("credit for stdin from the host", "guest", raw(1, "CREDIT", b"\0\0\0\1", 0), "frame"),
        bad("credit for stdout from the guest", "host", raw(1, "CREDIT", b"\0\0\0\1", 1), "frame"),
        bad("credit of 0", "guest", raw(1, "CREDIT", b"\0\0\0\0", 1), "credit"),
        bad("credit of 2^30+1", "host", raw(1, "CREDIT", struct.pack(">I", 2**30 + 1), 0), "credit"),
        bad("credit of 2^32-1", "guest", raw(1, "CREDIT", b"\xff\xff\xff\xff", 2), "credit"),
        bad(
            "error after a good frame", "guest", control(1, "OPEN", {"m": "ping"}) + header(0, 1, 0), "frame"
        ),
    ]
    for kind, cap in CAPS.items():
        stream = 0 if kind in ("HELLO", "ERROR") else 1
        receiver = "guest" if kind in FROM_HOST else "host"
        channel = 1 if kind == "DATA" and receiver == "host" else 0
        cases.append(
            bad(f"{kind} one over its cap", receiver, header(cap + 1, stream, kind, channel), "frame")
        )
    for kind in KINDS:
        stream = 0 if kind in ("HELLO", "ERROR") else 1
        if kind not in FROM_HOST:
            cases.append(bad(f"{kind} from the host", "guest", raw(stream, kind, b"\x80"), "frame"))
        if kind not in FROM_GUEST:
            cases.append(bad(f"{kind} from the guest", "host", raw(stream, kind, b"\x80"), "frame"))
    return cases


def bad_payloads() -> list[Json]:
    def payload(name: str, data: bytes) -> Json:
        return bad(name, "guest", raw(1, "MESSAGE", data), "payload")

    return [
        payload("nil at the top", b"\xc0"),
        payload("array at the top", b"\x90"),
        payload("integer at the top", b"\x01"),
        payload("two maps", b"\x80\x80"),
        payload("a byte after the map", b"\x81\xa1m\xa1x\x00"),
        payload("map without its value", b"\x81\xa1m"),
        payload("string cut short", b"\x81\xa1m\xa5abc"),
        payload("map of 2^32-1 entries in five bytes", b"\xdf\xff\xff\xff\xff"),
        payload("array of 2^32-1 items", b"\x81\xa1m\xdd\xff\xff\xff\xff"),
        payload("string of 2^32-1 bytes", b"\x81\xa1m\xdb\xff\xff\xff\xff"),
        payload("bin of 2^32-1 bytes", b"\x81\xa1m\xc6\xff\xff\xff\xff"),
        payload("the byte that is never used", b"\x81\xa1m\xc1"),
        payload("float32", b"\x81\xa1m\xca\x00\x00\x00\x00"),
        payload("float64", b"\x81\xa1m\xcb" + struct.pack(">d", 1.5)),
        payload("NaN", b"\x81\xa1m\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00"),
        payload("fixext1", b"\x81\xa1m\xd4\x05\x00"),
        payload("ext8 of nothing", b"\x81\xa1m\xc7\x00\x05"),
        payload("timestamp32", b"\x81\xa1m\xd6\xff\x00\x00\x00\x00"),
        payload("timestamp96", b"\x81\xa1m\xc7\x0c\xff" + bytes(12)),
        payload("integer key", b"\x81\x01\x01"),
        payload("bin key", b"\x81\xc4\x01m\x01"),
        payload("nil key", b"\x81\xc0\x01"),
        payload("array key", b"\x81\x90\x01"),
        payload("bin key two levels down", b"\x81\xa1m\x91\x81\xc4\x01m\x01"),
        payload("key twice", b"\x82\xa1m\x01\xa1m\x02"),
        payload("key twice in another encoding", b"\x82\xa1m\x01\xd9\x01m\x02"),
        payload("key twice two levels down", b"\x81\xa1m\x91\x82\xa1a\x01\xa1a\x01"),
        payload("invalid UTF-8", b"\x81\xa1m\xa1\xff"),
        payload("overlong UTF-8", b"\x81\xa1m\xa2\xc0\x80"),
        payload("surrogate in UTF-8", b"\x81\xa1m\xa3\xed\xa0\x80"),
        payload("above U+10FFFF", b"\x81\xa1m\xa4\xf4\x90\x80\x80"),
        payload("invalid UTF-8 in a key", b"\x81\xa1\xff\x01"),
        payload("nine levels", msgpack.packb(nested(9))),
        payload("nine levels of maps", b"\x81\xa1k" * 8 + b"\x80"),
        payload("2000 levels of arrays", b"\x81\xa1m" + b"\x91" * 2000 + b"\xc0"),
        payload("9000 levels that never end", b"\x81\xa1m" + b"\x91" * 9000),
        payload("arrays of many that never come", b"\x81\xa1m" + b"\xdd\x00\x00\xff\xff" * 400),
        bad("hello that is no map", "guest", raw(0, "HELLO", b"\x93\x01\x02\x03"), "payload"),
        bad("cancel that is no map", "guest", raw(1, "CANCEL", b"\xc0"), "payload"),
        bad("end that is no map", "host", raw(1, "END", b"\xa0"), "payload"),
        bad("json", "guest", raw(1, "OPEN", b'{"m":"ping"}'), "payload"),
    ]


def frame_vectors() -> list[Json]:
    return good_frames() + bad_headers() + bad_payloads()
