"""What a machine consists of, and what a driver has to offer."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from microsandbox_core.errors import SpecInvalid
from microsandbox_core.templates import Template

if TYPE_CHECKING:
    from microsandbox_core.vmm.saved import Capture


class DiskFormat(StrEnum):
    """How the bytes of a disk are stored on the host."""

    RAW = "raw"
    VMDK = "vmdk"
    """A text descriptor that concatenates flat extents, with paths relative to itself."""
    QCOW2 = "qcow2"
    NOTHING = "nothing"
    """A placeholder, in a machine of which a template is made."""


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
the random number generator and the network card take one each. QEMU has more only with a second interrupt
controller, for which it wants ACPI, or a PCI bus; libkrunfw's kernel has neither."""


MAX_DEVICES = 4
"""Disks after the boot disk, and directories served by virtio-fs, together: the same slots."""


MAX_PORTS = 29
"""Console ports that a machine can be given beside the two that it has."""


MTU_LIMIT = 65520
"""Bytes of the largest IP packet that a network card takes."""


class Disk(NamedTuple):
    """A virtio-blk device. `scratch`: its content need not survive the machine, so a flush that
    the guest asks for may be skipped. `descriptor`: the file, if it is open already. `serial`: what the guest
    reads as its serial number; letters, digits, ``_ . -``."""

    path: Path
    format: DiskFormat = DiskFormat.RAW
    read_only: bool = False
    scratch: bool = False
    descriptor: int | None = None
    serial: str = ""


class VmSpec(NamedTuple):
    """A machine: `disks` become /dev/vdb, /dev/vdc, ... after the boot disk, in this order. `shares`: tags of
    directories that it may be given a virtio-fs device for, the first ones first; see `Vm.shares`."""

    kernel: Path
    boot_disk: Path
    disks: tuple[Disk, ...] = ()
    vcpus: int = 1
    memory_mib: int = 512
    shares: tuple[str, ...] = ()

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
    to be read into the guest's memory, and of directories whose entries are to be looked up; those that do
    not exist are left out.
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


class DiskCopy(Protocol):
    """A copy of a running machine's disk that is being made."""

    def is_ready(self) -> bool:
        """Whether only what is written from now on is missing. Raises `MachineFailed`."""

    def finish(self) -> None:
        """Complete it, when it is ready and the machine is paused. Raises `MachineFailed`."""

    def give_up(self) -> None:
        """Let go of it. Does nothing after `finish`."""


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
    def network(self) -> socket.socket:
        """Stream socket joined to the network card: Ethernet frames after 32-bit big-endian lengths. Where
        it is closed, what the guest sends is lost."""

    @property
    def template(self) -> str | None:
        """The key of the template it was started from; None if its kernel was booted."""

    @property
    def shares(self) -> Mapping[str, socket.socket]:
        """Stream sockets at whose other ends it waits for somebody to be the virtio-fs device of a tag
        (vhost-user); only the tags of `VmSpec.shares` that it has a device for. A machine that comes from
        another one's memory has none: nobody but the VMM can share its own with it."""

    @property
    def monitor(self) -> int | None:
        """Becomes readable when `hear` has something to do; None if it never does."""

    def hear(self) -> bool:
        """Take what the VMM says unasked, so that it does not pile up; False when there will be no more."""

    def pause(self) -> None:
        """Halt its processors; memory and devices stay as they are, its disks are written out.

        Raises `Unsupported`, and `MachineFailed` when the VMM does not obey.
        """

    def resume(self) -> None:
        """Undo `pause`. Raises what that raises."""

    def cut_network(self) -> None:
        """Let the guest see that its network card's link is down. Raises what `pause` raises."""

    def join_network(self) -> None:
        """Undo `cut_network`. Raises what that raises."""

    def add_port(self, name: str) -> socket.socket:
        """Give the machine one more console port, which the guest finds by its name; the host's end of it, a
        stream socket. At most `MAX_PORTS`. Raises what `pause` raises."""

    def written(self) -> int:
        """How many bytes of memory `save` would take now. Raises what that raises."""

    def save(self, directory: Path, capture: Capture) -> None:
        """Write a paused machine's `state` into `directory` and take its memory, which is complete when
        the capture has been written over `memory`, the file that `copy_memory` has made there. The machine
        can be resumed before that. What is on its disks is the caller's to take.

        Raises `Unsupported` where this host does not let its memory be read, `MachineFailed`, `OSError`.
        """

    def copy_disk(self, disk: int, size: int, target: Path) -> DiskCopy:
        """Begin to copy the disk at this place in `VmSpec.disks`, of `size` bytes, to a new file, while the
        machine runs. One at a time. Raises `Unsupported`, `MachineFailed`, `OSError`."""

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

    def start_saved(self, spec: VmSpec, saved: Template) -> Vm:
        """Start a machine from what `Vm.save` has written of one with the same processors, memory and
        devices. Raises what `start_template` raises."""

    def make_template(
        self, spec: VmSpec, directory: Path, *, seconds: float, run_on: bool = False
    ) -> Vm | None:
        """Boot the machine, save it when agentd waits for its configuration, and end it; or let it `run_on`
        with its disks, where agentd has answered a greeting and waits for another.

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
