"""Which Linux a libkrunfw carries."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def kernel_release(library: Path) -> str:
    """The release of the kernel inside, such as `6.12.91`: loads the library and looks.

    Raises KernelError if the file cannot be loaded or holds no Linux kernel.
    """
    import re

    from microsandbox_core.errors import KernelError
    from microsandbox_core.kernel import read_libkrunfw

    banner = re.search(rb"Linux version (\S{1,64}) ", read_libkrunfw(library).data)
    if banner is None:
        raise KernelError(
            f"the kernel in {library} does not say which Linux it is",
            hint="remove the file, then run `msb setup`",
        )
    return banner.group(1).decode("ascii", "replace")
