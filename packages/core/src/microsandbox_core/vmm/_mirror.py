"""A copy of a disk that is made while the machine writes to it, and complete when the machine stands still.

QEMU's block job `mirror`: it copies the disk, and then what is written to it meanwhile, until it is told to
end; it ends when both are the same, which a machine that is stopped cannot change any more.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from microsandbox_core.errors import MachineFailed
from microsandbox_core.vmm._monitor import Monitor

_NAME = "copy"


class Mirror:
    """A copy that is being made; see `DiskCopy`."""

    def __init__(self, talk: Monitor, node: str, size: int, target: Path, seconds: float) -> None:
        """`node`: the disk's name in QEMU, `size`: its bytes. `seconds`: for what is asked of QEMU at a time.

        Raises `MachineFailed`, `OSError`.
        """
        self._talk = talk
        self._seconds = seconds
        self._set: int | None = None
        self._begun = False
        file = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(file, size)
            self._begin(node, file)
        except BaseException:
            self.give_up()
            raise
        finally:
            os.close(file)

    def _begin(self, node: str, file: int) -> None:
        talk = self._talk.within(self._seconds)
        self._set = int(talk.ask("add-fd", {}, pass_on=file)["fdset-id"])
        name = f"/dev/fdset/{self._set}"
        target = {"driver": "file", "filename": name, "discard": "unmap"}
        talk.ask("blockdev-add", {"driver": "raw", "node-name": _NAME, "discard": "unmap", "file": target})
        talk.ask("blockdev-mirror", {"job-id": _NAME, "device": node, "target": _NAME, "sync": "full"})
        self._begun = True

    def is_ready(self) -> bool:
        """Whether only what is written from now on is missing. Raises `MachineFailed`."""
        job = self._job()
        if job is None:
            raise MachineFailed("QEMU could not copy the disk")
        return bool(job.get("ready"))

    def finish(self) -> None:
        """Complete the copy of a stopped machine's disk. Raises `MachineFailed`."""
        if not self.is_ready():
            raise MachineFailed("QEMU has not copied the disk")
        self._talk.ask("block-job-cancel", {"device": _NAME})
        self._end()

    def give_up(self) -> None:
        """Let go of a copy that is not wanted any more. Does nothing after `finish`."""
        try:
            if self._begun and self._job() is not None:
                self._talk.ask("block-job-cancel", {"device": _NAME, "force": True})
            self._end()
        except MachineFailed:
            pass  # it is in use, or the machine has ended: with that it goes

    def _end(self) -> None:
        self._talk.within(self._seconds)
        while self._begun and self._job() is not None:
            pass  # every question gives QEMU a turn
        if self._begun:
            self._begun = False
            self._talk.ask("blockdev-del", {"node-name": _NAME})
        if self._set is not None:
            number, self._set = self._set, None
            self._talk.ask("remove-fd", {"fdset-id": number})

    def _job(self) -> dict[str, Any] | None:
        jobs = self._talk.within(self._seconds).ask("query-block-jobs", {})
        return next((job for job in jobs if job.get("device") == _NAME), None)
