"""Sandboxes: made, found, entered, ended."""

from __future__ import annotations

import asyncio
import builtins
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypedDict, Unpack, overload

from microsandbox_core import env as environment
from microsandbox_core.agent import AgentClient
from microsandbox_core.channel import ChannelError, RequestFailed

from microsandbox import _attach, _config, _create, _ending, _life, _replace, info
from microsandbox._create import Pending
from microsandbox._directory import SandboxDirectory
from microsandbox._state import Record
from microsandbox.errors import (
    AlreadyExists,
    ConfigError,
    ExecFailed,
    NotRunning,
    SandboxError,
    SandboxNotFound,
    StillRunning,
    paused,
)
from microsandbox.execution import ExecExited, ExecHandle, ExecOutput, Stdin, Terminal, start_command
from microsandbox.handle import DEFAULT_GRACE, SandboxHandle
from microsandbox.info import Cause, SandboxInfo, Status

if TYPE_CHECKING:
    import re

    from microsandbox_oci import ImageConfig

    from microsandbox._fork import Forked
    from microsandbox._guest import Init
    from microsandbox.audit import AuditChoice, AuditRecord
    from microsandbox.files import ApplyResult, FileChange, SandboxFiles
    from microsandbox.files._workspace import Workspaces
    from microsandbox.image import ImageArgument
    from microsandbox.logs import LogLine, LogSource
    from microsandbox.metrics import SandboxMetrics
    from microsandbox.modify import Modifications, ModifyPlan
    from microsandbox.mounts import Mount
    from microsandbox.network import Network, NetworkPolicy
    from microsandbox.options import CreateOptions
    from microsandbox.page import Page
    from microsandbox.patch import Patch
    from microsandbox.ports import PortBinding
    from microsandbox.progress import ProgressEvent, PullSession
    from microsandbox.sessions import Session

_TURN_TIME = 30.0
"""Seconds that `connect_or_create` gives others who are starting or ending the sandbox."""


class LogChoice(TypedDict, total=False):
    """Which lines of a log are wanted; see `Sandbox.logs_of`."""

    tail: int | None
    since: datetime | None
    until: datetime | None
    sources: Collection[LogSource | str]
    grep: re.Pattern[str] | None


class LogOptions(LogChoice, total=False):
    """The same, and whether to wait for more."""

    follow: bool


