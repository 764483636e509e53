"""The QEMU driver: the `microvm` machine, under KVM or translated.

The process is given open descriptors instead of paths wherever QEMU takes them: disks through
`-add-fd` sets (a VMDK descriptor is rewritten to name them), sockets by number. What remains is
`-kernel`, which QEMU opens by name.
"""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

from microsandbox_core import env
from microsandbox_core.errors import BootFailed, SpecInvalid, VmmNotFound
from microsandbox_core.vmm._process import Child, spawn
from microsandbox_core.vmm._spec import Capability, Disk, DiskFormat, Isolation, VmSpec
from microsandbox_core.vmm._vmdk import read_extents, write_descriptor

BINARY = "qemu-system-x86_64"

_KERNEL_ARGUMENTS = (
    "console=hvc0",
    "root=/dev/vda",
    "rootfstype=erofs",
    "ro",
    "init=/agentd",
    "quiet",
    # A machine without ACPI cannot be switched off; it ends by a reset, for which QEMU is told to exit.
    "reboot=t",
    "panic=-1",
)


def find_qemu() -> Path:
    """The QEMU to run: MSB_QEMU, or the first in PATH. Raises `VmmNotFound`."""
    chosen = env.value(env.MSB_QEMU)
    found = shutil.which(chosen or BINARY)
    if found is None:
        raise VmmNotFound(
            f"{chosen} (from {env.MSB_QEMU}) is not a program" if chosen else f"{BINARY} is not installed",
            hint="run `msb setup`, or install the package qemu-system-x86",
        )
    return Path(found)


class QemuVm:
    """A running QEMU; see `Vm`."""

    def __init__(
        self, child: Child, isolation: Isolation, agent: socket.socket, console: socket.socket
    ) -> None:
        self._child = child
        self.isolation = isolation
        self.agent = agent
        self.console = console

    @property
    def pid(self) -> int:
        """Process id of QEMU."""
        return self._child.pid

    @property
    def pidfd(self) -> int:
        """Becomes readable when QEMU has ended."""
        return self._child.pidfd

    def kill(self) -> None:
        """End it at once."""
        self._child.kill()

    def reap(self) -> int:
        """Wait for its end; the exit code, negative for a signal."""
        return self._child.reap()


class Qemu:
    """The driver; see `Vmm`."""

    name = "qemu"
    capabilities: frozenset[Capability] = frozenset()

    def __init__(self, binary: Path, *, kvm: bool) -> None:
        self.binary = binary
        self.isolation = Isolation.KVM if kvm else Isolation.EMULATED

    def start(self, spec: VmSpec) -> QemuVm:
        """Start the machine; see `Vmm.start`."""
        spec.check()
        files: list[int] = []
        agent, agent_peer = socket.socketpair()
        console, console_peer = socket.socketpair()
        try:
            arguments = self._arguments(spec, files, agent_peer.fileno(), console_peer.fileno())
            child = spawn(
                arguments,
                inherit=[*files, agent_peer.fileno(), console_peer.fileno()],
                output=console_peer.fileno(),
            )
        except BaseException:
            agent.close()
            console.close()
            raise
        finally:
            agent_peer.close()
            console_peer.close()
            for descriptor in files:
                os.close(descriptor)
        return QemuVm(child, self.isolation, agent, console)

    def _arguments(self, spec: VmSpec, files: list[int], agent: int, console: int) -> list[str]:
        kvm = self.isolation is Isolation.KVM
        arguments = [
            str(self.binary),
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
            # Under TCG the timer and interrupt controller of old are needed for a stable clock.
            "-machine", f"microvm,acpi=off,rtc=on,pit=on,pic=on,accel={'kvm' if kvm else 'tcg'}",
            "-cpu", "host" if kvm else "max",
            "-smp", str(spec.vcpus),
            "-m", f"{spec.memory_mib}M",
            "-global", "virtio-mmio.force-legacy=false",
            "-kernel", str(spec.kernel),
            "-append", " ".join(_KERNEL_ARGUMENTS),
        ]  # fmt: skip
        boot = Disk(path=spec.boot_disk, read_only=True)
        for number, disk in enumerate((boot, *spec.disks)):
            arguments += _disk_arguments(number, disk, files)
        arguments += [
            "-device", "virtio-serial-device,max_ports=31",
            "-chardev", f"socket,id=console,fd={console}",
            "-device", "virtconsole,chardev=console",
            "-chardev", f"socket,id=agent,fd={agent}",
            "-device", "virtserialport,chardev=agent,name=msb.agent",
            "-device", "virtio-rng-device",
        ]  # fmt: skip
        return arguments


def _disk_arguments(number: int, disk: Disk, files: list[int]) -> list[str]:
    arguments: list[str] = []

    def give(descriptor: int) -> str:
        """Hand the descriptor to QEMU and return the name under which it opens it."""
        files.append(descriptor)
        arguments.extend(["-add-fd", f"fd={descriptor},set={descriptor}"])
        return f"/dev/fdset/{descriptor}"

    if disk.format is DiskFormat.VMDK:
        if not disk.read_only:
            raise SpecInvalid(f"{disk.path}: a VMDK disk can only be attached read-only")
        extents = [
            (give(_open(extent.path, read_only=True)), extent.sectors, extent.offset)
            for extent in read_extents(disk.path)
        ]
        name = give(_memory_file(write_descriptor(extents)))
    else:
        name = give(_open(disk.path, read_only=disk.read_only))
    options = [f"driver={disk.format}", f"node-name=disk{number}"]
    options.append(f"read-only={'on' if disk.read_only else 'off'}")
    if disk.scratch:
        options.append("cache.no-flush=on")
    if not disk.read_only:
        options.append("discard=unmap")
    options += ["file.driver=file", f"file.filename={name}"]
    arguments += ["-blockdev", ",".join(options), "-device", f"virtio-blk-device,drive=disk{number}"]
    return arguments


def _memory_file(content: bytes) -> int:
    """A read-only descriptor for `content`: QEMU takes from a set only what has the mode it asks for."""
    writable = os.memfd_create("vmdk", os.MFD_CLOEXEC)
    try:
        os.write(writable, content)
        return os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(writable)


def _open(path: Path, *, read_only: bool) -> int:
    try:
        return os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    except OSError as error:
        raise BootFailed(
            f"cannot open the disk {path}: {error.strerror}",
            stage="spawn",
            hint="the image cache may be damaged: load or pull the image again",
        ) from error
