"""agentd's method `mount`, by which a template gets the root of an image before anybody's sandbox exists."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from microsandbox._machine import root
from microsandbox_core.requests import Exec

from tests.support.guest import Guest, bare_guest, configuration

pytestmark = pytest.mark.vm


@pytest.fixture
def guest(
    shared_home: Path, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Guest]:
    with bare_guest(shared_home, settings, monkeypatch, tmp_path / "upper") as found:
        yield found


def _mount(**changes: Any) -> dict[str, Any]:
    return {"time_ns": time.time_ns(), **root().request(), **changes}


_EXEC = Exec(["/bin/true"]).params()


def test_what_is_mounted_is_what_another_host_configures(guest: Guest) -> None:
    # Files that are none, cannot be read, or would block or never end, are left out.
    warm = [b"/bin/sh", b"/nothing/there", b"/bin", b"/proc", b"/dev/console", b"/dev/zero", b"a\0b", b""]
    assert guest.ask("mount", **_mount(warm=warm)) is None
    assert guest.ask("mount", **_mount()).startswith("invalid_request: ")
    assert guest.ask("exec", **_EXEC).startswith("not_configured: ")
    guest.greet()
    assert guest.ask("configure", **configuration(hostname="")).startswith("invalid_request: ")
    assert guest.ask("configure", **configuration()) is None
    assert guest.ask("exec", **_EXEC) is None
    assert guest.ask("mount", **_mount()).startswith("invalid_request: ")


def test_other_disks_than_the_mounted_ones_are_refused(guest: Guest) -> None:
    assert guest.ask("mount", **_mount()) is None
    other = {"device": "/dev/vda", "fstype": "erofs"}
    assert guest.ask("configure", **configuration(image=other)).startswith("invalid_request: ")
    assert guest.ask("exec", **_EXEC).startswith("not_configured: ")


def test_a_mount_that_failed_is_the_end(guest: Guest) -> None:
    assert guest.ask("mount", **_mount(warm=[b"x"] * 65)).startswith("invalid_request: ")
    missing = {"device": "/dev/vdz", "fstype": "erofs"}
    assert guest.ask("mount", **_mount(image=missing)).startswith("mount_failed: ")
    assert guest.ask("mount", **_mount()).startswith("invalid_request: ")
    assert guest.ask("configure", **configuration()).startswith("invalid_request: ")
