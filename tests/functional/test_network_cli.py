"""The network as people use it: options, explanations, the record, another policy. Targets are on this host's
loopback, which a sandbox reaches as `host.microsandbox.internal`, or nowhere."""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Iterator
from contextlib import suppress
from time import monotonic

import pytest
from microsandbox import Network, NetworkPolicy, Sandbox
from microsandbox_net import features

from tests.support.host import Host
from tests.support.msb import Msb
from tests.support.network import free_port
from tests.support.waiting import at_this_pace

pytestmark = pytest.mark.vm

HOST = "host.microsandbox.internal"
NOWHERE = "192.0.2.1"  # RFC 5737


class Listener:
    """A server on the host's loopback, of both families where it has both: a guest takes the one it likes."""

    def __init__(self) -> None:
        first = socket.create_server(("127.0.0.1", 0))
        self.port: int = first.getsockname()[1]
        self.sockets = [first]
        with suppress(OSError):
            self.sockets.append(socket.create_server(("::1", self.port), family=socket.AF_INET6))

    def accept(self) -> socket.socket:
        """The next connection."""
        ready, _, _ = select.select(self.sockets, [], [], 60)
        connection: socket.socket = ready[0].accept()[0]
        return connection

    def close(self) -> None:
        """Listen no more."""
        for found in self.sockets:
            found.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    found = Listener()
    yield found
    found.close()


@pytest.fixture
def port(listener: Listener) -> int:
    return listener.port


@pytest.fixture
def dev(msb: Msb, port: int) -> Iterator[Msb]:
    """A sandbox that may reach that server and nothing else."""
    msb(
        "create", "busybox", "-n", "dev", "--network-policy", "none", "--net-rule", f"allow@host:tcp:{port}"
    ).succeeded()  # fmt: skip
    yield msb
    msb("rm", "--force", "dev")


