"""Commands that their clients have left: what a relay keeps of them for clients that ask for them later."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import time_ns
from typing import Final

from .channel import Control, Value

SCROLL: Final = 16 << 10
"""Bytes of the end of each output that are kept while nobody is joined."""

ENDED_KEPT: Final = 100
"""Commands of which it is remembered how they ended."""


class Left:
    """One such command. `about`: what is told of it. `since_ns`: when its client left, in nanoseconds since
    the epoch. `input`: what was typed and the guest has not allowed yet; an empty piece is the end of it."""

    __slots__ = ("_debt", "_scroll", "about", "input", "input_closed", "input_ended", "since_ns")

    def __init__(self, about: Control) -> None:
        self.about = about
        self.since_ns = time_ns()
        self.input: deque[bytes] = deque()
        self.input_closed = False
        """Whether the program has closed its standard input."""
        self.input_ended = False
        """Whether a client has said that nothing more comes."""
        self._scroll: dict[int, bytearray] = {}
        # Bytes that the client that is joined may send beyond what the guest has allowed.
        self._debt = 0

    def keep(self, channel: int, data: bytes) -> None:
        """Keep what was printed, or the end of it."""
        kept = self._scroll.setdefault(channel, bytearray())
        kept += data
        del kept[: max(0, len(kept) - SCROLL)]

    def join(self, debt: int) -> list[Value]:
        """Somebody joins who may send `debt` bytes more than the guest has allowed. Returns what was kept, as
        `[channel, data]`, which OPENED has room for."""
        self._debt = max(0, debt)
        kept, self._scroll = self._scroll, {}
        return [[channel, bytes(data)] for channel, data in kept.items()]

    def part(self) -> None:
        """He leaves: what the guest has not allowed of his input by now the program never gets."""
        self.input.clear()
        self._debt = 0
        self.since_ns = time_ns()

    def pay(self, amount: int) -> int:
        """The guest allows `amount` bytes more; how many of them the client may be allowed."""
        paid = min(amount, self._debt)
        self._debt -= paid
        return amount - paid

    def take(self, count: int) -> None:
        """The first `count` bytes of the first piece of `input` are on their way."""
        rest = self.input[0][count:]
        if rest:
            self.input[0] = rest
        else:
            self.input.popleft()


class Outcomes:
    """How the last of such commands ended, and who waits for the end of one.

    `ended`: what is told of them, in the order of their ends; `outcome` is how.
    """

    __slots__ = ("_waiting", "ended")

    def __init__(self) -> None:
        self.ended: deque[Control] = deque(maxlen=ENDED_KEPT)
        # By client and its stream: the number of the command, None for the main one, and whom to tell.
        self._waiting: dict[tuple[int, int], tuple[int | None, Callable[[Control], None]]] = {}

    def find(self, session: int) -> Value:
        """How a command ended; None if that is not known."""
        return next((told["outcome"] for told in self.ended if told["session"] == session), None)

    def wait(self, client: int, stream: int, session: int | None, answer: Callable[[Control], None]) -> None:
        """Have `answer` called with the end of a command, unless `forget` comes first."""
        self._waiting[client, stream] = session, answer

    def tell(self, session: int | None, outcome: Control) -> None:
        """A command has ended: whoever waits for it is told."""
        for key, (wanted, answer) in tuple(self._waiting.items()):
            if wanted == session:
                del self._waiting[key]
                answer(outcome)

    def forget(self, client: int, stream: int | None = None) -> bool:
        """A client does not wait any more, on one stream or on any; whether it did."""
        found = [key for key in self._waiting if key[0] == client and stream in (None, key[1])]
        for key in found:
            del self._waiting[key]
        return bool(found)
