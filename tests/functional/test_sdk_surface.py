"""What `microsandbox` offers besides commands, files and lifecycle, with real guests."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from microsandbox import (
    Applies,
    ConfigError,
    ExecError,
    ExecStdinError,
    Image,
    ImageInUse,
    ImageNotFound,
    ProgressPhase,
    Sandbox,
    SandboxNotFound,
    Stdin,
    doctor,
    setup,
    sync,
)

from tests.support.host import Host
from tests.support.msb import Msb
from tests.support.terminal import Terminal

pytestmark = pytest.mark.vm


def entered(msb: Msb, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Host:
    for name, value in {"MSB_HOME": str(msb.home), **settings}.items():
        monkeypatch.setenv(name, value)
    return msb.host


@pytest.fixture
def home(msb: Msb, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Host:
    """The shared home as this process's, seen from the host."""
    return entered(msb, settings, monkeypatch)


@pytest.fixture
def own(own_msb: Msb, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Host:
    """A home of this test's own."""
    return entered(own_msb, settings, monkeypatch)


# ------------------------------------------------------------------------------------------------- starting


@pytest.mark.asyncio
async def test_what_restarts_is_the_machine_that_was_asked_for(home: Host) -> None:
    sandbox = await Sandbox.create("dev", image="busybox", memory="256M", ephemeral=False)
    try:
        memory = "grep MemTotal /proc/meminfo"
        before = int(re.findall(r"\d+", (await sandbox.shell(memory)).stdout_text)[0])
        plan = await sandbox.modify(memory="512M")
        assert [change.applies for change in plan.changes] == [Applies.NEXT_START]
        assert int(re.findall(r"\d+", (await sandbox.shell(memory)).stdout_text)[0]) == before
        await sandbox.restart()
        assert int(re.findall(r"\d+", (await sandbox.shell(memory)).stdout_text)[0]) > before + 200_000
    finally:
        await sandbox.destroy()
    assert home.leftovers() == []


@pytest.mark.asyncio
async def test_a_start_from_an_archive_tells_every_step(
    own: Host, busybox_layout: Path, tmp_path: Path
) -> None:
    for found in await Image.list():
        await Image.remove(found.digest)
    async with Sandbox.create_with_progress(image=f"oci:{busybox_layout}") as session:
        events = [event async for event in session.progress]
        phases = [event.phase for event in events]
        expected = [
            ProgressPhase.VERIFY, ProgressPhase.CONVERT, ProgressPhase.MERGE, ProgressPhase.BOOT,
            ProgressPhase.READY,
        ]  # fmt: skip
        assert [phase for phase in expected if phase in phases][-3:] == expected[-3:]
        assert ProgressPhase.CONVERT in phases
        async with await session.result() as sandbox:
            assert (await sandbox.exec("true")).success


@pytest.mark.asyncio
async def test_a_session_that_is_left_leaves_nothing(home: Host) -> None:
    async with Sandbox.create_with_progress("dev", image="busybox", detached=True) as session:
        async for event in session.progress:
            if event.phase is ProgressPhase.BOOT:
                break
    assert home.leftovers() == []
    with pytest.raises(SandboxNotFound):
        await Sandbox.get("dev")


CONNECT = """
import asyncio
from microsandbox import Sandbox
async def main():
    sandbox = await Sandbox.connect_or_create("dev", image="busybox", detached=True)
    print(sandbox.id, (await sandbox.exec("true")).success)
    await sandbox.detach()
asyncio.run(main())
"""


def test_programs_that_ask_at_once_get_one_sandbox(home: Host, msb: Msb) -> None:
    programs = [
        subprocess.Popen([sys.executable, "-c", CONNECT], stdout=subprocess.PIPE, text=True, env=msb.environ)
        for _ in range(5)
    ]
    told = {program.communicate(timeout=120)[0] for program in programs}
    try:
        assert len(told) == 1
        assert told.pop().endswith("True\n")
        assert len(home.rows()) == 1
    finally:
        msb("rm", "--force", "dev").succeeded()


# --------------------------------------------------------------------------------------------------- images


@pytest.mark.asyncio
async def test_images_are_loaded_seen_and_removed(own: Host, busybox_layout: Path, tmp_path: Path) -> None:
    [loaded] = await Image.load(f"oci:{busybox_layout}", tag="mine")
    assert loaded.name == "mine:latest"
    assert (await Image.get("mine")).digest == loaded.digest
    assert "mine:latest" in [image.name for image in await Image.list()]
    details = await Image.inspect(loaded.digest)
    assert details.image.digest == loaded.digest
    assert details.layers
    assert details.disk.is_file()
    with pytest.raises(ImageNotFound, match="nothing"):
        await Image.get("nothing")

    async with await Sandbox.create("dev", image=loaded, ephemeral=False) as sandbox:
        assert (await sandbox.exec("true")).success
    for image in await Image.list():
        if image.name != "mine:latest":
            await Image.remove(str(image.name))
    with pytest.raises(ImageInUse, match="dev"):
        await Image.remove("mine")
    await Sandbox.remove("dev")
    await Image.remove("mine")
    with pytest.raises(ImageNotFound):
        await Image.get(loaded.digest)


@pytest.mark.asyncio
async def test_a_directory_is_an_image_and_kept_while_a_sandbox_needs_it(own: Host, tmp_path: Path) -> None:
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.fail("no busybox-static on this machine: run `make test`", pytrace=False)
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    shutil.copy(busybox, root / "bin" / "busybox")
    with pytest.raises(ConfigError, match="not a directory"):
        Image.bind(tmp_path / "none")
    async with await Sandbox.create("dev", image=Image.bind(root), ephemeral=False) as sandbox:
        assert (await sandbox.exec("busybox", ["echo", "here"])).stdout_text == "here\n"
    # Without a name, without a directory, and in a sandbox that does not run: only its record speaks for it.
    shutil.rmtree(root)
    assert (await Image.prune()).images == ()
    again = await Sandbox.start("dev")
    assert (await again.exec("busybox", ["echo", "again"])).stdout_text == "again\n"
    await again.destroy()
    assert len((await Image.prune(dry_run=True)).images) == 1
    assert len((await Image.prune()).images) == 1


# ------------------------------------------------------------------------------------------------- commands


@pytest.mark.asyncio
async def test_input_that_is_not_read_to_its_end_is_told(home: Host, tmp_path: Path) -> None:
    async with await Sandbox.create(image="busybox") as sandbox:
        handle = await sandbox.exec_stream("sh", ["-c", "exec <&-; sleep 600"], stdin=Stdin.pipe())
        event = await handle.recv()
        while event is not None and event.kind != "stdin_error":
            event = await handle.recv()
        assert isinstance(event, ExecStdinError)
        assert event.reason == "closed"
        handle.kill()
        await handle.wait()
        # A file that begins and cannot be read on: this process's memory, at an address that is not there.
        handle = await sandbox.exec_stream("cat", stdin=Stdin.file("/proc/self/mem"))
        kinds = [event.kind async for event in handle]
        assert kinds[-2:] == ["stdin_error", "exited"]
        with pytest.raises(ExecError, match="/proc/self/mem could not be read"):
            await sandbox.exec("cat", stdin=Stdin.file("/proc/self/mem"))


@pytest.mark.asyncio
async def test_the_machine_is_looked_at(home: Host) -> None:
    report = await doctor()
    assert report.ready
    said: list[str] = []
    assert await setup(dry_run=True, report=said.append) == ()
    assert said


ATTACHED = """
import asyncio
from microsandbox import Sandbox
async def main():
    async with await Sandbox.create(image="busybox", env={"PS1": "$ "}) as sandbox:
        end = await sandbox.attach("sh", detach_keys="ctrl-p,ctrl-q")
        print("ended", None if end is None else end.exit_code)
asyncio.run(main())
"""
ATTACHED_PLAINLY = """
from microsandbox.sync import Sandbox
with Sandbox.create(image="busybox", env={"PS1": "$ "}) as sandbox:
    end = sandbox.attach("sh")
    print("ended", None if end is None else end.exit_code)
"""


@pytest.mark.parametrize("program", [ATTACHED, ATTACHED_PLAINLY], ids=["async", "sync"])
def test_a_terminal_is_attached(home: Host, msb: Msb, program: str) -> None:
    with Terminal([sys.executable, "-c", program], {**msb.environ, "TERM": "xterm"}) as terminal:
        terminal.expect(b"$ ")
        terminal.type(b"[ -t 0 ] && echo is''tty; stty size\r")
        terminal.expect(b"istty\r\n")
        terminal.expect(b"$ ")
        terminal.resize(41, 99)
        terminal.type(b"until [ \"$(stty size)\" = '41 99' ]; do sleep 0.1; done; echo re''sized\r")
        terminal.expect(b"resized\r\n")
        terminal.expect(b"$ ")
        terminal.type(b"\x03")  # for the shell, not for the program
        terminal.expect(b"$ ")
        terminal.type(b"exit 5\r")
        terminal.expect(b"ended 5")
        assert terminal.finish().code == 0
        assert terminal.attributes() == terminal.before


@pytest.mark.parametrize("program", [ATTACHED, ATTACHED_PLAINLY], ids=["async", "sync"])
def test_a_terminal_is_left(home: Host, msb: Msb, program: str) -> None:
    with Terminal([sys.executable, "-c", program], msb.environ) as terminal:
        terminal.expect(b"$ ")
        terminal.type(b"\x10\x11")
        terminal.expect(b"ended None")
        assert terminal.finish().code == 0


def test_without_a_terminal_there_are_streams(home: Host, msb: Msb) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ATTACHED],
        input=b"echo $((6 * 7))\nexit 3\n",
        capture_output=True,
        env=msb.environ,
    )
    assert (done.stdout, done.stderr) == (b"42\nended 3\n", b"")


