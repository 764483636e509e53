"""Whether KVM works here: found out by booting a guest once, and remembered.

That `/dev/kvm` opens proves nothing: a nested or para-virtual KVM may refuse a stock kernel. The
probe is a process of its own, because it forks and callers may have threads.
"""

from __future__ import annotations

import os
import select
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from microsandbox_core.artifacts import identity, publish
from microsandbox_core.bootdisk import BootDisk
from microsandbox_core.digests import sha256
from microsandbox_core.errors import CoreError
from microsandbox_core.kernel import Kernel

DEVICE = Path("/dev/kvm")
DEADLINE = 10.0
"""Seconds. A guest under KVM answers in well under one."""

# What QEMU prints when the processor refuses the guest's instructions; it then stays there paused.
_REFUSALS = (b"KVM internal error", b"failed to initialize kvm", b"KVM: entry failed")


class KvmState(StrEnum):
    """Why KVM is used or not."""

    WORKS = "works"
    MISSING = "missing"
    DENIED = "denied"
    BOOT_FAILED = "boot_failed"


class KvmVerdict(NamedTuple):
    """The state, a sentence about it, and what would change it (None when nothing needs to)."""

    state: KvmState
    reason: str
    fix: str | None

    @property
    def usable(self) -> bool:
        """Whether guests run under KVM."""
        return self.state is KvmState.WORKS


_WORKS = KvmVerdict(KvmState.WORKS, "a guest booted under KVM", None)
_BOOT_FAILED_FIX = (
    "enable nested virtualization for this machine, or run on a host with KVM; until then guests are emulated"
)


def kvm_verdict(home: Path, binary: Path, kernel: Kernel, boot_disk: BootDisk) -> KvmVerdict:
    """The verdict for this QEMU and this kernel, from the cache or by a boot of at most 10 s."""
    early = device_verdict()
    if early is not None:
        return early
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text()
        key = f"{boot_id}{identity(binary)}\n{kernel.digest}\n{boot_disk.digest}"
    except OSError as error:
        return KvmVerdict(KvmState.BOOT_FAILED, f"the probe could not be set up: {error}", None)
    remembered = home / "cache" / f"kvm-{sha256(key.encode()).hexdigest()[:32]}"
    try:
        state, _, reason = remembered.read_text().partition(" ")
        if state in (KvmState.WORKS, KvmState.BOOT_FAILED):
            return _verdict(KvmState(state), reason.strip())
    except (OSError, UnicodeDecodeError):
        pass  # not asked yet
    reason = _probe_in_child(binary, kernel, boot_disk)
    verdict = _verdict(KvmState.BOOT_FAILED if reason else KvmState.WORKS, reason)
    for outdated in remembered.parent.glob("kvm-*"):
        outdated.unlink(missing_ok=True)
    publish(remembered, f"{verdict.state} {verdict.reason}\n".encode(), mode=0o600)
    return verdict


def device_verdict() -> KvmVerdict | None:
    """What the device file alone tells; None when a guest has to be booted to know."""
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return KvmVerdict(
            KvmState.MISSING,
            f"{DEVICE} does not exist",
            "load the kvm module (kvm_intel or kvm_amd) and enable virtualization in the firmware; "
            "inside a virtual machine, enable nested virtualization",
        )
    except OSError as error:
        return KvmVerdict(
            KvmState.DENIED,
            f"{DEVICE} cannot be opened: {error.strerror}",
            "add yourself to the group that owns it: sudo usermod -aG kvm $USER, then log in again",
        )
    return None


def _verdict(state: KvmState, reason: str) -> KvmVerdict:
    return _WORKS if state is KvmState.WORKS else KvmVerdict(state, reason, _BOOT_FAILED_FIX)


def _probe_in_child(binary: Path, kernel: Kernel, boot_disk: BootDisk) -> str:
    import subprocess

    arguments = [str(binary), str(kernel.path), str(boot_disk.path)]
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-m", __name__, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=DEADLINE + 5,
        )
    except subprocess.TimeoutExpired:
        return "the probe did not end in time"
    if done.returncode != 0:
        return "the probe itself failed"
    return done.stdout.decode(errors="replace").strip()


def try_boot(binary: Path, kernel: Path, boot_disk: Path, *, deadline: float = DEADLINE) -> str:
    """Boot under KVM and wait for agentd's first byte. "" when it came, else what went wrong."""
    from microsandbox_core.channel import HostConnection
    from microsandbox_core.vmm._qemu import Qemu
    from microsandbox_core.vmm._spec import VmSpec

    vm = Qemu(binary, kvm=True).start(VmSpec(kernel=kernel, boot_disk=boot_disk, memory_mib=128))
    try:
        connection = HostConnection()
        vm.agent.sendall(b"".join(connection.output()))
        watched: list[Any] = [vm.agent, vm.console, vm.pidfd]
        printed = b""
        end = time.monotonic() + deadline
        while (left := end - time.monotonic()) > 0:
            ready, _, _ = select.select(watched, [], [], left)
            if vm.agent in ready and vm.agent.recv(1):
                return ""
            if vm.console in ready:
                printed = (printed + vm.console.recv(65536))[-65536:]
                for refusal in _REFUSALS:
                    if refusal in printed:
                        return f"/dev/kvm opens but a guest does not run under it ({refusal.decode()})"
            if vm.pidfd in ready:
                return "/dev/kvm opens but QEMU ended before a guest ran under it"
        return f"/dev/kvm opens but no guest came up under it in {deadline:.0f} s"
    finally:
        vm.kill()
        vm.reap()


def _main() -> int:
    binary, kernel, boot_disk = (Path(argument) for argument in sys.argv[1:])
    try:
        outcome = try_boot(binary, kernel, boot_disk)
    except CoreError as error:
        outcome = str(error)
    sys.stdout.write(outcome)
    return 0


if __name__ == "__main__":
    sys.exit(_main())
