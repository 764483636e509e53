"""What a sandbox is asked to be: values, their checks, their form in the database."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import msgpack

from microsandbox.errors import ConfigError

DEFAULT_MEMORY_MIB = 512
DEFAULT_CPUS = 1
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

DEFAULT_SHELL = "/bin/sh"
SCRIPTS = "/.msb/scripts"
"""Where agentd puts the scripts, first in the PATH of every command."""

# Not compiled here: most starts need none of them.
_NAME = r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}"
_HOSTNAME = r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_LABEL = r"[a-zA-Z0-9]([a-zA-Z0-9_./-]{0,126}[a-zA-Z0-9])?"
_SIZE = r"(?i)(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?"
_DURATION = r"(\d+(?:\.\d+)?)(ms|s|m|h)?"
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}


class Tmpfs(NamedTuple):
    """A file system in memory, mounted at `path`. `size` in bytes; None is half of the memory."""

    path: str
    size: int | None = None
    mode: int = 0o1777
    read_only: bool = False
    noexec: bool = False


class MountConfig(NamedTuple):
    """A directory, file or disk of the host at `target` in the guest (absolute, normalised).

    `kind`: ``bind``, of the absolute path `source`; ``volume``, of the name `volume`, whose `source` is "";
    or ``disk``, an image at `source` with a file system of type `fstype` (None: its own). `flags`: of
    noexec, nosuid, nodev. `ownership`: ``virtual``, ``passthrough`` or ``squash``. `cache`: ``none``,
    ``auto`` or ``always``. `format`: of a disk, ``raw`` or ``qcow2``, as it was when the sandbox was created:
    what a guest writes to it does not make it another. `quota`: bytes that a volume may hold. `mode`:
    ``share``, ``overlay`` or ``clone`` (docs/workspaces.md); `guest`: directories below that the guest has on
    its own disk, relative. `watch`: programs in the guest are told of changes that the host makes in the
    directory. `owned`: a volume that goes with the sandbox, without a name or source; `size`: bytes of one
    that is a disk.
    """

    target: str
    source: str
    kind: str = "bind"
    volume: str | None = None
    read_only: bool = False
    flags: tuple[str, ...] = ()
    ownership: str = "virtual"
    cache: str = "auto"
    fstype: str | None = None
    format: str | None = None
    quota: int | None = None
    mode: str = "share"
    guest: tuple[str, ...] = ()
    watch: bool = False
    owned: bool = False
    size: int | None = None

    def to_plain(self) -> dict[str, Any]:
        """`target`, `source`, and what differs from the default."""
        defaults = self._field_defaults
        return {
            key: value
            for key, value in self._asdict().items()
            if key not in defaults or value != defaults[key]
        }

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> MountConfig:
        """The inverse of `to_plain`. Unknown keys (from a later version) are ignored."""
        return cls(**{key: values[key] for key in cls._fields if key in values})


class NetworkConfig(NamedTuple):
    """Whom a sandbox may reach and who may reach it. `preset` and `rules`, which come before it, are a policy
    in the grammar of docs/network-policy.md; `strict`: its rules for names ask clients to state them.

    `nameservers`: addresses; none are the host's. `dns`: ``resolve``, or ``synthetic``. `ports`: protocol
    (tcp, udp), address and port of the host, port in the guest. `max_connections`: TCP flows at a time; None
    is the stack's own limit. `rates`: direction (egress, ingress), bytes a second, bytes of a burst, packets
    a second, packets of a burst; None is no limit. `proxy`: URL of what all TCP goes through, `no_proxy`: the
    hosts that do not, separated by commas.
    """

    preset: str = "public-only"
    rules: tuple[str, ...] = ()
    strict: bool = True
    nameservers: tuple[str, ...] = ()
    dns: str = "resolve"
    ports: tuple[tuple[str, str, int, int], ...] = ()
    max_connections: int | None = None
    rates: tuple[tuple[str, int | None, int | None, int | None, int | None], ...] = ()
    proxy: str | None = None
    no_proxy: str = ""

    def __repr__(self) -> str:
        """What differs from the default, without the password of the proxy."""
        shown = {**self.to_plain(), **({"proxy": self.shown_proxy} if self.proxy else {})}
        return f"NetworkConfig({', '.join(f'{key}={value!r}' for key, value in shown.items())})"

    @property
    def shown_proxy(self) -> str | None:
        """The proxy, without its password. A user without one is a token, and not shown either."""
        return None if self.proxy is None else re.sub(r"//([^:@]*:)?.*@", r"//\1***@", self.proxy)

    @property
    def is_open(self) -> bool:
        """Whether there is anything that could pass. Without, a sandbox has a card whose link is down."""
        return self.preset != "none" or bool(self.rules) or bool(self.ports)

    def to_plain(self) -> dict[str, Any]:
        """What differs from the default."""
        return {key: value for key, value in self._asdict().items() if value != self._field_defaults[key]}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> NetworkConfig:
        """The inverse of `to_plain`. Unknown keys (from a later version) are ignored."""
        return cls(**{key: values[key] for key in cls._fields if key in values})

    def pack(self) -> bytes:
        """As MessagePack."""
        packed = msgpack.packb(self.to_plain())
        assert isinstance(packed, bytes)
        return packed

    @classmethod
    def unpack(cls, packed: bytes) -> NetworkConfig:
        """The inverse of `pack`."""
        return cls.from_plain(msgpack.unpackb(packed, use_list=False))


class SandboxConfig(NamedTuple):
    """A sandbox as it was asked for. `env` holds what is added to the image's; `entrypoint` and
    `cmd` replace the image's when they are not None; `cold` boots the kernel instead of using a template;
    `max_duration` and `idle_timeout` are seconds after which it is stopped; `security` is ``default`` or
    ``restricted``; `rlimits` are name, soft and hard limit of what is run in it. `scripts`: names and
    contents; `stop_signal`: its number; `init`: path (None: what the image has), arguments and variables;
    `root_disk`: bytes; `image_compression`: of the image's files, known once it is made; `mounts`: in the
    order in which they are mounted.

    Not a dataclass: importing `dataclasses` takes 5 ms of every start, twice.
    """

    cpus: int = DEFAULT_CPUS
    memory_mib: int = DEFAULT_MEMORY_MIB
    hostname: str | None = None
    env: tuple[tuple[str, str], ...] = ()
    workdir: str | None = None
    user: str | None = None
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    vmm: str = "auto"
    require_kvm: bool = False
    cold: bool = False
    max_duration: float | None = None
    idle_timeout: float | None = None
    shell: str | None = None
    scripts: tuple[tuple[str, str], ...] = ()
    tmpfs: tuple[Tmpfs, ...] = ()
    stop_signal: int | None = None
    init: tuple[str | None, tuple[str, ...], tuple[tuple[str, str], ...]] | None = None
    root_disk: int | None = None
    security: str = "default"
    rlimits: tuple[tuple[str, int, int], ...] = ()
    image_compression: str = "none"
    network: NetworkConfig = NetworkConfig()
    mounts: tuple[MountConfig, ...] = ()

    @property
    def writes_disks(self) -> bool:
        """Whether a disk that outlives the sandbox is to be unmounted before that ends."""
        return any(mount.kind == "disk" and not mount.read_only for mount in self.mounts)

    def pack(self) -> bytes:
        """As MessagePack. Strings that are not UTF-8 keep their bytes (surrogateescape)."""
        values = self._asdict()
        # Most have the default; their records stay as short as they were before there was a network.
        values["network"] = self.network.to_plain()
        if not values["network"]:
            del values["network"]
        values["mounts"] = [mount.to_plain() for mount in self.mounts]
        if not values["mounts"]:
            del values["mounts"]
        packed = msgpack.packb(values, unicode_errors="surrogateescape")
        assert isinstance(packed, bytes)  # packb() returns None only for a caller's own Packer
        return packed

    @classmethod
    def unpack(cls, packed: bytes) -> SandboxConfig:
        """The inverse of `pack`. Unknown keys (from a later version) are ignored."""
        values = msgpack.unpackb(packed, unicode_errors="surrogateescape", use_list=False)
        known = {key: values[key] for key in cls._fields if key in values}
        if "network" in known:
            known["network"] = NetworkConfig.from_plain(known["network"])
        if "mounts" in known:
            known["mounts"] = tuple(MountConfig.from_plain(mount) for mount in known["mounts"])
        return cls(**known)


_T = TypeVar("_T")


def check_type(value: _T, wanted: type, what: str) -> _T:
    """`value`, or a `TypeError` that names it."""
    if not isinstance(value, wanted):
        raise TypeError(f"{what}: expected {wanted.__name__}, not {type(value).__name__}")
    return value


def check_arguments(value: Iterable[str], what: str) -> tuple[str, ...]:
    """A list of words of a command. A single text is no such list. Raises `TypeError`, `ConfigError`."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise TypeError(f"{what}: expected a list of str, not {type(value).__name__}")
    words = tuple(value)
    for word in words:
        check_type(word, str, f"an item of {what}")
        if "\0" in word:
            raise ConfigError(
                f"{what}: {_shown(word)} contains a NUL byte", hint="a word ends at its first one"
            )
    return words


