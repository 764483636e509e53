"""What running sandboxes use: measured on the host, and besides as their guests say it.

What is read on the host is authoritative, and so is what the supervisor has counted of the network. What a
guest says (`GuestMetrics`) is checked against what is possible and kept apart: a hostile guest may say
anything that is possible. See docs/metrics.md.
"""

from __future__ import annotations

import asyncio
import os
import select
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from microsandbox_core import env as environment
from microsandbox_core.agent import AgentClient
from microsandbox_core.channel import ChannelError, RequestFailed

from microsandbox import _config, _create, _life
from microsandbox._directory import SandboxDirectory
from microsandbox._state import Record
from microsandbox._usage import ProcessUsage, seconds_since_start, usage_of
from microsandbox.errors import NotRunning
from microsandbox.host_limits import HostLimits, host_limits
from microsandbox.info import Status
from microsandbox.network_metrics import NetworkMetrics, network_metrics

__all__ = [
    "GuestMetrics", "HostLimits", "NetworkMetrics", "ProcessUsage", "SandboxMetrics", "all_sandbox_metrics",
]  # fmt: skip

GUEST_TIME = 2.0
"""Seconds that a guest has for its answer. Without one the host's figures are there all the same."""

DEFAULT_INTERVAL = 1.0
"""Seconds between two measurements of a stream."""

_ERROR_LIMIT = 300  # characters, some of which may be the guest's

_AT_ONCE = 32  # guests that are asked at a time: each has a connection

_COUNT_LIMIT = 1 << 63  # of bytes that have passed a disk
_TASK_LIMIT = 1 << 22  # PID_MAX_LIMIT, include/linux/threads.h


class GuestMetrics(NamedTuple):
    """What the guest says. Bytes, but for `execs`, the commands and file operations under way, and `tasks`,
    the processes and threads of its workload. None: not said, or not possible.

    `memory_available`: what could be given to programs. `upper_total` and `upper_used`: of the file system
    that all it writes is in. `disk_read` and `disk_written`: what passed its disks, the template's part of it
    included.
    """

    memory_total: int | None = None
    memory_available: int | None = None
    upper_total: int | None = None
    upper_used: int | None = None
    disk_read: int | None = None
    disk_written: int | None = None
    execs: int | None = None
    tasks: int | None = None

    @property
    def memory_used(self) -> int | None:
        """Bytes that could not be given to programs."""
        if self.memory_total is None or self.memory_available is None:
            return None
        return self.memory_total - self.memory_available


class SandboxMetrics(NamedTuple):
    """What one running sandbox uses. Sizes are bytes, times seconds.

    `uptime`: since its supervisor was started; goes on while the host is suspended. `cpu_percent`: processor
    time of VMM and supervisor since the measurement before, 100 being one processor; None in a first one.
    `memory`: what the guest was given. `upper_allocated`: what the writable disk takes on the host, of the
    `upper_size` that it may. `network`: None where nothing could pass when it was started, or the supervisor
    does not answer. `host_limits`: None where the host sets none. `guest`: what the guest says, None with the
    reason in `guest_error`.
    """

    id: str
    name: str
    image: str
    isolation: str | None
    taken_at: datetime
    uptime: float
    cpus: int
    memory: int
    cpu_percent: float | None
    vmm: ProcessUsage
    supervisor: ProcessUsage
    upper_allocated: int | None
    upper_size: int | None
    network: NetworkMetrics | None
    host_limits: HostLimits | None
    guest: GuestMetrics | None
    guest_error: str | None

    @property
    def cpu_seconds(self) -> float:
        """Processor time that VMM and supervisor have used."""
        return self.vmm.cpu_seconds + self.supervisor.cpu_seconds

    @property
    def host_memory(self) -> int | None:
        """Proportional set size of VMM and supervisor; None where this user may not know it."""
        if self.vmm.pss is None or self.supervisor.pss is None:
            return None
        return self.vmm.pss + self.supervisor.pss


