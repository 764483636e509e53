"""`msb start`, `stop`, `rm`, `ls`."""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable, Sequence

from microsandbox import Sandbox
from microsandbox._config import parse_duration
from microsandbox.errors import MicrosandboxError, NotRunning, SandboxNotFound
from microsandbox.sandbox import SandboxInfo, Status
from microsandbox.sandbox import list_sandboxes as all_sandboxes
from microsandbox_core import env

from microsandbox_cli import report
from microsandbox_cli.attached import run_in_loop
from microsandbox_cli.listing import age, print_json, print_names, print_table


def start(name: str, *, cold: bool) -> None:
    """Start a stopped sandbox and print its name."""

    async def main() -> int:
        sandbox = await Sandbox.start(name, cold=cold)
        await sandbox.detach()
        sys.stdout.write(sandbox.name + "\n")
        return 0

    run_in_loop(main)


def stop(names: Sequence[str], *, force: bool, timeout: str) -> None:
    """Stop sandboxes; one that has stopped already counts as stopped."""
    grace = parse_duration(timeout, "--timeout")

    async def one(name: str) -> None:
        try:
            sandbox = await Sandbox.get(name)
        except NotRunning:
            return
        await (sandbox.kill() if force else sandbox.stop(grace))

    _each(names, one)


def remove(names: Sequence[str], *, force: bool) -> None:
    """Remove sandboxes."""

    async def one(name: str) -> None:
        try:
            await Sandbox.remove(name, force=force)
        except SandboxNotFound:
            if not force:
                raise

    _each(names, one)


def list_sandboxes(*, running: bool, quiet: bool, as_json: bool) -> None:
    """Print the sandboxes."""
    found = [info for info in all_sandboxes(env.home()) if not running or info.status is Status.RUNNING]
    if quiet:
        print_names([info.name for info in found])
    elif as_json:
        print_json([_plain(info) for info in found])
    else:
        now = time.time()
        print_table(
            ("NAME", "STATUS", "IMAGE", "CPUS", "MEMORY", "ISOLATION", "AGE"),
            [
                (
                    info.name,
                    info.status,
                    info.image,
                    str(info.cpus),
                    f"{info.memory_mib} MiB",
                    info.isolation or "-",
                    age(now - info.created_at.timestamp()),
                )
                for info in found
            ],
        )


def _each(names: Sequence[str], action: Callable[[str], Awaitable[None]]) -> None:
    """Do it to every one, go on after a failure, and exit 1 if there was one."""

    async def main() -> int:
        code = 0
        for name in names:
            try:
                await action(name)
                sys.stdout.write(name + "\n")
            except MicrosandboxError as failure:
                report.error(str(failure), failure.hint)
                code = report.EXIT_FAILED
        return code

    run_in_loop(main)


def _plain(info: SandboxInfo) -> dict[str, object]:
    return {
        "id": info.id,
        "name": info.name,
        "status": str(info.status),
        "image": info.image,
        "image_digest": info.image_digest,
        "ephemeral": info.ephemeral,
        "created_at": info.created_at.isoformat(),
        "cpus": info.cpus,
        "memory_mib": info.memory_mib,
        "isolation": info.isolation,
        "reason": info.reason,
    }
