"""A directory of the host that nothing in a sandbox may reach."""

from __future__ import annotations

import os
from pathlib import Path


class Canary:
    """Files with known content; `assert_untouched` tells whether anyone changed, added or removed one."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        self.secret = directory / "secret"
        self.secret.write_text("only for the host\n")
        (directory / "empty").mkdir()
        self._before = self._seen()

    def assert_untouched(self) -> None:
        """Fails the test when anything is not as it was made."""
        assert self._seen() == self._before

    def _seen(self) -> dict[str, tuple[int, int, int, bytes]]:
        found = {}
        for path in sorted([self.directory, *self.directory.rglob("*")]):
            status = path.lstat()
            content = path.read_bytes() if path.is_file() else os.fsencode("\n".join(os.listdir(path)))  # noqa: PTH208
            found[str(path)] = (status.st_mode, status.st_uid, status.st_mtime_ns, content)
        return found
