"""What is missing for sandboxes to run, what fixes it, and how they would be isolated."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from microsandbox_core import bootdisk, cgroup, env
from microsandbox_core.errors import AgentMissing, CoreError, KernelError, VmmNotFound
from microsandbox_core.host import apt, libkrunfw, versions
from microsandbox_core.host.kernel_release import kernel_release
from microsandbox_core.host.machine import Machine, this_machine
from microsandbox_core.kernel import ensure_kernel
from microsandbox_core.upper import mke2fs
from microsandbox_core.vmm import _confine
from microsandbox_core.vmm._probe import KvmState, KvmVerdict, device_verdict, kvm_verdict
from microsandbox_core.vmm._qemu import find_qemu

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_SETUP = "run `msb setup`"
_REINSTALL = "install microsandbox-core again; in a checkout run `make setup`"
# The oldest QEMU this is tested with is Debian 12's.
_TESTED_QEMU = (7, 2)
_LOW_SPACE = 1 << 30
_NO_SPACE = 64 << 20
# A Unix socket's path has 108 bytes with its final zero (unix(7)); what follows the state directory,
# `/sandboxes/<id>/agent.sock` and a little reserve, takes 43 of them.
_LONGEST_HOME = 64

EMULATED = (
    "without KVM the guest is emulated: slower, and outside QEMU's own security guarantee, which "
    "covers hardware virtualization only. Do not rely on it against code written to break out"
)


class Status(StrEnum):
    OK = "ok"
    WARNING = "warning"  # sandboxes run, with a restriction that `seen` names
    MISSING = "missing"  # sandboxes do not run


@dataclass(frozen=True)
class Check:
    """One thing looked at: what was seen, and the fix if it is not as it should be."""

    name: str
    status: Status
    seen: str
    fix: str | None = None


@dataclass(frozen=True)
class Report:
    """All checks and what follows from them.

    `vmm` is the driver that would run a sandbox now (`qemu`), `isolation` what
    it would give: `kvm` or `emulated`. Both are None if something is missing.
    """

    checks: tuple[Check, ...]
    vmm: str | None
    isolation: str | None
    ready: bool

    @property
    def summary(self) -> str:
        """The report in one sentence."""
        if not self.ready:
            missing = ", ".join(check.name for check in self.checks if check.status is Status.MISSING)
            return f"not ready: {missing}"
        if self.isolation == "emulated":
            return f"ready: {self.vmm}, emulated: outside QEMU's own security guarantee"
        return f"ready: {self.vmm}, isolated by KVM"

    def to_dict(self) -> dict[str, object]:
        """For JSON; the field names are part of the command line's interface."""
        return {
            "ready": self.ready,
            "vmm": self.vmm,
            "isolation": self.isolation,
            "summary": self.summary,
            "checks": [
                {"name": c.name, "status": c.status.value, "seen": c.seen, "fix": c.fix} for c in self.checks
            ],
        }


def examine(
    home: Path,
    *,
    kvm_probe: Callable[[], KvmVerdict] | None = None,
    machine: Machine | None = None,
    agentd: Path | None = None,
) -> Report:
    """Look at everything a sandbox needs. Nothing is installed; a missing verdict on KVM is found out.

    `kvm_probe` tells whether guests run under KVM, by default by booting one (at most 10 s, then
    remembered); it is asked only if everything else is there. `agentd` is the guest's agent, by
    default the one inside this package.
    """
    machine = machine or this_machine()
    needed = (
        _check_machine(machine),
        _check_python(),
        _check_home(home),
        _check_space(home),
        _check_qemu(),
        _check_mke2fs(),
        _check_kernel(home),
        _check_agentd(agentd),
        _check_confinement(),
        _check_limits(),
    )
    if any(check.status is Status.MISSING for check in needed):
        return Report((*needed, _check_kvm(device_verdict())), vmm=None, isolation=None, ready=False)
    verdict = kvm_probe() if kvm_probe is not None else _boot_verdict(home)
    isolation = "kvm" if verdict.usable else "emulated"
    return Report((*needed, _check_kvm(verdict)), vmm="qemu", isolation=isolation, ready=True)


def _boot_verdict(home: Path) -> KvmVerdict:
    early = device_verdict()
    if early is not None:
        return early
    try:
        kernel = ensure_kernel(home, kernel=env.path(env.MSB_KERNEL))
        return kvm_verdict(home, find_qemu(), kernel, bootdisk.ensure_boot_disk(home))
    except CoreError as error:
        return KvmVerdict(KvmState.BOOT_FAILED, f"no guest could be booted: {error}", error.hint)


def _check_machine(machine: Machine) -> Check:
    seen = f"{machine.name}, {machine.architecture}"
    if machine.supported:
        return Check("machine", Status.OK, seen)
    return Check("machine", Status.MISSING, seen, "use Linux on x86-64: nothing else is supported yet")


def _check_python() -> Check:
    import platform

    # No comparison: an interpreter older than 3.11 does not get as far as importing this package.
    return Check("python", Status.OK, f"{platform.python_implementation()} {platform.python_version()}")


def _check_home(home: Path) -> Check:
    name = "state directory"
    if not home.is_dir():
        return Check(name, Status.MISSING, f"{home} is not there", _SETUP)
    if not os.access(home, os.R_OK | os.W_OK | os.X_OK):
        return Check(
            name, Status.MISSING, f"{home} is not writable", f"set {env.MSB_HOME} to a directory you own"
        )
    mode = home.stat().st_mode & 0o777
    if mode & 0o077:
        return Check(name, Status.WARNING, f"{home} is open to other users (mode {mode:04o})", _SETUP)
    if len(os.fsencode(home)) > _LONGEST_HOME:
        return Check(
            name,
            Status.WARNING,
            f"{home} is {len(os.fsencode(home))} bytes long; sockets below it may not fit their limit",
            f"set {env.MSB_HOME} to a path of at most {_LONGEST_HOME} bytes",
        )
    return Check(name, Status.OK, str(home))


