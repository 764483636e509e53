"""Where libkrunfw.so.5 is on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from microsandbox_core import env

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SONAME = "libkrunfw.so.5"

_LD_SO_CONF = "/etc/ld.so.conf"
# What ld.so searches after its configuration (ld.so(8)), with Debian's and Fedora's 64-bit names.
_DEFAULT_DIRECTORIES = (
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
)


def installed_path(home: Path) -> Path:
    """Where setup puts the library."""
    return home / "lib" / SONAME


def find_libkrunfw(home: Path, explicit: Path | None = None) -> Path | None:
    """The library to use, or None.

    An explicit setting (`explicit`, else `$MSB_LIBKRUNFW`) is the only place looked at: one that
    names no file gives None, because booting some other kernel than the one that was asked for
    would be worse than not booting. Without one: `home/lib`, then the system's library directories.
    """
    setting = explicit or env.path(env.MSB_LIBKRUNFW)
    if setting is not None:
        return setting if setting.is_file() else None
    own = installed_path(home)
    if own.is_file():
        return own
    for directory in library_directories():
        found = Path(directory, SONAME)
        if found.is_file():
            return found
    return None


def library_directories(
    ld_so_conf: str = _LD_SO_CONF, defaults: Sequence[str] = _DEFAULT_DIRECTORIES
) -> list[str]:
    """The directories the dynamic loader searches, in its order.

    Read from the loader's configuration and not from `ldconfig -p`: /usr/sbin is often missing from
    a user's PATH, and starting a program costs more than reading five files.
    """
    return list(dict.fromkeys([*_configured(ld_so_conf, depth=0), *defaults]))


def _configured(conf: str, depth: int) -> Iterator[str]:
    import glob

    if depth > 4:  # an include that includes itself
        return
    try:
        with open(conf, encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123
            lines = file.read().splitlines()
    except OSError:
        return
    for raw in lines:
        line = raw.partition("#")[0].strip()
        if line.startswith("include ") or line.startswith("include\t"):
            for pattern in line.split()[1:]:
                base = os.path.dirname(conf)  # noqa: PTH120
                for included in sorted(glob.glob(os.path.join(base, pattern))):  # noqa: PTH118, PTH207
                    yield from _configured(included, depth + 1)
        elif line.startswith("/"):
            yield line.rstrip("/") or "/"
