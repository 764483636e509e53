"""Fixtures of the tests that need an internet of their own; without the means for one they are skipped."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.attackers import Attack, from_machine, from_namespace
from tests.support.internet import Internet
from tests.support.msb import Msb
from tests.support.namespace import why_not


@pytest.fixture(scope="session")
def _reason() -> str | None:
    return why_not()


@pytest.fixture
def internet(_reason: str | None) -> Iterator[Internet]:
    """An internet for one test."""
    if _reason is not None:
        pytest.skip(_reason)
    with Internet() as internet:
        yield internet


@pytest.fixture(
    params=["namespace", pytest.param("machine", marks=[pytest.mark.vm, pytest.mark.root, pytest.mark.slow])]
)
def attack(internet: Internet, request: pytest.FixtureRequest) -> Attack:
    """Starts a guest with a preset and rules."""
    if request.param == "namespace":
        return lambda preset, *rules, **more: from_namespace(internet, preset, *rules, **more)
    msb: Msb = request.getfixturevalue("msb")
    return lambda preset, *rules, **more: from_machine(internet, msb, preset, *rules, **more)
