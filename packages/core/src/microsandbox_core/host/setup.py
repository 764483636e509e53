"""Puts in place what a sandbox needs from the machine: a plan first, then its steps."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from microsandbox_core import env
from microsandbox_core.errors import CoreError, KernelError, StorageError
from microsandbox_core.host import errors, libkrunfw
from microsandbox_core.host.machine import Machine, this_machine
from microsandbox_core.upper import mke2fs
from microsandbox_core.vmm._qemu import find_qemu

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Say = Callable[[str], None]

# Debian's names. The suite is where libkrunfw5 is when no configured suite has it.
_QEMU_PACKAGE = "qemu-system-x86"
_E2FSPROGS_PACKAGE = "e2fsprogs"
_LIBKRUNFW_PACKAGE = "libkrunfw5"
_LIBKRUNFW_SUITE = "unstable"

_HOME_HINT = "mend its permissions, or set MSB_HOME to a directory you own"


@dataclass(frozen=True)
class Step:
    """One thing that must be in place.

    Exactly one of three holds: it is there (`act` and `blocked` are None), `act` puts it there, or
    `blocked` says why this user on this machine cannot.
    """

    name: str
    says: str  # what is there, or what would be done
    act: Callable[[Say], str] | None = None  # returns what is there now
    blocked: CoreError | None = None
    packages: tuple[str, ...] = ()  # what root would install, for a blocked step

    @property
    def done(self) -> bool:
        return self.act is None and self.blocked is None


def plan(home: Path, *, machine: Machine | None = None) -> tuple[Step, ...]:
    """What is there and what there is to do. Looks only; the first step is always the state directory."""
    machine = machine or this_machine()
    return (
        _home_step(home),
        _program_step("QEMU", find_qemu, _QEMU_PACKAGE, machine, setting=env.MSB_QEMU),
        _program_step("mke2fs", mke2fs, _E2FSPROGS_PACKAGE, machine),
        _libkrunfw_step(home, machine),
    )


def run(steps: tuple[Step, ...], *, dry_run: bool = False, report: Say) -> tuple[str, ...]:
    """Say all steps, then do those there are to do; returns the names of the steps taken.

    Steps that can be taken are taken even if others are blocked, and the error comes last: a user
    without root gets everything but the system packages, and one command to hand to root.
    Raises SetupError. `dry_run` stops after the saying.
    """
    width = max((len(step.name) for step in steps), default=0)
    for step in steps:
        state = "present" if step.done else "blocked" if step.blocked else "to do"
        report(f"{step.name:<{width}}  {state:<7}  {step.says}")
    if dry_run:
        return ()
    if steps and steps[0].blocked is not None:
        raise steps[0].blocked  # nothing can be put into a state directory that cannot be written
    taken = []
    for step in steps:
        if step.act is not None:
            outcome = step.act(report)
            report(f"{step.name:<{width}}  {'done':<7}  {outcome}")
            taken.append(step.name)
    _raise_blocked([step for step in steps if step.blocked is not None])
    return tuple(taken)


def _raise_blocked(steps: list[Step]) -> None:
    for step in steps:
        if step.blocked is not None and not isinstance(step.blocked, errors.NeedsRoot):
            raise step.blocked
    if steps:
        from microsandbox_core.host import apt

        names = " and ".join(step.name for step in steps)
        verb = "is" if len(steps) == 1 else "are"
        packages = [package for step in steps for package in step.packages]
        raise errors.NeedsRoot(
            f"{names} {verb} missing, and only root may install it", apt.install_command(packages)
        )


def _home_step(home: Path) -> Step:
    name = "state directory"
    if home.is_dir():
        if not os.access(home, os.W_OK | os.X_OK):
            denied = StorageError(f"{home} is not writable", hint=_HOME_HINT)
            return Step(name, f"{home} is not writable", blocked=denied)
        if home.stat().st_mode & 0o077 == 0:
            return Step(name, str(home))
        # Snapshots and upper layers hold what ran in the sandboxes; other users have no business there.
        return Step(name, f"close {home} to other users", act=lambda _: _make_home(home))
    if home.exists():
        taken = StorageError(f"{home} is not a directory", hint=_HOME_HINT)
        return Step(name, f"{home} is not a directory", blocked=taken)
    return Step(name, f"create {home}", act=lambda _: _make_home(home))


def _make_home(home: Path) -> str:
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        home.chmod(0o700)
    except OSError as error:
        raise StorageError.from_os("create", home, error) from error
    return str(home)


def _program_step(
    name: str,
    find: Callable[[], object],
    package: str,
    machine: Machine,
    setting: str | None = None,
) -> Step:
    try:
        return Step(name, str(find()))
    except CoreError:
        pass  # not there: what can be done about it follows
    if setting is not None and (wanted := env.value(setting)) is not None:
        return Step(name, f"{setting}={wanted} is no program", blocked=_bad_setting(setting, wanted))
    if not machine.has_apt:
        return Step(name, f"no apt here to install {package} with", blocked=_unsupported(name, machine))
    if not machine.is_root:
        needs = errors.NeedsRoot(f"{name} is missing, and only root may install it", _by_hand(package))
        return Step(name, f"root has to run: {_by_hand(package)}", blocked=needs, packages=(package,))

    def act(_: Say) -> str:
        from microsandbox_core.host import apt

        apt.install([package])
        now = find()
        if now is None:
            raise errors.AptFailed(
                f"{package} is installed and {name} is still not found", "run `msb doctor`"
            )
        return str(now)

    return Step(name, f"apt-get install --no-install-recommends {package}", act=act)


def _libkrunfw_step(home: Path, machine: Machine) -> Step:
    name = "guest kernel"
    found = libkrunfw.find_libkrunfw(home)
    if found is not None:
        return Step(name, str(found))
    wanted = env.value(env.MSB_LIBKRUNFW)
    if wanted is not None:
        blocked = _bad_setting(env.MSB_LIBKRUNFW, wanted)
        return Step(name, f"{env.MSB_LIBKRUNFW}={wanted} is no file", blocked=blocked)
    if not (machine.has_apt and machine.supported):
        return Step(name, f"no Debian package fits {machine.name}", blocked=_unsupported(name, machine))
    target = libkrunfw.installed_path(home)
    return Step(
        name,
        f"fetch {_LIBKRUNFW_PACKAGE} (verified by apt, its configuration untouched) and put {target.name} "
        f"into {target.parent}",
        act=lambda say: _fetch_libkrunfw(target, machine, say),
    )


def _fetch_libkrunfw(target: Path, machine: Machine, say: Say) -> str:
    # Always into $MSB_HOME/lib, even where a configured suite has the package and this is root: one
    # way to explain and to test, the same for every user, and gone with the state directory.
    import tempfile
    from pathlib import Path

    from microsandbox_core.host import apt, deb
    from microsandbox_core.host.kernel_release import kernel_release

    try:
        with tempfile.TemporaryDirectory(prefix="msb-apt-") as work:
            package = apt.download(
                _LIBKRUNFW_PACKAGE, Path(work), suite=_LIBKRUNFW_SUITE, codename=machine.codename, say=say
            )
            deb.extract_library(package, libkrunfw.SONAME, target)
    except OSError as error:
        raise StorageError.from_os("write in", Path(tempfile.gettempdir()), error) from error
    try:
        release = kernel_release(target)
    except KernelError as error:
        target.unlink(missing_ok=True)
        raise errors.BadPackage(
            f"{_LIBKRUNFW_PACKAGE} came, and its library is not usable: {error}",
            f"name another library in {env.MSB_LIBKRUNFW}",
        ) from error
    return f"{target} (Linux {release})"


def _bad_setting(setting: str, wanted: str) -> errors.BadSetting:
    return errors.BadSetting(
        f"{setting}={wanted} names nothing that is there",
        f"correct {setting}, or unset it to use the default",
    )


def _by_hand(package: str) -> str:
    from microsandbox_core.host import apt

    return apt.install_command([package])


def _unsupported(name: str, machine: Machine) -> errors.UnsupportedHost:
    return errors.UnsupportedHost(
        f"{name} is missing, and setup installs it only on Debian and its derivatives (x86-64); "
        f"this is {machine.name} on {machine.architecture}",
        "install qemu-system-x86_64, mke2fs and libkrunfw 5 in your system's own way; "
        f"{env.MSB_LIBKRUNFW} names a library that is in no system directory",
    )
