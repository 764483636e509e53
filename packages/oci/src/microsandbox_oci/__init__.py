"""OCI images as EROFS disks: archives, layouts, an image store; no root, no unpacking.

>>> from microsandbox_oci import ImageStore
>>> store = ImageStore("/var/tmp/images")                     # doctest: +SKIP
>>> [image] = store.load("docker-archive:busybox.tar")        # doctest: +SKIP
>>> store.get("busybox").disk                                 # doctest: +SKIP
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from microsandbox_oci._argument import (
        ArchiveForm,
        ArchivePath,
        ImageArgument,
        LayoutPath,
        RootfsDirectory,
        classify_image_argument,
    )
    from microsandbox_oci._config import ImageConfig
    from microsandbox_oci._errors import (
        ArchiveError,
        ArchiveInvalid,
        ArchiveNotFound,
        DigestMismatch,
        ImageError,
        ImageInUse,
        ImageInvalid,
        ImageNotFound,
        LayerInvalid,
        LimitExceeded,
        PlatformMismatch,
        ReferenceInvalid,
        SizeMismatch,
        StoreError,
        StoreFull,
        StoreNotWritable,
    )
    from microsandbox_oci._in_use import open_in_use_lock
    from microsandbox_oci._limits import Limits
    from microsandbox_oci._model import Image, Layer
    from microsandbox_oci._platform import Platform
    from microsandbox_oci._progress import Phase, Progress, ProgressCallback, Removed
    from microsandbox_oci._reference import Reference
    from microsandbox_oci._store import ImageStore

__version__ = "0.1.0"

__all__ = [
    "ArchiveError",
    "ArchiveForm",
    "ArchiveInvalid",
    "ArchiveNotFound",
    "ArchivePath",
    "DigestMismatch",
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
    "LayoutPath",
    "LimitExceeded",
    "Limits",
    "Phase",
    "Platform",
    "PlatformMismatch",
    "Progress",
    "ProgressCallback",
    "Reference",
    "ReferenceInvalid",
    "Removed",
    "RootfsDirectory",
    "SizeMismatch",
    "StoreError",
    "StoreFull",
    "StoreNotWritable",
    "classify_image_argument",
    "open_in_use_lock",
]

# Creating a dataclass takes about 0.7 ms of every start of a sandbox, so each name's module is imported
# when the name is first used (PEP 562). The rest are errors.
_MODULES = {
    "ImageConfig": "_config",
    "ImageStore": "_store",
    "Limits": "_limits",
    "Platform": "_platform",
    "Reference": "_reference",
    "open_in_use_lock": "_in_use",
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
