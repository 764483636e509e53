"""A sandbox's directory and the lock that says whether it runs.

`$MSB_HOME/sandboxes/<id>/` holds `lock`, `agent.sock`, `upper.ext4`, `life` (see `_life`), `console.log`,
`supervisor.log`, `logs/`, where there are limits of the host `cgroup`, and `owned-N/` (see `_owned`). The
supervisor holds an exclusive flock on `lock` for as long as it lives; the kernel lets go of it however the
supervisor ends.
"""

from __future__ import annotations

import errno
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
    def doomed(self) -> Path:
        """The former writable disk of a sandbox whose removal has begun before its record went (`doom`)."""
        return self.path / "doomed"

    @property
    def patches(self) -> Path:
        """What is to be done to the root before anything runs (see `patch`); gone when it is done."""
        return self.path / "patches"

    @property
    def fork(self) -> Path:
        """What a sandbox that is a fork is started from; there until it is up."""
        return self.path / "fork"

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

    @property
    def network_log(self) -> Path:
        """What the network has decided, as JSON lines; the one before is `network.log.1`."""
        return self.path / "network.log"

    @property
    def cgroup(self) -> str | None:
        """The control group that the host made for its processes, by a link to it; None if there was none."""
        try:
            return os.readlink(f"{self.path}/cgroup")  # noqa: PTH115
        except OSError:
            return None

    def release_cgroup(self) -> None:
        """Remove the control group of a supervisor that was killed; for who holds the lock."""
        group = self.cgroup
        if group is not None:
            from microsandbox_core.cgroup import remove

            if remove(group):
                _delete(self.path / "cgroup")

    def create(self) -> int:
        """Make the directory and return a descriptor that holds its lock. Raises `StateError`."""
        with guard(self.path.parent, fcntl.LOCK_EX):
            try:
                self.path.mkdir(mode=0o700)
            except OSError as error:
                raise state_error("create", self.path, error) from error
            try:
                descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                # Nobody else can hold it: everyone who could look waits for the guard.
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                self.remove()
                raise state_error("create", self.lock, error) from error
        return descriptor

    def try_lock(self) -> int | None:
        """The lock, as a descriptor, if no supervisor holds it; None if one does or it is gone."""
        try:
            if not self.path.parent.is_dir():
                return None
        except OSError as error:
            raise state_error("read", self.path.parent, error) from error
        # Looking takes the lock for a moment. Without the guard a start that meets a look
        # would take the sandbox for running.
        with guard(self.path.parent, fcntl.LOCK_EX):
            try:
                descriptor = os.open(self.lock, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            except OSError as error:
                raise state_error("open", self.lock, error) from error
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
        """Whether a supervisor holds the lock. Raises `StateError` when that cannot be found out."""
        try:
            if not self.path.is_dir():
                return False
            with guard(self.path.parent, fcntl.LOCK_SH):
                return self._is_locked()
        except OSError as error:
            raise state_error("open", self.lock, error) from error
        except StateError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                return False  # no guard can be made: then nobody could have started anything either
            raise

    def _is_locked(self) -> bool:
        """`is_running` for who holds the guard."""
        return is_locked(str(self.lock))

    def doom(self) -> None:
        """Begin a removal that others are to finish if we cannot, also where there is no room to note it.

        For who holds the lock. Raises `StateError`.
        """
        try:
            self.upper.rename(self.doomed)
        except FileNotFoundError:
            pass  # it has no disk yet, or lost it in another way: nothing can be lost any more
        except OSError as error:
            raise state_error("rename", self.upper, error) from error

    def remove(self) -> None:
        """Delete everything. The lock goes last: what is half deleted still counts as running.

        But for the mark of `doom`: as long as there is a lock, there is that.
        """
        self.release_cgroup()
        last = (self.lock.name, self.doomed.name)
        for name in _names(self.path):
            if name not in last:
                _delete(self.path / name)
        for name in last:
            _delete(self.path / name)
        try:
            self.path.rmdir()
        except FileNotFoundError:
            pass  # another process was repairing the same leftovers
        except OSError as error:
            raise state_error("remove", self.path, error) from error


def is_locked(path: str) -> bool:
    """Whether somebody holds this lock; for who holds the guard.

    Raises `OSError` when that cannot be found out: nobody may take what runs for a leftover then.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
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
    try:
        if not parent.is_dir():
            return
        with guard(parent, fcntl.LOCK_EX):
            for name in _names(parent):
                directory = SandboxDirectory(home, name)
                if name.startswith(".") or not directory.path.is_dir():
                    continue
                if not directory._is_locked() and not is_known(name):
                    directory.remove()
    except OSError as error:
        raise state_error("read", parent, error) from error


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
        raise state_error("create", parent, error) from error
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
    except OSError as error:
        raise state_error("read", path, error) from error


def _delete(path: Path) -> None:
    from microsandbox_core.artifacts import remove

    try:
        try:
            remove(path)
        except FileNotFoundError:
            raise
        except OSError:
            # There are directories in it. Only here: an end that is waited for does not need the import.
            from microsandbox import _trees

            _trees.remove(path)
    except FileNotFoundError:
        pass  # another process was repairing the same leftovers
    except OSError as error:
        raise state_error("remove", path, error) from error


def state_error(action: str, path: Path, error: OSError) -> StateError:
    """The error for what the system said when `action` ("read", "create", ...) was tried."""
    from microsandbox_core.errors import StorageError

    found = StorageError.from_os(action, path, error)
    return StateError(str(found), hint=found.hint, code=found.code)
