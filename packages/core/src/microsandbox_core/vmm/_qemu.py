"""The QEMU driver: the `microvm` machine, under KVM or translated.

The process is given open descriptors instead of paths wherever QEMU takes them: disks through
`-add-fd` sets (a VMDK descriptor is rewritten to name them), sockets by number. What remains is
`-kernel`, which QEMU opens by name.

A template is made by booting the machine with placeholders for the disks that a sandbox brings, its
memory in a shared file, and saving the device state when agentd waits for its configuration. The machine
may then be given its disks and run on. A template is started
by mapping its memory privately and loading the state (QEMU: migration with `x-ignore-shared`). QEMU does
not compare the sizes of disks on loading, so the placeholders only have to be larger than any disk.

From such a template another can be made that has an image's root mounted: started with a copy of the memory,
with the disks, and saved again once agentd has mounted them.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microsandbox_core import env
from microsandbox_core.artifacts import copy_data, identity
from microsandbox_core.digests import sha256
from microsandbox_core.errors import BootFailed, SpecInvalid, Unsupported, VmmNotFound
from microsandbox_core.templates import Template
from microsandbox_core.vmm._confine import OFF
from microsandbox_core.vmm._handover import Offer
from microsandbox_core.vmm._making import Making, await_agent, await_end, await_mounted, discard, making
from microsandbox_core.vmm._monitor import Attached, Detached, Monitor, load_commands, resume, save
from microsandbox_core.vmm._process import Child, spawn
from microsandbox_core.vmm._spec import (
    MAX_DEVICES,
    MTU_LIMIT,
    Capability,
    Disk,
    DiskFormat,
    Isolation,
    Root,
    VmSpec,
)
from microsandbox_core.vmm._vmdk import read_extents, write_descriptor

if TYPE_CHECKING:
    from microsandbox_core.vmm._mirror import Mirror
    from microsandbox_core.vmm.saved import Capture

BINARY = "qemu-system-x86_64"

_PLACEHOLDER_SIZE = 16 << 40
"""Bytes that a disk has in a template, as the guest goes on to believe: more than any file can have."""

_PLACEHOLDER_MAC = "02:00:00:00:00:00"

_NETWORK_DEVICE = "nic"

# Nor does QEMU announce by itself that a card has moved, with frames that the guest has not sent.
_NO_ANNOUNCEMENTS = ("-global", "migration.announce-rounds=0")

_ANSWER = 10.0  # seconds in which a running QEMU has to do what it is told

_FORMAT = "1"  # part of every template's key: of how they are made and started

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
    found = env.program(chosen or BINARY)
    if found is None:
        raise VmmNotFound(
            f"{chosen} (from {env.MSB_QEMU}) is not a program" if chosen else f"{BINARY} is not installed",
            hint="run `msb setup`, or install the package qemu-system-x86",
        )
    return found


class QemuVm:
    """A running QEMU; see `Vm`."""

    def __init__(
        self,
        child: Child,
        isolation: Isolation,
        agent: socket.socket,
        console: socket.socket,
        network: socket.socket,
        monitor: socket.socket | None = None,
        template: str | None = None,
        memory_mib: int = 0,
        shares: dict[str, socket.socket] | None = None,
    ) -> None:
        self._child = child
        self._monitor = monitor
        self._memory = memory_mib << 20
        self._talk: Monitor | None = None
        self.isolation = isolation
        self.agent = agent
        self.console = console
        self.network = network
        self.template = template
        self.shares = shares or {}

    @property
    def pid(self) -> int:
        """Process id of QEMU."""
        return self._child.pid

    @property
    def pidfd(self) -> int:
        """Becomes readable when QEMU has ended."""
        return self._child.pidfd

    @property
    def monitor(self) -> int | None:
        """Readable when QEMU has said something that nobody asked for; see `hear`."""
        return None if self._monitor is None else self._monitor.fileno()

    def hear(self) -> bool:
        """Read what QEMU says of itself, of which nothing is wanted; False when it will say no more."""
        return self._open_talk().discard()

    def pause(self) -> None:
        """See `Vm.pause`."""
        self._open_talk().within(_ANSWER).ask("stop", {})

    def resume(self) -> None:
        """See `Vm.resume`."""
        self._open_talk().within(_ANSWER).ask("cont", {})

    def written(self) -> int:
        """See `Vm.written`."""
        from microsandbox_core.vmm.saved import written

        talk = self._open_talk().within(_ANSWER)
        return sum(length for _, length in written(self.pid, talk.host_address(), self._memory))

    def save(self, directory: Path, capture: Capture) -> None:
        """See `Vm.save`."""
        from microsandbox_core.vmm.saved import add_memory

        talk = self._open_talk().within(_ANSWER)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        state = os.open(directory / "state", flags, 0o600)
        try:
            talk.save_devices(state)
        finally:
            os.close(state)
        add_memory(capture, self.pid, talk.host_address(), self._memory, directory / "memory")

    def copy_disk(self, disk: int, size: int, target: Path) -> Mirror:
        """See `Vm.copy_disk`."""
        from microsandbox_core.vmm._mirror import Mirror

        # The boot disk is the first.
        return Mirror(self._open_talk(), f"disk{disk + 1}", size, target, _ANSWER)

    def add_port(self, name: str) -> socket.socket:
        """See `Vm.add_port`."""
        from microsandbox_core.vmm._ports import add_port

        return add_port(self._open_talk().within(_ANSWER), name)

    def cut_network(self) -> None:
        """See `Vm.cut_network`."""
        self._set_link(up=False)

    def join_network(self) -> None:
        """See `Vm.join_network`."""
        self._set_link(up=True)

    def _set_link(self, *, up: bool) -> None:
        self._open_talk().within(_ANSWER).ask("set_link", {"name": _NETWORK_DEVICE, "up": up})

    def _open_talk(self) -> Monitor:
        if self._monitor is None:
            raise Unsupported("this machine was started without a monitor")
        if self._talk is None:
            # A machine from a template was told its first commands without waiting for the answers.
            self._talk = Monitor(self._monitor, greeted=self.template is not None)
        return self._talk

    def kill(self) -> None:
        """End it at once."""
        self._child.kill()

    def reap(self) -> int:
        """Wait for its end; the exit code, negative for a signal."""
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None
        return self._child.reap()


class Qemu:
    """The driver; see `Vmm`."""

    name = "qemu"
    capabilities: frozenset[Capability] = frozenset(
        {Capability.TEMPLATE, Capability.PAUSE, Capability.SAVE, Capability.FORK}
    )

    def __init__(self, binary: Path, *, kvm: bool, tsc_khz: int | None = None) -> None:
        """`tsc_khz`: the host's counter, for a translated guest (see `_tsc`)."""
        self.binary = binary
        self._more_arguments: tuple[str, ...] = ()
        if not kvm:
            # The kernel tries its timer out, and panics if the ticks come late, as on a busy host. What it
            # does about speculation is of no use here, where a return or indirect call is translated into the
            # same jump of the host whatever the kernel makes it of.
            self._more_arguments = ("no_timer_check", "mitigations=off")
            if tsc_khz is not None:
                self._more_arguments += (f"tsc_early_khz={tsc_khz}", "tsc=reliable")
        self.isolation = Isolation.KVM if kvm else Isolation.EMULATED

    def start(self, spec: VmSpec) -> QemuVm:
        """Start the machine; see `Vmm.start`."""
        spec.check()
        files: list[int] = []
        ours, theirs = socket.socketpair()
        shares = {tag: socket.socketpair() for tag in spec.shares[: _room(spec)]}
        try:
            disks = self._disks(spec, files)
            more = _monitor(theirs.fileno())
            for tag, (_, peer) in shares.items():
                files.append(os.dup(peer.fileno()))
                more += _share(tag, files[-1])
            vm = self._spawn(
                spec,
                disks,
                [*files, theirs.fileno()],
                more,
                shared=bool(shares),
                monitor=ours,
            )
        except BaseException:
            ours.close()
            for end, _ in shares.values():
                end.close()
            raise
        else:
            vm.shares = {tag: end for tag, (end, _) in shares.items()}
            return vm
        finally:
            theirs.close()
            for _, peer in shares.values():
                peer.close()
            for descriptor in files:
                os.close(descriptor)

    def start_saved(self, spec: VmSpec, saved: Template) -> QemuVm:
        """See `Vmm.start_saved`."""
        # What `Vm.save` has written begins with the devices, and not with the machine's description.
        return self.start_template(spec, saved, ("-global", "migration.send-configuration=off"))

    def start_template(self, spec: VmSpec, template: Template, more: tuple[str, ...] = ()) -> QemuVm:
        """Start the machine from a template whose key is `template_key(spec, ...)`; see `Vmm`."""
        spec.check()
        files: list[int] = []
        ours, theirs = socket.socketpair()
        # QEMU 7.2 opens a memory file for writing, even to map it privately; other sandboxes map it too.
        memory = Offer(f"/proc/self/fd/{template.memory}", template.memory)
        try:
            disks = self._disks(spec, files)
            vm = self._spawn(
                spec,
                disks,
                [*files, template.memory, template.state, theirs.fileno()],
                [*_monitor(theirs.fileno()), "-incoming", "defer", *_NO_ANNOUNCEMENTS, *more],
                memory=f"{memory.name},share=off",
                offer=memory,
                monitor=ours,
                template=template.key,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            for descriptor in files:
                os.close(descriptor)
        try:
            ours.sendall(load_commands(template.state))
        except OSError:
            pass  # it has ended, which is noticed where it is waited for
        return vm

    def template_key(self, spec: VmSpec, kernel: str, boot_disk: str, root: Root | None = None) -> str:
        """See `Vmm.template_key`."""
        arguments = self._arguments(spec, _placeholders(spec), "memory", 0, 0, 0)
        arguments[arguments.index("-kernel") + 1] = kernel
        processor = _processor() if self.isolation is Isolation.KVM else ""
        parts = [_FORMAT, identity(self.binary), processor, boot_disk, *arguments]
        if root is not None:
            image = spec.disks[root.image]
            parts += [identity(each) for each in _files_of(image)]
            parts += [image.path.read_text(errors="surrogateescape"), repr(root)]
        return sha256("\0".join(parts).encode()).hexdigest()

    def make_template(
        self, spec: VmSpec, directory: Path, *, seconds: float, run_on: bool = False
    ) -> QemuVm | None:
        """See `Vmm.make_template`."""
        spec.check()
        end = time.monotonic() + seconds
        attached: list[Attached] = []
        with making(directory, spec.memory_mib) as parts:
            disks = _disk_arguments(0, Disk(path=spec.boot_disk, read_only=True), parts.files)
            disks += _exchangeable(spec, parts.files, attached) if run_on else _placeholders(spec)
            vm = self._spawn_saved(spec, disks, parts, monitor=parts.monitor.dup())
            try:
                await_agent(vm, end)
                talk = save(parts.monitor, parts.state, deadline=end)
                parts.keep_memory()
                if run_on:
                    resume(talk, attached)
                    return vm
                talk.tell("quit")
                await_end(vm, end)
            except BaseException:
                discard(vm)
                raise
            discard(vm)
        return None

    def make_mounted(
        self, spec: VmSpec, base: Template, root: Root, directory: Path, *, seconds: float
    ) -> None:
        """See `Vmm.make_mounted`."""
        end = time.monotonic() + seconds
        # What is not of the image is somebody's own, and is not touched.
        disks = [disk._replace(format=DiskFormat.NOTHING) for disk in spec.disks]
        disks[root.image] = spec.disks[root.image]
        disks[root.upper] = Disk(path=directory / "upper")
        spec = spec._replace(disks=tuple(disks))
        spec.check()
        detach: list[Detached] = []
        with making(directory, spec.memory_mib) as parts:
            copy_data(base.memory, parts.memory)
            attached = self._disks(spec, parts.files, detach)
            vm = self._spawn_saved(spec, attached, parts, loads=base.state)
            try:
                parts.monitor.sendall(load_commands(base.state))
                await_mounted(vm, root, end)
                save(parts.monitor, parts.state, deadline=end, detach=detach, restored=True).tell("quit")
                parts.keep_memory()
                await_end(vm, end)
            finally:
                discard(vm)

    def _spawn_saved(
        self,
        spec: VmSpec,
        disks: list[str],
        parts: Making,
        *,
        loads: int | None = None,
        monitor: socket.socket | None = None,
    ) -> QemuVm:
        """Start a machine that will be saved; `loads`: descriptor of the state that it will be told to load;
        `monitor`: for one that runs on.

        The file for its own state is not among what it inherits: one that runs on must not hold it.
        """
        inherit = [each for each in parts.files if each != parts.state]
        more = _monitor(parts.peer.fileno())
        if loads is not None:
            inherit.append(loads)
            more += ["-incoming", "defer"]
        memory = f"/proc/self/fd/{parts.memory},share=on"
        try:
            inherit.append(parts.peer.fileno())
            vm = self._spawn(spec, disks, inherit, more, memory=memory, monitor=monitor)
        except BaseException:
            if monitor is not None:
                monitor.close()
            raise
        parts.peer.close()  # so that the end of QEMU is the end of the connection
        return vm

    def _disks(self, spec: VmSpec, files: list[int], detach: list[Detached] | None = None) -> list[str]:
        boot = Disk(path=spec.boot_disk, read_only=True)
        arguments = []
        for number, disk in enumerate((boot, *spec.disks)):
            arguments += _disk_arguments(number, disk, files, detach)
        return arguments

    def _spawn(
        self,
        spec: VmSpec,
        disks: list[str],
        files: list[int],
        more: list[str],
        *,
        memory: str | None = None,
        shared: bool = False,
        offer: Offer | None = None,
        monitor: socket.socket | None = None,
        template: str | None = None,
    ) -> QemuVm:
        readable = None if env.value(env.MSB_CONFINE) == OFF else [str(spec.kernel)]
        pairs = [socket.socketpair() for _ in range(3)]
        (agent, _), (console, console_peer), (network, _) = pairs
        try:
            numbers = [peer.fileno() for _, peer in pairs]
            child = spawn(
                [*self._arguments(spec, disks, memory, *numbers, shared=shared), *more],
                inherit=[*files, *numbers],
                output=console_peer.fileno(),
                readable=readable,
                offer=offer,
            )
        except BaseException:
            for ours, _ in pairs:
                ours.close()
            raise
        finally:
            for _, peer in pairs:
                peer.close()
        return QemuVm(child, self.isolation, agent, console, network, monitor, template, spec.memory_mib)

    def _arguments(
        self,
        spec: VmSpec,
        disks: list[str],
        memory: str | None,
        agent: int,
        console: int,
        network: int,
        *,
        shared: bool = False,
    ) -> list[str]:
        kvm = self.isolation is Isolation.KVM
        # Under TCG the timer and interrupt controller of old are needed for a stable clock.
        machine = f"microvm,acpi=off,rtc=on,pit=on,pic=on,accel={'kvm' if kvm else 'tcg'}"
        file = []
        if memory is not None or shared:
            machine += ",memory-backend=ram"
        if shared:
            # Sealed, so that whoever maps it need not fear for its length.
            file = ["-object", f"memory-backend-memfd,id=ram,size={spec.memory_mib}M,share=on,seal=on"]
        elif memory is not None:
            file = ["-object", f"memory-backend-file,id=ram,size={spec.memory_mib}M,mem-path={memory}"]
        return [
            str(self.binary),
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
            "-machine", machine,
            # Translated, a string instruction moves one element at a time. Without `erms` the kernel and C
            # libraries take those of eight bytes, or none.
            "-cpu", "host" if kvm else "max,-erms",
            "-smp", str(spec.vcpus),
            "-m", f"{spec.memory_mib}M",
            *file,
            "-global", "virtio-mmio.force-legacy=false",
            "-kernel", str(spec.kernel),
            "-append", " ".join((*_KERNEL_ARGUMENTS, *self._more_arguments)),
            *disks,
            "-device", "virtio-serial-device,max_ports=31",
            "-chardev", f"socket,id=console,fd={console}",
            "-device", "virtconsole,chardev=console",
            "-chardev", f"socket,id=agent,fd={agent}",
            "-device", "virtserialport,chardev=agent,name=msb.agent",
            "-device", "virtio-rng-device",
            "-netdev", f"stream,id=network,addr.type=fd,addr.str={network}",
            # The address is the guest's to set: a template has the same for all. Nobody is at the other end
            # who could learn from an announcement that the machine has moved.
            "-device", f"virtio-net-device,id={_NETWORK_DEVICE},netdev=network,mac={_PLACEHOLDER_MAC},"
            f"host_mtu={MTU_LIMIT},guest_announce=off",
        ]  # fmt: skip


def _monitor(descriptor: int) -> list[str]:
    return ["-chardev", f"socket,id=monitor,fd={descriptor}", "-mon", "chardev=monitor,mode=control"]


def _room(spec: VmSpec) -> int:
    """How many virtio-fs devices the machine gets, of those it may have."""
    most = env.value(env.MSB_VIRTIOFS)
    room = MAX_DEVICES - len(spec.disks)
    return min(room, int(most)) if most is not None and most.isdecimal() else room


def _share(tag: str, descriptor: int) -> list[str]:
    # As many places as a queue may have: a message takes one for each page of it.
    device = f"vhost-user-fs-device,chardev=device-{tag},tag={tag},queue-size=1024"
    return ["-chardev", f"socket,id=device-{tag},fd={descriptor}", "-device", device]


def _placeholders(spec: VmSpec) -> list[str]:
    """Empty disks in the places of those that `spec` has after the boot disk."""
    arguments = []
    for number, disk in enumerate(spec.disks, start=1):
        arguments += ["-blockdev", _placeholder(f"disk{number}", disk), *_disk_device(number)]
    return arguments


def _placeholder(node: str, disk: Disk) -> str:
    read_only = "on" if disk.read_only else "off"
    return f"driver=null-co,node-name={node},size={_PLACEHOLDER_SIZE},read-zeroes=on,read-only={read_only}"


def _disk_device(number: int, serial: str = "") -> list[str]:
    return ["-device", f"virtio-blk-device,drive=disk{number}" + (f",serial={serial}" if serial else "")]


def _processor() -> str:
    """What of the host's processor a guest with `-cpu host` has seen."""
    wanted = ("vendor_id", "cpu family", "model", "stepping", "microcode", "flags")
    lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.partition("\t")[0].strip() in wanted)


