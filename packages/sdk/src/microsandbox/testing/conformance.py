"""What everything that calls itself a `Sandbox` has to do: cases for pytest, or for any other runner.

::

    @pytest.mark.asyncio
    @pytest.mark.parametrize("case", conformance.CASES, ids=conformance.name_of)
    async def test_mine(case: conformance.Case) -> None:
        await case(MySandbox, "busybox")

`image` is one that has cat, echo, false, hostname, pwd, sh, sleep and true, a user nobody, and
neither an entrypoint nor a working directory. A case leaves no sandbox behind, and assumes nothing about
others that there are. It fails by `AssertionError`, or by what the implementation raises.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from microsandbox.errors import (
    AlreadyExists,
    ConfigError,
    ExecError,
    ExecFailed,
    ExecTimeout,
    FilesystemError,
    MicrosandboxError,
    NotRunning,
    OutcomeUnknown,
    PathNotFound,
    SandboxError,
    SandboxNotFound,
    StillRunning,
)
from microsandbox.execution import ExecExited, ExecStarted, ExecStdout, Stdin, Terminal
from microsandbox.files import FileKind
from microsandbox.info import Cause, Status
from microsandbox.modify import Applies
from microsandbox.progress import ProgressPhase
from microsandbox.sandbox import Sandbox

Case = Callable[[type[Sandbox], str], Coroutine[Any, Any, None]]
"""One thing that has to hold, for this class and sandboxes of this image."""

CASES: list[Case] = []
"""All of them."""


def name_of(case: Case) -> str:
    """What a case is called."""
    return case.__name__


def _case(function: Case) -> Case:
    CASES.append(function)
    return function


class _Caught:
    """What `_raises` has caught."""

    error: Any = None


@contextmanager
def _raises(kind: type[Exception], words: str = "") -> Iterator[_Caught]:
    """Not pytest's: whoever runs the cases may have another runner."""
    caught = _Caught()
    try:
        yield caught
    except kind as error:
        caught.error = error
    assert caught.error is not None, f"no {kind.__name__} was raised"
    assert re.search(words, str(caught.error)), f"{caught.error!r} does not name {words!r}"
    if isinstance(caught.error, MicrosandboxError):
        assert caught.error.code, f"{caught.error!r} has no code"


def _name() -> str:
    return f"conformance-{secrets.token_hex(4)}"


@asynccontextmanager
async def _named(kind: type[Sandbox], image: str, **options: Any) -> AsyncIterator[Sandbox]:
    """A sandbox that has a name, and is removed whatever has become of it."""
    sandbox = await kind.create(_name(), image=image, ephemeral=False, **options)
    try:
        yield sandbox
    finally:
        await sandbox.kill()
        try:
            await kind.remove(sandbox.id, force=True)
        except SandboxNotFound:
            pass  # the case has removed it


# ------------------------------------------------------------------------------------------------ commands


@_case
async def a_command_has_output_and_an_exit_code(kind: type[Sandbox], image: str) -> None:
    async with await kind.create(image=image) as sandbox:
        output = await sandbox.exec("echo", ["out", "put"])
        assert (output.stdout_bytes, output.stdout_text, output.stderr_bytes) == (
            b"out put\n",
            "out put\n",
            b"",
        )
        assert (output.exit_code, output.signal, output.success, output.timed_out) == (0, None, True, False)
        assert output.duration >= 0
        output = await sandbox.exec("false")
        assert (output.exit_code, output.success) == (1, False)
        output = await sandbox.exec("sh", ["-c", "echo err >&2; exit 7"])
        assert (output.stderr_text, output.exit_code) == ("err\n", 7)
        assert (await sandbox.exec("sh", ["-c", "kill -9 $$"])).signal == 9
        assert 0 <= await sandbox.ping() < 60


