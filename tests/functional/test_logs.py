"""`msb logs`: everything that commands printed, while the sandbox runs and afterwards."""

from __future__ import annotations

import asyncio
import json
import random
import resource
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from microsandbox import LogLine, Sandbox, SandboxHandle

from tests.support.msb import PROGRAM, Msb, Running
from tests.support.terminal import Terminal
from tests.support.waiting import eventually

pytestmark = pytest.mark.vm


@pytest.fixture
def dev(msb: Msb) -> Iterator[str]:
    """The name of a running sandbox."""
    msb("create", "busybox", "--name", "dev").succeeded()
    yield "dev"
    msb("rm", "--force", "dev").succeeded()


def sh(msb: Msb, script: str, *, stdin: bytes | None = None) -> None:
    """Run a script in the sandbox, and wait until its end is in the log."""
    before = len(events(msb, "exit"))
    msb("exec", "dev", "--", "sh", "-c", script, stdin=stdin).succeeded()
    eventually(lambda: len(events(msb, "exit")) > before, within=60, what="the command's end in the log")


def events(msb: Msb, event: str) -> list[dict[str, Any]]:
    shown = msb("logs", "dev", "--source", "system", "--format", "json").succeeded().out
    return [line for line in map(json.loads, shown.splitlines()) if line["event"] == event]


def test_output_is_kept_byte_for_byte_and_readable_after_the_stop(msb: Msb, dev: str) -> None:
    data = random.Random(4).randbytes(300_000)
    sh(msb, "cat; echo err >&2", stdin=data)
    assert msb("logs", dev, "--source", "stdout").succeeded().out == data
    assert msb("logs", dev, "--source", "stderr").succeeded().out == b"err\n"
    msb("stop", dev).succeeded()
    assert msb("logs", dev, "--source", "stdout").succeeded().out == data
    msb("start", dev).succeeded()
    sh(msb, "echo again")
    assert msb("logs", dev, "--source", "stdout").succeeded().out == data + b"again\n"


def test_the_system_says_what_happened(msb: Msb, dev: str) -> None:
    created = datetime.now(UTC)
    sh(msb, "echo one; exit 0")
    msb("exec", dev, "--", "sh", "-c", "kill -9 $$")
    msb("exec", dev, "--", "no-such-command").failed(127)
    msb("stop", dev).succeeded()
    done = msb("logs", dev, "--source", "system,stdout", "--format", "json").succeeded()
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [line.get("event", line["source"]) for line in lines] == [
        "start", "exec", "stdout", "exit", "exec", "exit", "exec", "failed", "stop",
    ]  # fmt: skip
    assert lines[1]["argv"] == ["sh", "-c", "echo one; exit 0"]
    assert lines[2] | {"time": "", "session": "", "pid": 0} == {
        "time": "", "source": "stdout", "session": "", "pid": 0, "data": "one\n",
    }  # fmt: skip
    assert lines[1]["session"] == lines[2]["session"] == lines[3]["session"] != lines[4]["session"]
    assert lines[2]["pid"] > 1
    assert (lines[3]["code"], lines[5]["signal"], lines[7]["kind"]) == (0, 9, "not_found")
    assert (lines[8]["cause"], lines[8]["reason"]) == ("requested", "it was asked to stop")
    started, *times = (datetime.fromisoformat(line["time"]) for line in lines)
    times = [started, created, *times, datetime.now(UTC)]
    assert times == sorted(times)


def test_following_shows_what_comes_and_ends_with_the_sandbox(msb: Msb, dev: str) -> None:
    with msb.start("logs", "-f", dev) as follower:
        for number in range(3):
            msb("exec", dev, "--", "echo", str(number)).succeeded()
            assert follower.line() == b"%d\n" % number
        msb("stop", dev).succeeded()
        done = follower.finish().succeeded()
        assert done.out == b""


def test_following_a_sandbox_that_is_killed_ends(msb: Msb, dev: str) -> None:
    with msb.start("logs", "-f", dev) as follower:
        msb("exec", dev, "--", "echo", "up").succeeded()
        assert follower.line() == b"up\n"
        running = msb.host.sandbox()
        running.supervisor.kill()
        follower.finish().succeeded()
    running.vmm.wait_gone(within=60)
    # What was written is there, and the next life goes on behind it.
    assert msb("logs", dev).succeeded().out == b"up\n"
    msb("start", dev).succeeded()
    sh(msb, "echo on")
    assert msb("logs", dev).succeeded().out == b"up\non\n"


