"""A sandbox's network, from its guest: addresses, what the policy lets pass, forks, and its end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from microsandbox import ExecHandle, NetworkLost, NetworkPolicy, Sandbox, SandboxError, Stdin, _fork
from microsandbox._config import NetworkConfig
from microsandbox._directory import SandboxDirectory
from microsandbox.supervisor._addresses import Link, families, link_of

from tests.support.host import Host
from tests.support.msb import Msb
from tests.support.network import GREETING, Listener, break_link, host_address, started

pytestmark = [pytest.mark.vm, pytest.mark.asyncio]

ADDRESS = host_address()
needs_address = pytest.mark.skipif(ADDRESS is None, reason="this machine has no address but loopback ones")


@pytest.fixture
def home(msb: Msb, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Host:
    """The shared home as this process's, seen from the host."""
    for name, value in {"MSB_HOME": str(msb.home), **settings}.items():
        monkeypatch.setenv(name, value)
    return msb.host


@pytest.fixture
def canary() -> Iterator[Listener]:
    """A listener on an address of the host that is not a loopback one."""
    assert ADDRESS is not None
    with Listener(ADDRESS) as listener:
        yield listener


def _allowing(canary: Listener) -> NetworkConfig:
    return NetworkConfig(rules=(f"allow@{canary.address}:tcp:{canary.port}",))


@pytest_asyncio.fixture
async def allowed(home: Host, canary: Listener) -> AsyncIterator[Sandbox]:
    """A sandbox that may reach the canary."""
    async with await started(home.home, _allowing(canary)) as sandbox:
        yield sandbox


async def _greeted(sandbox: Sandbox, canary: Listener) -> bool:
    """Whether a connection from the guest arrives; if not it is refused, and does not hang."""
    found = await sandbox.exec("nc", ["-w", "10", canary.address, str(canary.port)], timeout=60)
    assert found.stdout_bytes in (b"", GREETING)
    assert found.stdout_bytes or "refused" in found.stderr_text
    return found.stdout_bytes == GREETING


async def _is_as_it_should(sandbox: Sandbox) -> Link:
    ipv4, ipv6 = families()
    link = link_of(sandbox.id, ipv4=ipv4, ipv6=ipv6)
    shown = await sandbox.shell(
        "cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu /sys/class/net/eth0/carrier;"
        "cat /etc/resolv.conf; ip addr show eth0; ip route; ip -6 route"
    )
    lines = [line.strip() for line in shown.stdout_text.splitlines()]
    nameserver = next(pair[1] for pair in (link.ipv4, link.ipv6) if pair)
    assert lines[:4] == [link.guest_mac, "65520", "1", f"nameserver {nameserver}"]
    inet = [line.split()[1] for line in lines if line.startswith("inet ")]
    inet6 = [line.split()[1] for line in lines if line.startswith("inet6 ")]
    assert inet == ([f"{link.ipv4[0]}/30"] if link.ipv4 else [])
    assert inet6 == ([f"{link.ipv6[0]}/64"] if link.ipv6 else []) + ["fe80::2/64"]
    routes = [line.split()[2] for line in lines if line.startswith("default via ")]
    assert routes == [pair[1] for pair in (link.ipv4, link.ipv6) if pair]
    assert "tentative" not in shown.stdout_text
    return link


# ------------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize("cold", [False, True], ids=["template", "cold"])
async def test_the_guest_has_addresses_routes_and_a_resolver_of_its_own(home: Host, cold: bool) -> None:
    async with await started(home.home, NetworkConfig(), cold=cold) as sandbox:
        await _is_as_it_should(sandbox)
        gateway = (await sandbox.shell("sed -n 's/nameserver //p' /etc/resolv.conf")).stdout_text.strip()
        assert (await sandbox.exec("ping", ["-c", "1", "-w", "10", gateway])).success


async def test_a_restricted_sandbox_has_it_too(home: Host) -> None:
    async with await started(home.home, NetworkConfig(), security="restricted") as sandbox:
        await _is_as_it_should(sandbox)


async def test_without_a_network_the_link_is_down_and_nothing_is_configured(home: Host) -> None:
    async with await started(home.home, NetworkConfig(preset="none")) as sandbox:
        found = await sandbox.shell(
            'while [ "$(cat /sys/class/net/eth0/carrier)" = 1 ]; do :; done; ip -4 addr show eth0; ip route;'
            "cat /etc/resolv.conf",
            timeout=60,
        )
        assert found.stdout_bytes == b""
        unreachable = await sandbox.exec("nc", ["-w", "5", "192.0.2.1", "80"])
        assert "unreachable" in unreachable.stderr_text


