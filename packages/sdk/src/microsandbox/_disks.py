"""Disk images as mounts: what a user writes, checked. Imported only by sandboxes that have one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from microsandbox_core.disk_image import format_of
from microsandbox_core.vmm._spec import MAX_DISKS

from microsandbox import _config
from microsandbox._config import MountConfig
from microsandbox._machine import FIRST_DISK
from microsandbox.errors import ConfigError, translated
from microsandbox.mounts import FLAGS, DiskFile

DISK_LIMIT = MAX_DISKS - FIRST_DISK
"""Disks of a sandbox beyond its own two, volumes that are disks among them."""

_EXAMPLE = "for example: --mount-disk data.img:/data, --mount-disk data.qcow2:/data:ro,fstype=ext4"


def parse_disk(text: str) -> MountConfig:
    """A mount from text such as ``data.img:/data`` or ``data.qcow2:/data:ro,fstype=ext4``.

    Raises `ConfigError`, `VolumeError`.
    """
    source, colon, rest = text.rpartition(":/")
    if not colon or not source:
        raise ConfigError(f"mount-disk: {_config._shown(text)} is not FILE:/PATH", hint=_EXAMPLE)
    target, _, options = f"/{rest}".partition(":")
    values: dict[str, str] = {}
    flags = []
    read_only = False
    for option in filter(None, options.split(",")):
        key, equals, value = option.partition("=")
        if equals and key in ("fstype", "format"):
            values[key] = value
        elif option in FLAGS:
            flags.append(option)
        elif option in ("ro", "rw"):
            read_only = option == "ro"
        else:
            raise ConfigError(
                f"mount-disk {source}: {_config._shown(option)} is not an option",
                hint="there are ro, fstype=TYPE, format=raw|qcow2, noexec, nosuid and nodev",
            )
    disk = DiskFile(
        source, values.get("fstype"), read_only, values.get("format"), *(flag in flags for flag in FLAGS)
    )
    return disk.at(target)


def check_image(source: str, fstype: str | None, format: str | None) -> str:
    """The format of the image there, looked at. Raises `ConfigError`, `VolumeError`."""
    if fstype is not None and not re.fullmatch("[a-z0-9]{1,16}", fstype):
        raise ConfigError(
            f"fstype: {_config._shown(fstype)} is not the name of a file system", hint="for example: ext4"
        )
    if format not in (None, "raw", "qcow2"):
        raise ConfigError(f"format: {_config._shown(format)} is not one", hint="use raw or qcow2")
    with translated():
        # Whether it can be had shows when the sandbox is started.
        return format_of(Path(source), format)


def check_disks(mounts: Iterable[MountConfig]) -> None:
    """Raise `ConfigError` for more disks than a machine has places for."""
    count = sum(mount.kind == "disk" for mount in mounts)
    if count > DISK_LIMIT:
        raise ConfigError(
            f"mount-disk: {count} disks are more than the {DISK_LIMIT} that a sandbox can have",
            hint="mount directories, or use volumes without --size",
        )