def test_a_command_that_was_detached_from_is_logged_to_its_end(msb: Msb, dev: str) -> None:
    command = (
        PROGRAM,
        "exec",
        "-t",
        dev,
        "--",
        "sh",
        "-c",
        "echo up; while [ ! -e /go ]; do sleep 0.1; done; echo end",
    )
    with Terminal(command, msb.environ) as terminal:
        terminal.expect(b"up")
        terminal.type(b"\x10\x11")
        assert terminal.finish().code == 0
    msb("exec", dev, "--", "touch", "/go").succeeded()
    eventually(lambda: len(events(msb, "exit")) == 2, within=60, what="its end in the log")
    assert msb("logs", dev).succeeded().out == b"up\r\nend\r\n"


def test_copying_files_is_not_logged(msb: Msb, dev: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(100_000))
    msb("cp", tmp_path / "file", f"{dev}:/file").succeeded()
    msb("cp", f"{dev}:/file", tmp_path / "back").succeeded()
    msb("stop", dev).succeeded()
    assert msb("logs", dev).succeeded().out == b""
    assert events(msb, "exec") == []


@pytest.mark.slow
def test_following_over_rotation_misses_nothing(msb: Msb, dev: str, tmp_path: Path) -> None:
    shown = tmp_path / "shown"
    with shown.open("wb") as file:
        follower = subprocess.Popen([PROGRAM, "logs", "-f", dev], stdout=file, env=msb.environ)
        with Running(follower):
            # More than one file of the log, less than all of them: nobody can fall behind too far.
            printed = msb("exec", dev, "--", "seq", "1", "700000").succeeded().out
            msb("stop", dev).succeeded()
            assert follower.wait(120) == 0
    assert len(log_files(msb)) > 1
    assert shown.read_bytes() == printed
    assert msb("logs", dev).succeeded().out == printed


def test_a_log_is_bounded_whatever_is_printed(msb: Msb, dev: str) -> None:
    # NUL bytes take the most: six of JSON for one of output.
    msb("exec", dev, "--", "head", "-c", "10000000", "/dev/zero").succeeded()
    msb("exec", dev, "--", "echo", "last").succeeded()
    msb("stop", dev).succeeded()
    assert 8 << 20 < sum(path.stat().st_size for path in log_files(msb)) <= 16 << 20
    assert msb("logs", "--tail", "1", dev).text.endswith("last\n")


def log_files(msb: Msb) -> list[Path]:
    return sorted((msb.home / "sandboxes").glob("*/logs/*"))


def test_lines_are_chosen(msb: Msb, dev: str) -> None:
    sh(msb, "seq 1 5; echo bad >&2")
    assert msb("logs", dev, "--tail", "2", "--source", "stdout").text == "4\n5\n"
    assert msb("logs", dev, "--grep", "[24]|bad", "--tail", "2").text == "4\nbad\n"
    assert msb("logs", dev, "--since", "1h").text == "1\n2\n3\n4\n5\nbad\n"
    assert msb("logs", dev, "--until", "1h").text == ""
    assert msb("logs", dev, "--since", "2100-01-01T00:00:00Z").text == ""
    first = msb("logs", dev, "--timestamps", "--tail", "1").text.split(" ")
    assert datetime.fromisoformat(first[0]).tzinfo is not None
    assert first[1:] == ["stderr", "bad\n"]
    msb("logs", dev, "--source", "console").succeeded()
    assert msb("logs", dev, "--source", "supervisor").succeeded().out == b""


def test_l_what_cannot_be_shown_is_one_line(msb: Msb, dev: str) -> None:
    for options, named in (
        (["--since", "soon"], "--since"),
        (["--source", "stdin"], "stdin"),
        (["--grep", "("], "--grep"),
        (["--source", "console", "--since", "1h"], "--since"),
    ):
        assert named in msb("logs", dev, *options).failed(2)
    assert "nobody" in msb("logs", "nobody").failed(125)
    with msb.start("run", "busybox", "--", "sh", "-c", "echo up; cat") as running:
        assert running.line() == b"up\n"
        (name,) = set(msb("ls", "-q").text.split()) - {dev}
        assert "keeps no log" in msb("logs", name).failed(125)
        (directory,) = set((msb.home / "sandboxes").iterdir()) - {msb.home / "sandboxes" / ".guard"} - {
            path.parent for path in (msb.home / "sandboxes").glob("*/logs")
        }  # fmt: skip
        assert not (directory / "logs").exists()
        running.finish(b"").succeeded()


