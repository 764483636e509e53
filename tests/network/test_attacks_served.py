"""A guest on a host without IPv6, its published ports, its policy when it narrows, and its network's end
(ADVERSARIAL, N): a machine, and a namespace. That what is refused has not been let through is what a
capture says."""

from __future__ import annotations

import select
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from time import monotonic

import pytest
from microsandbox_net import Policy, PortBinding, PortUnavailable, StackFailed

from tests.support.attack import Attacker, question, rcode, tcp, udp
from tests.support.attackers import DENIED, attacker, root_of
from tests.support.internet import HOST, ROUTER, WWW, Internet, Packet
from tests.support.internet_servers import AAAA, ECHO, HTTP
from tests.support.linux_guest import LinuxGuest
from tests.support.msb import Msb
from tests.support.network import break_link, write_no_frame
from tests.support.waiting import at_this_pace

OPEN, OWN, CLOSED = 8080, 8081, 8082
HELLO = b"\0hello\n"
BYTE = b"\0"
"""Cannot arrive in pieces."""


def _take_ipv6(internet: Internet) -> None:
    internet.host.ip(f"route del default via {ROUTER[1]}\naddr del {HOST[1]}/64 dev uplink\n")


@pytest.fixture
def inside(internet: Internet, msb: Msb) -> Iterator[Msb]:
    """`msb` where there is no IPv6, with a sandbox that has published ports."""
    _take_ipv6(internet)
    inside = msb.within(internet.host)
    ports = [f"0.0.0.0:{OPEN}:80", f"{OWN}:80", f"0.0.0.0:{CLOSED}:81"]
    options = [word for port in ports for word in ("-p", port)]
    options += ["--net-rule", "deny:ingress@any:tcp:81", "--dns-nameserver", ROUTER[0]]
    done = inside("create", "busybox", "--name", "attacker", *options).succeeded()
    # N32: whoever lets everybody in is told.
    assert "0.0.0.0" in done.complaint
    yield inside
    inside("rm", "--force", "attacker").succeeded()


@pytest.mark.vm
@pytest.mark.root
@pytest.mark.slow
def test_what_is_offered_and_what_ends(internet: Internet, inside: Msb) -> None:
    guest = attacker(internet, inside)
    n29_no_ipv6(guest)
    n32_published_ports(guest, inside)
    n33_a_narrower_policy(guest, inside)
    n34_the_end(guest, inside)


def n29_no_ipv6(guest: Attacker) -> None:
    """Nothing of IPv6 is offered that would have to be waited for."""
    assert guest.shell("ip -6 -o address show eth0 scope global; ip -6 route show default", "") == ""
    (empty,) = guest.send([udp(guest.link[2], 53, question("www.example.com", AAAA))])
    assert rcode(empty) == 0
    assert bytes.fromhex(empty)[6:8] == bytes(2)
    assert AAAA not in {each.kind for each in guest.internet.dns.questions}
    assert guest.send([tcp(WWW[1], HTTP), udp(WWW[1], ECHO)]) == ["ENETUNREACH"] * 2
    assert WWW[0] in guest.shell("wget -qO- http://www.example.com/who", "")


def n32_published_ports(guest: Attacker, inside: Msb) -> None:
    """A port is for this host unless it says otherwise; who is denied is reset before the guest hears."""
    wan, host = guest.internet.wan, guest.internet.host
    listens = "".join(f"nc -l -p {port} -e echo reached </dev/null >/dev/null 2>&1 & " for port in (80, 81))
    guest.shell(listens + "until netstat -lnt | grep -q :80 && netstat -lnt | grep -q :81; do :; done", "")
    with pytest.raises(ConnectionRefusedError):
        wan.connect(HOST[0], OWN)
    with pytest.raises(ConnectionResetError), wan.connect(HOST[0], CLOSED) as peer:
        peer.recv(1)
    with wan.connect(HOST[0], OPEN) as peer:
        assert peer.recv(100) == b"reached\n"
    with pytest.raises(ConnectionResetError), host.connect("127.0.0.1", OWN) as peer:
        peer.recv(1)  # that was the only one for which the guest listened
    assert guest.shell("netstat -lnt | grep -c :81", "") == "1\n"
    told = inside("create", "busybox", "--name", "second", "-p", f"{OWN}:80").failed()
    assert f"127.0.0.1:{OWN}" in told
    guest.capture.packets()


def n33_a_narrower_policy(guest: Attacker, inside: Msb) -> None:
    """What runs is cut, and nothing of it leaves any more."""
    with inside.start("exec", "attacker", "--", "nc", WWW[0], str(ECHO)) as client:
        client.stdin.write(HELLO)
        assert client.line() == HELLO
        inside("net", "update", "attacker", "--network-policy", "none").succeeded()
        client.finish(timeout=60)
    guest.capture.packets()
    assert set(guest.send([tcp(WWW[0], ECHO), udp(WWW[0], ECHO)])) <= DENIED
    assert guest.capture.packets() == []
    inside("net", "update", "attacker", "--network-policy", "allow-all").succeeded()
    assert guest.send([tcp(WWW[0], ECHO, BYTE)]) == [f"open {BYTE.hex()}"]


