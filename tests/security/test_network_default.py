"""What a guest with the default policy cannot reach: the host and what surrounds it. (N01, N11)"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from microsandbox import Sandbox
from microsandbox._config import NetworkConfig

from tests.support.host import Host
from tests.support.msb import Msb
from tests.support.network import Listener, host_address, started

pytestmark = [pytest.mark.vm, pytest.mark.asyncio(loop_scope="module")]

ADDRESS = host_address()


@pytest.fixture(scope="module")
def canary() -> Iterator[Listener]:
    """On every address of the host."""
    with Listener("0.0.0.0") as listener:
        yield listener


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox(shared_home, settings) -> AsyncIterator[Sandbox]:  # type: ignore[no-untyped-def]
    """A sandbox with the default network."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"MSB_HOME": str(shared_home), **settings}.items():
            patch.setenv(name, value)
        async with await started(shared_home, NetworkConfig()) as created:
            yield created
        Host(shared_home).wait_empty()
        Msb(shared_home, settings).remove_everything()


@pytest.mark.parametrize(
    "target",
    [
        "gateway",
        pytest.param(ADDRESS, marks=pytest.mark.skipif(ADDRESS is None, reason="no other address")),
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "169.254.170.2",
        "100.100.100.200",
        "168.63.129.16",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "100.64.0.1",
        "198.18.0.1",
        "240.0.0.1",
        "fd00:ec2::254",
        "64:ff9b::a9fe:a9fe",
    ],
)  # fmt: skip
async def test_it_is_refused_at_once_and_nobody_hears_of_it(
    sandbox: Sandbox, canary: Listener, target: str
) -> None:
    if target == "gateway":
        shown = await sandbox.shell("sed -n 's/nameserver //p' /etc/resolv.conf")
        target = shown.stdout_text.strip()
    before = canary.connections
    found = await sandbox.exec("nc", ["-w", "10", target, str(canary.port)], timeout=60)
    assert not found.success
    assert found.stdout_bytes == b""
    assert "timed out" not in found.stderr_text
    assert found.duration < 10
    assert canary.connections == before


async def test_the_whole_of_127_is_the_guests_own(sandbox: Sandbox, canary: Listener) -> None:
    found = await sandbox.exec("nc", ["-w", "10", "127.0.0.1", str(canary.port)], timeout=60)
    assert "refused" in found.stderr_text
    assert canary.connections == 0