def _files_of(disk: Disk) -> list[Path]:
    """The disk's file, and the files that it is put together from."""
    if disk.format is DiskFormat.VMDK:
        return [disk.path, *(extent.path for extent in read_extents(disk.path))]
    return [disk.path]


def _disk_arguments(
    number: int, disk: Disk, files: list[int], detach: list[Detached] | None = None
) -> list[str]:
    """QEMU's arguments for a disk. With `detach` it is attached so that the machine can be saved, and what
    has to be taken away for that is appended."""
    device = f"disk{number}"
    if disk.format is DiskFormat.NOTHING:
        return ["-blockdev", _placeholder(device, disk), *_disk_device(number)]
    below = detach is not None and disk.format is DiskFormat.VMDK
    node = f"under{number}" if below else device
    arguments, options = _backing(node, disk, files)
    arguments += ["-blockdev", _json(options) if disk.format is DiskFormat.QCOW2 else _flat(options)]
    if detach is not None and below:
        size = 512 * sum(extent.sectors for extent in read_extents(disk.path))
        detach.append(Detached(device, node, size))
        arguments += ["-blockdev", f"driver=raw,node-name={device},read-only=on,file={node}"]
    return [*arguments, *_disk_device(number, disk.serial)]


def _exchangeable(spec: VmSpec, files: list[int], attached: list[Attached]) -> list[str]:
    """Placeholders that give way to the machine's disks when it has been saved: `attached` says how."""
    arguments = []
    for number, disk in enumerate(spec.disks, start=1):
        nothing = f"nothing{number}"
        given, options = _backing(f"under{number}", disk, files)
        arguments += [*given, "-blockdev", _placeholder(nothing, disk)]
        read_only = "on" if disk.read_only else "off"
        raw = f"driver=raw,node-name=disk{number},read-only={read_only},file={nothing}"
        arguments += ["-blockdev", raw, *_disk_device(number, disk.serial)]
        attached.append(Attached(f"disk{number}", nothing, options))
    return arguments


