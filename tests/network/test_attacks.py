"""A hostile guest in an internet of its own: what the policy denies does not leave the host (ADVERSARIAL, N).

Each case runs twice: from a network namespace, and as root of a busybox machine. "Nothing left" is what
captures on the far end of the host's cable and on the host's loopback say.
"""

from __future__ import annotations

import socket
import struct

import pytest

from tests.support.attack import (
    client_hello,
    ethernet,
    frame,
    ipv4,
    question,
    rcode,
    tcp,
    udp,
)
from tests.support.attackers import DENIED, Attack, from_namespace
from tests.support.internet import HOST, LAN, ROUTER, WWW, Internet
from tests.support.internet_servers import HTTP
from tests.support.msb import Msb

PRESETS = ("none", "public-only", "nonlocal", "allow-all")
GET = b"GET /who HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n"


def everything(address: str) -> list[str]:
    """All kinds of flows to an address."""
    ports = (1, 22, 80, 443, 853, 5353, 8080, 65535)
    return [*(tcp(address, port) for port in ports), *(udp(address, port) for port in (1, 123, 443, 5353))]


def test_n01_nothing_leaves_without_a_rule(attack: Attack) -> None:
    with attack("none", "allow@never.example.org") as guest:
        own, mac, gateway, gateway_mac = guest.link
        targets = (WWW[0], WWW[1], LAN, HOST[0], ROUTER[0], "127.0.0.1", gateway, "fd77::9")
        said = guest.send(line for target in targets for line in everything(target))
        assert set(said) <= DENIED | {"ENETUNREACH", "EINVAL"}
        raw = [
            frame(ethernet(gateway_mac, mac, 0x0800, ipv4(own, WWW[0], protocol, bytes(40))))
            for protocol in (2, 4, 33, 41, 47, 50, 89, 132, 136)
        ]
        who_has = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1) + bytes.fromhex(mac.replace(":", ""))
        who_has += socket.inet_aton(own) + bytes(6) + socket.inet_aton(LAN)
        raw.append(frame(ethernet("ff:ff:ff:ff:ff:ff", mac, 0x0806, who_has)))
        assert set(guest.send(raw)) == {"sent"}
        for target in (WWW[0], LAN):
            assert "1 packets transmitted, 0 packets received" in guest.shell(f"ping -c1 -W1 {target}", "")
        assert guest.capture.packets() == []
        assert guest.internet.dns.questions == []


@pytest.mark.vm
@pytest.mark.root
def test_n01_without_any_rule_there_is_no_link(internet: Internet, msb: Msb) -> None:
    capture = internet.capture()
    inside = msb.within(internet.host)
    asks = "wget -T1 -qO- http://93.184.216.34/; nslookup www.example.com"
    script = f"cat /sys/class/net/eth0/carrier; {{ {asks}; }} >/dev/null"
    done = inside("run", "--network-policy", "none", "busybox", "--", "sh", "-c", script)
    assert done.out in (b"0\n", b"")
    assert done.code != 0
    assert capture.packets() == []


def test_n03_a_name_opens_the_addresses_it_led_to_and_no_others(attack: Attack) -> None:
    with attack("none", "allow@www.example.com:tcp:443") as guest:
        hello = client_hello("www.example.com")
        assert guest.send([tcp(WWW[0], 443, hello)]) == ["ECONNREFUSED"], "the name was not resolved yet"
        (answer,) = guest.send([udp(ROUTER[0], 53, question("www.example.com"))])
        assert rcode(answer) == 0
        assert guest.send([tcp("140.82.121.4", 443, hello)]) == ["ECONNREFUSED"]
        assert {packet.port for packet in guest.capture.packets()} == {53}
        # The right address, and what was said there.
        with guest.internet.listen(443) as server:
            for name in ("sibling.example.com", None):
                said = guest.send([tcp(WWW[0], 443, client_hello(name))])
                assert said == ["open ECONNRESET"]
                with server.accept()[0] as arrived, pytest.raises(ConnectionResetError):
                    arrived.recv(1)


METADATA = [
    "169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "fd00:ec2::254",
    "::ffff:169.254.169.254", "::169.254.169.254", "::ffff:0:a9fe:a9fe", "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a9fe:a9fe", "2002:a9fe:a9fe::1", "2001:0:a9fe:a9fe::5601:5601",
]  # fmt: skip


@pytest.mark.parametrize("preset", PRESETS)
def test_n11_no_preset_lets_a_metadata_service_be_reached(internet: Internet, preset: str) -> None:
    with from_namespace(internet, preset) as guest:
        said = guest.send(f(address, 80, b"secret") for address in METADATA for f in (tcp, udp))
        assert set(said) <= DENIED | {"EINVAL", "EADDRNOTAVAIL"}
        assert guest.capture.packets() == []


def test_n11_metadata_services_are_not_part_of_anything(attack: Attack) -> None:
    with attack("allow-all", "allow@any", "allow@169.254.0.0/16", "allow@.google.internal") as guest:
        said = guest.send(
            line for address in METADATA for line in (tcp(address, 80, GET % b"x"), udp(address, 80))
        )
        assert set(said) <= DENIED | {"EINVAL", "EADDRNOTAVAIL"}
        for form in ("2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.16689662"):
            guest.shell(f"wget -T2 -qO- http://{form}/ 2>&1 || true", "")
        found = guest.send([udp(ROUTER[0], 53, question("metadata.google.internal"))])
        assert rcode(found[0]) != 0
        assert [packet for packet in guest.capture.packets() if packet.port != 53] == []


