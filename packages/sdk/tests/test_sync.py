"""`microsandbox.sync`: complete, current, and usable where plain code runs."""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import microsandbox
import pytest
from microsandbox import ExecExited, ExecFailed, ExecStarted, NotRunning, sync
from microsandbox.sync import _portal
from microsandbox.testing import FakeSandbox
from microsandbox.testing.sync import FakeSandbox as Sandbox

CHECKOUT = Path(__file__).parents[3]
# Newer Pythons warn of what is tried here.
FORKS = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    _portal.portal().call(FakeSandbox.reset)


@pytest.fixture
def sandbox() -> Iterator[sync.Sandbox]:
    with Sandbox.create(image="busybox") as created:
        yield created


@pytest.mark.skipif(not (CHECKOUT / "scripts").is_dir(), reason="only a checkout has the generator")
def test_it_is_current() -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        [sys.executable, CHECKOUT / "scripts/generate-sync", "--check"],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path},
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_everything_public_is_there() -> None:
    assert sync.__all__ == sorted(microsandbox.__all__)
    for name in microsandbox.__all__:
        ours, theirs = getattr(sync, name), getattr(microsandbox, name)
        if ours is theirs or name == "ImageArgument":
            # A value, or an error: nothing of it waits.
            members = getattr(theirs, "__dict__", {}).values()
            assert not any(inspect.iscoroutinefunction(member) for member in members)
            continue
        if not isinstance(theirs, type):
            assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)
            continue
        public = {member for member in vars(theirs) if not member.startswith("_")} - {"adopt"}
        assert public <= set(vars(ours)), name
        for member in public:
            if inspect.isroutine(getattr(theirs, member)):
                expected = list(inspect.signature(getattr(theirs, member)).parameters)
                assert list(inspect.signature(getattr(ours, member)).parameters) == expected, member


def test_a_command_and_files(sandbox: sync.Sandbox) -> None:
    output = sandbox.exec("sh", ["-c", "echo out; echo err >&2; exit 3"])
    assert (output.stdout_text, output.stderr_text, output.exit_code) == ("out\n", "err\n", 3)
    sandbox.fs.write("/tmp/f", "text")
    with sandbox.fs.write_stream("/tmp/g") as sink:
        sink.write(b"one")
        sink.write(b"two")
    assert [sandbox.fs.read_text(f"/tmp/{name}") for name in "fg"] == ["text", "onetwo"]
    assert b"".join(sandbox.fs.read_stream("/tmp/g")) == b"onetwo"

    def give_up() -> None:
        with sandbox.fs.write_stream("/tmp/g") as sink:
            sink.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        give_up()
    assert sandbox.fs.read("/tmp/g") == b"onetwo"
    with pytest.raises(ExecFailed, match="no-such"):
        sandbox.exec("no-such")


def test_a_handle_is_iterated(sandbox: sync.Sandbox) -> None:
    handle = sandbox.exec_stream("cat", stdin=sync.Stdin.pipe())
    sink = handle.take_stdin()
    sink.write(b"text")
    sink.close()
    events = list(handle)
    assert (events[0], events[-1]) == (ExecStarted(handle.pid), ExecExited(0, None))
    assert handle.recv() is None
    handle.kill()


def test_contexts_lists_and_handles() -> None:
    with Sandbox.create("dev", image="busybox", labels={"a": "b"}) as sandbox:
        assert [found.name for found in Sandbox.list({"a": "b"}, limit=5)] == ["dev"]
        handle = Sandbox.get("dev")
        assert handle.connect().exec("true").success
        assert isinstance(handle.refresh(), sync.SandboxHandle)
        sandbox.exec("echo", ["line"])
        assert [line.text for line in sandbox.logs()] == ["line\n"]
        following = sandbox.log_stream()
        assert next(iter(following)).text == "line\n"
        following.close()  # type: ignore[attr-defined]
    assert handle.status is sync.Status.STOPPED
    with pytest.raises(NotRunning):
        sandbox.exec("true")
    with handle.start() as again:
        assert again.exec("true").success


def test_progress_is_iterated() -> None:
    with Sandbox.create_with_progress(image="busybox") as session:
        assert [event.phase for event in session.progress][-1] is sync.ProgressPhase.READY
        with session.result() as sandbox:
            assert sandbox.exec("true").success


def test_inside_a_running_loop(sandbox: sync.Sandbox) -> None:
    # L12: as in a notebook, or a coroutine of a web server.
    async def main() -> str:
        return sandbox.exec("echo", ["here"]).stdout_text

    assert asyncio.run(main()) == "here\n"


def test_on_many_threads(sandbox: sync.Sandbox) -> None:
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda n: sandbox.exec("echo", [str(n)]).stdout_text, range(40)))
    assert found == [f"{number}\n" for number in range(40)]


def test_on_its_own_thread_it_says_so_at_once() -> None:
    # L12: it would wait for itself.
    errors: list[BaseException] = []

    def report(_: sync.ProgressEvent) -> None:
        try:
            Sandbox.list()
        except RuntimeError as error:
            errors.append(error)

    with Sandbox.create(image="busybox", progress=report):
        pass
    assert errors
    assert "its own thread" in str(errors[0])


def _in_child(check: Callable[[], object]) -> str:
    """What `check` raises or returns in a child that is forked here."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            told = repr(check())
        except BaseException:  # noqa: BLE001 - to be told to the parent
            told = traceback.format_exc()
        os.write(write, told.encode()[-4000:])
        os._exit(0)
    os.close(write)
    with open(read, closefd=True) as pipe:  # noqa: PTH123 - a descriptor
        told = pipe.read()
    os.waitpid(child, 0)
    return told


@FORKS
def test_after_a_fork(sandbox: sync.Sandbox) -> None:
    # L12: what belongs to the parent says so at once, and the parent goes on; new things can be made.
    told = _in_child(lambda: sandbox.exec("true"))
    assert f"belongs to the process {os.getpid()}" in told
    assert "Sandbox.connect" in told
    assert (
        _in_child(lambda: Sandbox.create(image="busybox").exec("echo", ["child"]).stdout_text) == r"'child\n'"
    )
    assert sandbox.exec("echo", ["parent"]).stdout_text == "parent\n"


@FORKS
def test_a_fork_while_another_thread_waits(sandbox: sync.Sandbox) -> None:
    handle = sandbox.exec_stream("sleep", ["600"])
    waiting = threading.Thread(target=handle.wait)
    waiting.start()
    assert _in_child(lambda: Sandbox.create(image="busybox").exec("true").success) == "True"
    handle.kill()
    waiting.join(60)
    assert not waiting.is_alive()


INTERRUPTED = """
import os, signal, sys, threading
from microsandbox.testing import FakeSandbox
from microsandbox.testing.sync import FakeSandbox as Sandbox

def ready(call):
    threading.Timer(0, os.kill, (os.getpid(), signal.SIGINT)).start()
    return __import__("asyncio").sleep(600)

FakeSandbox.commands = {"ready": ready}
try:
    with Sandbox.create("dev", image="busybox") as sandbox:
        sandbox.exec("ready")
except KeyboardInterrupt:
    print("interrupted", Sandbox.get("dev").status, sandbox.status)
"""


def test_ctrl_c_while_waiting() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", INTERRUPTED],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("interrupted stopped stopped\n", "")


def test_a_program_that_just_ends_says_nothing() -> None:
    script = "from microsandbox.testing.sync import FakeSandbox as Sandbox\n"
    script += "sandbox = Sandbox.create(image='x'); handle = sandbox.exec_stream('sleep', ['600'])\n"
    script += "lines = sandbox.log_stream(); print('done')"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 0)
