"""An internet of the tests' own, in network namespaces: whatever leaves the host under test arrives in a
namespace that answers for every address and records every packet. No packet meets a real network.

    guest --- link --- stack in `host` --- 10.77.0.0/24, fd77::/64 --- `wan`: everybody else, and a capture
"""

from __future__ import annotations

import socket
import struct
from contextlib import ExitStack
from dataclasses import dataclass

from tests.support.internet_servers import DnsServer, Servers, bound
from tests.support.namespace import Namespace, pair

HOST = ("10.77.0.2", "fd77::2")
ROUTER = ("10.77.0.1", "fd77::1")
"""The host's gateway, and the name server of its resolv.conf."""
LAN = "10.77.0.9"
"""Another machine of the host's own network."""
NOWHERE = ("203.0.115.7", "2a00:dead::7")
"""Addresses to which the host has no route."""
SILENT = "203.0.114.9"
"""An address that takes every packet and never answers."""

WWW = ("93.184.216.34", "2606:2800:220:1::34")
ZONE: dict[str, tuple[str, ...]] = {
    "www.example.com": WWW,
    "sibling.example.com": WWW,
    "four.example.com": (WWW[0],),
    "six.example.com": (WWW[1],),
    "mirror.example.com": ("151.101.2.132", "2a04:4e42::644"),
    "git.example.com": ("140.82.121.4", "2a0a:a440::4"),
    "pypi.example.com": ("151.101.0.223", "2a04:4e42::223"),
    "inner.example.com": (LAN,),
    "secret.example.net": ("203.0.114.7",),
    "dns.google": ("8.8.8.8", "2001:4860:4860::8888"),
    "metadata.google.internal": ("169.254.169.254",),
}

_GATEWAY_MAC = "02:00:00:00:77:01"
_HOST_MAC = "02:00:00:00:77:02"
_FENCE = 4791
"""A port of the router to which a test itself sends, so that what came before has arrived."""


@dataclass(frozen=True)
class Packet:
    """One that was seen on the far side of the host's cable, or on its loopback."""

    ethertype: int
    source: str
    target: str
    protocol: int
    data: bytes
    """What follows the IP header."""

    @property
    def port(self) -> int:
        """The destination's, of TCP and UDP."""
        return int.from_bytes(self.data[2:4], "big")


class Internet:
    """Everybody but the guest. As a context manager it is gone afterwards.

    Attributes:
        host: the namespace in which the stack or the supervisor under test runs.
        wan: the one that stands for the rest of the world.
        dns: the name server, which counts the questions that it was asked.
        servers: the other servers, and whom they heard.
    """

    def __init__(self) -> None:
        self._closing = ExitStack()
        self.host = Namespace()
        self._closing.callback(self.host.close)
        self.wan = Namespace()
        self._closing.callback(self.wan.close)
        pair(self.host, "uplink", self.wan, "far")
        self.host.ip(
            f"""link set lo up
link set uplink address {_HOST_MAC}
link set uplink addrgenmode none
link set uplink up
addr add {HOST[0]}/24 dev uplink
addr add {HOST[1]}/64 dev uplink nodad
neigh add {ROUTER[0]} lladdr {_GATEWAY_MAC} dev uplink
neigh add {ROUTER[1]} lladdr {_GATEWAY_MAC} dev uplink
route add default via {ROUTER[0]}
route add default via {ROUTER[1]}
route add unreachable {NOWHERE[0]}
route add unreachable {NOWHERE[1]}
"""
        )
        self.wan.ip(
            f"""link set lo up
link set far address {_GATEWAY_MAC}
link set far addrgenmode none
link set far up
addr add {ROUTER[0]}/24 dev far
addr add {ROUTER[1]}/64 dev far nodad
neigh add {HOST[0]} lladdr {_HOST_MAC} dev far
neigh add {HOST[1]} lladdr {_HOST_MAC} dev far
route add local 0.0.0.0/0 dev lo table main
route add local ::/0 dev lo table main
route add blackhole {SILENT}
"""
        )
        # Also for the tests' own programs in the host's namespace.
        self.host.switch("ipv4/ping_group_range", "0 2147483647")
        self.dns = self.wan.inside(lambda: DnsServer(ZONE))
        self._closing.callback(self.dns.close)
        self.servers = self.wan.inside(Servers)
        self._closing.callback(self.servers.close)

    def capture(self) -> Capture:
        """Everything from now on that leaves the host by its cable."""
        capture = Capture(self)
        self._closing.callback(capture.close)
        return capture

    def listen(self, port: int) -> socket.socket:
        """A TCP server on all addresses of the world."""
        server = self.wan.inside(lambda: bound(socket.SOCK_STREAM, port))
        server.settimeout(60)
        return server

    def close(self) -> None:
        self._closing.close()

    def __enter__(self) -> Internet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Capture:
    """Every frame that the wan's end of the cable receives, and every one on the host's loopback."""

    def __init__(self, internet: Internet) -> None:
        self._internet = internet
        self._sockets = [_listener(internet.wan, "far"), _listener(internet.host, "lo")]
        self._fence = internet.host.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._count = 0

    def packets(self) -> list[Packet]:
        """What was sent since the last call, without what the kernel says to its neighbours by itself."""
        self._count += 1
        mark = b"fence %d" % self._count
        found: list[Packet] = []
        for listener, target in zip(self._sockets, (ROUTER[0], "127.0.0.1"), strict=True):
            self._fence.sendto(mark, (target, _FENCE))
            while True:
                frame, about = listener.recvfrom(70_000)
                if about[2] == socket.PACKET_OUTGOING:  # type: ignore[attr-defined,unused-ignore]
                    continue
                packet = _parse(frame)
                if packet is None:
                    continue
                if packet.port == _FENCE and packet.data.endswith(mark):
                    break
                # The loopback says of the fence that nobody listens there.
                if not (packet.protocol == 1 and mark in packet.data) and packet.port != _FENCE:
                    found.append(packet)
        return [packet for packet in found if b"fence " not in packet.data]

    def close(self) -> None:
        for each in (*self._sockets, self._fence):
            each.close()


def _listener(namespace: Namespace, interface: str) -> socket.socket:
    everything = 3  # ETH_P_ALL

    def make() -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        # SO_RCVBUFFORCE: nothing may be lost of what a test counts.
        made.setsockopt(socket.SOL_SOCKET, 33, 256 << 20)
        made.settimeout(30)
        made.bind((interface, everything))
        return made

    return namespace.inside(make)


def _parse(frame: bytes) -> Packet | None:
    """None for what a kernel sends by itself: reports and questions of IPv6 to its neighbours."""
    (ethertype,) = struct.unpack_from(">H", frame, 12)
    body = frame[14:]
    if ethertype == 0x0800:
        length = (body[0] & 15) * 4
        source, target = (socket.inet_ntop(socket.AF_INET, body[at : at + 4]) for at in (12, 16))
        return Packet(ethertype, source, target, body[9], body[length:])
    if ethertype == 0x86DD:
        protocol = body[6]
        source, target = (socket.inet_ntop(socket.AF_INET6, body[at : at + 16]) for at in (8, 24))
        neighbours = protocol == 0 or (protocol == 58 and 133 <= body[40] <= 137)
        return None if neighbours else Packet(ethertype, source, target, protocol, body[40:])
    return Packet(ethertype, "", "", 0, body)
