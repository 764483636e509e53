"""What the host allows the processes of a sandbox: the limits of their control group, if they have one."""

from __future__ import annotations

from typing import NamedTuple

from microsandbox_core import cgroup

from microsandbox._directory import SandboxDirectory


class HostLimits(NamedTuple):
    """The limits of the control group in which VMM and supervisor are. `memory` in bytes, `cpus` in
    processors, `tasks` in processes and threads; None where that is not limited."""

    cgroup: str
    memory: int | None
    cpus: float | None
    tasks: int | None


def host_limits(directory: SandboxDirectory) -> HostLimits | None:
    """Those of a sandbox that is active; None where the host sets none."""
    group = directory.cgroup
    limits = None if group is None else cgroup.limits_of(group)
    return None if group is None or limits is None else HostLimits(group, *limits)
