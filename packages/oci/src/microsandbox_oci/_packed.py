"""The record of a packed directory: which image it became, and how it looked then."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from microsandbox_oci._errors import ImageInvalid
from microsandbox_oci._json import dump
from microsandbox_oci._records import DAMAGED_HINT, VERSION, parse_record


@dataclass(frozen=True, slots=True)
class PackedDirectory:
    """Which image a directory was packed into, and how the directory looked then."""

    directory: str
    fingerprint: str
    digest: str

    def encode(self) -> bytes:
        """Return the record; a path that is not UTF-8 survives as its bytes in hex."""
        return dump(
            {
                "version": VERSION,
                "directory": os.fsencode(self.directory).hex(),
                "fingerprint": self.fingerprint,
                "digest": self.digest,
            }
        )


def read_packed(path: Path) -> PackedDirectory | None:
    """Read a packed directory's record; None if there is none.

    Raises:
        ImageInvalid: the record is damaged.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    node = parse_record(data, f"record of packed directory {path.name}")
    try:
        directory = os.fsdecode(bytes.fromhex(node.text("directory")))
    except ValueError as error:
        raise ImageInvalid(f"{node.what} is damaged", blob=node.what, hint=DAMAGED_HINT) from error
    return PackedDirectory(directory, node.text("fingerprint"), node.digest("digest"))
