"""Creating a sandbox in the place of the one that has its name."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from microsandbox import _create
from microsandbox._config import SandboxConfig
from microsandbox._create import Held, Pending
from microsandbox._directory import SandboxDirectory
from microsandbox.errors import AlreadyExists, SandboxNotFound, StillRunning

if TYPE_CHECKING:
    from microsandbox_oci import Image

    from microsandbox.patch import Patch


def begin(
    home: Path,
    image: Image,
    config: SandboxConfig,
    *,
    shown_image: str,
    name: str,
    grace: float,
    attached: bool = True,
    ephemeral: bool = False,
    labels: tuple[tuple[str, str], ...] = (),
    patches: Sequence[Patch] = (),
) -> Pending:
    """`_create.begin`, after which there is one sandbox of this name and it is the new one.

    The old one is stopped within `grace` seconds (0: at once). It keeps its name until the new one is
    recorded, so there is no moment in which somebody else could take that. Not for use in an event loop.
    """
    while True:
        held = _vacate(home, name, grace)
        try:
            return _create.begin(
                home, image, config, shown_image=shown_image, name=name, attached=attached,
                ephemeral=ephemeral, labels=labels, patches=patches, instead_of=held,
            )  # fmt: skip
        except AlreadyExists:
            if held is not None:
                raise
            # There was none, and somebody has created one since.


def make_room(home: Path, name: str, grace: float) -> None:
    """Stop the sandbox of this name, if there is one that runs."""
    try:
        record = _create.find(home, name)
    except SandboxNotFound:
        return
    _end(SandboxDirectory(home, record.id), grace)


def _vacate(home: Path, name: str, grace: float) -> Held | None:
    """Stop the sandbox of this name and keep others from starting it; None if there is none."""
    while True:
        try:
            return _create.hold(home, name)
        except SandboxNotFound:
            return None
        except StillRunning:
            make_room(home, name, grace)


def _end(directory: SandboxDirectory, grace: float) -> None:
    from microsandbox import _ending

    async def main() -> None:
        if grace:
            await _ending.stop(directory, grace, number=signal.SIGUSR1)
        else:
            await _ending.kill(directory, signal.SIGUSR1)

    asyncio.run(main())
