"""The addresses of a sandbox's network, and what is known of the host's own.

A sandbox has a link to its supervisor and no other, so two with the same addresses would not meet; they are
made from the sandbox's id all the same, because people tell machines apart by them. IPv4: a /30 of
100.80.0.0/12, a part of the space that RFC 6598 sets apart for what is between a subscriber and a carrier,
which no private network should route; 100.100.100.200, some clouds' metadata service, is outside of it. IPv6:
a /64 of a unique local prefix whose 40 random bits are the id's (RFC 4193).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

MTU = 65520
"""Bytes of the largest IP packet on the link. What leaves the host is in packets of the host's own size: only
datagrams pass as they are, and the host cuts those."""

_IPV4_SPACE = 0x6450_0000  # 100.80.0.0/12
_IPV4_SUBNETS = 18  # bits

_RTM_GETADDR, _RTM_NEWADDR = 22, 20  # linux/rtnetlink.h, from here on
_RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR = 0x10, 0x100
_NLM_F_DUMP_REQUEST = 0x301
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_IFA_ADDRESS, _IFA_LOCAL = 1, 2

_RTF_REJECT, _RTF_LOCAL = 0x0200, 0x8000_0000  # linux/route.h, linux/ipv6_route.h


class Link(NamedTuple):
    """The two ends of a sandbox's link. `ipv4` and `ipv6` are addresses of guest and gateway; None: that
    family is not offered."""

    guest_mac: str
    gateway_mac: str
    ipv4: tuple[str, str] | None
    ipv6: tuple[str, str] | None

    def parameters(self) -> dict[str, Any]:
        """The parameter `network` of agentd's `configure`."""
        offered = [(pair, prefix) for pair, prefix in ((self.ipv4, 30), (self.ipv6, 64)) if pair is not None]
        return {
            "mac": self.guest_mac,
            "addresses": [f"{guest}/{prefix}" for (guest, _), prefix in offered],
            "gateways": [gateway for (_, gateway), _ in offered],
            "mtu": MTU,
            # One is enough: both are the same resolver.
            "nameservers": [offered[0][0][1]],
            "search": [],
        }


def link_of(identifier: str, *, ipv4: bool, ipv6: bool) -> Link:
    """The link of the sandbox with this id, 16 hexadecimal digits, with the families that are offered."""
    number = bytes.fromhex(identifier)
    subnet = int.from_bytes(number, "big") % (1 << _IPV4_SUBNETS)
    base = _IPV4_SPACE + 4 * subnet
    of_four = [socket.inet_ntoa(struct.pack(">I", base + host)) for host in (2, 1)]
    prefix = b"\xfd" + number[:5] + bytes(9)
    of_six = [socket.inet_ntop(socket.AF_INET6, prefix + bytes([host])) for host in (2, 1)]
    tail = number[3:].hex(":")
    return Link(
        # Locally administered, by the second lowest bit of the first byte.
        f"02:{tail}",
        f"06:{tail}",
        (of_four[0], of_four[1]) if ipv4 else None,
        (of_six[0], of_six[1]) if ipv6 else None,
    )


def families() -> tuple[bool, bool]:
    """Whether to offer IPv4, and IPv6: what the host has a route for, and IPv4 if it has none at all, by
    which the sandbox then reaches the host, if it may."""
    ipv4, ipv6 = routed()
    return ipv4 or not ipv6, ipv6


def routed() -> tuple[bool, bool]:
    """Whether the host has a route outwards for IPv4, and for IPv6."""
    ipv4 = any(_leads_out4(line.split()) for line in _lines("/proc/net/route")[1:])
    ipv6 = any(_leads_out6(line.split()) for line in _lines("/proc/net/ipv6_route"))
    return ipv4, ipv6


def _leads_out4(fields: list[str]) -> bool:
    # Interface, destination, gateway, flags, ... in the byte order of the machine.
    link_local = fields[1].endswith("FEA9")
    return fields[0] != "lo" and not int(fields[3], 16) & _RTF_REJECT and not link_local


def _leads_out6(fields: list[str]) -> bool:
    # Destination, length of its prefix, source, length, next hop, metric, two counters, flags, interface.
    narrow = fields[0].startswith("fe8") or fields[0].startswith("ff")
    refused = int(fields[8], 16) & (_RTF_REJECT | _RTF_LOCAL)
    return fields[9] != "lo" and not refused and not narrow


def _lines(path: str) -> list[str]:
    try:
        with open(path) as file:  # noqa: PTH123 - on the way to every start
            return file.read().splitlines()
    except FileNotFoundError:
        return []  # a kernel without IPv6


class HostAddresses:
    """The host's own addresses, by rtnetlink(7), and word of their changes. Raises `OSError`."""

    def __init__(self) -> None:
        self._changes = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        try:
            self._changes.bind((0, _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
        except BaseException:
            self._changes.close()
            raise

    def fileno(self) -> int:
        """Readable when they have changed."""
        return self._changes.fileno()

    def read(self) -> tuple[str, ...]:
        """What they are now; what was said of changes before is settled by that."""
        while True:
            try:
                self._changes.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # more has changed than there was room to say
                    raise
        return tuple(sorted(set(_own_addresses())))

    def close(self) -> None:
        """Hear no more."""
        self._changes.close()


def _own_addresses() -> Iterator[str]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as asking:
        asking.bind((0, 0))
        body = struct.pack("=BBBBI", socket.AF_UNSPEC, 0, 0, 0, 0)
        header = struct.pack("=IHHII", 16 + len(body), _RTM_GETADDR, _NLM_F_DUMP_REQUEST, 1, 0)
        asking.send(header + body)
        while True:
            data = asking.recv(1 << 16)
            while data:
                length, kind = struct.unpack_from("=IH", data)
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    number = -struct.unpack_from("=i", data, 16)[0]
                    raise OSError(number, os.strerror(number))
                if kind == _RTM_NEWADDR:
                    yield from _address_in(data[16:length])
                data = data[(length + 3) & ~3 :]


def _address_in(message: bytes) -> Iterator[str]:
    """The address in a struct ifaddrmsg and its attributes. On a link between two, `IFA_ADDRESS` is the
    other one's."""
    family, found = message[0], {}
    rest = message[8:]
    while len(rest) >= 4:
        length, kind = struct.unpack_from("=HH", rest)
        found[kind] = rest[4:length]
        rest = rest[(max(length, 4) + 3) & ~3 :]
    address = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS))
    if address is not None and family in (socket.AF_INET, socket.AF_INET6):
        yield socket.inet_ntop(family, address)
