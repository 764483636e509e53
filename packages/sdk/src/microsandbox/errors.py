"""Everything that can go wrong, as one tree.

::

    MicrosandboxError            .code  .hint
    ├── ConfigError              a setting that cannot be used; also a ValueError
    │   └── NetworkPolicyError   a network policy, or a rule of one
    ├── ImageError
    │   ├── ImageNotFound
    │   ├── PullFailed           its registry did not give it
    │   ├── ImageInUse
    │   └── ImageInvalid
    ├── StartError
    │   ├── NoHypervisor
    │   └── BootFailed           .stage  .console
    ├── SandboxError
    │   ├── SandboxNotFound
    │   ├── AlreadyExists
    │   ├── NotRunning
    │   │   └── Paused           its processors stand still
    │   ├── Unsupported          the VMM that runs it cannot do what was asked
    │   ├── StillRunning
    │   └── Replaced             another sandbox of its name took its place
    ├── ExecError
    │   ├── ExecFailed           .kind
    │   ├── ExecTimeout          .output
    │   ├── NetworkLost          the sandbox goes on without its network
    │   └── OutcomeUnknown
    ├── FilesystemError          .errno
    │   ├── PathNotFound
    │   └── WorkspaceConflict    .conflicts
    ├── VolumeError              .kind
    │   ├── VolumeNotFound
    │   ├── VolumeExists
    │   └── VolumeInUse          a sandbox has it, or another one writes to it
    ├── PoolClosed               a pool gives out no sandboxes any more, or not yet
    └── StateError               the state directory or its database cannot be used
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from microsandbox.execution import ExecOutput


class MicrosandboxError(Exception):
    """Base of all errors: `str(error)` says what happened, `hint` what to do about it."""

    code = "error"

    def __init__(self, message: str, *, hint: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        if code is not None:
            self.code = code


class ConfigError(MicrosandboxError, ValueError):
    """A setting that cannot be used; the message names it."""

    code = "config"


class NetworkPolicyError(ConfigError):
    """A network policy, a rule, or a question to one, that is not what it has to be."""

    code = "network_policy"


class ImageError(MicrosandboxError):
    """An image cannot be found, read or used."""

    code = "image"


class ImageNotFound(ImageError):
    """No image of that name is in the store."""

    code = "image_not_found"


class PullFailed(ImageError):
    """A registry did not give the image: not found, denied, unreachable or misbehaving; see `code`."""

    code = "pull_failed"


class ImageInvalid(ImageError):
    """The image's content is damaged or not what it claims to be."""

    code = "image_invalid"


class ImageInUse(ImageError):
    """The image cannot be removed while a sandbox uses it."""

    code = "image_in_use"


class StartError(MicrosandboxError):
    """A sandbox could not be started."""

    code = "start"


class NoHypervisor(StartError):
    """No virtual machine monitor, or none with the isolation that was required."""

    code = "no_hypervisor"


