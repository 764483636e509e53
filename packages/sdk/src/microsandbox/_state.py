"""The state database: what was asked for. What runs is said by the locks alone.

SQLite in `$MSB_HOME/state.db`, write-ahead log, one short transaction per call. The schema's
version is SQLite's `user_version`; a newer one is refused without writing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from microsandbox.errors import AlreadyExists, StateError

if TYPE_CHECKING:
    import sqlite3

SCHEMA_VERSION = 1
_BUSY_TIMEOUT = 10.0  # seconds that a command waits for another one's transaction

_SCHEMA = """
CREATE TABLE sandboxes (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    ephemeral INTEGER NOT NULL,
    created_ns INTEGER NOT NULL,
    image TEXT NOT NULL,
    image_digest TEXT NOT NULL,
    config BLOB NOT NULL
) STRICT
"""


class Record(NamedTuple):
    """A row: one sandbox that was asked for. `config` is MessagePack (see `_config`)."""

    id: str
    name: str
    ephemeral: bool
    created_ns: int
    image: str
    image_digest: str
    config: bytes


_left_open: list[sqlite3.Connection] | None = None


_LOG_PAGES = 24


def leave_open() -> None:
    """From now on `State.close` closes nothing: for a process that ends soon, by `os._exit`.

    Whoever closes a database last copies its log into it, with four waits for the disk. Left alone, the
    log is copied every few runs by whoever writes then; a killed process leaves it the same way.
    """
    global _left_open
    if _left_open is None:
        _left_open = []


class State:
    """The database of one home directory, opened at the first use."""

    def __init__(self, home: Path) -> None:
        self.path = home / "state.db"
        self._connection: sqlite3.Connection | None = None

    def add(self, record: Record) -> None:
        """Insert a sandbox. Raises `AlreadyExists` when the name is taken."""
        import sqlite3

        try:
            with self._transaction() as connection:
                connection.execute("INSERT INTO sandboxes VALUES (?, ?, ?, ?, ?, ?, ?)", record)
        except sqlite3.IntegrityError as error:
            raise AlreadyExists(
                f"a sandbox named {record.name!r} exists",
                hint=f"choose another name, or remove it: msb rm {record.name}",
            ) from error

    def find(self, name: str) -> Record | None:
        """The sandbox of this name or id."""
        with self._transaction() as connection:
            row = connection.execute(
                "SELECT * FROM sandboxes WHERE name = ? OR id = ? ORDER BY name = ? DESC",
                (name, name, name),
            ).fetchone()
        return None if row is None else _record(row)

    def all(self) -> list[Record]:
        """Every sandbox, oldest first."""
        with self._transaction() as connection:
            rows = connection.execute("SELECT * FROM sandboxes ORDER BY created_ns").fetchall()
        return [_record(row) for row in rows]

    def remove(self, identifier: str) -> None:
        """Forget a sandbox; nothing happens if it is not there."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM sandboxes WHERE id = ?", (identifier,))

    def close(self) -> None:
        """Close the database; it is opened again when needed."""
        if self._connection is not None:
            if _left_open is None:
                self._connection.close()
            else:
                _left_open.append(self._connection)
            self._connection = None

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        # Only here: a start imports this module before it is ready for the database.
        import sqlite3

        try:
            connection = self._connection or self._open()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            raise self._error(error) from error

    def _open(self) -> sqlite3.Connection:
        import sqlite3

        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StateError(
                f"cannot create {self.path.parent}: {error.strerror}",
                hint="set MSB_HOME to a directory that you can write to",
            ) from error
        # Python's own transaction handling is off: BEGIN IMMEDIATE is what makes two writers wait
        # for each other instead of failing in the middle.
        connection = sqlite3.connect(
            self.path, timeout=_BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
        )
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA_VERSION:
                raise StateError(
                    f"{self.path} was written by a newer microsandbox "
                    f"(schema {version}, this one knows {SCHEMA_VERSION})",
                    hint="upgrade microsandbox, or set MSB_HOME to another directory",
                )
            if version < SCHEMA_VERSION:
                os.chmod(self.path, 0o600)  # noqa: PTH101 - sqlite created it with the umask's mode
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("BEGIN IMMEDIATE")
                # Another process may have done it while this one waited.
                if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
                    connection.execute(_SCHEMA)
                    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                connection.execute("COMMIT")
            # A crash of the machine may lose the last rows, never the database: rows describe
            # directories, and what disagrees is repaired by the next command.
            connection.execute("PRAGMA synchronous = NORMAL")
            # Pages of the log after which whoever writes copies it into the database: see `leave_open`.
            connection.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _error(self, error: sqlite3.Error) -> StateError:
        message = str(error)
        if "readonly" in message or "unable to open" in message:
            hint = "make the directory writable for you, or set MSB_HOME to one that is"
        elif "full" in message:
            hint = "free some space, or set MSB_HOME to a directory on another file system"
        elif "locked" in message:
            hint = "another msb command holds it; if none runs, look for a stuck one with `fuser`"
        elif "malformed" in message or "not a database" in message:
            hint = f"move {self.path} away; images stay, named sandboxes have to be created again"
        else:
            hint = "run `msb doctor`"
        return StateError(f"the state database {self.path}: {message}", hint=hint)


def _record(row: tuple[str, str, int, int, str, str, bytes]) -> Record:
    return Record(row[0], row[1], bool(row[2]), row[3], row[4], row[5], row[6])
