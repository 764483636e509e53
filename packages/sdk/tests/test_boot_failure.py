"""What is told of a start that failed, and the log of who tells it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from microsandbox.supervisor import __main__ as entry
from microsandbox.supervisor._boot_failure import hint_for


@pytest.mark.parametrize(
    ("stage", "console", "said"),
    [
        ("boot", "Kernel panic - not syncing: No working init found.", "reinstall microsandbox-core"),
        ("boot", "Kernel panic - not syncing: System is deadlocked on memory", "give it more"),
        ("boot", "VFS: Cannot open root device; Kernel panic", "boot disk"),
        ("boot", "Kernel panic - not syncing: Fatal exception", "--cold"),
        ("boot", "", "msb doctor"),
        ("spawn", "", "msb doctor"),
        ("configure", "", "damaged"),
        ("of a later version", "", "msb doctor"),
    ],
)
def test_the_hint_goes_by_what_the_console_said(stage: str, console: str, said: str) -> None:
    assert said in hint_for(stage, console)


def test_the_supervisors_log_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    monkeypatch.setattr(entry, "_LOG", descriptor)
    log = entry._BoundedLog()
    for number in range(30_000):
        log.write(f"line {number} \udc80\n")
        assert number % 1000 or path.stat().st_size <= entry._LOG_LIMIT
    assert path.read_text().endswith("line 29999 \\udc80\n")
    log.write("x" * (1 << 20))
    assert path.read_bytes() == b"x" * entry._LOG_LIMIT
    os.close(descriptor)
    log.write("nobody hears this")
