"""QEMU's monitor (QMP): the few commands that pause a machine, save it and load it again.

Messages are JSON objects, one per line: docs/interop/qmp-spec in QEMU's sources.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from microsandbox_core.errors import MachineFailed, TemplateFailed

# With x-ignore-shared the guest's memory stays in its file and only device state is written.
_CAPABILITIES = [
    {"capability": "x-ignore-shared", "state": True},
    {"capability": "events", "state": True},
]


_LOAD_COMMANDS = 3

_LIMIT = 1 << 20  # bytes of one message, and of what follows it


def load_commands(state: int) -> bytes:
    """What to write to a machine started with `-incoming defer`, so that it loads the device state from
    this inherited descriptor and runs. Nothing of the answers has to be awaited in between."""
    # Written out, because importing json takes longer than the rest of this.
    return (
        b'{"execute":"qmp_capabilities"}\n'
        b'{"execute":"migrate-set-capabilities","arguments":{"capabilities":'
        b'[{"capability":"x-ignore-shared","state":true}]}}\n'
        b'{"execute":"migrate-incoming","arguments":{"uri":"fd:%d"}}\n' % state
    )


class Detached(NamedTuple):
    """A read-only disk that is taken away before the machine is saved, because QEMU saves none whose format
    it cannot pass on to another process. `node` is the disk's `raw` node, `under` what it reads from."""

    node: str
    under: str
    size: int


class Attached(NamedTuple):
    """A disk for which the `raw` node `node` reads from the placeholder `nothing` until the machine is saved;
    `options` are those of the block device to come."""

    node: str
    nothing: str
    options: dict[str, Any]


def save(
    monitor: socket.socket,
    state: int,
    *,
    deadline: float,
    detach: Sequence[Detached] = (),
    restored: bool = False,
) -> Talk:
    """Stop the machine and write its device state to the descriptor `state`; what is said next may be `quit`,
    or see `resume`. `deadline` is in `time.monotonic()`. `restored`: it was loaded by `load_commands`, whose
    answers have not been read. Raises `TemplateFailed`."""
    talk = Talk(monitor, deadline)
    if restored:
        talk.answers(_LOAD_COMMANDS)
    else:
        talk.ask("qmp_capabilities", {})
    before = talk.ask("query-blockstats", {}) if detach else []
    for number, disk in enumerate(detach):
        nothing = {
            "driver": "null-co", "node-name": f"nothing{number}", "size": disk.size,
            "read-zeroes": True, "read-only": True,
        }  # fmt: skip
        talk.ask("blockdev-add", nothing)
        raw = {"driver": "raw", "node-name": disk.node, "read-only": True, "file": nothing["node-name"]}
        talk.ask("blockdev-reopen", {"options": [raw]})
        talk.ask("blockdev-del", {"node-name": disk.under})
    talk.ask("migrate-set-capabilities", {"capabilities": _CAPABILITIES})
    talk.ask("getfd", {"fdname": "state"}, pass_on=state)
    # Not stopped before: a machine saved while it is stopped stays stopped when it is loaded.
    talk.ask("migrate", {"uri": "fd:state"})
    talk.wait_migrated()
    # The machine was idle but not stopped: what it had read meanwhile would have been zeros.
    if detach and _reads(talk.ask("query-blockstats", {})) != _reads(before):
        raise TemplateFailed("the machine read from a disk while it was saved")
    return talk


def resume(talk: Talk, disks: Sequence[Attached]) -> None:
    """Let a machine that was saved run on, with its disks in the places of the placeholders.

    It must not have used them yet, nor do so before this returns. Raises `TemplateFailed`.
    """
    # First of all: until then QEMU holds that whoever loads the state has all disks.
    talk.ask("cont", {})
    for disk in disks:
        talk.ask("blockdev-add", disk.options)
        passed_on = ("read-only", "cache", "discard")
        options = {name: disk.options[name] for name in passed_on if name in disk.options}
        raw = {"driver": "raw", "node-name": disk.node, **options, "file": disk.options["node-name"]}
        talk.ask("blockdev-reopen", {"options": [raw]})
        talk.ask("blockdev-del", {"node-name": disk.nothing})


def _reads(stats: Any) -> list[int]:
    """How many reads every disk has had."""
    return [disk["stats"]["rd_operations"] for disk in stats]


def _command(name: str, arguments: dict[str, Any]) -> bytes:
    import json

    return json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n"


