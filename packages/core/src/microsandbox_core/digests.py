"""SHA-256 without OpenSSL: loading that takes 5 ms of a start, and half a megabyte of every supervisor.

Python's own implementation is behind a private name; `hashlib` has it where that name is another one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import sha256
else:
    try:
        from _sha256 import sha256  # Python 3.11
    except ImportError:
        try:
            from _sha2 import sha256  # later ones
        except ImportError:
            from hashlib import sha256

__all__ = ["sha256"]