@_case
async def the_environment_is_the_sandbox_s_and_the_command_s(kind: type[Sandbox], image: str) -> None:
    async with await kind.create(image=image, env={"A": "1", "B": "2"}, hostname="box") as sandbox:
        output = await sandbox.exec("sh", ["-c", "echo $A $B $C"], env={"B": "3", "C": "4"})
        assert output.stdout_text == "1 3 4\n"
        assert "/bin" in (await sandbox.exec("sh", ["-c", "echo $PATH"])).stdout_text
        assert (await sandbox.exec("hostname")).stdout_text == "box\n"


@_case
async def the_working_directory_is_the_sandbox_s_or_the_command_s(kind: type[Sandbox], image: str) -> None:
    async with await kind.create(image=image, workdir="/tmp") as sandbox:
        assert (await sandbox.exec("pwd")).stdout_text == "/tmp\n"
        assert (await sandbox.exec("pwd", cwd="/etc")).stdout_text == "/etc\n"


@_case
async def what_cannot_be_run_is_said(kind: type[Sandbox], image: str) -> None:
    async with await kind.create(image=image) as sandbox:
        for kind_, command, options in (
            ("not_found", "no-such-command", {}),
            ("not_found", "/no/such/command", {}),
            ("permission_denied", "/etc/passwd", {}),
            ("bad_cwd", "true", {"cwd": "/no/such"}),
            ("user_not_found", "true", {"user": "stranger"}),
        ):
            with _raises(ExecFailed) as caught:
                await sandbox.exec(command, **options)  # type: ignore[arg-type]
            assert caught.error.kind == kind_, caught.error
            assert caught.error.hint
        assert (await sandbox.exec("true", user="nobody")).success


@_case
async def bad_values_are_refused_by_their_names(kind: type[Sandbox], image: str) -> None:
    wrong: dict[str, Any]
    for wrong, words in (
        ({"memory": "1M"}, "memory"),
        ({"cpus": 0}, "cpus"),
        ({"hostname": "a b"}, "hostname"),
        ({"env": {"": "x"}}, "env"),
        ({"labels": {"-": "x"}}, "label"),
        ({"max_duration": "soon"}, "max_duration"),
        ({"replace": True}, "replace"),
    ):
        with _raises(ConfigError, words) as caught:
            await kind.create(image=image, **wrong)
        assert caught.error.hint
        assert isinstance(caught.error, ValueError)
    for wrong, words in (
        ({"memory": 1.5}, "memory"),
        ({"cpus": "two"}, "cpus"),
        ({"cmd": "true"}, "cmd"),
        ({"env": {"A": 1}}, "env"),
        ({"labels": ["a=b"]}, "labels"),
        ({"idle_timeout": True}, "idle_timeout"),
    ):
        with _raises(TypeError, words):
            await kind.create(image=image, **wrong)
    with _raises(ConfigError, "name"):
        await kind.create("a/b", image=image)
    with _raises(TypeError, "image"):
        await kind.create(image=7)  # type: ignore[arg-type]
    async with await kind.create(image=image) as sandbox:
        with _raises(TypeError, "args"):
            await sandbox.exec("echo", "word")
        with _raises(TypeError, "env"):
            await sandbox.exec("echo", env={"A": 1})  # type: ignore[dict-item]
        with _raises(ValueError, "timeout"):
            await sandbox.exec("echo", timeout=0)
        for timeout in (-1, "soon"):
            with _raises(ValueError, "timeout"):
                await sandbox.stop(timeout)
        with _raises(TypeError, "timeout"):
            await sandbox.request_stop(None)  # type: ignore[arg-type]
        assert (await sandbox.exec("true")).success
        with _raises(TypeError, "modify"):
            await sandbox.modify(image="other")  # type: ignore[call-arg]


