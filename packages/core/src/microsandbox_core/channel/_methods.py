"""The methods of the protocol that have data channels.

A method that is not listed has none, and DATA on its stream is a protocol error. Adding a method with data
is adding a line here and a handler in the guest; `attach` has its handler in the relay.
"""

from __future__ import annotations

from typing import Final

from ._wire import STDERR, STDIN, STDOUT

TO_GUEST: Final[dict[str, tuple[int, ...]]] = {"exec": (STDIN,), "files": (STDIN,), "attach": (STDIN,)}
"""Channels from host to guest, by method."""

TO_HOST: Final[dict[str, tuple[int, ...]]] = {
    "exec": (STDOUT, STDERR),
    "files": (STDOUT, STDERR),
    "attach": (STDOUT, STDERR),
}
"""Channels from guest to host, by method."""
