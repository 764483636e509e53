"""The event loop of a command that waits for a sandbox: signals, exit codes."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Awaitable, Callable
from typing import NoReturn

from microsandbox._state import leave_open

from microsandbox_cli import report
from microsandbox_cli.loop import asyncio


def run_in_loop(main: Callable[[], Awaitable[int]]) -> NoReturn:
    """Run `main` in an event loop and exit with its code; 130 on Ctrl-C, 128+N on other signals."""
    leave_open()
    # What is there stays there, and what is still to be imported is no garbage either.
    gc.freeze()
    gc.set_threshold(20_000)
    gc.enable()
    with report.guarded(), _runner() as runner:
        runner.run(_run_and_exit(main))
    os._exit(report.EXIT_SANDBOX)


def _runner() -> asyncio.Runner:
    """What has an event loop. Without a descriptor left for one this process ends here."""
    runner = asyncio.Runner()
    try:
        runner.get_loop()
    except OSError as failed:
        report.error(*report.of_system(failed))
        # Not sys.exit(): half a loop complains when it is collected.
        os._exit(report.EXIT_SANDBOX)
    return runner


async def _run_and_exit(main: Callable[[], Awaitable[int]]) -> None:
    code = await _until_signal(main)
    sys.stdout.flush()
    # Not sys.exit(): a thread may be blocked in writing to a reader that does not read. And from here,
    # because nobody needs what the loop tidies up.
    os._exit(code)


async def _until_signal(main: Callable[[], Awaitable[int]]) -> int:
    """`main`, cancelled by the first signal; its clean-up is awaited, a second signal is not heard."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(main())
    received: list[int] = []

    def on_signal(number: int) -> None:
        if not received:
            received.append(number)
            task.cancel()

    for number in report.SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    report.release_signals()
    try:
        return await task
    except asyncio.CancelledError:
        if not received:
            raise
        return 128 + received[0]
