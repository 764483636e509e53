"""O17: pulls that are killed at any point: the next one succeeds, and nothing damaged is ever kept.

`MSB_TEST_ROUNDS` says how many are killed, `MSB_TEST_SEED` where (0: at random; a failure shows the seed).
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from microsandbox_oci import ImageStore, Registries

from tests.support.registry_server import Registry, serving

ROUNDS = int(os.environ.get("MSB_TEST_ROUNDS", "10"))
SEED = int(os.environ.get("MSB_TEST_SEED", "1")) or random.randrange(1 << 32)

# Kills itself at the given call of a Python function or of a C function by one (0: at none), whichever
# thread makes it, and says how many there were.
PULL = """
import os, sys, threading, itertools
from microsandbox_oci import ImageStore, Registries
import microsandbox_oci._pull, microsandbox_oci._registry, microsandbox_oci._load, microsandbox_oci._native
root, name, at = sys.argv[1], sys.argv[2], int(sys.argv[3])
calls = itertools.count(1)
last = 0
def profile(frame, event, argument):
    global last
    if event in ("call", "c_call"):
        last = next(calls)
        if last == at:
            os.kill(os.getpid(), 9)
threading.setprofile(profile)
sys.setprofile(profile)
ImageStore(root).pull(name, registries=Registries(attempts=2, patience=0.01))
sys.setprofile(None)
print(last)
"""


@pytest.fixture
def registry() -> Iterator[Registry]:
    with serving() as found:
        yield found


def test_a_pull_that_is_killed_anywhere_leaves_nothing_wrong(
    store: ImageStore, registry: Registry, sources: Any
) -> None:
    chance = random.Random(SEED)
    sys.stdout.write(f"seed {SEED}\n")  # shown when it fails
    files = [
        {f"srv/{n}/{m}": chance.randbytes(size) for m in range(5)} for n, size in enumerate((9, 90_000, 900))
    ]
    registry.add("app", "1", sources.image(*files))
    name = f"{registry.domain}/app:1"

    def pull(at: int, seconds: float | None = None) -> subprocess.CompletedProcess[str] | None:
        command = [sys.executable, "-c", PULL, str(store.root), name, str(at)]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
        except subprocess.TimeoutExpired:
            return None  # it was killed

    begun = time.monotonic()
    whole = pull(0)
    assert whole is not None
    assert whole.returncode == 0, whole.stderr
    calls, seconds = int(whole.stdout), time.monotonic() - begun
    store.remove(name)
    store.prune()
    killed = 0
    for number in range(ROUNDS):
        # At a point of the program, or at one in time: within what is no function of Python.
        at, limit = chance.randrange(1, calls), seconds * chance.uniform(0.3, 1)
        done = pull(at) if number % 3 else pull(0, limit)
        killed += done is None or done.returncode == -9
        # What is there is whole; what is not, is not found.
        for image in store.list():
            assert store.verify(image.digest).problems == ()
        if chance.random() < 0.3:
            continue  # the next is killed on top of what this one has left
        found = store.pull(name, registries=Registries(attempts=2, patience=0.01))
        verified = store.verify(name)
        assert verified.problems == ()
        assert len(found.layers) == len(files)
        assert store.leftovers() == []
        store.remove(name)
        store.prune()
    assert killed > ROUNDS // 2
    sys.stdout.write(f"{killed} of {ROUNDS} were killed, at one of {calls} calls or of {seconds:.1f} s\n")
    if store.list():
        store.remove(name)
    store.prune()
    for kind in ("images", "layers", "downloads", "tmp"):
        assert list((store.root / kind).iterdir()) == []
