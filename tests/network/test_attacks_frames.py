"""Frames as no kernel sends them, from a hostile guest, and floods of them (ADVERSARIAL, N).

Each case runs twice, as in test_attacks.py; they share a guest, whose policy lets everything pass but ICMP.
"""

from __future__ import annotations

import struct

from tests.support.attack import (
    Attacker,
    echo_request,
    ethernet,
    frame,
    ipv4,
    ipv6,
    segment,
    tcp,
    udp,
)
from tests.support.attackers import Attack
from tests.support.internet import SILENT, WWW, Internet
from tests.support.internet_servers import ECHO, HTTP, pattern

DATAGRAM = struct.pack(">HHHH", 4000, 9, 14, 0) + b"secret"
HONEST = b"what comes in honest pieces, the last one first"
UDP, ICMP, ICMP6 = 17, 1, 58
MORE = 0x2000
"""The flag of a fragment that is not the last one."""
SYN, RST, FIN_ACK = 2, 4, 17
SYN_SENT = "02"
"""As /proc/net/tcp has it (include/net/tcp_states.h)."""
HALF_OPEN = 2048
"""Connections of a guest that wait for their targets' answer, at most."""


def test_frames_and_floods(attack: Attack, internet: Internet) -> None:
    with attack("allow-all", "deny@any:icmp") as guest:
        said = guest.send([*n26_icmp(guest), *n26_fragments(guest), *n27_headers(guest)])
        assert set(said) == {"sent"}
        # What comes last is answered: by then all before it was looked at. It is what may leave.
        (answer,) = guest.send([udp(WWW[0], ECHO, pattern(1000))])
        assert answer == pattern(1000).hex()
        left = [packet for packet in guest.capture.packets() if packet.port != ECHO]
        assert [packet.data[8:] for packet in left] == [HONEST]
        n30_floods(guest)


def four(guest: Attacker, protocol: int, payload: bytes, **how: int | bytes) -> str:
    """An IPv4 packet of the guest to a public host."""
    own, mac, _, gateway_mac = guest.link
    packet = ipv4(own, WWW[0], protocol, payload, **how)  # type: ignore[arg-type]
    return frame(ethernet(gateway_mac, mac, 0x0800, packet))


def six(guest: Attacker, following: int, payload: bytes, *, hops: int = 64) -> str:
    """An IPv6 packet of the guest to a public host."""
    _, mac, _, gateway_mac = guest.link
    packet = ipv6(guest.own6, WWW[1], following, payload, hops=hops)
    return frame(ethernet(gateway_mac, mac, 0x86DD, packet))


def n26_icmp(guest: Attacker) -> list[str]:
    """Echo requests and all other messages, with a payload, where ICMP is not allowed."""
    kinds = (8, 0, 3, 4, 5, 9, 11, 13, 17)
    messages = [four(guest, ICMP, echo_request(b"secret" * 100, kind=kind)) for kind in kinds]
    return [
        *messages,
        *(six(guest, ICMP6, bytes([kind, 0, 0, 0]) + b"secret" * 9) for kind in (128, 129, 137)),
    ]


def n26_fragments(guest: Attacker) -> list[str]:
    """Pieces that overlap, that end beyond 65,535 bytes, of which the first never comes; and honest ones."""
    long = struct.pack(">HHHH", 4000, 9, 64, 0) + b"secret" * 9 + bytes(2)
    overlapping = [(MORE, long[:32]), (MORE | 2, b"SECRET" * 4), (4, long[32:])]
    death = [(MORE, long[:32]), (0x1FFF, bytes(600)), (0x1FFF - 60, bytes(800))]
    headless = [(2, long[16:]), (MORE | 1, long[8:16])]
    whole = struct.pack(">HHHH", 4000, 9, 8 + len(HONEST), 0) + HONEST
    honest = [(3, whole[24:]), (MORE, whole[:24])]
    return [
        four(guest, UDP, piece, number=number, fragment=where)
        for number, pieces in enumerate((overlapping, death, headless, honest))
        for where, piece in pieces
    ]


def n27_headers(guest: Attacker) -> list[str]:
    """Headers that hide what follows them, and packets at the end of their way."""
    extensions = [
        (0, struct.pack(">BBBBI", UDP, 0, 0xC2, 4, 1 << 16)),  # hop-by-hop: a jumbogram
        (0, bytes([UDP, 0, 1, 4, 0, 0, 0, 0])),
        (43, bytes([UDP, 2, 0, 1, 0, 0, 0, 0]) + bytes([0xFD] * 16)),  # routing, of type 0
        (60, bytes([UDP, 0, 1, 4, 0, 0, 0, 0])),
        (51, bytes([UDP, 2, 0, 0, 0, 0, 0, 1]) + bytes(8)),
        (44, bytes([UDP, 0, 0, 1, 0, 0, 0, 7])),  # a first fragment alone
        (44, bytes([60, 0, 0, 0, 0, 0, 0, 8]) + bytes([UDP, 0, 1, 4, 0, 0, 0, 0])),
        (0, bytes([43, 0, 1, 4, 0, 0, 0, 0]) + bytes([UDP, 0, 0, 0, 0, 0, 0, 0])),
    ]
    options = (b"\x83\x07\x04\x08\x08\x08\x08\0", b"\x07\x07\x04\0\0\0\0\0", b"\x94\x04\0\0")
    return [
        *(six(guest, following, header + DATAGRAM) for following, header in extensions),
        *(four(guest, UDP, DATAGRAM, options=each) for each in options),
        four(guest, UDP, DATAGRAM, ttl=1),
        six(guest, UDP, DATAGRAM, hops=1),
    ]


def n30_floods(guest: Attacker) -> None:
    """Ten thousand connections that are begun and not made, resets and ends of streams that nobody has."""
    own, mac, _, gateway_mac = guest.link

    def flood(target: str, flags: int, count: int) -> list[str]:
        packets = (segment(own, target, (port, HTTP), flags) for port in range(20_000, 20_000 + count))
        return [frame(ethernet(gateway_mac, mac, 0x0800, packet)) for packet in packets]

    said = guest.send([*flood(SILENT, SYN, 10_000), *flood(WWW[0], RST, 500), *flood(WWW[0], FIN_ACK, 500)])
    assert set(said) == {"sent"}
    asks = b"GET /who HTTP/1.1\r\nHost: www.example.com\r\nConnection: close\r\n\r\n"
    for answer in guest.send(tcp(address, HTTP, asks) for address in WWW):
        assert answer.startswith("open " + b"HTTP/1.1 200".hex())
    # The ones begun first gave way to others.
    begun = guest.internet.host.run("cat", "/proc/net/tcp").stdout.splitlines()[1:]
    assert sum(line.split()[3] == SYN_SENT for line in begun) <= HALF_OPEN
