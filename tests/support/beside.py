"""Tests beside each other: `pytest -n 2` runs files of tests in processes of their own, with pytest-xdist.

What tests share is the machine. Each of these workers has fixtures and temporary files of its own, and homes
in one directory of the run. A test that needs the machine for itself is marked with `alone` and a reason:
nothing else is tested while it runs. When the run ends, also by Ctrl-C or SIGTERM, so does every process that
works for one of its homes.
"""

from __future__ import annotations

import fcntl
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.support.process import Process, all_processes

DIRECTORY = pytest.StashKey[Path]()
"""Where the homes of this run are. Not pytest's own: a Unix socket's path has 108 bytes."""


def pytest_configure(config: pytest.Config) -> None:
    """Make the run's directory, or take it from who started this worker."""
    given = getattr(config, "workerinput", {}).get("run_directory")
    config.stash[DIRECTORY] = Path(given or tempfile.mkdtemp(prefix="msb-"))
    config.stash[DIRECTORY].chmod(0o755)  # some homes in it are another user's
    if not _is_worker(config):
        signal.signal(signal.SIGTERM, _interrupt)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker where it works."""
    node.workerinput["run_directory"] = str(node.config.stash[DIRECTORY])


def pytest_unconfigure(config: pytest.Config) -> None:
    """End what is left: a worker that crashed, or was interrupted twice, had no time for that."""
    if not _is_worker(config):
        directory = config.stash[DIRECTORY]
        for process in _processes_of(directory):
            process.kill()
            process.wait_gone(within=60)
        for line in Path("/proc/self/mounts").read_text().splitlines():
            if line.split()[1].startswith(f"{directory}/"):
                subprocess.run(["umount", line.split()[1]], check=False)
        shutil.rmtree(directory, ignore_errors=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let workers begin with the files that take long: what comes last is done by all of them to the end."""
    if _is_worker(config):
        slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
        booting = Counter(item.path for item in items if item.get_closest_marker("vm"))
        items.sort(key=lambda item: (-slow[item.path], -booting[item.path]))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Run a test beside those of other workers, or while they wait."""
    if not _is_worker(item.config):
        return (yield)
    alone = item.get_closest_marker("alone") is not None
    with _turn(item.config.stash[DIRECTORY], fcntl.LOCK_EX if alone else fcntl.LOCK_SH):
        return (yield)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Whoever waits for a test that is alone may know why."""
    alone = item.get_closest_marker("alone")
    if alone is not None and not alone.kwargs.get("reason"):
        pytest.fail("the mark `alone` has no reason", pytrace=False)


@contextmanager
def _turn(directory: Path, kind: int) -> Iterator[None]:
    """Share the machine with other tests, or have it: `kind` is `LOCK_SH` or `LOCK_EX`."""
    with (directory / "turn").open("w") as turn, (directory / "machine").open("w") as machine:
        # Held while waiting: who wants the machine would never get it if others could go on sharing it.
        fcntl.flock(turn, fcntl.LOCK_EX)
        fcntl.flock(machine, kind)
        fcntl.flock(turn, fcntl.LOCK_UN)
        try:
            yield
        finally:
            # Not by closing: a child that a test forked may have it open, too.
            fcntl.flock(machine, fcntl.LOCK_UN)


def _interrupt(*_: object) -> NoReturn:
    """End as by Ctrl-C, once: timeout(1) sends its signal twice."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def _processes_of(directory: Path) -> list[Process]:
    """Those that work for any home below: by its name in argv or environment, or by an open file."""
    prefix = f"{directory}/"
    return [
        process
        for process in all_processes()
        if any(prefix in word for word in process.argv)
        or any(word.startswith(f"MSB_HOME={prefix}") for word in process.environ)
        or any(target.startswith(prefix) for target in process.descriptors.values())
    ]
