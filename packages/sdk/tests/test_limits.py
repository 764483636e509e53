"""When a sandbox's time is up: decided by a clock that nobody sets, and by what clients do."""

from __future__ import annotations

import heapq
import socket
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
        self.paused = False
        self.stopped: list[tuple[float, str, str]] = []
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        monkeypatch.setattr(_limits, "monotonic", lambda: self.now)
        _limits.watch_limits(
            cast(RelayServer, self),
            cast(Relay, self),
            max_duration,
            idle,
            lambda limit, reason: self.stopped.append((self.now - 1000, limit, reason)),
            lambda: self.paused,
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


def test_setting_the_hosts_clock_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop's timers and the limits are by CLOCK_MONOTONIC; the wall clock may go where it wants."""
    # Of the whole process, as the real ones are: the loop reads the second.

    wall, monotonic = 1e9, 1000.0
    monkeypatch.setattr("time.time", lambda: wall)
    monkeypatch.setattr("time.monotonic", lambda: monotonic)
    monkeypatch.setattr(_limits, "monotonic", lambda: monotonic)
    relay = Relay()
    relay.active_at = monotonic
    stopped: list[str] = []
    pairs = [socket.socketpair() for _ in range(2)]
    server = RelayServer(relay, pairs[0][0], pairs[1][0])
    try:
        _limits.watch_limits(server, relay, 300.0, 30.0, lambda limit, reason: stopped.append(limit))
        for wall in (0.0, 2e9, 1e9):  # noqa: B007 - read by the clock above
            # A wake-up for nothing, as by a signal: a `select` that waits is not what is tried here.
            monkeypatch.setattr(server._selector, "select", lambda timeout: [])
            server._turn()
        assert stopped == []
        monotonic += 31
        server._turn()  # due, and looks once more at what has come meanwhile
        monotonic += 1
        server._turn()
        assert stopped == ["idle_timeout"]
    finally:
        server._close()
        for pair in pairs:
            pair[1].close()


def test_what_is_paused_is_not_idle_but_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, None, 10.0)
    world.paused = True
    world.until(95)
    world.paused = False
    world.active()
    world.until(104)
    assert world.stopped == []
    world.until(106)
    assert [limit for _, limit, _ in world.stopped] == ["idle_timeout"]
    paused = World(monkeypatch, 20.0, None)
    paused.paused = True
    paused.until(21)
    assert [limit for _, limit, _ in paused.stopped] == ["max_duration"]
