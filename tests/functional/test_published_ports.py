"""Published ports and upstream proxies, with a guest behind them."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest
from microsandbox import Sandbox, StartError
from microsandbox._config import NetworkConfig

from tests.support.host import Host
from tests.support.msb import Msb
from tests.support.network import free_port, started

pytestmark = [pytest.mark.vm, pytest.mark.asyncio]

PATIENCE = 60.0


@pytest.fixture
def home(msb: Msb, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Host:
    """The shared home as this process's, seen from the host."""
    for name, value in {"MSB_HOME": str(msb.home), **settings}.items():
        monkeypatch.setenv(name, value)
    return msb.host


async def _listens(sandbox: Sandbox, program: str) -> None:
    """Have the guest answer one connection to its port 80 with `program`."""
    await sandbox.shell(
        f"nc -l -p 80 -e sh -c '{program}' >/dev/null 2>&1 </dev/null & "
        "until netstat -lnt | grep -q :80; do :; done",
        timeout=PATIENCE,
    )


def _exchange(address: str, port: int, data: bytes) -> bytes:
    """What comes back until the guest's end, after all of `data` and an end; with no data there is no end."""
    received = b""
    with socket.create_connection((address, port), timeout=PATIENCE) as client:
        # On a connection that has been reset already there would be nothing to end.
        if data:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
        while piece := client.recv(1 << 16):
            received += piece
    return received


async def test_a_published_port_leads_to_the_guest_and_ends_pass_both_ways(home: Host) -> None:
    address = "127.0.0.1"
    port = free_port()
    async with await started(home.home, NetworkConfig(ports=(("tcp", address, port, 80),))) as sandbox:
        # The guest counts until the client's end, and then still has something to say.
        await _listens(sandbox, "wc -c; echo done")
        answer = await asyncio.to_thread(_exchange, address, port, b"x" * 1_000_000)
        assert answer == b"1000000\ndone\n"
    with pytest.raises(ConnectionRefusedError):
        _exchange(address, port, b"")


async def test_n32_a_peer_that_the_rules_deny_is_reset(home: Host) -> None:
    port = free_port()
    config = NetworkConfig(ports=(("tcp", "127.0.0.1", port, 80),), rules=("deny:ingress@host",))
    async with await started(home.home, config) as sandbox:
        await _listens(sandbox, "echo reached")
        with pytest.raises(ConnectionResetError):
            await asyncio.to_thread(_exchange, "127.0.0.1", port, b"")
        # Nobody came.
        assert (await sandbox.shell("netstat -lnt | grep :80")).success


async def test_n32_the_second_sandbox_with_a_port_fails_and_says_which(home: Host) -> None:
    port = free_port()
    config = NetworkConfig(ports=(("tcp", "127.0.0.1", port, 80),))
    async with await started(home.home, config):
        with pytest.raises(StartError) as caught:
            await started(home.home, config)
    assert caught.value.code == "port_unavailable"
    told = f"tcp port 127.0.0.1:{port} is not available: another program, or another sandbox, has it"
    assert told in str(caught.value)


async def test_a_guest_goes_out_through_the_proxy_and_never_reaches_it(home: Host) -> None:
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        port = proxy.getsockname()[1]

        def serve() -> None:
            client, _ = proxy.accept()
            with client:
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    head += client.recv(1)
                asked.append(head)
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\nfrom the target\n")

        thread = threading.Thread(target=serve)
        thread.start()
        config = NetworkConfig(
            rules=("allow@192.0.2.80:tcp:80", "allow@host", "allow@192.0.2.80:icmp"),
            proxy=f"http://me:secret@127.0.0.1:{port}",
        )
        async with await started(home.home, config) as sandbox:
            found = await sandbox.exec("nc", ["192.0.2.80", "80"], stdin=b"", timeout=PATIENCE)
            assert found.stdout_bytes == b"from the target\n"
            await asyncio.to_thread(thread.join, PATIENCE)
            assert not (await sandbox.exec("ping", ["-c", "1", "-W", "2", "192.0.2.80"])).success
            gateway = (await sandbox.shell("sed -n 's/nameserver //p' /etc/resolv.conf")).stdout_text.strip()
            found = await sandbox.exec("nc", ["-w", "10", gateway, str(port)], timeout=PATIENCE)
            assert not found.success
    assert len(asked) == 1
    assert asked[0].startswith(b"CONNECT 192.0.2.80:80 HTTP/1.1\r\n")
