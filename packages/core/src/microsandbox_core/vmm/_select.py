"""Choosing the driver: hardware isolation first, then what starts fastest."""

from __future__ import annotations

from pathlib import Path

from microsandbox_core.bootdisk import BootDisk
from microsandbox_core.errors import SpecInvalid, VmmError
from microsandbox_core.kernel import Kernel
from microsandbox_core.vmm._probe import kvm_verdict
from microsandbox_core.vmm._qemu import Qemu, find_qemu
from microsandbox_core.vmm._spec import Vmm
from microsandbox_core.vmm._tsc import tsc_khz


def choose(
    home: Path, kernel: Kernel, boot_disk: BootDisk, *, name: str = "auto", require_kvm: bool = False
) -> Vmm:
    """The driver to use: ``auto`` or ``qemu``.

    KVM is used when a guest has booted under it on this machine (the probe runs once and is
    remembered), else QEMU translates. Raises `VmmNotFound`; `VmmError` when `require_kvm` and
    there is none; `SpecInvalid` for an unknown name.
    """
    if name == "libkrun":
        raise VmmError(
            "the libkrun driver is not part of this version",
            hint="use --vmm qemu",
            code="vmm_unavailable",
        )
    if name not in ("auto", "qemu"):
        raise SpecInvalid(f"vmm: {name!r} is not one of auto, qemu")
    binary = find_qemu()
    verdict = kvm_verdict(home, binary, kernel, boot_disk)
    if require_kvm and not verdict.usable:
        raise VmmError(
            f"KVM is required and cannot be used: {verdict.reason}", hint=verdict.fix, code="no_kvm"
        )
    return Qemu(binary, kvm=verdict.usable, tsc_khz=None if verdict.usable else tsc_khz(home))
