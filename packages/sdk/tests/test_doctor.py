"""What `msb doctor` says about the state directory."""

from __future__ import annotations

import errno
import os
import resource
import socket
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from microsandbox import _doctor as doctor
from microsandbox import _doctor_network
from microsandbox._directory import SandboxDirectory
from microsandbox._doctor import Check, Report, Status
from microsandbox._doctor_network import examine_network
from microsandbox._state import SCHEMA_VERSION, Record, State
from microsandbox_net import StackConfig


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home on a machine where everything is in place."""
    ready = Report((), "qemu", "kvm", ready=True)
    monkeypatch.setattr(doctor, "examine_machine", lambda _: ready)
    return tmp_path


def _checks(home: Path) -> dict[str, Check]:
    return {check.name: check for check in doctor.examine(home).checks}


def _add(home: Path, name: str) -> SandboxDirectory:
    directory = SandboxDirectory(home, os.urandom(8).hex())
    os.close(directory.create())
    state = State(home)
    state.add(Record(directory.path.name, name, False, 1, "image", "sha256:" + "0" * 64, b"\x80"))
    state.close()
    return directory


def test_an_empty_home_is_fine(home: Path) -> None:
    report = doctor.examine(home)
    assert report.ready
    ours = {check.name: check.status for check in report.checks}
    assert {ours[name] for name in ("state database", "sandboxes", "templates", "leftovers")} == {Status.OK}
    assert list(home.iterdir()) == [], "looking creates nothing"


def test_sandboxes_and_leftovers_are_counted(home: Path) -> None:
    _add(home, "one")
    assert _checks(home)["sandboxes"].seen == "0 running, 1 not"
    (home / "cache").mkdir()
    (home / "cache" / ".kernel.999999999-1.tmp").touch()
    check = _checks(home)["leftovers"]
    assert (check.status, check.fix) == (Status.WARNING, "msb prune")


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + b"\xa5" * 8000])
def test_a_damaged_database_is_not_ready(home: Path, content: bytes) -> None:
    (home / "state.db").write_bytes(content)
    report = doctor.examine(home)
    (check,) = (check for check in report.checks if check.name == "state database")
    assert (report.ready, check.status) == (False, Status.MISSING)
    assert str(home / "state.db") in check.seen
    assert "mv " in str(check.fix)
    assert (home / "state.db").read_bytes() == content
    assert report.summary == "not ready: state database"


def test_a_page_that_is_damaged_is_found(home: Path) -> None:
    for number in range(200):
        _add(home, f"box-{number}")
    with closing(sqlite3.connect(home / "state.db")) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    data = bytearray((home / "state.db").read_bytes())
    data[3 * 4096 : 3 * 4096 + 2000] = b"\xff" * 2000
    (home / "state.db").write_bytes(data)
    assert _checks(home)["state database"].status is Status.MISSING


def test_a_newer_database_is_told(home: Path) -> None:
    _add(home, "one")
    with closing(sqlite3.connect(home / "state.db")) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    check = _checks(home)["state database"]
    assert (check.status, "update" in str(check.fix)) == (Status.MISSING, True)


def _network() -> dict[str, Check]:
    return {check.name: check for check in examine_network()}


@pytest.mark.parametrize(
    ("routes", "status", "seen"),
    [
        ((True, True), Status.OK, "offered IPv4 and IPv6"),
        ((True, False), Status.OK, "IPv6 they are not"),
        ((False, True), Status.OK, "IPv4 they are not"),
        ((False, False), Status.WARNING, "no route leads out"),
    ],
)
def test_which_families_sandboxes_have_is_told(
    monkeypatch: pytest.MonkeyPatch, routes: tuple[bool, bool], status: Status, seen: str
) -> None:
    monkeypatch.setattr(_doctor_network, "routed", lambda: routes)
    check = _network()["network"]
    assert (check.status, seen in check.seen, check.fix is None) == (status, True, status is Status.OK)


@pytest.mark.parametrize(
    ("refusal", "seen", "fix"),
    [
        (None, "can ping what their policies allow", None),
        (errno.EACCES, "(1 to 0) leaves out this user", "net.ipv4.ping_group_range="),
        (errno.EPROTONOSUPPORT, "no ping sockets", None),
    ],
)
def test_whether_sandboxes_can_ping_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refusal: int | None, seen: str, fix: str | None
) -> None:
    def open_socket(family: int, kind: int, _protocol: int) -> socket.socket:
        if refusal is not None:
            raise OSError(refusal, os.strerror(refusal))
        return real(family, kind)

    real = socket.socket
    monkeypatch.setattr(_doctor_network, "_PING_RANGE", tmp_path / "range")
    (tmp_path / "range").write_text("1\t0\n")
    with monkeypatch.context() as patched:
        patched.setattr(socket, "socket", open_socket)
        check = _network()["ping"]
    assert check.status is (Status.OK if refusal is None else Status.WARNING)
    assert seen in check.seen
    assert (fix or "") in (check.fix or "")
    assert (check.fix is None) is (fix is None)


@pytest.mark.parametrize(
    ("limit", "seen"),
    [(1024, "768 of TCP"), (100, "16 of TCP"), (1 << 20, "8192 of TCP"), (resource.RLIM_INFINITY, "8192 of")],
)
def test_how_many_connections_there_may_be_is_told(
    monkeypatch: pytest.MonkeyPatch, limit: int, seen: str
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, limit))
    check = _network()["connections"]
    assert (check.status, check.fix) == (Status.OK, None)
    assert check.seen.startswith(seen)
    assert ("ulimit -Hn 8448" in check.seen) is (limit in (100, 1024))


def test_the_bound_of_connections_is_that_of_the_stack() -> None:
    assert StackConfig("", "").max_connections == _doctor_network._MOST
