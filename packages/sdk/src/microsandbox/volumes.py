"""What is mounted in a sandbox beside its image, and the volumes among it."""

from __future__ import annotations

import asyncio
import builtins
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from microsandbox_core import env

from microsandbox import _config, _volumes
from microsandbox._volumes import VolumeKind, VolumeRecord, VolumeUse
from microsandbox.errors import ConfigError, VolumeError
from microsandbox.mounts import Bind, DiskFile, Memory, Named, Owned

if TYPE_CHECKING:
    from microsandbox.files._volume import VolumeFiles


class Volume:
    """A named volume, which outlives sandboxes; and what `Sandbox.create(volumes=...)` mounts, by places in
    the sandbox: `bind`, `tmpfs`, `named`, `owned`, `disk`.

    Methods raise `VolumeError` (`VolumeNotFound`, `VolumeExists`, `VolumeInUse`), `ConfigError` and
    `StateError`.
    """

    def __init__(self, record: VolumeRecord) -> None:
        self._record = record

    @property
    def name(self) -> str:
        """Its name."""
        return self._record.name

    @property
    def kind(self) -> VolumeKind:
        """Whether it is a directory or a disk."""
        return self._record.kind

    @property
    def size_mib(self) -> int | None:
        """The size of a disk in MiB; None for a directory."""
        return None if self._record.size is None else self._record.size >> 20

    @property
    def quota_mib(self) -> int | None:
        """What a directory may hold in MiB; None if it has no limit."""
        return None if self._record.quota is None else self._record.quota >> 20

    @property
    def labels(self) -> dict[str, str]:
        """Its labels."""
        return dict(self._record.labels)

    @property
    def created_at(self) -> datetime:
        """When it was made, in UTC."""
        return datetime.fromtimestamp(self._record.created_ns / 1e9, UTC)

    @property
    def owner(self) -> str | None:
        """The sandbox that it belongs to, and goes with (`owned`); None for a named volume."""
        return self._record.owner

    @property
    def path(self) -> Path:
        """The directory of the host, or the disk image, that it is."""
        return self._record.content

    @property
    def fs(self) -> VolumeFiles:
        """Its files, on the host's side. Raises `VolumeError` for a disk, whose files are the guest's."""
        if self.kind is VolumeKind.DISK:
            raise VolumeError(
                f"the volume {self.name!r} is a disk: the host does not look into it",
                hint="mount it in a sandbox, and use sandbox.fs",
                code="volume_is_disk",
            )
        from microsandbox.files._volume import VolumeFiles

        return VolumeFiles(self.path, self.name)

    async def used_by(self) -> builtins.list[VolumeUse]:
        """The sandboxes that have it, running or not, and where."""
        found = await asyncio.to_thread(_volumes.uses, env.home())
        return found.get(self.name, [])

    @classmethod
    async def create(
        cls,
        name: str,
        *,
        kind: VolumeKind | str | None = None,
        size_mib: int | None = None,
        quota_mib: int | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Self:
        """Make a volume: a directory (``dir``), or with `size_mib` a disk (``disk``) with an ext4 of so many
        MiB, of which the host's disk holds what is written. `quota_mib`: MiB that sandboxes together may
        write to a directory."""
        sort, size, quota = _limits(kind, size_mib, quota_mib)
        checked = _config.check_labels(labels or {})
        make = partial(_volumes.create, env.home(), name, kind=sort, size=size, quota=quota, labels=checked)
        return cls(await asyncio.to_thread(make))

    @classmethod
    async def get(cls, name: str) -> Self:
        """The volume of that name; ``SANDBOX:/PATH`` is one that belongs to a sandbox."""
        return cls(await asyncio.to_thread(_volumes.find, env.home(), name))

    @staticmethod
    async def remove(name: str, *, force: bool = False) -> None:
        """Remove it, with all that is in it. None that a sandbox has, running or stopped; with `force`, none
        that one runs with."""
        await asyncio.to_thread(partial(_volumes.remove, env.home(), name, force=force))

    @staticmethod
    def named(
        name: str,
        *,
        readonly: bool = False,
        noexec: bool = False,
        nosuid: bool = False,
        nodev: bool = False,
        ownership: str = "virtual",
        cache: str = "auto",
        watch: bool = False,
    ) -> Named:
        """A named volume; a directory of that name is made if there is none. A disk has one writer, or any
        number of readers; of it `ownership`, `cache` and `watch` mean nothing. See `bind` for them."""
        return Named(name, readonly, noexec, nosuid, nodev, ownership, cache, watch)

    @staticmethod
    def owned(
        *,
        kind: VolumeKind | str | None = None,
        size_mib: int | None = None,
        quota_mib: int | None = None,
        noexec: bool = False,
        nosuid: bool = False,
        nodev: bool = False,
        ownership: str = "virtual",
        cache: str = "auto",
    ) -> Owned:
        """A volume of the sandbox's own: empty when that is created, kept when it stops, and gone with it.
        `kind`, `size_mib` and `quota_mib` as in `create`, the others as in `bind`."""
        sort, size, quota = _limits(kind, size_mib, quota_mib)
        return Owned(str(sort), size, quota, noexec, nosuid, nodev, ownership, cache)

    @staticmethod
    def disk(
        path: str | os.PathLike[str],
        *,
        fstype: str | None = None,
        readonly: bool = False,
        format: str | None = None,
        noexec: bool = False,
        nosuid: bool = False,
        nodev: bool = False,
    ) -> DiskFile:
        """A disk image, raw or qcow2, with a file system; which of them it is, and which file system, is seen
        from what is in it unless `format` and `fstype` say. It has one writer, or any number of readers."""
        return DiskFile(os.fspath(path), fstype, readonly, format, noexec, nosuid, nodev)

    @staticmethod
    def bind(
        path: str | os.PathLike[str],
        *,
        readonly: bool = False,
        noexec: bool = False,
        nosuid: bool = False,
        nodev: bool = False,
        ownership: str = "virtual",
        cache: str = "auto",
        mode: str = "share",
        guest: Sequence[str] = (),
        watch: bool = False,
    ) -> Bind:
        """A directory or file of the host, as it is: what one side changes the other side sees.

        `ownership`: ``virtual``, owners and modes that the guest sets are kept beside the files; ``squash``,
        all is the default user's; or ``passthrough``, the host's numbers are shown. `cache`: ``none``,
        ``auto`` (a second) or ``always``, how long the guest may believe what it has seen; with the last it
        writes when it likes, at the latest when a file is closed. `mode`: ``share``; ``overlay``, what the
        sandbox changes stays in it until `Sandbox.apply`; or ``clone``, the same with a copy on its own disk.
        `guest`: directories below it that are the sandbox's own: relative paths, and patterns such as
        ``**/node_modules`` for those there are when it starts. `watch`: programs in the sandbox that watch
        the directory (inotify) are told what the host changes there.
        """
        if isinstance(guest, str):
            raise TypeError("guest: expected a sequence of str, not str")
        flags = (readonly, noexec, nosuid, nodev)
        return Bind(os.fspath(path), *flags, ownership, cache, mode, tuple(guest), watch)

    @staticmethod
    def tmpfs(
        *,
        size_mib: int | None = None,
        mode: int = 0o1777,
        readonly: bool = False,
        noexec: bool = False,
    ) -> Memory:
        """A file system in memory, of half of it unless `size_mib` says otherwise."""
        return Memory(size_mib, mode, readonly, noexec)

    @classmethod
    async def list(cls) -> builtins.list[Self]:
        """All volumes, by name, those that belong to sandboxes among them."""
        return [cls(record) for record in await asyncio.to_thread(_volumes.every, env.home())]


def _limits(
    kind: VolumeKind | str | None, size_mib: int | None, quota_mib: int | None
) -> tuple[VolumeKind, int | None, int | None]:
    """Kind, size and quota, both in bytes."""
    if kind is None:
        kind = VolumeKind.DIRECTORY if size_mib is None else VolumeKind.DISK
    try:
        kind = VolumeKind(kind)
    except ValueError:
        raise ConfigError(f"kind: {kind!r} is no kind of volume", hint="use dir or disk") from None
    for what, given in (("size_mib", size_mib), ("quota_mib", quota_mib)):
        if given is not None and (isinstance(given, bool) or not isinstance(given, int)):
            raise TypeError(f"{what}: expected int, not {type(given).__name__}")
    return (
        kind,
        None if size_mib is None else size_mib << 20,
        None if quota_mib is None else quota_mib << 20,
    )