class ExecOptions(TypedDict, total=False):
    """How a command runs; see `Sandbox.exec_stream`."""

    cwd: str | None
    user: str | None
    env: Mapping[str, str] | None
    timeout: float | str | None
    stdin: Stdin | bytes | None
    tty: bool | Terminal
    rlimits: Mapping[str, tuple[int, int]] | None


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
        self._ready = ready
        self.forked: Forked | None = None
        """What the fork cost, if this object made the sandbox as one."""
        self._over = False
        self._limit: str | None = None
        self._asked_to_stop: asyncio.Task[None] | None = None

    # ---------------------------------------------------------------------------------------- making

    @classmethod
    async def create(
        cls,
        name: str | None = None,
        *,
        image: ImageArgument,
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
        security: str = "default",
        rlimits: Mapping[str, int | tuple[int, int]] | None = None,
        replace: bool = False,
        replace_with_timeout: float | str | None = None,
        pull_policy: str = "if-missing",
        registry_auth: tuple[str, str] | None = None,
        registry_insecure: bool = False,
        shell: str | None = None,
        scripts: Mapping[str, str | bytes] | None = None,
        tmpfs: Mapping[str, int | str | None] | None = None,
        stop_signal: int | str | None = None,
        init: str | Init | None = None,
        root_disk: int | str | None = None,
        volumes: Mapping[str, Mount] | None = None,
        patches: Sequence[Patch] = (),
        network: Network | NetworkPolicy | str | None = None,
        ports: Sequence[PortBinding | str] | Mapping[int, int] = (),
        progress: Callable[[ProgressEvent], None] | None = None,
    ) -> Self:
        """Create a sandbox and wait until it runs.

        `image` is a reference, which is pulled as `pull_policy` says, with `registry_auth` and
        `registry_insecure` for credentials and insecure (see `Image.pull`), a root file system directory
        (``./dir``), an archive or layout with its prefix, or what `Image` makes. `memory` is in MiB, or text
        such as ``1G``. A sandbox without a name is ephemeral unless `ephemeral` says otherwise: it is removed
        when it stops. A sandbox that is not `detached` ends with this process. `cold`: boot the kernel rather
        than start from a template. `max_duration` and `idle_timeout`, in seconds or text such as ``5m``: it
        is stopped when it has run for that long, or when for that long no command was started, sent anything
        or printed anything. `security`: ``restricted`` takes from all that runs in it the privileges that
        concern the guest's kernel. `rlimits`: soft and hard limit by name (``nofile``) for every command, or
        one number for both; -1 is none. `replace`: a sandbox that has the name is ended and removed;
        `replace_with_timeout`: the same, with this many seconds for its processes to end by themselves.
        `progress`: called with what is done, from more than one thread.

        `patches`: changes to its root, made once, before anything of the image runs. `shell`: the path of the
        program for `shell`, for scripts and for people; ``/bin/sh`` by default. `scripts`: programs on the
        PATH, by name: bytes and text that begins with ``#!`` as they are, other text for the shell. `tmpfs`:
        file systems in memory, by path: MiB, or text such as ``100M`` or ``100M,mode=700,ro,noexec``; None
        is half of the memory. `stop_signal`: what its processes are asked with to end, a number or a name;
        by default the image's. `init`: ``auto``, a path, or an `Init`: a program of the image that becomes
        PID 1. `root_disk`: MiB, or text such as ``16G``, that it may write at most. `volumes`: directories
        and files of the host, and file systems in memory, by their places in it: what `Volume` makes.

        `network`: whom it may reach: a `Network`, a `NetworkPolicy` or the name of a preset; by default the
        public internet. `ports`: ports of the host that lead to ports in it, as `PortBinding`, as text such
        as ``8080:80`` or ``0.0.0.0:5353:53/udp``, or as a mapping; on 127.0.0.1 if they say nothing else.

        Raises `ConfigError`, `TypeError`, `ImageError`, `AlreadyExists`, `Replaced`, `StartError`,
        `StateError`.
        """
        # Not above: `msb run` has an image and a configuration by the time it imports this module.
        from microsandbox_oci import Abort

        from microsandbox.image import check_credentials, check_policy, image_text
        from microsandbox.progress import ProgressEvent, ProgressPhase, reporting

        config = _config.SandboxConfig(
            cpus=_config.parse_cpus(cpus),
            memory_mib=_config.parse_memory(memory),
            hostname=None if hostname is None else _config.check_hostname(hostname),
            env=_config.check_env(env or {}),
            workdir=None if workdir is None else _config.check_type(workdir, str, "workdir"),
            user=None if user is None else _config.check_type(user, str, "user"),
            entrypoint=None if entrypoint is None else _config.check_arguments(entrypoint, "entrypoint"),
            cmd=None if cmd is None else _config.check_arguments(cmd, "cmd"),
            vmm=vmm,
            require_kvm=require_kvm,
            cold=cold,
            max_duration=_config.parse_limit(max_duration, "max_duration"),
            idle_timeout=_config.parse_limit(idle_timeout, "idle_timeout"),
            security=_config.check_security(security),
            rlimits=_rlimits_of(rlimits),
        )
        policy = check_policy(pull_policy, "pull_policy")
        check_credentials(registry_auth, "registry_auth")
        texts = (shell, stop_signal, init, root_disk)
        if scripts or tmpfs or any(text is not None for text in texts):
            from microsandbox._guest import with_options

            config = with_options(
                config, shell=shell, scripts=scripts, tmpfs=tmpfs, stop_signal=stop_signal, init=init,
                root_disk=root_disk,
            )  # fmt: skip
        home = environment.home()
        if volumes:
            from microsandbox.mounts import check_home, with_mounts

            config = with_mounts(config, volumes)
            check_home(config.mounts, home)
        if network is not None or ports:
            from microsandbox.network import network_config

            config = config._replace(network=network_config(network, ports))
        if patches:
            from microsandbox.patch import check

            mounted = [mount.path for mount in config.tmpfs] + [mount.target for mount in config.mounts]
            check(patches, mounted)
        checked = _config.check_labels(labels or {})
        if name is not None:
            _config.check_name(name)
        grace = _config.replacement_grace(name, replace, replace_with_timeout)
        removed_at_end = (name is None and not detached) if ephemeral is None else ephemeral
        shown = image_text(image)

        abort = Abort()

        def begin() -> Pending:
            found = _create.resolve_image(
                home, shown, pull=policy, credentials=registry_auth, insecure=registry_insecure,
                progress=reporting(progress), abort=abort,
            )  # fmt: skip
            if grace is not None and name is not None:
                return _replace.begin(
                    home, found, config, shown_image=shown, name=name, grace=grace,
                    attached=not detached, ephemeral=removed_at_end, labels=checked, patches=patches,
                )  # fmt: skip
            return _create.begin(
                home,
                found,
                config,
                shown_image=shown,
                name=name,
                attached=not detached,
                ephemeral=removed_at_end,
                labels=checked,
                patches=patches,
            )

        pending = await _begun(begin, abort)
        if progress is not None:
            progress(ProgressEvent(ProgressPhase.BOOT, pending.record.name))
        sandbox = await cls.adopt(pending)
        if progress is not None:
            progress(ProgressEvent(ProgressPhase.READY, pending.record.name))
        return sandbox

    @classmethod
    def create_with_progress(
        cls, name: str | None = None, *, image: ImageArgument, **options: Unpack[CreateOptions]
    ) -> PullSession:
        """`create`, in a session that tells what is being done: see `PullSession`."""
        from microsandbox.progress import PullSession

        return PullSession(lambda report: cls.create(name, image=image, progress=report, **options))

    @classmethod
    async def connect_or_create(
        cls, name: str, *, image: ImageArgument, **options: Unpack[CreateOptions]
    ) -> Self:
        """The sandbox of this name, running: connected to if it runs, started if it is stopped, created if
        there is none. `image` and `options` count only in the last case, but for `detached` and `cold`.

        Several programs may ask at once: they get the same sandbox, which belongs to who started it.
        Raises what `create` and `start` raise.
        """
        deadline = monotonic() + _TURN_TIME
        while True:
            try:
                handle = await cls.get(name)
            except SandboxNotFound:
                try:
                    return await cls.create(name, image=image, **options)
                except AlreadyExists:
                    continue  # somebody else was faster
            try:
                if not handle.status.active:
                    return await cls.start(
                        handle.id,
                        detached=options.get("detached", False),
                        cold=options.get("cold", False),
                    )
                # While it is starting or ending this fails, and nobody announces when that is done.
                return await cls.connect(handle.id)
            except (SandboxNotFound, NotRunning, StillRunning):
                if monotonic() > deadline:
                    raise
            await asyncio.sleep(_create.HANDOVER_PAUSE)

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
    async def adopt(
        cls,
        pending: Pending,
        phase: Callable[[str], None] | None = None,
        early: Callable[[Sandbox], None] | None = None,
    ) -> Self:
        """Wait for a start that `begin` made, and take the sandbox over; for programs that start it
        before they have an event loop. `phase` is called with what is being done when that takes long, such
        as ``booting the guest kernel``; `early` with the sandbox when it can be told what to run but is not
        up, and once more if the guest that was told had to be given up. On failure nothing of a new sandbox
        is left."""

        def tell(client: AgentClient) -> None:
            if early is not None:
                early(cls(pending.home, pending.record, client, pending.image.config, pending, None))

        greeting = asyncio.ensure_future(_greeted(pending, tell))
        try:
            ready = await _attach.wait_ready(pending, phase)
            client = await greeting
            if client is None or client.closed:
                client = await _connect(pending.directory, pending.record.name)
                tell(client)
        except BaseException:
            greeting.cancel()
            if greeting.done() and not greeting.cancelled() and (client := greeting.result()) is not None:
                await client.close()
            await _abandon(pending)
            raise
        if not pending.attached:
            pending.supervisor.close()
        return cls(pending.home, pending.record, client, pending.image.config, pending, ready)

    @classmethod
    async def connect(cls, name: str) -> Self:
        """Connect to a running sandbox. Raises `SandboxNotFound`, `NotRunning`."""
        home = environment.home()
        record = await asyncio.to_thread(_create.find, home, name)
        image = await asyncio.to_thread(_create.image_of, home, record)
        client = await _connect(SandboxDirectory(home, record.id), record.name)
        return cls(home, record, client, image.config, None, None)

    @classmethod
    async def get(cls, name: str) -> SandboxHandle:
        """The sandbox of this name or id, whatever it is doing. Raises `SandboxNotFound`."""
        return await SandboxHandle.get(name)

    @classmethod
    async def list(
        cls,
        labels: Mapping[str, str] | Sequence[str] = (),
        *,
        cursor: str | None = None,
        limit: int | None = None,
    ) -> Page[SandboxInfo]:
        """Sandboxes, oldest first. `labels`: those with all of these, given as a mapping or as texts, each
        ``KEY`` or ``KEY=VALUE``. `limit`: at most so many; `cursor`: those behind a page, by its
        `next_cursor`.

        Raises `ValueError`, `TypeError`, `StateError`.
        """
        from microsandbox.page import page_of

        terms = _config.label_terms(labels)
        found = await asyncio.to_thread(info.list_sandboxes, environment.home(), terms)
        return page_of(found, cursor, limit)

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
    def ready(self) -> _attach.Ready | None:
        """Isolation and timings of the start; None if someone else started the sandbox."""
        return self._ready

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
        """Its labels, as they were when this object was made or changed them."""
        return dict(self._record.labels)

    @property
    def status(self) -> Status:
        """What it is doing now."""
        return _life.look(self._directory).status

    @property
    def default_shell(self) -> str:
        """The path of its shell, for scripts and for people."""
        return self._config.shell or _config.DEFAULT_SHELL

    @property
    def fs(self) -> SandboxFiles:
        """The files in it."""
        from microsandbox.files import SandboxFiles  # most sandboxes are started without a need for it

        return SandboxFiles(self._client, self.name)

    # ------------------------------------------------------------------------------------ workspaces

    def _workspaces(self) -> Workspaces:
        from microsandbox.files._workspace import Workspaces

        return Workspaces(self._client, self.name, self._config, self._directory.path)

    async def diff(self, mount: str | None = None) -> builtins.list[FileChange]:
        """What was changed in the workspace at `mount`, by path; ``/`` is the root's writable layer, and None
        is that and all workspaces. The sandbox's word. Raises `ConfigError`, `FilesystemError`."""
        return await self._workspaces().diff(mount)

    async def apply(
        self, paths: Sequence[str] = (), *, force: bool = False, dry_run: bool = False
    ) -> ApplyResult:
        """Bring what was changed at and below `paths`, or in all workspaces, to the host's directories:
        deletions first, every file complete or not at all; no link is followed.

        Raises `WorkspaceConflict`, before anything is changed, if the host has changed some of it since the
        sandbox first started, unless `force`; `ConfigError` for a path without changes; `FilesystemError`.
        """
        return await self._workspaces().apply(paths, force=force, dry_run=dry_run)

    async def discard(self, paths: Sequence[str] = ()) -> builtins.list[FileChange]:
        """Put what was changed at and below `paths`, or in all workspaces, back as it was. Returns what was
        dropped. Raises `ConfigError`, `FilesystemError`."""
        return await self._workspaces().discard(paths)

    # -------------------------------------------------------------------------------------- commands

    def command(self, arguments: Sequence[str] = (), *, shell: bool = False) -> tuple[str, ...]:
        """ENTRYPOINT + (`arguments`, or CMD) of this sandbox.

        When that is empty, or is what runs as its init already: its shell if a `shell` would do, else it
        raises `ConfigError`.
        """
        found = _config.command_line(
            self._config, self._image_config.entrypoint, self._image_config.cmd, tuple(arguments)
        )
        if found and self._config.init is not None and not arguments:
            from microsandbox._guest import is_init

            found = () if is_init(self._config, found[0]) else found
        if not found and shell:
            return (self.default_shell,)
        if not found:
            raise ConfigError(
                f"the image {self._record.image} names no command to run",
                hint="give one: msb run IMAGE -- COMMAND",
                code="no_command",
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
        rlimits: Mapping[str, int | tuple[int, int]] | None = None,
        main: bool = False,
        keep: bool = False,
    ) -> ExecHandle:
        """Start a command and return a handle to it.

        `cwd`, `user` and `env` are added to what the sandbox and the image set. `timeout` is in
        seconds, or text such as ``30s``. `stdin`: nothing by default. `tty`: run it at a terminal of its
        own, True for one of 24 rows and 80 columns; all its output is then ``stdout``, and its input too
        is the terminal unless `stdin` is nothing. The end of `stdin` is typed as Ctrl-D. `rlimits`: as in
        `create`; they go before the sandbox's. `main`: it is what the sandbox is there for, and its exit
        code is kept as that of the sandbox (`SandboxInfo.exit_code`). `keep`: it is one of `sessions` even
        if it ends before `ExecHandle.detach`.

        Raises `ExecFailed` when it cannot be run, `NotRunning`, `ConfigError`, `ValueError`.
        """
        merged = dict(pair.partition("=")[::2] for pair in self._image_config.env)
        merged.setdefault("PATH", _config.DEFAULT_PATH)
        terminal = (tty if isinstance(tty, Terminal) else Terminal()) if tty else None
        if terminal is not None:
            merged["TERM"] = terminal.term
        merged.update(self._config.env)
        if self._config.scripts:
            merged["PATH"] = f"{_config.SCRIPTS}:{merged['PATH']}"
        merged.update(_config.check_env(env or {}))
        words = _config.check_arguments((cmd,), "cmd") + _config.check_arguments(args, "args")
        return await self._unless_paused(
            start_command(
                self._client,
                words,
                cwd=cwd or self._config.workdir or self._image_config.working_dir or None,
                user=user or self._config.user or self._image_config.user or None,
                env=merged,
                timeout=None if timeout is None else _config.parse_duration(timeout, "timeout"),
                stdin=Stdin.bytes(stdin) if isinstance(stdin, bytes) else (stdin or Stdin.null()),
                tty=terminal,
                rlimits=_with_rlimits(self._config.rlimits, rlimits),
                main=main,
                keep=keep,
                network_log=self._directory.network_log,
            )
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
        rlimits: Mapping[str, int | tuple[int, int]] | None = None,
    ) -> ExecOutput:
        """Run a command to its end and return its output; see `exec_stream` for the parameters.

        Raises `ExecTimeout` (with the output so far) at the time limit, and `OutcomeUnknown` when
        the sandbox ended before the command had.
        """
        handle = await self.exec_stream(
            cmd, args, cwd=cwd, user=user, env=env, timeout=timeout, stdin=stdin, tty=tty, rlimits=rlimits
        )
        return await handle.collect()

    async def shell(self, script: str, **options: Unpack[ExecOptions]) -> ExecOutput:
        """Run a script with the sandbox's shell, as `exec` does a command."""
        return await self.exec(self.default_shell, ["-c", script], **options)

    async def shell_stream(self, script: str, **options: Unpack[ExecOptions]) -> ExecHandle:
        """Start a script with the sandbox's shell, as `exec_stream` does a command."""
        return await self.exec_stream(self.default_shell, ["-c", script], **options)

    async def attach(
        self,
        cmd: str | None = None,
        args: Sequence[str] = (),
        *,
        cwd: str | None = None,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | str | None = None,
        detach_keys: str = "ctrl-p,ctrl-q",
    ) -> ExecExited | None:
        """Run a command at the terminal of this process until it has ended; by default the one of the
        image, or ``/bin/sh``. Where this process has no terminal the command has none, and gets our
        standard streams.

        Our terminal is in raw mode meanwhile: all keys are the command's, but for `detach_keys` (text such as
        ``ctrl-p,ctrl-q``; empty: none), after which the command goes on and the result is None.

        Raises what `exec_stream` raises, and `ExecError` if output could not be written.
        """
        from microsandbox._forward import attach

        command = self.command(shell=True) if cmd is None else (cmd, *_config.check_arguments(args, "args"))
        return await attach(
            self, command, cwd=cwd, user=user, env=env, timeout=timeout, detach_keys=detach_keys
        )

    async def sessions(self, *, ended: bool = False) -> builtins.list[Session]:
        """The commands that were left running in it, by `ExecHandle.detach` or `msb`, in the order of their
        start. `ended`: with those of this life that have ended, the last hundred. Raises `NotRunning`."""
        from microsandbox.sessions import sessions_of

        try:
            return await sessions_of(self._client, ended=ended)
        except ChannelError as error:
            raise self._lost(error) from error

    async def join(self, session: int | Session) -> ExecHandle:
        """Join one of `sessions`: its output comes to the handle, beginning with the last of what it printed
        while nobody was joined, and its input can be written with `take_stdin`. One at a time may be joined.

        The command does not end with this connection: it is then left again, as by `ExecHandle.detach`.
        Raises `ExecError` (`no_session`, `joined`), `NotRunning`.
        """
        from microsandbox.sessions import join

        try:
            return await join(self._client, self.name, session if isinstance(session, int) else session.id)
        except ChannelError as error:
            raise self._lost(error) from error

    async def wait_for(self, session: int | Session) -> ExecExited:
        """How one of `sessions` has ended, when it has; nobody needs to be joined to it.

        Raises `ExecError` (`no_session`), `NotRunning` also when the sandbox ended first.
        """
        from microsandbox.sessions import outcome

        try:
            return await outcome(self._client, self.name, session if isinstance(session, int) else session.id)
        except ChannelError as error:
            raise self._lost(error) from error

    async def ping(self) -> float:
        """Seconds until the agent in the sandbox answered. Raises `NotRunning`."""
        try:
            return await self._client.ping()
        except ChannelError as error:
            raise self._lost(error) from error

    async def modify(self, *, dry_run: bool = False, **changes: Unpack[Modifications]) -> ModifyPlan:
        """Change what it was asked to be: see `Modifications`. What the plan says to count at the next
        start does not change the running machine. `dry_run`: nothing is changed, the plan says what would be.

        Raises `ConfigError`, `TypeError`, `SandboxNotFound`.
        """
        from microsandbox.modify import modify

        self._record, plan = await asyncio.to_thread(
            partial(modify, self._home, self.id, changes, dry_run=dry_run)
        )
        self._config = _config.SandboxConfig.unpack(self._record.config)
        return plan

    async def touch(self) -> None:
        """Count as activity: its `idle_timeout` begins anew. Raises `NotRunning`."""
        await self.ping()

    async def metrics(self) -> SandboxMetrics:
        """What it uses. No activity, however often it is asked for. Raises `NotRunning`."""
        from microsandbox.metrics import Meter

        return await Meter(self._home).measure(self._record, self._client)

    async def metrics_stream(self, interval: float | str = 1.0) -> AsyncIterator[SandboxMetrics]:
        """The same every `interval` seconds, or text such as ``500ms``, until it has stopped; from the second
        on with `cpu_percent`."""
        from microsandbox.metrics import stream

        seconds = _config.parse_duration(interval, "interval")
        async with aclosing(stream(self._home, self._record, seconds, self._client)) as measured:
            async for metrics in measured:
                yield metrics

    # ----------------------------------------------------------------------------- standing still

    async def pause(self) -> None:
        """Halt it until it is resumed; its memory stays where it is. Does nothing if it is paused.

        Raises `NotRunning`, `Unsupported`, `SandboxError`.
        """
        await self._ask("pause")

    async def resume(self) -> None:
        """Let it go on. Does nothing if it runs. Raises `NotRunning`, `SandboxError`."""
        await self._ask("resume")

    async def _ask(self, method: str) -> None:
        from microsandbox import _fork

        await _fork.ask(self._directory, self.name, method)

    @overload
    async def fork(self, name: str) -> Sandbox: ...

    @overload
    async def fork(self, name: str, *, count: int) -> builtins.list[Sandbox]: ...

    @overload
    async def fork(self, name: str, *, count: int | None = None) -> Sandbox | builtins.list[Sandbox]: ...

    async def fork(self, name: str, *, count: int | None = None) -> Sandbox | builtins.list[Sandbox]:
        """A new sandbox that goes on where this one is: with its processes, its memory and a disk of its own.

        It is detached, has a host name, machine id, random numbers and time of its own, and nothing of this
        one's connections. `count`: so many at once, ``NAME-1`` and so on. How long this one stood still is in
        `forked` of the new one. docs/fork.md has what the two share.

        Raises `ConfigError`, `AlreadyExists`, `NotRunning`, `Unsupported`, `SandboxError`, `StartError`,
        `StateError`.
        """
        handle = SandboxHandle(self._home, self._record)
        return await (handle.fork(name) if count is None else handle.fork(name, count=count))

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

    def log_stream(self, *, follow: bool = True, **wanted: Unpack[LogChoice]) -> AsyncIterator[LogLine]:
        """`logs` that go on until the sandbox stops."""
        return self.logs(follow=follow, **wanted)

    # --------------------------------------------------------------------------------------- network

    async def update_network(self, policy: NetworkPolicy | str) -> None:
        """Have its network decide by another policy, or by that of a preset's name, from now on and after a
        restart. Connections that it does not allow are reset within a second; a wider one lets new ones
        pass.

        Raises `NetworkPolicyError`, `NotRunning`, `Unsupported`, `SandboxError`, `StateError`; then nothing
        is changed.
        """
        from microsandbox._network_update import update

        self._record = await update(self._home, self._record, policy)
        self._config = _config.SandboxConfig.unpack(self._record.config)

    async def audit(self, **wanted: Unpack[AuditChoice]) -> AsyncIterator[AuditRecord]:
        """What its network decided, oldest first; see `audit_of`."""
        async with aclosing(_audit(self._home, self._record, wanted)) as records:
            async for record in records:
                yield record

    @classmethod
    async def audit_of(cls, name: str, **wanted: Unpack[AuditChoice]) -> AsyncIterator[AuditRecord]:
        """The same for a sandbox that need not run: ``async for record in Sandbox.audit_of("dev")``.

        `denied`: only what was stopped. `tail`: the last so many. `since`, `until`: with a time zone.
        `follow`: go on until the sandbox stops. The last 4 MiB at least are kept.

        Raises `SandboxNotFound`, `StateError`, `ValueError`.
        """
        home = environment.home()
        found = await asyncio.to_thread(_create.find, home, name)
        async with aclosing(_audit(home, found, wanted)) as records:
            async for record in records:
                yield record

    # ------------------------------------------------------------------------------------------- end

    def limit_reached(self) -> str | None:
        """The limit because of which it is being stopped or was, as a sentence; None if there is none."""
        if self._limit is not None or (
            self._config.max_duration is None and self._config.idle_timeout is None
        ):
            return self._limit
        if self.owns_lifecycle:
            assert self._pending is not None
            self._limit = _attach.limit_reached(self._pending.supervisor.lifeline)
        else:
            life = _life.read(self._directory)
            ours = None if life is None or self._life is None else life.started_ns == self._life.started_ns
            if ours and life is not None and life.cause in (Cause.MAX_DURATION, Cause.IDLE_TIMEOUT):
                self._limit = life.reason
        return self._limit

    async def stop(self, timeout: float | str = DEFAULT_GRACE) -> None:
        """Stop it: SIGTERM to every process, SIGKILL after `timeout` seconds, disk written out, off.

        What does not go along with that is killed five seconds later. Does nothing if it has stopped.
        """
        grace = _config.parse_grace(timeout, "timeout")
        pidfd = self._supervisor()
        if pidfd is not None:
            try:
                await _ending.stop_supervisor(self._directory, pidfd, grace, client=self._client)
            finally:
                os.close(pidfd)
        await self._ended()

    async def request_stop(self, timeout: float | str = DEFAULT_GRACE) -> None:
        """Ask it to stop as `stop` does, and do not wait for that: `wait_until_stopped` does.

        A guest that does not go along is not ended by force. Does nothing if it has stopped.
        """
        seconds = _config.parse_grace(timeout, "timeout")
        if self._over or self._client.closed:
            return
        self._asked_to_stop = asyncio.create_task(_ask_to_stop(self._client, seconds))
        await asyncio.sleep(0)  # in which it is sent

    async def restart(self, timeout: float | str = DEFAULT_GRACE, *, cold: bool = False) -> None:
        """`stop`, then start it again: this object is then about the new life, with what `modify` has
        changed.

        It belongs to this process if it did before. Raises `SandboxError` for one that is ephemeral, which is
        removed when it stops; and what `start` raises.
        """
        if self.ephemeral:
            raise SandboxError(
                f"the sandbox {self.name!r} cannot be restarted: it is ephemeral, and gone when it stops",
                hint="create it with ephemeral=False",
                code="ephemeral",
            )
        attached = self.owns_lifecycle
        await self.stop(timeout)
        again = await type(self).start(self.id, detached=not attached, cold=cold)
        vars(self).update(vars(again))

    async def kill(self) -> None:
        """End it at once, as if its power were cut. Does nothing if it has stopped."""
        pidfd = self._supervisor()
        if pidfd is not None:
            try:
                await _ending.end(pidfd)
            finally:
                os.close(pidfd)
        await self._ended()

    async def end(self) -> None:
        """What leaving the context does: `stop`, or `kill` where nobody will read what it has written."""
        if self.ephemeral and not self._config.writes_disks:
            await self.kill()
        else:
            await self.stop()

    async def destroy(self) -> None:
        """End it at once and remove it, with everything it has written."""
        await self.kill()
        if not self.ephemeral:
            try:
                await _ending.remove(self._home, self._record, force=True)
            except SandboxNotFound:
                pass  # that is what was wanted

    def release(self) -> None:
        """Let it go on when this process ends, as one does that was created detached."""
        if self._pending is not None and self._pending.attached:
            self._pending.supervisor.leave()
            self._pending = self._pending._replace(attached=False)

    async def detach(self) -> None:
        """Close the connection; a sandbox that was created detached, or released, goes on."""
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
        await self._ended()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.end()

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
        self.limit_reached()  # which cannot be asked for later
        self._over = True
        await self._client.close()
        if self._pending is not None:
            self._pending.supervisor.close()
            self._pending.supervisor.reap()
        # The directory goes before the record. A record that the supervisor could not remove without it
        # is found by the next command, as after a crash.
        if self.ephemeral and self._directory.path.exists():
            await asyncio.to_thread(_create.forget_quietly, self._home, self._record)

    async def _unless_paused(self, started: Awaitable[ExecHandle]) -> ExecHandle:
        try:
            return await started
        except ExecFailed as error:
            if error.kind == "paused":
                raise paused(self.name) from error
            raise

    def _lost(self, error: ChannelError) -> NotRunning:
        if isinstance(error, RequestFailed) and error.kind == "paused":
            return paused(self.name)
        return NotRunning(f"the sandbox {self.name!r} is not running any more: {error}")


