"""What is done to a configured guest before its first command: patches to the root, then the image's init."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from microsandbox_core.channel import Ended
from microsandbox_core.errors import BootFailed
from microsandbox_core.relay import Relay
from microsandbox_core.relay_server import RelayServer

from microsandbox.patch import read_spool

STEP_DEADLINE = 60.0
"""Seconds for one step: half a megabyte is written, a tree removed, an init executed."""

Failure = Callable[[str, str, str | None], BootFailed]

_SYNC: Mapping[str, Any] = {"operation": "sync"}


def furnish(
    server: RelayServer,
    relay: Relay,
    spool: Path | None,
    init: Mapping[str, Any] | None,
    ready: Callable[[], None],
    failed: Failure,
) -> None:
    """Make the changes in `spool` and remove it, start `init`, then call `ready`; each if there is one.

    `failed` makes the error that ends the loop from a stage, what went wrong and a hint.
    """
    steps = _steps(spool, init)

    def go_on() -> None:
        step = next(steps, None)
        if step is None:
            ready()
            return
        method, name, params = step

        def late() -> None:
            raise failed(method, f"{name}: it was not done within {STEP_DEADLINE:.0f} s", _HINTS[method])

        def ended(event: Any) -> None:
            if not isinstance(event, Ended):
                return  # when the connection is over the loop ends with the reason
            deadline.cancel()
            error = event.body.get("error")
            if error is not None:
                told = error if isinstance(error, dict) else {}
                raise failed(method, f"{name}: {told.get('message')!s}", _HINTS[method])
            go_on()

        deadline = server.call_later(STEP_DEADLINE, late)
        relay.open(method, dict(params), ended)

    go_on()


_HINTS = {
    "patch": "nothing of the sandbox is kept: correct the patch, and create it again",
    "init": "name a program of the image: --init /sbin/init; --log-level debug shows the console",
}


def _steps(
    spool: Path | None, init: Mapping[str, Any] | None
) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Method, what it is about, and parameters of each request."""
    if spool is not None:
        for name, request in read_spool(spool):
            yield "patch", name, request
        # Without this a machine that is killed might come back without what is noted as done.
        yield "patch", "patches", _SYNC
        spool.unlink()
    if init is not None:
        path = init["path"]
        shown = "auto" if path is None else os.fsdecode(path)
        yield "init", f"init {shown}", init
