"""Programs that were left to themselves, as a supervisor's relay tells of them."""

from __future__ import annotations

from typing import NamedTuple

from ..channel import RequestFailed, Value
from ._process import ExitStatus, status_of


class Session(NamedTuple):
    """One of them. `number` tells it from the others of its sandbox. `argv`: the first 512 bytes of it.
    `stdin`: whether it has an input to write to. `last`: the sandbox ends with it. `joined`: whether somebody
    is joined to it. `since_ns`: when it was left last, in nanoseconds since the epoch; `ended_ns` and
    `status`: when and how it ended, None while it runs."""

    number: int
    pid: int
    argv: tuple[bytes, ...]
    tty: bool
    stdin: bool
    last: bool
    joined: bool
    since_ns: int
    ended_ns: int | None = None
    status: ExitStatus | None = None


def read_session(value: Value) -> Session:
    """One of what `sessions` is answered with. Raises `RequestFailed`."""
    if isinstance(value, dict):
        number, pid, argv, since_ns = (value.get(key) for key in ("session", "pid", "argv", "since_ns"))
        if type(number) is int and type(pid) is int and type(since_ns) is int and isinstance(argv, list):
            words = tuple(word for word in argv if isinstance(word, bytes))
            tty, stdin, last, joined = (value.get(key) is True for key in ("tty", "stdin", "last", "joined"))
            outcome, ended_ns = value.get("outcome"), value.get("ended_ns")
            status = status_of(outcome) if isinstance(outcome, dict) else None
            return Session(
                number, pid, words, tty, stdin, last, joined, since_ns,
                ended_ns if type(ended_ns) is int else None, status,
            )  # fmt: skip
    raise RequestFailed("invalid_reply", "an answer to sessions that is none", None, {})
