"""Every environment variable the product reads, each declared once.

Nothing heavier than `os` and `pathlib` may be imported here: `msb --version` pays for it.
"""

from __future__ import annotations

import os
from pathlib import Path

MSB_HOME = "MSB_HOME"
MSB_LIBKRUNFW = "MSB_LIBKRUNFW"
MSB_QEMU = "MSB_QEMU"
MSB_KERNEL = "MSB_KERNEL"
MSB_COLD = "MSB_COLD"
MSB_CGROUP = "MSB_CGROUP"
MSB_CONFINE = "MSB_CONFINE"
MSB_VIRTIOFS = "MSB_VIRTIOFS"
MSB_IMAGE_COMPRESSION = "MSB_IMAGE_COMPRESSION"
NO_COLOR = "NO_COLOR"

VARIABLES: dict[str, str] = {
    MSB_HOME: "Directory that holds all state. Default: ~/.microsandbox.",
    MSB_LIBKRUNFW: "Path of libkrunfw.so.5, the library that carries the guest kernel. "
    "Default: searched in $MSB_HOME/lib, then in the system's library directories.",
    MSB_QEMU: "Path or name of the QEMU system emulator. Default: qemu-system-x86_64 on PATH.",
    MSB_KERNEL: "Path of a guest kernel to boot instead of libkrunfw's: an ELF file with a PVH note.",
    MSB_COLD: "Set to 1: boot every sandbox's kernel rather than start it from a template.",
    MSB_CGROUP: "A delegated directory of cgroup v2 in which every sandbox gets a group with limits; off for "
    "none. Default: where systemd has delegated one.",
    MSB_CONFINE: "off: let QEMU open and connect to what its user may; for a QEMU that needs files beyond "
    "its installation. Default: its own files only.",
    MSB_VIRTIOFS: "Most shared directories of a sandbox whose kernel is booted that are served by virtio-fs; "
    "the others, as all in a sandbox that is started from a template, by a console port. "
    "Default: as many as the machine has room for.",
    MSB_IMAGE_COMPRESSION: "lz4: store the files of images compressed from now on, in about two thirds of "
    "the space; none, the default: as they are.",
    NO_COLOR: "Set to anything but the empty string: no colour in any output.",
}


def value(name: str) -> str | None:
    """The variable `name` as set by the user; None where it is unset or empty.

    An empty value counts as unset, because `MSB_HOME= msb ...` is how a shell user clears one.
    Raises KeyError for a name that is not declared in `VARIABLES`.
    """
    if name not in VARIABLES:
        raise KeyError(f"{name} is not declared in microsandbox_core.env")
    return os.environ.get(name) or None


def path(name: str) -> Path | None:
    """The variable `name` as an absolute path, `~` expanded; None where it is unset."""
    text = value(name)
    return None if text is None else _absolute(text)


def home() -> Path:
    """The state directory: `$MSB_HOME`, by default `~/.microsandbox`. Not created here."""
    return path(MSB_HOME) or _absolute("~/.microsandbox")


def program(name: str, search: str | None = None) -> Path | None:
    """The executable file `name`, or the first with that name in the directories of `search` (default:
    PATH); None if there is none. As `shutil.which`, whose import costs a start more than all else here."""
    directories = [""]
    if "/" not in name:
        directories = (search or os.environ.get("PATH") or os.defpath).split(os.pathsep)
    for directory in directories:
        found = os.path.join(directory, name)  # noqa: PTH118
        if os.path.isfile(found) and os.access(found, os.X_OK):  # noqa: PTH113
            return Path(found)
    return None


def _absolute(text: str) -> Path:
    # os.path and not Path.resolve(): a symlinked home stays the path the user wrote, which is
    # the short one where it matters (a Unix socket's path has 108 bytes).
    return Path(os.path.abspath(os.path.expanduser(text)))  # noqa: PTH100, PTH111
