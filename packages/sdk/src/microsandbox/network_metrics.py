"""What has passed a sandbox's network card, and what was decided about it, as its supervisor counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["NetworkMetrics"]


class NetworkMetrics(NamedTuple):
    """Counters since the sandbox was started, but for `connections`, `flows` and `peers`: those of now.

    `sent` and `received`, `packets_sent` and `packets_received`: bytes and number of the Ethernet frames that
    its card sent and was given, whatever became of them. `payload_sent` and `payload_received`: bytes that
    sockets of the host sent and received for it, without headers and without what names were asked for.
    `connections`: TCP, those to published ports and those that are being opened included. `flows`: UDP and
    ICMP echo. `peers`: who uses its published ports of UDP. `questions`: for names. `allowed` and `denied`:
    decisions, as `Sandbox.audit` has them. `failed`: what was allowed and could not be reached. `dropped`:
    frames that nothing came of, because they are malformed, forged, unsolicited, too many or too fast.
    """

    sent: int
    received: int
    packets_sent: int
    packets_received: int
    payload_sent: int
    payload_received: int
    connections: int
    connections_opened: int
    flows: int
    flows_opened: int
    peers: int
    questions: int
    allowed: int
    denied: int
    failed: int
    dropped: int


_COUNTERS = {
    "sent": "bytes_from_guest",
    "received": "bytes_to_guest",
    "packets_sent": "frames_from_guest",
    "packets_received": "frames_to_guest",
    "payload_sent": "bytes_sent",
    "payload_received": "bytes_received",
    "connections": "tcp_now",
    "connections_opened": "tcp_opened",
    "flows": "datagrams_now",
    "flows_opened": "datagrams_opened",
    "peers": "peers_now",
    "questions": "questions",
    "allowed": "allowed",
    "denied": "denied",
    "failed": "failed",
}
"""What `microsandbox_net.Stack.metrics` calls a field."""


def network_metrics(counters: Mapping[str, Any]) -> NetworkMetrics | None:
    """What a `microsandbox_net.Stack` has counted; None where there is no stack, and so no counter."""
    if not set(_COUNTERS.values()) <= counters.keys():
        return None
    dropped = sum(count for name, count in counters.items() if name.startswith("dropped_"))
    return NetworkMetrics(**{field: counters[name] for field, name in _COUNTERS.items()}, dropped=dropped)
