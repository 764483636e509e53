"""Tests of programs that use sandboxes, without a VM: `FakeSandbox`; and
`microsandbox.testing.conformance`, what every implementation has to do."""

from microsandbox.testing._commands import Call, Command, Result
from microsandbox.testing._sandbox import FakeSandbox, FakeSandboxHandle

__all__ = ["Call", "Command", "FakeSandbox", "FakeSandboxHandle", "Result"]
