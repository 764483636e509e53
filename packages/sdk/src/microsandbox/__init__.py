"""Sandboxes as microVMs: `Sandbox.create`, `exec`, `stop`.

Names are loaded when they are first used: the supervisor and `msb` import parts of this package on
the way to starting a VM, and pay only for those.
"""

from __future__ import annotations

__version__ = "0.1.0"

# As in `typing`, whose import takes longer than everything before the supervisor is started.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from microsandbox._fork import Forked
    from microsandbox._guest import Init
    from microsandbox._volumes import VolumeKind, VolumeUse
    from microsandbox.audit import AuditRecord
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
        NetworkLost,
        NetworkPolicyError,
        NoHypervisor,
        NotRunning,
        OutcomeUnknown,
        PathNotFound,
        Paused,
        PoolClosed,
        PullFailed,
        Replaced,
        SandboxError,
        SandboxNotFound,
        StartError,
        StateError,
        StillRunning,
        Unsupported,
        VolumeError,
        VolumeExists,
        VolumeInUse,
        VolumeNotFound,
        WorkspaceConflict,
    )
    from microsandbox.execution import (
        ExecEvent,
        ExecExited,
        ExecHandle,
        ExecOutput,
        ExecStarted,
        ExecStderr,
        ExecStdinError,
        ExecStdout,
        Stdin,
        StdinSink,
        Terminal,
    )
    from microsandbox.files import (
        ApplyResult,
        ChangeKind,
        CopyResult,
        FileChange,
        FileInfo,
        FileKind,
        FileSink,
        Obstacle,
        SandboxFiles,
        VolumeFiles,
    )
    from microsandbox.handle import SandboxHandle
    from microsandbox.host import doctor, setup
    from microsandbox.host_limits import HostLimits
    from microsandbox.image import Image, ImageArgument, ImageDetails, ImageSource, PrunedImages, PullPolicy
    from microsandbox.info import Cause, End, SandboxDetails, SandboxInfo, Status
    from microsandbox.logs import LogLine, LogSource
    from microsandbox.metrics import (
        GuestMetrics,
        NetworkMetrics,
        ProcessUsage,
        SandboxMetrics,
        all_sandbox_metrics,
    )
    from microsandbox.modify import Applies, Change, Modifications, ModifyPlan
    from microsandbox.network import (
        Action,
        Destination,
        Dns,
        Network,
        NetworkPolicy,
        RateLimit,
        Rule,
        Verdict,
    )
    from microsandbox.options import CreateOptions, SandboxOptions
    from microsandbox.page import Page
    from microsandbox.patch import Patch
    from microsandbox.pool import SandboxPool
    from microsandbox.ports import PortBinding
    from microsandbox.progress import ProgressEvent, ProgressPhase, PullSession
    from microsandbox.sandbox import Sandbox
    from microsandbox.sessions import Session
    from microsandbox.volumes import Volume

