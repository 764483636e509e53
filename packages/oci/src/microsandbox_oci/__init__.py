"""OCI images as EROFS disks: archives, layouts, an image store; no root, no unpacking.

>>> from microsandbox_oci import ImageStore
>>> store = ImageStore("/var/tmp/images")                     # doctest: +SKIP
>>> [image] = store.load("docker-archive:busybox.tar")        # doctest: +SKIP
>>> store.get("busybox").disk                                 # doctest: +SKIP
"""

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
from microsandbox_oci._model import Image, Layer, Phase, Progress, ProgressCallback, Removed
from microsandbox_oci._platform import Platform
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
