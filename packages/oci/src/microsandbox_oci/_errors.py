"""Every error this package raises.

::

    ImageError
    ├── ReferenceInvalid        an image name that the reference grammar does not allow (also a ValueError)
    ├── ImageNotFound           no such reference or digest in the store
    ├── ImageInvalid            what the image says about itself and what its bytes are disagree
    │   ├── DigestMismatch      a blob is not the content its digest names
    │   ├── SizeMismatch        a blob is shorter or longer than its descriptor says
    │   ├── LayerInvalid        a layer's tar stream is malformed or truncated
    │   ├── LimitExceeded       larger, deeper or more numerous than the limits allow
    │   └── PlatformMismatch    nothing in the image runs on this platform
    ├── LayerNotKept            an image cannot be saved as it was
    ├── ImageInUse              a running sandbox holds the image
    ├── ArchiveError            the source of a load cannot be used
    │   ├── ArchiveNotFound     there is nothing at that path
    │   └── ArchiveInvalid      neither a docker archive nor an OCI layout or archive, or a damaged one
    ├── RegistryError           a registry did not give what it was asked for
    │   ├── RegistryUnreachable no connection, no answer in time, or trouble with TLS
    │   ├── RegistryDenied      the registry wants (other) credentials, or refuses these
    │   ├── RegistryNotFound    no such repository, tag or digest there
    │   ├── RegistryBusy        too many requests, or failures on its side, until patience ended
    │   ├── RegistryInvalid     an answer that the protocol does not allow
    │   └── RedirectRefused     it sends to an address that nobody outside may choose
    ├── CredentialError         credentials that cannot be read or kept
    └── StoreError              the store's own directory failed
        ├── StoreNotWritable    permission denied, read-only, or not a directory
        └── StoreFull           no space left, quota reached or file size limit

``code`` is stable and meant for programs; ``hint`` is one sentence a person can act on, or ``None``.
"""

from __future__ import annotations

import errno
import os

FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
NOT_WRITABLE_ERRNOS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST})


class ImageError(Exception):
    """Base of everything this package raises on purpose."""

    code: str = "image_error"
    default_hint: str | None = None

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint or self.default_hint


class ReferenceInvalid(ImageError, ValueError):
    """A string that is no image reference; ``text`` is what was given."""

    code = "reference_invalid"
    default_hint = (
        "a reference looks like busybox, registry.example/team/app:1.2 or app@sha256:<64 hex digits>"
    )

    def __init__(self, text: str, reason: str, *, hint: str | None = None) -> None:
        shown = text if len(text) <= 80 else text[:77] + "..."
        super().__init__(f"invalid image reference {shown!r}: {reason}", hint=hint)
        self.text = text


class ImageNotFound(ImageError):
    """The store has no image under that name or digest."""

    code = "image_not_found"


