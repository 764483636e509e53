"""How this copy of microsandbox came onto the machine, and so what updates and removes it.

Read from the records that installers leave: INSTALLER and direct_url.json beside the package's metadata
(PEP 376, PEP 610), `uv-receipt.toml` and `pipx_metadata.json` at the root of an environment,
EXTERNALLY-MANAGED (PEP 668).
"""

from __future__ import annotations

import json
import shutil
import sys
import sysconfig
from enum import StrEnum
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

PACKAGE = "microsandbox-cli"
PACKAGES = (
    PACKAGE,
    "microsandbox",
    "microsandbox-core",
    "microsandbox-oci",
    "microsandbox-net",
    "microsandbox-fs",
)
"""All that comes with the command line."""


class Kind(StrEnum):
    """What looks after the installation."""

    UV_TOOL = "uv tool"
    PIPX = "pipx"
    UV_PIP = "uv pip"
    PIP = "pip"
    CHECKOUT = "a checkout"
    SYSTEM = "the system's package manager"


class Installation(NamedTuple):
    """This copy. `python`: the interpreter of its environment; `place`: the environment, or the checkout."""

    kind: Kind
    version: str
    python: Path
    place: Path

    def update_command(self) -> list[str] | None:
        """What brings the newest version; None if that is not for a command to decide."""
        match self.kind:
            case Kind.UV_TOOL:
                return ["uv", "tool", "upgrade", self.place.name]
            case Kind.PIPX:
                return ["pipx", "upgrade", self.place.name]
            case Kind.UV_PIP:
                return ["uv", "pip", "install", "--python", str(self.python), "--upgrade", PACKAGE]
            case Kind.PIP:
                return [str(self.python), "-m", "pip", "install", "--upgrade", PACKAGE]
            case _:
                return None

    def update_advice(self) -> str:
        """What to do where there is no command."""
        if self.kind is Kind.CHECKOUT:
            return f"git -C {self.place} pull && make -C {self.place} setup"
        return "update it with your system's package manager, as in: sudo apt-get upgrade"

    def removal_command(self) -> list[str] | None:
        """What removes the packages; None if that is not for a command to decide."""
        match self.kind:
            case Kind.UV_TOOL:
                return ["uv", "tool", "uninstall", self.place.name]
            case Kind.PIPX:
                return ["pipx", "uninstall", self.place.name]
            case Kind.UV_PIP:
                return ["uv", "pip", "uninstall", "--python", str(self.python), *PACKAGES]
            case Kind.PIP:
                return [str(self.python), "-m", "pip", "uninstall", "--yes", *PACKAGES]
            case _:
                return None

    def removal_advice(self) -> str:
        """What to do where there is no command."""
        if self.kind is Kind.CHECKOUT:
            return f"rm -r {self.place}"
        return "remove it with your system's package manager"


def detect(
    found: Distribution | None = None,
    *,
    prefix: Path | None = None,
    python: Path | None = None,
    stdlib: Path | None = None,
) -> Installation | None:
    """How it was installed; None if no installer has left a record. The arguments are for tests."""
    if found is None:
        try:
            found = distribution(PACKAGE)
        except PackageNotFoundError:
            return None
    prefix = prefix or Path(sys.prefix)
    python = python or Path(sys.executable)
    checkout = _checkout(found)
    if checkout is not None:
        return Installation(Kind.CHECKOUT, found.version, python, checkout)
    installer = (found.read_text("INSTALLER") or "").strip()
    if (prefix / "uv-receipt.toml").exists():
        kind = Kind.UV_TOOL
    elif (prefix / "pipx_metadata.json").exists():
        kind = Kind.PIPX
    elif installer not in ("pip", "uv") or _is_managed(prefix, stdlib):
        kind = Kind.SYSTEM
    else:
        kind = Kind.UV_PIP if installer == "uv" else Kind.PIP
    return Installation(kind, found.version, python, prefix)


def _checkout(found: Distribution) -> Path | None:
    """The root of the checkout that the package is imported from."""
    try:
        about = json.loads(found.read_text("direct_url.json") or "{}")
        if not about.get("dir_info", {}).get("editable"):
            return None
        place = Path(str(about["url"]).removeprefix("file://"))
    except (ValueError, KeyError, AttributeError):
        return None
    return next((parent for parent in place.parents if (parent / "Makefile").exists()), place)


def _is_managed(prefix: Path, stdlib: Path | None) -> bool:
    if stdlib is None:
        if prefix != Path(sys.base_prefix):
            return False
        stdlib = Path(sysconfig.get_path("stdlib"))
    return (stdlib / "EXTERNALLY-MANAGED").exists()


def missing_program(command: list[str]) -> str | None:
    """The program of a command, if there is none of that name."""
    return None if shutil.which(command[0]) else command[0]
