"""The package imports alone, and claims nothing that it cannot do."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import microsandbox_fs


def test_the_native_module_is_of_the_same_version_as_the_package() -> None:
    assert microsandbox_fs.__version__ == version("microsandbox-fs")


def test_the_features_that_work_are_named() -> None:
    features = microsandbox_fs.features()
    parts = {"broker", "serve", "device", "file", "quota", "watch"}
    assert features >= parts
    assert features <= parts | {"openat2", "landlock"}


def test_it_imports_without_any_other_of_our_packages() -> None:
    program = (
        "import sys, microsandbox_fs\n"
        "ours = sorted(name for name in sys.modules if name.startswith('microsandbox'))\n"
        "print(*ours)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["microsandbox_fs", "microsandbox_fs._broker", "microsandbox_fs._native"]
