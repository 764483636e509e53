"""Files in and out of a sandbox, and in it: `SandboxFiles` is what `Sandbox.fs` is."""

from microsandbox.files._copy import CopyProgress, copy_between, copy_from_host, copy_to_host
from microsandbox.files._extract import CopyResult
from microsandbox.files._sandbox import FileInfo, FileKind, FileSink, SandboxFiles

__all__ = [
    "CopyProgress",
    "CopyResult",
    "FileInfo",
    "FileKind",
    "FileSink",
    "SandboxFiles",
    "copy_between",
    "copy_from_host",
    "copy_to_host",
]
