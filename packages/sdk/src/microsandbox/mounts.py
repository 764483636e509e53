"""Directories and files of the host in a sandbox: what is asked for, and its checks.

Imported only where something is mounted.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microsandbox import _config, _guest
from microsandbox._config import MountConfig, SandboxConfig, Tmpfs
from microsandbox.errors import ConfigError

FLAGS = ("noexec", "nosuid", "nodev")
_OWNERSHIPS = ("virtual", "passthrough", "squash")
_CACHES = ("none", "auto", "always")
_MODES = ("share", "overlay", "clone")

_EXAMPLE = "for example: -v ./src:/app:ro"
_PLAIN = ("rw", "exec", "suid", "dev", "nowatch")  # what holds anyway


class Mount:
    """What can be mounted in a sandbox; `Volume` makes it."""

    __slots__ = ()

    def at(self, target: str) -> MountConfig | Tmpfs:
        """It, mounted there. Raises `ConfigError`."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Bind(Mount):
    """A directory or file of the host; see `Volume.bind`."""

    source: str
    readonly: bool = False
    noexec: bool = False
    nosuid: bool = False
    nodev: bool = False
    ownership: str = "virtual"
    cache: str = "auto"
    mode: str = "share"
    guest: tuple[str, ...] = ()
    watch: bool = False

    def at(self, target: str) -> MountConfig:
        """Mounted there. Raises `ConfigError`."""
        flags = tuple(flag for flag in FLAGS if getattr(self, flag))
        target = check_target(target)
        source = check_source(self.source, target)
        if self.watch and not os.path.isdir(source):  # noqa: PTH112 - a string is wanted
            raise ConfigError(
                f"volume {target}: {source} is a file, and watched are directories",
                hint="share the directory that it is in, or leave out `watch`",
            )
        mode = _one_of(self.mode, _MODES, target, "mode")
        _check_workspace(self, source, target)
        return MountConfig(
            target,
            source,
            read_only=self.readonly,
            flags=flags,
            ownership=_one_of(self.ownership, _OWNERSHIPS, target, "ownership"),
            cache=_one_of(self.cache, _CACHES, target, "cache"),
            mode=mode,
            guest=tuple(self.guest),
            watch=self.watch,
        )


@dataclass(frozen=True, slots=True)
class Memory(Mount):
    """A file system in memory; see `Volume.tmpfs`."""

    size_mib: int | None = None
    mode: int = 0o1777
    readonly: bool = False
    noexec: bool = False

    def at(self, target: str) -> Tmpfs:
        """Mounted there. Raises `ConfigError`."""
        options = [f"mode={self.mode:o}"]
        options += [f"size={self.size_mib}M"] if self.size_mib is not None else []
        options += ["ro"] if self.readonly else []
        options += ["noexec"] if self.noexec else []
        return _guest.parse_tmpfs(f"{target}:{','.join(options)}")


@dataclass(frozen=True, slots=True)
class Named(Mount):
    """A named volume; see `Volume.named`."""

    name: str
    readonly: bool = False
    noexec: bool = False
    nosuid: bool = False
    nodev: bool = False
    ownership: str = "virtual"
    cache: str = "auto"
    watch: bool = False

    def at(self, target: str) -> MountConfig:
        """Mounted there. Raises `ConfigError`."""
        from microsandbox._volumes import check_name

        return MountConfig(
            check_target(target),
            "",
            kind="volume",
            volume=check_name(self.name),
            read_only=self.readonly,
            flags=tuple(flag for flag in FLAGS if getattr(self, flag)),
            ownership=_one_of(self.ownership, _OWNERSHIPS, target, "ownership"),
            cache=_one_of(self.cache, _CACHES, target, "cache"),
            watch=self.watch,
        )


@dataclass(frozen=True, slots=True)
class Owned(Mount):
    """A volume that goes with the sandbox; see `Volume.owned`. `kind`: ``dir`` or ``disk``; `size` and
    `quota` in bytes."""

    kind: str = "dir"
    size: int | None = None
    quota: int | None = None
    noexec: bool = False
    nosuid: bool = False
    nodev: bool = False
    ownership: str = "virtual"
    cache: str = "auto"

    def at(self, target: str) -> MountConfig:
        """Mounted there. Raises `ConfigError`."""
        from microsandbox._volumes import VolumeKind, check_limits

        kind = VolumeKind(self.kind)
        return MountConfig(
            check_target(target),
            "",
            kind="disk" if kind is VolumeKind.DISK else "volume",
            flags=tuple(flag for flag in FLAGS if getattr(self, flag)),
            ownership=_one_of(self.ownership, _OWNERSHIPS, target, "ownership"),
            cache=_one_of(self.cache, _CACHES, target, "cache"),
            quota=self.quota,
            owned=True,
            size=check_limits(kind, self.size, self.quota),
        )