def n34_the_end(guest: Attacker, inside: Msb) -> None:
    """A stack that is not there lets nothing through, although the policy did."""
    break_link(inside.host)
    down = 'while [ "$(cat /sys/class/net/eth0/carrier)" = 1 ]; do :; done'
    script = f"{down}; wget -T 2 -qO- http://{WWW[0]}/who; ping -c1 -W1 {WWW[0]}"
    guest.capture.packets()
    done = inside("exec", "attacker", "--", "sh", "-c", script)
    assert done.code != 0
    assert "has lost its network" in done.complaint
    assert guest.capture.packets() == []


# ------------------------------------------------------------------------------------ without a machine


@pytest.fixture
def linux(internet: Internet) -> Iterator[LinuxGuest]:
    """A namespace with the same ports where there is no IPv6. Its stack may have failed in the end."""
    _take_ipv6(internet)
    # What a supervisor there offers to its machine.
    script = "from microsandbox.supervisor._addresses import families; print(*families())"
    assert internet.host.run(sys.executable, "-c", script).stdout == "True False\n"
    ports = [("0.0.0.0", OPEN, 80), ("127.0.0.1", OWN, 80), ("0.0.0.0", CLOSED, 81)]
    bindings = tuple(PortBinding("tcp", *port) for port in ports)
    policy = Policy.parse("public-only", ["deny:ingress@any:tcp:81"])
    linux = LinuxGuest(internet, policy, ipv6=None, ports=bindings)
    yield linux
    with suppress(StackFailed):
        linux.close()


def test_what_a_namespace_is_offered_and_what_ends(internet: Internet, linux: LinuxGuest) -> None:
    guest = root_of(linux, internet)
    n29_no_ipv6(guest)
    n32_published_ports_of_a_namespace(guest, linux)
    n33_a_narrower_policy_of_a_namespace(guest, linux)
    n34_the_end_of_a_namespace_s_stack(guest, linux)


def n32_published_ports_of_a_namespace(guest: Attacker, linux: LinuxGuest) -> None:
    """As those of a machine."""
    internet = guest.internet
    listen = linux.namespace.inside
    with (
        listen(lambda: socket.create_server(("", 80))) as served,
        listen(lambda: socket.create_server(("", 81))) as closed,
    ):
        with pytest.raises(ConnectionRefusedError):
            internet.wan.connect(HOST[0], OWN)
        with pytest.raises(ConnectionResetError), internet.wan.connect(HOST[0], CLOSED) as peer:
            peer.recv(1)
        for where, address, port in ((internet.wan, HOST[0], OPEN), (internet.host, "127.0.0.1", OWN)):
            with where.connect(address, port) as peer, served.accept()[0] as arrived:
                arrived.sendall(b"reached")
                assert peer.recv(7, socket.MSG_WAITALL) == b"reached"
        closed.setblocking(False)
        with pytest.raises(BlockingIOError):
            closed.accept()
    second = (PortBinding("tcp", "127.0.0.1", OWN, 80),)
    with pytest.raises(PortUnavailable, match=f"127.0.0.1:{OWN} is not available"):
        LinuxGuest(internet, Policy.public_only(), ports=second)
    guest.capture.packets()


def n33_a_narrower_policy_of_a_namespace(guest: Attacker, linux: LinuxGuest) -> None:
    """What runs is cut within a second, both ways, and nothing of it leaves any more."""
    served = linux.namespace.inside(lambda: socket.create_server(("", 80)))
    with (
        served,
        guest.internet.wan.connect(HOST[0], OPEN) as peer,
        served.accept()[0] as arrived,
        linux.namespace.connect(WWW[0], ECHO) as client,
    ):
        client.sendall(HELLO)
        assert client.recv(len(HELLO), socket.MSG_WAITALL) == HELLO
        begun = monotonic()
        linux.stack.set_policy(Policy.parse("none"))
        for end in (client, peer, arrived):
            with pytest.raises(ConnectionResetError):
                end.recv(1)
        assert monotonic() - begun < at_this_pace(1)
    left(guest)
    assert set(guest.send([tcp(WWW[0], ECHO), udp(WWW[0], ECHO)])) <= DENIED
    assert left(guest) == []
    linux.stack.set_policy(Policy.parse("allow-all"))
    assert guest.send([tcp(WWW[0], ECHO, BYTE)]) == [f"open {BYTE.hex()}"]


def left(guest: Attacker) -> list[Packet]:
    """What left the host since the last call and is more than the end of a connection that was there: what is
    not TCP, and segments that begin a connection or carry data (RFC 9293, 3.1)."""

    def is_end(packet: Packet) -> bool:
        if packet.protocol != 6:
            return False
        begins, header = packet.data[13] & 2, (packet.data[12] >> 4) * 4
        return not begins and len(packet.data) == header

    return [packet for packet in guest.capture.packets() if not is_end(packet)]


def n34_the_end_of_a_namespace_s_stack(guest: Attacker, linux: LinuxGuest) -> None:
    """With the stack the link ends, and with that the bridge and its interface."""
    left(guest)
    write_no_frame(linux.bridge.pid, linux.bridge_link)
    while linux.stack.running:
        select.select([linux.stack], [], [])
        linux.audit()
    with pytest.raises(StackFailed):
        linux.stack.check()
    linux.bridge.wait(60)
    assert set(guest.send([tcp(WWW[0], ECHO, HELLO), udp(WWW[0], ECHO)])) == {"ENETUNREACH"}
    assert left(guest) == []
