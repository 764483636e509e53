"""What in the cache was derived from an installation, and whether the present one still uses it.

Nothing here writes: what a start would derive is worked out in memory, and the cache is compared with that.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, TypeVar

from microsandbox_core import bootdisk, env, kernel
from microsandbox_core.artifacts import file_digest, identity
from microsandbox_core.errors import CoreError
from microsandbox_core.host.libkrunfw import find_libkrunfw
from microsandbox_core.templates import TemplateInfo, Templates, basis_of
from microsandbox_core.upper import upper_kind
from microsandbox_core.vmm._qemu import find_qemu

_T = TypeVar("_T")


class DerivedKind(StrEnum):
    """What a derived file is."""

    KERNEL = "kernel"
    BOOT_DISK = "boot_disk"
    UPPER = "upper"
    RECORD = "record"
    """A few bytes to save a start some work: which file is derived from what, what a probe has found out."""


class Derived(NamedTuple):
    """A file in the cache. `current`: whether the present installation uses it, or may."""

    kind: DerivedKind
    path: Path
    current: bool


class Installation(NamedTuple):
    """What a start would use now: three digests and QEMU; None for what is not there.

    `kernel` is libkrunfw's, `chosen` the one in MSB_KERNEL.
    """

    kernel: str | None
    chosen: str | None
    boot_disk: str | None
    vmm: Path | None

    @property
    def booted(self) -> str | None:
        """The kernel that a start boots."""
        return self.kernel if env.path(env.MSB_KERNEL) is None else self.chosen


def installation(home: Path) -> Installation:
    """What is installed, for the starts of this home."""
    chosen = env.path(env.MSB_KERNEL)
    return Installation(
        kernel=_found(_libkrunfw_digest, home),
        chosen=None if chosen is None else _found(file_digest, chosen),
        boot_disk=_found(_boot_disk_digest),
        vmm=_found(find_qemu),
    )


def templates(home: Path, installed: Installation) -> list[TemplateInfo]:
    """Every template."""
    basis = None
    if installed.booted and installed.boot_disk and installed.vmm:
        basis = _found(basis_of, installed.booted, installed.boot_disk, installed.vmm)
    return Templates(home).list(basis)


def files(home: Path, installed: Installation) -> list[Derived]:
    """Every derived file but templates. What cannot be told counts as current."""
    cache = home / "cache"
    # Without a libkrunfw, it is somewhere else than where this process was told to look: what came out of
    # it stays. A kernel in MSB_KERNEL does not make libkrunfw's superfluous, it is an exception to it.
    kernels = (installed.kernel, installed.chosen) if installed.kernel else None
    boot_disks = (installed.boot_disk,) if installed.boot_disk else None
    found = [*_digested(cache / "kernels", DerivedKind.KERNEL, ".elf", kernels)]
    found += _digested(cache / "boot", DerivedKind.BOOT_DISK, ".erofs", boot_disks)
    formatted = upper_kind(0).partition("-")[2]
    for path in _visible(cache / "uppers"):
        if named := re.fullmatch(r"[0-9]+M-([0-9a-f]+)\.ext4", path.name):
            found.append(Derived(DerivedKind.UPPER, path, named[1] == formatted))
    probes = _probes(installed)
    for path in _visible(cache):
        prefix = path.name.partition("-")[0]
        if prefix in probes and path.is_file():
            known = probes[prefix]
            found.append(Derived(DerivedKind.RECORD, path, known is None or path.name == known))
    return found


def _digested(
    directory: Path, kind: DerivedKind, suffix: str, current: Collection[str | None] | None
) -> list[Derived]:
    """Files named by their digests, the stamps beside them, and the pointers to them by what they are
    derived from (`from-*`) or the same as (`at-*`)."""
    found = []
    for path in _visible(directory):
        digest, dot, ending = path.name.partition(".")
        if dot and re.fullmatch(r"[0-9a-f]{64}", digest) and f".{ending}" in (suffix, f"{suffix}.checked"):
            sort = kind if path.suffix == suffix else DerivedKind.RECORD
        elif re.fullmatch(r"(from|at)-[0-9a-f]{32}", path.name):
            digest = _found(_text, path) or ""
            sort = DerivedKind.RECORD
        else:
            continue
        found.append(Derived(sort, path, current is None or digest in current))
    return found


def _probes(installed: Installation) -> dict[str, str | None]:
    """The names of the present records by their first word (see `_probe`, `_tsc`); None: cannot be told."""
    boot = _found(_text, Path("/proc/sys/kernel/random/boot_id"))
    if boot is None:
        return {}
    names: dict[str, str | None] = {"tsc": f"tsc-{boot.strip()}", "kvm": None}
    binary = installed.vmm and _found(identity, installed.vmm)
    if binary and installed.booted and installed.boot_disk:
        key = f"{boot}{binary}\n{installed.booted}\n{installed.boot_disk}"
        names["kvm"] = f"kvm-{_digest(key.encode())[:32]}"
    return names


def _libkrunfw_digest(home: Path) -> str | None:
    library = find_libkrunfw(home)
    return None if library is None else _digest(kernel.wrap_pvh_elf(kernel.read_libkrunfw(library)))


def _boot_disk_digest() -> str:
    return _digest(bootdisk.build(bootdisk.agent_binary().read_bytes()))


def _text(path: Path) -> str:
    return path.read_text(errors="replace")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _visible(directory: Path) -> list[Path]:
    """The entries of a directory, without temporary files and locks; none if it cannot be read."""
    try:
        return sorted(path for path in directory.iterdir() if not path.name.startswith("."))
    except OSError:
        return []


def _found(look: Callable[..., _T], *arguments: object) -> _T | None:
    """What `look` returns; None if that cannot be had."""
    try:
        return look(*arguments)
    except (CoreError, OSError):
        return None
