"""What a hostile guest sends: lines for `sender.c`, the same from a namespace and from a machine."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from tests.support.internet import Capture, Internet


class Attacker(NamedTuple):
    """Root in a guest, and what can be seen of what it does.

    Attributes:
        shell: runs a script of busybox with the given standard input; its standard output.
        capture: everything that left the host since the guest started.
        link: the guest's own IPv4 address and MAC, the gateway's address and MAC.
        own6: the guest's own IPv6 address.
        audit: what the guest's network has put on record.
    """

    internet: Internet
    shell: Callable[[str, str], str]
    capture: Capture
    link: tuple[str, str, str, str]
    own6: str
    audit: Callable[[], list[dict[str, Any]]]

    def send(self, lines: Iterable[str]) -> list[str]:
        """Have `sender` do these; what it said of each."""
        asked = list(lines)
        said = self.shell("/tmp/sender", "".join(f"{line}\n" for line in asked)).splitlines()
        assert len(said) == len(asked), said
        return said


def tcp(address: str, port: int, *turns: bytes | list[bytes]) -> str:
    """A connection, and turns, each to be answered; the pieces of a list go in segments of their own."""
    pieces = [[turn] if isinstance(turn, bytes) else turn for turn in turns if turn]
    words = [",".join(piece.hex() for piece in turn) for turn in pieces]
    return " ".join(["tcp", address, str(port), *words])


def udp(address: str, port: int, data: bytes = b"secret") -> str:
    """A datagram."""
    return f"udp {address} {port} {data.hex()}"


def frame(data: bytes) -> str:
    """Anything."""
    return f"frame eth0 {data.hex()}"


def client_hello(name: str | None, *more: bytes) -> bytes:
    """A TLS record in which a client says hello to `name` (RFC 8446, 4.1.2), with `more` extensions."""
    extensions = extension(43, b"\x02\x03\x04")  # supported_versions: 1.3
    if name is not None:
        extensions += server_name(name)
    extensions += b"".join(more)
    body = b"\x03\x03" + bytes(32) + b"\x00" + b"\x00\x02\x13\x01" + b"\x01\x00"
    body += struct.pack(">H", len(extensions)) + extensions
    message = b"\x01" + struct.pack(">I", len(body))[1:] + body
    # A record holds 16 KiB.
    parts = [message[at : at + (1 << 14)] for at in range(0, len(message), 1 << 14)]
    return b"".join(b"\x16\x03\x01" + struct.pack(">H", len(part)) + part for part in parts)


def extension(number: int, content: bytes) -> bytes:
    """One of a ClientHello (RFC 8446, 4.2)."""
    return struct.pack(">HH", number, len(content)) + content


def server_name(*names: str) -> bytes:
    """The extension that names the server (RFC 6066, 3)."""
    entries = b"".join(struct.pack(">BH", 0, len(name)) + name.encode() for name in names)
    return extension(0, struct.pack(">H", len(entries)) + entries)


def http2(kind: int, stream: int, content: bytes, *, flags: int = 0) -> bytes:
    """A frame (RFC 9113, 4.1)."""
    return struct.pack(">IBBI", len(content), kind, flags, stream)[1:] + content


def http2_get(stream: int, authority: str) -> bytes:
    """A HEADERS frame with a whole GET of `/` (RFC 7541, 6.2.2: literals that no table keeps)."""
    return http2(1, stream, b"\x82\x86\x84\x01" + bytes([len(authority)]) + authority.encode(), flags=5)


def question(name: str, kind: int = 1) -> bytes:
    """A DNS message that asks for `name`."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack(">HHHHHH", 0x4242, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", kind, 1)


def rcode(answer: str) -> int:
    """Of a DNS message in hexadecimal digits: 0 is a name that exists, 3 one that does not."""
    return bytes.fromhex(answer)[3] & 15


def ipv4(
    source: str,
    target: str,
    protocol: int,
    payload: bytes,
    *,
    ttl: int = 64,
    number: int = 7,
    fragment: int = 0,
    options: bytes = b"",
) -> bytes:
    """A packet with a right checksum. `number`: of a datagram in fragments; `fragment`: the 16 bits of flags
    and offset (RFC 791)."""
    octets = [bytes(int(part) for part in address.split(".")) for address in (source, target)]
    version = 0x45 + len(options) // 4
    length = 20 + len(options) + len(payload)
    head = struct.pack(">BBHHHBBH", version, 0, length, number, fragment, ttl, protocol, 0)
    head += b"".join(octets) + options
    return head[:10] + checksum(head) + head[12:] + payload


def ipv6(source: str, target: str, following: int, payload: bytes, *, hops: int = 64) -> bytes:
    """A packet whose first header after its own is of the type `following`."""
    ends = b"".join(socket.inet_pton(socket.AF_INET6, address) for address in (source, target))
    return struct.pack(">IHBB", 6 << 28, len(payload), following, hops) + ends + payload


def segment(source: str, target: str, ports: tuple[int, int], flags: int, *, number: int = 1) -> bytes:
    """A packet of TCP over IPv4 without data, with right checksums."""
    head = struct.pack(">HHIIBBHHH", *ports, number, 0, 5 << 4, flags, 65_535, 0, 0)
    ends = socket.inet_aton(source) + socket.inet_aton(target) + struct.pack(">HH", 6, len(head))
    return ipv4(source, target, 6, head[:16] + checksum(ends + head) + head[18:])


def echo_request(data: bytes, *, kind: int = 8) -> bytes:
    """A message of ICMP: an echo request, or of another `kind`."""
    head = struct.pack(">BBHHH", kind, 0, 0, 0x1234, 1) + data + bytes(len(data) % 2)
    return head[:2] + checksum(head) + head[4:]


def checksum(data: bytes) -> bytes:
    """The Internet's (RFC 1071), of an even number of bytes."""
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack(">H", 0xFFFF - total)


def ethernet(target: str, source: str, kind: int, body: bytes) -> bytes:
    """A frame."""
    return (
        b"".join(bytes.fromhex(mac.replace(":", "")) for mac in (target, source))
        + struct.pack(">H", kind)
        + body
    )