async def _ask_to_stop(client: AgentClient, grace: float) -> None:
    try:
        await client.shutdown(grace)
    except ChannelError:
        pass  # it is going by another way, or has gone


def _rlimits_of(given: Mapping[str, int | tuple[int, int]] | None) -> tuple[tuple[str, int, int], ...]:
    if not given:
        return ()
    from microsandbox._rlimits import check_rlimits

    return check_rlimits(given)


def _with_rlimits(
    limits: tuple[tuple[str, int, int], ...], over: Mapping[str, int | tuple[int, int]] | None
) -> tuple[tuple[str, int, int], ...]:
    if not over:
        return limits
    from microsandbox._rlimits import check_rlimits, merged

    return merged(limits, check_rlimits(over))


async def _logs(home: Path, record: Record, wanted: LogOptions) -> AsyncGenerator[LogLine, None]:
    from microsandbox.logs import read_log

    async with aclosing(read_log(home, record, **wanted)) as log:
        async for lines in log:
            for line in lines:
                yield line


async def _audit(home: Path, record: Record, wanted: AuditChoice) -> AsyncGenerator[AuditRecord, None]:
    from microsandbox.audit import read_audit

    async with aclosing(read_audit(SandboxDirectory(home, record.id), record.name, **wanted)) as records:
        async for found in records:
            yield found


