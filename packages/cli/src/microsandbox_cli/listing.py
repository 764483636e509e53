"""Tables and JSON on stdout."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from microsandbox_cli.text import printable


def print_json(value: Any) -> None:
    """Print a value as indented JSON with a final newline."""
    import json  # here, because tables are printed without it

    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns, two spaces apart. Control characters are shown escaped."""
    shown = [[printable(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in shown) for column in range(len(header))]
    for row in shown:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write(line.rstrip() + "\n")


def print_names(names: Sequence[str]) -> None:
    """Print one name a line."""
    for name in names:
        sys.stdout.write(printable(name) + "\n")


def human_size(size: int) -> str:
    """Bytes in binary units, three digits or so: `512 B`, `1.5 MiB`."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def age(seconds: float) -> str:
    """A time span as people say it: `5s`, `3m`, `2h`, `4d`."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(0, int(seconds))}s"
