"""OCI images as EROFS disks: archives, layouts, an image store; no root, no unpacking.

>>> from microsandbox_oci import ImageStore
>>> store = ImageStore("/var/tmp/images")                     # doctest: +SKIP
>>> [image] = store.load("docker-archive:busybox.tar")        # doctest: +SKIP
>>> store.get("busybox").disk                                 # doctest: +SKIP
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from microsandbox_oci._abort import Abort
    from microsandbox_oci._argument import (
        ArchiveForm,
        ArchivePath,
        ImageArgument,
        LayoutPath,
        RootfsDirectory,
        classify_image_argument,
    )
    from microsandbox_oci._config import ImageConfig
    from microsandbox_oci._credentials import (
        Chain,
        CredentialFile,
        Credentials,
        CredentialSource,
        DockerConfig,
        Fixed,
    )
    from microsandbox_oci._errors import (
        ArchiveError,
        ArchiveInvalid,
        ArchiveNotFound,
        CredentialError,
        DigestMismatch,
        ImageError,
        ImageInUse,
        ImageInvalid,
        ImageNotFound,
        LayerInvalid,
        LayerNotKept,
        LimitExceeded,
        PlatformMismatch,
        RedirectRefused,
        ReferenceInvalid,
        RegistryBusy,
        RegistryDenied,
        RegistryError,
        RegistryInvalid,
        RegistryNotFound,
        RegistryUnreachable,
        SizeMismatch,
        StoreError,
        StoreFull,
        StoreNotWritable,
    )
    from microsandbox_oci._history import Step
    from microsandbox_oci._in_use import open_in_use_lock
    from microsandbox_oci._limits import Limits
    from microsandbox_oci._model import Image, Layer
    from microsandbox_oci._platform import Platform
    from microsandbox_oci._progress import Phase, Progress, ProgressCallback, Removed
    from microsandbox_oci._reference import Reference
    from microsandbox_oci._registry import RegistryClient
    from microsandbox_oci._registry_options import OptionsInvalid, Registries, RegistryOptions
    from microsandbox_oci._save import SaveFormat
    from microsandbox_oci._store import ImageStore
    from microsandbox_oci._verify import Verified

__version__ = "0.1.0"

__all__ = [
    "Abort",
    "ArchiveError",
    "ArchiveForm",
    "ArchiveInvalid",
    "ArchiveNotFound",
    "ArchivePath",
    "Chain",
    "CredentialError",
    "CredentialFile",
    "CredentialSource",
    "Credentials",
    "DigestMismatch",
    "DockerConfig",
    "Fixed",
    "Image",
    "ImageArgument",
    "ImageConfig",
    "ImageError",
    "ImageInUse",
    "ImageInvalid",
    "ImageNotFound",
    "ImageStore",
    "Layer",
    "LayerInvalid",
    "LayerNotKept",
    "LayoutPath",
    "LimitExceeded",
    "Limits",
    "OptionsInvalid",
    "Phase",
    "Platform",
    "PlatformMismatch",
    "Progress",
    "ProgressCallback",
    "RedirectRefused",
    "Reference",
    "ReferenceInvalid",
    "Registries",
    "RegistryBusy",
    "RegistryClient",
    "RegistryDenied",
    "RegistryError",
    "RegistryInvalid",
    "RegistryNotFound",
    "RegistryOptions",
    "RegistryUnreachable",
    "Removed",
    "RootfsDirectory",
    "SaveFormat",
    "SizeMismatch",
    "Step",
    "StoreError",
    "StoreFull",
    "StoreNotWritable",
    "Verified",
    "classify_image_argument",
    "open_in_use_lock",
]

# Creating a dataclass takes about 0.7 ms of every start of a sandbox, and importing what does it 5 ms: what a
# start uses are named tuples, and each name's module is imported when the name is first used (PEP 562). The
# rest are errors.
_MODULES = {
    "Abort": "_abort",
    "ImageConfig": "_config",
    "ImageStore": "_store",
    "Limits": "_limits",
    "Platform": "_platform",
    "Reference": "_reference",
    "open_in_use_lock": "_in_use",
    "RegistryClient": "_registry",
    "SaveFormat": "_save",
    "Step": "_history",
    "Verified": "_verify",
    **dict.fromkeys(
        ("Chain", "CredentialFile", "CredentialSource", "Credentials", "DockerConfig", "Fixed"),
        "_credentials",
    ),
    **dict.fromkeys(("OptionsInvalid", "Registries", "RegistryOptions"), "_registry_options"),
    **dict.fromkeys(("Image", "Layer"), "_model"),
    **dict.fromkeys(("Phase", "Progress", "ProgressCallback", "Removed"), "_progress"),
    **dict.fromkeys(
        (
            "ArchiveForm",
            "ArchivePath",
            "ImageArgument",
            "LayoutPath",
            "RootfsDirectory",
            "classify_image_argument",
        ),
        "_argument",
    ),
}


if not TYPE_CHECKING:  # a type checker would take it as leave to import any name from here

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(_import_module(f"{__name__}.{_MODULES.get(name, '_errors')}"), name)
        globals()[name] = value
        return value
