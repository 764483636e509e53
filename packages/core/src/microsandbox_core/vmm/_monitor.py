"""QEMU's monitor (QMP): the few commands that save a machine and load it again.

Messages are JSON objects, one per line: docs/interop/qmp-spec in QEMU's sources.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from microsandbox_core.errors import TemplateFailed

# With x-ignore-shared the guest's memory stays in its file and only device state is written.
_CAPABILITIES = [
    {"capability": "x-ignore-shared", "state": True},
    {"capability": "events", "state": True},
]


_LOAD_COMMANDS = 3


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


def save(
    monitor: socket.socket,
    state: int,
    *,
    deadline: float,
    detach: Sequence[Detached] = (),
    restored: bool = False,
) -> None:
    """Stop the machine and write its device state to the descriptor `state`, for good: the machine must
    not run again. `deadline` is in `time.monotonic()`. `restored`: it was loaded by `load_commands`, whose
    answers have not been read. Raises `TemplateFailed`."""
    talk = _Talk(monitor, deadline)
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
    talk.tell("quit")


def _reads(stats: Any) -> list[int]:
    """How many reads every disk has had."""
    return [disk["stats"]["rd_operations"] for disk in stats]


def _command(name: str, arguments: dict[str, Any]) -> bytes:
    import json

    return json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n"


class _Talk:
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
