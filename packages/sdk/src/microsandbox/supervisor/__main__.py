"""Reads the configuration and supervises; see `_supervise`."""

from __future__ import annotations

import os
import sys


def main() -> int:
    """Run the supervisor whose configuration is behind the descriptor in argv."""
    from microsandbox.supervisor._supervise import Supervision, read_launch

    # Whatever it makes is its user's alone, whatever the creator's habits are.
    os.umask(0o077)
    descriptor = int(sys.argv[1])
    with os.fdopen(descriptor, "rb") as file:
        launch = read_launch(file.read())
    return Supervision(launch).run()


if __name__ == "__main__":
    sys.exit(main())
