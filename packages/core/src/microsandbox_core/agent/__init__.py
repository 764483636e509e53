"""The asyncio client of a guest's agent."""

from ..requests import Configure, Disk, Exec, TerminalSize
from ._client import HANDSHAKE_TIMEOUT, AgentClient
from ._process import (
    COLLECT_LIMIT,
    Exited,
    ExitStatus,
    Finished,
    Output,
    Process,
    ProcessEvent,
    Stderr,
    Stdin,
    StdinClosed,
    Stdout,
)

__all__ = [
    "COLLECT_LIMIT",
    "HANDSHAKE_TIMEOUT",
    "AgentClient",
    "Configure",
    "Disk",
    "Exec",
    "ExitStatus",
    "Exited",
    "Finished",
    "Output",
    "Process",
    "ProcessEvent",
    "Stderr",
    "Stdin",
    "StdinClosed",
    "Stdout",
    "TerminalSize",
]
