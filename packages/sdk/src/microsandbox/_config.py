"""What a sandbox is asked to be: values, their checks, their form in the database."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgpack

from microsandbox.errors import ConfigError

DEFAULT_MEMORY_MIB = 512
DEFAULT_CPUS = 1
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Not compiled here: most starts need none of them.
_NAME = r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}"
_HOSTNAME = r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_LABEL = r"[a-zA-Z0-9]([a-zA-Z0-9_./-]{0,126}[a-zA-Z0-9])?"
_SIZE = r"(?i)(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?"
_DURATION = r"(\d+(?:\.\d+)?)(ms|s|m|h)?"
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}


class SandboxConfig(NamedTuple):
    """A sandbox as it was asked for. `env` holds what is added to the image's; `entrypoint` and
    `cmd` replace the image's when they are not None; `cold` boots the kernel instead of using a template;
    `max_duration` and `idle_timeout` are seconds after which it is stopped.

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

    def pack(self) -> bytes:
        """As MessagePack. Strings that are not UTF-8 keep their bytes (surrogateescape)."""
        packed = msgpack.packb(self._asdict(), unicode_errors="surrogateescape")
        assert isinstance(packed, bytes)  # packb() returns None only for a caller's own Packer
        return packed

    @classmethod
    def unpack(cls, packed: bytes) -> SandboxConfig:
        """The inverse of `pack`. Unknown keys (from a later version) are ignored."""
        values = msgpack.unpackb(packed, unicode_errors="surrogateescape", use_list=False)
        known = {key: values[key] for key in cls._fields if key in values}
        return cls(**known)


def check_name(name: str) -> str:
    """A sandbox's name: 1 to 63 of `a-zA-Z0-9_.-`, not starting with a sign. Raises `ConfigError`."""
    if not re.fullmatch(_NAME, name):
        raise ConfigError(
            f"name: {_shown(name)} cannot name a sandbox",
            hint="use 1 to 63 letters, digits, '_', '.' and '-', starting with a letter or a digit",
        )
    return name


def check_hostname(hostname: str) -> str:
    """One label as RFC 1123 section 2.1 has it. Raises `ConfigError`."""
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
    if not 0 < value < 1 << 31:
        raise ConfigError(f"{what}: {value} is not a duration above zero", hint="for example: 500ms, 30s")
    return float(value)


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


def check_env(env: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Environment variables as pairs. Raises `ConfigError` for names that cannot be set."""
    for name, value in env.items():
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
    """Labels as pairs, sorted by their keys. Raises `ConfigError`."""
    for key, value in labels.items():
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
    return config._asdict()
