"""`msb conf schema`."""

from __future__ import annotations

from microsandbox_cli.conf import schema
from microsandbox_cli.listing import print_json


def print_schema() -> None:
    """Print the JSON schema of the files that `--conf` takes."""
    print_json(schema())