@_case
async def standard_input_comes_from_bytes_a_file_or_a_pipe(kind: type[Sandbox], image: str) -> None:
    data = bytes(range(256)) * 1000
    async with await kind.create(image=image) as sandbox:
        assert (await sandbox.exec("cat")).stdout_bytes == b""
        assert (await sandbox.exec("cat", stdin=data)).stdout_bytes == data
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "data"
            path.write_bytes(data)
            assert (await sandbox.exec("cat", stdin=Stdin.file(path))).stdout_bytes == data
            with _raises(ExecError, "missing"):
                await sandbox.exec("cat", stdin=Stdin.file(Path(directory) / "missing"))
        handle = await sandbox.exec_stream("cat", stdin=Stdin.pipe())
        sink = handle.take_stdin()
        for line in (b"one\n", b"two\n"):
            await sink.write(line)
            event = await handle.recv()
            while not isinstance(event, ExecStdout):
                event = await handle.recv()
            assert event.data == line
        await sink.close()
        assert (await handle.wait()).exit_code == 0
        with _raises(ExecError):
            (await sandbox.exec_stream("true")).take_stdin()


@_case
async def events_are_told_in_their_order(kind: type[Sandbox], image: str) -> None:
    async with await kind.create(image=image) as sandbox:
        handle = await sandbox.exec_stream("sh", ["-c", "echo a; echo b >&2; exit 3"])
        assert handle.pid > 0
        assert handle.id
        events = [event async for event in handle]
        assert events[0] == ExecStarted(handle.pid)
        assert events[-1] == ExecExited(3, None)
        assert b"".join(event.data for event in events if event.kind == "stdout") == b"a\n"
        assert b"".join(event.data for event in events if event.kind == "stderr") == b"b\n"
        assert await handle.recv() is None


@_case
async def a_command_can_be_killed_and_signalled(kind: type[Sandbox], image: str) -> None:
    async with await kind.create(image=image) as sandbox:
        handle = await sandbox.exec_stream("sleep", ["600"])
        handle.kill()
        assert (await handle.wait()).signal == 9
        handle.kill()  # nothing is left to kill
        handle = await sandbox.exec_stream("sleep", ["600"])
        handle.signal(15)
        assert (await handle.wait()).signal == 15


@_case
async def a_time_limit_ends_a_command_and_keeps_its_output(kind: type[Sandbox], image: str) -> None:
    async with await kind.create(image=image) as sandbox:
        with _raises(ExecTimeout) as caught:
            await sandbox.exec("sh", ["-c", "echo part; sleep 600"], timeout="5s")
        output = caught.error.output
        assert (output.stdout_text, output.timed_out, output.success) == ("part\n", True, False)


@_case
async def a_terminal_has_one_output(kind: type[Sandbox], image: str) -> None:
    async with await kind.create(image=image) as sandbox:
        output = await sandbox.exec("sh", ["-c", "echo out; echo err >&2"], tty=Terminal(30, 100))
        assert (output.stdout_bytes, output.stderr_bytes) == (b"out\r\nerr\r\n", b"")
        handle = await sandbox.exec_stream("sleep", ["600"], tty=True)
        handle.resize(40, 120)
        handle.kill()
        await handle.wait()
        handle = await sandbox.exec_stream("true")
        with _raises(ExecError):
            handle.resize(40, 120)
        await handle.wait()


@_case
async def a_command_that_is_left_goes_on(kind: type[Sandbox], image: str) -> None:
    async with await kind.create(image=image) as sandbox:
        handle = await sandbox.exec_stream("sleep", ["600"])
        await handle.detach()
        assert handle.detached
        assert "exited" not in [event.kind async for event in handle]
        assert (await sandbox.exec("true")).success


