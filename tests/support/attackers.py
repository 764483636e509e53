"""The two guests from which attacks come: a network namespace, and a machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from microsandbox_net import Policy

from tests.support.attack import Attacker
from tests.support.internet import ROUTER, Internet
from tests.support.linux_guest import GATEWAY, GATEWAY_MAC, GUEST, GUEST_MAC, LinuxGuest
from tests.support.msb import Msb
from tests.support.programs import compiled

Attack = Callable[..., AbstractContextManager[Attacker]]
"""Starts a guest with a preset and rules; `dns_mode` as the option has it."""

DENIED = {"ECONNREFUSED", "EACCES", "EHOSTUNREACH", "ENETUNREACH"}
"""What a guest sees of a flow that the policy does not allow: a reset, or an ICMP error."""


@contextmanager
def from_namespace(
    internet: Internet, preset: str, *rules: str, dns_mode: str = "resolve"
) -> Iterator[Attacker]:
    """Root of a network namespace, with the host's own busybox."""
    with LinuxGuest(internet, Policy.parse(preset, rules), dns_mode=dns_mode) as guest:
        yield root_of(guest, internet)


def root_of(guest: LinuxGuest, internet: Internet) -> Attacker:
    """Root of that namespace."""
    sender = guest.program("sender")

    def shell(script: str, stdin: str) -> str:
        done = guest.run("busybox", "sh", "-c", script.replace("/tmp/sender", str(sender)), stdin=stdin)
        return done.stdout

    link = (GUEST[0], GUEST_MAC, GATEWAY[0], GATEWAY_MAC)
    return Attacker(internet, shell, internet.capture(), link, GUEST[1], guest.audit)


@contextmanager
def from_machine(
    internet: Internet, msb: Msb, preset: str, *rules: str, dns_mode: str = "resolve"
) -> Iterator[Attacker]:
    """Root of a sandbox."""
    inside = msb.within(internet.host)
    options = ["--network-policy", preset, "--dns-nameserver", ROUTER[0], "--dns-mode", dns_mode]
    options += [word for rule in rules for word in ("--net-rule", rule)]
    inside("create", "busybox", "--name", "attacker", *options).succeeded()
    try:
        yield attacker(internet, inside)
    finally:
        inside("rm", "--force", "attacker").succeeded()


def attacker(internet: Internet, inside: Msb) -> Attacker:
    """Root of the sandbox `attacker`, which runs in the host's namespace."""

    def shell(script: str, stdin: str) -> str:
        return inside("exec", "attacker", "--", "sh", "-c", script, stdin=stdin.encode()).text

    put = "cat > /tmp/sender; chmod 755 /tmp/sender"
    inside("exec", "attacker", "--", "sh", "-c", put, stdin=compiled("sender")).succeeded()
    # A ping to the gateway is answered by the stack itself.
    told = shell(
        "set -- $(ip route list default); ping -c1 $3 > /tmp/ping; ip neigh show $3; "
        "cat /sys/class/net/eth0/address; ip -4 -o address show eth0; ip -6 -o address show eth0",
        "",
    ).split()
    gateway, gateway_mac, mac = told[0], told[told.index("lladdr") + 1], told[told.index("eth0", 4) - 2]
    own = told[told.index("inet") + 1].partition("/")[0]
    own6 = told[told.index("inet6") + 1].partition("/")[0]

    def audit() -> list[dict[str, object]]:
        lines = inside("net", "audit", "attacker", "--json").succeeded().text.splitlines()
        return [json.loads(line) for line in lines]

    return Attacker(internet, shell, internet.capture(), (own, mac, gateway, gateway_mac), own6, audit)
