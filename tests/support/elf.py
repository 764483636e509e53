"""Programs of a few bytes, for guests that are to have something else in place of an agent."""

from __future__ import annotations

import struct
from pathlib import Path

_BASE = 0x400000
_CODE = {
    "exit": b"\xb8\x3c\x00\x00\x00\x31\xff\x0f\x05",  # exit(0)
    "pause": b"\xb8\x22\x00\x00\x00\x0f\x05\xeb\xf7",  # while (1) pause();
}


def program(path: Path, does: str) -> Path:
    """A static x86-64 ELF file that does ``exit`` or ``pause``, and nothing else."""
    code = _CODE[does]
    headers = 64 + 56
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01", 2, 62, 1, _BASE + headers, 64, 0, 0, 64, 56, 1, 0, 0, 0,
    )  # fmt: skip
    size = headers + len(code)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    path.write_bytes(header + segment + code)
    path.chmod(0o755)
    return path