@needs_address
async def test_a_sandbox_without_a_network_gets_one_while_it_runs(home: Host, canary: Listener) -> None:
    sandbox = await started(home.home, NetworkConfig(preset="none"), name="late")
    try:
        await sandbox.update_network(NetworkPolicy.none())
        rule = f"allow@{canary.address}:tcp:{canary.port}"
        await sandbox.pause()
        with pytest.raises(SandboxError, match="is paused, and has no network yet"):
            await sandbox.update_network(NetworkPolicy.none(rule))
        await sandbox.resume()
        for _ in range(2):
            await sandbox.update_network(NetworkPolicy.none(rule))
            assert await _greeted(sandbox, canary)
            await _is_as_it_should(sandbox)
        copy = await sandbox.fork("copy")
        try:
            assert await _greeted(copy, canary)
        finally:
            await copy.destroy()
        await sandbox.update_network(NetworkPolicy.none())
        assert not await _greeted(sandbox, canary)
    finally:
        await sandbox.destroy()


async def test_a_sandbox_has_one_thread_and_few_descriptors_for_it(home: Host) -> None:
    """And of the network card's two ends each process has one."""
    async with await started(home.home, NetworkConfig()):
        running = home.sandbox()
        names = [
            (thread / "comm").read_text().strip()
            for thread in Path(f"/proc/{running.supervisor.pid}/task").iterdir()
        ]
        assert names.count("msb-net") == 1


# ---------------------------------------------------------------------------------------------- policy


@needs_address
async def test_what_a_rule_allows_is_reached_and_on_record(
    home: Host, canary: Listener, allowed: Sandbox
) -> None:
    assert await _greeted(allowed, canary)
    # The network's record is written before the end of a command is known.
    lines = (home.home / "sandboxes" / allowed.id / "network.log").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    (found,) = [record for record in records if record["port"] == canary.port]
    assert (found["action"], found["address"]) == ("allow", canary.address)
    assert (home.home / "sandboxes" / allowed.id / "network.log").stat().st_mode & 0o077 == 0


@needs_address
async def test_another_port_is_refused_and_on_record(home: Host, canary: Listener, allowed: Sandbox) -> None:
    assert ADDRESS is not None
    with Listener(ADDRESS) as other:
        assert not await _greeted(allowed, other)
        assert other.connections == 0
        log = (home.home / "sandboxes" / allowed.id / "network.log").read_text()
        (found,) = [record for line in log.splitlines() if (record := json.loads(line))["port"] == other.port]
        assert found["action"] == "deny"


@needs_address
async def test_another_policy_cuts_what_runs_and_opens_what_it_allows(
    home: Host, canary: Listener, allowed: Sandbox
) -> None:
    directory = SandboxDirectory(home.home, allowed.id)

    async def update(config: NetworkConfig) -> None:
        await _fork.ask(directory, allowed.name, "network.update", network=config.pack())

    command = await allowed.exec_stream("nc", [canary.address, str(canary.port)], stdin=Stdin.pipe())
    async for event in command:
        if event.kind == "stdout":
            break
    await update(NetworkConfig())
    assert await asyncio.to_thread(canary.ended.wait, 60)
    await command.wait()
    assert not await _greeted(allowed, canary)
    await update(_allowing(canary))
    assert await _greeted(allowed, canary)
    with pytest.raises(SandboxError, match="prefix"):
        await update(NetworkConfig(rules=("allow@10.0.0.1/8",)))
    assert await _greeted(allowed, canary)


# ------------------------------------------------------------------------------------------ other lives


@needs_address
async def test_a_fork_has_a_network_of_its_own(home: Host, canary: Listener) -> None:
    source = await started(home.home, _allowing(canary), name="source")
    try:
        copy = await source.fork("copy")
        try:
            ends = [await _is_as_it_should(each) for each in (source, copy)]
            assert ends[0].guest_mac != ends[1].guest_mac
            assert ends[0].ipv4 != ends[1].ipv4
            assert await _greeted(copy, canary)
            assert await _greeted(source, canary)
        finally:
            await copy.destroy()
    finally:
        await source.destroy()


@needs_address
async def test_a_forks_connections_are_reset_and_its_sources_go_on(home: Host, canary: Listener) -> None:
    source = await started(home.home, _allowing(canary), name="source")
    try:
        there = f"mkfifo in; (nc {canary.address} {canary.port} <>in >out 2>&1; echo over >ended) "
        # One between two programs of the sandbox, too: both ends are in the copy.
        inside = "mkfifo far; (nc -l -p 99 <>far >/dev/null 2>&1; echo over >cut) "
        begun = f"{there}>/dev/null 2>&1 & {inside}>/dev/null 2>&1 & until [ -s out ]; do :; done; "
        near = "mkfifo near; (until nc 127.0.0.1 99 <>near >heard; do :; done) >/dev/null 2>&1 & "
        said = "echo said >far; until [ -s heard ]; do :; done"
        done = await source.exec("sh", ["-c", f"cd /tmp; {begun}{near}{said}"], timeout=60)
        assert done.exit_code == 0, done
        copy = await source.fork("copy")
        try:
            done = await copy.exec("sh", ["-c", "cd /tmp; until [ -s ended ]; do :; done"], timeout=60)
            assert done.exit_code == 0
            # The other one still carries what is said.
            said = "cd /tmp; echo more >far; until grep -q more heard; do :; done; test ! -e cut"
            assert (await copy.exec("sh", ["-c", said], timeout=60)).exit_code == 0
            assert (await source.exec("test", ["-e", "/tmp/ended"])).exit_code == 1
            assert not canary.ended.is_set()
        finally:
            await copy.destroy()
        await _connections_of_namespaces_that_the_workload_made(source)
    finally:
        await source.destroy()


