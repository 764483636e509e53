"""How many descriptors the supervisor may have: each connection of its sandbox is one."""

from __future__ import annotations

import resource


class OpenFiles:
    """Raises this process's limit of open files to what its user may have, until it is given back.

    Programs that it starts meanwhile inherit the raised one, which those that use select(2) do not bear.
    """

    def __init__(self) -> None:
        self._soft, self._hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._set(self._hard)

    def give_back(self) -> None:
        """Set the limit that it had before."""
        self._set(self._soft)

    def _set(self, soft: int) -> None:
        if self._soft != self._hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, self._hard))
