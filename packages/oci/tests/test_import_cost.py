"""What a sandbox start imports from here: nothing that only loading needs."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from microsandbox_oci import ImageStore

HEAVY = set("asyncio tarfile hashlib ssl socket subprocess tempfile shutil zlib zstandard threading".split())
HEAVY |= set("pydantic httpx http email logging datetime microsandbox_oci._native".split())

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