def test_a05_a_terminal_is_not_steered_by_a_log(msb: Msb, dev: str) -> None:
    hostile = "\x1b]0;owned\x07\x1b[2J\x1b]52;c;aGk=\x07\u202egnp\x9b31m"
    sh(msb, "cat", stdin=hostile.encode() + b"\xff\nend\n")
    with Terminal((PROGRAM, "logs", dev), msb.environ) as terminal:
        shown = terminal.finish().out
    assert b"end\r\n" in shown
    assert b"\\x1b]0;owned\\x07" in shown
    text = shown.decode().replace("\r\n", "")
    assert text.isprintable()
    with Terminal((PROGRAM, "logs", "--raw", dev), msb.environ) as terminal:
        assert b"\x1b]0;owned\x07" in terminal.finish().out
    (line, _) = msb("logs", dev, "--format", "json").succeeded().out.splitlines()
    assert "base64" in json.loads(line)
    assert line.isascii()


def test_l09_a_disk_that_takes_no_log_stops_nobody(msb: Msb, dev: str) -> None:
    sh(msb, "echo before")
    (directory,) = (msb.home / "sandboxes").glob("*/logs")
    (current,) = directory.iterdir()
    supervisor = msb.host.sandbox().supervisor
    unlimited = resource.prlimit(supervisor.pid, resource.RLIMIT_FSIZE)
    size = 50_000
    try:
        whole = current.stat()
        resource.prlimit(supervisor.pid, resource.RLIMIT_FSIZE, (whole.st_size + 10, unlimited[1]))
        done = msb("exec", dev, "--", "sh", "-c", f"head -c {size} /dev/zero").succeeded()
        assert done.out == bytes(size)

        # Ten bytes of a line come first, and are cut off when the rest is refused: the limit stays till then.
        def refused() -> bool:
            seen = current.stat()
            return seen.st_mtime_ns != whole.st_mtime_ns and seen.st_size == whole.st_size

        eventually(refused, within=60, what="a refused write")
    finally:
        resource.prlimit(supervisor.pid, resource.RLIMIT_FSIZE, unlimited)
    msb("stop", dev).succeeded()
    done = msb("logs", dev).succeeded()
    holes = events(msb, "lost")
    assert holes
    assert len(done.out) == len("before\n") + size - sum(hole["bytes"] for hole in holes)
    assert "were not logged" in done.complaint


def test_the_sdk_reads_logs(msb: Msb, dev: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSB_HOME", str(msb.home))

    async def main() -> tuple[list[LogLine], list[LogLine]]:
        sandbox = await Sandbox.connect(dev)
        followed = []
        async for line in sandbox.logs(follow=True, sources=["stdout", "system"]):
            followed.append(line)
            if line.event == "start":
                await sandbox.exec("echo", ["héllo"])
            if line.event == "exit":
                await sandbox.stop()
        handle = await SandboxHandle.get(dev)
        last = [line async for line in handle.logs(tail=1)]
        assert last == [line async for line in Sandbox.logs_of(dev, tail=1)]
        return followed, last

    followed, last = asyncio.run(main())
    assert [line.event or line.text for line in followed] == ["start", "exec", "héllo\n", "exit", "stop"]
    (line,) = last
    assert (line.text, line.source, line.session) == ("héllo\n", "stdout", followed[1].session)
    assert line.time is not None


def test_logs_are_for_their_user_alone(msb: Msb, dev: str) -> None:
    sh(msb, "echo secret")
    (directory,) = (msb.home / "sandboxes").glob("*/logs")
    assert directory.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in directory.iterdir())


def test_a_sandbox_that_is_removed_takes_its_log_along(msb: Msb) -> None:
    msb("run", "--name", "gone", "busybox", "--", "echo", "x").succeeded()
    assert msb("logs", "gone").succeeded().out == b"x\n"
    msb("rm", "gone").succeeded()
    assert not list(Path(msb.home, "sandboxes").glob("*/logs"))
    assert msb.host.directories() == []
