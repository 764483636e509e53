"""QEMU's monitor (QMP): the few commands that save a machine and load it again.

Messages are JSON objects, one per line: docs/interop/qmp-spec in QEMU's sources.
"""

from __future__ import annotations

import select
import socket
import time
from typing import Any

from microsandbox_core.errors import TemplateFailed

# With x-ignore-shared the guest's memory stays in its file and only device state is written.
_CAPABILITIES = [
    {"capability": "x-ignore-shared", "state": True},
    {"capability": "events", "state": True},
]


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


def save(monitor: socket.socket, state: int, *, deadline: float) -> None:
    """Stop the machine and write its device state to the descriptor `state`, for good: the machine must
    not run again. `deadline` is in `time.monotonic()`. Raises `TemplateFailed`."""
    talk = _Talk(monitor, deadline)
    talk.ask("qmp_capabilities", {})
    talk.ask("migrate-set-capabilities", {"capabilities": _CAPABILITIES})
    talk.ask("getfd", {"fdname": "state"}, pass_on=state)
    # Not stopped before: a machine saved while it is stopped stays stopped when it is loaded.
    talk.ask("migrate", {"uri": "fd:state"})
    talk.wait_migrated()
    talk.ask("quit", {})


def _command(name: str, arguments: dict[str, Any]) -> bytes:
    import json

    return json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n"


class _Talk:
    def __init__(self, monitor: socket.socket, deadline: float) -> None:
        self._monitor = monitor
        self._deadline = deadline
        self._read = b""
        self._status = ""

    def ask(self, name: str, arguments: dict[str, Any], *, pass_on: int | None = None) -> None:
        command = _command(name, arguments)
        try:
            if pass_on is None:
                self._monitor.sendall(command)
            else:
                socket.send_fds(self._monitor, [command], [pass_on])
        except OSError as error:
            raise TemplateFailed(f"QEMU's monitor is gone at {name}: {error.strerror}") from error
        while True:
            message = self._receive(name)
            if "return" in message:
                return
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
