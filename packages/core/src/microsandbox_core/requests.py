"""The requests of the agent channel as values: what may be asked of a guest, checked before it is sent.

Light on purpose: the supervisor builds `Configure` while a sandbox starts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple

from .channel import Control, Value

Text = str | bytes
"""An argument, a path or a variable of the guest. `str` is encoded as `os.fsencode` does, so that a lone
surrogate stands for the byte it was decoded from."""

Environment = Mapping[str, Text] | Mapping[bytes, Text] | Sequence[Text]
"""A whole environment: names and values, or `NAME=value` items."""

UNLIMITED: Final = 2**64 - 1
"""The resource limit that is none."""

_MACHINE_ID: Final = re.compile(r"[0-9a-f]{32}\Z")


class Disk(NamedTuple):
    """A block device of the guest and the file system on it."""

    device: str
    fstype: str


class Configure(NamedTuple):
    """Everything a guest is told once, before it runs anything.

    `entropy`: 32 to 1024 random bytes. `time_ns`: nanoseconds since the epoch. `machine_id`: 32 lower-case
    hex digits. `hosts`: extra lines of `/etc/hosts`, an address and its names. `resolv_conf`: the content
    of `/etc/resolv.conf`; None leaves the image's. `security`: ``default`` or ``restricted``, what programs
    may do in the guest.
    """

    entropy: bytes
    time_ns: int
    hostname: str
    machine_id: str
    image: Disk
    upper: Disk
    hosts: Sequence[tuple[str, Sequence[str]]] = ()
    resolv_conf: bytes | None = None
    security: str = "default"

    def __repr__(self) -> str:
        """Without the entropy, which is nobody's business."""
        return f"Configure(hostname={self.hostname!r}, machine_id={self.machine_id!r}, image={self.image!r})"

    def params(self) -> Control:
        """The parameters of `configure`. Raises `ValueError` that names the one that is wrong."""
        if not 32 <= len(self.entropy) <= 1024:
            raise ValueError(f"entropy: {len(self.entropy)} bytes, not 32 to 1024")
        if not 0 <= self.time_ns < 2**63:
            raise ValueError(f"time_ns: {self.time_ns} is not a time since the epoch")
        if not 1 <= len(self.hostname) <= 63:
            raise ValueError(f"hostname: {len(self.hostname)} characters, not 1 to 63")
        if self.security not in ("default", "restricted"):
            raise ValueError(f"security: {self.security!r} is neither 'default' nor 'restricted'")
        if not _MACHINE_ID.match(self.machine_id):
            raise ValueError("machine_id: not 32 lower-case hex digits")
        hosts: list[Value] = [[address, list(names)] for address, names in self.hosts]
        return {
            "entropy": self.entropy,
            "time_ns": self.time_ns,
            "hostname": self.hostname,
            "machine_id": self.machine_id,
            "image": {"device": self.image.device, "fstype": self.image.fstype},
            "upper": {"device": self.upper.device, "fstype": self.upper.fstype},
            "hosts": hosts,
            "resolv_conf": self.resolv_conf,
            "security": self.security,
        }


class TerminalSize(NamedTuple):
    """Rows and columns of characters, 1 to 65,535 each."""

    rows: int
    cols: int

    def params(self) -> Control:
        """As the channel has it. Raises `ValueError` that names the one that is wrong."""
        for name, number in (("rows", self.rows), ("cols", self.cols)):
            if not 1 <= number <= 0xFFFF:
                raise ValueError(f"{name}: {number} is not 1 to 65535")
        return {"rows": self.rows, "cols": self.cols}


class Exec(NamedTuple):
    """A program to run. Its arguments, environment and directory are bytes in the guest.

    `env` is the whole environment, as a mapping or as `NAME=value` items. `rlimits`: name, soft and hard
    limit. `timeout`: seconds after which the process group is killed. `tty`: a terminal of this size controls
    the program and is its output, and its input unless that is `null`. `main`: it is what the sandbox is
    there for, and `keep`: how it ends is remembered, both of which are between a client and the supervisor's
    relay.
    """

    argv: Sequence[Text]
    env: Environment = ()
    cwd: Text | None = None
    user: str | None = None
    stdin: Literal["null", "pipe"] = "null"
    rlimits: Sequence[tuple[str, int, int]] = ()
    timeout: float | None = None
    tty: TerminalSize | None = None
    main: bool = False
    keep: bool = False

    def params(self) -> Control:
        """The parameters of `exec`. Raises `ValueError` or `TypeError` that names the one that is wrong."""
        if isinstance(self.argv, str | bytes):
            raise TypeError("argv: a sequence of arguments, not one string")
        if not self.argv:
            raise ValueError("argv: at least one argument is needed")
        if self.stdin not in ("null", "pipe"):
            raise ValueError(f"stdin: {self.stdin!r} is neither 'null' nor 'pipe'")
        timeout_ms = None
        if self.timeout is not None:
            if not 0 < self.timeout < 2**40:
                raise ValueError(f"timeout: {self.timeout} is not a number of seconds above 0")
            timeout_ms = max(1, round(self.timeout * 1000))
        rlimits: list[Value] = []
        for name, soft, hard in self.rlimits:
            if not 0 <= soft <= hard <= UNLIMITED:
                raise ValueError(f"rlimits: {name}: {soft} and {hard} are not a soft and a hard limit")
            rlimits.append([name, soft, hard])
        argv: list[Value] = [_encode("argv", argument) for argument in self.argv]
        return {
            "argv": argv,
            "env": _environment(self.env),
            "cwd": None if self.cwd is None else _encode("cwd", self.cwd),
            "user": self.user,
            "stdin": self.stdin,
            "tty": None if self.tty is None else self.tty.params(),
            "rlimits": rlimits,
            "timeout_ms": timeout_ms,
            **({"main": True} if self.main else {}),
            **({"keep": True} if self.keep else {}),
        }


def _encode(parameter: str, text: Text) -> bytes:
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError as error:
        raise ValueError(f"{parameter}: {error}") from None
    if b"\0" in encoded:
        raise ValueError(f"{parameter}: contains a NUL byte")
    return encoded


def _environment(env: Environment) -> list[Value]:
    if isinstance(env, str | bytes):
        raise TypeError("env: a mapping or a sequence of NAME=value items, not one string")
    if not isinstance(env, Mapping):
        items = [_encode("env", item) for item in env]
    else:
        items = []
        for name, value in env.items():
            encoded = _encode("env", name)
            if b"=" in encoded:
                raise ValueError(f"env: a name that contains '=': {name!r}")
            items.append(encoded + b"=" + _encode("env", value))
    for item in items:
        if item.find(b"=") < 1:
            # Values are often secrets and do not belong into an error message.
            raise ValueError("env: an item that is not NAME=value")
    return list(items)
