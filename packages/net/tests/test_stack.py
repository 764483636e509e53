"""The stack from Python: frames in, datagrams out, and what its owner learns about it."""

from __future__ import annotations

import errno
import pickle
import select
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from microsandbox_net import Policy, PortBinding, PortUnavailable, Stack, StackConfig, StackFailed

GUEST = bytes.fromhex("020000000002")
GATEWAY = bytes.fromhex("020000000001")
CONFIG = StackConfig(
    guest_mac="02:00:00:00:00:02",
    gateway_mac="02:00:00:00:00:01",
    ipv4=("10.9.0.2", "10.9.0.1"),
    nameservers=(),
)
PATIENCE = 60.0


def ones(data: bytes) -> int:
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


def datagram(target: str, port: int, data: bytes) -> bytes:
    """A frame with a UDP datagram from the guest's port 4000, without a UDP checksum."""
    udp = struct.pack(">HHHH", 4000, port, 8 + len(data), 0) + data
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0)
    head += socket.inet_aton("10.9.0.2") + socket.inet_aton(target)
    head = head[:10] + struct.pack(">H", ones(head)) + head[12:]
    frame = GATEWAY + GUEST + b"\x08\x00" + head + udp
    return struct.pack(">I", len(frame)) + frame


def receive(link: socket.socket) -> bytes:
    (length,) = struct.unpack(">I", exactly(link, 4))
    return exactly(link, length)


def exactly(link: socket.socket, count: int) -> bytes:
    """So many bytes, in as many pieces as they come: with a timeout MSG_WAITALL waits for nothing."""
    data = b""
    while len(data) < count:
        piece = link.recv(count - len(data))
        assert piece, "the link has ended"
        data += piece
    return data


def wait(stack: Stack) -> None:
    assert select.select([stack], [], [], PATIENCE)[0], "the stack said nothing"


@pytest.fixture
def link() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    near.settimeout(PATIENCE)
    with near, far:
        yield near, far


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(PATIENCE)
        yield server


Link = tuple[socket.socket, socket.socket]


def test_a_datagram_goes_out_and_its_answer_comes_back(link: Link, server: socket.socket) -> None:
    guest, far = link
    port = server.getsockname()[1]
    with Stack(far.fileno(), CONFIG, Policy.none("allow@127.0.0.1")) as stack:
        guest.sendall(datagram("127.0.0.1", port, b"question"))
        data, sender = server.recvfrom(100)
        assert data == b"question"
        server.sendto(b"answer", sender)
        frame = receive(guest)
        assert (frame[:6], frame[6:12]) == (GUEST, GATEWAY)
        assert frame[26:30] == socket.inet_aton("127.0.0.1")
        assert frame.endswith(b"answer")
        wait(stack)
        (record,) = stack.audit()
        assert record["protocol"] == "udp"
        assert (record["address"], record["port"], record["action"]) == ("127.0.0.1", port, "allow")
        metrics = stack.metrics()
        assert (metrics["bytes_sent"], metrics["bytes_received"], metrics["datagrams_now"]) == (8, 6, 1)
        stack.check()
        assert stack.running


def test_a_narrower_policy_holds_at_once_also_for_the_host(link: Link, server: socket.socket) -> None:
    guest, far = link
    port = server.getsockname()[1]
    with Stack(far.fileno(), CONFIG, Policy.none("allow@host")) as stack:
        guest.sendall(datagram("10.9.0.1", port, b"to the host"))
        assert server.recv(100) == b"to the host"
        # Private networks are allowed then, but the gateway is no part of one.
        stack.set_policy(Policy.nonlocal_())
        guest.sendall(datagram("10.9.0.1", port, b"again"))
        frame = receive(guest)
        assert frame[34:36] == bytes([3, 13]), "ICMP: administratively prohibited"
        assert [record["action"] for record in stack.audit()][-1] == "deny"