def check_name(name: str) -> str:
    """A sandbox's name: 1 to 63 of `a-zA-Z0-9_.-`, not starting with a sign. Raises `ConfigError`."""
    check_type(name, str, "name")
    if not re.fullmatch(_NAME, name):
        raise ConfigError(
            f"name: {_shown(name)} cannot name a sandbox",
            hint="use 1 to 63 letters, digits, '_', '.' and '-', starting with a letter or a digit",
        )
    return name


def check_hostname(hostname: str) -> str:
    """One label as RFC 1123 section 2.1 has it. Raises `ConfigError`."""
    check_type(hostname, str, "hostname")
    if not re.fullmatch(_HOSTNAME, hostname):
        raise ConfigError(
            f"hostname: {_shown(hostname)} is not a host name",
            hint="use 1 to 63 letters, digits and '-', not starting or ending with '-'",
        )
    return hostname


def parse_memory(value: int | str) -> int:
    """Memory in MiB from an int (MiB) or text such as ``512M``, ``1G``, ``1.5G`` (binary units).

    Raises `ConfigError`.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"memory: expected int (MiB) or str, not {type(value).__name__}")
    size = value if isinstance(value, int) else parse_size(value, "memory") >> 20
    if not 64 <= size <= 1 << 20:
        raise ConfigError(f"memory: {value} is not between 64M and 1T", hint="for example: -m 512M, -m 1G")
    return size


def parse_size(text: str, what: str) -> int:
    """Bytes from text such as ``512M`` or ``1.5G`` (binary units; none means bytes)."""
    found = re.fullmatch(_SIZE, text.strip())
    if found is None:
        raise ConfigError(f"{what}: {_shown(text)} is not a size", hint="for example: 512M, 1G, 1.5G")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def parse_duration(value: float | str, what: str) -> float:
    """Seconds from a number or text such as ``500ms``, ``30s``, ``5m``, ``1h``; above zero."""
    if isinstance(value, str):
        found = re.fullmatch(_DURATION, value.strip())
        if found is None:
            raise ConfigError(
                f"{what}: {_shown(value)} is not a duration", hint="for example: 500ms, 30s, 5m, 1h"
            )
        value = float(found[1]) * _SECONDS[found[2]]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{what}: expected seconds or str, not {type(value).__name__}")
    if not 0 < value < 1 << 31:
        raise ConfigError(f"{what}: {value} is not a duration above zero", hint="for example: 500ms, 30s")
    return float(value)


def parse_grace(value: float | str, what: str) -> float:
    """As `parse_duration`, but zero is allowed: no time at all."""
    return 0.0 if value == 0 and not isinstance(value, bool) else parse_duration(value, what)


def parse_limit(value: float | str | None, what: str) -> float | None:
    """As `parse_duration`; None is no limit."""
    return None if value is None else parse_duration(value, what)


def parse_cpus(value: int) -> int:
    """A number of vCPUs. Raises `ConfigError`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"cpus: expected int, not {type(value).__name__}")
    if not 1 <= value <= 64:
        raise ConfigError(f"cpus: {value} is not between 1 and 64", hint="for example: -c 2")
    return value


