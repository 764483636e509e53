"""Errors of setup, a branch of core's tree.

::

    CoreError
    ├── StorageError         the state directory cannot be created or written, or is full
    └── SetupError
        ├── NeedsRoot        a system package is missing and this user may not install it
        ├── BadSetting       an environment variable names something that is not there
        ├── UnsupportedHost  not Debian, not x86-64: nothing here knows how to install things
        ├── NoMirror         apt's sources name no Debian mirror to derive a private one from
        ├── NoSuchPackage    the mirror answers, and does not have the package
        ├── NetworkDown      the mirror cannot be reached
        ├── SignatureFailure what came back is not what Debian signed
        ├── NoSpace          a file system that apt writes to is full
        ├── AptBusy          another program holds apt's or dpkg's lock
        ├── AptFailed        apt said something that is none of the above
        └── BadPackage       the package came, and does not hold a usable library
"""

from __future__ import annotations

from microsandbox_core.errors import CoreError


class SetupError(CoreError):
    """Something that setup could not do: the message says what, `hint` (always there) what helps."""

    code = "setup"

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message, hint=hint)


class NeedsRoot(SetupError):
    code = "needs_root"


class BadSetting(SetupError):
    code = "bad_setting"


class UnsupportedHost(SetupError):
    code = "unsupported_host"


class NoMirror(SetupError):
    code = "no_mirror"


class NoSuchPackage(SetupError):
    code = "no_such_package"


class NetworkDown(SetupError):
    code = "network_down"


class SignatureFailure(SetupError):
    code = "signature_failure"


class NoSpace(SetupError):
    code = "no_space"


class AptBusy(SetupError):
    code = "apt_busy"


class AptFailed(SetupError):
    code = "apt_failed"


class BadPackage(SetupError):
    code = "bad_package"
