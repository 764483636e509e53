"""A program in the guest that watches a directory of the host sees what the host changes there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.msb import Msb, Running
from tests.support.programs import compiled

pytestmark = pytest.mark.vm

BURST = 10_000
# A directory is told by name of so many changes at once, ten times a second.
NAMES = 512


@pytest.fixture
def src(tmp_path: Path) -> Path:
    """What is shared, with a program that watches."""
    src = tmp_path / "src"
    (src / "inner").mkdir(parents=True)
    program = src / "watcher"
    program.write_bytes(compiled("watcher"))
    program.chmod(0o755)
    for name in ("kept", "changed", "gone", "inner/gone", "inner/own"):
        (src / name).write_text("before\n")
    return src


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A directory that is not shared, and that must not change."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("outside\n")
    yield outside
    assert [entry.name for entry in outside.iterdir()] == ["file"]
    assert (outside / "file").read_text() == "outside\n"


def until(watcher: Running, last: str) -> list[str]:
    """The events up to that one."""
    events: list[str] = []
    while not events or events[-1] != last:
        line = watcher.line().decode()
        assert line, f"the program ended: {events[-10:]} {watcher.finish().complaint}"
        events.append(line.rstrip("\n"))
    return events


def begin(watcher: Running, src: Path, name: str) -> None:
    """Wait until the program watches, and the host does as well."""
    until(watcher, "ready")
    (src / name).write_text("")
    until(watcher, f"CLOSE_WRITE /app/{name}")


@pytest.mark.parametrize("mode", ["rw", "ro"])
def test_changes_of_the_host_are_events_in_the_guest(msb: Msb, src: Path, outside: Path, mode: str) -> None:
    (src / "link").symlink_to(outside)
    with msb.start(
        "run", "-v", f"{src}:/app:{mode},watch", "busybox", "--",
        "/app/watcher", "/app", "/app/inner",
    ) as watcher:  # fmt: skip
        begin(watcher, src, "begun")
        before = (src / "kept").stat()
        (src / "changed").write_text("longer than before\n")
        (src / "gone").unlink()
        (src / "inner/gone").unlink()
        (src / "made").mkdir()
        (outside / "file").touch()
        os.utime(src / "kept")
        (src / "kept").chmod(0o640)
        (src / "end").write_text("")
        events = until(watcher, "CLOSE_WRITE /app/end")
        assert {
            "MODIFY /app/changed", "CLOSE_WRITE /app/changed", "DELETE /app/gone", "DELETE /app/inner/gone",
            "CREATE,ISDIR /app/made", "ATTRIB /app/kept", "CREATE /app/end",
        } <= set(events)  # fmt: skip
        # It is seen by name alone: nothing behind the link, nothing twice.
        assert not any("link" in event or "outside" in event for event in events)
        assert events.count("CREATE /app/end") == 1
        assert (src / "kept").stat().st_mtime_ns > before.st_mtime_ns
        changed = (src / "changed").stat().st_mtime_ns
        # What is made in a directory that was just made is seen, and a file that is put in another's place.
        (src / "made/new").write_text("")
        until(watcher, "CLOSE_WRITE /app/made/new")
        (src / "draft").write_text("the other\n")
        (src / "draft").rename(src / "changed")
        until(watcher, "CLOSE_WRITE /app/changed")
        # Telling it changes nothing here.
        assert (src / "changed").read_text() == "the other\n"
        assert (src / "changed").stat().st_mtime_ns > changed
        assert (src / "inner/own").read_text() == "before\n"


def test_a_burst_is_told_in_few_events(msb: Msb, src: Path) -> None:
    with msb.start(
        "run", "-v", f"{src}:/app:watch", "busybox", "--", "/app/watcher", "/app", "/app/inner",
    ) as watcher:  # fmt: skip
        begin(watcher, src, "begun")
        for number in range(BURST):
            (src / f"inner/{number}").write_text("")
        for number in range(2000):
            names = ("storm", "tempest") if number % 2 else ("tempest", "storm")
            if number == 0:
                (src / "tempest").write_text("")
            (src / names[0]).rename(src / names[1])
        (src / "end").write_text("")
        events = until(watcher, "CLOSE_WRITE /app/end")
        # Those that were too many for their names are told by their directory.
        events += until(watcher, "ATTRIB,ISDIR /app/inner") if "ATTRIB,ISDIR /app/inner" not in events else []
        created = [event for event in events if event.startswith("CREATE /app/inner/")]
        assert NAMES <= len(created) < BURST
        assert len([event for event in events if "storm" in event or "tempest" in event]) < 500
        # And all goes on by name after it.
        (src / "inner/after").write_text("")
        until(watcher, "CLOSE_WRITE /app/inner/after")
