"""The QEMU driver: the `microvm` machine, under KVM or translated.

The process is given open descriptors instead of paths wherever QEMU takes them: disks through
`-add-fd` sets (a VMDK descriptor is rewritten to name them), sockets by number. What remains is
`-kernel`, which QEMU opens by name.

A template is made by booting the machine with placeholders for the disks that a sandbox brings, its
memory in a shared file, and saving the device state when agentd waits for its configuration. It is started
by mapping that memory privately and loading the state (QEMU: migration with `x-ignore-shared`). QEMU does
not compare the sizes of disks on loading, so the placeholders only have to be larger than any disk.

From such a template another can be made that has an image's root mounted: started with a copy of the memory,
with the disks, and saved again once agentd has mounted them.
"""

from __future__ import annotations

import hashlib
import os
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microsandbox_core import env
from microsandbox_core.artifacts import copy_sparse, identity
from microsandbox_core.errors import BootFailed, SpecInvalid, TemplateFailed, VmmNotFound
from microsandbox_core.templates import Template
from microsandbox_core.vmm._handover import Offer
from microsandbox_core.vmm._monitor import Detached, load_commands, save
from microsandbox_core.vmm._process import Child, spawn
from microsandbox_core.vmm._spec import Capability, Disk, DiskFormat, Isolation, Root, VmSpec
from microsandbox_core.vmm._vmdk import read_extents, write_descriptor

if TYPE_CHECKING:
    from microsandbox_core.channel import HostConnection

BINARY = "qemu-system-x86_64"

_PLACEHOLDER_SIZE = 16 << 40
"""Bytes that a disk has in a template, as the guest goes on to believe: more than any file can have."""

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
        monitor: socket.socket | None = None,
        template: str | None = None,
    ) -> None:
        self._child = child
        self._monitor = monitor
        self.isolation = isolation
        self.agent = agent
        self.console = console
        self.template = template

    @property
    def pid(self) -> int:
        """Process id of QEMU."""
        return self._child.pid

    @property
    def pidfd(self) -> int:
        """Becomes readable when QEMU has ended."""
        return self._child.pidfd

    def started(self) -> None:
        """Close the connection by which its state was loaded: nothing is asked of it any more."""
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None

    def kill(self) -> None:
        """End it at once."""
        self._child.kill()

    def reap(self) -> int:
        """Wait for its end; the exit code, negative for a signal."""
        return self._child.reap()


