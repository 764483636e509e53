"""The tree that a guest sees is the one that umoci unpacks, and the one that is exported."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.listing import Entry, differences, list_tree, listing_program, parse
from tests.support.msb import Msb
from tests.support.rich_image import FILES, NAME, write_rich_layout

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0,
    reason="umoci makes devices and owners, and the listing changes its root: only root can",
)

Tree = dict[str, Entry]

COVERED = ("./dev", "./proc", "./sys", "./tmp")
"""Over these a guest has file systems of its own."""
WRITTEN = ("./etc/hostname", "./etc/hosts", "./etc/machine-id", "./etc/resolv.conf")
"""These a guest gets beyond its image."""


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rich_layout(tmp_path_factory.mktemp("rich") / "layout", listing_program())


@pytest.fixture(scope="module")
def unpacked(layout: Path) -> Tree:
    """The tree that umoci makes."""
    bundle = layout.with_name("bundle")
    done = subprocess.run(
        ["umoci", "unpack", "--image", f"{layout}:{NAME}", bundle],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = list_tree(bundle / "rootfs")
    assert len(found) > FILES
    return found


def as_umoci_has_it(tree: Tree) -> Tree:
    """Without empty attributes: a record without a value says nothing to Go, in which umoci is written."""
    found = dict(tree)
    for path, entry in tree.items():
        kept = [pair for pair in entry.attributes.split(",") if not pair.endswith("=")]
        found[path] = entry._replace(attributes=",".join(kept))
    return found


def test_the_exported_tree_is_that_of_umoci(
    empty_msb: Msb, layout: Path, unpacked: Tree, tmp_path: Path
) -> None:
    empty_msb("load", f"oci:{layout}:{NAME}", "-t", NAME).succeeded()
    archive, root = tmp_path / "root.tar", tmp_path / "root"
    empty_msb("image", "export", "-o", archive, NAME).succeeded()
    assert empty_msb("image", "export", NAME).succeeded().out == archive.read_bytes()
    root.mkdir()
    options = ["--xattrs", "--xattrs-include=*", "--numeric-owner", "--warning=none"]
    subprocess.run(["tar", *options, "-xpf", archive, "-C", root], check=True, timeout=300)
    found = list_tree(root)
    assert differences(unpacked, as_umoci_has_it(found)) == []
    assert "user.empty=," in found["./attributes/many"].attributes
    # What takes room on the host takes it where the layer has no hole.
    assert sum(path.stat().st_blocks for path in (root / "sparse").iterdir()) * 512 < 1 << 20


@pytest.mark.vm
def test_the_tree_in_a_guest_is_that_of_umoci(own_msb: Msb, layout: Path, unpacked: Tree) -> None:
    own_msb("load", f"oci:{layout}:{NAME}", "-t", NAME).succeeded()
    done = own_msb("run", "-q", NAME, "--", "/listing", "/", timeout=300).succeeded()
    found = parse(done.out)
    assert "user.empty=," in found["./attributes/many"].attributes
    for path in WRITTEN:
        del found[path]
    # Making those files is what changed it last.
    found["./etc"] = found["./etc"]._replace(mtime=unpacked["./etc"].mtime)
    expected = {path: entry for path, entry in unpacked.items() if path not in COVERED}
    seen = {path: entry for path, entry in found.items() if path not in COVERED}
    assert differences(expected, as_umoci_has_it(seen)) == []