@pytest.fixture
def home(msb: Msb, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Host:
    """The shared home as this process's, seen from the host."""
    for name, value in {"MSB_HOME": str(msb.home), **settings}.items():
        monkeypatch.setenv(name, value)
    return msb.host


def connects(msb: Msb, host: str, port: int) -> bool:
    """Whether a TCP connection from the guest is made."""
    return msb("exec", "dev", "--", "nc", "-w", "10", host, str(port), "-e", "true").code == 0


def records(msb: Msb, *options: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in msb("net", "audit", "dev", "--json", *options).text.splitlines()]


def test_what_is_explained_is_what_the_guest_gets_and_what_is_on_record(dev: Msb, port: int) -> None:
    targets = [(HOST, port, True), (HOST, port + 1, False), (NOWHERE, port, False), (NOWHERE, 80, False)]
    for host, number, wanted in targets:
        told = json.loads(dev("net", "explain", "dev", f"{host}:{number}", "--json").text)
        assert (told["action"] == "allow") is wanted, told
        assert connects(dev, host, number) is wanted, told
        last = [record for record in records(dev) if record["port"] == number][-1]
        assert (last["action"], last["rule"], last["protocol"]) == (told["action"], told["rule"], "tcp")
    denied = records(dev, "--denied")
    assert [record["port"] for record in denied if record["protocol"] == "tcp"] == [port + 1, port, 80]
    assert records(dev, "--tail", "1") == records(dev)[-1:]
    assert f"deny egress tcp {NOWHERE}:80: policy none" in dev("net", "audit", "dev", "--denied").text


def test_the_address_of_the_host_is_explained_as_the_host(dev: Msb, port: int) -> None:
    gateway = dev("exec", "dev", "--", "sed", "-n", "s/nameserver //p", "/etc/resolv.conf").text.strip()
    told = dev("net", "explain", "dev", f"{gateway}:{port}").text
    assert told == f"allow {gateway}:{port} tcp: rule 1: allow@host:tcp:{port}\n"
    assert connects(dev, gateway, port)


def test_a_record_is_there_after_the_end_and_is_followed_to_it(dev: Msb) -> None:
    with dev.start("net", "audit", "dev", "-f", "--json") as follower:
        assert not connects(dev, NOWHERE, 80)
        assert json.loads(follower.line())["address"] == NOWHERE
        dev("stop", "dev").succeeded()
        assert follower.finish().code == 0
    assert [record["address"] for record in records(dev)] == [NOWHERE]


def test_n33_another_policy_cuts_what_runs_and_stays(dev: Msb, listener: Listener, port: int) -> None:
    with dev.start("exec", "dev", "--", "nc", HOST, str(port)) as client, listener.accept() as peer:
        peer.sendall(b"open\n")
        assert client.stdout.readline() == b"open\n"
        dev("net", "update", "dev", "--network-policy", "none").succeeded()
        told = monotonic()
        peer.settimeout(60)
        try:
            assert peer.recv(1) == b""
        except ConnectionResetError:
            pass  # that is an end, too
        client.finish(timeout=120)
        assert monotonic() - told < at_this_pace(1)
    assert not connects(dev, HOST, port)
    assert json.loads(dev("net", "explain", "dev", f"{HOST}:{port}", "--json").text)["action"] == "deny"
    dev("restart", "dev").succeeded()
    assert not connects(dev, HOST, port)
    # A stopped one has it from its next start on.
    dev("stop", "dev").succeeded()
    done = dev("net", "update", "dev", "--net-rule", f"allow@host:tcp:{port}").succeeded()
    assert b"counts from its next start on" in done.err
    dev("start", "dev").succeeded()
    assert connects(dev, HOST, port)


def test_an_update_that_cannot_be_changes_nothing(dev: Msb, port: int) -> None:
    dev("net", "update", "dev", "--net-rule", "allow@*.com").failed(2)
    dev("net", "update", "dev").failed(2)
    dev("net", "update", "nobody", "--network-policy", "none").failed(125)
    assert connects(dev, HOST, port)


def test_a_guest_that_cannot_take_a_network_stays_without(msb: Msb) -> None:
    """The error is one line; policy and record are what they were, and after a restart it takes one."""
    allow = ("net", "update", "dev", "--network-policy", "public-only")
    msb("create", "busybox", "-n", "dev", "-m", "128M", "--network-policy", "none").succeeded()
    try:
        # agentd finds no card where it had one.
        script = """
        unshare -n sleep 1000 >/dev/null 2>&1 &
        while [ "$(readlink /proc/$!/ns/net)" = "$(readlink /proc/$$/ns/net)" ]; do :; done
        ip link set eth0 netns $!"""
        msb("exec", "dev", "--", "sh", "-c", script).succeeded()
        restart = "hint: it goes on without a network; restart it, then try again: msb restart dev"
        for told in (
            "agentd could not set up the card: No such device",
            "the sandbox 'dev' has failed to get a network before",
        ):
            error = f"error: the sandbox 'dev' cannot change its network: {told}"
            assert msb(*allow).failed().splitlines() == [error, restart]
            (found,) = json.loads(msb("inspect", "dev").succeeded().out)
            assert found["config"]["network"]["policy"] == "none"
            assert found["status"] == "running"
            (counted,) = json.loads(msb("metrics", "dev", "--format", "json").succeeded().out)
            assert counted["network"] is None
        assert msb("exec", "dev", "--", "true").code == 0
        msb("restart", "dev").succeeded()
        msb(*allow).succeeded()
        assert "default via" in msb("exec", "dev", "--", "ip", "route").succeeded().text
    finally:
        msb("rm", "--force", "dev")


def test_what_cannot_be_starts_nothing(msb: Msb) -> None:
    for options in (
        ["-p", "80:99999"], ["-p", "any"], ["--net-rule", "allow@10.0.0.1/8"], ["--allow-domain", "*.com"],
        ["--allow-cidr", "10.0.0.0"], ["--dns-nameserver", "dns.example"], ["--max-connections", "0"],
        ["--net-rate", "10M"], ["--upstream-proxy", "ftp://p:1"], ["--no-proxy", "localhost"],
        ["--network-policy", "everything"], ["--net-rule", b"allow@\xff"],
    ):  # fmt: skip
        msb("run", *options, "busybox", "true").failed(2)
    assert msb("ls", "-q").text == ""


@pytest.mark.skipif("ports" not in features(), reason="this build of microsandbox-net has no ports")
def test_a_forks_ports_are_not_its_sources(msb: Msb) -> None:
    number = free_port()
    msb("create", "busybox", "-n", "dev", "-p", f"{number}:80", "--net-rule", "deny@public").succeeded()
    try:
        assert f"127.0.0.1:{number}->80/tcp" in msb("ps").text
        msb("fork", "dev", "--name", "try").succeeded()
        first, second = json.loads(msb("inspect", "dev", "try").text)
        assert [port["host_port"] for port in first["ports"]] == [number]
        assert second["ports"] == []
        assert first["config"]["network"] == second["config"]["network"]
        assert second["config"]["network"]["rules"] == ["deny@public"]
    finally:
        msb("rm", "--force", "dev", "try")


@pytest.mark.asyncio
async def test_a_command_knows_what_was_denied_to_it(home: Host, port: int) -> None:
    policy = NetworkPolicy.none(f"allow@host:tcp:{port}")
    async with await Sandbox.create(image="busybox", network=Network(policy=policy)) as sandbox:
        denied = await sandbox.shell(f"nc -w 10 {NOWHERE} 443; nc -w 10 {NOWHERE} 444; true")
        assert [(record.address, record.port) for record in denied.denied] == [(NOWHERE, 443), (NOWHERE, 444)]
        assert all(record.rule == "policy none: no rule allows it" for record in denied.denied)
        allowed = await sandbox.shell(f"nc -w 10 {HOST} {port} -e true")
        assert (allowed.exit_code, allowed.denied) == (0, ())
        assert (await sandbox.exec("true")).denied == ()
        on_record = [record async for record in sandbox.audit()]
        assert [record.port for record in on_record if record.denied] == [443, 444]
        await sandbox.update_network(NetworkPolicy.none())
        assert [record.port for record in (await sandbox.shell(f"nc -w 10 {HOST} {port}")).denied][-1:] != []
    assert home.leftovers() == []
