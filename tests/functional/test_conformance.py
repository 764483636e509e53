"""The real `Sandbox` does what `microsandbox.testing.conformance` asks of everything that is one."""

from __future__ import annotations

import pytest
from microsandbox import Sandbox
from microsandbox.testing import conformance

from tests.support.host import Host
from tests.support.msb import Msb

pytestmark = [pytest.mark.vm, pytest.mark.asyncio]


@pytest.fixture
def home(msb: Msb, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Host:
    """The shared home as this process's, seen from the host."""
    for name, value in {"MSB_HOME": str(msb.home), **settings}.items():
        monkeypatch.setenv(name, value)
    return msb.host


@pytest.mark.parametrize("case", conformance.CASES, ids=conformance.name_of)
async def test_a_sandbox_conforms(case: conformance.Case, home: Host) -> None:
    await case(Sandbox, "busybox")
    home.wait_empty()
    assert home.rows() == []
