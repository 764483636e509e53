"""When a sandbox's time is up: decided by a clock that nobody sets, and by what clients do."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from microsandbox.supervisor import _limits
from microsandbox_core.relay import Relay
from microsandbox_core.relay_server import RelayServer


class World:
    """A relay and its loop in a time of their own."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, max_duration: float | None, idle: float | None
    ) -> None:
        self.now = 1000.0
        self.active_at = self.now
        self.stopped: list[tuple[float, str, str]] = []
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        monkeypatch.setattr(_limits, "monotonic", lambda: self.now)
        _limits.watch_limits(
            cast(RelayServer, self),
            cast(Relay, self),
            max_duration,
            idle,
            lambda limit, reason: self.stopped.append((self.now - 1000, limit, reason)),
        )

    def call_later(self, delay: float, callback: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.now + delay, len(self._due), callback))

    def until(self, moment: float, *, held_up: bool = False) -> None:
        """Let time pass; calls are made when they are due, or at the end if the process is held up."""
        moment += 1000
        if held_up:
            self.now = max(self.now, moment)
        while self._due and self._due[0][0] <= moment:
            when, _, callback = heapq.heappop(self._due)
            self.now = max(self.now, when)
            if not self.stopped:
                callback()
        self.now = max(self.now, moment)

    def active(self) -> None:
        self.active_at = self.now


def test_max_duration_counts_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, 300.0, None)
    world.until(299.9)
    world.active()
    assert world.stopped == []
    world.until(301)
    assert world.stopped == [(300, "max_duration", "it ran for its max-duration of 300 s")]


@given(st.lists(st.floats(0, 29.9), max_size=20))
def test_idle_counts_from_the_last_activity(pauses: list[float]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        world = World(monkeypatch, None, 30.0)
        now = 0.0
        for pause in pauses:
            now += pause
            world.until(now)
            world.active()
        assert world.stopped == []
        world.until(now + 31)
        ((when, limit, reason),) = world.stopped
        assert now + 30 <= when <= now + 30.2
        assert (limit, reason) == ("idle_timeout", "idle for 30 s")


def test_who_was_held_up_looks_at_what_has_come_before_it_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, None, 30.0)
    world.until(3600, held_up=True)
    assert world.stopped == []
    world.active()  # what waited in the sockets is read in the next turn
    world.until(3629)
    assert world.stopped == []
    world.until(3631)
    assert len(world.stopped) == 1


def test_without_limits_nothing_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, None, None)
    assert world._due == []
