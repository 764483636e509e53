"""User-space network stack and policy for microVMs: the policy, and the stack that enforces it.

See `features()` for what this version can do. Names are loaded when they are first used: what runs a stack
does not wait for what describes policies.
"""

from __future__ import annotations

from microsandbox_net._native import PolicyError, __version__

# As in `typing`, which most of what is imported here can do without.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from microsandbox_net._policy import (
        Action,
        AddressClass,
        Destination,
        Direction,
        Names,
        Policy,
        Preset,
        Protocol,
        Rule,
        Verdict,
        classify,
    )
    from microsandbox_net._proxy import ProxyWay, check_proxy, proxy_from_environment, proxy_way
    from microsandbox_net._stack import (
        CompiledPolicy,
        PortBinding,
        PortUnavailable,
        Stack,
        StackConfig,
        StackFailed,
    )

__all__ = [
    "Action",
    "AddressClass",
    "CompiledPolicy",
    "Destination",
    "Direction",
    "Names",
    "Policy",
    "PolicyError",
    "PortBinding",
    "PortUnavailable",
    "Preset",
    "Protocol",
    "ProxyWay",
    "Rule",
    "Stack",
    "StackConfig",
    "StackFailed",
    "Verdict",
    "__version__",
    "check_proxy",
    "classify",
    "features",
    "proxy_from_environment",
    "proxy_way",
]


if not TYPE_CHECKING:
    _STACK = ("CompiledPolicy", "PortBinding", "PortUnavailable", "Stack", "StackConfig", "StackFailed")
    _PROXY = ("ProxyWay", "check_proxy", "proxy_from_environment", "proxy_way")

    def __getattr__(name: str) -> object:
        if name in __all__:
            from importlib import import_module

            module = "_stack" if name in _STACK else "_proxy" if name in _PROXY else "_policy"
            return getattr(import_module(f"microsandbox_net.{module}"), name)
        raise AttributeError(f"module 'microsandbox_net' has no attribute {name!r}")


def features() -> frozenset[str]:
    """Names of the parts that work in this version.

    `policy`: policies are parsed, and decide. `stack`: a link of Ethernet frames is held to a policy.
    `ports`: ports of the host lead into the guest.
    `proxy`: TCP goes through a proxy of HTTP or SOCKS5.
    `synthetic-dns`: names can have addresses that stand for them (`StackConfig.dns_mode`).

    A name is added together with the part it stands for and never taken away.
    """
    return frozenset({"policy", "stack", "ports", "proxy", "synthetic-dns"})
