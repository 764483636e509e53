"""Making a template: where the machine's memory and state go, and the talk with agentd until it is saved.

The memory is a memory file until the machine is saved, and is then copied to where it stays. A kernel that
boots in a mapping of a file on a disk takes a third longer, because the file system is asked for each page.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from microsandbox_core.artifacts import copy_data
from microsandbox_core.errors import BootFailed, TemplateFailed

if TYPE_CHECKING:
    from microsandbox_core.channel import HostConnection
    from microsandbox_core.vmm._spec import Root, Vm


class Making(NamedTuple):
    """What a machine needs to be saved into `directory`: descriptors of its memory and of the file for its
    state, and both ends of its monitor. `files` are closed with the rest when it is over."""

    directory: Path
    memory: int
    state: int
    monitor: socket.socket
    peer: socket.socket
    files: list[int]

    def keep_memory(self) -> None:
        """Write the memory of the machine, which is saved and does not run, to where it stays."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(self.directory / "memory", flags, 0o600)
        try:
            os.ftruncate(descriptor, os.fstat(self.memory).st_size)
            copy_data(self.memory, descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def making(directory: Path, memory_mib: int) -> Iterator[Making]:
    """Open what a `Making` holds. What goes wrong until it is left is raised as `TemplateFailed`."""
    monitor, peer = socket.socketpair()
    files: list[int] = []
    try:
        memory = os.memfd_create("guest-memory", os.MFD_CLOEXEC)
        files.append(memory)
        os.ftruncate(memory, memory_mib << 20)
        state = os.open(directory / "state", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        files.append(state)
        yield Making(directory, memory, state, monitor, peer, files)
    except OSError as error:
        raise TemplateFailed(f"{directory}: {error.strerror}") from error
    except BootFailed as error:
        raise TemplateFailed(str(error)) from error
    finally:
        monitor.close()
        peer.close()
        for descriptor in files:
            os.close(descriptor)


def await_agent(vm: Vm, end: float) -> None:
    """Wait until agentd has answered and so has nothing left to do. Raises `TemplateFailed`."""
    # While the guest boots: what is needed to save it, and by whoever runs it then.
    import json  # noqa: F401

    import microsandbox_core.relay_server  # noqa: F401
    from microsandbox_core.channel import HelloReceived, HostConnection

    _converse(vm, HostConnection("template"), end, lambda event: isinstance(event, HelloReceived))


def await_mounted(vm: Vm, root: Root, end: float) -> None:
    """Let agentd mount the root. Raises `TemplateFailed`."""
    from microsandbox_core.channel import Ended, HelloReceived, HostConnection

    connection = HostConnection("template")

    def done(event: Any) -> bool:
        if isinstance(event, HelloReceived):
            connection.open("mount", {"time_ns": time.time_ns(), **root.request()})
        elif isinstance(event, Ended):
            if error := event.body.get("error"):
                raise TemplateFailed(f"agentd could not mount the image: {error!r}")
            return True
        return False

    _converse(vm, connection, end, done)


def await_end(vm: Vm, end: float) -> None:
    """Wait until the VMM has ended by itself. Raises `TemplateFailed`."""
    if not select.select([vm.pidfd], [], [], max(0.0, end - time.monotonic()))[0]:
        raise TemplateFailed("QEMU did not end when its state was saved")


def discard(vm: Vm) -> None:
    """End a machine that nobody will use."""
    vm.kill()
    vm.reap()
    vm.agent.close()
    vm.console.close()
    vm.network.close()


def _converse(vm: Vm, connection: HostConnection, end: float, done: Callable[[Any], bool]) -> None:
    """Talk to agentd until `done` with an event. Raises `TemplateFailed`."""
    from microsandbox_core.channel import ChannelError

    printed = b""

    def send() -> None:
        data = b"".join(connection.output())
        vm.agent.sendall(data)
        connection.sent(len(data))

    send()
    while (left := end - time.monotonic()) > 0:
        watched: list[Any] = [vm.agent, vm.console, vm.pidfd]
        ready, _, _ = select.select(watched, [], [], left)
        if vm.agent in ready:
            try:
                events = connection.receive(vm.agent.recv(1 << 16))
            except ChannelError as error:
                raise TemplateFailed(f"agentd: {error}") from error
            except ConnectionResetError:
                events = []  # what was written to it has not been read: the machine has ended
            for event in events:
                if done(event):
                    return
            send()
        if vm.console in ready:
            printed = (printed + vm.console.recv(1 << 16))[-4096:]
        if vm.pidfd in ready:
            said = printed.decode(errors="replace").strip().splitlines()
            raise TemplateFailed("the machine ended while it booted" + (f": {said[-1]}" if said else ""))
    raise TemplateFailed("agentd did not answer in time")