def test_n12_special_addresses_are_not_public(attack: Attack) -> None:
    # No link-local address: Linux asks for its neighbour first, and nobody here is one.
    special = [
        "100.64.0.1", "192.0.0.8", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "240.0.0.1",
        "255.255.255.255", "224.0.0.1", "239.255.255.250", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1",
        "ff02::1", "ff02::fb", "fc00::1", "2001:db8::1", "100::1", "::1", "2002:0a01:0203::1",
    ]  # fmt: skip
    with attack("public-only") as guest:
        said = guest.send(line for address in special for line in (tcp(address, HTTP), udp(address, 1900)))
        # "silent": multicast and broadcast, of which no host tells anybody that nobody took it.
        assert set(said) <= DENIED | {"EINVAL", "EADDRNOTAVAIL", "silent", "ENETUNREACH"}
        assert guest.capture.packets() == []


def test_n18_a_denied_name_is_never_asked_for(attack: Attack) -> None:
    with attack("none", "allow@www.example.com") as guest:
        secret = question("secret.example.net")
        servers = (guest.link[2], "8.8.8.8", ROUTER[0])
        for said in guest.send(udp(server, 53, secret) for server in servers):
            assert rcode(said) == 3
        framed = struct.pack(">H", len(secret)) + secret
        for said in guest.send(tcp(server, 53, framed) for server in servers):
            outcome, _, answer = said.partition(" ")
            assert (outcome, rcode(answer[4:])) == ("open", 3)
        assert set(guest.send([tcp("8.8.8.8", 853), udp("8.8.8.8", 853)])) <= DENIED
        assert guest.internet.dns.questions == []
        assert guest.capture.packets() == []
        # While the one that may be asked for is, of the resolver that the host has.
        assert rcode(guest.send([udp("8.8.8.8", 53, question("www.example.com"))])[0]) == 0
        assert {packet.target for packet in guest.capture.packets()} == {ROUTER[0]}


def test_n20_other_ways_to_a_resolver_are_closed(attack: Attack) -> None:
    with attack("public-only", "allow@www.example.com") as guest:
        resolvers = ("1.1.1.1", "8.8.8.8", "9.9.9.9", "2606:4700:4700::1111", "2001:4860:4860::8888")
        lines = [tcp(address, 443, client_hello("dns.google")) for address in resolvers]
        lines += [f(address, 853) for address in resolvers for f in (tcp, udp)]
        lines += [udp(WWW[0], port) for port in (137, 443, 5353, 5355)]
        assert set(guest.send(lines)) <= DENIED
        guest.send([udp("224.0.0.251", 5353), udp("ff02::fb", 5353), udp("224.0.0.252", 5355)])
        assert guest.capture.packets() == []


def test_n28_nobody_but_the_guest_speaks(attack: Attack) -> None:
    with attack("allow-all") as guest:
        own, mac, gateway, gateway_mac = guest.link
        datagram = struct.pack(">HHHH", 4000, 9, 14, 0) + b"secret"
        other = "02:00:00:00:00:77"
        said = guest.send(
            [
                frame(ethernet(gateway_mac, mac, 0x0800, ipv4(source, WWW[0], 17, datagram)))
                for source in (
                    gateway,
                    "127.0.0.1",
                    HOST[0],
                    WWW[0],
                    "10.9.0.77",
                    "0.0.0.0",
                    "255.255.255.255",
                )
            ]
            + [frame(ethernet(gateway_mac, other, 0x0800, ipv4(own, WWW[0], 17, datagram)))]
        )
        assert set(said) == {"sent"}
        # "I am the gateway", to all and to the gateway.
        address = bytes.fromhex(mac.replace(":", ""))
        body = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 2) + address + socket.inet_aton(gateway)
        for target in ("ff:ff:ff:ff:ff:ff", gateway_mac):
            guest.send([frame(ethernet(target, mac, 0x0806, body + address + socket.inet_aton(gateway)))])
        assert guest.capture.packets() == []
        # And still it is the guest's link, with the guest's own address.
        said = guest.send([tcp(WWW[0], HTTP, GET % b"www.example.com")])
        assert said[0].startswith("open " + b"HTTP/1.1 200".hex())


def test_n35_the_host_is_reached_only_where_a_rule_says_so(attack: Attack, internet: Internet) -> None:
    name = "host.microsandbox.internal"
    server = internet.host.inside(lambda: socket.create_server(("127.0.0.1", 11434)))
    other = internet.host.inside(lambda: socket.create_server(("127.0.0.1", 11435)))
    with server, other:
        with attack("public-only") as guest:
            gateway = guest.link[2]
            assert rcode(guest.send([udp(gateway, 53, question(name))])[0]) == 3
            assert (
                set(guest.send([tcp(gateway, 11434), tcp(HOST[0], 11434), tcp("127.0.0.1", 11434)])) <= DENIED
            )
            assert guest.capture.packets() == []
        with attack("public-only", "allow@host:tcp:11434") as guest:
            gateway = guest.link[2]
            answer = guest.send([udp(gateway, 53, question(name))])[0]
            assert rcode(answer) == 0
            assert socket.inet_aton(gateway).hex() in answer
            assert guest.send([tcp(gateway, 11434), tcp(gateway, 11435)]) == ["open", "ECONNREFUSED"]
    assert internet.dns.questions == []
