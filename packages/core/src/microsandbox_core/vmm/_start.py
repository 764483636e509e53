"""How a machine is started: from a template if there can be one, else by booting its kernel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from microsandbox_core.artifacts import copy_upper, remove
from microsandbox_core.bootdisk import BootDisk
from microsandbox_core.errors import StorageError, TemplateFailed
from microsandbox_core.kernel import Kernel
from microsandbox_core.templates import Template, Templates, basis_of
from microsandbox_core.upper import create_upper
from microsandbox_core.vmm._making import discard
from microsandbox_core.vmm._spec import Capability, Root, Vm, Vmm, VmSpec

WAIT = 5.0
"""Seconds that a start waits for another one that is making the template it needs. Booting at the same
time would take longer for both of them."""

MAKING_DEADLINE = 30.0
"""Seconds for making a template, after which the machine is booted without."""

MOUNTING_DEADLINE = 30.0
"""Seconds for mounting an image in a template, after which the sandbox mounts it itself. Far more than a
quiet machine takes: what was given up is not tried again for an hour, and many machines may be starting."""


def start(
    home: Path,
    driver: Vmm,
    spec: VmSpec,
    kernel: Kernel,
    boot_disk: BootDisk,
    *,
    cold: bool = False,
    note: Callable[[str], None] = lambda text: None,
    phase: Callable[[str], None] = lambda text: None,
) -> Vm:
    """Start the machine, from a template unless `cold`; `note` is told why a kernel was booted, `phase` what
    is begun that takes longer than a start from a template.

    The first start of a machine of some size makes the template: it boots the kernel once, as it would
    have to anyway, is saved, and runs on. Raises `SpecInvalid` and `BootFailed`.
    """

    def boot(reason: str) -> Vm:
        note(reason)
        phase("booting the guest kernel")
        return driver.start(spec)

    if cold:
        return boot("a cold start was asked for")
    if Capability.TEMPLATE not in driver.capabilities:
        return boot(f"the {driver.name} driver has no templates")
    try:
        template = _template(home, driver, spec, kernel, boot_disk, phase, run_on=True)
    except (StorageError, TemplateFailed, OSError) as error:
        return boot(f"no template: {error}")
    if template is not None and not isinstance(template, Template):
        return template
    if template is None:
        return boot(f"another process has been making the template for {WAIT:.0f} s")
    try:
        return driver.start_template(spec, template)
    except TemplateFailed as error:
        return boot(f"no start from a template: {error}")
    finally:
        template.close()


def start_mounted(
    home: Path,
    driver: Vmm,
    spec: VmSpec,
    root: Root,
    kernel: Kernel,
    boot_disk: BootDisk,
    *,
    phase: Callable[[str], None] = lambda text: None,
) -> Vm | str:
    """Start the machine from a template in which `root` is mounted; else the reason why there is none.
    `phase` as for `start`.

    The upper must not exist; it is made, and is there in the end only if the machine was started. A start
    makes the template if the one without the image is there. Raises `SpecInvalid` and
    `BootFailed`.
    """
    if Capability.TEMPLATE not in driver.capabilities:
        return f"the {driver.name} driver has no templates"
    try:
        template = _mounted(home, driver, spec, root, kernel, boot_disk, phase)
    except (StorageError, TemplateFailed, OSError) as error:
        return f"no template of the image: {error}"
    if isinstance(template, str):
        return template
    upper = spec.disks[root.upper].path
    try:
        if template.upper is None:
            return "the template has no upper"
        copy_upper(Path(f"/proc/self/fd/{template.upper}"), upper)
        return driver.start_template(spec, template)
    except TemplateFailed as error:
        upper.unlink(missing_ok=True)
        return f"no start from a template: {error}"
    except BaseException as error:
        upper.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise StorageError.from_os("create", upper, error) from error
        raise
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
    made = _template(home, driver, spec, kernel, boot_disk, lambda text: None)
    if isinstance(made, Template):
        made.close()
    return made is not None


def _mounted(
    home: Path,
    driver: Vmm,
    spec: VmSpec,
    root: Root,
    kernel: Kernel,
    boot_disk: BootDisk,
    phase: Callable[[str], None],
) -> Template | str:
    templates = Templates(home)
    key = driver.template_key(spec, kernel.digest, boot_disk.digest, root)
    found = templates.find(key)
    if found is not None:
        return found
    base = templates.find(driver.template_key(spec, kernel.digest, boot_disk.digest))
    if base is None:
        return "no sandbox of this size has been started before"
    try:
        if templates.given_up(key):
            return "the template of the image could not be made"
        with templates.making(key, wait=0) as ours:
            found = templates.find(key)
            if found is not None:
                return found
            if not ours:
                return "another process is making the template of the image"
            phase("preparing the image (its first start of this size)")
            directory = templates.temporary(key)
            try:
                create_upper(home, directory / "upper")
                driver.make_mounted(spec, base, root, directory, seconds=MOUNTING_DEADLINE)
                templates.publish(
                    key,
                    directory,
                    basis=basis_of(kernel.digest, boot_disk.digest, driver.binary),
                    vcpus=spec.vcpus,
                    memory_mib=spec.memory_mib,
                    base=base.key,
                    image=spec.disks[root.image].path,
                )
            except BaseException as error:
                remove(directory)
                if isinstance(error, TemplateFailed):
                    templates.give_up(key)
                raise
            return templates.find(key) or "the template was changed while it was made"
    finally:
        base.close()


def _template(
    home: Path,
    driver: Vmm,
    spec: VmSpec,
    kernel: Kernel,
    boot_disk: BootDisk,
    phase: Callable[[str], None],
    *,
    run_on: bool = False,
) -> Template | Vm | None:
    """The template, made if it is missing; or the machine of which it was made, if it is to `run_on`. None if
    another process has been at it for too long."""
    templates = Templates(home)
    key = driver.template_key(spec, kernel.digest, boot_disk.digest)
    found = templates.find(key)
    if found is not None:
        return found
    phase("waiting for the first start of this size")
    with templates.making(key, wait=WAIT) as ours:
        # Whoever made it has let go of the lock just now.
        found = templates.find(key)
        if found is not None or not ours:
            return found
        phase("booting the guest kernel (first start of this size)")
        directory = templates.temporary(key)
        vm = None
        try:
            vm = driver.make_template(spec, directory, seconds=MAKING_DEADLINE, run_on=run_on)
            basis = basis_of(kernel.digest, boot_disk.digest, driver.binary)
            templates.publish(key, directory, basis=basis, vcpus=spec.vcpus, memory_mib=spec.memory_mib)
        except BaseException:
            if vm is not None:
                discard(vm)
            remove(directory)
            raise
        if vm is not None:
            return vm
        found = templates.find(key)
    if found is None:
        raise TemplateFailed("the template was changed while it was made")
    return found