class Qemu:
    """The driver; see `Vmm`."""

    name = "qemu"
    capabilities: frozenset[Capability] = frozenset({Capability.TEMPLATE})

    def __init__(self, binary: Path, *, kvm: bool, tsc_khz: int | None = None) -> None:
        """`tsc_khz`: the host's counter, for a translated guest (see `_tsc`)."""
        self.binary = binary
        self._clock: tuple[str, ...] = ()
        if not kvm:
            # The kernel tries its timer out, and panics if the ticks come late, as on a busy host.
            self._clock = ("no_timer_check",)
            if tsc_khz is not None:
                self._clock += (f"tsc_early_khz={tsc_khz}", "tsc=reliable")
        self.isolation = Isolation.KVM if kvm else Isolation.EMULATED

    def start(self, spec: VmSpec) -> QemuVm:
        """Start the machine; see `Vmm.start`."""
        spec.check()
        files: list[int] = []
        try:
            disks = self._disks(spec, files)
            return self._spawn(spec, disks, files, [])
        finally:
            for descriptor in files:
                os.close(descriptor)

    def start_template(self, spec: VmSpec, template: Template) -> QemuVm:
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
                [*_monitor(theirs.fileno()), "-incoming", "defer"],
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
        arguments = self._arguments(spec, _placeholders(spec), "memory", 0, 0)
        arguments[arguments.index("-kernel") + 1] = kernel
        processor = _processor() if self.isolation is Isolation.KVM else ""
        parts = [_FORMAT, identity(self.binary), processor, boot_disk, *arguments]
        if root is not None:
            image = spec.disks[root.image]
            parts += [identity(each) for each in _files_of(image)]
            parts += [image.path.read_text(errors="surrogateescape"), repr(root)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def make_template(self, spec: VmSpec, directory: Path, *, seconds: float) -> None:
        """Boot the machine and write `memory` and `state` into `directory`. Raises `TemplateFailed`."""
        spec.check()
        end = time.monotonic() + seconds
        files: list[int] = []
        ours, theirs = socket.socketpair()
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            memory = os.open(directory / "memory", flags, 0o600)
            files.append(memory)
            os.ftruncate(memory, spec.memory_mib << 20)
            state = os.open(directory / "state", flags, 0o600)
            files.append(state)
            boot = _disk_arguments(0, Disk(path=spec.boot_disk, read_only=True), files)
            vm = self._spawn(
                spec,
                [*boot, *_placeholders(spec)],
                [*files, theirs.fileno()],
                _monitor(theirs.fileno()),
                memory=f"/proc/self/fd/{memory},share=on",
            )
            theirs.close()
            try:
                _await_agent(vm, end)
                save(ours, state, deadline=end)
                _await_end(vm, end)
            finally:
                _end(vm)
        except OSError as error:
            raise TemplateFailed(f"{directory}: {error.strerror}") from error
        except BootFailed as error:
            raise TemplateFailed(str(error)) from error
        finally:
            ours.close()
            theirs.close()
            for descriptor in files:
                os.close(descriptor)

    def make_mounted(
        self, spec: VmSpec, base: Template, root: Root, directory: Path, *, seconds: float
    ) -> None:
        """See `Vmm.make_mounted`."""
        end = time.monotonic() + seconds
        disks = list(spec.disks)
        disks[root.upper] = Disk(path=directory / "upper")
        spec = spec._replace(disks=tuple(disks))
        spec.check()
        files: list[int] = []
        ours, theirs = socket.socketpair()
        try:
            copy_sparse(Path(f"/proc/self/fd/{base.memory}"), directory / "memory")
            memory = os.open(directory / "memory", os.O_RDWR | os.O_CLOEXEC)
            files.append(memory)
            state = os.open(directory / "state", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            files.append(state)
            detach: list[Detached] = []
            attached = self._disks(spec, files, detach)
            vm = self._spawn(
                spec,
                attached,
                [*files, base.state, theirs.fileno()],
                [*_monitor(theirs.fileno()), "-incoming", "defer"],
                memory=f"/proc/self/fd/{memory},share=on",
            )
            theirs.close()
            try:
                ours.sendall(load_commands(base.state))
                _await_mounted(vm, root, end)
                save(ours, state, deadline=end, detach=detach, restored=True)
                _await_end(vm, end)
            finally:
                _end(vm)
        except OSError as error:
            raise TemplateFailed(f"{directory}: {error.strerror}") from error
        except BootFailed as error:
            raise TemplateFailed(str(error)) from error
        finally:
            ours.close()
            theirs.close()
            for descriptor in files:
                os.close(descriptor)

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
        offer: Offer | None = None,
        monitor: socket.socket | None = None,
        template: str | None = None,
    ) -> QemuVm:
        agent, agent_peer = socket.socketpair()
        console, console_peer = socket.socketpair()
        try:
            numbers = (agent_peer.fileno(), console_peer.fileno())
            child = spawn(
                [*self._arguments(spec, disks, memory, *numbers), *more],
                inherit=[*files, *numbers],
                output=console_peer.fileno(),
                offer=offer,
            )
        except BaseException:
            agent.close()
            console.close()
            raise
        finally:
            agent_peer.close()
            console_peer.close()
        return QemuVm(child, self.isolation, agent, console, monitor, template)

    def _arguments(
        self, spec: VmSpec, disks: list[str], memory: str | None, agent: int, console: int
    ) -> list[str]:
        kvm = self.isolation is Isolation.KVM
        # Under TCG the timer and interrupt controller of old are needed for a stable clock.
        machine = f"microvm,acpi=off,rtc=on,pit=on,pic=on,accel={'kvm' if kvm else 'tcg'}"
        file = []
        if memory is not None:
            machine += ",memory-backend=ram"
            file = ["-object", f"memory-backend-file,id=ram,size={spec.memory_mib}M,mem-path={memory}"]
        return [
            str(self.binary),
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
            "-machine", machine,
            "-cpu", "host" if kvm else "max",
            "-smp", str(spec.vcpus),
            "-m", f"{spec.memory_mib}M",
            *file,
            "-global", "virtio-mmio.force-legacy=false",
            "-kernel", str(spec.kernel),
            "-append", " ".join((*_KERNEL_ARGUMENTS, *self._clock)),
            *disks,
            "-device", "virtio-serial-device,max_ports=31",
            "-chardev", f"socket,id=console,fd={console}",
            "-device", "virtconsole,chardev=console",
            "-chardev", f"socket,id=agent,fd={agent}",
            "-device", "virtserialport,chardev=agent,name=msb.agent",
            "-device", "virtio-rng-device",
        ]  # fmt: skip


def _monitor(descriptor: int) -> list[str]:
    return ["-chardev", f"socket,id=monitor,fd={descriptor}", "-mon", "chardev=monitor,mode=control"]


def _placeholders(spec: VmSpec) -> list[str]:
    """Empty disks in the places of those that `spec` has after the boot disk."""
    arguments = []
    for number, disk in enumerate(spec.disks, start=1):
        read_only = "on" if disk.read_only else "off"
        node = f"driver=null-co,node-name=disk{number},size={_PLACEHOLDER_SIZE},read-zeroes=on"
        arguments += ["-blockdev", f"{node},read-only={read_only}", *_disk_device(number)]
    return arguments


def _disk_device(number: int) -> list[str]:
    return ["-device", f"virtio-blk-device,drive=disk{number}"]


def _processor() -> str:
    """What of the host's processor a guest with `-cpu host` has seen."""
    wanted = ("vendor_id", "cpu family", "model", "stepping", "microcode", "flags")
    lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.partition("\t")[0].strip() in wanted)