async def _connections_of_namespaces_that_the_workload_made(source: Sandbox) -> None:
    """One between two of them goes on. One whose far end is nobody's in the sandbox is with the world,
    whatever address it has on this side: here the far end went with its namespace, unheard."""
    script = """set -e; mkdir /tmp/made; cd /tmp/made; mkfifo first second third
    for name in one two gone; do
        unshare -n sh -c 'readlink /proc/self/ns/net >'$name'; exec sleep 1000' >/dev/null 2>&1 &
        eval $name=$!
        until [ -s $name ]; do :; done
    done
    within() { target=$1; shift; nsenter -t $target -n "$@"; }
    cable() {
        ip link add near type veth  # whose other end is called veth0
        ip link set near netns $one; ip link set veth0 netns $2
        within $one sh -c "ip link set near name $1; ip addr add $3.1/24 dev $1; ip link set $1 up"
        within $2 sh -c "ip addr add $3.2/24 dev veth0; ip link set veth0 up"
    }
    cable kept $two 172.30.0; cable cut $gone 172.31.0
    (within $two nc -l -p 98 <>first >/dev/null 2>&1; echo over >parted) >/dev/null 2>&1 &
    (within $gone nc -l -p 98 <>second >/dev/null 2>&1) >/dev/null 2>&1 &
    (until within $one nc 172.30.0.2 98 <>third >known 2>/dev/null; do :; done) >/dev/null 2>&1 &
    (until within $one nc 172.31.0.2 98 <>third >lost 2>/dev/null || [ -s lost ]; do :; done
    echo over >ended) >/dev/null 2>&1 &
    echo said >first; echo said >second; until [ -s known ] && [ -s lost ]; do :; done
    within $one ip link set cut down
    for process in /proc/[0-9]*; do
        [ "$(readlink $process/ns/net)" = "$(cat gone)" ] && kill -9 ${process#/proc/}
    done || :"""
    done = await source.exec("sh", ["-c", script], timeout=60)
    assert done.exit_code == 0, done
    copy = await source.fork("copy")
    try:
        heard = "echo more >first; until grep -q more known; do :; done; test ! -e parted"
        script = f"cd /tmp/made; until [ -s ended ]; do :; done; {heard}"
        done = await copy.exec("sh", ["-c", script], timeout=60)
        assert done.exit_code == 0, done
        assert (await source.exec("test", ["-e", "/tmp/made/ended"])).exit_code == 1
    finally:
        await copy.destroy()


@needs_address
async def test_a_pause_breaks_no_connection(canary: Listener, allowed: Sandbox) -> None:
    command = await allowed.exec_stream("nc", [canary.address, str(canary.port)], stdin=Stdin.pipe())
    async for event in command:
        if event.kind == "stdout":
            break
    await allowed.pause()
    await allowed.resume()
    assert not canary.ended.is_set()
    await command.take_stdin().close()
    assert (await command.wait()).exit_code == 0


async def test_when_the_stack_ends_commands_say_so_and_the_guest_goes_on(home: Host) -> None:
    """N34: nothing is let through by a stack that is not there."""
    async with await started(home.home, NetworkConfig()) as sandbox:
        running = await sandbox.exec_stream(
            "sh", ["-c", "echo up; read line; echo $line"], stdin=Stdin.pipe()
        )
        assert await anext(aiter(running))
        break_link(home)
        down = 'while [ "$(cat /sys/class/net/eth0/carrier)" = 1 ]; do :; done; echo down'
        with pytest.raises(NetworkLost, match="has lost its network"):
            await sandbox.shell(down, timeout=60)
        await running.take_stdin().write(b"on\n")
        printed: list[bytes] = []
        with pytest.raises(NetworkLost):
            await _print_all(running, printed)
        assert b"".join(printed).endswith(b"on\n")
        assert (await sandbox.ping()) > 0
        found = await sandbox.fs.read("/etc/hostname")
        assert found.strip()


async def _print_all(running: ExecHandle, printed: list[bytes]) -> None:
    async for event in running:
        if event.kind == "stdout":
            printed.append(event.data)
