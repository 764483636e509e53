"""Virtual machine monitors: one protocol, a driver for each.

Nothing above this package knows which driver runs. `choose()` picks one, `Vmm.start(spec)`
returns a running `Vm` whose sockets are already connected.
"""

from microsandbox_core.vmm._select import choose
from microsandbox_core.vmm._spec import (
    Capability,
    Disk,
    DiskCopy,
    DiskFormat,
    Isolation,
    Root,
    Vm,
    Vmm,
    VmSpec,
    device,
)
from microsandbox_core.vmm._start import ensure_template, start, start_mounted

__all__ = [
    "Capability",
    "Disk",
    "DiskCopy",
    "DiskFormat",
    "Isolation",
    "Root",
    "Vm",
    "VmSpec",
    "Vmm",
    "choose",
    "device",
    "ensure_template",
    "start",
    "start_mounted",
]
