"""Sandboxes as microVMs: `Sandbox.create`, `exec`, `stop`.

Names are loaded when they are first used: the supervisor and `msb` import parts of this package on
the way to starting a VM, and pay only for those.
"""

from __future__ import annotations

__version__ = "0.1.0"

# As in `typing`, whose import takes longer than everything before the supervisor is started.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from microsandbox.errors import (
        AlreadyExists,
        BootFailed,
        ConfigError,
        ExecError,
        ExecFailed,
        ExecTimeout,
        ImageError,
        ImageInUse,
        ImageInvalid,
        ImageNotFound,
        MicrosandboxError,
        NoHypervisor,
        NotRunning,
        OutcomeUnknown,
        PoolClosed,
        SandboxError,
        SandboxNotFound,
        StartError,
        StateError,
        StillRunning,
    )
    from microsandbox.execution import ExecEvent, ExecHandle, ExecOutput, Stdin, StdinSink
    from microsandbox.logs import LogLine, LogSource
    from microsandbox.pool import SandboxPool
    from microsandbox.sandbox import Sandbox, SandboxInfo, Status

_HOME = {
    "execution": ("ExecEvent", "ExecHandle", "ExecOutput", "Stdin", "StdinSink"),
    "logs": ("LogLine", "LogSource"),
    "pool": ("SandboxPool",),
    "sandbox": ("Sandbox", "SandboxInfo", "Status"),
    "errors": (
        "AlreadyExists",
        "BootFailed",
        "ConfigError",
        "ExecError",
        "ExecFailed",
        "ExecTimeout",
        "ImageError",
        "ImageInUse",
        "ImageInvalid",
        "ImageNotFound",
        "MicrosandboxError",
        "NoHypervisor",
        "NotRunning",
        "OutcomeUnknown",
        "PoolClosed",
        "SandboxError",
        "SandboxNotFound",
        "StartError",
        "StateError",
        "StillRunning",
    ),
}

__all__ = [
    "AlreadyExists",
    "BootFailed",
    "ConfigError",
    "ExecError",
    "ExecEvent",
    "ExecFailed",
    "ExecHandle",
    "ExecOutput",
    "ExecTimeout",
    "ImageError",
    "ImageInUse",
    "ImageInvalid",
    "ImageNotFound",
    "LogLine",
    "LogSource",
    "MicrosandboxError",
    "NoHypervisor",
    "NotRunning",
    "OutcomeUnknown",
    "PoolClosed",
    "Sandbox",
    "SandboxError",
    "SandboxInfo",
    "SandboxNotFound",
    "SandboxPool",
    "StartError",
    "StateError",
    "Status",
    "Stdin",
    "StdinSink",
    "StillRunning",
]


def __getattr__(name: str) -> object:
    for module, names in _HOME.items():
        if name in names:
            from importlib import import_module

            return getattr(import_module(f"microsandbox.{module}"), name)
    raise AttributeError(f"module 'microsandbox' has no attribute {name!r}")
