"""A hostile guest and names: those it states on the wire, and those it asks for (ADVERSARIAL, N).

Each case runs twice, as in test_attacks.py. Cases of one policy share a guest.
"""

from __future__ import annotations

import base64
import random
import socket
import struct
import time

from tests.support.attack import (
    Attacker,
    client_hello,
    extension,
    http2,
    http2_get,
    question,
    rcode,
    server_name,
    tcp,
    udp,
)
from tests.support.attackers import DENIED, Attack
from tests.support.internet import LAN, ROUTER, WWW, Internet
from tests.support.internet_servers import AAAA, HTTP, A
from tests.support.recorder import Recorder

GOOD, SIBLING = "www.example.com", "sibling.example.com"
GIT, MIDDLE = "140.82.121.4", "151.101.2.132"
"""Where a tunnel may lead, and the proxy that makes tunnels."""
REFUSED = "ECONNRESET"
TLS, H2, PROXY, RELAY = 443, 8080, 3128, 3129
NULL, ANY, AXFR, PRIVATE_USE, TXT = 10, 255, 252, 65_280, 16
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def request(host: str, *, method: str = "GET", target: str = "/who", more: str = "") -> bytes:
    """One of HTTP/1.1."""
    return f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n".encode()


def test_names_on_the_wire(attack: Attack, internet: Internet) -> None:
    rules = (f"allow@{GOOD}", f"allow@{MIDDLE}:tcp:{PROXY}", f"allow@{GIT}:tcp:22")
    with attack("none", *rules) as guest:
        for kind in (A, AAAA):
            assert rcode(guest.send([udp(ROUTER[0], 53, question(GOOD, kind))])[0]) == 0
        n02_n06_hello(guest)
        n04_requests(guest)
        n37_websocket(guest)
        with Recorder(internet, PROXY, b"HTTP/1.1 200 OK\r\n\r\n", end=b"\r\n\r\n") as proxy:
            n22_tunnels(guest, proxy)
            n23_proxies_of_the_guest(guest, proxy)
        # N38: QUIC is refused at once, so that clients fall back to TCP.
        assert set(guest.send(udp(address, 443, b"\xc3" * 1200) for address in WWW)) <= DENIED
        left = {(packet.protocol, packet.target, packet.port) for packet in guest.capture.packets()}
    assert {target for _, target, _ in left} == {ROUTER[0], MIDDLE, *WWW}
    assert {port for protocol, _, port in left if protocol == socket.IPPROTO_UDP} == {53}
    assert {question.name for question in internet.dns.questions} == {GOOD}


def n02_n06_hello(guest: Attacker) -> None:
    """What a ClientHello may be like in which an allowed name is not all that is said."""
    hidden = extension(0xFE0D, b"\x00\x00\x01\x00\x01\x07\x00\x20" + bytes(32) + b"\x00\x10" + bytes(16))
    denied = {
        "N02, another name of the same address": client_hello(SIBLING),
        "N06, no name": client_hello(None),
        "N06, the address": client_hello(WWW[0]),
        "N06, an encrypted ClientHello": client_hello(GOOD, hidden),
        "N06, two names": client_hello(None, server_name(GOOD, SIBLING)),
        "N06, two extensions": client_hello(GOOD, server_name(SIBLING)),
        "N06, 17 kB": client_hello(GOOD, extension(21, bytes(17_000))),
    }
    with Recorder(guest.internet, TLS, b"ok", end=client_hello(GOOD)) as server:
        said = guest.send(tcp(WWW[n % 2], TLS, each) for n, each in enumerate(denied.values()))
        assert dict(zip(denied, said, strict=True)) == dict.fromkeys(denied, f"open {REFUSED}")
        assert server.heard(len(denied)) == [b""] * len(denied)
        # In five segments it is read as a whole.
        for name, outcome, heard in ((SIBLING, REFUSED, b""), (GOOD, b"ok".hex(), client_hello(GOOD))):
            hello = client_hello(name)
            fifth = len(hello) // 5 + 1
            pieces = [hello[at : at + fifth] for at in range(0, len(hello), fifth)]
            assert guest.send([tcp(WWW[0], TLS, pieces)]) == [f"open {outcome}"]
            assert server.heard(1) == [heard]