@_case
async def a_command_that_was_left_is_joined_again(kind: type[Sandbox], image: str) -> None:
    async with await kind.create(image=image) as sandbox:
        assert await sandbox.sessions() == []
        handle = await sandbox.exec_stream("cat", stdin=Stdin.pipe())
        await handle.detach()
        (left,) = await sandbox.sessions()
        assert (left.command, left.pid, left.tty, left.stdin) == (("cat",), handle.pid, False, True)
        assert (left.main, left.joined) == (False, False)
        again = await sandbox.join(left)
        assert (again.command, again.pid, again.tty, again.has_stdin) == ("cat", handle.pid, False, True)
        assert (await sandbox.sessions())[0].joined
        with _raises(ExecError):
            await sandbox.join(left)
        await again.detach()
        again = await sandbox.join(left.id)
        await again.take_stdin().write(b"text")
        await again.take_stdin().close()
        output = await again.collect()
        assert (output.stdout_bytes, output.exit_code) == (b"text", 0)
        assert await sandbox.sessions() == []
        with _raises(ExecError):
            await sandbox.join(left)
        # How it ended can be asked for, as of one that was faster than its owner.
        assert (await sandbox.wait_for(left)).exit_code == 0
        fast = await sandbox.exec_stream("false", keep=True)
        await fast.wait()
        first, second = await sandbox.sessions(ended=True)
        assert (first.id, first.exit_code, second.command, second.exit_code) == (left.id, 0, ("false",), 1)
        assert second.ended_at is not None
        with _raises(ExecError):
            await sandbox.wait_for(999_999)


@_case
async def a_command_whose_sandbox_ends_has_no_known_end(kind: type[Sandbox], image: str) -> None:
    sandbox = await kind.create(image=image)
    handle = await sandbox.exec_stream("sleep", ["600"])
    await sandbox.kill()
    with _raises(OutcomeUnknown):
        await handle.collect()
    with _raises(NotRunning):
        await sandbox.exec("true")
    with _raises(NotRunning):
        await sandbox.ping()


@_case
async def many_commands_run_at_once(kind: type[Sandbox], image: str) -> None:
    async with await kind.create(image=image) as sandbox:
        outputs = await asyncio.gather(*(sandbox.exec("echo", [str(number)]) for number in range(50)))
        assert [output.stdout_text for output in outputs] == [f"{number}\n" for number in range(50)]


@_case
async def the_log_has_what_was_printed(kind: type[Sandbox], image: str) -> None:
    async with _named(kind, image) as sandbox:
        await sandbox.exec("sh", ["-c", "echo one; echo two; echo three >&2"])
        await sandbox.stop()
        found = [(line.source, line.text) async for line in kind.logs_of(sandbox.name)]
        assert sorted(found) == [("stderr", "three\n"), ("stdout", "one\n"), ("stdout", "two\n")]
        found = [
            (line.source, line.text) async for line in kind.logs_of(sandbox.name, tail=1, sources=["stdout"])
        ]
        assert found == [("stdout", "two\n")]


# --------------------------------------------------------------------------------------------------- files


@_case
async def files_are_read_and_written(kind: type[Sandbox], image: str) -> None:
    async with await kind.create(image=image) as sandbox:
        fs = sandbox.fs
        data = bytes(range(256)) * 2000
        await fs.write("/tmp/data", data)
        assert await fs.read("/tmp/data") == data
        assert b"".join([piece async for piece in fs.read_stream("/tmp/data")]) == data
        await fs.write("/tmp/text", "ünïcode\n")
        assert await fs.read_text("/tmp/text") == "ünïcode\n"
        assert (await sandbox.exec("cat", ["/tmp/text"])).stdout_text == "ünïcode\n"
        async with fs.write_stream("/tmp/text") as sink:
            await sink.write(b"one")
            await sink.write(b"two")
        assert await fs.read("/tmp/text") == b"onetwo"
        try:
            async with fs.write_stream("/tmp/text") as sink:
                await sink.write(b"half")
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        assert await fs.read("/tmp/text") == b"onetwo"
        with _raises(FilesystemError, "/tmp/data") as caught:
            await fs.read("/tmp/data", limit=100)
        assert caught.error.code == "too_large"
        with _raises(ValueError, "path"):
            await fs.read("tmp/data")
        for call in (fs.read, fs.stat, fs.list, fs.remove, fs.remove_dir):
            with _raises(PathNotFound, "/no/such"):
                await call("/no/such")


