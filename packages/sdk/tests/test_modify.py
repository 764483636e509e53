"""Plans of changes, and their way into the database."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from microsandbox import Applies, ConfigError, CreateOptions, Modifications, Sandbox, SandboxNotFound
from microsandbox import modify as module
from microsandbox._config import SandboxConfig
from microsandbox._state import Record, State
from microsandbox.modify import modify, plan

CONFIG = SandboxConfig(cpus=1, memory_mib=512, env=(("A", "1"),), workdir="/srv")
RECORD = Record("0" * 16, "dev", False, 1, "busybox", "sha256:0", CONFIG.pack(), (("a", "b"),))


def changed(*, active: bool = True, **wanted: Any) -> list[tuple[str, Any, Any, Applies]]:
    _, made = plan(RECORD, wanted, active=active, dry_run=False)  # type: ignore[arg-type]
    return [(change.field, change.before, change.after, change.applies) for change in made.changes]


def test_what_counts_now_and_what_at_the_next_start() -> None:
    assert changed(env={"B": "2"}, user="nobody") == [
        ("env", {"A": "1"}, {"B": "2"}, Applies.NOW),
        ("user", None, "nobody", Applies.NOW),
    ]
    assert changed(memory="1G", cpus=2, idle_timeout="5m") == [
        ("memory", 512, 1024, Applies.NEXT_START),
        ("cpus", 1, 2, Applies.NEXT_START),
        ("idle_timeout", None, 300.0, Applies.NEXT_START),
    ]
    assert changed(memory="1G", active=False) == [("memory", 512, 1024, Applies.NOW)]


def test_what_is_so_already_is_not_in_it() -> None:
    assert changed(memory="512M", env={"A": "1"}, labels={"a": "b"}, workdir="/srv") == []
    assert changed(workdir=None) == [("workdir", "/srv", None, Applies.NOW)]


@pytest.mark.parametrize(
    ("wanted", "kind", "words"),
    [
        ({"memory": "1M"}, ConfigError, "memory"),
        ({"hostname": "a b"}, ConfigError, "hostname"),
        ({"labels": {"-": ""}}, ConfigError, "label"),
        ({"cmd": "true"}, TypeError, "cmd"),
        ({"cold": 1}, TypeError, "cold"),
        ({"image": "x"}, TypeError, "'image'"),
    ],
)
def test_bad_values_are_named(wanted: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        changed(**wanted)


def test_it_is_written_and_read(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.add(RECORD)
    found, made = modify(tmp_path, RECORD.id, {"memory": "1G", "labels": {"c": "d"}}, dry_run=True)
    assert (found, made.applied, made.needs_restart) == (RECORD, False, False)
    assert state.find("dev") == RECORD
    found, made = modify(tmp_path, RECORD.id, {"memory": "1G", "labels": {"c": "d"}}, dry_run=False)
    assert state.find("dev") == found
    assert (SandboxConfig.unpack(found.config).memory_mib, found.labels) == (1024, (("c", "d"),))
    with pytest.raises(ConfigError):
        modify(tmp_path, RECORD.id, {"labels": {}, "memory": "1M"}, dry_run=False)
    assert state.find("dev") == found
    with pytest.raises(SandboxNotFound):
        modify(tmp_path, "f" * 16, {"cpus": 2}, dry_run=False)
    state.close()


def test_every_setting_is_known() -> None:
    assert set(Modifications.__annotations__) == {*module._FIELDS, "labels"}
    assert {field for field, _ in module._FIELDS.values()} <= set(SandboxConfig._fields)


def test_what_create_takes_can_be_passed_on() -> None:
    of_create = set(inspect.signature(Sandbox.create).parameters) - {"name", "image", "progress"}
    assert of_create == set(CreateOptions.__annotations__)
