"""Directories and files of the host in the guest: for each a console port, and a thread that answers what the
guest's kernel asks through it, or by a device of virtio-fs, if the machine has one for it.

Imported for sandboxes that have one.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from microsandbox_core.vmm import Vm
from microsandbox_fs import Broker, Cache, Device, MalformedMessage, Ownership, Quota, ShareOptions

from microsandbox._config import MountConfig
from microsandbox.errors import StartError

_GREETING = struct.Struct("<4sII")
"""What agentd says before any message: a mark, user and group of files whose owner nobody has set."""
_MARK = b"MSBF"

_END_TIME = 5.0  # seconds for what was asked before the machine ended


def tags(mounts: Sequence[MountConfig]) -> tuple[str, ...]:
    """Names of the shares among `mounts` for which virtio-fs will do. It knows neither single files nor what
    the host has to tell."""
    shared = [mount for mount in mounts if mount.kind != "disk"]
    return tuple(
        _tag(number)
        for number, mount in enumerate(shared)
        if not mount.watch and os.path.isdir(mount.source)  # noqa: PTH112 - pathlib is not imported here
    )


def devices(vm: Vm) -> Mapping[str, Device]:
    """Become the devices for which `vm` waits, by their tags. What the guest asks waits for `Shares`."""
    opened = {}
    for tag, end in vm.shares.items():
        with end:
            opened[tag] = Device(end)
    return opened


def _name(number: int) -> str:
    return f"msb.fs.{number}"


def _tag(number: int) -> str:
    # Programs of the guest see it in their tables of mounts.
    return f"share{number}"


class Shares:
    """The shares of one machine. They end with it; `join` waits for that."""

    def __init__(
        self,
        vm: Vm,
        mounts: Sequence[MountConfig],
        user: str | None,
        directory: Path,
        devices: Mapping[str, Device] | None = None,
    ) -> None:
        """Give `vm`, which runs, a port for each; `directory` is the sandbox's, `devices` are those of the
        machine. Raises `CoreError`, and `StartError` for what cannot be shared any more."""
        self._user = user
        devices = devices or {}
        if any(mount.mode != "share" or mount.guest for mount in mounts):
            from microsandbox.supervisor._workspaces import record

            mounts = record(directory, mounts)
        self._shares = [
            _Share(vm.add_port(_name(number)), number, mount, devices.get(_tag(number)))
            for number, mount in enumerate(mounts)
        ]

    def parameters(self) -> list[Mapping[str, Any]]:
        """The parameter `mounts` of agentd's `configure`."""
        return [share.parameters(self._user) for share in self._shares]

    def join(self) -> None:
        """Wait until all is answered that was asked before the machine ended."""
        end = time.monotonic() + _END_TIME
        for share in self._shares:
            share.thread.join(max(0.0, end - time.monotonic()))


class _Share:
    def __init__(self, port: socket.socket, number: int, mount: MountConfig, device: Device | None) -> None:
        self._port = port
        self._number = number
        self._name = name = _name(number)
        self._mount = mount
        self._is_file = not os.path.isdir(mount.source)  # noqa: PTH112 - pathlib is not imported here
        self._watched = mount.watch and not self._is_file
        # It was a directory when the machine was started.
        self._device = None if self._is_file else device
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def parameters(self, user: str | None) -> Mapping[str, Any]:
        mount = self._mount
        workspace = {
            "id": str(self._number),
            "mode": mount.mode,
            "guest": [os.fsencode(path) for path in mount.guest],
        }
        return {
            **({"workspace": workspace} if mount.mode != "share" or mount.guest else {}),
            "target": os.fsencode(self._mount.target),
            "kind": "file" if self._is_file else "fuse",
            "port": self._name,
            **({"device": _tag(self._number)} if self._device is not None else {}),
            "owner": user or None,
            "read_only": self._mount.read_only,
            "flags": list(self._mount.flags),
            "watch": self._watched,
        }

    def _run(self) -> None:
        try:
            with self._port:
                self._serve()
        except (OSError, MalformedMessage) as error:
            # The guest is told by the end of the port, and answers EIO to its programs.
            sys.stderr.write(f"{self._mount.target} is shared no more: {error}\n")
        finally:
            if self._device is not None:
                # There is no such end of a device.
                self._device.refuse()

    def _serve(self) -> None:
        greeting = self._port.recv(_GREETING.size, socket.MSG_WAITALL)
        if len(greeting) < _GREETING.size:
            return  # the machine ended before it had mounted anything
        mark, *owner = _GREETING.unpack(greeting)
        if mark != _MARK:
            raise MalformedMessage("what agentd says is no greeting")
        mount = self._mount
        options = ShareOptions(
            # What is changed in a workspace stays in the guest.
            read_only=mount.read_only or mount.mode != "share",
            ownership=Ownership(mount.ownership),
            owner=(owner[0], owner[1]),
            # An overlay ends with ESTALE what it has seen under another name or inode before.
            cache=Cache.ALWAYS if mount.mode == "overlay" else Cache(mount.cache),
            watch=self._watched,
            quota=_quota(mount),
        )
        broker = Broker(mount.source, options)
        if self._device is None:
            broker.serve(self._port)
        else:
            broker.serve_device(self._device)


def _quota(mount: MountConfig) -> Quota | None:
    """The account that all sandboxes with this volume keep together, beside its directory."""
    if mount.quota is None:
        return None
    return Quota(mount.quota, counter=os.path.join(os.path.dirname(mount.source), "quota"))  # noqa: PTH118, PTH120


def check_sources(mounts: Iterable[MountConfig]) -> None:
    """Raise `StartError` for the first that cannot be shared: it has gone, or become something else."""
    for mount in mounts:
        try:
            Broker(mount.source)
        except OSError as error:
            link = error.errno == errno.ELOOP
            problem = "it has become a symbolic link" if link else error.strerror
            raise StartError(
                f"cannot mount {mount.target}: {mount.source}: {problem}",
                hint="put it back, or remove the sandbox and create it without",
                code="mount_source",
            ) from error
