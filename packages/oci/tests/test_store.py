"""The store: looking up, naming, removing, pruning, and keeping what is in use."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from microsandbox_oci import (
    Image,
    ImageError,
    ImageInUse,
    ImageInvalid,
    ImageNotFound,
    ImageStore,
    Reference,
    ReferenceInvalid,
    _workspace,
    open_in_use_lock,
)

BASE = {"bin/sh": b"#!" * 500}
Tree = Callable[[Path], list[tuple[str, int]]]


def load(store: ImageStore, sources: Any, name: str, *layers: dict[str, bytes]) -> Image:
    [image] = store.load(sources.directory(sources.layout_files(sources.image(*layers), names=[name])))
    return image


def test_an_image_is_found_by_every_spelling_of_its_name(store: ImageStore, sources: Any) -> None:
    image = load(store, sources, "busybox:latest", BASE)
    names = ("busybox", "library/busybox", "docker.io/library/busybox", Reference.parse("busybox"))
    for name in names:
        assert store.get(name) == image
    by_digest = store.get(image.digest)
    assert by_digest.reference is None
    assert by_digest.layers == image.layers
    assert store.get(f"busybox@{image.digest}").digest == image.digest


def test_names_are_listed_without_their_images(store: ImageStore, sources: Any) -> None:
    assert store.references() == []
    image = load(store, sources, "tools/box:1.2", BASE)
    load(store, sources, "busybox:latest", BASE)
    assert [name.familiar for name in store.references()] == ["busybox:latest", "tools/box:1.2"]
    image.disk.unlink()
    assert len(store.references()) == 2


@pytest.mark.parametrize("name", ["missing", "busybox:1", "sha256:" + "0" * 64, "x@sha256:" + "0" * 64])
def test_what_is_not_there_is_named(store: ImageStore, name: str) -> None:
    for _ in range(2):  # before and after the store's directory exists
        with pytest.raises(ImageNotFound, match=name) as caught:
            store.get(name)
        assert caught.value.code == "image_not_found"
        assert caught.value.hint
        store.prune()


def test_looking_up_writes_nothing(store: ImageStore) -> None:
    with pytest.raises(ImageNotFound):
        store.get("busybox")
    assert store.list() == []
    assert not store.root.exists()


def test_very_long_names_have_a_file_too(store: ImageStore, sources: Any) -> None:
    name = "registry.example/" + "/".join(["component" * 5] * 5) + ":" + "t" * 128
    image = load(store, sources, name, BASE)
    assert store.get(name) == image
    assert [str(one.reference) for one in store.list()] == [name]


def test_tag_moves_a_name(store: ImageStore, sources: Any) -> None:
    one = load(store, sources, "one:1", BASE)
    two = load(store, sources, "two:1", BASE, {"a": b"b"})
    tagged = store.tag("one:1", "current")
    assert str(tagged.reference) == "docker.io/library/current:latest"
    assert store.get("current").digest == one.digest
    store.tag(two.digest, "current")
    assert store.get("current").digest == two.digest
    assert [str(image.reference) for image in store.list()] == [
        "docker.io/library/current:latest",
        "docker.io/library/one:1",
        "docker.io/library/two:1",
    ]
    with pytest.raises(ReferenceInvalid):
        store.tag("one:1", f"x@{one.digest}")
    with pytest.raises(ImageNotFound):
        store.tag("missing", "x")


def test_removal_keeps_what_others_need(store: ImageStore, sources: Any, tree: Tree) -> None:
    store.prune()
    empty = tree(store.root)
    one = load(store, sources, "one:1", BASE, {"only": b"one"})
    only_one = tree(store.root)
    two = load(store, sources, "two:1", BASE, {"only": b"two"})
    store.tag("two:1", "two:2")
    assert store.remove("two:1").images == ()
    removed = store.remove("two:2")
    assert removed.images == (two.digest,)
    assert removed.layers == (two.layers[1].diff_id,)
    assert removed.size > 4096
    assert tree(store.root) == only_one
    assert store.get("one:1") == one
    with pytest.raises(ImageNotFound):
        store.remove("two:2")
    store.tag("one:1", "one:2")
    assert store.remove(one.digest).images == (one.digest,)
    assert tree(store.root) == empty


def test_an_image_in_use_stays_until_it_is_let_go(store: ImageStore, sources: Any, tree: Tree) -> None:
    store.prune()
    empty = tree(store.root)
    image = load(store, sources, "app:1", BASE)
    # The holder is another process with an inherited descriptor, as a supervisor is.
    lock = open_in_use_lock(image)
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[lock]) as holder:
        os.close(lock)
        with pytest.raises(ImageInUse) as caught:
            store.remove("app:1")
        assert caught.value.code == "image_in_use"
        assert store.get("app:1") == image
        assert store.remove("app:1", force=True).images == ()
        assert store.prune().images == ()
        assert all(path.exists() for path, _ in image.extents)
        holder.kill()
    pruned = store.prune()
    assert pruned.images == (image.digest,)
    assert pruned.layers == (image.layers[0].diff_id,)
    assert tree(store.root) == empty
    with pytest.raises(ImageNotFound):
        open_in_use_lock(image)


def test_prune_removes_what_has_no_name_and_can_tell(store: ImageStore, sources: Any, tree: Tree) -> None:
    kept = load(store, sources, "app:1", BASE)
    old = load(store, sources, "app:2", BASE, {"old": b"1"})
    load(store, sources, "app:2", BASE, {"new": b"1"})
    before = tree(store.root)
    planned = store.prune(dry_run=True)
    assert tree(store.root) == before
    assert planned == store.prune()
    assert planned.images == (old.digest,)
    assert planned.layers == (old.layers[1].diff_id,)
    assert store.get("app:1") == kept
    assert len(store.list()) == 2
    assert store.prune().images == ()


@pytest.mark.parametrize(
    "name", ["layer", "fsmeta.erofs", "image.vmdk", "image.json", "config.json", "in-use.lock"]
)
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_file_is_reported_and_rebuilt_by_a_load(
    store: ImageStore, sources: Any, name: str, damage: str
) -> None:
    source = sources.directory(sources.layout_files(sources.image(BASE, {"a": b"b"})))
    [image] = store.load(source)
    path = image.layers[1].path if name == "layer" else image.directory / name
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    if name == "in-use.lock" or name == "config.json":
        store.get("app:1")  # not needed to start a sandbox
    elif name == "image.json" and damage == "missing":
        with pytest.raises(ImageNotFound):
            store.get("app:1")
    else:
        with pytest.raises(ImageInvalid, match=r"damaged|JSON") as caught:
            store.get("app:1")
        assert caught.value.hint
        problems: list[tuple[Reference | None, ImageError]] = []
        assert store.list(on_damaged=lambda *problem: problems.append(problem)) == []
        assert [str(problem[0]) for problem in problems] == ["docker.io/library/app:1"]
    assert store.load(source) == [image]
    assert store.get("app:1") == image
    assert path.exists()
    if name != "in-use.lock":
        assert path.read_bytes() == content


def test_silent_damage_to_metadata_is_found_by_a_load(store: ImageStore, sources: Any) -> None:
    source = sources.directory(sources.layout_files(sources.image(BASE, {"a": b"b"})))
    [image] = store.load(source)
    for path in (image.metadata, image.layers[0].path):
        content = path.read_bytes()
        path.chmod(0o600)
        path.write_bytes(content[:1100] + bytes([content[1100] ^ 0xFF]) + content[1101:])
        assert store.load(source) == [image]
        assert path.read_bytes() == content


def test_a_damaged_reference_is_an_error_with_a_hint(store: ImageStore, sources: Any) -> None:
    load(store, sources, "app:1", BASE)
    [ref] = (store.root / "refs").iterdir()
    ref.unlink()
    ref.write_bytes(b"{}")
    with pytest.raises(ImageInvalid) as caught:
        store.get("app:1")
    assert caught.value.hint
    load(store, sources, "app:1", BASE)
    assert store.get("app:1").layers


def test_prune_beside_loads_never_takes_what_they_use(store: ImageStore, sources: Any) -> None:
    layouts = [
        sources.directory(
            sources.layout_files(sources.image(BASE, {"n": str(n).encode() * 5000}), names=[f"app:{n}"])
        )
        for n in range(3)
    ]

    def work(number: int) -> None:
        for _ in range(8):
            if number < len(layouts):
                [image] = store.load(layouts[number])
                assert all(path.stat().st_size == size for path, size in image.extents)
                assert store.get(f"app:{number}") == image
                store.remove(f"app:{number}")
            else:
                store.prune()

    with ThreadPoolExecutor(5) as pool:
        assert list(pool.map(work, range(5))) == [None] * 5
    assert store.prune().images == ()
    assert not list((store.root / "layers").iterdir())
    assert not list((store.root / "tmp").iterdir())


def test_strangers_in_the_temporary_directory_do_no_harm(store: ImageStore, sources: Any) -> None:
    image = load(store, sources, "app:1", BASE)
    tmp = store.root / "tmp"
    (tmp / ".lock").write_text("")
    (tmp / "notes").write_text("keep")
    (tmp / ("ab" * 8)).mkdir()
    (tmp / ("ab" * 8) / "half.erofs").write_bytes(b"x")
    store.prune()
    assert sorted(path.name for path in tmp.iterdir()) == [".lock", "notes"]
    assert store.get("app:1") == image


def test_an_interrupt_leaves_no_lock_of_a_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one that comes when its file has just been made."""

    def interrupted(path: Path, *, wait: bool) -> None:
        path.touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(_workspace, "lock_file", interrupted)
    with pytest.raises(KeyboardInterrupt), _workspace.workspace(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_leftovers_are_what_a_sweep_removes(store: ImageStore) -> None:
    assert store.leftovers() == []
    store.sweep()
    assert not store.root.exists()
    tmp = store.root / "tmp"
    for name in ("notes", "ab" * 8, "cd" * 8):
        (tmp / name).mkdir(parents=True)
    with (tmp / f"{'cd' * 8}.lock").open("w") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        (tmp / f"{'ef' * 8}.lock").touch()
        assert store.leftovers() == [tmp / ("ab" * 8), tmp / f"{'ef' * 8}.lock"]
        store.sweep()
        assert store.leftovers() == []
        assert (tmp / ("cd" * 8)).is_dir()
    assert store.leftovers() == [tmp / ("cd" * 8), tmp / f"{'cd' * 8}.lock"]
    store.sweep()
    assert [path.name for path in tmp.iterdir()] == ["notes"]


def test_a_root_with_other_things_in_it_has_no_images(store: ImageStore) -> None:
    (store.root / "kernels").mkdir(parents=True)
    assert store.list() == []


def test_nothing_stays_open(store: ImageStore, sources: Any) -> None:
    source = sources.directory(sources.layout_files(sources.image(BASE, {"a": b"b"})))
    store.load(source)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(20):
        store.load(source)
        store.get("app:1")
        store.remove("app:1")
        with pytest.raises(ImageError):
            store.load(source.parent / "missing")
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_name_with_a_digest_that_is_no_name_of_an_image_removes_nothing(
    store: ImageStore, sources: Any
) -> None:
    image = load(store, sources, "app:1", BASE)
    other = f"other@{image.digest}"
    assert store.get(other).digest == image.digest
    with pytest.raises(ImageNotFound, match="other@"):
        store.remove(other)
    assert store.get("app:1") == image
    store.remove("app:1")
    with pytest.raises(ImageNotFound):
        store.remove(other)


def test_a_damaged_image_has_a_digest_and_can_be_removed(store: ImageStore, sources: Any) -> None:
    image = load(store, sources, "app:1", BASE)
    image.metadata.unlink()
    with pytest.raises(ImageInvalid):
        store.get("app:1")
    assert store.digest("app:1") == store.digest(image.digest) == image.digest
    store.remove("app:1")
    with pytest.raises(ImageNotFound):
        store.digest("app:1")