def n04_requests(guest: Attacker) -> None:
    """Every request of a connection is decided on by its own host."""
    served = guest.internet.servers.calls
    served.clear()
    good, evil = request(GOOD, method="HEAD"), request(SIBLING)
    (said,) = guest.send([tcp(WWW[0], HTTP, good, good, evil)])
    _, first, second, last = said.split()
    assert first.startswith(b"HTTP/1.1 200".hex())
    assert second.startswith(b"HTTP/1.1 200".hex())
    assert last == REFUSED
    two = request(GOOD, more=f"Host: {SIBLING}\r\n")
    folded = request(GOOD, more=f"X: y\r\n Host: {SIBLING}\r\n")
    said_to = [evil, two, folded, request(GOOD, target=f"http://{SIBLING}/who")]
    assert guest.send(tcp(WWW[0], HTTP, each) for each in said_to) == [f"open {REFUSED}"] * len(said_to)
    assert [call.host for call in served] == [GOOD, GOOD]
    begun = PREFACE + http2(4, 0, b"") + http2_get(1, GOOD)
    with Recorder(guest.internet, H2, http2(4, 0, b""), end=begun) as server:
        (said,) = guest.send([tcp(WWW[0], H2, begun, http2_get(3, SIBLING))])
        assert said == f"open {http2(4, 0, b'').hex()} {REFUSED}"
        assert server.heard(1) == [begun]


def n37_websocket(guest: Attacker) -> None:
    """Frames of a WebSocket pass once the server has agreed."""
    key = base64.b64encode(bytes(16)).decode()
    upgrade = f"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: {key}\r\n"
    ask = request(GOOD, target="/websocket", more=upgrade)
    (said,) = guest.send([tcp(WWW[0], HTTP, ask, b"\x81\x85\0\0\0\0hello", b"\x81\x83\0\0\0\0end")])
    _, agreed, *frames = said.split()
    assert agreed.startswith(b"HTTP/1.1 101".hex())
    assert frames == [b"\x81\x05hello".hex(), b"\x81\x03end".hex()]


def connect(to: str) -> bytes:
    """The question for a tunnel."""
    return f"CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n".encode()


def n22_tunnels(guest: Attacker, proxy: Recorder) -> None:
    """Who may speak with a proxy may not by that speak with everybody."""
    lan = socket.inet_aton(LAN)
    refused = [
        connect(f"{LAN}:22"),
        connect(f"{SIBLING}:443"),
        connect("169.254.169.254:80"),
        request(LAN, target=f"http://{LAN}/"),
        request(SIBLING, target=f"http://{SIBLING}/"),
        b"\x04\x01\x00\x16" + lan + b"me\0",
        b"\x04\x01\x01\xbb\0\0\0\x01me\0" + SIBLING.encode() + b"\0",
        b"\x05\x01\x00\x05\x01\x00\x01" + lan + b"\x00\x16",
        b"\x05\x01\x00\x05\x01\x00\x03" + bytes([len(SIBLING)]) + SIBLING.encode() + b"\x01\xbb",
        b"\x05\x01\x00\x05\x03\x00\x01" + lan + b"\x00\x35",
    ]
    said = guest.send(tcp(MIDDLE, PROXY, each) for each in refused)
    assert said == [f"open {REFUSED}"] * len(refused)
    for asked, came in zip(refused, proxy.heard(len(refused)), strict=True):
        assert len(came) < len(asked), came
    # A tunnel in a tunnel.
    first = connect(f"{GIT}:22")
    (nested,) = guest.send([tcp(MIDDLE, PROXY, first, connect(f"{LAN}:22"))])
    assert nested == f"open {b'HTTP/1.1 200 OK'.hex()}0d0a0d0a {REFUSED}"
    (came,) = proxy.heard(1)
    assert came.startswith(first)
    assert len(came) < len(first + connect(f"{LAN}:22"))