@dataclass(frozen=True, slots=True)
class DiskFile(Mount):
    """A disk image; see `Volume.disk`."""

    source: str
    fstype: str | None = None
    readonly: bool = False
    format: str | None = None
    noexec: bool = False
    nosuid: bool = False
    nodev: bool = False

    def at(self, target: str) -> MountConfig:
        """Mounted there. Raises `ConfigError`, `VolumeError`."""
        from microsandbox._disks import check_image

        format = check_image(self.source, self.fstype, self.format)
        return MountConfig(
            check_target(target),
            os.path.realpath(self.source),
            kind="disk",
            read_only=self.readonly,
            flags=tuple(flag for flag in FLAGS if getattr(self, flag)),
            fstype=self.fstype,
            format=format,
        )


def with_mounts(config: SandboxConfig, volumes: Mapping[str, Mount]) -> SandboxConfig:
    """`config` with these, by their places in the sandbox, checked. Raises `ConfigError`, `TypeError`."""
    given: list[MountConfig | Tmpfs] = []
    for target, mount in volumes.items():
        if not isinstance(mount, Mount):
            raise TypeError(
                f"volumes: {target} is a {type(mount).__name__}, not what Volume.bind() and the like make"
            )
        given.append(mount.at(target))
    return _added(config, given)


def parse_volumes(config: SandboxConfig, given: Iterable[str], disks: Iterable[str] = ()) -> SandboxConfig:
    """`config` with the values of ``-v`` and ``--mount-disk``. Raises `ConfigError`, `VolumeError`."""
    mounts = [parse_volume(text) for text in given]
    for text in disks:
        from microsandbox._disks import parse_disk

        mounts.append(parse_disk(text))
    return _added(config, mounts)


def parse_volume(text: str) -> MountConfig:
    """A mount from text such as ``./src:/app`` or ``./src:/app:ro,noexec,cache=none``; a name without a slash
    is a volume's. Raises `ConfigError`."""
    source, _, rest = text.partition(":")
    target, _, options = rest.partition(":")
    if not source or not target:
        raise ConfigError(f"volume: {_config._shown(text)} does not say what is mounted where", hint=_EXAMPLE)
    named = "/" not in source and source not in (".", "..")
    values: dict[str, Any] = {}
    for option in filter(None, options.split(",")):
        key, equals, value = option.partition("=")
        if option == "ro":
            values["readonly"] = True
        elif option in (*FLAGS, "watch"):
            values[option] = True
        elif option in _MODES and not named:
            values["mode"] = option
        elif equals and key == "guest" and not named:
            values["guest"] = (*values.get("guest", ()), value)
        elif equals and key in ("owner", "cache"):
            values["ownership" if key == "owner" else key] = value
        elif option not in _PLAIN:
            raise ConfigError(
                f"volume {target}: {_config._shown(option)} is not an option",
                hint="there are ro, rw, watch, noexec, nosuid, nodev, cache= and owner=, and for the host's"
                " directories overlay, clone and guest=: " + _EXAMPLE[13:],
            )
    return (Named if named else Bind)(source, **values).at(target)


def check_target(target: str) -> str:
    """Where something can be mounted. Raises `ConfigError`."""
    target = _guest.check_path(target, "volume")
    if _guest.is_reserved(target):
        raise ConfigError(
            f"volume {target}: {', '.join(_guest.RESERVED)} are the sandbox's own",
            hint="mount it elsewhere: -v ./src:/app",
        )
    return target


