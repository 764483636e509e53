"""asyncio without TLS: nothing in its loop speaks it here, and importing OpenSSL takes long."""

from __future__ import annotations

import sys

if "ssl" in sys.modules:
    import asyncio
else:
    # As where Python was built without: asyncio then does without, and others import it when they need it.
    sys.modules["ssl"] = None  # type: ignore[assignment]
    try:
        import asyncio
    finally:
        del sys.modules["ssl"]

__all__ = ["asyncio"]
