"""O16: many processes pull one image while others prune and remove: no file of it is ever damaged or missing.

`MSB_TEST_ROUNDS` (10) says how often, in tens.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from typing import Any

import pytest
from microsandbox_oci import ImageNotFound, ImageStore, _layers

from tests.support.registry_server import serving

ROUNDS = -(-int(os.environ.get("MSB_TEST_ROUNDS", "10")) // 10)
PULLS = 20

# Holds the image as a sandbox does, and looks at all of it.
PULL = """
import sys
from microsandbox_oci import ImageNotFound, ImageStore, open_in_use_lock
store = ImageStore(sys.argv[1])
for _ in range(3):
    image = store.pull(sys.argv[2])
    try:
        lock = open_in_use_lock(image)
    except ImageNotFound:
        continue  # it was removed again before it was held
    verified = store.verify(image.digest)
    assert verified.problems == (), verified.problems
    assert [size for _, size in image.extents] == [path.stat().st_size for path, _ in image.extents]
    break
print(image.digest)
"""


def test_twenty_processes_pull_while_others_prune_and_remove(store: ImageStore, sources: Any) -> None:
    with serving() as registry:
        layers = [{f"srv/{size}": random.Random(size).randbytes(size)} for size in (10, 300_000, 9000)]
        digest = registry.add("app", "1", sources.image(*layers))
        name = f"{registry.domain}/app:1"
        command = [sys.executable, "-c", PULL, str(store.root), name]
        for _ in range(ROUNDS):
            done = threading.Event()
            failures: list[BaseException] = []

            def disturb(remove: bool, done: threading.Event = done, failures: Any = failures) -> None:
                other = ImageStore(store.root)
                try:
                    while not done.wait(0.02):
                        other.prune()
                        if remove:
                            try:
                                other.remove(name, force=True)
                            except ImageNotFound:
                                pass
                except BaseException as error:  # noqa: BLE001 - shown below
                    failures.append(error)

            others = [threading.Thread(target=disturb, args=(remove,)) for remove in (False, False, True)]
            for thread in others:
                thread.start()
            pulls = [
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                for _ in range(PULLS)
            ]
            try:
                ended = [process.communicate(timeout=280) for process in pulls]
            finally:
                done.set()
                for process in pulls:
                    process.kill()
                for thread in others:
                    thread.join()
            assert failures == []
            assert [errors for _, errors in ended] == [""] * PULLS
            assert {output for output, _ in ended} == {f"{digest}\n"}
            # Nobody disturbs any more: it is pulled whole, and goes without a rest.
            store.pull(name)
            assert store.verify(name).problems == ()
            store.remove(name)
            store.prune()
            assert store.leftovers() == []
            assert list((store.root / "layers").iterdir()) == []


def test_a_prune_between_arrival_and_keeping_takes_nothing(
    store: ImageStore, sources: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by pulls beside prunes on a busy machine: the layer stayed, but not what saving it needs."""
    compare = _layers._compare

    def prune(*arguments: Any) -> None:
        ImageStore(store.root).prune()
        compare(*arguments)

    monkeypatch.setattr(_layers, "_compare", prune)
    with serving() as registry:
        built = sources.image({"a": b"1"})
        registry.add("app", "1", built)
        image = store.pull(f"{registry.domain}/app:1")
    assert [path.read_bytes() for path in (store.root / "blobs").iterdir()] == built.blobs
    assert store.verify(image.digest).unchecked == ()
    assert list((store.root / "locks").glob("*.keep")) == []
