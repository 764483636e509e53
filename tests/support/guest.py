"""A machine whose agentd nobody has configured, spoken to without an sdk."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from microsandbox._machine import machine, root
from microsandbox.supervisor._shares import devices
from microsandbox_core.bootdisk import ensure_boot_disk
from microsandbox_core.channel import DataReceived, Ended, HelloReceived, HostConnection
from microsandbox_core.kernel import ensure_kernel
from microsandbox_core.requests import Exec
from microsandbox_core.upper import create_upper
from microsandbox_core.vmm import Vm, choose, start
from microsandbox_fs import Device
from microsandbox_oci import ImageStore


class Guest:
    """An agentd that nobody has configured."""

    def __init__(self, vm: Vm, devices: Mapping[str, Device]) -> None:
        self.vm = vm
        self.devices = devices
        self.greet()

    def greet(self) -> None:
        """Say HELLO as a new host; what was before is forgotten."""
        self._connection = HostConnection("test")
        self._until(HelloReceived)

    def ask(self, method: str, **parameters: Any) -> Any:
        """The error of a request, as `kind: message`; None if it had none."""
        self._connection.open(method, parameters)
        error = self._until(Ended).body.get("error")
        return error and f"{error['kind']}: {error['message']}"

    def run(self, script: str) -> str:
        """What a shell prints that runs this, on both of its outputs."""
        self._connection.open("exec", Exec(["/bin/sh", "-c", f"exec 2>&1; {script}"]).params())
        printed: list[bytes] = []
        self._until(Ended, printed)
        return b"".join(printed).decode()

    def _until(self, kind: type[Any], printed: list[bytes] | None = None) -> Any:
        while True:
            data = b"".join(self._connection.output())
            self.vm.agent.sendall(data)
            self._connection.sent(len(data))
            assert select.select([self.vm.agent], [], [], 120)[0], "agentd does not answer"
            for event in self._connection.receive(self.vm.agent.recv(1 << 16)):
                if isinstance(event, DataReceived) and printed is not None:
                    printed.append(event.data)
                if isinstance(event, kind):
                    return event


@contextmanager
def bare_guest(
    home: Path,
    settings: Mapping[str, str],
    monkeypatch: pytest.MonkeyPatch,
    upper: Path,
    shares: tuple[str, ...] = (),
) -> Iterator[Guest]:
    """One of busybox, with an upper of its own at `upper`; its agentd has answered a greeting. It is booted
    if it is to have devices of virtio-fs, `shares`."""
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    kernel, boot_disk = ensure_kernel(home), ensure_boot_disk(home)
    driver = choose(home, kernel, boot_disk)
    image = ImageStore(home / "cache").get("busybox").disk
    create_upper(home, upper)
    spec = machine(kernel, boot_disk, image, upper, scratch=True, shares=shares)
    vm = start(home, driver, spec, kernel, boot_disk, cold=bool(shares))
    try:
        yield Guest(vm, devices(vm))
    finally:
        vm.kill()
        vm.reap()
        vm.agent.close()
        vm.console.close()
        vm.network.close()


def configuration(**changes: Any) -> dict[str, Any]:
    """What `configure` is told, with `changes`."""
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
