"""What this machine lets the network of sandboxes do. Nothing is sent."""

from __future__ import annotations

import errno
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

from microsandbox_core.host.doctor import Check, Status

from microsandbox.supervisor._addresses import routed

_PING_RANGE = Path("/proc/sys/net/ipv4/ping_group_range")
"""The groups whose programs may have ping sockets, of IPv6 too (icmp(7))."""

_MOST = 8192
"""TCP connections at a time for which a sandbox need not ask: `microsandbox_net.StackConfig`."""

_SPARE = 256
"""Descriptors that a stack leaves to the rest of its process."""


def examine_network() -> Iterator[Check]:
    """Look at what is not needed for a sandbox, but for all that its network can do."""
    yield _check_routes()
    yield _check_ping()
    yield _check_connections()


def _check_routes() -> Check:
    name = "network"
    match routed():
        case (True, True):
            return Check(name, Status.OK, "sandboxes are offered IPv4 and IPv6")
        case (True, False):
            seen = "sandboxes are offered IPv4; IPv6 they are not, because this machine has no route for it"
            return Check(name, Status.OK, seen)
        case (False, True):
            seen = "sandboxes are offered IPv6; IPv4 they are not, because this machine has no route for it"
            return Check(name, Status.OK, seen)
    return Check(
        name,
        Status.WARNING,
        "no route leads out of this machine: sandboxes reach at most the machine itself",
        "give it a default route, if sandboxes are to reach anything",
    )


def _check_ping() -> Check:
    name = "ping"
    try:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP).close()
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM):
            return Check(name, Status.WARNING, f"sandboxes cannot ping: no ping sockets: {error.strerror}")
        return Check(
            name,
            Status.WARNING,
            f"sandboxes can ping nothing but their gateway: {_range()} leaves out this user",
            "sudo sysctl -w net.ipv4.ping_group_range='0 2147483647'",
        )
    return Check(name, Status.OK, "sandboxes can ping what their policies allow")


def _range() -> str:
    try:
        first, last = _PING_RANGE.read_text().split()
    except (OSError, ValueError):
        return "net.ipv4.ping_group_range"
    return f"net.ipv4.ping_group_range ({first} to {last})"


def _check_connections() -> Check:
    name = "connections"
    # Supervisors raise theirs to it.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= _MOST + _SPARE:
        return Check(name, Status.OK, f"{_MOST} of TCP at a time in each sandbox, more by --max-connections")
    seen = f"{max(hard - _SPARE, 16)} of TCP at a time in each sandbox started from here, by open files;"
    return Check(name, Status.OK, f"{seen} {_MOST} after: ulimit -Hn {_MOST + _SPARE}")