def n23_proxies_of_the_guest(guest: Attacker, proxy: Recorder) -> None:
    """Straight, and through a relay of its own, the guest gets as far as by a proxy that it was given."""
    assert guest.send([tcp(LAN, 22)]) == ["ECONNREFUSED"]
    guest.shell(
        f"busybox nc -l -p {RELAY} -e busybox nc {MIDDLE} {PROXY} </dev/null >/dev/null 2>&1 & "
        f"until busybox netstat -lnt | grep -q :{RELAY}; do :; done",
        "",
    )
    assert guest.send([tcp("127.0.0.1", RELAY, connect(f"{LAN}:22"))])[0] in (f"open {REFUSED}", "open EOF")
    (came,) = proxy.heard(1)
    assert len(came) < len(connect(f"{LAN}:22"))


def test_names_that_are_asked_for(attack: Attack, internet: Internet) -> None:
    with attack("public-only") as guest:
        n13_n14_inwards(guest)
        n16_answers_that_cannot_be(guest)
        n19_types(guest)
        n17_n19_floods(guest)
        # Nothing but questions to the one name server, and the last flow.
        left = {(packet.protocol, packet.target, packet.port) for packet in guest.capture.packets()}
    tcp_, udp_ = socket.IPPROTO_TCP, socket.IPPROTO_UDP
    assert left <= {(udp_, ROUTER[0], 53), (tcp_, ROUTER[0], 53), (tcp_, WWW[0], HTTP)}


def asked(guest: Attacker, name: str, kind: int = A) -> tuple[int, str]:
    """The code of the answer, and all of it in hexadecimal digits."""
    (answer,) = guest.send([udp(guest.link[2], 53, question(name, kind))])
    return rcode(answer), answer


def n13_n14_inwards(guest: Attacker) -> None:
    """No name leads to what is not public, neither at first nor later."""
    inner = {
        "lan": LAN, "private": "192.168.1.1", "loopback": "127.0.0.1", "nothing": "0.0.0.0",
        "metadata": "169.254.169.254", "shared": "100.64.0.1",
        "local6": "::1", "unique6": "fd77::9", "metadata6": "fd00:ec2::254", "mapped6": "::ffff:10.77.0.9",
    }  # fmt: skip
    zone = guest.internet.dns.zone
    zone.update({f"{name}.example.org": (address,) for name, address in inner.items()})
    answers = guest.send(
        udp(guest.link[2], 53, question(f"{name}.example.org", AAAA if ":" in address else A))
        for name, address in inner.items()
    )
    assert {name: rcode(answer) for name, answer in zip(inner, answers, strict=True)} == dict.fromkeys(
        inner, 3
    )
    said = guest.send(tcp(address, HTTP) for address in inner.values())
    assert set(said) <= DENIED | {"EINVAL", "EADDRNOTAVAIL"}
    # First public, then not.
    guest.internet.dns.ttl = 0
    zone["rebind.example.org"] = (WWW[0],)
    assert socket.inet_aton(WWW[0]).hex() in asked(guest, "rebind.example.org")[1]
    zone["rebind.example.org"] = (LAN,)
    assert asked(guest, "rebind.example.org")[0] == 3
    assert guest.send([tcp(LAN, HTTP)]) == ["ECONNREFUSED"]
    guest.internet.dns.ttl = 60


