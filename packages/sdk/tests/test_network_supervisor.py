"""The supervisor's side of a sandbox's network: addresses, the record, what is left of it in the end."""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from microsandbox._config import NetworkConfig
from microsandbox.errors import ConfigError
from microsandbox.network_metrics import network_metrics
from microsandbox.supervisor import _addresses, _audit_log, _late_network
from microsandbox.supervisor._addresses import HostAddresses, families, link_of
from microsandbox.supervisor._audit_log import AuditLog
from microsandbox.supervisor.network import SandboxNetwork
from microsandbox_core.channel import Ended
from microsandbox_core.errors import VmmError

from tests.support.waiting import eventually

ID = "0123456789abcdef"


def test_each_sandbox_has_a_subnet_and_macs_of_its_own() -> None:
    seen = set()
    for number in range(256):
        link = link_of(os.urandom(7).hex() + f"{number:02x}", ipv4=True, ipv6=True)
        assert link.ipv4 is not None
        assert link.ipv6 is not None
        guest, gateway = map(ip_address, link.ipv4)
        assert guest in ip_network("100.80.0.0/12")
        assert int(guest) % 4 == 2
        assert int(guest) - int(gateway) == 1
        assert all(ip_address(each) in ip_network("fd00::/8") for each in link.ipv6)
        for mac in (link.guest_mac, link.gateway_mac):
            assert int(mac[:2], 16) & 3 == 2, "locally administered, and one card's"
        seen.add((link.ipv6, link.guest_mac))
    assert len(seen) == 256


def test_a_family_that_is_not_offered_is_not_configured() -> None:
    parameters = link_of(ID, ipv4=False, ipv6=True).parameters()
    assert parameters["addresses"] == ["fd01:2345:6789::2/64"]
    assert parameters["gateways"] == parameters["nameservers"] == ["fd01:2345:6789::1"]


@pytest.mark.parametrize(
    ("routes", "routes6", "wanted"),
    [
        (["eth0\t00000000\t0102A8C0\t0003"], [], (True, False)),
        (["eth0\t00000000\t0102A8C0\t0003"], ["default eth0 00000003"], (True, True)),
        ([], ["default eth0 00000003"], (False, True)),
        ([], [], (True, False)),
        # Unreachable, link-local, the host's own, multicast.
        (["*\t00000000\t00000000\t0201"], ["default lo 00200200"], (True, False)),
        (["eth0\t0000FEA9\t00000000\t0001"], ["fe80 eth0 00000001"], (True, False)),
        ([], ["fd00 eth0 80200001", "ff00 eth0 00000001", "::1 lo 80200001"], (True, False)),
    ],
)  # fmt: skip
def test_a_family_is_offered_if_the_host_has_a_route_for_it(
    monkeypatch: pytest.MonkeyPatch, routes: list[str], routes6: list[str], wanted: tuple[bool, bool]
) -> None:
    def six(line: str) -> str:
        destination, device, flags = line.split()
        start = {"default": "", "::1": ""}.get(destination, destination)
        return f"{start:0<32} 00 {'0' * 32} 00 {'0' * 32} 00000400 00000001 00000000 {flags} {device}"

    files = {
        "/proc/net/route": ["Iface\t...", *routes],
        "/proc/net/ipv6_route": [six(line) for line in routes6],
    }
    monkeypatch.setattr(_addresses, "_lines", files.__getitem__)
    assert families() == wanted


def test_the_hosts_own_addresses_are_known() -> None:
    own = HostAddresses()
    try:
        assert "127.0.0.1" in own.read()
        assert all(ip_address(each) for each in own.read())
    finally:
        own.close()


def test_the_record_is_bounded_to_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_audit_log, "SIZE_LIMIT", 100)
    log = AuditLog(tmp_path / "network.log")
    for number in range(50):
        log.append([f'{{"number": {number}}}'])
    log.close()
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["network.log", "network.log.1"]
    assert all(file.stat().st_size <= 100 for file in files)
    kept = [json.loads(line)["number"] for file in reversed(files) for line in file.read_text().splitlines()]
    assert kept == list(range(kept[0], 50))


def test_what_cannot_be_written_is_counted(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "later" / "network.log")
    log.append(['{"number": 1}', '{"number": 2}'])
    log.settle(60)
    (tmp_path / "later").mkdir()
    log.append(['{"number": 3}'])
    log.close()
    lines = (tmp_path / "later" / "network.log").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"lost": 2}, {"number": 3}]


def test_a_disk_that_stands_still_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_audit_log, "QUEUE_LIMIT", 100)
    # Opening a FIFO to write waits for somebody who reads.
    path = tmp_path / "network.log"
    os.mkfifo(path)
    log = AuditLog(path)
    for number in range(50):
        log.append([f'{{"number": {number}}}'])
    log.settle(0.01)
    began = time.monotonic()
    for _ in range(5):
        log.settle(600)
    assert time.monotonic() - began < 600, "it is waited for once"
    with path.open() as reader:
        log.close(60)
        lines = [json.loads(line) for line in reader]
    kept = [line["number"] for line in lines[:-1]]
    assert kept == list(range(len(kept)))
    assert lines[-1] == {"lost": 50 - len(kept)}
    assert 2 < len(kept) < 10


