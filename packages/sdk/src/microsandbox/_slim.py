"""What every start imports, without what it does not use.

For processes that are ours alone, `msb` and the supervisor: it has to come before everything else.
"""

from __future__ import annotations

import sys


def import_pathlib() -> None:
    """Import `pathlib` without `urllib.parse`, of which it uses one function in `Path.as_uri`.

    That module and `ipaddress`, which it imports, take as long as all the rest of `pathlib`.
    """
    if "pathlib" in sys.modules or "urllib.parse" in sys.modules:
        return
    stand_in = type(sys)("urllib.parse")
    stand_in.quote_from_bytes = _quote_from_bytes  # type: ignore[attr-defined]
    sys.modules["urllib.parse"] = stand_in
    try:
        import pathlib  # noqa: F401
    finally:
        del sys.modules["urllib.parse"]


def _quote_from_bytes(text: bytes) -> str:
    from urllib.parse import quote_from_bytes

    return quote_from_bytes(text)
