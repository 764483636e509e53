"""File broker that shares host directories with microVMs.

See `features()` for what this version can do.
"""

from microsandbox_fs._broker import Broker, Cache, Device, MalformedMessage, Ownership, Quota, ShareOptions
from microsandbox_fs._native import __version__, confined, openat2

__all__ = [
    "Broker",
    "Cache",
    "Device",
    "MalformedMessage",
    "Ownership",
    "Quota",
    "ShareOptions",
    "__version__",
    "features",
]


def features() -> frozenset[str]:
    """Names of the parts that work in this version, on this kernel.

    `broker` answers requests, `serve` those of a stream, `device` those of virtio-fs, `file` shares single
    files, `quota` bounds what a share holds, `watch` tells the guest what the host changes. `openat2`: the
    kernel keeps paths beneath the root; `landlock`: it confines the threads that serve. Parts are added and
    never taken away.
    """
    kernel = {"openat2": openat2(), "landlock": confined()}
    parts = ("broker", "serve", "device", "file", "quota", "watch")
    return frozenset({*parts, *(name for name, there in kernel.items() if there)})
