"""Sandboxes: made, found, entered, ended."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypedDict, Unpack

from microsandbox_core import env as environment
from microsandbox_core.agent import AgentClient
from microsandbox_core.channel import ChannelError

from microsandbox import _attach, _config, _create, _ending, _life, _replace, info
from microsandbox._create import Pending
from microsandbox._directory import SandboxDirectory
from microsandbox._state import Record
from microsandbox.errors import ConfigError, MicrosandboxError, NotRunning, SandboxNotFound
from microsandbox.execution import ExecHandle, ExecOutput, Stdin, Terminal, start_command
from microsandbox.handle import DEFAULT_GRACE
from microsandbox.info import SandboxInfo, Status

if TYPE_CHECKING:
    import re

    from microsandbox_oci import ImageConfig

    from microsandbox.files import SandboxFiles
    from microsandbox.logs import LogLine, LogSource


class LogOptions(TypedDict, total=False):
    """Which lines of a log are wanted; see `Sandbox.logs_of`."""

    tail: int | None
    since: datetime | None
    until: datetime | None
    sources: Collection[LogSource | str]
    grep: re.Pattern[str] | None
    follow: bool


class Sandbox:
    """A microVM made from an image. Make one with `create`, `start` or `get`.

    As an asynchronous context manager it stops when it is left, and is removed if it is ephemeral.
    Not for use from several event loops.
    """

    def __init__(
        self,
        home: Path,
        record: Record,
        client: AgentClient,
        image_config: ImageConfig,
        pending: Pending | None,
        ready: _attach.Ready | None,
    ) -> None:
        self._home = home
        self._record = record
        self._directory = SandboxDirectory(home, record.id)
        # The life that this object is about: the sandbox may have another one after it.
        self._life = _life.read(self._directory)
        self._client = client
        self._config = _config.SandboxConfig.unpack(record.config)
        self._image_config = image_config
        self._pending = pending
        self.ready = ready
        """Isolation and timings of the start; None if someone else started the sandbox."""
        self._over = False
        self._limit: str | None = None

    # ---------------------------------------------------------------------------------------- making

    @classmethod
    async def create(
        cls,
        name: str | None = None,
        *,
        image: str,
        cpus: int = _config.DEFAULT_CPUS,
        memory: int | str = _config.DEFAULT_MEMORY_MIB,
        workdir: str | None = None,
        user: str | None = None,
        hostname: str | None = None,
        entrypoint: Sequence[str] | None = None,
        cmd: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        ephemeral: bool | None = None,
        detached: bool = False,
        vmm: str = "auto",
        require_kvm: bool = False,
        cold: bool = False,
        max_duration: float | str | None = None,
        idle_timeout: float | str | None = None,
        replace: bool = False,
        replace_with_timeout: float | str | None = None,
    ) -> Self:
        """Create a sandbox and wait until it runs.

        `image` is a loaded reference, a root file system directory (``./dir``), or an archive or
        layout with its prefix. `memory` is in MiB, or text such as ``1G``. A sandbox without a name
        is ephemeral unless `ephemeral` says otherwise: it is removed when it stops. A sandbox that
        is not `detached` ends with this process. `cold`: boot the kernel rather than start from a
        template. `max_duration` and `idle_timeout`, in seconds or text such as ``5m``: it is stopped when
        it has run for that long, or when for that long no command was started, sent anything or printed
        anything. `replace`: a sandbox that has the name is ended and removed; `replace_with_timeout`: the
        same, with this many seconds for its processes to end by themselves.

        Raises `ConfigError`, `ImageError`, `AlreadyExists`, `Replaced`, `StartError`, `StateError`.
        """
        config = _config.SandboxConfig(
            cpus=_config.parse_cpus(cpus),
            memory_mib=_config.parse_memory(memory),
            hostname=None if hostname is None else _config.check_hostname(hostname),
            env=_config.check_env(env or {}),
            workdir=workdir,
            user=user,
            entrypoint=None if entrypoint is None else tuple(entrypoint),
            cmd=None if cmd is None else tuple(cmd),
            vmm=vmm,
            require_kvm=require_kvm,
            cold=cold,
            max_duration=_config.parse_limit(max_duration, "max_duration"),
            idle_timeout=_config.parse_limit(idle_timeout, "idle_timeout"),
        )
        checked = _config.check_labels(labels or {})
        if name is not None:
            _config.check_name(name)
        grace = _config.replacement_grace(name, replace, replace_with_timeout)
        removed_at_end = (name is None and not detached) if ephemeral is None else ephemeral
        home = environment.home()

        def begin() -> Pending:
            found = _create.resolve_image(home, image)
            if grace is not None and name is not None:
                return _replace.begin(
                    home, found, config, shown_image=image, name=name, grace=grace,
                    attached=not detached, ephemeral=removed_at_end, labels=checked,
                )  # fmt: skip
            return _create.begin(
                home,
                found,
                config,
                shown_image=image,
                name=name,
                attached=not detached,
                ephemeral=removed_at_end,
                labels=checked,
            )

        return await cls.adopt(await _begun(begin))

    @classmethod
    async def start(cls, name: str, *, detached: bool = True, cold: bool = False) -> Self:
        """Start a stopped sandbox; `cold` as in `create`, for this start only.

        Raises `SandboxNotFound`, `StillRunning`, `StartError`.
        """
        home = environment.home()
        return await cls.adopt(
            await _begun(lambda: _create.begin_again(home, name, attached=not detached, cold=cold))
        )

    @classmethod
    async def adopt(cls, pending: Pending) -> Self:
        """Wait for a start that `begin` made, and take the sandbox over; for programs that start it
        before they have an event loop. On failure nothing of a new sandbox is left."""
        try:
            ready = await _attach.wait_ready(pending)
            client = await _connect(pending.directory, pending.record.name)
        except BaseException:
            await _abandon(pending)
            raise
        if not pending.attached:
            pending.supervisor.close()
        return cls(pending.home, pending.record, client, pending.image.config, pending, ready)

    @classmethod
    async def get(cls, name: str) -> Self:
        """Connect to a running sandbox. Raises `SandboxNotFound`, `NotRunning`."""
        home = environment.home()
        record = await asyncio.to_thread(_create.find, home, name)
        image = await asyncio.to_thread(_create.image_of, home, record)
        client = await _connect(SandboxDirectory(home, record.id), record.name)
        return cls(home, record, client, image.config, None, None)

    @staticmethod
    async def list(labels: Sequence[str] = ()) -> list[SandboxInfo]:
        """Every sandbox, oldest first. `labels`: those with all of these, each ``KEY`` or ``KEY=VALUE``."""
        return await asyncio.to_thread(info.list_sandboxes, environment.home(), labels)

    @staticmethod
    async def remove(name: str, *, force: bool = False) -> None:
        """Remove a sandbox and what it has written. Raises `SandboxNotFound`, `StillRunning`."""
        home = environment.home()
        record = await asyncio.to_thread(_create.find, home, name)
        await _ending.remove(home, record, force=force)

    # ----------------------------------------------------------------------------------------- facts

    @property
    def id(self) -> str:
        """Sixteen hex digits that no other sandbox has."""
        return self._record.id

    @property
    def name(self) -> str:
        """Its name; generated if it was not given one."""
        return self._record.name

    @property
    def owns_lifecycle(self) -> bool:
        """Whether the sandbox ends with this object's process."""
        return self._pending is not None and self._pending.attached

    @property
    def ephemeral(self) -> bool:
        """Whether it is removed when it stops."""
        return self._record.ephemeral

    @property
    def isolation(self) -> str | None:
        """``kvm`` or ``emulated``: what this sandbox really got."""
        life = _life.read(self._directory)
        return None if life is None else life.isolation

    @property
    def created_at(self) -> datetime:
        """When it was created."""
        return datetime.fromtimestamp(self._record.created_ns / 1e9, tz=UTC)

    @property
    def labels(self) -> dict[str, str]:
        """The labels that it was created with."""
        return dict(self._record.labels)

    @property
    def status(self) -> Status:
        """What it is doing now."""
        return _life.look(self._directory).status

    @property
    def fs(self) -> SandboxFiles:
        """The files in it."""
        from microsandbox.files import SandboxFiles  # most sandboxes are started without a need for it

        return SandboxFiles(self._client, self.name)

    # -------------------------------------------------------------------------------------- commands

    def command(self, arguments: Sequence[str] = (), *, shell: bool = False) -> tuple[str, ...]:
        """ENTRYPOINT + (`arguments`, or CMD) of this sandbox.

        When that is empty: ``/bin/sh`` if a `shell` would do, else it raises `ConfigError`.
        """
        found = _config.command_line(
            self._config, self._image_config.entrypoint, self._image_config.cmd, tuple(arguments)
        )
        if not found and shell:
            return ("/bin/sh",)
        if not found:
            raise ConfigError(
                f"the image {self._record.image} names no command to run",
                hint="give one: msb run IMAGE -- COMMAND",
            )
        return found

    async def exec_stream(
        self,
        cmd: str,
        args: Sequence[str] = (),
        *,
        cwd: str | None = None,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | str | None = None,
        stdin: Stdin | bytes | None = None,
        tty: bool | Terminal = False,
        rlimits: Mapping[str, tuple[int, int]] | None = None,
    ) -> ExecHandle:
        """Start a command and return a handle to it.

        `cwd`, `user` and `env` are added to what the sandbox and the image set. `timeout` is in
        seconds, or text such as ``30s``. `stdin`: nothing by default. `tty`: run it at a terminal of its
        own, True for one of 24 rows and 80 columns; all its output is then ``stdout``, and its input too
        is the terminal unless `stdin` is nothing. The end of `stdin` is typed as Ctrl-D. `rlimits`: soft and
        hard values by name (``nofile``).

        Raises `ExecFailed` when it cannot be run, `NotRunning`, `ValueError`.
        """
        merged = dict(pair.partition("=")[::2] for pair in self._image_config.env)
        merged.setdefault("PATH", _config.DEFAULT_PATH)
        terminal = (tty if isinstance(tty, Terminal) else Terminal()) if tty else None
        if terminal is not None:
            merged["TERM"] = terminal.term
        merged.update(self._config.env)
        merged.update(_config.check_env(env or {}))
        return await start_command(
            self._client,
            [cmd, *args],
            cwd=cwd or self._config.workdir or self._image_config.working_dir or None,
            user=user or self._config.user or self._image_config.user or None,
            env=merged,
            timeout=None if timeout is None else _config.parse_duration(timeout, "timeout"),
            stdin=Stdin.bytes(stdin) if isinstance(stdin, bytes) else (stdin or Stdin.null()),
            tty=terminal,
            rlimits=rlimits or {},
        )

    async def exec(
        self,
        cmd: str,
        args: Sequence[str] = (),
        *,
        cwd: str | None = None,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | str | None = None,
        stdin: Stdin | bytes | None = None,
        tty: bool | Terminal = False,
        rlimits: Mapping[str, tuple[int, int]] | None = None,
    ) -> ExecOutput:
        """Run a command to its end and return its output; see `exec_stream` for the parameters.

        Raises `ExecTimeout` (with the output so far) at the time limit, and `OutcomeUnknown` when
        the sandbox ended before the command had.
        """
        handle = await self.exec_stream(
            cmd, args, cwd=cwd, user=user, env=env, timeout=timeout, stdin=stdin, tty=tty, rlimits=rlimits
        )
        return await handle.collect()

    async def shell(self, script: str, *, timeout: float | str | None = None) -> ExecOutput:
        """Run a script with the sandbox's ``/bin/sh``."""
        return await self.exec("/bin/sh", ["-c", script], timeout=timeout)

    async def ping(self) -> float:
        """Seconds until the agent in the sandbox answered. Raises `NotRunning`."""
        try:
            return await self._client.ping()
        except ChannelError as error:
            raise self._lost(error) from error

    # ------------------------------------------------------------------------------------------ logs

    async def logs(self, **wanted: Unpack[LogOptions]) -> AsyncIterator[LogLine]:
        """The lines that its commands have printed, oldest first; see `logs_of`."""
        async with aclosing(_logs(self._home, self._record, wanted)) as lines:
            async for line in lines:
                yield line

    @classmethod
    async def logs_of(cls, name: str, **wanted: Unpack[LogOptions]) -> AsyncIterator[LogLine]:
        """The same for a sandbox that need not run: ``async for line in Sandbox.logs_of("dev")``.

        `tail`: the last so many. `since`, `until`: with a time zone. `sources`: see `LogSource`, by default
        what was printed. `grep`: lines in which the pattern is found. `follow`: go on until the sandbox
        stops. A line of the system whose `event` is ``lost`` or ``missed`` stands where output is missing,
        whatever the other sources.

        Raises `SandboxNotFound`, `SandboxError` when it keeps no log, `StateError`, `ValueError`.
        """
        home = environment.home()
        record = await asyncio.to_thread(_create.find, home, name)
        async with aclosing(_logs(home, record, wanted)) as lines:
            async for line in lines:
                yield line

    # ------------------------------------------------------------------------------------------- end

    def limit_reached(self) -> str | None:
        """The limit because of which it is being stopped or was, as a sentence; None if there is none.

        Known to the one who started it, and only while `owns_lifecycle`.
        """
        if self._limit is None and self._pending is not None:
            self._limit = _attach.limit_reached(self._pending.supervisor.lifeline)
        return self._limit

    async def stop(self, timeout: float = DEFAULT_GRACE) -> None:
        """Stop it: SIGTERM to every process, SIGKILL after `timeout` seconds, disk written out, off.

        What does not go along with that is killed five seconds later. Does nothing if it has stopped.
        """
        pidfd = self._supervisor()
        if pidfd is not None:
            try:
                await _ending.stop_supervisor(self._directory, pidfd, timeout, client=self._client)
            finally:
                os.close(pidfd)
        await self._ended()

    async def kill(self) -> None:
        """End it at once, as if its power were cut. Does nothing if it has stopped."""
        pidfd = self._supervisor()
        if pidfd is not None:
            try:
                await _ending.end(pidfd)
            finally:
                os.close(pidfd)
        await self._ended()

    async def destroy(self) -> None:
        """End it at once and remove it, with everything it has written."""
        await self.kill()
        if not self.ephemeral:
            try:
                await _ending.remove(self._home, self._record, force=True)
            except SandboxNotFound:
                pass  # that is what was wanted

    async def detach(self) -> None:
        """Close the connection; a sandbox that was created detached goes on."""
        await self._client.close()
        if self._pending is not None:
            self._pending.supervisor.close()

    async def wait_until_stopped(self) -> None:
        """Wait until it has stopped, for whatever reason."""
        pidfd = self._supervisor()
        if pidfd is not None:
            try:
                await _attach.gone(pidfd)
            finally:
                os.close(pidfd)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.ephemeral:
            await self.kill()
        else:
            await self.stop()

    def _supervisor(self) -> int | None:
        """A pidfd of the supervisor; None if it has gone."""
        if self._over:
            return None
        if self._pending is not None:
            return os.dup(self._pending.supervisor.pidfd)
        return None if self._life is None else _life.open_supervisor(self._life)

    async def _ended(self) -> None:
        """The supervisor has gone: let go of everything, and clean up what it could not."""
        if self._over:
            return
        self._over = True
        await self._client.close()
        if self._pending is not None:
            self._pending.supervisor.close()
            self._pending.supervisor.reap()
        # The directory goes before the record. A record that the supervisor could not remove without it
        # is found by the next command, as after a crash.
        if self.ephemeral and self._directory.path.exists():
            await asyncio.to_thread(_create.forget_quietly, self._home, self._record)

    def _lost(self, error: ChannelError) -> NotRunning:
        return NotRunning(f"the sandbox {self.name!r} is not running any more: {error}")


