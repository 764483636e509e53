"""`msb ls`, `ps` and `inspect`: what is known of sandboxes, without speaking to any.

Read without the parser where it is plain, so nothing is imported here that a listing does not need.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from microsandbox._config import SandboxConfig, Tmpfs
from microsandbox.info import SandboxDetails, SandboxInfo, Status, inspect, list_sandboxes
from microsandbox_core import env

from microsandbox_cli.listing import age, print_names, print_table

if TYPE_CHECKING:
    from microsandbox._config import SandboxConfig
    from microsandbox.ports import PortBinding


def list_all(
    *, running: bool = False, label: Sequence[str] = (), quiet: bool = False, format: str = "table"
) -> None:
    """Print the sandboxes with what they were made as."""
    gc.disable()  # it is over before anything of it is garbage
    found = list_sandboxes(env.home(), label)
    if running:
        found = [info for info in found if info.status is Status.RUNNING]
    _print(found, quiet=quiet, format=format, table=_as_made)


def list_active(
    *, all: bool = False, label: Sequence[str] = (), quiet: bool = False, format: str = "table"
) -> None:
    """Print the sandboxes that have a supervisor, or all, with what they are doing."""
    gc.disable()
    found = list_sandboxes(env.home(), label)
    _print([info for info in found if all or info.status.active], quiet=quiet, format=format, table=_at_work)


def inspect_all(names: Sequence[str], label: Sequence[str] = (), *, format: str = "json") -> None:
    """Print everything about these sandboxes as a JSON list. Go on after a failure, and exit 1 then."""
    import sys

    from microsandbox.errors import MicrosandboxError

    from microsandbox_cli import report
    from microsandbox_cli.chosen import chosen
    from microsandbox_cli.listing import print_json

    found, failed = [], False
    for name in chosen("inspect", names, label):
        try:
            found.append(details_as_json(inspect(env.home(), name)))
        except MicrosandboxError as failure:
            report.error(str(failure), failure.hint)
            failed = True
    print_json(found)
    if failed:
        sys.exit(report.EXIT_FAILED)


def _print(
    found: Sequence[SandboxInfo], *, quiet: bool, format: str, table: Callable[[Sequence[SandboxInfo]], None]
) -> None:
    if quiet:
        print_names([info.name for info in found])
    elif format == "json":
        from microsandbox_cli.listing import print_json

        print_json([as_json(info) for info in found])
    else:
        table(found)


def _as_made(found: Sequence[SandboxInfo]) -> None:
    now = time.time()
    print_table(
        ("NAME", "STATUS", "IMAGE", "CPUS", "MEMORY", "ISOLATION", "AGE"),
        [
            (
                info.name, info.status, info.image, str(info.cpus), f"{info.memory_mib} MiB",
                info.isolation or "-", age(now - info.created_at.timestamp()),
            )
            for info in found
        ],
    )  # fmt: skip


def _at_work(found: Sequence[SandboxInfo]) -> None:
    now = time.time()
    print_table(
        ("NAME", "STATUS", "SINCE", "PID", "IMAGE", "PORTS", "COMMAND"),
        [
            (
                info.name, _status(info), "-" if info.since is None else age(now - info.since.timestamp()),
                str(info.vmm_pid or "-"), info.image,
                _shortened(", ".join(map(_arrow, info.ports))) or "-",
                "-" if info.command is None else _shortened(" ".join(info.command)),
            )
            for info in found
        ],
    )  # fmt: skip


def _status(info: SandboxInfo) -> str:
    return info.status if info.exit_code is None else f"{info.status} ({info.exit_code})"


def _arrow(port: PortBinding) -> str:
    host = f"[{port.host}]" if ":" in port.host else port.host
    return f"{host}:{port.host_port}->{port.guest_port}/{port.protocol}"


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


def as_json(info: SandboxInfo) -> dict[str, object]:
    """A sandbox in a listing; the names are documented in docs/lifecycle.md and do not change."""
    return {
        "id": info.id,
        "name": info.name,
        "status": str(info.status),
        "image": info.image,
        "image_digest": info.image_digest,
        "ephemeral": info.ephemeral,
        "created_at": info.created_at.isoformat(),
        "since": _iso(info.since),
        "cpus": info.cpus,
        "memory_mib": info.memory_mib,
        "isolation": info.isolation,
        "command": info.command,
        "exit_code": info.exit_code,
        "labels": info.labels,
        "supervisor_pid": info.supervisor_pid,
        "vmm_pid": info.vmm_pid,
        "ports": [port._asdict() for port in info.ports],
    }


def details_as_json(details: SandboxDetails) -> dict[str, object]:
    """Everything about a sandbox; the names are documented in docs/lifecycle.md and do not change."""
    config, end = details.config, details.end
    return {
        **as_json(details.info),
        "started_at": _iso(details.started_at),
        "end": None
        if end is None
        else {"cause": str(end.cause), "reason": end.reason, "vmm_exit": end.vmm_exit},
        "failure": None if details.failure is None else details.failure._asdict(),
        "config": {
            "hostname": config.hostname,
            "env": dict(config.env),
            "workdir": config.workdir,
            "user": config.user,
            "entrypoint": config.entrypoint,
            "cmd": config.cmd,
            "vmm": config.vmm,
            "require_kvm": config.require_kvm,
            "cold": config.cold,
            "max_duration": config.max_duration,
            "idle_timeout": config.idle_timeout,
            **_guest(config),
            "security": config.security,
            "rlimits": _rlimits(config),
            "network": _network(config),
        },
        "host_limits": None if details.host_limits is None else details.host_limits._asdict(),
        "upper": {"size": details.upper_size, "allocated": details.upper_allocated},
        "paths": {
            "directory": str(details.directory),
            "upper": str(details.upper),
            "console_log": str(details.console_log),
            "supervisor_log": str(details.supervisor_log),
            "logs": None if details.logs is None else str(details.logs),
            "agent_socket": str(details.agent_socket),
        },
    }


def _guest(config: SandboxConfig) -> dict[str, object]:
    init = None
    if config.init is not None:
        path, args, variables = config.init
        init = {"path": path or "auto", "args": args, "env": dict(variables)}
    return {
        "shell": config.shell,
        "scripts": [name for name, _ in config.scripts],
        "tmpfs": [Tmpfs._make(mount)._asdict() for mount in config.tmpfs],
        "volumes": [mount._asdict() for mount in config.mounts],
        "stop_signal": config.stop_signal,
        "init": init,
        "root_disk": config.root_disk,
    }


def _network(config: SandboxConfig) -> dict[str, object]:
    network = config.network
    names = ("direction", "bytes_per_second", "burst_bytes", "packets_per_second", "burst_packets")
    return {
        "policy": network.preset,
        "rules": network.rules,
        "strict": network.strict,
        "nameservers": network.nameservers,
        "dns": network.dns,
        "max_connections": network.max_connections,
        "rates": [dict(zip(names, rate, strict=True)) for rate in network.rates],
        "proxy": network.shown_proxy,
        "no_proxy": network.no_proxy,
    }


def _rlimits(config: SandboxConfig) -> dict[str, list[int]]:
    from microsandbox._rlimits import as_numbers

    return as_numbers(config.rlimits)


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
