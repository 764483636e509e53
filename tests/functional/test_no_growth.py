"""Many runs in a row leave nothing: no process, descriptor, file, row, shared memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.msb import Msb
from tests.support.process import zombies_of

pytestmark = [
    pytest.mark.vm,
    pytest.mark.slow,
    pytest.mark.once,
    pytest.mark.alone(reason="the machine's shared memory is counted"),
]

RUNS = int(os.environ.get("MSB_TEST_RUNS", "20"))
"""The promise is about 1,000; a whole one takes half an hour where guests are emulated."""


def _seen(msb: Msb) -> dict[str, object]:
    host = msb.host
    return {
        "processes": [process.pid for process in host.processes()],
        "zombies": len(zombies_of(os.getpid())),
        "files": host.tree(),
        # Lengths, not blocks: when the host's file system writes a sparse file out, half a minute later,
        # it may add blocks of its own for the map of its holes.
        "sizes": {
            str(path): path.lstat().st_size
            for path in host.home.rglob("*")
            if path.is_file() and not _is_database(path)
        },
        "rows": host.rows(),
        "sockets": host.sockets(),
        "locks": host.locks(),
        "shared memory": [name for name in _names("/dev/shm") if "msb" in name or "qemu" in name],
        "temporary files": _names(msb.environ["TMPDIR"]),
    }


def _names(directory: str) -> list[str]:
    return sorted(path.name for path in Path(directory).iterdir())


def _is_database(path: Path) -> bool:
    """Whether it is a file of the database, which keeps a few free pages for the next row."""
    return path.name.startswith("state.db")


def _database_size(msb: Msb) -> int:
    return sum(path.stat().st_size for path in msb.home.iterdir() if _is_database(path))


@pytest.fixture
def private(own_msb: Msb, tmp_path: Path) -> Msb:
    """`msb` with a home and a directory for temporary files that nobody else uses.

    Those of other programs on this machine come and go as they like.
    """
    return own_msb.with_settings(TMPDIR=str(tmp_path))


def _fill_the_cache(msb: Msb) -> None:
    """Let the template of the machine be made, and then that of the image."""
    for _ in range(2):
        msb.run("true").succeeded()


def test_runs_in_a_row_leave_nothing(private: Msb) -> None:
    _fill_the_cache(private)
    before = _seen(private)
    for number in range(RUNS):
        code = number % 3
        assert private.run("sh", "-c", f"echo $$ > /root/file; exit {code}").code == code
    assert _seen(private) == before
    assert _database_size(private) < 256 << 10


def test_sandboxes_created_and_removed_leave_nothing(private: Msb) -> None:
    # L14
    _fill_the_cache(private)
    before = _seen(private)
    for _ in range(max(1, RUNS // 5)):
        private("create", "busybox", "--name", "again").succeeded()
        private("rm", "--force", "again").succeeded()
    assert _seen(private) == before
