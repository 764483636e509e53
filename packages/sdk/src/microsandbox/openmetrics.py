"""Metrics as text that monitoring systems scrape.

OpenMetrics 1.0: https://prometheus.io/docs/specs/om/open_metrics_spec/. Every sample has the labels `id` and
`sandbox`; families whose name begins with `microsandbox_guest_` are what the guest says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from microsandbox.metrics import GuestMetrics, SandboxMetrics

CONTENT_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"
"""For an HTTP response that has it as its body."""

_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})

Labels = tuple[tuple[str, str], ...]
Value = int | float | None


class _Family(NamedTuple):
    name: str
    kind: str
    unit: str
    help: str


_INFO = _Family("microsandbox_sandbox", "info", "", "A sandbox that runs.")
_CPU = _Family("microsandbox_cpu_seconds", "counter", "seconds", "Processor time of its host processes.")
_RSS = _Family("microsandbox_resident_memory_bytes", "gauge", "bytes", "Memory of its host processes.")
_PSS = _Family(
    "microsandbox_proportional_memory_bytes", "gauge", "bytes",
    "The same, with what is shared divided among those who share it.",
)  # fmt: skip
_ON_HOST = (
    _Family("microsandbox_uptime_seconds", "gauge", "seconds", "Time since its start."),
    _Family("microsandbox_vcpus", "gauge", "", "Processors that it was given."),
    _Family("microsandbox_memory_bytes", "gauge", "bytes", "Memory that it was given."),
    _Family("microsandbox_disk_read_bytes", "counter", "bytes", "What its VMM had the host's disks read."),
    _Family(
        "microsandbox_disk_written_bytes", "counter", "bytes", "What its VMM had the host's disks write."
    ),
    _Family(
        "microsandbox_upper_allocated_bytes", "gauge", "bytes", "What its writable disk takes on the host."
    ),
    _Family("microsandbox_upper_size_bytes", "gauge", "bytes", "What its writable disk may take."),
    _Family("microsandbox_limit_memory_bytes", "gauge", "bytes", "Memory its host processes may have."),
    _Family("microsandbox_limit_cpus", "gauge", "", "Processors that its host processes may use."),
    _Family("microsandbox_limit_tasks", "gauge", "", "Threads that its host processes may have."),
    _Family("microsandbox_guest_answered", "gauge", "", "Whether its guest said anything: 1 or 0."),
)
_SENT, _RECEIVED = (("direction", "sent"),), (("direction", "received"),)
_NETWORK: tuple[tuple[_Family, tuple[tuple[str, Labels], ...]], ...] = (
    (
        _Family("microsandbox_network_bytes", "counter", "bytes", "Ethernet frames at its network card."),
        (("sent", _SENT), ("received", _RECEIVED)),
    ),
    (
        _Family("microsandbox_network_packets", "counter", "packets", "The same, in frames."),
        (("packets_sent", _SENT), ("packets_received", _RECEIVED)),
    ),
    (
        _Family(
            "microsandbox_network_payload_bytes", "counter", "bytes",
            "What sockets of the host sent and received for it.",
        ),
        (("payload_sent", _SENT), ("payload_received", _RECEIVED)),
    ),
    (
        _Family("microsandbox_network_connections", "gauge", "", "Connections of TCP that there are."),
        (("connections", ()),),
    ),
    (
        _Family("microsandbox_network_connections_opened", "counter", "", "Those that there ever were."),
        (("connections_opened", ()),),
    ),
    (
        _Family("microsandbox_network_flows", "gauge", "", "Flows of UDP and ICMP that there are."),
        (("flows", ()),),
    ),
    (
        _Family("microsandbox_network_flows_opened", "counter", "", "Those that there ever were."),
        (("flows_opened", ()),),
    ),
    (
        _Family("microsandbox_network_peers", "gauge", "", "Who uses its published ports of UDP."),
        (("peers", ()),),
    ),
    (
        _Family("microsandbox_network_questions", "counter", "", "Names that it asked for."),
        (("questions", ()),),
    ),
    (
        _Family("microsandbox_network_decisions", "counter", "", "Decisions of its network policy."),
        (("allowed", (("verdict", "allow"),)), ("denied", (("verdict", "deny"),))),
    ),
    (
        _Family("microsandbox_network_failed", "counter", "", "What was allowed and could not be reached."),
        (("failed", ()),),
    ),
    (
        _Family("microsandbox_network_dropped_packets", "counter", "packets", "Frames that nothing came of."),
        (("dropped", ()),),
    ),
)  # fmt: skip
_BY_GUEST = {
    "memory_total": _Family("microsandbox_guest_memory_total_bytes", "gauge", "bytes", "Memory it has."),
    "memory_available": _Family(
        "microsandbox_guest_memory_available_bytes", "gauge", "bytes", "Memory it could give to programs."
    ),
    "upper_total": _Family(
        "microsandbox_guest_upper_total_bytes", "gauge", "bytes", "What its writable file system can hold."
    ),
    "upper_used": _Family(
        "microsandbox_guest_upper_used_bytes", "gauge", "bytes", "What its writable file system holds."
    ),
    "disk_read": _Family(
        "microsandbox_guest_disk_read_bytes", "counter", "bytes", "What it has read from its disks."
    ),
    "disk_written": _Family(
        "microsandbox_guest_disk_written_bytes", "counter", "bytes", "What it has written to its disks."
    ),
    "execs": _Family("microsandbox_guest_execs", "gauge", "", "Commands and file operations under way."),
    "tasks": _Family("microsandbox_guest_tasks", "gauge", "", "Processes and threads of its workload."),
}


def render(measured: Iterable[SandboxMetrics]) -> str:
    """The whole exposition, `# EOF` included. What is not known has no sample."""
    # A sandbox that is there twice, by its name and its id, would have the same samples twice.
    sandboxes = list({each.id: each for each in measured}.values())
    lines: list[str] = []
    info = [(_details(each), 1) for each in sandboxes]
    _add(lines, _INFO, info)
    processes = [
        (each, (("process", role),), usage)
        for each in sandboxes
        for role, usage in (("vmm", each.vmm), ("supervisor", each.supervisor))
    ]
    _add(
        lines,
        _CPU,
        [
            ((*_labels(each), *role, ("mode", mode)), seconds)
            for each, role, usage in processes
            for mode, seconds in (("user", usage.user_seconds), ("system", usage.system_seconds))
        ],
    )
    _add(lines, _RSS, [((*_labels(each), *role), usage.rss) for each, role, usage in processes])
    _add(lines, _PSS, [((*_labels(each), *role), usage.pss) for each, role, usage in processes])
    for position, family in enumerate(_ON_HOST):
        _add(lines, family, [(_labels(each), _on_host(each)[position]) for each in sandboxes])
    networks = [(each, each.network) for each in sandboxes if each.network is not None]
    for family, fields in _NETWORK:
        _add(
            lines,
            family,
            [
                ((*_labels(each), *label), getattr(network, field))
                for each, network in networks
                for field, label in fields
            ],
        )
    nothing = GuestMetrics()
    for field, family in _BY_GUEST.items():
        _add(lines, family, [(_labels(each), getattr(each.guest or nothing, field)) for each in sandboxes])
    return "".join(f"{line}\n" for line in [*lines, "# EOF"])


def _on_host(metrics: SandboxMetrics) -> tuple[Value, ...]:
    """In the order of `_ON_HOST`."""
    limits = metrics.host_limits
    return (
        metrics.uptime,
        metrics.cpus,
        metrics.memory,
        metrics.vmm.read,
        metrics.vmm.written,
        metrics.upper_allocated,
        metrics.upper_size,
        None if limits is None else limits.memory,
        None if limits is None else limits.cpus,
        None if limits is None else limits.tasks,
        int(metrics.guest is not None),
    )


def _labels(metrics: SandboxMetrics) -> Labels:
    return (("id", metrics.id), ("sandbox", metrics.name))


def _details(metrics: SandboxMetrics) -> Labels:
    return (*_labels(metrics), ("image", metrics.image), ("isolation", metrics.isolation or ""))


def _add(lines: list[str], family: _Family, samples: Sequence[tuple[Labels, Value]]) -> None:
    lines.append(f"# TYPE {family.name} {family.kind}")
    if family.unit:
        lines.append(f"# UNIT {family.name} {family.unit}")
    lines.append(f"# HELP {family.name} {family.help}")
    name = family.name + {"counter": "_total", "info": "_info"}.get(family.kind, "")
    for labels, value in samples:
        if value is not None:
            shown = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
            lines.append(f"{name}{{{shown}}} {value}")


def _escaped(text: str) -> str:
    # The text is UTF-8 by definition; a path may hold bytes that are not.
    return text.encode(errors="replace").decode().translate(_ESCAPES)
