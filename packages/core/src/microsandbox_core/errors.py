"""What can go wrong in core, as one tree.

::

    CoreError                    .code  .hint
    ├── StorageError             a file or directory of the state cannot be written or read
    ├── KernelError              no guest kernel, or not one that we can boot
    ├── AgentMissing             this installation has no agentd
    ├── DiskRefused              a disk image that cannot be attached, or must not be
    │   └── DiskInUse            somebody else has it
    └── VmmError
        ├── VmmNotFound          no virtual machine monitor on this machine
        ├── SpecInvalid          the machine that was asked for cannot be built
        ├── Unsupported          this driver, or this host, cannot do what was asked
        ├── MachineFailed        a running machine could not be paused, resumed or saved
        ├── TemplateFailed       no template could be made; the machine can still be booted
        └── BootFailed           .stage  .console   the machine did not come up

The agent channel has a tree of its own, `microsandbox_core.channel.ChannelError`.
"""

from __future__ import annotations

import errno


class CoreError(Exception):
    """Base of core's errors: `str(error)` says what happened, `hint` what to do about it."""

    code = "core"

    def __init__(self, message: str, *, hint: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        if code is not None:
            self.code = code


class StorageError(CoreError):
    """A file of the state or the cache could not be read or written."""

    code = "storage"

    @classmethod
    def from_os(cls, action: str, path: object, error: OSError) -> StorageError:
        """The error for an `OSError` met while doing `action` ("write", "create", ...) to `path`."""
        hints = {
            errno.ENOSPC: "free some space, or set MSB_HOME to a directory on another file system",
            errno.EDQUOT: "free some space, or set MSB_HOME to a directory outside this quota",
            errno.EACCES: "make the directory writable for you, or set MSB_HOME to one that is",
            errno.EPERM: "make the directory writable for you, or set MSB_HOME to one that is",
            errno.EROFS: "set MSB_HOME to a directory on a writable file system",
            errno.EEXIST: "move that file away, or set MSB_HOME to another directory",
            errno.ENOTDIR: "move that file away, or set MSB_HOME to another directory",
        }
        reason = error.strerror or str(error)
        found = cls(f"cannot {action} {path}: {reason}", hint=hints.get(error.errno or 0))
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            found.code = "no_space"
        return found


class KernelError(CoreError):
    """There is no guest kernel, or the one found cannot be booted."""

    code = "kernel"


class AgentMissing(CoreError):
    """This installation of microsandbox-core has no agentd binary."""

    code = "agent_missing"


class DiskRefused(CoreError):
    """A disk image cannot be opened, is no image, or would let the VMM open other files."""

    code = "disk_refused"


class DiskInUse(DiskRefused):
    """Somebody writes to the disk, or it was to be written to and somebody has it."""

    code = "disk_in_use"


class VmmError(CoreError):
    """The virtual machine monitor cannot do what was asked."""

    code = "vmm"


class VmmNotFound(VmmError):
    """No virtual machine monitor was found on this machine."""

    code = "vmm_not_found"


class SpecInvalid(VmmError):
    """A `VmSpec` describes a machine that cannot be built."""

    code = "spec_invalid"


class Unsupported(VmmError):
    """The driver that runs the machine, or this host, cannot do what was asked; the message says why."""

    code = "unsupported"


class MachineFailed(VmmError):
    """A running machine could not be paused, resumed or saved."""

    code = "machine_failed"


class TemplateFailed(VmmError):
    """A template could not be made or used. Never the end of a start: the machine is booted instead."""

    code = "template_failed"


class BootFailed(VmmError):
    """The machine was started and did not come up.

    `stage` is where it stopped: ``spawn`` (the VMM did not run), ``boot`` (no word from agentd)
    or ``configure`` (agentd refused). `console` is the end of what the guest's kernel and the
    VMM printed, as text.
    """

    code = "boot_failed"

    def __init__(self, message: str, *, stage: str, console: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.stage = stage
        self.console = console
