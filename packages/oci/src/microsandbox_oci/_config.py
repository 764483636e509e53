"""The image configuration: what a container of the image runs, as whom and with which environment.

Format: OCI image specification, ``config.md``; Docker's schema 2 configuration has the same members.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from microsandbox_oci._json import Node

DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""The environment of a root file system that has no configuration: the PATH that Docker uses."""


class ImageConfig(NamedTuple):
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
    labels: Mapping[str, str] = MappingProxyType({})
    stop_signal: str = ""
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()

    def __hash__(self) -> int:
        return hash((self.env, self.entrypoint, self.cmd, self.working_dir, self.user))  # labels have none

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
            labels=node.text_map("Labels"),
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
