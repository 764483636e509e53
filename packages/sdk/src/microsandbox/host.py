"""What this machine has and lacks for sandboxes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from microsandbox_core import env as environment
from microsandbox_core.host.doctor import Check, Report

from microsandbox.errors import translated

__all__ = ["Check", "Report", "doctor", "setup"]


async def doctor() -> Report:
    """Look at everything a sandbox needs, and change nothing: `ready`, `isolation` (``kvm`` or
    ``emulated``), and `checks`, each with what was seen and the fix."""
    return await asyncio.to_thread(_examine)


async def setup(*, dry_run: bool = False, report: Callable[[str], None] | None = None) -> tuple[str, ...]:
    """Put in place what is missing: the names of the steps taken. `report` is told each step, on another
    thread; `dry_run`: say the steps and take none.

    Raises `StartError` with a command for root as its hint if only root may install what is missing.
    """
    return await asyncio.to_thread(_set_up, dry_run, report)


def _examine() -> Report:
    from microsandbox_core.host.doctor import examine

    with translated():
        return examine(environment.home())


def _set_up(dry_run: bool, report: Callable[[str], None] | None) -> tuple[str, ...]:
    from microsandbox_core.host.setup import plan, run

    with translated():
        return run(plan(environment.home()), dry_run=dry_run, report=report or _say_nothing)


def _say_nothing(_: str) -> None:
    pass
