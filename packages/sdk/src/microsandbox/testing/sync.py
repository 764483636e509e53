"""`FakeSandbox` for programs that use `microsandbox.sync`."""

from __future__ import annotations

from typing import ClassVar

import microsandbox
from microsandbox.sync import Sandbox
from microsandbox.testing import _sandbox

__all__ = ["FakeSandbox"]


class FakeSandbox(Sandbox):
    """`microsandbox.testing.FakeSandbox` without `await`; `commands` and `images` are set there."""

    _mirrors: ClassVar[type[microsandbox.Sandbox]] = _sandbox.FakeSandbox
