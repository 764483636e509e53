"""What a machine consists of, and what a driver has to offer."""

from __future__ import annotations

import socket
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, Protocol

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


MAX_DISKS = 4
"""With `acpi=off` the microvm machine has 8 virtio slots; the boot disk, the console,
the random number generator and the network card take one each."""


class Disk(NamedTuple):
    """A virtio-blk device. `scratch`: its content need not survive the machine, so a flush that
    the guest asks for may be skipped."""

    path: Path
    format: DiskFormat = DiskFormat.RAW
    read_only: bool = False
    scratch: bool = False


class VmSpec(NamedTuple):
    """A machine: `disks` become /dev/vdb, /dev/vdc, ... after the boot disk, in this order."""

    kernel: Path
    boot_disk: Path
    disks: tuple[Disk, ...] = ()
    vcpus: int = 1
    memory_mib: int = 512

    def check(self) -> None:
        """Raise `SpecInvalid` naming the first value that no driver can build."""
        if not 1 <= self.vcpus <= 255:
            raise SpecInvalid(f"vcpus: {self.vcpus} is not between 1 and 255")
        if not 64 <= self.memory_mib <= 1 << 20:
            raise SpecInvalid(f"memory: {self.memory_mib} MiB is not between 64 MiB and 1 TiB")
        if len(self.disks) > MAX_DISKS:
            raise SpecInvalid(f"disks: {len(self.disks)} are more than the machine's {MAX_DISKS}")


class Root(NamedTuple):
    """What agentd mounts before a machine is saved, so that the sandboxes of one image need not.

    `image` and `upper` are the places of the two disks in `VmSpec.disks`. The upper is freshly
    formatted, by a procedure of which `upper_kind` is the name. `warm`: paths of files in the image
    to be read into the guest's memory; those that do not exist are left out.
    """

    image: int
    upper: int
    upper_kind: str
    warm: tuple[bytes, ...] = ()

    def request(self) -> dict[str, Any]:
        """The parameters of agentd's method `mount`, without the time."""
        return {
            "image": {"device": device(self.image), "fstype": "erofs"},
            "upper": {"device": device(self.upper), "fstype": "ext4"},
            "warm": list(self.warm),
        }


def device(disk: int) -> str:
    """Where the guest finds the disk at this place in `VmSpec.disks`."""
    return f"/dev/vd{'bcdefgh'[disk]}"


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
        """Start the machine from a template made for it. Raises what `start` raises, and
        `TemplateFailed` on a host that cannot use templates; whether the state could be loaded shows in
        that agentd answers, or the VMM ends."""

    def make_template(self, spec: VmSpec, directory: Path, *, seconds: float) -> None:
        """Boot the machine, save it when agentd waits for its configuration, and end it.

        Leaves `memory` and `state` in `directory`. Raises `TemplateFailed`, also after `seconds`.
        """

    def make_mounted(
        self, spec: VmSpec, base: Template, root: Root, directory: Path, *, seconds: float
    ) -> None:
        """Start the machine from `base`, let agentd mount `root`, and save it again.

        `directory` holds `upper`, freshly formatted, which is attached in the place of the machine's own.
        Leaves `memory` and `state` beside it. Raises `TemplateFailed`, also after `seconds`.
        """

    def template_key(self, spec: VmSpec, kernel: str, boot_disk: str, root: Root | None = None) -> str:
        """64 hex digits for all that a template and the machines started from it have in common.

        `kernel` and `boot_disk` are the digests of the two files. With `root` the image is part of it.
        Raises `SpecInvalid` or `OSError` for an image that cannot be read.
        """

    @property
    def binary(self) -> Path:
        """The program that runs the machine."""