async def _logs(home: Path, record: Record, wanted: LogOptions) -> AsyncGenerator[LogLine, None]:
    from microsandbox.logs import read_log

    async with aclosing(read_log(home, record, **wanted)) as log:
        async for lines in log:
            for line in lines:
                yield line


async def _connect(directory: SandboxDirectory, name: str) -> AgentClient:
    try:
        return await AgentClient.connect(directory.socket)
    except (ChannelError, OSError) as error:
        end = info.end_of(await asyncio.to_thread(_life.look, directory))
        raise NotRunning(
            f"the sandbox {name!r} is not running" + (f": {end.reason}" if end else ""),
            hint=f"start it: msb start {name}",
        ) from error


async def _begun(begin: Callable[[], Pending]) -> Pending:
    """`begin` on a thread. When the caller is cancelled meanwhile, what it has begun is ended."""
    began = asyncio.ensure_future(asyncio.to_thread(begin))
    try:
        return await asyncio.shield(began)
    except asyncio.CancelledError:
        # A thread cannot be cancelled: without this nobody would know of the sandbox it goes on to make.
        try:
            pending = await began
        except MicrosandboxError:
            pass  # nothing was begun
        else:
            await _abandon(pending)
        raise


async def _abandon(pending: Pending) -> None:
    """A start that failed or was given up: wait for the supervisor to clean up, then look after it."""
    pending.supervisor.close()
    _attach.terminate(pending.supervisor.pidfd)
    try:
        async with asyncio.timeout(5):
            await _attach.gone(pending.supervisor.pidfd)
    except TimeoutError:
        _attach.terminate(pending.supervisor.pidfd, signal.SIGKILL)
    pending.supervisor.reap()
    if pending.record.ephemeral or pending.fresh:
        await asyncio.shield(asyncio.to_thread(_create.forget_quietly, pending.home, pending.record))
