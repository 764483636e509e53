"""The TCP, UDP and ping of Linux through the stack, in an internet of the test's own: without a machine."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import selectors
import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from microsandbox_net import Policy

from tests.support.internet import LAN, NOWHERE, SILENT, WWW, Internet
from tests.support.internet_servers import ECHO, HTTP, pattern
from tests.support.linux_guest import GATEWAY, LinuxGuest
from tests.support.namespace import family_of

FAMILIES = pytest.mark.parametrize("address", WWW, ids=["IPv4", "IPv6"])
MEGABYTE = 1 << 20
HELLO = b"\0hello"
"""Begins neither like TLS nor like HTTP, so that nobody waits for a name."""


LINKS = pytest.mark.parametrize("direct", [False, True], ids=["socket", "TAP"])


@pytest.fixture(params=[False, True], ids=["socket", "TAP"])
def guest(internet: Internet, request: pytest.FixtureRequest) -> Iterator[LinuxGuest]:
    with LinuxGuest(internet, Policy.public_only(), direct=request.param) as guest:
        yield guest


def read_to_end(stream: socket.socket) -> bytes:
    return b"".join(iter(lambda: stream.recv(1 << 16), b""))


def get(guest: LinuxGuest, address: str, path: str) -> tuple[bytes, bytes]:
    """Head and body of a web server's answer."""
    with guest.namespace.connect(address, HTTP) as stream:
        stream.sendall(f"GET {path} HTTP/1.1\r\nHost: www.example.com\r\nConnection: close\r\n\r\n".encode())
        head, _, body = read_to_end(stream).partition(b"\r\n\r\n")
        return head, body


def ping(guest: LinuxGuest, address: str, data: bytes) -> bytes:
    """What an echo request of the guest brings back."""
    family = family_of(address)
    four = family == socket.AF_INET
    protocol = socket.IPPROTO_ICMP if four else socket.IPPROTO_ICMPV6
    with guest.namespace.socket(family, socket.SOCK_DGRAM, protocol) as echo:
        echo.settimeout(30)
        echo.sendto(bytes([8 if four else 128, 0, 0, 0, 0, 0, 0, 1]) + data, (address, 0))
        answer = echo.recv(70_000)
    assert answer[0] == (0 if four else 129)
    return answer[8:]


@FAMILIES
@LINKS
@pytest.mark.parametrize("mtu", [1500, 65520])
def test_bytes_arrive_whole_both_ways(internet: Internet, address: str, mtu: int, direct: bool) -> None:
    with LinuxGuest(internet, Policy.public_only(), mtu=mtu, direct=direct) as guest:
        head, body = get(guest, address, f"/size/{32 * MEGABYTE}")
        assert head.startswith(b"HTTP/1.1 200")
        assert body == pattern(32 * MEGABYTE)
        sent = pattern(32 * MEGABYTE)
        with guest.namespace.connect(address, HTTP) as stream:
            head = b"POST / HTTP/1.1\r\nHost: www.example.com\r\nConnection: close\r\n"
            stream.sendall(head + b"Content-Length: %d\r\n\r\n" % len(sent) + sent)
            assert read_to_end(stream).endswith(hashlib.sha256(sent).hexdigest().encode())
    assert guest.stack.metrics()["dropped_malformed"] == 0


def test_a_slow_reader_slows_its_own_flow_only(guest: LinuxGuest) -> None:
    with guest.namespace.connect(WWW[0], HTTP) as slow:
        size = 64 * MEGABYTE
        slow.sendall(
            f"GET /size/{size} HTTP/1.1\r\nHost: www.example.com\r\nConnection: close\r\n\r\n".encode()
        )
        assert slow.recv(1)
        for address in WWW:
            assert get(guest, address, f"/size/{8 * MEGABYTE}")[1] == pattern(8 * MEGABYTE)
        # What is held for it is bounded, wherever it is held.
        assert guest.stack.metrics()["bytes_received"] < size
        assert read_to_end(slow).endswith(pattern(size)[-MEGABYTE:])


def test_a_thousand_connections_at_once_each_carry_their_own_bytes(guest: LinuxGuest) -> None:
    count = 1000
    addresses = [WWW[number % 2] for number in range(count)]
    streams = guest.namespace.inside(lambda: [started(address) for address in addresses])
    with selectors.DefaultSelector() as waiting:
        for number, stream in enumerate(streams):
            waiting.register(stream, selectors.EVENT_WRITE, number)
        answers: dict[int, bytes] = {}
        while waiting.get_map():
            ready = waiting.select(120)
            assert ready, f"{len(waiting.get_map())} of {count} connections say nothing"
            for key, events in ready:
                stream, number = streams[key.data], key.data
                if events & selectors.EVENT_WRITE:
                    assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
                    stream.sendall(HELLO + str(number).encode())
                    stream.shutdown(socket.SHUT_WR)
                    waiting.modify(stream, selectors.EVENT_READ, number)
                elif data := stream.recv(1000):
                    answers[number] = answers.get(number, b"") + data
                else:
                    waiting.unregister(stream)
                    stream.close()
    assert answers == {number: HELLO + str(number).encode() + b"end" for number in range(count)}
    assert guest.stack.metrics()["tcp_opened"] == count


def started(address: str) -> socket.socket:
    """A connection that is being made."""
    stream = socket.socket(family_of(address), socket.SOCK_STREAM)
    stream.setblocking(False)
    assert stream.connect_ex((address, ECHO)) == errno.EINPROGRESS
    return stream