class Meter:
    """Measures sandboxes again and again, and so knows what they used in between."""

    def __init__(self, home: Path) -> None:
        self._home = home
        # By life, not by sandbox: a supervisor's pid and start.
        self._before: dict[tuple[str, int, int], tuple[float, float]] = {}

    async def measure_all(self, *, guests: bool = True) -> list[SandboxMetrics]:
        """Those that run, oldest first. Without `guests` none of them is asked, and no supervisor either."""
        found = await asyncio.to_thread(_create.reconcile, self._home)
        records = [
            record for record, seen in found if seen.status.active and seen.status is not Status.STARTING
        ]
        known = {record.id for record in records}
        self._before = {key: value for key, value in self._before.items() if key[0] in known}
        turns = asyncio.Semaphore(_AT_ONCE)

        async def one(record: Record) -> SandboxMetrics | None:
            async with turns:
                try:
                    return await self.measure(record, guest=guests)
                except NotRunning:
                    return None  # it has ended since it was listed

        measured = await asyncio.gather(*(one(record) for record in records))
        return [metrics for metrics in measured if metrics is not None]

    async def measure_named(self, name: str, *, guest: bool = True) -> SandboxMetrics:
        """The sandbox of this name or id. Raises `SandboxNotFound`, `NotRunning`."""
        return await self.measure(await asyncio.to_thread(_create.find, self._home, name), guest=guest)

    async def measure(
        self, record: Record, client: AgentClient | None = None, *, guest: bool = True
    ) -> SandboxMetrics:
        """One sandbox; `client`: a connection to it. Raises `NotRunning`."""
        directory = SandboxDirectory(self._home, record.id)
        config = _config.SandboxConfig.unpack(record.config)
        # The host first, so that what the answer costs is not in the time that is measured last.
        metrics = await asyncio.to_thread(self._on_host, record, config, directory)
        if not guest:
            return metrics
        network, said, error = await _ask(directory, client)
        metrics = metrics._replace(network=network, guest_error=error)
        if said is None:
            return metrics
        return metrics._replace(guest=guest_metrics(said, metrics.memory, metrics.upper_size))

    def _on_host(
        self, record: Record, config: _config.SandboxConfig, directory: SandboxDirectory
    ) -> SandboxMetrics:
        life = _life.read(directory)
        pidfd = None if life is None else _life.open_supervisor(life)
        if life is None or pidfd is None:
            raise _not_running(record, directory)
        try:
            supervisor = usage_of(life.pid)
            vmm = usage_of(life.vmm_pid, parent=life.pid)
            uptime = seconds_since_start(life.pid)
            clock = time.monotonic()
            if supervisor is None or vmm is None or uptime is None or not _lives(pidfd):
                raise _not_running(record, directory)
        finally:
            os.close(pidfd)
        used = vmm.cpu_seconds + supervisor.cpu_seconds
        key = (record.id, life.pid, life.ticks)
        before = self._before.get(key)
        self._before[key] = (clock, used)
        percent = None
        if before is not None and clock > before[0]:
            percent = max(0.0, 100 * (used - before[1]) / (clock - before[0]))
        try:
            upper = directory.upper.stat()
        except OSError:
            upper = None
        return SandboxMetrics(
            id=record.id,
            name=record.name,
            image=record.image,
            isolation=life.isolation,
            taken_at=datetime.now(UTC),
            uptime=uptime,
            cpus=life.cpus or config.cpus,
            memory=(life.memory_mib or config.memory_mib) << 20,
            cpu_percent=percent,
            vmm=vmm,
            supervisor=supervisor,
            upper_allocated=None if upper is None else upper.st_blocks * 512,
            upper_size=None if upper is None else upper.st_size,
            network=None,
            host_limits=host_limits(directory),
            guest=None,
            guest_error=None,
        )


async def all_sandbox_metrics() -> list[SandboxMetrics]:
    """Every sandbox that runs, oldest first, measured once."""
    return await Meter(environment.home()).measure_all()


async def stream(
    home: Path, record: Record, interval: float, client: AgentClient | None = None
) -> AsyncGenerator[SandboxMetrics, None]:
    """One sandbox, every `interval` seconds, until it has stopped."""
    meter = Meter(home)
    while True:
        begun = time.monotonic()
        try:
            measured = await meter.measure(record, client)
        except NotRunning:
            return
        yield measured
        await asyncio.sleep(max(0.0, begun + interval - time.monotonic()))


def guest_metrics(said: Mapping[str, Any], memory: int, upper: int | None) -> GuestMetrics:
    """What a guest says, as far as it is possible: `memory` and `upper` are the bytes that it was given."""

    def number(key: str, limit: int | None) -> int | None:
        value = said.get(key)
        if type(value) is not int or limit is None or not 0 <= value <= limit:
            return None
        return value

    memory_total = number("memory_total", memory)
    upper_total = number("upper_total", upper)
    return GuestMetrics(
        memory_total=memory_total,
        memory_available=number("memory_available", memory_total),
        upper_total=upper_total,
        upper_used=number("upper_used", upper_total),
        disk_read=number("disk_read", _COUNT_LIMIT),
        disk_written=number("disk_written", _COUNT_LIMIT),
        execs=number("execs", _TASK_LIMIT),
        tasks=number("tasks", _TASK_LIMIT),
    )


async def _ask(
    directory: SandboxDirectory, client: AgentClient | None
) -> tuple[NetworkMetrics | None, Mapping[str, Any] | None, str | None]:
    """What the supervisor has counted, and what the guest says, or why it says nothing."""
    network = None
    try:
        async with asyncio.timeout(GUEST_TIME), AsyncExitStack() as own:
            if client is None:
                client = await AgentClient.connect(directory.socket, timeout=GUEST_TIME)
                await own.enter_async_context(client)
            # The supervisor first: it answers at once, whatever the guest does.
            with suppress(RequestFailed):
                network = network_metrics(await client.request("network.metrics"))
            return network, await client.request("metrics"), None
    except TimeoutError:
        return network, None, f"the guest did not answer within {GUEST_TIME:g} s"
    except (ChannelError, OSError) as error:
        return network, None, f"the guest was not reached: {error}"[:_ERROR_LIMIT]


def _lives(pidfd: int) -> bool:
    # Not select(), which takes only small descriptors.
    ended = select.poll()
    ended.register(pidfd, select.POLLIN)
    return not ended.poll(0)


def _not_running(record: Record, directory: SandboxDirectory) -> NotRunning:
    status = _life.look(directory).status
    hint = f"msb inspect {record.name} shows why" if status.active else f"start it: msb start {record.name}"
    return NotRunning(f"the sandbox {record.name!r} has no metrics: it is {status}", hint=hint)