def _check_space(home: Path) -> Check:
    name = "disk space"
    place = next((p for p in (home, *home.parents) if p.is_dir()), home)
    try:
        facts = os.statvfs(place)
    except OSError as error:
        return Check(name, Status.WARNING, f"cannot be told for {place}: {error.strerror}", None)
    free = facts.f_bavail * facts.f_frsize
    seen = f"{free / (1 << 30):.1f} GiB free at {place}"
    if free >= _LOW_SPACE:
        return Check(name, Status.OK, seen)
    return Check(
        name,
        Status.WARNING if free >= _NO_SPACE else Status.MISSING,
        seen,
        f"make room, or set {env.MSB_HOME} to another file system",
    )


def _check_qemu() -> Check:
    name = "qemu"
    try:
        qemu = find_qemu()
    except VmmNotFound as error:
        by_hand = None if env.value(env.MSB_QEMU) else apt.install_command(["qemu-system-x86"])
        fix = f"correct {env.MSB_QEMU}" if by_hand is None else f"{_SETUP}, or: {by_hand}"
        return Check(name, Status.MISSING, str(error), fix)
    version = versions.qemu_version(qemu)
    if version is None:
        return Check(name, Status.MISSING, f"{qemu} does not tell its version", "install another QEMU")
    seen = f"{qemu}, version {'.'.join(map(str, version))}"
    if version < _TESTED_QEMU:
        oldest = ".".join(map(str, _TESTED_QEMU))
        return Check(name, Status.WARNING, seen, f"use QEMU {oldest} or newer: nothing older is tested")
    return Check(name, Status.OK, seen)


def _check_mke2fs() -> Check:
    name = "mke2fs"
    fix = f"{_SETUP}, or: {apt.install_command(['e2fsprogs'])}"
    try:
        program = mke2fs()
    except CoreError as error:
        return Check(name, Status.MISSING, str(error), fix)
    version = versions.mke2fs_version(program)
    if version is None:
        return Check(name, Status.MISSING, f"{program} does not run", fix)
    return Check(name, Status.OK, f"{program}, version {version}")


def _check_kernel(home: Path) -> Check:
    name = "guest kernel"
    own = env.path(env.MSB_KERNEL)
    if own is not None:
        if own.is_file():
            return Check(name, Status.OK, f"{own} ({env.MSB_KERNEL})")
        return Check(name, Status.MISSING, f"{env.MSB_KERNEL}={own} is no file", f"correct {env.MSB_KERNEL}")
    library = libkrunfw.find_libkrunfw(home)
    if library is None:
        wanted = env.value(env.MSB_LIBKRUNFW)
        if wanted is not None:
            return Check(
                name,
                Status.MISSING,
                f"{env.MSB_LIBKRUNFW}={wanted} is no file",
                f"correct {env.MSB_LIBKRUNFW}",
            )
        return Check(name, Status.MISSING, f"no {libkrunfw.SONAME}", _SETUP)
    try:
        release = kernel_release(library)
    except KernelError as error:
        return Check(name, Status.MISSING, str(error), f"remove it, then {_SETUP}")
    return Check(name, Status.OK, f"Linux {release} in {library}")


def _check_agentd(agentd: Path | None) -> Check:
    name = "agentd"
    try:
        agentd = agentd or bootdisk.agent_binary()
        with agentd.open("rb") as file:
            head = file.read(4)
    except AgentMissing as error:
        return Check(name, Status.MISSING, str(error), error.hint)
    except OSError as error:
        return Check(name, Status.MISSING, f"cannot read {agentd}: {error.strerror}", _REINSTALL)
    if head != b"\x7fELF":
        return Check(name, Status.MISSING, f"{agentd} is not a program", _REINSTALL)
    return Check(name, Status.OK, f"{agentd}, {agentd.stat().st_size // 1024} KiB")


def _check_confinement() -> Check:
    name = "confinement"
    if env.value(env.MSB_CONFINE) == _confine.OFF:
        return Check(
            name,
            Status.WARNING,
            f"switched off by {env.MSB_CONFINE}: QEMU can open what its user can",
            f"unset {env.MSB_CONFINE}",
        )
    if version := _confine.version():
        return Check(name, Status.OK, f"QEMU opens its own files only: Landlock {version}, seccomp")
    return Check(
        name,
        Status.WARNING,
        "this kernel has no Landlock: a QEMU that its guest has taken over can open what its user can",
        "use Linux 5.13 or newer, with landlock in the list of /sys/kernel/security/lsm",
    )


def _check_limits() -> Check:
    name = "host limits"
    setting = env.value(env.MSB_CGROUP)
    found = cgroup.place(setting)
    if found.directory is not None:
        return Check(name, Status.OK, f"sandboxes get control groups: {found.reason}")
    seen = f"none, the guest's own size apart: {found.reason}"
    if setting in (None, cgroup.OFF):
        return Check(name, Status.OK, seen)
    return Check(name, Status.WARNING, seen, f"correct {env.MSB_CGROUP}, or unset it")


def _check_kvm(verdict: KvmVerdict | None) -> Check:
    if verdict is None:
        return Check("kvm", Status.OK, "/dev/kvm opens; whether a guest runs under it is not known yet")
    if verdict.usable:
        return Check("kvm", Status.OK, verdict.reason)
    return Check("kvm", Status.WARNING, f"{verdict.reason}; {EMULATED}", verdict.fix)
