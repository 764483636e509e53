"""What goes into a sandbox's log: the output of its execs, and what the system did."""

from __future__ import annotations

import shlex
import time
from codecs import utf_8_decode
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from microsandbox_core.channel import Control
from microsandbox_core.relay_server import RelayServer

from microsandbox._log_format import encode_event, encode_output
from microsandbox._log_segments import SegmentWriter
from microsandbox.supervisor._log_writer import LogWriter

DELAY: Final = 0.05
"""Seconds that output waits for more, to be written together."""
BATCH: Final = 1 << 18
"""Bytes of output that do not wait."""
PIECE: Final = 1 << 16
"""Bytes of output above which a record is not added to."""
_SHOWN: Final = 4096  # bytes of a command line, or of an error of the guest's
_CLOSE_TIME: Final = 2.0  # seconds for the last lines: the end of the sandbox waits for them

_SOURCES: Final = {1: "stdout", 2: "stderr"}


class _Session:
    """An exec. `torn`: by channel, the beginning of a character whose end has not come yet."""

    __slots__ = ("name", "pid", "torn")

    def __init__(self, name: str) -> None:
        self.name = name
        self.pid: int | None = None
        self.torn: dict[int, bytes] = {}


class _Piece:
    __slots__ = ("channel", "parts", "session", "size", "time_ns")

    def __init__(self, session: _Session, channel: int, data: bytes) -> None:
        self.time_ns = time.time_ns()
        self.session = session
        self.channel = channel
        self.parts = [data]
        self.size = len(data)


def open_log(server: RelayServer, directory: Path) -> ExecLog:
    """The log in this directory. Nothing is opened or started before there is something to write."""
    return ExecLog(server, LogWriter(SegmentWriter(directory)))


class ExecLog:
    """An observer of the relay. Output is encoded in batches on the loop's thread, which costs less than a
    change of threads for each piece, and written on another one."""

    def __init__(self, server: RelayServer, writer: LogWriter) -> None:
        self._server = server
        self._writer = writer
        # Streams are numbered anew at each start, and the log goes on.
        self._start = f"{time.time_ns() // 1_000_000:x}"
        self._sessions: dict[int, _Session] = {}
        self._pieces: list[_Piece] = []
        self._lines: list[bytes] = []
        self._sizes: list[int] = []
        self._held = 0
        self._due = False

    def event(
        self, event: str, text: str, *, session: str | None = None, details: Mapping[str, Any] | None = None
    ) -> None:
        """Record something that happened, behind the output that came before it."""
        self._encode()
        self._add(encode_event(time.time_ns(), event, text, session=session, details=details), 0)
        self._schedule()

    def close(self) -> None:
        """Write what there is; a disk that does not take it is not waited for for long."""
        for session in self._sessions.values():
            self._finish(session)
        self._flush()
        self._writer.close(_CLOSE_TIME)

    # --------------------------------------------------------------------------- what the relay tells

    def exec_opened(self, stream: int, params: Control) -> None:
        """A client asked for a command."""
        session = self._sessions[stream] = _Session(f"{self._start}-{stream}")
        argv, cut = _argv(params.get("argv"))
        details: dict[str, Any] = {"argv": argv}
        if cut:
            details["cut"] = True
        for name in ("user", "cwd"):
            value = params.get(name)
            if value is not None:
                details[name] = _text(value)
        shown = shlex.join(argv) + (" ..." if cut else "")
        self.event("exec", f"exec: {shown}", session=session.name, details=details)

    def exec_started(self, stream: int, body: Control) -> None:
        """The command runs."""
        pid = body.get("pid")
        if type(pid) is int:
            self._sessions[stream].pid = pid

    def exec_output(self, stream: int, channel: int, data: bytes) -> None:
        """The command has printed something."""
        session = self._sessions[stream]
        last = self._pieces[-1] if self._pieces else None
        if last is None:
            self._schedule()
        if (
            last is not None
            and last.session is session
            and last.channel == channel
            and last.size + len(data) <= PIECE
        ):
            last.parts.append(data)
            last.size += len(data)
        else:
            self._pieces.append(_Piece(session, channel, data))
        self._held += len(data)
        if self._held >= BATCH:
            self._flush()

    def exec_ended(self, stream: int, body: Control) -> None:
        """The command has ended, or was never started."""
        session = self._sessions.pop(stream)
        self._finish(session)
        error = body.get("error")
        if isinstance(error, dict):
            kind, message = _text(error.get("kind")), _text(error.get("message"))
            self.event(
                "failed",
                f"exec failed: {kind}: {message}",
                session=session.name,
                details={"kind": kind, "message": message},
            )
            return
        details: dict[str, int | bool] = {} if session.pid is None else {"pid": session.pid}
        for name in ("code", "signal", "timed_out", "oom_killed"):
            value = body.get(name)
            if isinstance(value, int) and value is not False:
                details[name] = value
        how = f"signal {details['signal']}" if "signal" in details else f"exit code {details.get('code')}"
        how += ", timed out" if "timed_out" in details else ""
        how += ", out of memory" if "oom_killed" in details else ""
        self.event("exit", f"exec ended: {how}", session=session.name, details=details)

    # ------------------------------------------------------------------------------------------ batches

    def _schedule(self) -> None:
        if not self._due:
            self._due = True
            self._server.call_later(DELAY, self._on_due)

    def _on_due(self) -> None:
        self._due = False
        self._flush()

    def _flush(self) -> None:
        self._encode()
        if self._lines:
            self._writer.write(self._lines, self._sizes)
            self._lines, self._sizes = [], []

    def _add(self, line: bytes, size: int) -> None:
        self._lines.append(line)
        self._sizes.append(size)

    def _encode(self) -> None:
        """Make lines of the pieces, each less a character that is torn at its end."""
        pieces, self._pieces, self._held = self._pieces, [], 0
        for piece in pieces:
            torn = piece.session.torn.pop(piece.channel, b"")
            if torn:
                piece.parts.insert(0, torn)
            data = piece.parts[0] if len(piece.parts) == 1 else b"".join(piece.parts)
            try:
                _, used = utf_8_decode(data, "strict", False)
                text = True
            except UnicodeDecodeError:
                text, used = False, len(data)
            if used < len(data):
                piece.session.torn[piece.channel] = data[used:]
                data = data[:used]
            if data:
                self._output(piece.time_ns, piece.session, piece.channel, data, text=text)

    def _output(self, time_ns: int, session: _Session, channel: int, data: bytes, *, text: bool) -> None:
        line = encode_output(time_ns, _SOURCES[channel], session.name, session.pid, data, text=text)
        self._add(line, len(data))

    def _finish(self, session: _Session) -> None:
        """Record what a character that was never completed has left."""
        self._encode()
        for channel, rest in session.torn.items():
            self._output(time.time_ns(), session, channel, rest, text=False)


def _argv(value: object) -> tuple[list[str], bool]:
    """A command line as text, no more than `_SHOWN` bytes of it, and whether something was cut off."""
    left = _SHOWN
    found: list[str] = []
    for argument in value if isinstance(value, list) else []:
        if left <= 0:
            return found, True
        text = argument[:left].decode(errors="surrogateescape") if isinstance(argument, bytes) else ""
        found.append(text)
        if isinstance(argument, bytes) and len(argument) > left:
            return found, True
        left -= len(argument) + 1 if isinstance(argument, bytes) else 1
    return found, False


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value[:_SHOWN].decode(errors="surrogateescape")
    return str(value)[:_SHOWN]