@FAMILIES
def test_each_side_may_end_first(guest: LinuxGuest, internet: Internet, address: str) -> None:
    with guest.namespace.connect(address, ECHO) as stream:
        stream.sendall(HELLO)
        stream.shutdown(socket.SHUT_WR)
        assert read_to_end(stream) == HELLO + b"end"
    with internet.listen(8080) as server, guest.namespace.connect(address, 8080) as stream:
        peer, _ = server.accept()
        with peer:
            peer.sendall(b"bye")
            peer.shutdown(socket.SHUT_WR)
            assert read_to_end(stream) == b"bye"
            stream.sendall(HELLO)
            stream.shutdown(socket.SHUT_WR)
            assert read_to_end(peer) == HELLO


@FAMILIES
def test_a_reset_passes_both_ways(guest: LinuxGuest, internet: Internet, address: str) -> None:
    abort = struct.pack("ii", 1, 0)
    with internet.listen(8080) as server:
        for first in ("guest", "target"):
            stream = guest.namespace.connect(address, 8080)
            peer, _ = server.accept()
            stream.sendall(HELLO)
            assert peer.recv(len(HELLO), socket.MSG_WAITALL) == HELLO
            ends, learns = (stream, peer) if first == "guest" else (peer, stream)
            ends.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, abort)
            ends.close()
            with learns, pytest.raises(ConnectionResetError):
                learns.recv(1)


def test_why_a_target_is_not_reached_is_told(guest: LinuxGuest) -> None:
    for address in WWW:
        with pytest.raises(ConnectionRefusedError):
            guest.namespace.connect(address, 9999)
    for address in NOWHERE:
        with pytest.raises(OSError, match=r"No route to host|Network is unreachable"):
            guest.namespace.connect(address, HTTP, timeout=30)


def test_a_target_that_says_nothing_becomes_unreachable(internet: Internet) -> None:
    with (
        LinuxGuest(internet, Policy.public_only(), connect_timeout=0.5) as guest,
        pytest.raises(OSError, match="No route to host"),
    ):
        guest.namespace.connect(SILENT, HTTP, timeout=30)


@pytest.mark.parametrize("address", [*WWW, *GATEWAY])
def test_ping(guest: LinuxGuest, address: str) -> None:
    for size in (0, 56, 1400, 5000):
        assert ping(guest, address, pattern(size)) == pattern(size)


@FAMILIES
def test_datagrams(guest: LinuxGuest, address: str) -> None:
    with guest.namespace.socket(family_of(address), socket.SOCK_DGRAM) as made:
        made.settimeout(30)
        made.connect((address, ECHO))
        # The larger ones are fragments on the link, and again behind the host.
        for size in (0, 1, 1200, 4000, 60_000):
            made.send(pattern(size))
            assert made.recv(70_000) == pattern(size)


@FAMILIES
def test_a_narrow_path_behind_the_host_is_told_to_datagrams_and_not_to_streams(
    internet: Internet, address: str
) -> None:
    internet.host.ip("link set uplink mtu 1280\n")
    internet.wan.ip("link set far mtu 1280\n")
    with LinuxGuest(internet, Policy.public_only(), mtu=65520) as guest:
        assert get(guest, address, f"/size/{MEGABYTE}")[1] == pattern(MEGABYTE)
        with guest.namespace.socket(family_of(address), socket.SOCK_DGRAM) as made:
            made.settimeout(30)
            made.connect((address, ECHO))
            made.send(pattern(9000))
            # Linux forbids to cut it, is told the path's MTU, and cuts the next one itself.
            with pytest.raises(OSError, match=os.strerror(errno.EMSGSIZE)):
                made.recv(70_000)
            made.send(pattern(9000))
            assert made.recv(70_000) == pattern(9000)


def test_by_name_over_both_families(guest: LinuxGuest, internet: Internet) -> None:
    code = (
        "import json, socket, sys\n"
        "def found(name):\n"
        "    return [info[4][0] for info in socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)]\n"
        "print(json.dumps([found(name) for name in sys.argv[1:]]))\n"
    )
    names = ("www.example.com", "four.example.com", "six.example.com")
    done = guest.run("python3", "-c", code, *names)
    assert done.returncode == 0, done.stderr
    both, four, six = json.loads(done.stdout)
    assert (sorted(both), four, six) == (sorted(WWW), [WWW[0]], [WWW[1]])
    asked = {question.name for question in internet.dns.questions}
    assert asked == set(names)
    missing = guest.run("python3", "-c", code, "missing.example.com")
    assert "Name or service not known" in missing.stderr or "No address" in missing.stderr


def test_the_stack_runs_in_the_hosts_namespace_only(guest: LinuxGuest, internet: Internet) -> None:
    # What makes this internet a safe place: no socket of the stack can be anywhere else.
    capture = internet.capture()
    assert get(guest, WWW[0], "/who")[0].startswith(b"HTTP/1.1 200")
    assert {packet.target for packet in capture.packets()} == {WWW[0]}


def test_the_private_network_is_not_the_internet(guest: LinuxGuest, internet: Internet) -> None:
    capture = internet.capture()
    for address in (LAN, "192.168.1.1", "127.0.0.1", GATEWAY[0], "fd77::9"):
        with pytest.raises(ConnectionRefusedError):
            guest.namespace.connect(address, HTTP, timeout=30)
    assert capture.packets() == []
    assert {record["action"] for record in guest.audit()} == {"deny"}


def test_while_others_come_and_go_a_download_goes_on(guest: LinuxGuest) -> None:
    found: list[bytes] = []

    def download() -> None:
        found.append(get(guest, WWW[1], f"/size/{48 * MEGABYTE}")[1])

    thread = threading.Thread(target=download)
    thread.start()
    for number in range(200):
        with guest.namespace.connect(WWW[number % 2], ECHO) as stream:
            stream.sendall(HELLO)
            if number % 3 == 0:
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    thread.join(timeout=600)
    assert found == [pattern(48 * MEGABYTE)]