def check_security(profile: str) -> str:
    """The name of a profile of privileges in the guest. Raises `ConfigError`."""
    if profile not in ("default", "restricted"):
        raise ConfigError(f"security: there is no profile {profile!r}", hint="use default or restricted")
    return profile


def check_env(env: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Environment variables as pairs. Raises `ConfigError` for names that cannot be set, `TypeError`."""
    if not hasattr(env, "items"):
        raise TypeError(f"env: expected a mapping, not {type(env).__name__}")
    for name, value in env.items():
        check_type(name, str, "a name in env")
        check_type(value, str, f"env: the value of {name}")
        if not name or "=" in name or "\0" in name:
            raise ConfigError(
                f"env: {_shown(name)} cannot be the name of a variable",
                hint="a name is not empty and contains neither '=' nor a NUL byte",
            )
        if "\0" in value:
            raise ConfigError(
                f"env: the value of {name} contains a NUL byte",
                hint="a variable ends at its first NUL byte: encode the value, for example in base64",
            )
    return tuple(env.items())


LABEL_LIMIT = 4096
"""Bytes of a label's value."""


def check_labels(labels: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Labels as pairs, sorted by their keys. Raises `ConfigError`, `TypeError`."""
    if not hasattr(labels, "items"):
        raise TypeError(f"labels: expected a mapping, not {type(labels).__name__}")
    for key, value in labels.items():
        check_type(key, str, "a key in labels")
        check_type(value, str, f"label: the value of {key}")
        if not re.fullmatch(_LABEL, key):
            raise ConfigError(
                f"label: {_shown(key)} cannot be the key of a label",
                hint="use 1 to 128 letters, digits, '_', '.', '/' and '-', signs not at the ends",
            )
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            raise ConfigError(f"label: the value of {key} is not UTF-8", hint="give it as text") from None
        if size > LABEL_LIMIT or "\0" in value:
            raise ConfigError(
                f"label: the value of {key} has {size} bytes" if size > LABEL_LIMIT
                else f"label: the value of {key} contains a NUL byte",
                hint=f"use at most {LABEL_LIMIT} bytes of text",
            )  # fmt: skip
    return tuple(sorted(labels.items()))


def parse_labels(given: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Labels from texts such as ``team=build``; the last of one key counts. Raises `ConfigError`."""
    labels = {}
    for item in given:
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"label: {_shown(item)} has no value", hint="for example: --label team=build")
        labels[key] = value
    return check_labels(labels)


def replacement_grace(name: str | None, replace: bool, within: float | str | None) -> float | None:
    """Seconds that a sandbox of this name has to stop before it is replaced; None if it is not to be.

    Raises `ConfigError`.
    """
    if not replace and within is None:
        return None
    if name is None:
        raise ConfigError(
            "replace: the new sandbox has no name, so there is none that it could replace",
            hint="for example: --replace --name dev",
        )
    return 0.0 if within is None else parse_duration(within, "replace")


def label_terms(wanted: Mapping[str, str] | Iterable[str]) -> tuple[str, ...]:
    """What `selects` takes, from a mapping or from texts. Raises `TypeError`."""
    if isinstance(wanted, Mapping):
        return tuple(f"{key}={value}" for key, value in check_labels(wanted))
    return check_arguments(wanted, "labels")


def selects(wanted: Iterable[str], labels: Iterable[tuple[str, str]]) -> bool:
    """Whether `labels` have every one of `wanted`, each a ``KEY`` or a ``KEY=VALUE``."""
    found = dict(labels)
    for item in wanted:
        key, equals, value = item.partition("=")
        if key not in found or (equals and found[key] != value):
            return False
    return True


def stored_labels(packed: bytes) -> dict[str, str]:
    """The labels in a configuration that was packed before the database had a place for them."""
    try:
        values = msgpack.unpackb(packed, unicode_errors="surrogateescape", use_list=False)
        # They were not checked then.
        return {_as_utf8(key): _as_utf8(value) for key, value in values.get("labels", ())}
    except (ValueError, TypeError, AttributeError, msgpack.exceptions.UnpackException):
        return {}


def _as_utf8(text: str) -> str:
    return str(text).encode(errors="replace").decode()


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")


def command_line(
    config: SandboxConfig, entrypoint: tuple[str, ...], cmd: tuple[str, ...], arguments: tuple[str, ...]
) -> tuple[str, ...]:
    """ENTRYPOINT + (arguments, or CMD): as `config` has them, else as the image has.

    An entrypoint given in `config` drops the image's CMD, as with Docker.
    """
    if config.entrypoint is not None:
        entrypoint, cmd = config.entrypoint, ()
    if config.cmd is not None:
        cmd = config.cmd
    return (*entrypoint, *(arguments or cmd))


def to_dict(config: SandboxConfig) -> dict[str, Any]:
    """Plain values for JSON output."""
    network = config.network._asdict() | {"proxy": config.network.shown_proxy}
    return config._asdict() | {"network": network}
