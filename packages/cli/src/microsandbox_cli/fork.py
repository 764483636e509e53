"""`msb fork`: new sandboxes that go on where another one is."""

from __future__ import annotations

from microsandbox.handle import SandboxHandle
from microsandbox.sandbox import Sandbox

from microsandbox_cli.attached import run_in_loop
from microsandbox_cli.listing import human_size, print_json, print_names, print_table


def fork(source: str, name: str, count: int | None, *, quiet: bool, format: str) -> None:
    """Make them and print what it took."""

    async def main() -> int:
        handle = await SandboxHandle.get(source)
        made = [await handle.fork(name)] if count is None else await handle.fork(name, count=count)
        if format == "json":
            print_json([_as_json(sandbox) for sandbox in made])
        elif quiet:
            print_names([sandbox.name for sandbox in made])
        else:
            print_table(("NAME", "FROM", "PAUSED", "MEMORY", "DISK"), [_row(sandbox) for sandbox in made])
        for sandbox in made:
            await sandbox.detach()
        return 0

    run_in_loop(main)


def _row(sandbox: Sandbox) -> tuple[str, ...]:
    cost = sandbox.forked
    assert cost is not None
    pause = f"{cost.pause * 1e3:.0f} ms"
    return (sandbox.name, cost.source, pause, human_size(cost.memory), human_size(cost.upper))


def _as_json(sandbox: Sandbox) -> dict[str, object]:
    """What a fork was; the names are documented in docs/fork.md and do not change."""
    cost = sandbox.forked
    assert cost is not None
    return {
        "id": sandbox.id,
        "name": sandbox.name,
        "source": cost.source,
        "pause_ms": round(cost.pause * 1e3, 1),
        "memory_bytes": cost.memory,
        "upper_bytes": cost.upper,
    }