@_case
async def the_tree_is_seen_and_changed(kind: type[Sandbox], image: str) -> None:
    async with await kind.create(image=image) as sandbox:
        fs = sandbox.fs
        await fs.mkdir("/a/b/c", parents=True)
        with _raises(FilesystemError, "/a/b") as caught:
            await fs.mkdir("/a/b")
        assert caught.error.code == "path_exists"
        await fs.write("/a/f", b"12345")
        await fs.chmod("/a/f", 0o600)
        await fs.chown("/a/f", 12, 34)
        found = await fs.list("/a")
        assert [(facts.name, facts.path, facts.kind) for facts in found] == [
            ("b", "/a/b", FileKind.DIRECTORY),
            ("f", "/a/f", FileKind.FILE),
        ]
        facts = await fs.stat("/a/f")
        assert (facts.size, facts.mode, facts.uid, facts.gid) == (5, 0o600, 12, 34)
        await fs.rename("/a/f", "/a/g")
        assert [await fs.exists(path) for path in ("/a/f", "/a/g")] == [False, True]
        await fs.copy("/a", "/z")
        assert await fs.read("/z/g") == b"12345"
        with _raises(FilesystemError, "/a") as caught:
            await fs.remove("/a")
        assert caught.error.code == "not_empty"
        await fs.remove("/a/g")
        await fs.remove_dir("/a")
        assert not await fs.exists("/a")
        with _raises(FilesystemError):
            await fs.remove_dir("/")


@_case
async def trees_are_copied_from_and_to_the_host(kind: type[Sandbox], image: str) -> None:
    async with await kind.create(image=image) as sandbox:
        with tempfile.TemporaryDirectory() as name:
            host = Path(name)
            (host / "in" / "deep").mkdir(parents=True)
            (host / "in" / "deep" / "file").write_bytes(b"content" * 50_000)
            (host / "in" / "link").symlink_to("deep/file")
            result = await sandbox.fs.copy_from_host(host / "in", "/tmp")
            assert result.entries == 4
            assert await sandbox.fs.read("/tmp/in/link") == b"content" * 50_000
            facts = await sandbox.fs.stat("/tmp/in/link", follow_symlinks=False)
            assert (facts.kind, facts.target) == (FileKind.SYMLINK, "deep/file")
            await sandbox.fs.copy_to_host("/tmp/in", host / "out")
            assert (host / "out" / "deep" / "file").read_bytes() == b"content" * 50_000
            assert (host / "out" / "link").readlink() == Path("deep/file")
            with _raises(PathNotFound):
                await sandbox.fs.copy_from_host(host / "missing", "/tmp")
            with _raises(PathNotFound):
                await sandbox.fs.copy_to_host("/missing", host)


# ----------------------------------------------------------------------------------------------- lifecycle


@_case
async def an_ephemeral_sandbox_is_gone_after_its_context(kind: type[Sandbox], image: str) -> None:
    async with await kind.create(image=image) as sandbox:
        assert (sandbox.status, sandbox.ephemeral, sandbox.owns_lifecycle) == (Status.RUNNING, True, True)
        assert sandbox.name in [found.name for found in await kind.list()]
    assert sandbox.name not in [found.name for found in await kind.list()]
    with _raises(NotRunning):
        await sandbox.exec("true")
    await sandbox.stop()  # nothing is left to stop
    await sandbox.kill()
    await sandbox.destroy()


@_case
async def an_error_in_the_context_passes(kind: type[Sandbox], image: str) -> None:
    try:
        async with await kind.create(image=image) as sandbox:
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    with _raises(SandboxNotFound):
        await kind.get(sandbox.id)


@_case
async def a_named_sandbox_stops_and_starts(kind: type[Sandbox], image: str) -> None:
    async with _named(kind, image, env={"A": "1"}) as sandbox:
        name = sandbox.name
        with _raises(AlreadyExists, name):
            await kind.create(name, image=image)
        with _raises(StillRunning, name):
            await kind.remove(name)
        with _raises(StillRunning, name):
            await kind.start(name)
        await sandbox.fs.write("/root/note", "kept")
        await sandbox.stop()
        assert (await kind.get(name)).status is Status.STOPPED
        with _raises(NotRunning, name):
            await kind.connect(name)
        again = await kind.start(name)
        assert (again.id, again.owns_lifecycle) == (sandbox.id, False)
        assert await again.fs.read_text("/root/note") == "kept"
        assert (await again.exec("sh", ["-c", "echo $A"])).stdout_text == "1\n"
        await again.stop()
        await kind.remove(name)
        with _raises(SandboxNotFound, name):
            await kind.remove(name)
        with _raises(SandboxNotFound, name):
            await kind.start(name)