def _backing(node: str, disk: Disk, files: list[int]) -> tuple[list[str], dict[str, Any]]:
    """Hand the disk's files to QEMU: arguments for that, and the options of a block device with them."""
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
    elif disk.descriptor is not None:
        # The same open file, and so the lock on it.
        name = give(os.dup(disk.descriptor))
    else:
        name = give(_open(disk.path, read_only=disk.read_only))
    options: dict[str, Any] = {"driver": str(disk.format), "node-name": node, "read-only": disk.read_only}
    if disk.scratch:
        options["cache"] = {"no-flush": True}
    if not disk.read_only:
        options["discard"] = "unmap"
    if disk.format is DiskFormat.QCOW2:
        options["backing"] = None  # whatever its header says
    return arguments, {**options, "file": {"driver": "file", "filename": name}}


def _json(options: dict[str, Any]) -> str:
    import json  # there is no other way to say that there is nothing

    return json.dumps(options)


def _flat(options: dict[str, Any], prefix: str = "") -> str:
    """A block device's options as an argument."""
    parts = []
    for name, value in options.items():
        if isinstance(value, dict):
            parts.append(_flat(value, f"{prefix}{name}."))
        else:
            said = ("off", "on")[value] if isinstance(value, bool) else value
            parts.append(f"{prefix}{name}={said}")
    return ",".join(parts)


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
