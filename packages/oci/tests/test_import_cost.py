"""What a sandbox start imports from here: nothing that only loading needs."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import microsandbox_oci
import pytest
from microsandbox_oci import ImageStore

HEAVY = {"asyncio", "tarfile", "hashlib", "ssl", "socket", "subprocess", "tempfile", "shutil", "zlib"}
HEAVY |= {"zstandard", "threading", "pydantic", "http", "email", "logging", "datetime"}
HEAVY |= {"microsandbox_oci._native"}

SCRIPT = """
import sys
from microsandbox_oci import ImageStore, open_in_use_lock
image = ImageStore(sys.argv[1]).get("app:1")
open_in_use_lock(image)
print("\\n".join(sorted(sys.modules)))
"""


def test_importing_and_getting_an_image_imports_nothing_heavy(store: ImageStore, sources: Any) -> None:
    store.load(sources.directory(sources.layout_files(sources.image({"a": b"1"}))))
    # -S: what an installation's site hooks import is not ours to count.
    found = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:] = {sys.path!r}\n{SCRIPT}", str(store.root)],
        capture_output=True,
        text=True,
        check=True,
    )
    modules = set(found.stdout.split())
    assert "microsandbox_oci._store" in modules
    assert not modules.intersection(HEAVY)


def test_every_public_name_is_there() -> None:
    for name in microsandbox_oci.__all__:
        assert getattr(microsandbox_oci, name) is not None
    with pytest.raises(AttributeError, match="nothing_like_this"):
        getattr(microsandbox_oci, "_".join(["nothing", "like", "this"]))
