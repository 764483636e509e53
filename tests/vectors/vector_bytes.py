"""Frames put together byte by byte, with `struct` and `msgpack` alone."""

from __future__ import annotations

import struct
from typing import Any

import msgpack

KINDS = {
    "HELLO": 0x01,
    "OPEN": 0x02,
    "OPENED": 0x03,
    "EVENT": 0x04,
    "END": 0x05,
    "MESSAGE": 0x06,
    "CANCEL": 0x07,
    "ERROR": 0x08,
    "DATA": 0x10,
    "EOF": 0x11,
    "CREDIT": 0x12,
}
CAPS = {
    "HELLO": 4096,
    "OPEN": 4 << 20,
    "OPENED": 65536,
    "EVENT": 65536,
    "END": 65536,
    "MESSAGE": 65536,
    "CANCEL": 16,
    "ERROR": 4096,
    "DATA": 65536,
}
BOTH = ("HELLO", "ERROR", "DATA", "EOF", "CREDIT")
FROM_HOST = (*BOTH, "OPEN", "MESSAGE", "CANCEL")
FROM_GUEST = (*BOTH, "OPENED", "EVENT", "END")

Json = dict[str, Any]


def header(length: int, stream: int, kind: int | str, channel: int = 0, flags: int = 0) -> bytes:
    number = KINDS[kind] if isinstance(kind, str) else kind
    return struct.pack(">IIBBH", length, stream, number, channel, flags)


def raw(stream: int, kind: int | str, payload: bytes = b"", channel: int = 0, flags: int = 0) -> bytes:
    return header(len(payload), stream, kind, channel, flags) + payload


def control(stream: int, kind: str, value: Any) -> bytes:
    return raw(stream, kind, msgpack.packb(value))


def shown(value: Any) -> Any:
    """The JSON form of a control value: bytes become {"bin": hex}."""
    if isinstance(value, bytes):
        return {"bin": value.hex()}
    if isinstance(value, dict):
        return {key: shown(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shown(item) for item in value]
    return value


EXEC = {
    "m": "exec",
    "argv": [b"sh", b"-c", b"printf '%s' \"$A\"\n", b"\xff\xfe not utf-8", b""],
    "env": [b"PATH=/usr/bin:/bin", b"A=\x80\x81"],
    "cwd": None,
    "user": "nobody:65534",
    "stdin": "pipe",
    "tty": None,
    "rlimits": [["nofile", 1024, 2**64 - 1]],
    "timeout_ms": 2500,
}
HOST_HELLO = {"protocol": [1, 1], "name": "microsandbox"}
GUEST_HELLO = {"protocol": 1, "name": "agentd", "agent_version": "0.1.0", "configured": False}
