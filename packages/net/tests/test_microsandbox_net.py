"""The package imports alone, and claims nothing that it cannot do."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import microsandbox_net
import pytest


def test_the_native_module_is_of_the_same_version_as_the_package() -> None:
    assert microsandbox_net.__version__ == version("microsandbox-net")


def test_the_policy_and_the_stack_are_claimed() -> None:
    assert microsandbox_net.features() == {"policy", "stack", "ports", "proxy", "synthetic-dns"}


@pytest.mark.parametrize(
    ("statement", "parts"),
    [
        # The others when they are first used.
        ("import microsandbox_net", ["_native"]),
        ("from microsandbox_net import *", ["_native", "_policy", "_proxy", "_stack"]),
    ],
)
def test_it_imports_without_any_other_of_our_packages(statement: str, parts: list[str]) -> None:
    program = (
        f"import sys; {statement}\n"
        "ours = sorted(name for name in sys.modules if name.startswith('microsandbox'))\n"
        "print(*ours)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["microsandbox_net", *(f"microsandbox_net.{part}" for part in parts)]
