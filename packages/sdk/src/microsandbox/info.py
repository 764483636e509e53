"""Facts about sandboxes, found out without a connection to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from microsandbox import _config, _create, _life
from microsandbox._directory import SandboxDirectory
from microsandbox._life import Cause, Status
from microsandbox._state import Record

if TYPE_CHECKING:
    from microsandbox.host_limits import HostLimits
    from microsandbox.ports import PortBinding

__all__ = ["Cause", "End", "Failure", "SandboxDetails", "SandboxInfo", "Status", "inspect", "list_sandboxes"]


class SandboxInfo(NamedTuple):
    """A sandbox as a listing shows it.

    `since`: when it came into its status, None where nobody noted that. `isolation`: what it got at its
    last start, ``kvm`` or ``emulated``; None if it never came up. `command`: what is run in place of the
    image's command. The process ids are there while it is active. `ports`: those that are published while it
    runs. `exit_code`: that of the command that it was last started for, 128 + N after signal N, 124 if its
    time was up; None if there was none or it has not ended.
    """

    id: str
    name: str
    status: Status
    image: str
    image_digest: str
    ephemeral: bool
    created_at: datetime
    since: datetime | None
    cpus: int
    memory_mib: int
    isolation: str | None
    command: tuple[str, ...] | None
    labels: Mapping[str, str]
    supervisor_pid: int | None
    vmm_pid: int | None
    ports: tuple[PortBinding, ...] = ()
    exit_code: int | None = None


class End(NamedTuple):
    """Why a sandbox does not run any more. `vmm_exit`: the VMM's exit code, -N after signal N, None if it was
    not seen. `exit_code`: of the command that it was there for, as in `SandboxInfo`."""

    cause: Cause
    reason: str
    vmm_exit: int | None
    exit_code: int | None = None


class Failure(NamedTuple):
    """Why a start failed. `stage`: ``spawn``, ``boot`` or ``configure``, None if it was before these.
    `console`: the end of what the guest's kernel and the VMM printed, 4096 characters at most, none that
    control a terminal."""

    stage: str | None
    message: str
    hint: str | None
    console: str


class SandboxDetails(NamedTuple):
    """Everything that is known about a sandbox. `failure` is there when its last start failed. `upper_size`
    and `upper_allocated` are the bytes that the writable disk can hold and takes; `started_at` is when the
    last start began; `logs` is None for one that keeps no log, `host_limits` for one that is not active or
    has none."""

    info: SandboxInfo
    config: _config.SandboxConfig
    started_at: datetime | None
    end: End | None
    directory: Path
    upper: Path
    upper_size: int | None
    upper_allocated: int | None
    console_log: Path
    supervisor_log: Path
    logs: Path | None
    agent_socket: Path
    host_limits: HostLimits | None
    failure: Failure | None = None


def list_sandboxes(home: Path, labels: Sequence[str] = ()) -> list[SandboxInfo]:
    """Every sandbox, oldest first; repairs what a crash has left.

    `labels`: only those that have all of these, each a ``KEY`` or a ``KEY=VALUE``.
    """
    # Most are as most others are.
    configs: dict[bytes, _config.SandboxConfig] = {}
    found = []
    for record, seen in _create.reconcile(home):
        if _config.selects(labels, record.labels):
            config = configs.get(record.config)
            if config is None:
                config = configs[record.config] = _config.SandboxConfig.unpack(record.config)
            found.append(info_of(record, seen, config))
    return found


def inspect(home: Path, name: str) -> SandboxDetails:
    """All about one sandbox. Raises `SandboxNotFound`."""
    from microsandbox.host_limits import host_limits  # listings are made without it

    record = _create.find(home, name)
    directory = SandboxDirectory(home, record.id)
    seen = _life.look(directory)
    try:
        found = directory.upper.stat()
    except OSError:
        found = None
    return SandboxDetails(
        info=info_of(record, seen),
        config=_config.SandboxConfig.unpack(record.config),
        started_at=None if seen.life is None else _time(seen.life.started_ns),
        end=end_of(seen),
        directory=directory.path,
        upper=directory.upper,
        upper_size=None if found is None else found.st_size,
        upper_allocated=None if found is None else found.st_blocks * 512,
        console_log=directory.console_log,
        supervisor_log=directory.supervisor_log,
        logs=directory.logs if _create.is_logged(record) else None,
        agent_socket=directory.socket,
        host_limits=host_limits(directory) if seen.status.active else None,
        failure=_failure_of(seen),
    )


def info_of(record: Record, seen: _life.Seen, config: _config.SandboxConfig | None = None) -> SandboxInfo:
    """What a listing shows of a sandbox. `config`: the record's, if it has been unpacked."""
    if config is None:
        config = _config.SandboxConfig.unpack(record.config)
    life = seen.life
    if life is None:
        since = record.created_ns if seen.status is Status.CREATED else None
    else:
        # When a supervisor died that could not say so, nobody knows.
        since = None if seen.status is Status.CRASHED and life.goes_on else life.since_ns
    active = life if seen.status.active else None
    return SandboxInfo(
        id=record.id,
        name=record.name,
        status=seen.status,
        image=record.image,
        image_digest=record.image_digest,
        ephemeral=record.ephemeral,
        created_at=_time(record.created_ns),
        since=None if since is None else _time(since),
        cpus=config.cpus,
        memory_mib=config.memory_mib,
        isolation=None if life is None else life.isolation,
        command=_command(config),
        labels=dict(record.labels),
        supervisor_pid=(active and active.pid) or None,
        vmm_pid=(active and active.vmm_pid) or None,
        ports=_ports(config) if config.network.ports else (),
        exit_code=None if life is None else life.exit_code,
    )


def end_of(seen: _life.Seen) -> End | None:
    """Why it does not run; None if it does, or never did."""
    life = seen.life
    if life is None or seen.held:
        return None
    if life.goes_on:
        reason = f"the supervisor ended while the sandbox was {life.status}, without saying why"
        return End(Cause.SUPERVISOR_DIED, reason, None, life.exit_code)
    cause = Cause(life.cause or Cause.SUPERVISOR_DIED)
    return End(cause, life.reason or "not noted", life.vmm_exit, life.exit_code)


def _failure_of(seen: _life.Seen) -> Failure | None:
    life, end = seen.life, end_of(seen)
    if life is None or end is None or end.cause is not Cause.START_FAILED:
        return None
    return Failure(life.stage, end.reason, life.hint, life.console or "")


def _ports(config: _config.SandboxConfig) -> tuple[PortBinding, ...]:
    from microsandbox.ports import PortBinding  # most listings are made without it

    return tuple(
        PortBinding(outside, inside, protocol, host)
        for protocol, host, outside, inside in config.network.ports
    )


def _command(config: _config.SandboxConfig) -> tuple[str, ...] | None:
    if config.entrypoint is None and config.cmd is None:
        return None
    return (*(config.entrypoint or ()), *(config.cmd or ()))


def _time(nanoseconds: int) -> datetime:
    return datetime.fromtimestamp(nanoseconds / 1e9, tz=UTC)
