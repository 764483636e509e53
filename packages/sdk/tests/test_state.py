"""The database: unique names, refusals that name it, no write to what it does not understand."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import msgpack
import pytest
from microsandbox import _config
from microsandbox._config import SandboxConfig
from microsandbox._state import SCHEMA_VERSION, Record, State
from microsandbox.errors import AlreadyExists, StateError


def record(identifier: str = "a1", name: str = "dev") -> Record:
    return Record(identifier, name, False, 1, "busybox", "sha256:0", b"\x80")


def test_what_was_added_is_found_by_name_and_id(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.add(record())
    assert state.find("dev") == record()
    assert state.find("a1") == record()
    assert state.find("other") is None
    assert state.all() == [record()]
    state.close()


def test_a_name_beats_an_equal_id(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.add(record("b2", "first"))
    state.add(record("c3", "b2"))
    found = state.find("b2")
    assert found is not None
    assert found.id == "c3"
    state.close()


def test_a_taken_name_is_refused_with_a_way_out(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.add(record())
    with pytest.raises(AlreadyExists, match="'dev'") as caught:
        state.add(record("other"))
    assert "msb rm dev" in (caught.value.hint or "")
    assert len(state.all()) == 1
    state.close()


def test_removing_what_is_not_there_is_nothing(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.remove("nothing")
    state.close()


def test_the_file_is_private(tmp_path: Path) -> None:
    state = State(tmp_path / "home")
    state.add(record())
    state.close()
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "home" / "state.db").stat().st_mode & 0o777 == 0o600


def test_l08_a_newer_schema_is_refused_without_writing(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE future (x)")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StateError, match="newer") as caught:
        State(tmp_path).all()
    assert caught.value.hint
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.db"]


@pytest.mark.parametrize("content", [b"garbage" * 1000, b"SQLite format 3\0" + b"\xff" * 4000])
def test_l08_a_corrupt_database_is_named_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state.db"
    path.write_bytes(content)
    with pytest.raises(StateError, match=r"state\.db") as caught:
        State(tmp_path).all()
    assert caught.value.hint
    assert path.read_bytes() == content


def test_a_file_in_place_of_the_home_is_named(tmp_path: Path) -> None:
    (tmp_path / "home").write_bytes(b"")
    with pytest.raises(StateError, match="home"):
        State(tmp_path / "home").all()


def test_a_database_that_was_left_open_has_every_row_and_is_closed_by_the_next(tmp_path: Path) -> None:
    script = "import os, sys; from pathlib import Path\n"
    script += "from microsandbox._state import Record, State, leave_open\n"
    script += "leave_open(); leave_open(); state = State(Path(sys.argv[1]))\n"
    script += "state.add(Record('a1', 'dev', False, 1, 'busybox', 'sha256:0', b'\\x80')); state.close()\n"
    script += "os._exit(0)"
    subprocess.run([sys.executable, "-c", script, tmp_path], check=True)
    log = tmp_path / "state.db-wal"
    assert log.stat().st_size > 0
    state = State(tmp_path)
    assert state.all() == [record()]
    state.close()
    assert not log.exists()


def test_labels_are_kept_with_the_record_and_go_with_it(tmp_path: Path) -> None:
    state = State(tmp_path)
    labelled = record()._replace(labels=(("team", "a"), ("x", "")))
    state.add(labelled)
    state.add(record("b2", "other"))
    assert state.find("dev") == labelled
    assert [found.labels for found in state.all()] == [labelled.labels, ()]
    assert state.remove("a1")
    assert not state.remove("a1")
    # The same id again would meet labels that stayed.
    state.add(record())
    assert state.find("dev") == record()
    state.close()


def test_a_record_takes_the_place_and_the_name_of_another(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.add(record())
    state.add(record("b2")._replace(labels=(("new", "1"),)), instead_of="a1")
    assert [found.id for found in state.all()] == ["b2"]
    state.add(record("c3", "other"))
    with pytest.raises(AlreadyExists):
        state.add(record("d4", "other"), instead_of="b2")
    assert [found.id for found in state.all()] == ["b2", "c3"]
    state.close()


OLD_SCHEMA = """
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


@pytest.fixture
def old_home(tmp_path: Path) -> Path:
    """A home as the first schema had it: labels were in the configuration."""
    connection = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(OLD_SCHEMA)
    config = msgpack.packb(
        {"cpus": 2, "labels": [["team", "a"], ["odd", "\udcff"]]}, unicode_errors="surrogateescape"
    )
    connection.execute(
        "INSERT INTO sandboxes VALUES ('a1', 'dev', 0, 1, 'busybox', 'sha256:0', ?)", (config,)
    )
    connection.execute("PRAGMA user_version = 1")
    connection.close()
    return tmp_path


def test_the_first_schema_is_migrated_with_its_labels(old_home: Path) -> None:
    state = State(old_home)
    found = state.find("dev")
    assert found is not None
    assert found.labels == (("odd", "?"), ("team", "a"))
    assert SandboxConfig.unpack(found.config).cpus == 2
    state.close()
    with closing(sqlite3.connect(old_home / "state.db")) as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION


def test_a_migration_that_fails_leaves_the_first_schema(
    old_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(packed: bytes) -> dict[str, str]:
        raise MemoryError

    monkeypatch.setattr(_config, "stored_labels", fail)
    with pytest.raises(MemoryError):
        State(old_home).all()
    with closing(sqlite3.connect(old_home / "state.db")) as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == 1
        assert connection.execute("SELECT name FROM sqlite_master WHERE name = 'labels'").fetchall() == []
    monkeypatch.undo()
    assert len(State(old_home).all()) == 1


def test_reading_waits_for_no_writer(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.add(record())
    with closing(sqlite3.connect(tmp_path / "state.db", isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("DELETE FROM sandboxes")
        assert state.all() == [record()]
        assert state.find("dev") == record()
    state.close()
