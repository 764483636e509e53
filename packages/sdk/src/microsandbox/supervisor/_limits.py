"""Ends a sandbox when its time is up, or when nothing has happened in it for a time.

Time is CLOCK_MONOTONIC, as in the whole loop: setting the host's clock changes nothing, and while the host is
suspended no time passes, for the guest does not run then either.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from microsandbox_core.relay import Relay
from microsandbox_core.relay_server import RelayServer

from microsandbox._life import Cause

_SETTLE = 0.1
"""Seconds in which a supervisor that was held up itself can read what has come meanwhile."""

Stop = Callable[[Cause, str], None]
"""Called with the limit and a sentence."""


def watch_limits(
    server: RelayServer,
    relay: Relay,
    max_duration: float | None,
    idle_timeout: float | None,
    stop: Stop,
    is_paused: Callable[[], bool] = lambda: False,
) -> None:
    """Count from now, in seconds; None is no limit. `stop` may be called for both, one after the other.

    Idle is decided by what clients do, for a guest can claim anything: bytes that a client sends, and output
    that it is sent. Neither the supervisor's own questions count, nor that a connection or a command is open.
    Nor is it idle while it is paused: max_duration counts on, and idle_timeout anew when it is resumed.
    """
    if max_duration is not None:
        reason = f"it ran for its max-duration of {max_duration:g} s"
        server.call_later(max_duration, lambda: stop(Cause.MAX_DURATION, reason))
    if idle_timeout is not None:
        began = monotonic()
        limit = idle_timeout

        def look(*, settled: bool = False) -> None:
            left = max(began, relay.active_at) + limit - monotonic()
            if is_paused():
                server.call_later(limit, look)  # it counts anew from its end
            elif left > 0:
                server.call_later(left, look)
            elif not settled:
                server.call_later(_SETTLE, lambda: look(settled=True))
            else:
                stop(Cause.IDLE_TIMEOUT, f"idle for {limit:g} s")

        server.call_later(limit, look)