def _await_agent(vm: QemuVm, end: float) -> None:
    """Wait until agentd has answered and so has nothing left to do. Raises `TemplateFailed`."""
    from microsandbox_core.channel import HelloReceived, HostConnection

    _converse(vm, HostConnection("template"), end, lambda event: isinstance(event, HelloReceived))


def _await_mounted(vm: QemuVm, root: Root, end: float) -> None:
    """Let agentd mount the root. Raises `TemplateFailed`."""
    from microsandbox_core.channel import Ended, HelloReceived, HostConnection

    connection = HostConnection("template")

    def done(event: Any) -> bool:
        if isinstance(event, HelloReceived):
            connection.open("mount", {"time_ns": time.time_ns(), **root.request()})
        elif isinstance(event, Ended):
            if error := event.body.get("error"):
                raise TemplateFailed(f"agentd could not mount the image: {error!r}")
            return True
        return False

    _converse(vm, connection, end, done)


def _await_end(vm: QemuVm, end: float) -> None:
    if not select.select([vm.pidfd], [], [], max(0.0, end - time.monotonic()))[0]:
        raise TemplateFailed("QEMU did not end when its state was saved")


def _end(vm: QemuVm) -> None:
    vm.kill()
    vm.reap()
    vm.agent.close()
    vm.console.close()


def _converse(vm: QemuVm, connection: HostConnection, end: float, done: Callable[[Any], bool]) -> None:
    """Talk to agentd until `done` with an event. Raises `TemplateFailed`."""
    from microsandbox_core.channel import ChannelError

    printed = b""

    def send() -> None:
        data = b"".join(connection.output())
        vm.agent.sendall(data)
        connection.sent(len(data))

    send()
    while (left := end - time.monotonic()) > 0:
        watched: list[Any] = [vm.agent, vm.console, vm.pidfd]
        ready, _, _ = select.select(watched, [], [], left)
        if vm.agent in ready:
            try:
                events = connection.receive(vm.agent.recv(1 << 16))
            except ChannelError as error:
                raise TemplateFailed(f"agentd: {error}") from error
            except ConnectionResetError:
                events = []  # what was written to it has not been read: the machine has ended
            for event in events:
                if done(event):
                    return
            send()
        if vm.console in ready:
            printed = (printed + vm.console.recv(1 << 16))[-4096:]
        if vm.pidfd in ready:
            said = printed.decode(errors="replace").strip().splitlines()
            raise TemplateFailed("the machine ended while it booted" + (f": {said[-1]}" if said else ""))
    raise TemplateFailed("agentd did not answer in time")


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
    arguments: list[str] = []
    node = f"disk{number}"

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
        if detach is not None:
            detach.append(Detached(node, f"under{number}", 512 * sum(sectors for _, sectors, _ in extents)))
            node = f"under{number}"
        name = give(_memory_file(write_descriptor(extents)))
    else:
        name = give(_open(disk.path, read_only=disk.read_only))
    options = [f"driver={disk.format}", f"node-name={node}"]
    options.append(f"read-only={'on' if disk.read_only else 'off'}")
    if disk.scratch:
        options.append("cache.no-flush=on")
    if not disk.read_only:
        options.append("discard=unmap")
    options += ["file.driver=file", f"file.filename={name}"]
    arguments += ["-blockdev", ",".join(options)]
    if node != f"disk{number}":
        arguments += ["-blockdev", f"driver=raw,node-name=disk{number},read-only=on,file={node}"]
    arguments += _disk_device(number)
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
