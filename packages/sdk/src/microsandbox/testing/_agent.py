"""The machine of a `FakeSandbox`, and the agent in it as a client of the agent channel sees it."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any

from microsandbox_core.agent import ExitStatus, Finished, ProcessEvent, Stderr, Stdout, TerminalSize
from microsandbox_core.agent._sessions import Session
from microsandbox_core.channel import ConnectionLost, Control, OutcomeUnknown, RequestFailed, StreamClosed

from microsandbox._log_format import Record as LogRecord
from microsandbox.logs import Lines, LogLine, LogSource
from microsandbox.testing._commands import BUILT_IN, Call, Command, Result, answer
from microsandbox.testing._operations import operate
from microsandbox.testing._tree import Tree, directory, file

_PASSWD = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"
_SIGKILL = 9
_pids = itertools.count(100)


class Machine:
    """Its files, its commands, what runs in it, what that has printed. Files stay when it stops."""

    def __init__(self, hostname: str, commands: Mapping[str, Command]) -> None:
        self.hostname: str = hostname
        self.commands: dict[str, Command] = {**BUILT_IN, **commands}
        self.tree = Tree()
        for name in (b"/bin", b"/dev", b"/etc", b"/root", b"/tmp", b"/usr/bin", b"/var/tmp"):
            self.tree.make(name, parents=True)
        self.tree.write(b"/etc/passwd", _PASSWD)
        self.tree.root.children[b"dev"].children[b"null"] = file()
        self.tree.root.children[b"tmp"] = directory(0o1777)
        for command in self.commands:
            self.tree.root.children[b"bin"].children[os.fsencode(command)] = file(mode=0o755)
        self.log: list[LogLine] = []
        self.news = asyncio.Event()
        """Set, and replaced by another one, when `log` has become longer, or will not any more."""
        self.started = time.monotonic()
        self.on = True
        self.off = asyncio.Event()
        self.processes: set[FakeProcess] = set()
        self.ended: list[FakeProcess] = []
        """Those of this life that were left, in the order of their ends."""
        self._lines = Lines()

    def switch_on(self) -> None:
        """Begin another life."""
        self.on, self.off, self.started = True, asyncio.Event(), time.monotonic()
        self.ended = []

    def switch_off(self, *, orderly: bool) -> None:
        """End: what runs is killed, and seen to be if there is the time for that."""
        for process in list(self.processes):
            process.end(ExitStatus(None, _SIGKILL) if orderly else None)
        self.on = False
        self._log(self._lines.rest())
        self.off.set()

    def note(self, session: str, pid: int, channel: int, data: bytes) -> None:
        """Keep what a command printed."""
        source = LogSource.STDOUT if channel == 1 else LogSource.STDERR
        self._log(self._lines.feed(LogRecord(time.time_ns(), source, session, pid, data)))

    def note_end(self, session: str) -> None:
        """A command has ended: so have its lines."""
        self._log(self._lines.rest(session))

    def _log(self, lines: list[LogLine]) -> None:
        self.log += lines
        self.news.set()
        self.news = asyncio.Event()


class FakeInput:
    """The writing end of a command's standard input."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes] = asyncio.Queue()
        self.closed = False

    async def write(self, data: bytes) -> None:
        """Hand it over."""
        if self.closed:
            raise StreamClosed("standard input is closed")
        if data:
            self.queue.put_nowait(bytes(data))
        await asyncio.sleep(0)

    async def close(self) -> None:
        """No more comes."""
        if not self.closed:
            self.closed = True
            self.queue.put_nowait(b"")


