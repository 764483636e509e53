"""Names as a guest's own resolver has them: from the host's servers, or standing for themselves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from microsandbox import Sandbox
from microsandbox._config import NetworkConfig
from microsandbox_net.resolv import search_domains

from tests.support.host import Host
from tests.support.msb import Msb
from tests.support.names import NameServer
from tests.support.network import GREETING, Listener, host_address, started

pytestmark = [pytest.mark.vm, pytest.mark.asyncio]

ADDRESS = host_address()


@pytest.fixture
def home(msb: Msb, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Host:
    """The shared home as this process's, seen from the host."""
    for name, value in {"MSB_HOME": str(msb.home), **settings}.items():
        monkeypatch.setenv(name, value)
    return msb.host


@pytest.fixture
def server() -> Iterator[NameServer]:
    """A server that knows `good.example` by an address of this host, if it has any but loopback ones."""
    known = {"good.example": ADDRESS or "192.0.2.1", "public.example": "93.184.215.14"}
    known["evil.example"] = known["inner.example"] = "127.0.0.1"
    try:
        with NameServer(known) as server:
            yield server
    except PermissionError:
        pytest.skip("port 53 is not for this user")


async def _told(sandbox: Sandbox, name: str) -> str:
    return (await sandbox.exec("nslookup", [name], timeout=60)).stdout_text


async def test_short_names_are_completed_as_on_the_host(home: Host, server: NameServer) -> None:
    domains = search_domains()
    for servers, expected in (((), domains), ((server.address,), ())):
        async with await started(home.home, NetworkConfig(nameservers=servers)) as sandbox:
            text = (await sandbox.shell("cat /etc/resolv.conf")).stdout_text
        assert [line.split()[1:] for line in text.splitlines() if line.startswith("search")] == (
            [list(expected)] if expected else []
        )


async def test_a_name_is_asked_for_if_the_policy_allows_it(home: Host, server: NameServer) -> None:
    rules = ("deny@evil.example",)
    async with await started(home.home, NetworkConfig(rules=rules, nameservers=(server.address,))) as sandbox:
        assert "93.184.215.14" in await _told(sandbox, "public.example")
        assert "NXDOMAIN" in await _told(sandbox, "inner.example")
        assert "NXDOMAIN" in await _told(sandbox, "evil.example")
    assert "public.example" in server.asked
    assert "evil.example" not in server.asked


@pytest.mark.skipif(ADDRESS is None, reason="this machine has no address but loopback ones")
async def test_a_name_that_stands_for_itself_is_asked_for_when_it_is_used(
    home: Host, server: NameServer
) -> None:
    assert ADDRESS is not None
    with Listener(ADDRESS) as canary:
        network = NetworkConfig(
            preset="none",
            rules=("allow@good.example", f"allow@{ADDRESS}:tcp:{canary.port}"),
            nameservers=(server.address,),
            dns="synthetic",
        )
        async with await started(home.home, network) as sandbox:
            assert "198.18.0.1" in await _told(sandbox, "good.example")
            assert "NXDOMAIN" in await _told(sandbox, "other.example")
            assert server.asked == []
            found = await sandbox.exec("nc", ["-w", "10", "good.example", str(canary.port)], timeout=60)
            assert found.stdout_bytes == GREETING
            assert set(server.asked) == {"good.example"}