async def _greeted(pending: Pending, told: Callable[[AgentClient], None]) -> AgentClient | None:
    """The connection that a start began with, once its guest has answered, of which `told` hears; None if
    there will be none."""
    connection = pending.supervisor.take_agent()
    if connection is None:
        return None
    try:
        client = await AgentClient.connect(connection, timeout=None)
    except (ChannelError, OSError):
        return None  # what has become of the guest is said by its supervisor
    told(client)
    return client


async def _connect(directory: SandboxDirectory, name: str) -> AgentClient:
    try:
        return await AgentClient.connect(directory.socket)
    except (ChannelError, OSError) as error:
        end = info.end_of(await asyncio.to_thread(_life.look, directory))
        raise NotRunning(
            f"the sandbox {name!r} is not running" + (f": {end.reason}" if end else ""),
            hint=f"start it: msb start {name}",
        ) from error


async def _begun(begin: Callable[[], Pending], abort: Callable[[], None] = lambda: None) -> Pending:
    """`begin` on a thread. When the caller is cancelled meanwhile, what it has begun is ended; `abort` is
    called to hasten that."""
    began = asyncio.ensure_future(asyncio.to_thread(begin))
    try:
        return await asyncio.shield(began)
    except asyncio.CancelledError:
        # A thread cannot be cancelled: without this nobody would know of the sandbox it goes on to make.
        abort()
        try:
            pending = await began
        except Exception:  # noqa: BLE001, S110 - nothing was begun, and nobody is left to hear why
            pass
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
