"""Root file system directories: packed once while they do not change, and never twice on disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from microsandbox_oci import (
    ArchiveError,
    ArchiveNotFound,
    ImageNotFound,
    ImageStore,
    Phase,
    Progress,
    open_in_use_lock,
)

Tree = Callable[[Path], list[tuple[str, int]]]


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    root = tmp_path / "rootfs"
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "sh").write_bytes(b"#!")
    (root / "etc").symlink_to("/elsewhere")
    return root


def test_a_directory_is_packed_once_while_it_is_unchanged(store: ImageStore, rootfs: Path) -> None:
    events: list[Progress] = []
    image = store.pack_rootfs(rootfs, progress=events.append)
    assert {event.phase for event in events} >= {Phase.MERGING}
    events.clear()
    assert store.pack_rootfs(f"{rootfs}/../rootfs/", progress=events.append) == image
    assert events == []
    assert image.reference is None
    assert [entry.partition("=")[0] for entry in image.config.env] == ["PATH"]
    assert len(image.layers) == 1
    assert store.get(image.digest) == image
    assert store.list() == []


def test_a_change_packs_again_and_drops_the_old_pack(store: ImageStore, rootfs: Path, tree: Tree) -> None:
    old = store.pack_rootfs(rootfs)
    (rootfs / "bin" / "new").write_bytes(b"x" * 10_000)
    new = store.pack_rootfs(rootfs)
    assert new.digest != old.digest
    with pytest.raises(ImageNotFound):
        store.get(old.digest)
    assert len(list((store.root / "layers").iterdir())) == 1
    (rootfs / "bin" / "sh").write_bytes(b"!#")  # same size: the times tell
    assert store.pack_rootfs(rootfs).digest != new.digest


def test_an_old_pack_in_use_stays(store: ImageStore, rootfs: Path) -> None:
    old = store.pack_rootfs(rootfs)
    lock = open_in_use_lock(old)
    (rootfs / "bin" / "new").write_bytes(b"x")
    store.pack_rootfs(rootfs)
    assert all(path.exists() for path, _ in old.extents)
    os.close(lock)
    assert store.prune().images == (old.digest,)


def test_a_pack_is_pruned_when_its_directory_is_gone(store: ImageStore, rootfs: Path) -> None:
    image = store.pack_rootfs(rootfs)
    assert store.prune().images == ()
    rootfs.rename(rootfs.with_name("moved"))
    assert store.prune().images == (image.digest,)


def test_a_damaged_pack_is_packed_again(store: ImageStore, rootfs: Path) -> None:
    image = store.pack_rootfs(rootfs)
    image.layers[0].path.unlink()
    assert store.pack_rootfs(rootfs) == image
    assert image.layers[0].path.exists()


def test_what_is_no_directory_is_named(store: ImageStore, rootfs: Path, tree: Tree) -> None:
    store.prune()
    before = tree(store.root)
    for path, error in ((rootfs / "missing", ArchiveNotFound), (rootfs / "bin" / "sh", ArchiveError)):
        with pytest.raises(error, match=path.name):
            store.pack_rootfs(path)
    assert tree(store.root) == before


def test_ctrl_c_while_packing_leaves_nothing(store: ImageStore, rootfs: Path, tree: Tree) -> None:
    store.prune()
    before = tree(store.root)

    def interrupt(event: Progress) -> None:
        if event.phase is Phase.MERGING:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.pack_rootfs(rootfs, progress=interrupt)
    assert tree(store.root) == before