class BootFailed(StartError):
    """The machine did not come up. `stage`: ``spawn``, ``boot`` or ``configure``; `console`: the
    end of what the guest's kernel and the VMM printed."""

    code = "boot_failed"

    def __init__(self, message: str, *, stage: str, console: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.stage = stage
        self.console = console


class SandboxError(MicrosandboxError):
    """Base of the errors about a sandbox's existence and state."""

    code = "sandbox"


class SandboxNotFound(SandboxError):
    """There is no sandbox of that name."""

    code = "sandbox_not_found"


class AlreadyExists(SandboxError):
    """A sandbox of that name exists."""

    code = "already_exists"


class NotRunning(SandboxError):
    """The sandbox is not running, or stopped in the meantime."""

    code = "not_running"


class Paused(NotRunning):
    """The sandbox is paused: nothing can be done in it until it is resumed."""

    code = "paused"


def paused(name: str) -> Paused:
    """The error for whatever is asked of the sandbox of this name."""
    return Paused(f"the sandbox {name!r} is paused", hint=f"let it go on: msb resume {name}")


class Unsupported(SandboxError):
    """The VMM that runs the sandbox, or this host, cannot do what was asked; the message says why."""

    code = "unsupported"


class StillRunning(SandboxError):
    """The sandbox has to be stopped first."""

    code = "still_running"


class Replaced(SandboxError):
    """Another sandbox of its name took its place while it was starting."""

    code = "replaced"


class ExecError(MicrosandboxError):
    """A command could not be run, or its end was not seen."""

    code = "exec"


class ExecFailed(ExecError):
    """The command was not started. `kind`: ``not_found``, ``permission_denied``, ``bad_cwd``,
    ``user_not_found``, ``exec_failed``, ``unsupported`` or ``invalid_request``."""

    code = "exec_failed"

    def __init__(self, message: str, *, kind: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind


class ExecTimeout(ExecError):
    """The command was killed at its time limit; `output` is what it had printed by then."""

    code = "exec_timeout"

    def __init__(self, message: str, *, output: ExecOutput) -> None:
        super().__init__(message)
        self.output = output


class OutcomeUnknown(ExecError):
    """The connection was lost after the command had been sent: it may or may not have run."""

    code = "outcome_unknown"


class NetworkLost(ExecError):
    """A command ended in a sandbox that had lost its network before or meanwhile: what it could not reach
    says nothing. What it printed has been passed on; the sandbox goes on without a network."""

    code = "network_lost"


class FilesystemError(MicrosandboxError):
    """Something could not be done to a file of a sandbox, or of the host while copying; `errno` as in
    the `errno` module, if a system call failed."""

    code = "filesystem"

    def __init__(
        self, message: str, *, hint: str | None = None, code: str | None = None, errno: int | None = None
    ) -> None:
        super().__init__(message, hint=hint, code=code)
        self.errno = errno


class PathNotFound(FilesystemError):
    """There is nothing at that path."""

    code = "path_not_found"


class WorkspaceConflict(FilesystemError):
    """The host has changed what a sandbox has changed as well: nothing was brought to it. `conflicts`: paths
    in the sandbox, and what the host did."""

    code = "workspace_conflict"

    def __init__(self, name: str, conflicts: list[tuple[str, str]]) -> None:
        listed = "; ".join(f"{path}: {reason}" for path, reason in conflicts[:10])
        more = f"; and {len(conflicts) - 10} more" if len(conflicts) > 10 else ""
        super().__init__(
            f"the host has changed meanwhile what {name!r} has changed: {listed}{more}",
            hint=f"look at them, then have the sandbox's version with: msb apply --force {name} PATH",
        )
        self.conflicts = conflicts


class VolumeError(MicrosandboxError):
    """A volume or a disk image cannot be used. `kind`, which is also the `code`, is one of
    ``volume_not_found``, ``volume_exists``, ``volume_in_use``, ``volume_damaged``, ``disk_refused`` (no image
    that may be attached) and ``disk_in_use``."""

    code = "volume"

    @property
    def kind(self) -> str:
        """The code."""
        return self.code


class VolumeNotFound(VolumeError):
    """There is no volume of that name."""

    code = "volume_not_found"


class VolumeExists(VolumeError):
    """A volume of that name exists."""

    code = "volume_exists"


class VolumeInUse(VolumeError):
    """A sandbox has it, or somebody who writes to it does."""

    code = "volume_in_use"


class PoolClosed(MicrosandboxError):
    """A pool has been closed, or has not been entered yet."""

    code = "pool_closed"


class StateError(MicrosandboxError):
    """The state directory or its database cannot be used."""

    code = "state"


@contextmanager
def translated() -> Iterator[None]:
    """Raise the errors of the packages underneath as the ones of this module.

    They stay reachable as `__cause__`. Everything else passes unchanged.
    """
    try:
        yield
    except _foreign() as error:
        raise _translate(error) from error


def _foreign() -> tuple[type[Exception], ...]:
    # Evaluated only when something is raised, and only for packages that are loaded by then: a package
    # that was never imported cannot have raised, and importing it to find that out would cost a start.
    found: list[type[Exception]] = []
    if "microsandbox_core.errors" in sys.modules:
        found.append(sys.modules["microsandbox_core.errors"].CoreError)
    if "microsandbox_oci" in sys.modules:
        found.append(sys.modules["microsandbox_oci"].ImageError)
    if "microsandbox_net" in sys.modules:
        found.append(sys.modules["microsandbox_net"].PolicyError)
    return tuple(found)


def _translate(error: Exception) -> MicrosandboxError:
    if type(error).__module__.startswith("microsandbox_oci"):
        return _from_oci(error)
    if type(error).__module__.startswith("microsandbox_net"):
        return NetworkPolicyError(str(error), hint=getattr(error, "hint", None))
    return _from_core(error)


def _from_core(error: Exception) -> MicrosandboxError:
    from microsandbox_core import errors as core

    hint: str | None = getattr(error, "hint", None)
    code: str | None = getattr(error, "code", None)
    if isinstance(error, core.BootFailed):
        return BootFailed(str(error), stage=error.stage, console=error.console, hint=hint)
    if isinstance(error, core.DiskRefused):
        kind = VolumeInUse if isinstance(error, core.DiskInUse) else VolumeError
        return kind(str(error), hint=hint, code=code)
    if isinstance(error, core.StorageError):
        return StateError(str(error), hint=hint, code=code)
    if isinstance(error, core.SpecInvalid):
        return ConfigError(str(error), hint=hint)
    if isinstance(error, core.Unsupported):
        return Unsupported(str(error), hint=hint, code=code)
    if isinstance(error, core.VmmError):
        return NoHypervisor(str(error), hint=hint, code=code)
    if isinstance(error, core.CoreError):
        return StartError(str(error), hint=hint, code=code)
    return MicrosandboxError(str(error), hint=hint, code=code)


def _from_oci(error: Exception) -> MicrosandboxError:
    import microsandbox_oci as oci

    hint: str | None = getattr(error, "hint", None)
    code: str | None = getattr(error, "code", None)
    message = str(error)
    if isinstance(error, oci.ImageNotFound):
        return ImageNotFound(message, hint=hint, code=code)
    if isinstance(error, oci.ImageInUse):
        return ImageInUse(message, hint=hint, code=code)
    if isinstance(error, oci.ImageInvalid):
        return ImageInvalid(message, hint=hint, code=code)
    if isinstance(error, oci.RegistryError):
        return PullFailed(message, hint=hint, code=code)
    if isinstance(error, oci.StoreError):
        return StateError(message, hint=hint or "check MSB_HOME, and its file system", code=code)
    return ImageError(message, hint=hint, code=code)