def test_a_rate_drops_what_is_too_fast_for_too_long(link: Link, server: socket.socket) -> None:
    guest, far = link
    port = server.getsockname()[1]
    config = CONFIG._replace(rates=(("egress", None, None, 1, 2),))
    with Stack(far.fileno(), config, Policy.none("allow@host")) as stack:
        for number in range(100):
            guest.sendall(datagram("10.9.0.1", port, b"%d" % number))
        assert [server.recv(100), server.recv(100)] == [b"0", b"1"]
        while stack.metrics()["frames_from_guest"] < 100:
            pass
        assert stack.metrics()["dropped_rate"] >= 60


def test_a_link_of_something_else_fails_with_a_reason(link: Link) -> None:
    guest, far = link
    stack = Stack(far.fileno(), CONFIG, Policy.none())
    guest.sendall(b"SSH-2.0-OpenSSH\r\n")
    wait(stack)
    with pytest.raises(StackFailed, match="a frame of 1397966893 bytes on the link"):
        stack.check()
    assert not stack.running
    # Although the test holds a descriptor of the other end, the link is down.
    assert guest.recv(1) == b""
    stack.stop()


def test_stopping_ends_the_thread_and_the_link(link: Link) -> None:
    guest, far = link
    stack = Stack(far.fileno(), CONFIG, Policy.none())
    stack.stop()
    assert guest.recv(1) == b""
    stack.stop()
    stack.check()
    assert not stack.running


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"guest_mac": "02:00"}, 'guest_mac "02:00" is not an Ethernet address'),
        ({"gateway_mac": "ff:ff:ff:ff:ff:ff"}, "is not an Ethernet address of one host"),
        ({"ipv4": ("10.9.0", "10.9.0.1")}, 'ipv4 guest address "10.9.0" is not an IPv4 address'),
        ({"mtu": 1000}, 'mtu "1000" is not between 1280 and 65520'),
        ({"nameservers": ("localhost",)}, 'nameserver "localhost" is not an IP address'),
        ({"connect_timeout": 0.0}, "is not a number of seconds above 0"),
        ({"stay_awake": 0.1}, 'stay_awake "0.1" is not a number of seconds from 0 to 0.001'),
        ({"max_connections": 0}, 'max_connections "0" is not at least 1'),
        ({"rates": (("both", 1, None, None, None),)}, 'rate "both" is neither egress nor ingress'),
        ({"rates": (("egress", None, 9, None, None),)}, "a burst of bytes needs bytes a second"),
        ({"rates": (("egress", None, None, 0, None),)}, "0 packets would let nothing pass"),
    ],
)
def test_a_value_that_cannot_be_is_named(link: Link, changed: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Stack(link[1].fileno(), CONFIG._replace(**changed), Policy.none())


def test_a_link_that_is_no_stream_is_refused(server: socket.socket) -> None:
    with pytest.raises(ValueError, match="the link is neither a stream socket nor a TAP"):
        Stack(server.fileno(), CONFIG, Policy.none())


QUESTION = bytes.fromhex("000701000001000000000000") + b"\x04GoOd\x07example\0" + bytes.fromhex("00010001")


def asked(guest: socket.socket) -> bytes:
    guest.sendall(datagram("192.0.2.53", 53, QUESTION))
    return receive(guest)[42:]


def on_processor() -> int:
    """Nanoseconds that threads of stacks have used (Linux: Documentation/scheduler/sched-stats.rst)."""
    tasks = Path("/proc/self/task").iterdir()
    stacks = [task for task in tasks if (task / "comm").read_text() == "msb-net\n"]
    assert len(stacks) == 1
    return int((stacks[0] / "schedstat").read_text().split()[0])


def test_it_rests_once_nothing_follows(link: Link) -> None:
    guest, far = link
    with Stack(far.fileno(), CONFIG, Policy.none()):
        for _ in range(100):
            assert asked(guest)[3] & 15 == 3
        for _ in range(int(PATIENCE / 0.1)):
            before = on_processor()
            assert not select.select([guest], [], [], 0.1)[0]
            if on_processor() - before < 5_000_000:
                return
    pytest.fail("it does not stop asking")


def test_allowed_names_get_addresses_that_stand_for_them(link: Link) -> None:
    guest, far = link
    config = CONFIG._replace(dns_mode="synthetic")
    with Stack(far.fileno(), config, Policy.none("allow@good.example")) as stack:
        answer = asked(guest)
        assert answer[2:4] == b"\x81\x80"
        assert answer.endswith(socket.inet_aton("198.18.0.1"))
        (record,) = stack.audit()
        assert (record["name"], record["action"]) == ("good.example", "allow")
        stack.set_policy(Policy.none())
        assert asked(guest)[3] & 15 == 3


def test_without_servers_nobody_knows(link: Link) -> None:
    guest, far = link
    with Stack(far.fileno(), CONFIG, Policy.public_only()):
        answer = asked(guest)
        assert answer[3] & 15 == 2
        # The question is repeated as it was spelled.
        assert QUESTION[12:] in answer


def test_a_mode_that_is_none(link: Link) -> None:
    config = CONFIG._replace(dns_mode="fake")
    with pytest.raises(ValueError, match='dns_mode "fake" is not resolve or synthetic'):
        Stack(link[1].fileno(), config, Policy.none())


def configured(**more: Any) -> StackConfig:
    """`CONFIG` with something more."""
    ends = {"guest_mac": CONFIG.guest_mac, "gateway_mac": CONFIG.gateway_mac, "ipv4": CONFIG.ipv4}
    return StackConfig(**ends, nameservers=(), **more)  # type: ignore[arg-type]


def publishing(*ports: PortBinding) -> StackConfig:
    return configured(ports=ports)


def test_a_denied_peer_of_a_published_port_is_reset(link: Link) -> None:
    config = publishing(PortBinding("tcp", "127.0.0.1", 0, 80))
    with Stack(link[1].fileno(), config, Policy.public_only("deny:ingress@loopback")) as stack:
        ((address, port),) = stack.ports()

        def meet() -> None:
            with socket.socket() as client:
                client.settimeout(PATIENCE)
                # The reset may come before the kernel has told about the connection.
                client.connect((address, port))
                client.recv(1)

        with pytest.raises(ConnectionResetError):
            meet()
        wait(stack)
        (record,) = stack.audit()
        assert (record["direction"], record["address"], record["port"]) == ("ingress", "127.0.0.1", 80)
        assert record["rule"] == "rule 1: deny:ingress@loopback"


def test_a_datagram_to_a_published_port_reaches_the_guest_and_is_answered(link: Link) -> None:
    config = publishing(PortBinding("udp", "127.0.0.1", 0, 4000))
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with Stack(link[1].fileno(), config, Policy.public_only()) as stack, client:
        client.settimeout(PATIENCE)
        client.connect(stack.ports()[0])
        client.send(b"question")
        frame = receive(link[0])
        source, target = frame[26:30], frame[30:34]
        assert (source, target) == (socket.inet_aton("10.9.0.1"), socket.inet_aton("10.9.0.2"))
        through, port = struct.unpack(">HH", frame[34:38])
        assert (port, frame[42:]) == (4000, b"question")
        link[0].sendall(datagram("10.9.0.1", through, b"answer"))
        assert client.recv(100) == b"answer"


def test_a_port_that_another_has_is_named_and_the_others_are_let_go(
    link: Link, server: socket.socket
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        spare = free.getsockname()[1]
    taken = server.getsockname()[1]
    config = publishing(
        PortBinding("tcp", "127.0.0.1", spare, 80), PortBinding("udp", "127.0.0.1", taken, 53)
    )
    with pytest.raises(PortUnavailable) as caught:
        Stack(link[1].fileno(), config, Policy.public_only())
    error = caught.value
    assert (error.protocol, error.address, error.port, error.errno) == (
        "udp",
        "127.0.0.1",
        taken,
        errno.EADDRINUSE,
    )
    told = f"udp port 127.0.0.1:{taken} is not available: another program, or another sandbox, has it"
    assert str(error) == told
    assert pickle.loads(pickle.dumps(error)).args == error.args
    with socket.create_server(("127.0.0.1", spare)):
        pass


@pytest.mark.parametrize(
    ("binding", "told"),
    [
        (PortBinding("icmp", "127.0.0.1", 0, 80), '"icmp" is not tcp or udp'),
        (PortBinding("tcp", "localhost", 0, 80), '"localhost" is not an IP address'),
        (PortBinding("tcp", "127.0.0.1", 0, 0), 'guest_port "0" is not between 1 and 65535'),
    ],
)
def test_a_published_port_that_cannot_be_is_named(link: Link, binding: PortBinding, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Stack(link[1].fileno(), publishing(binding), Policy.none())


def behind(url: str) -> StackConfig:
    return configured(proxy=url, no_proxy="")


def syn(target: str, port: int) -> bytes:
    """A frame that opens a connection from the guest's port 4000, made of the frame of a datagram."""
    head = bytearray(datagram(target, port, bytes(12))[4:38])
    segment = bytearray(20)
    segment[0:4] = (4000).to_bytes(2, "big") + port.to_bytes(2, "big")
    segment[12:16] = bytes([5 << 4, 2, 255, 255])
    pseudo = bytes(head[26:34]) + bytes([0, 6, 0, 20])
    segment[16:18] = ones(pseudo + bytes(segment)).to_bytes(2, "big")
    head[23] = 6
    head[24:26] = bytes(2)
    head[24:26] = ones(bytes(head[14:34])).to_bytes(2, "big")
    frame = bytes(head) + bytes(segment)
    return len(frame).to_bytes(4, "big") + frame


def test_a_flow_opens_once_the_proxy_has_said_yes(link: Link) -> None:
    guest, far = link
    heads: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            client, _ = server.accept()
            with client:
                heads.append(client.recv(1000))
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                client.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://me:secret@127.0.0.1:{server.getsockname()[1]}"
        with Stack(far.fileno(), behind(url), Policy.none("allow@127.0.0.9")):
            guest.sendall(syn("127.0.0.9", 443))
            answer = receive(guest)
            assert answer[34 + 13] == 0x12, "SYN and ACK"
        thread.join(PATIENCE)
    (head,) = heads
    assert head.startswith(b"CONNECT 127.0.0.9:443 HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic bWU6c2VjcmV0\r\n" in head


def test_a_proxy_that_is_not_there_makes_targets_unreachable(link: Link) -> None:
    guest, far = link
    with socket.create_server(("127.0.0.1", 0)) as canary, socket.socket() as free:
        canary.setblocking(False)
        free.bind(("127.0.0.1", 0))
        url = f"socks5://me:secret@127.0.0.1:{free.getsockname()[1]}"
        with Stack(far.fileno(), behind(url), Policy.none("allow@127.0.0.1")) as stack:
            guest.sendall(syn("127.0.0.1", canary.getsockname()[1]))
            assert receive(guest)[34:36] == bytes([3, 1]), "ICMP: host unreachable"
            wait(stack)
            allowed, denied = stack.audit()
            assert (allowed["action"], denied["action"]) == ("allow", "deny")
            assert "Connection refused" in denied["rule"]
            assert "secret" not in denied["rule"]
        with pytest.raises(BlockingIOError):
            canary.accept()


def test_a_proxy_that_cannot_be_is_named(link: Link) -> None:
    with pytest.raises(ValueError, match='"ftp" is not supported'):
        Stack(link[1].fileno(), behind("ftp://x:1"), Policy.none())
