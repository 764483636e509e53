"""Machines that do not come up: the error says at which stage, what the console had at its end, what to do.

What `msb start` met is kept in the record; a sandbox that `msb run` or `msb create` could not start is
gone, and all there is to say is printed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import faults
from tests.support.elf import program
from tests.support.msb import Done, Msb, Running

pytestmark = [pytest.mark.vm, pytest.mark.once]

COLD = ("--cold", "-m", "128M")
CONSOLE_LIMIT = 4096


def _with(msb: Msb, tmp_path: Path, *arguments: str, agent: Path | None = None, **settings: float) -> Done:
    """`msb` with something else in place of agentd, or with other deadlines."""
    environ = faults.environment(
        msb.home, tmp_path / "notes", agent=agent,
        settings={f"microsandbox.supervisor._supervise.{name}": value for name, value in settings.items()},
    )  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, faults.__file__, *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**msb.environ, **environ},
    )  # fmt: skip
    with Running(process) as command:
        return command.finish(timeout=120)


@pytest.fixture
def dev(own_msb: Msb) -> Iterator[Msb]:
    """A home with a sandbox `dev` that has run."""
    own_msb("run", "-m", "128M", "--name", "dev", "busybox", "--", "true").succeeded()
    yield own_msb
    own_msb("rm", "--force", "dev").succeeded()


def _inspected(msb: Msb) -> dict[str, Any]:
    (shown,) = json.loads(msb("inspect", "dev").succeeded().out)
    assert isinstance(shown, dict)
    assert (shown["status"], shown["end"]["cause"]) == ("crashed", "start_failed")
    return shown


def _console_notes(done: Done) -> list[str]:
    lines = [line for line in done.complaint.splitlines() if line.startswith("note: console: ")]
    assert len(lines) <= 10
    assert all(len(line) < 300 for line in lines)
    return lines


@pytest.fixture
def no_agent(tmp_path: Path) -> Path:
    """What the kernel cannot run as its first program, on which it panics."""
    path = tmp_path / "text"
    path.write_text("#!/nonexistent/interpreter\n")
    return path


def test_a_kernel_that_panics(dev: Msb, tmp_path: Path, no_agent: Path) -> None:
    """agentd is missing: the kernel panics, and says so on the console."""
    done = _with(dev, tmp_path, "start", "--cold", "dev", agent=no_agent)
    said = done.failed(125)
    assert "(stage: boot)" in said
    assert "reinstall microsandbox-core" in said
    assert any("Kernel panic" in line for line in _console_notes(done))
    failure = _inspected(dev)["failure"]
    assert failure["stage"] == "boot"
    assert failure["message"] in said
    assert failure["hint"] in said
    assert "Kernel panic" in failure["console"]
    assert len(failure["console"]) <= CONSOLE_LIMIT
    assert all(c.isprintable() or c in "\n\t" for c in failure["console"])
    assert "Kernel panic" in dev("logs", "--source", "console", "dev").succeeded().text
    # It is none that has to be made anew: with its agent it starts.
    dev("start", "dev").succeeded()
    (shown,) = json.loads(dev("inspect", "dev").succeeded().out)
    assert shown["failure"] is None


def test_of_one_that_was_not_there_before_nothing_is_kept_and_all_is_said(
    own_msb: Msb, tmp_path: Path, no_agent: Path
) -> None:
    for arguments in (("run", *COLD, "busybox", "--", "true"), ("create", *COLD, "busybox", "--name", "dev")):
        done = _with(own_msb, tmp_path, *arguments, agent=no_agent)
        assert "(stage: boot)" in done.failed(125)
        assert any("Kernel panic" in line for line in _console_notes(done))
        assert (own_msb.host.leftovers(), own_msb.host.rows()) == ([], [])


def test_a_guest_that_hangs_at_boot(dev: Msb, tmp_path: Path) -> None:
    agent = program(tmp_path / "sleeps", "pause")
    done = _with(dev, tmp_path, "start", "--cold", "dev", agent=agent, BOOT_DEADLINE=20.0)
    said = done.failed(125)
    assert "agentd did not answer within 20 s (stage: boot)" in said
    assert _console_notes(done), "what the kernel printed until then"
    assert _inspected(dev)["failure"]["stage"] == "boot"


def test_a_template_with_a_guest_that_hangs_is_no_way_out(dev: Msb, tmp_path: Path) -> None:
    """Without --cold: neither the template nor the boot after it comes up."""
    agent = program(tmp_path / "ends", "exit")
    assert "(stage: boot)" in _with(dev, tmp_path, "start", "dev", agent=agent).failed(125)
    assert [path for path in dev.host.tree("cache") if path.endswith(".tmp")] == []


def test_an_image_disk_that_is_damaged(dev: Msb, tmp_path: Path) -> None:
    """agentd says what it could not do; the record has that."""
    (disk,) = dev.home.glob("cache/images/*/fsmeta.erofs")
    disk.chmod(0o600)
    size = disk.stat().st_size
    disk.write_bytes(bytes(size))
    done = dev("start", "--cold", "dev")
    said = done.failed(125)
    assert "(stage: configure)" in said
    assert "image" in said
    failure = _inspected(dev)["failure"]
    assert failure["stage"] == "configure"
    assert failure["message"] in said


def test_an_upper_that_is_damaged(dev: Msb) -> None:
    (upper,) = dev.home.glob("sandboxes/*/upper.ext4")
    with upper.open("r+b") as file:
        file.write(bytes(1 << 20))
    said = dev("start", "dev").failed(125)
    assert "(stage: configure)" in said
    assert _inspected(dev)["failure"]["stage"] == "configure"


def test_a_vmm_that_ends_at_once(dev: Msb, tmp_path: Path) -> None:
    """It starts, and complains on what is the console: its words are in the error, escaped."""
    said = dev.with_settings(MSB_QEMU="/bin/false")("start", "dev").failed(125)
    failure = _inspected(dev)["failure"]
    assert failure["message"] in said
    assert "msb doctor" in said


def test_an_agent_that_ends(dev: Msb, tmp_path: Path) -> None:
    """`msb restart` says it with the same code."""
    agent = program(tmp_path / "ends", "exit")
    assert "(stage: boot)" in _with(dev, tmp_path, "restart", "--cold", "dev", agent=agent).failed(125)