class ImageInvalid(ImageError):
    """An image contradicts itself.

    ``blob`` names the part (``layer sha256:...``, ``manifest``), ``expected`` and ``seen`` hold the two
    values that disagree where there are two.
    """

    code = "image_invalid"
    default_hint = "the image is damaged or badly built: fetch or build it again"

    def __init__(
        self,
        message: str,
        *,
        blob: str | None = None,
        expected: str | None = None,
        seen: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.blob = blob
        self.expected = expected
        self.seen = seen


class DigestMismatch(ImageInvalid):
    """The bytes of ``blob`` hash to ``seen``, not to ``expected``."""

    code = "digest_mismatch"

    def __init__(self, blob: str, *, expected: str, seen: str) -> None:
        super().__init__(
            f"{blob} does not match its digest: expected {expected}, seen {seen}",
            blob=blob,
            expected=expected,
            seen=seen,
            hint="the source is damaged or was tampered with: fetch or save the image again",
        )


class SizeMismatch(ImageInvalid):
    """``blob`` has ``seen`` bytes where its descriptor promises ``expected``."""

    code = "size_mismatch"

    def __init__(self, blob: str, *, expected: int, seen: int) -> None:
        super().__init__(
            f"{blob} has the wrong size: expected {expected} bytes, seen {seen}",
            blob=blob,
            expected=str(expected),
            seen=str(seen),
            hint="the source is truncated or damaged: fetch or save the image again",
        )


class LayerInvalid(ImageInvalid):
    """A layer cannot be converted; ``reason`` is the converter's code, ``entry`` the tar entry or None."""

    code = "layer_invalid"

    def __init__(self, blob: str, message: str, *, reason: str, entry: str | None) -> None:
        where = f" at entry {entry!r}" if entry else ""
        super().__init__(
            f"{blob} cannot be converted{where}: {message}",
            blob=blob,
            hint="the layer is damaged, or larger than the store's limits: fetch or build the image again",
        )
        self.reason = reason
        self.entry = entry


class LimitExceeded(ImageInvalid):
    """Something is larger, deeper or more numerous than the store's `Limits` allow."""

    code = "limit_exceeded"
    default_hint = "if the image comes from someone you trust, raise the limit: $MSB_HOME/limits.toml"


class PlatformMismatch(ImageInvalid):
    """The image has nothing for the store's platform; ``seen`` lists what it has."""

    code = "platform_mismatch"


class LayerNotKept(ImageError):
    """An image cannot be saved: the store has the content of ``layer``, but not its original bytes."""

    code = "layer_not_kept"

    def __init__(self, image: str, layer: str) -> None:
        super().__init__(
            f"image {image} cannot be saved: the original bytes of layer {layer} were not kept",
            hint="pull it with --complete, or load it again",
        )
        self.layer = layer


class ImageInUse(ImageError):
    """A running sandbox holds the image's files."""

    code = "image_in_use"


class ArchiveError(ImageError):
    """The source given to a load cannot be used."""

    code = "archive_error"


class ArchiveNotFound(ArchiveError):
    """Nothing is at the given path, or the archive has no image of the given name."""

    code = "archive_not_found"


class ArchiveInvalid(ArchiveError):
    """The source is not an image archive, or it is a damaged one."""

    code = "archive_invalid"
    default_hint = "copy, download or save the archive again"


class RegistryError(ImageError):
    """A registry did not give what it was asked for; ``registry`` is its domain, ``status`` that of HTTP."""

    code = "registry_error"

    def __init__(
        self, registry: str, message: str, *, status: int | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.registry = registry
        self.status = status


class RegistryUnreachable(RegistryError):
    """No connection to the registry, no answer in time, or its certificate is not trusted.

    ``passing`` says whether the same request may succeed a little later.
    """

    code = "registry_unreachable"
    default_hint = "check the name, the network and the proxy settings"

    def __init__(
        self, registry: str, message: str, *, passing: bool = False, hint: str | None = None
    ) -> None:
        super().__init__(registry, message, hint=hint)
        self.passing = passing


class RegistryDenied(RegistryError):
    """The registry wants credentials, or refuses those it got."""

    code = "registry_denied"


class RegistryNotFound(RegistryError):
    """The registry has no such repository, tag or digest, or does not show it to this user."""

    code = "registry_not_found"
    default_hint = "check the spelling; a private image also needs a login"


class RegistryBusy(RegistryError):
    """The registry answered with 429 or a failure of its own until patience ended."""

    code = "registry_busy"
    default_hint = "try again later, or configure a mirror"


class RegistryInvalid(RegistryError):
    """An answer that the distribution protocol does not allow."""

    code = "registry_invalid"
    default_hint = "is it a registry at all? A captive portal or a proxy may have answered in its place"


class RedirectRefused(RegistryError):
    """The registry sends to another protocol, or to an address inside the network (O14)."""

    code = "redirect_refused"
    default_hint = "if that host is meant, name it under redirect_hosts in the registry configuration"


class CredentialError(ImageError):
    """Credentials cannot be read or kept."""

    code = "credential_error"


class StoreError(ImageError):
    """The store's directory failed: ``errno`` and ``path`` say how and where."""

    code = "store_error"

    def __init__(self, message: str, *, errno: int | None, path: str | None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.errno = errno
        self.path = path


class StoreNotWritable(StoreError):
    """The store's directory cannot be written."""

    code = "store_not_writable"


class StoreFull(StoreError):
    """The file system of the store has no room left, or a quota or file size limit was reached."""

    code = "store_full"


def store_error(error: OSError, *, doing: str, path: str | os.PathLike[str]) -> StoreError:
    """Return the `StoreError` for an `OSError` seen while ``doing`` something under ``path``."""
    where = os.fspath(path)
    message = f"{doing} failed in the image store {where}: {error.strerror or error}"
    if error.errno in FULL_ERRNOS:
        return StoreFull(
            message,
            errno=error.errno,
            path=where,
            hint="free some space on that file system; nothing half-written was kept",
        )
    if error.errno in NOT_WRITABLE_ERRNOS:
        return StoreNotWritable(
            message, errno=error.errno, path=where, hint="choose a directory that you can write to"
        )
    return StoreError(message, errno=error.errno, path=where)
