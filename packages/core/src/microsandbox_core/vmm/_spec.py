"""What a machine consists of, and what a driver has to offer."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from microsandbox_core.errors import SpecInvalid
from microsandbox_core.templates import Template


class DiskFormat(StrEnum):
    """How the bytes of a disk are stored on the host."""

    RAW = "raw"
    VMDK = "vmdk"
    """A text descriptor that concatenates flat extents, with paths relative to itself."""


class Isolation(StrEnum):
    """What separates the guest's instructions from the host."""

    KVM = "kvm"
    HVF = "hvf"
    EMULATED = "emulated"
    """Every instruction is translated in software; outside QEMU's own security guarantee."""


class Capability(StrEnum):
    """What a driver can do beyond starting and killing a machine."""

    TEMPLATE = "template"
    PAUSE = "pause"
    SAVE = "save"
    FORK = "fork"


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A virtio-blk device. `scratch`: its content need not survive the machine, so a flush that
    the guest asks for may be skipped."""

    path: Path
    format: DiskFormat = DiskFormat.RAW
    read_only: bool = False
    scratch: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VmSpec:
    """A machine: `disks` become /dev/vdb, /dev/vdc, ... after the boot disk, in this order."""

    kernel: Path
    boot_disk: Path
    disks: tuple[Disk, ...] = ()
    vcpus: int = 1
    memory_mib: int = 512

    MAX_DISKS = 4
    """With `acpi=off` the microvm machine has 8 virtio slots; the boot disk, the console,
    the random number generator and the network card take one each."""

    def check(self) -> None:
        """Raise `SpecInvalid` naming the first value that no driver can build."""
        if not 1 <= self.vcpus <= 255:
            raise SpecInvalid(f"vcpus: {self.vcpus} is not between 1 and 255")
        if not 64 <= self.memory_mib <= 1 << 20:
            raise SpecInvalid(f"memory: {self.memory_mib} MiB is not between 64 MiB and 1 TiB")
        if len(self.disks) > self.MAX_DISKS:
            raise SpecInvalid(f"disks: {len(self.disks)} are more than the machine's {self.MAX_DISKS}")


class Vm(Protocol):
    """A running machine. It dies with the thread that started it, whatever becomes of that."""

    @property
    def pid(self) -> int:
        """Process id of the VMM."""

    @property
    def pidfd(self) -> int:
        """Becomes readable when the VMM has ended."""

    @property
    def isolation(self) -> Isolation:
        """What this machine really got."""

    @property
    def agent(self) -> socket.socket:
        """Stream socket joined to the console port `msb.agent`."""

    @property
    def console(self) -> socket.socket:
        """Stream socket from which the guest kernel's log and the VMM's messages are read."""

    @property
    def template(self) -> str | None:
        """The key of the template it was started from; None if its kernel was booted."""

    def started(self) -> None:
        """To be called when agentd has answered."""

    def kill(self) -> None:
        """End the VMM at once, without the guest's help. Does nothing if it has ended."""

    def reap(self) -> int:
        """Wait for the VMM's end; its exit code, negative for a signal."""


class Vmm(Protocol):
    """A driver."""

    @property
    def name(self) -> str:
        """Name used on the command line and in records."""

    @property
    def isolation(self) -> Isolation:
        """What machines of this driver get on this host."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What it can do besides start and kill."""

    def start(self, spec: VmSpec) -> Vm:
        """Start the machine. Raises `SpecInvalid` or `BootFailed` (stage ``spawn``)."""

    def start_template(self, spec: VmSpec, template: Template) -> Vm:
        """Start the machine from a template made for it. Raises what `start` raises; whether the
        state could be loaded shows in that agentd answers, or the VMM ends."""

    def make_template(self, spec: VmSpec, directory: Path, *, seconds: float) -> None:
        """Boot the machine, save it when agentd waits for its configuration, and end it.

        Leaves `memory` and `state` in `directory`. Raises `TemplateFailed`, also after `seconds`.
        """

    def template_key(self, spec: VmSpec, kernel: str, boot_disk: str) -> str:
        """64 hex digits for all that a template and the machines started from it have in common.

        `kernel` and `boot_disk` are the digests of the two files.
        """

    @property
    def binary(self) -> Path:
        """The program that runs the machine."""
