"""The package imports alone, and claims nothing that it cannot do."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import microsandbox_net


def test_the_native_module_is_of_the_same_version_as_the_package() -> None:
    assert microsandbox_net.__version__ == version("microsandbox-net")


def test_no_feature_is_claimed_yet() -> None:
    assert microsandbox_net.features() == frozenset()


def test_it_imports_without_any_other_of_our_packages() -> None:
    program = (
        "import sys, microsandbox_net\n"
        "ours = sorted(name for name in sys.modules if name.startswith('microsandbox'))\n"
        "print(*ours)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["microsandbox_net", "microsandbox_net._native"]