# ---------------------------------------------------------------------------------------------------- plain


def test_plain_code(home: Host, tmp_path: Path) -> None:
    with sync.Sandbox.create("dev", image="busybox", labels={"a": "b"}, memory="256M") as sandbox:
        assert sandbox.exec("sh", ["-c", "echo hi; exit 4"]).exit_code == 4
        sandbox.fs.write("/tmp/f", b"content")
        sandbox.fs.copy_to_host("/tmp/f", tmp_path / "f")
        assert (tmp_path / "f").read_bytes() == b"content"
        handle = sandbox.exec_stream("cat", stdin=sync.Stdin.pipe())
        sink = handle.take_stdin()
        sink.write(b"x" * 300_000)
        sink.close()
        assert sum(len(event.data) for event in handle if event.kind == "stdout") == 300_000

        async def main() -> str:  # L12
            return sandbox.exec("echo", ["in a loop"]).stdout_text

        assert asyncio.run(main()) == "in a loop\n"
        assert [found.name for found in sync.Sandbox.list({"a": "b"})] == ["dev"]
    assert sync.Sandbox.get("dev").status is sync.Status.STOPPED
    sync.Sandbox.remove("dev")
    with sync.SandboxPool(image="busybox", size=1) as pool, pool.acquire(timeout=120) as taken:
        assert taken.exec("true").success


