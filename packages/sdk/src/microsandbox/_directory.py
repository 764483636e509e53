"""A sandbox's directory and the lock that says whether it runs.

`$MSB_HOME/sandboxes/<id>/` holds `lock`, `agent.sock`, `upper.ext4`, `life` (see `_life`), `console.log`,
`supervisor.log` and `logs/`. The supervisor holds an exclusive flock on `lock` for as long as it lives;
the kernel lets go of it however the supervisor ends.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from microsandbox.errors import StateError


class SandboxDirectory:
    """Paths and lock of one sandbox."""

    def __init__(self, home: Path, identifier: str) -> None:
        self.path = home / "sandboxes" / identifier
        self.id = identifier

    @property
    def lock(self) -> Path:
        """The lock file."""
        return self.path / "lock"

    @property
    def socket(self) -> Path:
        """The supervisor's listening socket for agent channels."""
        return self.path / "agent.sock"

    @property
    def upper(self) -> Path:
        """The writable disk."""
        return self.path / "upper.ext4"

    @property
    def console_log(self) -> Path:
        """What the guest's kernel and the VMM printed, the last of it."""
        return self.path / "console.log"

    @property
    def supervisor_log(self) -> Path:
        """What the supervisor had to say; empty in a normal life."""
        return self.path / "supervisor.log"

    @property
    def logs(self) -> Path:
        """The directory of the log: what execs printed, and what happened (see `_log_segments`)."""
        return self.path / "logs"

    def create(self) -> int:
        """Make the directory and return a descriptor that holds its lock. Raises `StateError`."""
        with guard(self.path.parent, fcntl.LOCK_EX):
            try:
                self.path.mkdir(mode=0o700)
            except OSError as error:
                raise _state_error("create", self.path, error) from error
            try:
                descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                # Nobody else can hold it: everyone who could look waits for the guard.
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                self.remove()
                raise _state_error("create", self.lock, error) from error
        return descriptor

    def try_lock(self) -> int | None:
        """The lock, as a descriptor, if no supervisor holds it; None if one does or it is gone."""
        if not self.path.parent.is_dir():
            return None
        # Looking takes the lock for a moment. Without the guard a start that meets a look
        # would take the sandbox for running.
        with guard(self.path.parent, fcntl.LOCK_EX):
            try:
                descriptor = os.open(self.lock, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            except OSError as error:
                raise _state_error("open", self.lock, error) from error
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return None
            # It may have been removed between open and flock; then this is a lock on nothing.
            if os.fstat(descriptor).st_nlink == 0:
                os.close(descriptor)
                return None
            return descriptor

    def is_running(self) -> bool:
        """Whether a supervisor holds the lock."""
        if not self.path.is_dir():
            return False
        try:
            with guard(self.path.parent, fcntl.LOCK_SH):
                return self._is_locked()
        except StateError:
            return False  # no guard can be had: then nobody could have started anything either

    def _is_locked(self) -> bool:
        """`is_running` for who holds the guard."""
        return is_locked(str(self.lock))

    def remove(self) -> None:
        """Delete everything. The lock goes last: what is half deleted still counts as running."""
        for name in _names(self.path):
            if name != self.lock.name:
                _delete(self.path / name)
        _delete(self.lock)
        try:
            self.path.rmdir()
        except FileNotFoundError:
            pass  # another process was repairing the same leftovers
        except OSError as error:
            raise _state_error("remove", self.path, error) from error


def is_locked(path: str) -> bool:
    """Whether somebody holds this lock; for who holds the guard."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def sweep(home: Path, is_known: Callable[[str], bool]) -> None:
    """Remove the directories that do not belong to a running sandbox or to a record.

    `is_known` tells whether there is a record of an id. It is asked after the lock was found free: a
    creator lets go of the lock only when its record is there, so what then has none never will. (Or, when
    the sandbox ends with the creator, when a supervisor has it; without that one there is no sandbox.)
    """
    parent = home / "sandboxes"
    if not parent.is_dir():
        return
    with guard(parent, fcntl.LOCK_EX):
        for name in _names(parent):
            directory = SandboxDirectory(home, name)
            if name.startswith(".") or not directory.path.is_dir():
                continue
            if not directory._is_locked() and not is_known(name):
                directory.remove()


@contextmanager
def guard(parent: Path, kind: int) -> Iterator[None]:
    """Keep creators, starters and sweepers of sandboxes apart, and those who look from all of them.

    Between making a directory and locking it a new sandbox looks just like a leftover.
    """
    try:
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Read-only is enough for flock, and works where nothing can be written.
        descriptor = os.open(parent / ".guard", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _state_error("create", parent, error) from error
    try:
        fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)


def _names(path: Path) -> list[str]:
    try:
        return os.listdir(path)  # noqa: PTH208 - names are what is wanted
    except FileNotFoundError:
        return []


def _delete(path: Path) -> None:
    from microsandbox_core.artifacts import remove

    try:
        try:
            remove(path)
        except FileNotFoundError:
            raise
        except OSError:
            # There are directories in it. Only here: an end that is waited for does not need the import.
            import shutil

            shutil.rmtree(path)
    except FileNotFoundError:
        pass  # another process was repairing the same leftovers
    except OSError as error:
        raise _state_error("remove", path, error) from error


def _state_error(action: str, path: Path, error: OSError) -> StateError:
    from microsandbox_core.errors import StorageError

    found = StorageError.from_os(action, path, error)
    return StateError(str(found), hint=found.hint, code=found.code)