@_case
async def connections_come_and_go(kind: type[Sandbox], image: str) -> None:
    async with _named(kind, image, detached=True) as sandbox:
        other = await kind.connect(sandbox.name)
        assert (other.id, other.owns_lifecycle) == (sandbox.id, False)
        await sandbox.detach()
        assert (await other.exec("true")).success
        await other.detach()
        assert (await kind.get(sandbox.id)).status is Status.RUNNING


@_case
async def lists_have_pages_and_are_chosen_by_labels(kind: type[Sandbox], image: str) -> None:
    mark = secrets.token_hex(4)
    names = []
    async with (
        _named(kind, image, labels={"mark": mark, "n": "0"}) as first,
        _named(kind, image, labels={"mark": mark, "n": "1"}) as second,
        _named(kind, image, labels={"mark": mark, "n": "2"}) as third,
    ):
        cursor = None
        while True:
            page = await kind.list(labels={"mark": mark}, cursor=cursor, limit=2)
            assert len(page) <= 2
            names.append([found.name for found in page])
            cursor = page.next_cursor
            if cursor is None:
                break
        assert names == [[first.name, second.name], [third.name]]
        assert [found.id for found in await kind.list(["n=1", f"mark={mark}"])] == [second.id]
        assert [found.labels for found in await kind.list({"mark": mark, "n": "2"})] == [third.labels]
    wrong: dict[str, Any]
    for wrong in ({"limit": 0}, {"cursor": "nonsense"}):
        with _raises(ValueError, next(iter(wrong))):
            await kind.list(**wrong)
    with _raises(TypeError, "labels"):
        await kind.list("mark")


@_case
async def a_handle_knows_and_does_without_a_connection(kind: type[Sandbox], image: str) -> None:
    async with _named(kind, image, labels={"a": "b"}, cpus=1, memory="256M") as sandbox:
        handle = await kind.get(sandbox.name)
        assert (handle.id, handle.name, handle.labels) == (sandbox.id, sandbox.name, {"a": "b"})
        assert (handle.status, handle.ephemeral, handle.created_at) == (
            Status.RUNNING,
            False,
            sandbox.created_at,
        )
        assert (await handle.config()).memory_mib == 256
        assert await handle.ping() >= 0
        connected = await handle.connect()
        assert (await connected.exec("true")).success
        await handle.stop()
        end = await handle.wait_until_stopped()
        assert end is not None
        assert end.cause is Cause.REQUESTED
        with _raises(NotRunning):
            await handle.ping()
        with _raises(NotRunning):
            await handle.connect()
        started = await handle.start()
        assert (await started.exec("true")).success
        await handle.kill()
        await handle.remove()
        for call in (handle.refresh, handle.config, handle.start, handle.remove):
            with _raises(SandboxNotFound):
                await call()
    with _raises(SandboxNotFound):
        await kind.get(_name())


