"""The disks that a sandbox has beyond its image and its upper: images of the user's, and volumes."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from microsandbox_core.disk_image import DiskImage, open_image
from microsandbox_core.errors import DiskInUse, DiskRefused
from microsandbox_core.vmm import Disk, DiskFormat, device

from microsandbox._config import MountConfig, SandboxConfig
from microsandbox._directory import SandboxDirectory
from microsandbox._launch import Launch
from microsandbox._machine import FIRST_DISK
from microsandbox._state import State
from microsandbox.errors import MicrosandboxError

_SERIAL_LIMIT = 20  # bytes: VIRTIO_BLK_ID_BYTES


class Disks:
    """The images, open and locked, in the order of the mounts. They stay so until this process and the VMM,
    which inherits them, have ended. Raises `DiskRefused`; `DiskInUse` that says by whom, if it is known."""

    def __init__(self, launch: Launch, mounts: Sequence[MountConfig]) -> None:
        self._home, self._identifier = Path(launch.home), launch.identifier
        self._images = [(mount, self._open(mount)) for mount in mounts if mount.kind == "disk"]
        # Directories are held so that a volume in use can be told from one that is not.
        self._held = [self._hold(mount) for mount in mounts if mount.kind == "volume"]

    @property
    def written(self) -> bool:
        """Whether one of them is attached to be written to."""
        return any(not image.read_only for _, image in self._images)

    def attached(self) -> tuple[Disk, ...]:
        """The devices of the machine."""
        return tuple(
            Disk(
                path=image.path,
                format=DiskFormat(image.format),
                read_only=image.read_only,
                descriptor=image.descriptor,
                serial=_serial(mount),
            )
            for mount, image in self._images
        )

    def parameters(self, security: str) -> list[dict[str, Any]]:
        """What agentd mounts of them."""
        more = ("nosuid", "nodev") if security == "restricted" else ()
        return [
            {
                "target": os.fsencode(mount.target),
                "kind": "block",
                "device": device(FIRST_DISK + place),
                "size": image.size,
                "fstype": mount.fstype,
                "read_only": image.read_only,
                "flags": sorted({*mount.flags, *more}),
            }
            for place, (mount, image) in enumerate(self._images)
        ]

    def _open(self, mount: MountConfig) -> DiskImage:
        try:
            return open_image(Path(mount.source), read_only=mount.read_only, format=mount.format)
        except DiskInUse as error:
            raise self._in_use(mount, error) from error
        except DiskRefused as error:
            if mount.volume is not None:
                raise DiskRefused(f"the volume {mount.volume!r}: {error}", hint=error.hint) from error
            raise

    def _hold(self, mount: MountConfig) -> int:
        path = Path(mount.source)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise DiskRefused(
                f"the volume {mount.volume!r} cannot be opened: {path}: {error.strerror}",
                hint="msb volume ls shows those there are",
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise DiskInUse(f"the volume {mount.volume!r} is being removed") from None
        return descriptor

    def _in_use(self, mount: MountConfig, error: DiskInUse) -> DiskInUse:
        what = f"the disk image {mount.source}" if mount.volume is None else f"the volume {mount.volume!r}"
        others = self._users(mount)
        if not others:
            return DiskInUse(str(error) if mount.volume is None else f"{what} is in use", hint=error.hint)
        names = ("es " if len(others) > 1 else " ") + ", ".join(repr(name) for name in others)
        hint = f"stop it first: msb stop {others[0]}; or attach it read-only in all of them (:ro)"
        return DiskInUse(f"{what} is in use by the sandbox{names}", hint=hint)

    def _users(self, mount: MountConfig) -> list[str]:
        """Names of the other sandboxes that run with it."""
        found = []
        try:
            state = State(self._home)
            try:
                records = state.all()
            finally:
                state.close()
            for record in records:
                if record.id == self._identifier:
                    continue
                for other in SandboxConfig.unpack(record.config).mounts:
                    same = other.volume == mount.volume if mount.volume else _same(other.source, mount.source)
                    if same and SandboxDirectory(self._home, record.id).is_running():
                        found.append(record.name)
                        break
        except MicrosandboxError:
            pass  # it is in use, whoever by
        return found


def _same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)  # noqa: PTH121
    except OSError:
        return False


def _serial(mount: MountConfig) -> str:
    name = mount.volume or Path(mount.source).name
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:_SERIAL_LIMIT]
