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
        FilesystemError,
        ImageError,
        ImageInUse,
        ImageInvalid,
        ImageNotFound,
        MicrosandboxError,
        NoHypervisor,
        NotRunning,
        OutcomeUnknown,
        PathNotFound,
        PoolClosed,
        Replaced,
        SandboxError,
        SandboxNotFound,
        StartError,
        StateError,
        StillRunning,
    )
    from microsandbox.execution import ExecEvent, ExecHandle, ExecOutput, Stdin, StdinSink, Terminal
    from microsandbox.files import CopyResult, FileInfo, FileKind, FileSink, SandboxFiles
    from microsandbox.handle import SandboxHandle
    from microsandbox.info import Cause, SandboxDetails, SandboxInfo, Status
    from microsandbox.logs import LogLine, LogSource
    from microsandbox.pool import SandboxPool
    from microsandbox.sandbox import Sandbox

_HOME = {
    "execution": ("ExecEvent", "ExecHandle", "ExecOutput", "Stdin", "StdinSink", "Terminal"),
    "files": ("CopyResult", "FileInfo", "FileKind", "FileSink", "SandboxFiles"),
    "logs": ("LogLine", "LogSource"),
    "pool": ("SandboxPool",),
    "handle": ("SandboxHandle",),
    "info": ("Cause", "SandboxDetails", "SandboxInfo", "Status"),
    "sandbox": ("Sandbox",),
    "errors": (
        "AlreadyExists",
        "BootFailed",
        "ConfigError",
        "ExecError",
        "ExecFailed",
        "ExecTimeout",
        "FilesystemError",
        "ImageError",
        "ImageInUse",
        "ImageInvalid",
        "ImageNotFound",
        "MicrosandboxError",
        "NoHypervisor",
        "NotRunning",
        "OutcomeUnknown",
        "PathNotFound",
        "PoolClosed",
        "Replaced",
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
    "Cause",
    "ConfigError",
    "CopyResult",
    "ExecError",
    "ExecEvent",
    "ExecFailed",
    "ExecHandle",
    "ExecOutput",
    "ExecTimeout",
    "FileInfo",
    "FileKind",
    "FileSink",
    "FilesystemError",
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
    "PathNotFound",
    "PoolClosed",
    "Replaced",
    "Sandbox",
    "SandboxDetails",
    "SandboxError",
    "SandboxFiles",
    "SandboxHandle",
    "SandboxInfo",
    "SandboxNotFound",
    "SandboxPool",
    "StartError",
    "StateError",
    "Status",
    "Stdin",
    "StdinSink",
    "StillRunning",
    "Terminal",
]


def __getattr__(name: str) -> object:
    for module, names in _HOME.items():
        if name in names:
            from importlib import import_module

            return getattr(import_module(f"microsandbox.{module}"), name)
    raise AttributeError(f"module 'microsandbox' has no attribute {name!r}")
