"""A sandbox by its name, whatever it is doing: for who starts, stops, watches and removes."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self, Unpack, overload

from microsandbox_core import env as environment
from microsandbox_core.agent import AgentClient
from microsandbox_core.channel import ChannelError

from microsandbox import _create, _ending, _life, info
from microsandbox._config import SandboxConfig, label_terms, parse_grace, selects
from microsandbox._directory import SandboxDirectory
from microsandbox._ping import unanswered
from microsandbox._state import Record
from microsandbox.errors import SandboxNotFound
from microsandbox.info import End, SandboxDetails, SandboxInfo, Status

if TYPE_CHECKING:
    from microsandbox.audit import AuditChoice, AuditRecord
    from microsandbox.logs import LogLine
    from microsandbox.metrics import SandboxMetrics
    from microsandbox.modify import Modifications, ModifyPlan
    from microsandbox.network import NetworkPolicy
    from microsandbox.sandbox import LogOptions, Sandbox

DEFAULT_GRACE = 10.0
"""Seconds that the processes of a sandbox get to end by themselves when it is stopped."""


class SandboxHandle:
    """A sandbox without a connection to it. Make one with `get` or `list`.

    It means this very sandbox: when another one gets its name, the handle's methods raise `SandboxNotFound`.
    """

    def __init__(self, home: Path, record: Record) -> None:
        self._home = home
        self._record = record
        self._directory = SandboxDirectory(home, record.id)

    @classmethod
    async def get(cls, name: str) -> Self:
        """The sandbox of this name or id. Raises `SandboxNotFound`."""
        home = environment.home()
        return cls(home, await asyncio.to_thread(_create.find, home, name))

    @classmethod
    async def list(cls, labels: Mapping[str, str] | Sequence[str] = ()) -> list[Self]:
        """Every sandbox, oldest first. `labels`: those with all of these, as for `Sandbox.list`."""
        terms = label_terms(labels)
        home = environment.home()
        found = await asyncio.to_thread(_create.reconcile, home)
        return [cls(home, record) for record, _ in found if selects(terms, record.labels)]

    @property
    def id(self) -> str:
        """Sixteen hex digits that no other sandbox has."""
        return self._record.id

    @property
    def name(self) -> str:
        """Its name."""
        return self._record.name

    @property
    def image(self) -> str:
        """The image, as it was asked for."""
        return self._record.image

    @property
    def ephemeral(self) -> bool:
        """Whether it is removed when it stops."""
        return self._record.ephemeral

    @property
    def created_at(self) -> datetime:
        """When it was created."""
        return datetime.fromtimestamp(self._record.created_ns / 1e9, tz=UTC)

    @property
    def labels(self) -> dict[str, str]:
        """Its labels, as they were when this handle was made, refreshed, or changed them."""
        return dict(self._record.labels)

    @property
    def isolation(self) -> str | None:
        """``kvm`` or ``emulated``: what it got at its last start; None if it never came up."""
        life = _life.read(self._directory)
        return None if life is None else life.isolation

    @property
    def status(self) -> Status:
        """What it is doing now."""
        return _life.look(self._directory).status

    @property
    def exists(self) -> bool:
        """Whether it has not been removed."""
        return self._directory.path.exists()

    async def info(self) -> SandboxInfo:
        """What a listing shows of it, now."""
        seen = await asyncio.to_thread(_life.look, self._directory)
        return info.info_of(self._record, seen)

    async def config(self) -> SandboxConfig:
        """What it was asked to be, now. Raises `SandboxNotFound`."""
        return SandboxConfig.unpack((await self.refresh())._record.config)

    async def refresh(self) -> Self:
        """Read again what others may have changed: `labels` and `config`. Raises `SandboxNotFound`."""
        self._record = await asyncio.to_thread(_create.find, self._home, self.id)
        return self

    async def modify(self, *, dry_run: bool = False, **changes: Unpack[Modifications]) -> ModifyPlan:
        """Change what it was asked to be; see `Sandbox.modify`. Raises `ConfigError`, `SandboxNotFound`."""
        from microsandbox.modify import modify

        self._record, plan = await asyncio.to_thread(
            partial(modify, self._home, self.id, changes, dry_run=dry_run)
        )
        return plan

    async def inspect(self) -> SandboxDetails:
        """Everything that is known about it. Raises `SandboxNotFound`."""
        return await asyncio.to_thread(info.inspect, self._home, self.id)

    def logs(self, **wanted: Unpack[LogOptions]) -> AsyncIterator[LogLine]:
        """The lines that its commands have printed, oldest first; see `Sandbox.logs_of`."""
        from microsandbox.sandbox import Sandbox

        return Sandbox.logs_of(self.id, **wanted)

    def audit(self, **wanted: Unpack[AuditChoice]) -> AsyncIterator[AuditRecord]:
        """What its network decided, oldest first; see `Sandbox.audit_of`."""
        from microsandbox.sandbox import Sandbox

        return Sandbox.audit_of(self.id, **wanted)

    async def update_network(self, policy: NetworkPolicy | str) -> None:
        """Have its network decide by another policy; see `Sandbox.update_network`. For one that does not run
        it counts at the next start. Raises `SandboxNotFound` besides."""
        from microsandbox._network_update import update

        self._record = await update(self._home, self._record, policy)

    async def connect(self) -> Sandbox:
        """A connection to it. Raises `NotRunning`."""
        from microsandbox.sandbox import Sandbox

        return await Sandbox.connect(self.id)

    async def start(self, *, detached: bool = True, cold: bool = False) -> Sandbox:
        """Start it. Raises `SandboxNotFound`, `StillRunning` when it is active, `StartError`."""
        from microsandbox.sandbox import Sandbox

        return await Sandbox.start(self.id, detached=detached, cold=cold)

    async def stop(self, timeout: float | str = DEFAULT_GRACE) -> None:
        """SIGTERM to every process, SIGKILL after `timeout` seconds, disk written out, off.

        What does not go along with that is killed five seconds later, one that is still starting at once.
        Does nothing if it does not run.
        """
        await _ending.stop(self._directory, parse_grace(timeout, "timeout"))
        await self._clean_up()

    async def kill(self) -> None:
        """End it at once, as if its power were cut. Does nothing if it does not run."""
        await _ending.kill(self._directory)
        await self._clean_up()

    async def restart(self, timeout: float | str = DEFAULT_GRACE, *, cold: bool = False) -> Sandbox:
        """`stop`, then `start`. Raises what `start` raises; `StillRunning` if somebody else was faster."""
        await self.stop(timeout)
        return await self.start(cold=cold)

    async def remove(self, *, force: bool = False) -> None:
        """Remove it and what it has written; `force`: end it first.

        Raises `SandboxNotFound`, `StillRunning`.
        """
        await _ending.remove(self._home, self._record, force=force)

    async def wait_until_stopped(self) -> End | None:
        """Wait until it does not run; why that is, None if it has never run or is not there any more.

        An ephemeral one leaves nothing to look at: of its command's end it tells who was there before that.
        Raises `SandboxNotFound` if it was gone, or about to be.
        """
        if self._record.ephemeral:
            from microsandbox import _departure

            return await _departure.wait(self._directory, self.name)
        await _ending.wait(self._directory)
        return info.end_of(await asyncio.to_thread(_life.look, self._directory))

    async def ping(self) -> float:
        """Seconds that its agent took to answer. Raises `NotRunning`."""
        try:
            async with await AgentClient.connect(self._directory.socket) as client:
                return await client.ping()
        except (ChannelError, OSError) as error:
            raise await asyncio.to_thread(unanswered, self._directory, self.name) from error

    async def touch(self) -> None:
        """Count as activity: its `idle_timeout` begins anew. Raises `NotRunning`."""
        await self.ping()

    async def metrics(self) -> SandboxMetrics:
        """What it uses. Raises `NotRunning`."""
        from microsandbox.metrics import Meter

        return await Meter(self._home).measure(self._record)

    async def pause(self) -> None:
        """Halt it until it is resumed; its memory stays where it is. Does nothing if it is paused.

        Raises `NotRunning`, `Unsupported`, `SandboxError`.
        """
        await self._ask("pause")

    async def resume(self) -> None:
        """Let it go on. Does nothing if it runs. Raises `NotRunning`, `SandboxError`."""
        await self._ask("resume")

    async def _ask(self, method: str) -> None:
        from microsandbox import _fork

        await _fork.ask(self._directory, self.name, method)

    @overload
    async def fork(self, name: str) -> Sandbox: ...

    @overload
    async def fork(self, name: str, *, count: int) -> builtins.list[Sandbox]: ...

    @overload
    async def fork(self, name: str, *, count: int | None = None) -> Sandbox | builtins.list[Sandbox]: ...

    async def fork(self, name: str, *, count: int | None = None) -> Sandbox | builtins.list[Sandbox]:
        """A new sandbox that goes on where this one is; see `Sandbox.fork`. If this one does not run the new
        one is started with a copy of its disk."""
        from microsandbox import _fork

        made = await _fork.fork(self._home, self._record, _fork.names_of(name, count))
        return made[0] if count is None else made

    async def _clean_up(self) -> None:
        """An ephemeral one removes itself, if its supervisor still could."""
        if self._record.ephemeral and self.exists:
            try:
                await self.remove()
            except SandboxNotFound:
                pass  # that is what was wanted
