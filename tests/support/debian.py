"""Debian guests with real programs, for tests that are asked for: `MSB_TEST_DEBIAN=DIRECTORY`.

DIRECTORY holds root file systems, each by a name; where there is none, debootstrap makes it there, from
Debian's mirror, which takes some minutes.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.msb import Msb

DIRECTORY = os.environ.get("MSB_TEST_DEBIAN")


def root(name: str, packages: str) -> Path:
    """A root file system with these packages, separated by commas."""
    assert DIRECTORY is not None
    found = Path(DIRECTORY).resolve() / name
    if not found.exists():
        made = found.with_name("unfinished")
        # The archive's own programs resolve what debootstrap cannot: packages that others provide.
        inside = ["unshare", "--pid", "--fork", f"--mount-proc={made / 'proc'}", "chroot", str(made)]
        apt = ["apt-get", "install", "-qy", "--no-install-recommends", *packages.split(",")]
        _run("debootstrap", "--variant=minbase", "stable", made)
        _run(*inside, "env", "DEBIAN_FRONTEND=noninteractive", *apt)
        made.rename(found)
    return found


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=1000)
    if done.returncode != 0:
        pytest.skip(f"{command[0]}: {(done.stderr or done.stdout).splitlines()[-1]}")


class Debian:
    """A guest that runs."""

    def __init__(self, msb: Msb, name: str) -> None:
        self._msb = msb
        self._name = name

    def __call__(self, script: str, *arguments: str, stdin: str = "") -> str:
        """What a shell script prints, which has to succeed."""
        command = ["sh", "-ec", script, "sh", *arguments]
        done = self._msb("exec", self._name, "--", *command, stdin=stdin.encode(), timeout=280)
        return done.succeeded().text