def check_source(source: str | os.PathLike[str], target: str) -> str:
    """The absolute path of a directory or file that can be shared. Raises `ConfigError`."""
    path = Path(os.path.abspath(source))  # noqa: PTH100 - resolve() would follow the last link
    what = f"volume {target}"
    try:
        kind = path.lstat().st_mode
    except OSError as error:
        hint = f"make it first: mkdir {path}" if isinstance(error, FileNotFoundError) else "check the path"
        raise ConfigError(f"{what}: {path}: {error.strerror}", hint=hint) from error
    if stat.S_ISLNK(kind):
        raise ConfigError(
            f"{what}: {path} is a symbolic link, which may lead elsewhere at any time",
            hint=f"name what it leads to: {os.path.realpath(path)}",
        )
    if not stat.S_ISDIR(kind) and not stat.S_ISREG(kind):
        raise ConfigError(
            f"{what}: {path} is neither a directory nor a file", hint="devices and sockets stay on the host"
        )
    if not os.access(path, os.R_OK | (os.X_OK if stat.S_ISDIR(kind) else 0)):
        raise ConfigError(f"{what}: you may not read {path}", hint="share what is yours: " + _EXAMPLE[13:])
    return str(path)


def check_home(mounts: Iterable[MountConfig], home: Path) -> None:
    """Refuse what has the state of the sandboxes in it: whoever writes there is in all of them.

    Raises `ConfigError`.
    """
    state = Path(os.path.realpath(home))
    for mount in mounts:
        if not mount.source:
            continue
        source = Path(os.path.realpath(mount.source))
        if source == state or source in state.parents or state in source.parents:
            raise ConfigError(
                f"volume {mount.target}: {mount.source} shares the sandboxes' own files with one of them,"
                f" those in {home}",
                hint="share a directory that has no part in them",
            )


def _added(config: SandboxConfig, given: Iterable[MountConfig | Tmpfs]) -> SandboxConfig:
    mounts, memory = list(config.mounts), list(config.tmpfs)
    for mount in given:
        if isinstance(mount, Tmpfs):
            memory.append(mount)
        else:
            mounts.append(mount)
    taken: set[str] = set()
    for target in (*(mount.target for mount in mounts), *(mount.path for mount in memory)):
        if target in taken:
            raise ConfigError(f"volume {target}: it is given twice", hint="give every mount its own path")
        taken.add(target)
    if len(mounts) > _guest.MOUNT_LIMIT:
        raise ConfigError(
            f"volume: {len(mounts)} are too many", hint=f"a sandbox has at most {_guest.MOUNT_LIMIT}"
        )
    return config._replace(mounts=tuple(mounts), tmpfs=_guest.check_tmpfs(memory))


def _check_workspace(bind: Bind, source: str, target: str) -> None:
    mode, guest, cache = bind.mode, bind.guest, bind.cache
    if mode == "share" and not guest:
        return
    what = mode if mode != "share" else "guest="
    if not os.path.isdir(source):  # noqa: PTH112 - as in `check_source`
        raise ConfigError(
            f"volume {target}: {source} is a file, and {what} is for directories",
            hint="leave it out, or use msb cp",
        )
    if bind.readonly:
        raise ConfigError(
            f"volume {target}: ro and {what} exclude each other",
            hint=f"leave ro out: with {mode} nothing changes on the host"
            if mode != "share"
            else "leave one out",
        )
    if bind.watch and mode != "share":
        raise ConfigError(
            f"volume {target}: watch has no place with {mode}",
            hint="leave one out: what the host changes is not to be seen there",
        )
    if mode == "overlay" and cache != "auto":
        raise ConfigError(
            f"volume {target}: cache={cache} has no place with overlay",
            hint="leave it out: an overlay believes what it has seen",
        )
    if guest:
        _check_guest(guest, target)


def _check_guest(guest: tuple[str, ...], target: str) -> None:
    from microsandbox._guest_directories import LIMIT

    if len(guest) > LIMIT:
        raise ConfigError(f"volume {target}: {len(guest)} times guest=", hint=f"at most {LIMIT}")
    for path in guest:
        if "\0" in path or any(name in ("", ".", "..") for name in path.split("/")):
            raise ConfigError(
                f"volume {target}: guest={_config._shown(path)} is not the path of a directory below it",
                hint="for example: -v ./src:/app:overlay,guest=node_modules,guest=web/.venv",
            )
        if path.split("/")[-1] == "**":
            raise ConfigError(
                f"volume {target}: guest={_config._shown(path)} ends with **: that is every directory",
                hint="for example: -v ./src:/app:guest=**/node_modules,guest=packages/*/target",
            )


def _one_of(value: str, known: tuple[str, ...], target: str, what: str) -> str:
    if value not in known:
        raise ConfigError(
            f"volume {target}: {what} {_config._shown(value)} is not known", hint=f"use {', '.join(known)}"
        )
    return value
