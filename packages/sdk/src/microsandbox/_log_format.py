"""One record of a sandbox's log as a line of JSON, and back.

`{"time", "source", "session"?, "pid"?, "data" | "base64", ...}`: `time` is RFC 3339 in UTC with nanoseconds;
the bytes are in `data` where they are valid UTF-8, else in `base64`; records of the system have an `event`
and what belongs to it, and a sentence in `data`.
"""

from __future__ import annotations

import json
import time
from binascii import a2b_base64, b2a_base64
from collections.abc import Mapping
from functools import lru_cache
from json.encoder import encode_basestring
from typing import Any, NamedTuple


class Record(NamedTuple):
    """What was recorded at one moment: a piece of output, or an event of the system.

    `time_ns`: nanoseconds since the epoch. `session`: the exec, unique in this log. `pid`: in the guest.
    `event` and `details`: of records whose source is ``system``.
    """

    time_ns: int
    source: str
    session: str | None
    pid: int | None
    data: bytes
    event: str | None = None
    details: Mapping[str, Any] = {}


def timestamp(time_ns: int) -> str:
    """RFC 3339 in UTC, with nanoseconds."""
    seconds, fraction = divmod(time_ns, 1_000_000_000)
    return f"{_date(seconds)}.{fraction:09d}Z"


# Records come in bursts: most share their second with the one before.
@lru_cache(maxsize=2)
def _date(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


@lru_cache(maxsize=2)
def _seconds(date: str) -> int:
    from calendar import timegm  # not for the supervisor, which only writes

    return timegm(time.strptime(date, "%Y-%m-%dT%H:%M:%S"))


def encode_output(
    time_ns: int, source: str, session: str, pid: int | None, data: bytes, *, text: bool
) -> bytes:
    """The line of a piece of output; `text`: it is valid UTF-8."""
    head = f'{{"time":"{timestamp(time_ns)}","source":"{source}","session":"{session}"'
    if pid is not None:
        head += f',"pid":{pid}'
    if text:
        return b'%b,"data":"%b"}\n' % (head.encode(), _escaped(data))
    return b'%b,"base64":"%b"}\n' % (head.encode(), b2a_base64(data, newline=False))


# Those that programs print; the rest is rare, and so is output that has it.
_ESCAPES = ((b"\\", b"\\\\"), (b'"', b'\\"'), (b"\n", b"\\n"), (b"\t", b"\\t"), (b"\r", b"\\r"))
_CONTROL = bytes(range(32))


def _escaped(data: bytes) -> bytes:
    """UTF-8 as it stands in a JSON string. Three times as fast as json's own function, for most text."""
    escaped = data
    for character, sequence in _ESCAPES:
        escaped = escaped.replace(character, sequence)
    if len(escaped.translate(None, _CONTROL)) == len(escaped):
        return escaped
    return encode_basestring(data.decode())[1:-1].encode()


def encode_event(
    time_ns: int,
    event: str,
    text: str,
    *,
    session: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> bytes:
    """The line of something that happened: `text` is what a person reads, without a newline."""
    record: dict[str, Any] = {"time": timestamp(time_ns), "source": "system"}
    if session is not None:
        record["session"] = session
    record |= {"event": event, "data": text + "\n", **(details or {})}
    # Escaped to ASCII, as it may hold what is not UTF-8 (surrogateescape).
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


_FIELDS = frozenset({"time", "source", "session", "pid", "data", "base64", "event"})


def decode(line: bytes) -> Record | None:
    """The record of a line; None for what is not one: torn by the end of its writer, or empty."""
    try:
        found = json.loads(line)
        stamp = found["time"]
        if "base64" in found:
            data = a2b_base64(found["base64"], strict_mode=True)
        else:
            data = found["data"].encode(errors="surrogateescape")
        return Record(
            _seconds(stamp[:19]) * 1_000_000_000 + int(stamp[20:29]),
            str(found["source"]),
            found.get("session"),
            found.get("pid"),
            data,
            found.get("event"),
            {key: value for key, value in found.items() if key not in _FIELDS} if "event" in found else {},
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
