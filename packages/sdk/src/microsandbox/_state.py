"""The state database: what was asked for. What runs is said by the locks alone.

SQLite in `$MSB_HOME/state.db`, write-ahead log, one short transaction per call. The schema's
version is SQLite's `user_version`; a newer one is refused without writing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from microsandbox.errors import AlreadyExists, StateError

if TYPE_CHECKING:
    import sqlite3

SCHEMA_VERSION = 2
_BUSY_TIMEOUT = 10.0  # seconds that a command waits for another one's transaction

_SANDBOXES = """
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
_LABELS = """
CREATE TABLE labels (
    sandbox TEXT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (sandbox, key)
) STRICT, WITHOUT ROWID
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
    labels: tuple[tuple[str, str], ...] = ()


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

    def add(self, record: Record, *, instead_of: str | None = None) -> None:
        """Insert a sandbox, in the same step in which the one with the id `instead_of` is forgotten.

        Raises `AlreadyExists` when the name is taken.
        """
        import sqlite3

        try:
            with self._transaction() as connection:
                if instead_of is not None:
                    _delete(connection, instead_of)
                connection.execute("INSERT INTO sandboxes VALUES (?, ?, ?, ?, ?, ?, ?)", record[:7])
                _label(connection, record.id, dict(record.labels))
        except sqlite3.IntegrityError as error:
            raise AlreadyExists(
                f"a sandbox named {record.name!r} exists",
                hint=f"choose another name, remove it (msb rm {record.name}), or use --replace",
            ) from error

    def change(self, identifier: str, make: Callable[[Record], Record | None]) -> Record | None:
        """Replace configuration and labels of a sandbox by what `make` makes of its record, None for no
        change, in one step with reading it. The record as it is then; None if there is no such sandbox."""
        with self._transaction() as connection:
            found = _select(connection, "id = ?", (identifier,))
            changed = None if found is None else make(found)
            if changed is None:
                return found
            connection.execute("UPDATE sandboxes SET config = ? WHERE id = ?", (changed.config, identifier))
            connection.execute("DELETE FROM labels WHERE sandbox = ?", (identifier,))
            _label(connection, identifier, dict(changed.labels))
        return changed

    def find(self, name: str) -> Record | None:
        """The sandbox of this name or id."""
        return self._find("name = ? OR id = ? ORDER BY name = ? DESC", (name, name, name))

    def find_id(self, identifier: str) -> Record | None:
        """The sandbox of this id."""
        return self._find("id = ?", (identifier,))

    def _find(self, condition: str, values: tuple[str, ...]) -> Record | None:
        with self._reading() as connection:
            return _select(connection, condition, values)

    def all(self) -> list[Record]:
        """Every sandbox, oldest first."""
        with self._reading() as connection:
            rows = connection.execute("SELECT * FROM sandboxes ORDER BY created_ns").fetchall()
            labels: dict[str, list[tuple[str, str]]] = {}
            for sandbox, key, value in connection.execute("SELECT * FROM labels ORDER BY key"):
                labels.setdefault(sandbox, []).append((key, value))
        return [_record(row, labels.get(row[0], ())) for row in rows]

    def remove(self, identifier: str) -> bool:
        """Forget a sandbox; whether it was there."""
        with self._transaction() as connection:
            return _delete(connection, identifier)

    def close(self) -> None:
        """Close the database; it is opened again when needed."""
        if self._connection is not None:
            if _left_open is None:
                self._connection.close()
            else:
                _left_open.append(self._connection)
            self._connection = None

    def _reading(self) -> AbstractContextManager[sqlite3.Connection]:
        """A transaction that waits for nobody and that nobody waits for: all it reads is of one moment."""
        return self._transaction("BEGIN")

    @contextmanager
    def _transaction(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[sqlite3.Connection]:
        # Only here: a start imports this module before it is ready for the database.
        import sqlite3

        try:
            connection = self._connection or self._open()
            connection.execute(begin)
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
                _migrate(connection, connection.execute("PRAGMA user_version").fetchone()[0])
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
        message, code = str(error), None
        if "readonly" in message or "unable to open" in message:
            hint = "make the directory writable for you, or set MSB_HOME to one that is"
        elif "full" in message:
            hint = "free some space, or set MSB_HOME to a directory on another file system"
            code = "no_space"
        elif "locked" in message:
            hint = "another msb command holds it; if none runs, look for a stuck one with `fuser`"
        elif "malformed" in message or "not a database" in message:
            hint = f"move {self.path} away; images stay, named sandboxes have to be created again"
        else:
            hint = "run `msb doctor`"
        return StateError(f"the state database {self.path}: {message}", hint=hint, code=code)


def _migrate(connection: sqlite3.Connection, version: int) -> None:
    """Bring the schema from `version` to `SCHEMA_VERSION`, in the transaction of the caller."""
    if version < 1:
        connection.execute(_SANDBOXES)
    if version < 2:
        connection.execute(_LABELS)
        # Until then labels were a part of the configuration that nothing could be selected by.
        from microsandbox._config import stored_labels

        for identifier, config in connection.execute("SELECT id, config FROM sandboxes").fetchall():
            _label(connection, identifier, stored_labels(config))
    if version < SCHEMA_VERSION:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _select(connection: sqlite3.Connection, condition: str, values: tuple[str, ...]) -> Record | None:
    row = connection.execute(f"SELECT * FROM sandboxes WHERE {condition}", values).fetchone()
    if row is None:
        return None
    labels = connection.execute(
        "SELECT key, value FROM labels WHERE sandbox = ? ORDER BY key", (row[0],)
    ).fetchall()
    return _record(row, labels)


def _label(connection: sqlite3.Connection, identifier: str, labels: Mapping[str, str]) -> None:
    connection.executemany(
        "INSERT INTO labels VALUES (?, ?, ?)", [(identifier, key, value) for key, value in labels.items()]
    )


def _delete(connection: sqlite3.Connection, identifier: str) -> bool:
    connection.execute("DELETE FROM labels WHERE sandbox = ?", (identifier,))
    return connection.execute("DELETE FROM sandboxes WHERE id = ?", (identifier,)).rowcount > 0


def _record(row: tuple[str, str, int, int, str, str, bytes], labels: Iterable[tuple[str, str]]) -> Record:
    return Record(row[0], row[1], bool(row[2]), row[3], row[4], row[5], row[6], tuple(labels))