_HOME = {
    "_guest": ("Init",),
    "audit": ("AuditRecord",),
    "patch": ("Patch",),
    "_fork": ("Forked",),
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
        "NetworkLost",
        "NetworkPolicyError",
        "NoHypervisor",
        "NotRunning",
        "OutcomeUnknown",
        "PathNotFound",
        "Paused",
        "PoolClosed",
        "PullFailed",
        "Replaced",
        "SandboxError",
        "SandboxNotFound",
        "StartError",
        "StateError",
        "StillRunning",
        "Unsupported",
        "VolumeError",
        "VolumeExists",
        "VolumeInUse",
        "VolumeNotFound",
        "WorkspaceConflict",
    ),
    "execution": (
        "ExecEvent",
        "ExecExited",
        "ExecHandle",
        "ExecOutput",
        "ExecStarted",
        "ExecStderr",
        "ExecStdinError",
        "ExecStdout",
        "Stdin",
        "StdinSink",
        "Terminal",
    ),
    "files": (
        "ApplyResult",
        "ChangeKind",
        "CopyResult",
        "FileChange",
        "FileInfo",
        "FileKind",
        "FileSink",
        "Obstacle",
        "SandboxFiles",
        "VolumeFiles",
    ),
    "handle": ("SandboxHandle",),
    "host": ("doctor", "setup"),
    "host_limits": ("HostLimits",),
    "image": ("Image", "ImageArgument", "ImageDetails", "ImageSource", "PrunedImages", "PullPolicy"),
    "info": ("Cause", "End", "SandboxDetails", "SandboxInfo", "Status"),
    "logs": ("LogLine", "LogSource"),
    "metrics": ("GuestMetrics", "NetworkMetrics", "ProcessUsage", "SandboxMetrics", "all_sandbox_metrics"),
    "modify": ("Applies", "Change", "Modifications", "ModifyPlan"),
    "network": (
        "Action",
        "Destination",
        "Dns",
        "Network",
        "NetworkPolicy",
        "RateLimit",
        "Rule",
        "Verdict",
    ),
    "options": ("CreateOptions", "SandboxOptions"),
    "page": ("Page",),
    "pool": ("SandboxPool",),
    "ports": ("PortBinding",),
    "progress": ("ProgressEvent", "ProgressPhase", "PullSession"),
    "sandbox": ("Sandbox",),
    "sessions": ("Session",),
    "_volumes": ("VolumeKind", "VolumeUse"),
    "volumes": ("Volume",),
}

__all__ = [
    "Action",
    "AlreadyExists",
    "Applies",
    "ApplyResult",
    "AuditRecord",
    "BootFailed",
    "Cause",
    "Change",
    "ChangeKind",
    "ConfigError",
    "CopyResult",
    "CreateOptions",
    "Destination",
    "Dns",
    "End",
    "ExecError",
    "ExecEvent",
    "ExecExited",
    "ExecFailed",
    "ExecHandle",
    "ExecOutput",
    "ExecStarted",
    "ExecStderr",
    "ExecStdinError",
    "ExecStdout",
    "ExecTimeout",
    "FileChange",
    "FileInfo",
    "FileKind",
    "FileSink",
    "FilesystemError",
    "Forked",
    "GuestMetrics",
    "HostLimits",
    "Image",
    "ImageArgument",
    "ImageDetails",
    "ImageError",
    "ImageInUse",
    "ImageInvalid",
    "ImageNotFound",
    "ImageSource",
    "Init",
    "LogLine",
    "LogSource",
    "MicrosandboxError",
    "Modifications",
    "ModifyPlan",
    "Network",
    "NetworkLost",
    "NetworkMetrics",
    "NetworkPolicy",
    "NetworkPolicyError",
    "NoHypervisor",
    "NotRunning",
    "Obstacle",
    "OutcomeUnknown",
    "Page",
    "Patch",
    "PathNotFound",
    "Paused",
    "PoolClosed",
    "PortBinding",
    "ProcessUsage",
    "ProgressEvent",
    "ProgressPhase",
    "PrunedImages",
    "PullFailed",
    "PullPolicy",
    "PullSession",
    "RateLimit",
    "Replaced",
    "Rule",
    "Sandbox",
    "SandboxDetails",
    "SandboxError",
    "SandboxFiles",
    "SandboxHandle",
    "SandboxInfo",
    "SandboxMetrics",
    "SandboxNotFound",
    "SandboxOptions",
    "SandboxPool",
    "Session",
    "StartError",
    "StateError",
    "Status",
    "Stdin",
    "StdinSink",
    "StillRunning",
    "Terminal",
    "Unsupported",
    "Verdict",
    "Volume",
    "VolumeError",
    "VolumeExists",
    "VolumeFiles",
    "VolumeInUse",
    "VolumeKind",
    "VolumeNotFound",
    "VolumeUse",
    "WorkspaceConflict",
    "all_sandbox_metrics",
    "doctor",
    "setup",
]


if not TYPE_CHECKING:  # a type checker would take it as leave to import any name from here

    def __getattr__(name: str) -> object:
        for module, names in _HOME.items():
            if name in names:
                from importlib import import_module

                return getattr(import_module(f"microsandbox.{module}"), name)
        raise AttributeError(f"module 'microsandbox' has no attribute {name!r}")