@_case
async def a_plan_says_what_counts_when(kind: type[Sandbox], image: str) -> None:
    async with _named(kind, image, env={"A": "1"}, memory="256M") as sandbox:
        plan = await sandbox.modify(env={"A": "2"}, memory="512M", labels={"x": "y"}, dry_run=True)
        assert [(change.field, change.applies) for change in plan.changes] == [
            ("env", Applies.NOW),
            ("memory", Applies.NEXT_START),
            ("labels", Applies.NOW),
        ]
        assert (plan.changes[1].before, plan.changes[1].after) == (256, 512)
        assert (plan.applied, plan.needs_restart) == (False, True)
        assert (await sandbox.exec("sh", ["-c", "echo $A"])).stdout_text == "1\n"
        assert (await sandbox.modify(env={"A": "2"}, labels={"x": "y"})).applied
        assert (await sandbox.exec("sh", ["-c", "echo $A"])).stdout_text == "2\n"
        assert sandbox.labels == {"x": "y"}
        assert not (await sandbox.modify(env={"A": "2"})).changes
        with _raises(ConfigError, "memory"):
            await sandbox.modify(memory="1M")
        await sandbox.stop()
        handle = await kind.get(sandbox.id)
        plan = await handle.modify(memory="512M", env={})
        assert not plan.needs_restart
        assert (await handle.config()).memory_mib == 512


@_case
async def a_restart_keeps_what_was_written(kind: type[Sandbox], image: str) -> None:
    async with _named(kind, image) as sandbox:
        await sandbox.fs.write("/root/note", "kept")
        await sandbox.restart()
        assert (sandbox.status, sandbox.owns_lifecycle) == (Status.RUNNING, True)
        assert await sandbox.fs.read_text("/root/note") == "kept"
    async with await kind.create(image=image) as sandbox:
        with _raises(SandboxError, sandbox.name):
            await sandbox.restart()
        assert (await sandbox.exec("true")).success


@_case
async def a_stop_can_be_asked_for_and_waited_for(kind: type[Sandbox], image: str) -> None:
    async with _named(kind, image) as sandbox:
        await sandbox.request_stop()
        await sandbox.wait_until_stopped()
        handle = await kind.get(sandbox.id)
        end = await handle.wait_until_stopped()
        assert handle.status is Status.STOPPED
        assert end is not None
        assert end.cause is Cause.REQUESTED
        await sandbox.request_stop()  # it has stopped


@_case
async def a_sandbox_is_destroyed_with_all_it_has_written(kind: type[Sandbox], image: str) -> None:
    async with _named(kind, image) as sandbox:
        await sandbox.destroy()
        with _raises(SandboxNotFound):
            await kind.get(sandbox.id)


@_case
async def one_sandbox_is_connected_to_started_or_created(kind: type[Sandbox], image: str) -> None:
    name = _name()
    try:
        found = await asyncio.gather(
            *(kind.connect_or_create(name, image=image, ephemeral=False, detached=True) for _ in range(3))
        )
        assert len({sandbox.id for sandbox in found}) == 1
        await found[0].fs.write("/root/note", "kept")
        await found[0].stop()
        again = await kind.connect_or_create(name, image=image)
        assert (again.id, await again.fs.read_text("/root/note")) == (found[0].id, "kept")
        await again.stop()
    finally:
        await kind.remove(name, force=True)


@_case
async def a_new_sandbox_takes_the_place_of_an_old_one(kind: type[Sandbox], image: str) -> None:
    async with _named(kind, image) as old:
        new = await kind.create(old.name, image=image, replace=True, ephemeral=False)
        assert new.id != old.id
        with _raises(SandboxNotFound):
            await kind.get(old.id)
        assert (await kind.get(old.name)).id == new.id
        await new.destroy()


@_case
async def a_start_tells_how_far_it_is(kind: type[Sandbox], image: str) -> None:
    async with kind.create_with_progress(image=image) as session:
        phases = [event.phase async for event in session.progress]
        assert phases[-2:] == [ProgressPhase.BOOT, ProgressPhase.READY]
        sandbox = await session.result()
        with _raises(RuntimeError, "taken"):
            await session.result()
    async with sandbox:
        assert (await sandbox.exec("true")).success
    name = _name()
    async with kind.create_with_progress(name, image=image, ephemeral=False) as session:
        assert [event.subject async for event in session.progress][-1] == name
    with _raises(SandboxNotFound):
        await kind.get(name)
    async with kind.create_with_progress(image=image, memory="1M") as session:
        assert [event async for event in session.progress] == []
        with _raises(ConfigError, "memory"):
            await session.result()