class Talk:
    """Commands and answers, one after the other."""

    def __init__(self, monitor: socket.socket, deadline: float) -> None:
        self._monitor = monitor
        self._deadline = deadline
        self._read = b""
        self._status = ""

    def ask(self, name: str, arguments: dict[str, Any], *, pass_on: int | None = None) -> Any:
        """Give a command; what it returns."""
        command = _command(name, arguments)
        try:
            if pass_on is None:
                self._monitor.sendall(command)
            else:
                socket.send_fds(self._monitor, [command], [pass_on])
        except OSError as error:
            raise TemplateFailed(f"QEMU's monitor is gone at {name}: {error.strerror}") from error
        return self._answer(name)

    def tell(self, name: str) -> None:
        """Give a command whose answer may not come any more."""
        try:
            self._monitor.sendall(_command(name, {}))
        except OSError:
            pass  # it is gone already

    def answers(self, count: int) -> None:
        """Read the answers to commands that were given before."""
        for _ in range(count):
            self._answer("its first commands")

    def _answer(self, name: str) -> Any:
        while True:
            message = self._receive(name)
            if "return" in message:
                return message["return"]
            if "error" in message:
                told = message["error"]
                raise TemplateFailed(f"QEMU refused {name}: {told.get('desc', told)}")

    def wait_migrated(self) -> None:
        while self._status not in ("completed", "failed"):
            self._receive("migrate")
        if self._status == "failed":
            raise TemplateFailed("QEMU could not save the machine's state")

    def _receive(self, name: str) -> dict[str, Any]:
        while b"\n" not in self._read:
            left = self._deadline - time.monotonic()
            if left <= 0 or not select.select([self._monitor], [], [], left)[0]:
                raise TemplateFailed(f"QEMU did not answer {name} in time")
            data = self._monitor.recv(1 << 16)
            if not data:
                raise TemplateFailed(f"QEMU ended at {name}")
            self._read += data
        line, _, self._read = self._read.partition(b"\n")
        import json

        message = json.loads(line)
        if not isinstance(message, dict):
            raise TemplateFailed(f"QEMU's answer to {name} is not an object")
        if message.get("event") == "MIGRATION":
            self._status = message.get("data", {}).get("status", "")
        return message


class Monitor:
    """The monitor of a machine that lives on: commands with answers, and long silences in between.

    Every command has a number, so that answers to other commands and what QEMU says by itself can be told
    from the answer. Methods raise `MachineFailed`.
    """

    def __init__(self, monitor: socket.socket, *, greeted: bool) -> None:
        """`greeted`: `qmp_capabilities` has been sent."""
        self._monitor = monitor
        self._greeted = greeted
        self._number = 0
        self._read = b""
        self._deadline = 0.0

    def discard(self) -> bool:
        """Forget what QEMU has said by itself; False if it has closed the monitor."""
        while True:
            try:
                data = self._monitor.recv(1 << 16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not data:
                return False
            # What is left is the beginning of a message.
            self._read = (self._read + data).rpartition(b"\n")[2]

    def within(self, seconds: float) -> Monitor:
        """The same, with so much time for the next commands together."""
        self._deadline = time.monotonic() + seconds
        return self

    def ask(self, name: str, arguments: dict[str, Any], *, pass_on: int | None = None) -> Any:
        """Give a command, with a descriptor if need be; what it returns."""
        import json

        if not self._greeted:
            self._greeted = True
            try:
                self.ask("qmp_capabilities", {})
            except MachineFailed:
                pass  # whoever made a template of it has done that
        self._number += 1
        asked = {"execute": name, "arguments": arguments, "id": self._number}
        command = json.dumps(asked).encode() + b"\n"
        try:
            if pass_on is None:
                self._monitor.sendall(command)
            else:
                socket.send_fds(self._monitor, [command], [pass_on])
        except OSError as error:
            raise MachineFailed(f"QEMU's monitor is gone at {name}: {error.strerror}") from error
        while True:
            try:
                message = json.loads(self._line(name))
            except (ValueError, RecursionError):
                raise MachineFailed(f"what QEMU says at {name} is no JSON") from None
            if isinstance(message, dict) and message.get("id") == self._number:
                break
        if "error" in message:
            raise MachineFailed(f"QEMU refused {name}: {message['error'].get('desc')}")
        return message.get("return")

    def _line(self, name: str) -> bytes:
        while b"\n" not in self._read:
            left = self._deadline - time.monotonic()
            if left <= 0 or not select.select([self._monitor], [], [], left)[0]:
                raise MachineFailed(f"QEMU did not answer {name} in time")
            try:
                data = self._monitor.recv(1 << 16)
            except OSError:
                data = b""
            if not data:
                raise MachineFailed(f"QEMU ended at {name}")
            self._read += data
            if len(self._read) > _LIMIT:
                raise MachineFailed(f"QEMU says too much at {name}")
        line, _, self._read = self._read.partition(b"\n")
        return line

    def host_address(self) -> int:
        """Where QEMU has the first byte of the machine's memory."""
        said = self.ask("human-monitor-command", {"command-line": "gpa2hva 0"})
        # Host virtual address for 0x0 (ram) is 0x7f0123400000
        where, _, address = str(said).strip().rpartition(" is 0x")
        try:
            return int(address if where else "", 16)
        except ValueError:
            raise MachineFailed(f"QEMU does not say where the memory is: {said!r}") from None

    def save_devices(self, state: int) -> None:
        """Write the device state of a stopped machine to a descriptor opened for writing only.

        The command is Xen's, but for all machines: of the commands that save one it is the only that leaves
        out the memory whether it is shared or not, and leaves disks attached whatever their format.
        """
        given = self.ask("add-fd", {}, pass_on=state)
        try:
            name = f"/dev/fdset/{given['fdset-id']}"
            self.ask("xen-save-devices-state", {"filename": name, "live": False})
        finally:
            self.ask("remove-fd", {"fdset-id": given["fdset-id"]})
