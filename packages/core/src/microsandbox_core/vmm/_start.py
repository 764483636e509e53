"""How a machine is started: from a template if there can be one, else by booting its kernel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from microsandbox_core.artifacts import remove
from microsandbox_core.bootdisk import BootDisk
from microsandbox_core.errors import StorageError, TemplateFailed
from microsandbox_core.kernel import Kernel
from microsandbox_core.templates import Template, Templates, basis_of
from microsandbox_core.vmm._spec import Capability, Vm, Vmm, VmSpec

WAIT = 5.0
"""Seconds that a start waits for another one that is making the template it needs. Booting at the same
time would take longer for both of them."""

MAKING_DEADLINE = 30.0
"""Seconds for making a template, after which the machine is booted without."""


def start(
    home: Path,
    driver: Vmm,
    spec: VmSpec,
    kernel: Kernel,
    boot_disk: BootDisk,
    *,
    cold: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> Vm:
    """Start the machine, from a template unless `cold`; `note` is told why a kernel was booted.

    The first start of a machine of some size makes the template: it boots the kernel once, as it would
    have to anyway, and goes on from what it saved. Raises `SpecInvalid` and `BootFailed`.
    """
    if cold:
        note("a cold start was asked for")
        return driver.start(spec)
    if Capability.TEMPLATE not in driver.capabilities:
        note(f"the {driver.name} driver has no templates")
        return driver.start(spec)
    try:
        template = _template(home, driver, spec, kernel, boot_disk)
    except (StorageError, TemplateFailed, OSError) as error:
        note(f"no template: {error}")
        return driver.start(spec)
    if template is None:
        note(f"another process has been making the template for {WAIT:.0f} s")
        return driver.start(spec)
    try:
        return driver.start_template(spec, template)
    finally:
        template.close()


def ensure_template(home: Path, driver: Vmm, spec: VmSpec, kernel: Kernel, boot_disk: BootDisk) -> bool:
    """Make the template for such machines if it is missing; whether it was made.

    Raises `TemplateFailed` and `StorageError`.
    """
    if Capability.TEMPLATE not in driver.capabilities:
        return False
    found = Templates(home).find(driver.template_key(spec, kernel.digest, boot_disk.digest))
    if found is not None:
        found.close()
        return False
    made = _template(home, driver, spec, kernel, boot_disk)
    if made is not None:
        made.close()
    return made is not None


def _template(home: Path, driver: Vmm, spec: VmSpec, kernel: Kernel, boot_disk: BootDisk) -> Template | None:
    """The template, made if it is missing; None if another process has been at it for too long."""
    templates = Templates(home)
    key = driver.template_key(spec, kernel.digest, boot_disk.digest)
    found = templates.find(key)
    if found is not None:
        return found
    with templates.making(key, wait=WAIT) as ours:
        # Whoever made it has let go of the lock just now.
        found = templates.find(key)
        if found is not None or not ours:
            return found
        directory = templates.temporary(key)
        try:
            driver.make_template(spec, directory, seconds=MAKING_DEADLINE)
            basis = basis_of(kernel.digest, boot_disk.digest, driver.binary)
            templates.publish(key, directory, basis=basis, vcpus=spec.vcpus, memory_mib=spec.memory_mib)
        except BaseException:
            remove(directory)
            raise
        found = templates.find(key)
    if found is None:
        raise TemplateFailed("the template was changed while it was made")
    return found
