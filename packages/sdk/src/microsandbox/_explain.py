"""What becomes of a flow, told before there is one: what a policy says, and whether a proxy carries it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from microsandbox_net import Action, ProxyWay, Verdict, check_proxy, proxy_way

from microsandbox._config import NetworkConfig
from microsandbox.errors import StateError
from microsandbox.network import policy_of


class Explained(NamedTuple):
    """The verdict, and the proxy that the flow goes through, without user and password; None: it goes by
    itself, or not at all."""

    verdict: Verdict
    proxy: str | None


def explain(
    network: NetworkConfig, target: str, *, protocol: str, identifier: str | None = None
) -> Explained:
    """What a network says of ``HOST:PORT``; see `NetworkPolicy.explain`. `identifier`: that of the sandbox
    that has it, by which the host's addresses and those of its gateways are known as such.

    Raises `NetworkPolicyError`, and `StateError` where the host's addresses cannot be read.
    """
    own, gateways = ((), ()) if identifier is None else _host(identifier)
    verdict = policy_of(network).explain(target, protocol=protocol, host=(*own, *gateways))
    if network.proxy is None or verdict.action is Action.DENY:
        return Explained(verdict, None)
    if _address(target) in gateways:
        way = ProxyWay.PAST
    else:
        way = proxy_way(network.proxy, network.no_proxy, target)
    if way is ProxyWay.ITSELF:
        return Explained(_denied("the proxy is not for the sandbox to reach"), None)
    if way is ProxyWay.PAST:
        return Explained(verdict, None)
    if protocol != "tcp":
        return Explained(_denied("the proxy carries TCP only"), None)
    return Explained(verdict, check_proxy(network.proxy, network.no_proxy))


def _denied(why: str) -> Verdict:
    return Verdict(Action.DENY, f"built-in: {why}")


def _address(target: str) -> str:
    """HOST of ``HOST:PORT``."""
    return target[1:].split("]")[0] if target.startswith("[") else target.split(":")[0]


def _host(identifier: str) -> tuple[Sequence[str], Sequence[str]]:
    """The host's own addresses, and those of a sandbox's gateways."""
    from microsandbox.supervisor._addresses import HostAddresses, link_of

    link = link_of(identifier, ipv4=True, ipv6=True)
    try:
        addresses = HostAddresses()
        try:
            own = addresses.read()
        finally:
            addresses.close()
    except OSError as error:
        raise StateError(f"the host's addresses cannot be read: {error.strerror}") from error
    return own, [pair[1] for pair in (link.ipv4, link.ipv6) if pair is not None]
