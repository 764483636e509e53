"""agentd's method `mount`, by which a template gets the root of an image before anybody's sandbox exists."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from microsandbox._machine import machine, root
from microsandbox_core.bootdisk import ensure_boot_disk
from microsandbox_core.channel import Ended, HelloReceived, HostConnection
from microsandbox_core.kernel import ensure_kernel
from microsandbox_core.requests import Exec
from microsandbox_core.upper import create_upper
from microsandbox_core.vmm import Vm, choose, start

pytestmark = pytest.mark.vm


class Guest:
    """An agentd that nobody has configured."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self.greet()

    def greet(self) -> None:
        """Say HELLO as a new host; what was before is forgotten."""
        self._connection = HostConnection("test")
        self._until(HelloReceived)
        self._vm.started()

    def ask(self, method: str, **parameters: Any) -> Any:
        """The error of a request, as `kind: message`; None if it had none."""
        self._connection.open(method, parameters)
        error = self._until(Ended).body.get("error")
        return error and f"{error['kind']}: {error['message']}"

    def _until(self, kind: type[Any]) -> Any:
        while True:
            data = b"".join(self._connection.output())
            self._vm.agent.sendall(data)
            self._connection.sent(len(data))
            assert select.select([self._vm.agent], [], [], 60)[0], "agentd does not answer"
            for event in self._connection.receive(self._vm.agent.recv(1 << 16)):
                if isinstance(event, kind):
                    return event


@pytest.fixture
def guest(
    shared_home: Path, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Guest]:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    kernel, boot_disk = ensure_kernel(shared_home), ensure_boot_disk(shared_home)
    driver = choose(shared_home, kernel, boot_disk)
    (image,) = shared_home.glob("cache/images/*/image.vmdk")
    create_upper(shared_home, tmp_path / "upper")
    spec = machine(kernel, boot_disk, image, tmp_path / "upper", scratch=True)
    vm = start(shared_home, driver, spec, kernel, boot_disk)
    try:
        yield Guest(vm)
    finally:
        vm.kill()
        vm.reap()
        vm.agent.close()
        vm.console.close()


def _mount(**changes: Any) -> dict[str, Any]:
    return {"time_ns": time.time_ns(), **root().request(), **changes}


def _configure(**changes: Any) -> dict[str, Any]:
    disks = root().request()
    return {
        "entropy": os.urandom(64),
        "time_ns": time.time_ns(),
        "hostname": "box",
        "machine_id": "0" * 32,
        "image": disks["image"],
        "upper": disks["upper"],
        "hosts": [],
        "resolv_conf": None,
        **changes,
    }


_EXEC = Exec(["/bin/true"]).params()


def test_what_is_mounted_is_what_another_host_configures(guest: Guest) -> None:
    # Files that are none, cannot be read, or would block or never end, are left out.
    warm = [b"/bin/sh", b"/nothing/there", b"/proc", b"/dev/console", b"/dev/zero", b"a\0b", b""]
    assert guest.ask("mount", **_mount(warm=warm)) is None
    assert guest.ask("mount", **_mount()).startswith("invalid_request: ")
    assert guest.ask("exec", **_EXEC).startswith("not_configured: ")
    guest.greet()
    assert guest.ask("configure", **_configure(hostname="")).startswith("invalid_request: ")
    assert guest.ask("configure", **_configure()) is None
    assert guest.ask("exec", **_EXEC) is None
    assert guest.ask("mount", **_mount()).startswith("invalid_request: ")


def test_other_disks_than_the_mounted_ones_are_refused(guest: Guest) -> None:
    assert guest.ask("mount", **_mount()) is None
    other = {"device": "/dev/vda", "fstype": "erofs"}
    assert guest.ask("configure", **_configure(image=other)).startswith("invalid_request: ")
    assert guest.ask("exec", **_EXEC).startswith("not_configured: ")


def test_a_mount_that_failed_is_the_end(guest: Guest) -> None:
    assert guest.ask("mount", **_mount(warm=[b"x"] * 65)).startswith("invalid_request: ")
    missing = {"device": "/dev/vdz", "fstype": "erofs"}
    assert guest.ask("mount", **_mount(image=missing)).startswith("mount_failed: ")
    assert guest.ask("mount", **_mount()).startswith("invalid_request: ")
    assert guest.ask("configure", **_configure()).startswith("invalid_request: ")