class FakeProcess:
    """A command that runs, as `microsandbox_core.agent.Process` is one."""

    def __init__(
        self,
        machine: Machine,
        make: Callable[[FakeProcess], Coroutine[Any, Any, Result]],
        *,
        stdin: bool,
        timeout: float | None,
        one_output: bool,
        logged: bool,
        argv: Sequence[str] = (),
        keep: bool = False,
    ) -> None:
        self.argv = argv
        self.keep = keep
        self.ended_ns: int | None = None
        self.joined: FakeJoined | None = None
        self.last = False
        self.left_ns = 0
        self.pid = next(_pids)
        self.id = self.pid
        self.input = FakeInput()
        self.stdin = self.input if stdin else None
        self.detached = False
        self._machine = machine
        self._one_output = one_output
        self._logged = logged
        self._events: asyncio.Queue[ProcessEvent | None] = asyncio.Queue()
        self._lost: BaseException | None = None
        self._status: ExitStatus | None = None
        self._over = asyncio.Event()
        self._closed_outputs: set[int] = set()
        if not stdin:
            self.input.queue.put_nowait(b"")
        machine.processes.add(self)
        self._task = asyncio.create_task(self._run(make, timeout))
        self._task.add_done_callback(self._look_for_error)

    def emit(self, channel: int, data: bytes) -> None:
        """The command has printed something."""
        channel = 1 if self._one_output else channel
        if self._one_output and self._logged:
            data = data.replace(b"\n", b"\r\n")
        if not data or self._over.is_set():
            return
        if self._logged:
            self._machine.note(f"fake-{self.id}", self.pid, channel, data)
        event = Stdout(data) if channel == 1 else Stderr(data)
        if self.joined is not None:
            self.joined.events.put_nowait(event)
        elif channel not in self._closed_outputs and not self.detached:
            self._events.put_nowait(event)

    def end(self, status: ExitStatus | None) -> None:
        """It has ended so; None: with the machine, before that could be seen."""
        if self._over.is_set():
            return
        self._over.set()
        self._task.cancel()
        self._machine.processes.discard(self)
        if status is not None and self.was_left:
            self.ended_ns = time.time_ns()
            self._machine.ended.append(self)
        self._machine.note_end(f"fake-{self.id}")
        self.input.closed = True
        self._status = status
        if status is None:
            self._lost = OutcomeUnknown("the connection was lost while a program ran")
        elif not self.detached:
            self._events.put_nowait(Finished(status))
        self._events.put_nowait(None)
        if self.joined is not None:
            self.joined.end()

    def _look_for_error(self, task: asyncio.Task[None]) -> None:
        """A scripted command has raised something: whoever waits for it gets that."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.end(None)
            self._lost = error

    async def _run(
        self, make: Callable[[FakeProcess], Coroutine[Any, Any, Result]], timeout: float | None
    ) -> None:
        try:
            async with asyncio.timeout(timeout):
                result = await make(self)
        except TimeoutError:
            self.end(ExitStatus(None, _SIGKILL, timed_out=True))
            return
        self.emit(1, result.stdout if isinstance(result.stdout, bytes) else result.stdout.encode())
        self.emit(2, result.stderr if isinstance(result.stderr, bytes) else result.stderr.encode())
        if result.signal is None:
            self.end(ExitStatus(result.exit_code & 0xFF, None))
        else:
            self.end(ExitStatus(None, result.signal))

    # ------------------------------------------------------------------------ as of `agent.Process`

    def __aiter__(self) -> FakeProcess:
        return self

    async def __anext__(self) -> ProcessEvent:
        event = await self._events.get()
        if event is None:
            self._events.put_nowait(None)
            if self._lost is not None:
                raise self._lost
            raise StopAsyncIteration
        return event

    async def wait(self) -> ExitStatus:
        await self._over.wait()
        if self._status is None:
            raise self._lost or OutcomeUnknown("the connection was lost while a program ran")
        return self._status

    def signal(self, number: int) -> None:
        self.end(ExitStatus(None, number))

    def cancel(self) -> None:
        self.end(ExitStatus(None, _SIGKILL))

    def resize(self, size: TerminalSize) -> None:
        size.params()  # what is not a size is refused

    async def detach(self, *, last: bool = False) -> None:
        if self._over.is_set():
            raise StreamClosed("the program has ended")
        self.detached = True
        self.leave(last=last)
        self._events.put_nowait(None)

    def close_output(self, channel: int) -> None:
        self._closed_outputs.add(channel)

    # --------------------------------------------------------------------------- what was left of it

    def leave(self, *, last: bool) -> None:
        """Nobody is joined to it."""
        self.joined = None
        self.last = self.last or last
        self.left_ns = time.time_ns()

    @property
    def was_left(self) -> bool:
        """Whether how it ends is remembered."""
        return self.detached or self.keep

    @property
    def session(self) -> Session:
        """It, as one that can be joined."""
        return Session(
            self.id,
            self.pid,
            tuple(os.fsencode(word) for word in self.argv),
            self._one_output,
            self.stdin is not None,
            self.last,
            self.joined is not None,
            self.left_ns,
            self.ended_ns,
            self._status,
        )


class FakeJoined:
    """A command that was left, and that somebody has joined."""

    def __init__(self, process: FakeProcess) -> None:
        self.pid, self.id, self.stdin = process.pid, process.id, process.stdin
        self.events: asyncio.Queue[ProcessEvent | None] = asyncio.Queue()
        self.detached = False
        self._process = process

    def end(self) -> None:
        """No more comes."""
        self.events.put_nowait(None)

    def __aiter__(self) -> FakeJoined:
        return self

    async def __anext__(self) -> ProcessEvent:
        event = await self.events.get()
        if event is not None:
            return event
        if not self.detached:
            # It has ended, which the one that it belongs to knows more of.
            self.detached = True
            self.events.put_nowait(None)
            return Finished(await self._process.wait())
        self.events.put_nowait(None)
        raise StopAsyncIteration

    async def wait(self) -> ExitStatus:
        return await self._process.wait()

    def signal(self, number: int) -> None:
        self._process.signal(number)

    def cancel(self) -> None:
        self._process.cancel()

    def resize(self, size: TerminalSize) -> None:
        self._process.resize(size)

    async def detach(self, *, last: bool = False) -> None:
        if self._process.joined is not self:
            raise StreamClosed("the program has ended")
        self.detached = True
        self._process.leave(last=last)
        self.events.put_nowait(None)

    def close_output(self, channel: int) -> None:
        self._process.close_output(channel)


class FakeAgent:
    """A connection to the agent of a machine, as `microsandbox_core.agent.AgentClient` is one."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._life = machine.off
        self._own: set[FakeProcess] = set()
        self._joined: list[FakeJoined] = []
        self._closed = False

    @property
    def closed(self) -> bool:
        return self._closed or self._life.is_set()

    async def exec(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str | None,
        user: str | None,
        stdin: str,
        rlimits: Sequence[tuple[str, int, int]],
        timeout: float | None,
        tty: TerminalSize | None,
        main: bool = False,
        keep: bool = False,
    ) -> FakeProcess:
        self._check("exec")
        machine = self.machine
        name = argv[0]
        command = self._command(name)
        directory_ = cwd or "/"
        try:
            entered = machine.tree.find(os.fsencode(directory_)).is_directory
        except OSError:
            entered = False
        if not entered:
            raise RequestFailed("bad_cwd", "cannot be entered", None, {})
        who = user or "root"
        known = [line.split(b":")[0].decode() for line in machine.tree.read(b"/etc/passwd").splitlines()]
        if who.partition(":")[0] not in known and not who.partition(":")[0].isdigit():
            raise RequestFailed("user_not_found", who, None, {})

        def make(process: FakeProcess) -> Coroutine[Any, Any, Result]:
            queue = process.input.queue
            call = Call(machine, tuple(argv), env, directory_, who, process.emit, queue)
            return answer(command, call)

        process = FakeProcess(
            machine, make, stdin=stdin == "pipe", timeout=timeout, one_output=tty is not None, logged=True,
            argv=argv, keep=keep,
        )  # fmt: skip
        self._own.add(process)
        return process

    async def files(self, operation: str, params: Control) -> FakeProcess:
        self._check("files")
        machine = self.machine

        async def run(process: FakeProcess) -> Result:
            call = Call(machine, (operation,), {}, "/", "root", process.emit, process.input.queue)
            return Result(exit_code=await operate(call, machine.tree, operation, dict(params)))

        process = FakeProcess(machine, run, stdin=True, timeout=None, one_output=False, logged=False)
        self._own.add(process)
        return process

    async def sessions(self, *, ended: bool = False) -> list[Session]:
        self._check("sessions")
        left = [process for process in self.machine.processes if process.detached]
        left += self.machine.ended if ended else ()
        return sorted((process.session for process in left), key=lambda session: session.number)

    async def outcome(self, number: int | None = None) -> ExitStatus:
        self._check("outcome")
        for process in (*self.machine.processes, *self.machine.ended):
            if process.was_left and process.id == number:
                return await process.wait()
        raise RequestFailed("no_session", "no command of this number was left here", None, {})

    async def join(self, number: int, *, stdin: bool) -> FakeJoined:
        self._check("attach")
        for process in self.machine.processes:
            if process.detached and process.id == number:
                if process.joined is not None:
                    raise RequestFailed("joined", "somebody else is joined to it", None, {})
                process.joined = FakeJoined(process)
                self._joined.append(process.joined)
                return process.joined
        raise RequestFailed("no_session", "no command of this number was left here", None, {})

    async def ping(self) -> float:
        self._check("ping")
        began = time.perf_counter()
        await asyncio.sleep(0)
        return time.perf_counter() - began

    async def shutdown(self, grace: float) -> None:
        self._check("shutdown")
        self.machine.switch_off(orderly=True)

    async def close(self) -> None:
        """As with the real one: what was started here and not detached goes along."""
        self._closed = True
        for process in self._own:
            if not process.detached:
                process.end(None)
        for joined in self._joined:
            with suppress(StreamClosed):
                await joined.detach()

    def _command(self, name: str) -> Command:
        machine = self.machine
        if "/" not in name:
            if name in machine.commands:
                return machine.commands[name]
        else:
            try:
                node = machine.tree.find(os.fsencode(name))
            except OSError:
                raise RequestFailed("not_found", name, None, {}) from None
            base = name.rpartition("/")[2]
            if node.is_file and node.mode & 0o111 and base in machine.commands:
                return machine.commands[base]
            raise RequestFailed("permission_denied", name, None, {})
        raise RequestFailed("not_found", name, None, {})

    def _check(self, what: str) -> None:
        if self.closed:
            raise ConnectionLost(f"{what} was not sent: the sandbox is not running")
