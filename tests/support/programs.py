"""Programs in C beside this file, for guests and namespaces that have no interpreter."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory


@cache
def compiled(name: str) -> bytes:
    """`NAME.c` as a static executable, by the C compiler that Rust needs too."""
    source = Path(__file__).with_name(f"{name}.c")
    with TemporaryDirectory() as directory:
        program = Path(directory) / name
        flags = ("-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O2", "-static", "-pthread")
        subprocess.run(["cc", *flags, "-o", program, source], check=True)
        return program.read_bytes()