def n16_answers_that_cannot_be(guest: Attacker) -> None:
    """Of a name server that lies or raves, nothing reaches the guest."""
    crooked = guest.internet.dns.crooked
    right, wrong = "151.101.0.223", "6.6.6.6"

    def answer(message: bytes, records: list[bytes], *, number: bytes = b"") -> bytes:
        """With these records, which leave out their name, to the question of the message."""
        end = message.index(b"\0", 12) + 5
        head = (number or message[:2]) + struct.pack(">HHHHH", 0x8180, 1, len(records), 0, 0)
        return head + message[12:end] + b"".join(records)

    def record(address: str, name: bytes = b"\xc0\x0c") -> bytes:
        return name + struct.pack(">HHIH", A, 1, 60, 4) + socket.inet_aton(address)

    def forged(message: bytes) -> list[bytes]:
        other = bytes([message[0], message[1] ^ 1])
        renamed = message[:13] + b"x" + message[14:]
        lies = [answer(message, [record(wrong)], number=other), answer(renamed, [record(wrong)])]
        return [*lies, answer(message, [record(right)])]

    crooked["many.example.org"] = lambda message: [
        answer(message, [record(f"6.6.{n // 250}.{n % 250}") for n in range(500)])
    ]
    # A name that points at itself.
    crooked["loop.example.org"] = lambda message: [
        answer(message, [record(wrong, struct.pack(">H", 0xC000 + message.index(b"\0", 12) + 5))])
    ]
    crooked["short.example.org"] = lambda message: [answer(message, [record(wrong)])[:-2]]
    crooked["forged.example.org"] = forged
    *none, text = guest.send(udp(guest.link[2], 53, question(name)) for name in crooked)
    assert [rcode(answer) for answer in none] == [2, 2, 2]
    assert rcode(text) == 0
    assert socket.inet_aton(right).hex() in text
    assert socket.inet_aton(wrong).hex() not in text


def n19_types(guest: Attacker) -> None:
    """Types that carry data and that no program needs are refused here."""
    kinds = (NULL, ANY, AXFR, PRIVATE_USE)
    answers = guest.send(udp(guest.link[2], 53, question("t.example.org", kind)) for kind in kinds)
    assert [rcode(answer) for answer in answers] == [5] * len(kinds)
    assert not [each for each in guest.internet.dns.questions if each.name == "t.example.org"]
    assert any("type" in str(record["rule"]) for record in guest.audit())


def n17_n19_floods(guest: Attacker) -> None:
    """Names that carry data, and names without number: what goes out of them is bounded, and so are pins."""
    heard = guest.internet.dns.questions
    heard.clear()
    begun = time.monotonic()
    draw = random.Random(19)
    labels = [base64.b32encode(draw.randbytes(32)).decode().rstrip("=").lower() for _ in range(300)]
    kinds = (A, TXT)
    said = guest.send(
        udp(guest.link[2], 53, question(f"{label}.tunnel.example.org", kinds[n % 2]))
        for n, label in enumerate(labels)
    )
    seconds = time.monotonic() - begun
    assert {rcode(each) for each in said} <= {3, 5}
    assert sum(len(label) for label in labels if any(label in q.name for q in heard)) <= 4096 + 32 * seconds
    # Below one domain some 300 names at once, and all others of this guest go on.
    said = guest.send(udp(guest.link[2], 53, question(f"n{n}.flood.example.net")) for n in range(400))
    seconds = time.monotonic() - begun
    assert sum("flood" in each.name for each in heard) <= 300 + 10 * seconds
    assert any("limit" in str(record["rule"]) for record in guest.audit())
    assert asked(guest, GOOD)[0] == 0
    (answer,) = guest.send([tcp(WWW[0], HTTP, request(GOOD))])
    assert answer.startswith("open " + b"HTTP/1.1 200".hex())


def test_n21_addresses_that_stand_for_names(attack: Attack, internet: Internet) -> None:
    with attack("none", f"allow@{GOOD}:tcp:{HTTP}", dns_mode="synthetic") as guest:
        code, answer = asked(guest, GOOD)
        assert code == 0
        address = socket.inet_ntoa(bytes.fromhex(answer)[-4:])
        assert address.startswith(("198.18.", "198.19."))
        assert asked(guest, SIBLING)[0] == 3
        assert asked(guest, f"{'secret' * 6}.{GOOD}")[0] == 3
        assert guest.send([tcp("198.19.255.250", HTTP)]) == ["ECONNREFUSED"]
        # Until it connects, no question has left the host, and nothing else.
        assert internet.dns.questions == []
        assert guest.capture.packets() == []
        denied, reached = guest.send(
            [tcp(address, HTTP, request(SIBLING)), tcp(address, HTTP, request(GOOD))]
        )
        assert denied == f"open {REFUSED}"
        assert reached.startswith("open " + b"HTTP/1.1 200".hex())
        assert {each.name for each in internet.dns.questions} == {GOOD}
