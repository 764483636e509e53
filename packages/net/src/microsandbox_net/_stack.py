"""The user-space stack: the other end of a sandbox's network card."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from microsandbox_net import _native

if TYPE_CHECKING:
    from types import TracebackType

    from microsandbox_net._policy import Policy


class PortBinding(NamedTuple):
    """A port of the host that leads to one of the guest."""

    protocol: str
    """`tcp` or `udp`."""
    address: str
    """An address of the host: `127.0.0.1` lets in programs of the host only, `0.0.0.0` and `::` everybody
    whom a firewall and the ingress rules let in. `::` is IPv6 and nothing else."""
    host_port: int
    """0: one that is free, which `Stack.ports` tells."""
    guest_port: int


class PortUnavailable(OSError):
    """A port of the host that cannot be bound; `errno` is the system's."""

    def __init__(self, port: int, protocol: str, reason: str, address: str = "") -> None:
        super().__init__(port, protocol, reason, address)
        self.port = port
        self.protocol = protocol
        self.reason = reason
        """What is in the way, in words."""
        self.address = address

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.protocol} port {host}:{self.port} is not available: {self.reason}"


class CompiledPolicy:
    """A policy from texts that can be enforced and nothing else: `Policy` describes itself as well, which
    takes longer to import than a stack takes to start.

    Raises:
        PolicyError: as `Policy.parse`.
    """

    def __init__(
        self, preset: str, rules: Iterable[str] = (), *, strict: bool = True, host: Iterable[str] = ()
    ) -> None:
        """`strict` and `host`: as `Policy.names` and `Policy.host`."""
        written = [(*_native.parse_rule(rule), (), ()) for rule in rules]
        names = "strict" if strict else "pin-only"
        self._compiled = _native.Policy(preset, written, names, tuple(host))


class StackConfig(NamedTuple):
    """The two ends of a link, and its bounds."""

    guest_mac: str
    """As `02:00:00:00:00:02`. Frames from any other address are dropped."""
    gateway_mac: str
    ipv4: tuple[str, str] | None = None
    """Addresses of guest and gateway. None: the family is not offered, and names have no such address."""
    ipv6: tuple[str, str] | None = None
    mtu: int = 1500
    """The largest IP packet on the link, in bytes: 1280 to 65520."""
    nameservers: tuple[str, ...] | None = None
    """Addresses of servers to ask for names. None: those of the host's resolv.conf, as it is at the time."""
    dns_mode: str = "resolve"
    """`resolve`: names are asked of the servers. `synthetic`: allowed names get addresses of 198.18.0.0/15
    and 2001:2::/48 that stand for them, and the servers are asked when the guest connects to one."""
    max_connections: int = 8192
    """TCP flows at a time, and never more than there are file descriptors for."""
    max_datagram_flows: int = 1024
    """UDP and ICMP flows at a time; the one that rested longest gives way."""
    connect_timeout: float = 30.0
    """Seconds until a target that does not answer counts as unreachable."""
    tcp_idle_timeout: float = 7440.0
    """Seconds that a TCP flow may rest."""
    udp_idle_timeout: float = 120.0
    """Seconds that a UDP flow may rest."""
    time_wait: float = 60.0
    """Seconds for which an end that the guest repeats is acknowledged, after both sides ended."""
    naming_timeout: float = 5.0
    """Seconds that a client may take to state a name, where rules for names want one."""
    stay_awake: float = 100e-6
    """Seconds, up to 0.001, for which the thread asks for the next frame before it waits for one, as long as
    frames have followed each other that closely: short exchanges take less time then, and more of a
    processor. 0: it always waits, as it does where there is one processor."""
    audit_records: int = 4096
    """Records kept until `audit` is called; older ones give way and are counted."""
    rates: tuple[tuple[str, int | None, int | None, int | None, int | None], ...] = ()
    """How fast `egress` (what the guest sends) and `ingress` (what it is sent) go: direction, bytes a second,
    burst in bytes, packets a second, burst in packets. None: no bound; a burst of None is a tenth of a
    second, and at least 64 KiB or 64 packets. Counted is payload, and the packets of the link's MTU that
    carry it."""
    ports: tuple[PortBinding, ...] = ()
    """Ports of the host that lead into the guest, each bound when `Stack` returns. Who connects is decided on
    by the ingress rules of the policy first; the guest sees its gateway as the peer."""
    proxy: str | None = None
    """The URL of the proxy that TCP goes through: see `check_proxy`. What it does not carry is unreachable
    and never goes another way; UDP and ICMP are refused. DNS and the host itself go past it."""
    no_proxy: str = ""
    """What goes past the proxy, as curl has it."""


class StackFailed(Exception):
    """The stack ended by a fault, and with it the sandbox's network."""


class Stack:
    """A stack on `link`: the descriptor of a connected stream socket with Ethernet frames after 32-bit
    big-endian lengths (QEMU's `-netdev stream`), or of a TAP made with IFF_NO_PI and without IFF_VNET_HDR
    (Linux: Documentation/networking/tuntap.rst), which does not block from then on. Runs in a thread until
    the link or `stop` ends it.

    The descriptor is duplicated; the caller may close its own. When the stack ends, however that happens, the
    link is shut down, and a TAP has no carrier: a guest never has a network that nobody watches.

    Raises:
        ValueError: a value of `config` that cannot be, or a link that is neither of the two.
        PortUnavailable: a port of `config.ports` that cannot be bound; then none is.
        OSError: no thread or descriptor to be had.
    """

    def __init__(self, link: int, config: StackConfig, policy: Policy | CompiledPolicy) -> None:
        self._native = _native.Stack(link, config, policy._compiled)

    def set_policy(self, policy: Policy | CompiledPolicy) -> None:
        """Decide by `policy` from now on. Flows that it does not allow are reset within a second."""
        self._native.set_policy(policy._compiled)

    def ports(self) -> list[tuple[str, int]]:
        """Address and port of each of `config.ports` on the host, in their order."""
        return self._native.ports()

    def metrics(self) -> dict[str, int]:
        """Frames, bytes, flows and drops since the start, by name; those in `_now` at present."""
        return self._native.metrics()

    def audit(self) -> list[dict[str, Any]]:
        """The records since the last call, oldest first: time (seconds since 1970), direction, protocol,
        address, port, name, action and rule. Where some were lost, the first is `{"lost": how many}`."""
        import json

        return [json.loads(line) for line in self.audit_lines()]

    def audit_lines(self) -> list[str]:
        """The same, each as a line of JSON without its end."""
        return self._native.audit()

    def fileno(self) -> int:
        """Readable when there are records to fetch with `audit`, and when the stack has ended."""
        return self._native.fileno()

    @property
    def running(self) -> bool:
        return self._native.end() is None

    def check(self) -> None:
        """Raise `StackFailed` if the stack ended by a fault."""
        end = self._native.end()
        if end is not None and end[0]:
            raise StackFailed(end[1])

    def stop(self) -> None:
        """Shut the link down, end all flows, and wait until nothing is left of them."""
        self._native.stop()

    def __enter__(self) -> Stack:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
