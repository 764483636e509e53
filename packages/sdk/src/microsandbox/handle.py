"""A sandbox by its name, whatever it is doing: for who starts, stops, watches and removes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self, Unpack

from microsandbox_core import env as environment
from microsandbox_core.agent import AgentClient
from microsandbox_core.channel import ChannelError

from microsandbox import _create, _ending, _life, info
from microsandbox._config import parse_duration
from microsandbox._directory import SandboxDirectory
from microsandbox._state import Record
from microsandbox.errors import NotRunning, SandboxNotFound
from microsandbox.info import End, SandboxDetails, SandboxInfo, Status

if TYPE_CHECKING:
    from microsandbox.logs import LogLine
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
    async def list(cls, labels: Sequence[str] = ()) -> list[Self]:
        """Every sandbox, oldest first. `labels`: those with all of these, each ``KEY`` or ``KEY=VALUE``."""
        from microsandbox._config import selects

        home = environment.home()
        found = await asyncio.to_thread(_create.reconcile, home)
        return [cls(home, record) for record, _ in found if selects(labels, record.labels)]

    @property
    def id(self) -> str:
        """Sixteen hex digits that no other sandbox has."""
        return self._record.id

    @property
    def name(self) -> str:
        """Its name."""
        return self._record.name

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

    async def inspect(self) -> SandboxDetails:
        """Everything that is known about it. Raises `SandboxNotFound`."""
        return await asyncio.to_thread(info.inspect, self._home, self.id)

    def logs(self, **wanted: Unpack[LogOptions]) -> AsyncIterator[LogLine]:
        """The lines that its commands have printed, oldest first; see `Sandbox.logs_of`."""
        from microsandbox.sandbox import Sandbox

        return Sandbox.logs_of(self.id, **wanted)

    async def connect(self) -> Sandbox:
        """A connection to it. Raises `NotRunning`."""
        from microsandbox.sandbox import Sandbox

        return await Sandbox.get(self.id)

    async def start(self, *, detached: bool = True, cold: bool = False) -> Sandbox:
        """Start it. Raises `SandboxNotFound`, `StillRunning` when it is active, `StartError`."""
        from microsandbox.sandbox import Sandbox

        return await Sandbox.start(self.id, detached=detached, cold=cold)

    async def stop(self, timeout: float | str = DEFAULT_GRACE) -> None:
        """SIGTERM to every process, SIGKILL after `timeout` seconds, disk written out, off.

        What does not go along with that is killed five seconds later, one that is still starting at once.
        Does nothing if it does not run.
        """
        await _ending.stop(self._directory, parse_duration(timeout, "timeout"))
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
        """Wait until it does not run; why that is, None if it has never run or is not there any more."""
        await _ending.wait(self._directory)
        return info.end_of(await asyncio.to_thread(_life.look, self._directory))

    async def ping(self) -> float:
        """Seconds that its agent took to answer. Raises `NotRunning`."""
        try:
            async with await AgentClient.connect(self._directory.socket) as client:
                return await client.ping()
        except (ChannelError, OSError) as error:
            status = await asyncio.to_thread(lambda: self.status)
            raise NotRunning(
                f"the sandbox {self.name!r} does not answer: it is {status}",
                hint=f"msb inspect {self.name} shows why"
                if status.active
                else f"start it: msb start {self.name}",
            ) from error

    async def _clean_up(self) -> None:
        """An ephemeral one removes itself, if its supervisor still could."""
        if self._record.ephemeral and self.exists:
            try:
                await self.remove()
            except SandboxNotFound:
                pass  # that is what was wanted
