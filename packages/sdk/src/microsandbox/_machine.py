"""The machine that every sandbox gets, and the template that most of them start from."""

from __future__ import annotations

from pathlib import Path

from microsandbox_core import env
from microsandbox_core.bootdisk import BootDisk, ensure_boot_disk
from microsandbox_core.kernel import Kernel, ensure_kernel
from microsandbox_core.upper import DEFAULT_SIZE, upper_kind
from microsandbox_core.vmm import Disk, DiskFormat, Root, VmSpec, choose, ensure_template

from microsandbox._config import DEFAULT_CPUS, DEFAULT_MEMORY_MIB


def machine(
    kernel: Kernel,
    boot_disk: BootDisk,
    image: Path,
    upper: Path,
    *,
    scratch: bool = False,
    cpus: int = DEFAULT_CPUS,
    memory_mib: int = DEFAULT_MEMORY_MIB,
    more: tuple[Disk, ...] = (),
    shares: tuple[str, ...] = (),
) -> VmSpec:
    """A sandbox's machine: /dev/vdb is the image, /dev/vdc the upper, then come `more`.
    `shares` as in `VmSpec`. `scratch`: nobody will read the upper when the machine has ended."""
    return VmSpec(
        kernel=kernel.path,
        boot_disk=boot_disk.path,
        disks=(
            Disk(path=image, format=DiskFormat.VMDK, read_only=True),
            Disk(path=upper, scratch=scratch),
            *more,
        ),
        vcpus=cpus,
        memory_mib=memory_mib,
        shares=shares,
    )


# Programs and libraries with which most commands begin, and where they are looked for, whatever the image.
_WARM = (
    b"/usr/local/sbin",
    b"/usr/local/bin",
    b"/usr/sbin",
    b"/usr/bin",
    b"/sbin",
    b"/bin",
    b"/bin/sh",
    b"/lib64/ld-linux-x86-64.so.2",
    b"/lib/ld-musl-x86_64.so.1",
    b"/lib/x86_64-linux-gnu/libc.so.6",
    b"/lib64/libc.so.6",
    b"/etc/ld.so.cache",
    b"/etc/passwd",
    b"/etc/group",
)

IMAGE_DISK, UPPER_DISK, FIRST_DISK = 0, 1, 2
"""Places among the machine's disks."""


def root() -> Root:
    """What of a sandbox's machine can be mounted before it is known whose it will be."""
    return Root(image=IMAGE_DISK, upper=UPPER_DISK, upper_kind=upper_kind(DEFAULT_SIZE), warm=_WARM)


def ensure_default_template(home: Path) -> bool:
    """Make the template of sandboxes of the default size if it is missing; whether it was made.

    Raises `CoreError`.
    """
    kernel = ensure_kernel(home, kernel=env.path(env.MSB_KERNEL))
    boot_disk = ensure_boot_disk(home)
    driver = choose(home, kernel, boot_disk)
    # A template has no disks of a sandbox, only places for them.
    nowhere = Path("/nonexistent")
    return ensure_template(home, driver, machine(kernel, boot_disk, nowhere, nowhere), kernel, boot_disk)
