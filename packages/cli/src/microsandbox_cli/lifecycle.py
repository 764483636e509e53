"""`msb start`, `stop`, `restart`, `rm`, `wait` and `ping`: one verb, several sandboxes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import NoReturn

from microsandbox import _config, _create
from microsandbox._config import parse_duration
from microsandbox.errors import MicrosandboxError, SandboxNotFound
from microsandbox.handle import SandboxHandle
from microsandbox.info import Status
from microsandbox.sandbox import Sandbox
from microsandbox_core import env

from microsandbox_cli import report
from microsandbox_cli.attached import run_in_loop


def start(names: Sequence[str], *, label: Sequence[str], cold: bool) -> None:
    """Start stopped sandboxes."""

    async def one(name: str) -> str:
        sandbox = await Sandbox.start(name, cold=cold)
        await sandbox.detach()
        return sandbox.name

    _each(_chosen("start", names, label, lambda status: not status.active), one)


def stop(names: Sequence[str], *, label: Sequence[str], force: bool, timeout: str) -> None:
    """Stop sandboxes; one that has stopped already counts as stopped."""
    grace = parse_duration(timeout, "--timeout")

    async def one(name: str) -> str:
        handle = await SandboxHandle.get(name)
        await (handle.kill() if force else handle.stop(grace))
        return name

    _each(_chosen("stop", names, label), one)


def restart(names: Sequence[str], *, label: Sequence[str], timeout: str, cold: bool) -> None:
    """Stop sandboxes, if they run, and start them."""
    grace = parse_duration(timeout, "--timeout")

    async def one(name: str) -> str:
        sandbox = await (await SandboxHandle.get(name)).restart(grace, cold=cold)
        await sandbox.detach()
        return name

    _each(_chosen("restart", names, label), one)


def remove(names: Sequence[str], *, label: Sequence[str], force: bool) -> None:
    """Remove sandboxes."""

    async def one(name: str) -> str:
        try:
            await Sandbox.remove(name, force=force)
        except SandboxNotFound:
            if not force:
                raise
        return name

    _each(_chosen("rm", names, label), one)


def wait(names: Sequence[str], *, label: Sequence[str]) -> None:
    """Wait until sandboxes do not run, and print how each of them ended, in the order of their ends."""

    async def one(name: str) -> str:
        handle = await SandboxHandle.get(name)
        end = await handle.wait_until_stopped()
        if end is None:
            return f"{name}: {handle.status if handle.exists else 'removed'}"
        exited = "" if end.vmm_exit in (None, 0) else f" (VMM exit {end.vmm_exit})"
        return f"{name}: {handle.status}: {end.reason}{exited}"

    _each(_chosen("wait", names, label), one, at_once=True)


def ping(names: Sequence[str], *, label: Sequence[str]) -> None:
    """Print how long the agents of running sandboxes take to answer."""

    async def one(name: str) -> str:
        return f"{name}: {await (await SandboxHandle.get(name)).ping() * 1e3:.2f} ms"

    _each(_chosen("ping", names, label, lambda status: status is Status.RUNNING), one)


def _chosen(
    verb: str,
    names: Sequence[str],
    labels: Sequence[str],
    wanted: Callable[[Status], bool] = lambda status: True,
) -> list[str]:
    """The names, then those that have all of the labels and a status in which the verb does something."""
    if not names and not labels:
        report.error("no sandbox was named", f"msb {verb} NAME..., or msb {verb} --label KEY=VALUE")
        sys.exit(report.EXIT_USAGE)
    chosen = list(names)
    if labels:
        for record, seen in _create.reconcile(env.home()):
            if _config.selects(labels, record.labels) and wanted(seen.status):
                chosen.append(record.name)
    return list(dict.fromkeys(chosen))


def _each(
    names: Sequence[str], action: Callable[[str], Awaitable[str]], *, at_once: bool = False
) -> NoReturn:
    """Do it to every one and print what is said of it, go on after a failure, and exit 1 if there was one."""

    async def one(name: str) -> int:
        try:
            said = await action(name)
        except MicrosandboxError as failure:
            report.error(str(failure), failure.hint)
            return report.EXIT_FAILED
        sys.stdout.write(said + "\n")
        sys.stdout.flush()
        return 0

    async def main() -> int:
        if at_once:
            codes = await asyncio.gather(*(one(name) for name in names))
        else:
            codes = [await one(name) for name in names]
        return max(codes, default=0)

    run_in_loop(main)
