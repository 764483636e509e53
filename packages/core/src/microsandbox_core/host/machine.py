"""What kind of machine this is, as far as setup and doctor care."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """Facts that decide how something missing can be installed."""

    system: str  # "Linux"
    architecture: str  # "x86_64"
    distribution: str  # os-release ID, or ""
    name: str  # os-release PRETTY_NAME, or the system's name
    codename: str  # os-release VERSION_CODENAME, or ""
    has_apt: bool
    is_root: bool

    @property
    def supported(self) -> bool:
        """Whether sandboxes can run here at all."""
        return self.system == "Linux" and self.architecture == "x86_64"


def this_machine() -> Machine:
    """The facts about the machine we run on."""
    from microsandbox_core.host import apt

    uname = os.uname()
    release = _os_release()
    return Machine(
        system=uname.sysname,
        architecture=uname.machine,
        distribution=release.get("ID", ""),
        name=release.get("PRETTY_NAME", uname.sysname),
        codename=release.get("VERSION_CODENAME", ""),
        has_apt=apt.available(),
        is_root=os.geteuid() == 0,
    )


def _os_release() -> dict[str, str]:
    import platform

    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}