def test_a_fork_does_not_keep_a_sandbox_alive(home: Host, msb: Msb) -> None:
    # L12: the child outlives the parent, to which the sandbox belongs.
    program = (
        "import os, sys, time\n"
        "from microsandbox.sync import Sandbox\n"
        "sandbox = Sandbox.create('dev', image='busybox')\n"
        "if os.fork() == 0:\n"
        "    sys.stdin.read()\n"
        "    os._exit(0)\n"
        "print(sandbox.exec('echo', ['parent']).stdout_text, end='', flush=True)\n"
        "os._exit(0)\n"
    )
    read, write = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=read, stdout=subprocess.PIPE, env=msb.environ
    ) as process:
        os.close(read)
        assert process.stdout is not None
        assert process.stdout.readline() == b"parent\n"
        assert process.wait(60) == 0
        try:
            # The child still holds everything else that it was given.
            msb("wait", "dev").succeeded()
        finally:
            os.close(write)
    assert home.rows()
    msb("rm", "dev").succeeded()


INTERRUPTED = """
import os, signal, sys, threading
from microsandbox.sync import Sandbox
try:
    with Sandbox.create("dev", image="busybox") as sandbox:
        handle = sandbox.exec_stream("sh", ["-c", "echo up; exec sleep 600"])
        while handle.recv().kind != "stdout":
            pass
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        handle.wait()
except KeyboardInterrupt:
    print("interrupted", Sandbox.get("dev").status)
"""


def test_ctrl_c_ends_the_wait_and_stops_the_sandbox(home: Host, msb: Msb) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", INTERRUPTED], capture_output=True, timeout=120, env=msb.environ
    )
    assert (done.stdout, done.stderr) == (b"interrupted stopped\n", b"")
    msb("rm", "dev").succeeded()
