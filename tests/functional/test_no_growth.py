"""Many runs in a row leave nothing: no process, descriptor, file, row, shared memory."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from tests.support.msb import Msb
from tests.support.process import zombies_of

pytestmark = [pytest.mark.vm, pytest.mark.slow]

RUNS = int(os.environ.get("MSB_TEST_RUNS", "20"))
"""The promise is about 1,000; a whole one takes half an hour where guests are emulated."""


def _seen(msb: Msb) -> dict[str, object]:
    host = msb.host
    return {
        "processes": [process.pid for process in host.processes()],
        "zombies": len(zombies_of(os.getpid())),
        "files": host.tree(),
        "size": sum(path.lstat().st_blocks for path in host.home.rglob("*") if not _is_database(path)),
        "rows": host.rows(),
        "sockets": host.sockets(),
        "locks": host.locks(),
        "shared memory": _names(Path("/dev/shm")),
        "temporary files": _names(Path(tempfile.gettempdir())),
    }


def _is_database(path: Path) -> bool:
    """Whether it is a file of the database, which keeps a few free pages for the next row."""
    return path.name.startswith("state.db")


def _database_size(msb: Msb) -> int:
    return sum(path.stat().st_size for path in msb.home.iterdir() if _is_database(path))


def _names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if "msb" in path.name or "qemu" in path.name)


def test_runs_in_a_row_leave_nothing(own_msb: Msb) -> None:
    own_msb.run("true").succeeded()
    before = _seen(own_msb)
    for number in range(RUNS):
        code = number % 3
        assert own_msb.run("sh", "-c", f"echo $$ > /root/file; exit {code}").code == code
    assert _seen(own_msb) == before
    assert _database_size(own_msb) < 256 << 10


def test_sandboxes_created_and_removed_leave_nothing(own_msb: Msb) -> None:
    # L14
    own_msb.run("true").succeeded()
    before = _seen(own_msb)
    for _ in range(max(1, RUNS // 5)):
        own_msb("create", "busybox", "--name", "again").succeeded()
        own_msb("rm", "--force", "again").succeeded()
    assert _seen(own_msb) == before
