"""The versions that the system's programs report."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def qemu_version(qemu: Path) -> tuple[int, ...] | None:
    """The version `qemu` reports, such as (7, 2, 22); None if it does not run or says something else."""
    import re

    found = re.search(r"version (\d+(?:\.\d+)+)", _first_line(qemu, "--version"))
    return tuple(int(part) for part in found.group(1).split(".")) if found else None


def mke2fs_version(mke2fs: str) -> str | None:
    """The version `mke2fs` reports, such as `1.47.0`; None if it does not run."""
    import re

    found = re.search(r"mke2fs (\d[\w.]*)", _first_line(mke2fs, "-V"))
    return found.group(1) if found else None


def _first_line(program: str | Path, option: str) -> str:
    import subprocess

    try:
        done = subprocess.run(
            [program, option],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace").partition("\n")[0]
