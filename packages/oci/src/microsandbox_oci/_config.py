"""The image configuration: what a container of the image runs, as whom and with which environment.

Format: OCI image specification, ``config.md``; Docker's schema 2 configuration has the same members.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from microsandbox_oci._digest import is_digest
from microsandbox_oci._errors import ImageInvalid, LimitExceeded
from microsandbox_oci._json import Node
from microsandbox_oci._platform import Platform

DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""The environment of a root file system that has no configuration: the PATH that Docker uses."""


_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
_TIME_CHARACTERS = frozenset("0123456789-+:.TtZz")


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """The runtime part of an image configuration.

    Attributes:
        env: ``NAME=value`` strings in the image's order.
        entrypoint: argv prefix; empty if the image has none.
        cmd: default arguments; empty if the image has none.
        working_dir: absolute path, or "" for ``/``.
        user: ``user[:group]``, names or numbers, or "" for root.
        labels: label names to values.
        stop_signal: a name or number such as ``SIGTERM``, or "".
        exposed_ports: sorted, as ``8080/tcp``.
        volumes: sorted mount points.
    """

    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    stop_signal: str = ""
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()

    @classmethod
    def from_node(cls, node: Node) -> ImageConfig:
        """Read the ``config`` object of an image configuration document.

        Raises:
            ImageInvalid: a member has the wrong type.
        """
        return cls(
            env=node.texts("Env"),
            entrypoint=node.texts("Entrypoint"),
            cmd=node.texts("Cmd"),
            working_dir=node.text("WorkingDir"),
            user=node.text("User"),
            labels=MappingProxyType(node.text_map("Labels")),
            stop_signal=node.text("StopSignal"),
            exposed_ports=node.keys("ExposedPorts"),
            volumes=node.keys("Volumes"),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the ``config`` object for an image configuration document; empty members are left out."""
        members: dict[str, Any] = {
            "Env": list(self.env),
            "Entrypoint": list(self.entrypoint),
            "Cmd": list(self.cmd),
            "WorkingDir": self.working_dir,
            "User": self.user,
            "Labels": dict(self.labels),
            "StopSignal": self.stop_signal,
            "ExposedPorts": {port: {} for port in self.exposed_ports},
            "Volumes": {path: {} for path in self.volumes},
        }
        return {name: value for name, value in members.items() if value}


@dataclass(frozen=True, slots=True)
class ConfigDocument:
    """What the store needs of an image configuration document."""

    config: ImageConfig
    platform: Platform | None
    created: str
    diff_ids: tuple[str, ...]


def parse_config(data: bytes, *, max_layers: int) -> ConfigDocument:
    """Parse an image configuration document.

    Raises:
        ImageInvalid: malformed, or its layer list is not one of sha256 digests.
        LimitExceeded: more than ``max_layers`` layers.
    """
    node = Node.parse(data, "image configuration")
    rootfs = node.child("rootfs")
    if rootfs is None or rootfs.text("type", "layers") != "layers":
        raise ImageInvalid("image configuration: rootfs is missing or is not of type layers", blob=node.what)
    diff_ids = rootfs.texts("diff_ids")
    for diff_id in diff_ids:
        if not is_digest(diff_id):
            raise ImageInvalid(
                f"image configuration: diff id {diff_id[:100]!r} is not sha256: and 64 lower-case hex digits",
                blob=node.what,
            )
    if len(diff_ids) > max_layers:
        raise LimitExceeded(
            f"image has {len(diff_ids)} layers, the limit is {max_layers}",
            blob=node.what,
            expected=str(max_layers),
        )
    runtime = node.child("config")
    created = node.text("created")
    if not _is_time(created):
        created = ""  # shown on terminals, so nothing but a time may stand there
    return ConfigDocument(
        config=ImageConfig() if runtime is None else ImageConfig.from_node(runtime),
        platform=parse_platform(node),
        created=created,
        diff_ids=diff_ids,
    )


def _is_time(text: str) -> bool:
    """Say whether ``text`` has the characters of an RFC 3339 time."""
    return 20 <= len(text) <= 40 and text[4] == "-" and text[10] in "Tt" and _TIME_CHARACTERS.issuperset(text)


def parse_platform(node: Node) -> Platform | None:
    """Read ``os``, ``architecture`` and ``variant``; None where the document names no architecture."""
    parts = (node.text("os"), node.text("architecture"), node.text("variant"))
    for part in parts:
        # Shown in errors and listings; real values are Go's GOOS and GOARCH.
        if len(part) > 32 or not _NAME_CHARACTERS.issuperset(part):
            raise ImageInvalid(f"{node.what}: {part[:40]!r} is not the name of a platform", blob=node.what)
    if not parts[1]:
        return None
    return Platform(parts[0] or "linux", parts[1], parts[2] or None)
