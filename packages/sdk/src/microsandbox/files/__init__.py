"""Files in and out of a sandbox, and in it: `SandboxFiles` is what `Sandbox.fs` is, `VolumeFiles`
what `Volume.fs` is."""

from microsandbox.files._copy import CopyProgress, copy_between, copy_from_host, copy_to_host
from microsandbox.files._extract import CopyResult
from microsandbox.files._plan import ChangeKind, FileChange, Obstacle
from microsandbox.files._sandbox import FileInfo, FileKind, FileSink, SandboxFiles
from microsandbox.files._volume import VolumeFiles
from microsandbox.files._workspace import ApplyResult

__all__ = [
    "ApplyResult",
    "ChangeKind",
    "CopyProgress",
    "CopyResult",
    "FileChange",
    "FileInfo",
    "FileKind",
    "FileSink",
    "Obstacle",
    "SandboxFiles",
    "VolumeFiles",
    "copy_between",
    "copy_from_host",
    "copy_to_host",
]
