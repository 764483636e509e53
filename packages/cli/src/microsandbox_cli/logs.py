"""`msb logs`: lines of a sandbox's log as text or JSON."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from base64 import b64encode
from collections.abc import Callable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any

from microsandbox import LogLine, LogSource, _create
from microsandbox._config import parse_duration
from microsandbox._forward import Writer
from microsandbox._log_format import timestamp
from microsandbox.errors import ConfigError
from microsandbox.logs import HOLES, TIMELESS, read_log
from microsandbox_core import env as environment

from microsandbox_cli import report
from microsandbox_cli.attached import run_in_loop
from microsandbox_cli.text import printable


def show_logs(
    name: str,
    *,
    follow: bool,
    tail: int | None,
    since: str | None,
    until: str | None,
    source: str,
    grep: str | None,
    timestamps: bool,
    raw: bool,
    as_json: bool,
) -> None:
    """Print the lines that are wanted; the exit code is 0 whether or not there are any."""
    sources = _sources(source)
    begin = None if since is None else _moment(since, "--since")
    end = None if until is None else _moment(until, "--until")
    if sources & TIMELESS and (begin is not None or end is not None):
        raise ConfigError(
            "--since, --until: lines of the console and of the supervisor have no times",
            hint="ask for them without a time, or for other sources",
        )
    pattern = None if grep is None else _pattern(grep)
    show = _printer(timestamps=timestamps, raw=raw, as_json=as_json)
    home = environment.home()

    async def main() -> int:
        record = await asyncio.to_thread(_create.find, home, name)
        log = read_log(
            home, record, tail=tail, since=begin, until=end, sources=sources, grep=pattern, follow=follow
        )
        writer = Writer(1)
        async with aclosing(log):
            async for lines in log:
                for line in lines:
                    if line.event in HOLES and not as_json:
                        report.note(f"note: {line.text.rstrip()}")
                data = b"".join(map(show, lines))
                if data and not await writer.write(data):
                    break
        writer.check("stdout")
        return 0

    run_in_loop(main)


def _printer(*, timestamps: bool, raw: bool, as_json: bool) -> Callable[[LogLine], bytes]:
    """What a line looks like: exactly the bytes of the guest, unless they go to a terminal."""
    terminal = sys.stdout.isatty()

    def show(line: LogLine) -> bytes:
        if as_json:
            return json.dumps(plain(line)).encode() + b"\n"
        if line.event in HOLES:
            return b""
        data = line.data
        if terminal and not raw:
            data = printable(data.decode(errors="surrogateescape"), keep="\n\t").encode()
        if timestamps:
            when = "-" if line.time_ns is None else timestamp(line.time_ns)
            data = f"{when} {line.source} ".encode() + data
        if (terminal or timestamps) and not data.endswith(b"\n"):
            data += b"\n"
        return data

    return show


def plain(line: LogLine) -> dict[str, Any]:
    """A line as JSON has it: `data` if its bytes are UTF-8, else `base64`."""
    found: dict[str, Any] = {
        "time": None if line.time_ns is None else timestamp(line.time_ns),
        "source": str(line.source),
        "session": line.session,
        "pid": line.pid,
    }
    if line.event is not None:
        found["event"] = line.event
    try:
        found["data"] = line.data.decode()
    except UnicodeDecodeError:
        found["base64"] = b64encode(line.data).decode()
    return found | {name: value for name, value in line.details.items() if name not in found}


def _sources(text: str) -> set[LogSource]:
    found = set()
    for name in text.split(","):
        try:
            found.add(LogSource(name.strip()))
        except ValueError:
            known = ", ".join(LogSource)
            raise ConfigError(
                f"--source: {name!r} is not a source of a log", hint=f"use some of {known}"
            ) from None
    return found


def _moment(text: str, option: str) -> datetime:
    """A time as RFC 3339 has it, in local time if it has no zone, or a duration before now."""
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        pass  # then it is a duration
    try:
        return datetime.now(UTC) - timedelta(seconds=parse_duration(text, option))
    except (ConfigError, OverflowError):
        raise ConfigError(
            f"{option}: {text!r} is neither a time nor a duration",
            hint="for example: 2026-05-04T10:20:30Z, 2026-05-04T10:20 (local time), or 5m (ago)",
        ) from None


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ConfigError(
            f"--grep: {text!r} is not a regular expression: {error}", hint="as Python's re module has them"
        ) from error