def test_the_limit_of_open_files_is_raised_and_given_back() -> None:
    """In a process of its own: the limit is the process's."""
    script = """
import resource
from microsandbox.supervisor._open_files import OpenFiles
kind = resource.RLIMIT_NOFILE
hard = resource.getrlimit(kind)[1]
resource.setrlimit(kind, (64, hard))
files = OpenFiles()
assert resource.getrlimit(kind) == (hard, hard)
files.give_back()
assert resource.getrlimit(kind) == (64, hard)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def _descriptors() -> set[tuple[str, str]]:
    """Numbers and what they are of, but the one by which they are listed."""
    gc.collect()  # what earlier tests have left to it
    numbers = os.listdir("/proc/self/fd")  # noqa: PTH208
    places = [(number, Path(f"/proc/self/fd/{number}")) for number in numbers]
    return {(number, str(place.readlink())) for number, place in places if place.is_symlink()}


def test_nothing_is_left_of_a_network_that_was_stopped(tmp_path: Path) -> None:
    before = _descriptors()
    ours, guests = socket.socketpair()
    network = SandboxNetwork(NetworkConfig(), ID, ours, tmp_path / "network.log")
    network.set(NetworkConfig(preset="none"))
    network.stop()
    assert guests.recv(1) == b"", "the link is down"
    guests.close()
    del network  # with which its bell goes
    assert _descriptors() == before
    # Who waits for a thread's end hears of it a moment before the kernel has forgotten it.
    eventually(
        lambda: "msb-net" not in {_name(thread) for thread in Path("/proc/self/task").iterdir()},
        within=60,
        what="the end of the stack's thread",
    )


def _name(thread: Path) -> str:
    """Empty when it has ended."""
    try:
        return (thread / "comm").read_text().strip()
    except OSError:
        return ""


def test_what_passes_the_card_is_counted(tmp_path: Path) -> None:
    ours, guests = socket.socketpair()
    network = SandboxNetwork(NetworkConfig(), ID, ours, tmp_path / "network.log")
    before = network_metrics(network.metrics())
    assert before is not None
    assert (before.packets_sent, before.denied) == (0, 0)
    mac = bytes.fromhex(network.ends.guest_mac.replace(":", ""))
    address, gateway = (ip_address(each).packed for each in network.ends.ipv4 or ())
    # Who has the gateway's address? ARP of RFC 826, without the padding of a cable.
    asked = (
        b"\xff" * 6 + mac + bytes.fromhex("0806 0001 0800 06 04 0001") + mac + address + bytes(6) + gateway
    )
    guests.sendall(len(asked).to_bytes(4, "big") + asked)
    assert int.from_bytes(guests.recv(4), "big") == len(guests.recv(100))
    network.stop()
    guests.close()
    after = network_metrics(network.metrics())
    assert after is not None
    assert (after.packets_sent, after.packets_received, after.connections) == (1, 1, 0)
    assert min(after.sent, after.received) >= len(asked)


def test_a_policy_that_cannot_be_changes_nothing(tmp_path: Path) -> None:
    ours, guests = socket.socketpair()
    network = SandboxNetwork(NetworkConfig(), ID, ours, tmp_path / "network.log")
    with guests, pytest.raises(ConfigError, match="prefix"):
        network.set(NetworkConfig(rules=("allow@10.0.0.1/8",)))
    network.stop()


class Late:
    """A machine, its relay and its network, for a network that comes late.

    Attributes:
        calls: what was done, in order.
        answers: what whoever asked was told.
        event: what agentd says to the request.
    """

    def __init__(self, event: Ended | None, fault: Exception | None = None) -> None:
        self.event, self.fault = event, fault
        self.calls: list[str] = []
        self.answers: list[Any] = []

    def join_network(self) -> None:
        self.calls.append("link up")
        if self.fault is not None:
            raise self.fault

    def parameters(self) -> dict[str, Any]:
        return {"mtu": 1500}

    def open(self, method: str, params: dict[str, Any], on_event: Callable[[Any], None]) -> int:
        assert (method, params) == ("network", {"network": {"mtu": 1500}})
        self.calls.append("asked")
        on_event(self.event)
        return 1

    def join(self) -> None:
        give_up = lambda: self.calls.append("given up")  # noqa: E731 - as the supervisor's
        _late_network.join(self, self, self, self.answers.append, give_up, "restart it")  # type: ignore[arg-type]


def test_a_late_network_that_agentd_took_is_answered_for() -> None:
    late = Late(Ended(1, {}))
    late.join()
    assert (late.calls, late.answers) == (["link up", "asked"], [{}])


@pytest.mark.parametrize(
    ("event", "fault", "told"),
    [
        (
            Ended(1, {"error": {"kind": "network_failed", "message": "No such device", "errno": 19}}),
            None,
            "agentd could not set up the card: No such device",
        ),
        (
            Ended(1, {"error": {"kind": "unknown_method", "message": "no such method"}}),
            None,
            "agentd could not set up the card: no such method",
        ),
        (None, VmmError("QEMU said no"), "the card could not be told: QEMU said no"),
    ],
)
def test_a_late_network_that_is_refused_is_given_up_and_told_once(
    event: Ended | None, fault: Exception | None, told: str
) -> None:
    late = Late(event, fault)
    late.join()
    assert late.calls == ["link up", *(["asked"] if fault is None else []), "given up"]
    assert late.answers == [{"error": {"kind": "network", "message": told, "hint": "restart it"}}]


def test_a_network_that_cannot_be_leaves_nothing(tmp_path: Path) -> None:
    before = _descriptors()
    ours, guests = socket.socketpair()
    with guests, pytest.raises(ConfigError, match="prefix"):
        SandboxNetwork(NetworkConfig(rules=("allow@10.0.0.1/8",)), ID, ours, tmp_path / "network.log")
    assert _descriptors() == before
