"""Changing what a sandbox was asked to be, and saying when that counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypedDict

from microsandbox import _config, _create, _life
from microsandbox._config import SandboxConfig
from microsandbox._directory import SandboxDirectory
from microsandbox._state import Record, State


class Modifications(TypedDict, total=False):
    """What `modify` can change, with the values of `Sandbox.create`; None sets it back to what holds if
    nothing is said. `env` and `labels` are replaced as a whole."""

    cpus: int
    memory: int | str
    workdir: str | None
    user: str | None
    hostname: str | None
    entrypoint: Sequence[str] | None
    cmd: Sequence[str] | None
    env: Mapping[str, str]
    labels: Mapping[str, str]
    require_kvm: bool
    cold: bool
    max_duration: float | str | None
    idle_timeout: float | str | None


class Applies(StrEnum):
    """When a change counts."""

    NOW = "now"
    """For commands: for those started from now on by who made the change, or who connects later."""
    NEXT_START = "next_start"
    """The sandbox is active, and goes on as it is until it is restarted."""


@dataclass(frozen=True, slots=True)
class Change:
    """One setting that is another one afterwards. `field` is the parameter of `modify`; `memory` is in MiB,
    times are in seconds."""

    field: str
    before: Any
    after: Any
    applies: Applies


@dataclass(frozen=True, slots=True)
class ModifyPlan:
    """What `modify` has changed, or would; `applied` says which. What has its value already is not in it."""

    changes: tuple[Change, ...]
    applied: bool

    @property
    def needs_restart(self) -> bool:
        """Whether something of it counts only after a restart."""
        return any(change.applies is Applies.NEXT_START for change in self.changes)


_LIVE = frozenset({"env", "workdir", "user", "entrypoint", "cmd", "labels"})
"""What the host looks at when it starts a command; the machine knows nothing of these."""


def _optional(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else check(value)


# The field of the configuration, and how its value is made of what was given.
_FIELDS: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "cpus": ("cpus", _config.parse_cpus),
    "memory": ("memory_mib", _config.parse_memory),
    "workdir": ("workdir", _optional(lambda value: _config.check_type(value, str, "workdir"))),
    "user": ("user", _optional(lambda value: _config.check_type(value, str, "user"))),
    "hostname": ("hostname", _optional(_config.check_hostname)),
    "entrypoint": ("entrypoint", _optional(lambda value: _config.check_arguments(value, "entrypoint"))),
    "cmd": ("cmd", _optional(lambda value: _config.check_arguments(value, "cmd"))),
    "env": ("env", _config.check_env),
    "require_kvm": ("require_kvm", lambda value: _config.check_type(value, bool, "require_kvm")),
    "cold": ("cold", lambda value: _config.check_type(value, bool, "cold")),
    "max_duration": ("max_duration", lambda value: _config.parse_limit(value, "max_duration")),
    "idle_timeout": ("idle_timeout", lambda value: _config.parse_limit(value, "idle_timeout")),
}


def plan(
    record: Record, wanted: Modifications, *, active: bool, dry_run: bool
) -> tuple[Record | None, ModifyPlan]:
    """What becomes of a record, None if nothing is to be changed, and what is said of that.

    Raises `ConfigError`, `TypeError`.
    """
    given: Mapping[str, Any] = {**wanted}
    unknown = sorted(given.keys() - _FIELDS.keys() - {"labels"})
    if unknown:
        raise TypeError(f"modify() cannot change {unknown[0]!r}")
    config = SandboxConfig.unpack(record.config)
    labels = _config.check_labels(given["labels"]) if "labels" in given else record.labels
    changes = []
    for name, value in given.items():
        if name == "labels":
            continue
        field, check = _FIELDS[name]
        before, after = getattr(config, field), check(value)
        if before != after:
            when = Applies.NEXT_START if active and name not in _LIVE else Applies.NOW
            old, new = (dict(before), dict(after)) if name == "env" else (before, after)
            changes.append(Change(name, old, new, when))
            config = config._replace(**{field: after})
    if labels != record.labels:
        changes.append(Change("labels", dict(record.labels), dict(labels), Applies.NOW))
    made = ModifyPlan(tuple(changes), applied=not dry_run)
    if dry_run or not changes:
        return None, made
    return record._replace(config=config.pack(), labels=labels), made


def modify(home: Path, identifier: str, wanted: Modifications, *, dry_run: bool) -> tuple[Record, ModifyPlan]:
    """Change the record of a sandbox; the record as it is then. Blocking.

    Raises `SandboxNotFound`, `ConfigError`, `TypeError`, `StateError`; then nothing is changed.
    """
    active = _life.look(SandboxDirectory(home, identifier)).status.active
    plans: list[ModifyPlan] = []

    def change(record: Record) -> Record | None:
        changed, made = plan(record, wanted, active=active, dry_run=dry_run)
        plans.append(made)
        return changed

    state = State(home)
    try:
        found = state.change(identifier, change)
    finally:
        state.close()
    if found is None:
        raise _create.not_found(identifier)
    return found, plans[-1]
