"""The network of a sandbox, as its supervisor keeps it: a user-space stack at the other end of the card.

Imported for sandboxes that have one. It is started while the guest's machine starts; what the guest sends
before waits in the link.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from microsandbox_core.relay_server import RelayServer
from microsandbox_net import (
    CompiledPolicy,
    PolicyError,
    PortBinding,
    PortUnavailable,
    Stack,
    StackConfig,
    StackFailed,
)
from microsandbox_net.resolv import search_domains

from microsandbox._config import NetworkConfig
from microsandbox.errors import ConfigError, StartError
from microsandbox.supervisor._addresses import MTU, HostAddresses, Link, families, link_of
from microsandbox.supervisor._audit_log import AuditLog
from microsandbox.supervisor._open_files import OpenFiles

_SETTLE_TIME = 1.0
"""Seconds that the end of a command may wait for the record of what was denied to it: far more than a disk
takes that works, and once only for one that does not."""

EMULATED_STAY_AWAKE = 400e-6
"""`StackConfig.stay_awake` for an emulated guest: so long it takes from an answer to its next request."""

LIVE = ("preset", "rules", "strict")
"""What of a `NetworkConfig` can be changed while the sandbox runs."""


class SandboxNetwork:
    """A stack that holds a sandbox's link to its policy, and the record of what it has decided.

    Raises `StartError` for a network that cannot be had: a port of the host that is taken, say.
    """

    def __init__(
        self,
        config: NetworkConfig,
        identifier: str,
        link: socket.socket,
        log: Path,
        *,
        emulated: bool = False,
    ) -> None:
        """`identifier`: the sandbox's id. `link`: the host's end of the card's link; it is closed here.
        `log`: the file for the record. `emulated`: the guest's processor is."""
        self.ends: Link = link_of(identifier, **dict(zip(("ipv4", "ipv6"), families(), strict=True)))
        self._config = config
        self._log = AuditLog(log)
        self._server: RelayServer | None = None
        self._lost: Callable[[str], None] = lambda reason: None
        self._files = OpenFiles()
        with link:
            try:
                self._host = HostAddresses()
            except OSError as error:
                self._files.give_back()
                raise _no_network(f"the host's addresses cannot be read: {error.strerror}") from error
            try:
                settings = _stack_config(config, self.ends)
                if emulated:
                    settings = settings._replace(stay_awake=EMULATED_STAY_AWAKE)
                self._stack = Stack(link.fileno(), settings, self._policy(config))
            except PolicyError as error:
                self._give_up()
                raise ConfigError(str(error), hint=error.hint, code=error.code) from error
            except PortUnavailable as error:
                self._give_up()
                raise StartError(
                    f"published port: {error}",
                    hint="publish another port of the host, or end what has it",
                    code="port_unavailable",
                ) from error
            except (OSError, ValueError) as error:
                self._give_up()
                raise _no_network(str(error)) from error

    def _give_up(self) -> None:
        self._host.close()
        self._files.give_back()

    def parameters(self) -> dict[str, Any]:
        """The parameter `network` of agentd's `configure`. Short names are completed as on the host, unless
        the sandbox has name servers of its own: to these the host's domains would mean nothing."""
        search = () if self._config.nameservers else search_domains()
        return self.ends.parameters() | {"search": list(search)}

    def serve(self, server: RelayServer, lost: Callable[[str], None]) -> None:
        """Keep it from the server's loop. `lost` is told why, if the stack ends by a fault: the sandbox has
        no network from then on."""
        self._server, self._lost = server, lost
        server.watch(self._stack.fileno(), self._on_bell)
        server.watch(self._host.fileno(), self._on_host)

    def leave_loop(self) -> None:
        """Undo `serve`."""
        assert self._server is not None
        self._server.unwatch(self._stack.fileno())
        self._server.unwatch(self._host.fileno())
        self._server = None

    def set(self, config: NetworkConfig) -> None:
        """Go over to another policy: what it does not allow is cut. All else in `config` counts at the next
        start. Raises `ConfigError`; then it stays as it is."""
        try:
            policy = self._policy(config)
        except PolicyError as error:
            raise ConfigError(str(error), hint=error.hint, code=error.code) from error
        self._config = self._config._replace(**{name: getattr(config, name) for name in LIVE})
        self._stack.set_policy(policy)

    def metrics(self) -> dict[str, int]:
        """What has been counted since the start, by the names of `microsandbox_net.Stack.metrics`."""
        return self._stack.metrics()

    def collect(self) -> None:
        """Have written down what has been decided until now."""
        self._log.append(self._stack.audit_lines())

    def settle(self) -> None:
        """The same, and wait until it is there, as long as a disk usually takes."""
        self.collect()
        self._log.settle(_SETTLE_TIME)

    def stop(self) -> None:
        """End it, with all flows, when the server's loop is over. Nobody is told."""
        self._stack.stop()
        self.collect()
        self._log.close()
        self._host.close()
        self._files.give_back()

    def leave(self) -> None:
        """The process ends, and the record goes with the sandbox: only see that nobody writes it any more."""
        self._log.close()

    def _policy(self, config: NetworkConfig) -> CompiledPolicy:
        return CompiledPolicy(config.preset, config.rules, strict=config.strict, host=self._host.read())

    def _on_bell(self) -> None:
        self.collect()
        if self._stack.running:
            return
        self.leave_loop()
        try:
            self._stack.check()
        except StackFailed as error:
            self._lost(str(error))

    def _on_host(self) -> None:
        """What is the host's own has changed, and with it what the policy keeps the sandbox from."""
        self._stack.set_policy(self._policy(self._config))


def _stack_config(config: NetworkConfig, ends: Link) -> StackConfig:
    most = {} if config.max_connections is None else {"max_connections": config.max_connections}
    return StackConfig(
        guest_mac=ends.guest_mac,
        gateway_mac=ends.gateway_mac,
        ipv4=ends.ipv4,
        ipv6=ends.ipv6,
        mtu=MTU,
        nameservers=config.nameservers or None,
        dns_mode=config.dns,
        ports=tuple(PortBinding(*port) for port in config.ports),
        proxy=config.proxy,
        no_proxy=config.no_proxy,
        rates=config.rates,
        **most,
    )


def _no_network(reason: str) -> StartError:
    return StartError(
        f"the sandbox's network cannot be started: {reason}",
        hint="start it without one: --network-policy none",
        code="network",
    )
