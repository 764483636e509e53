"""`FakeSandbox`: a `Sandbox` whose machine is a few objects of this process."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, Unpack, cast

from microsandbox import _config, _create, _life, info
from microsandbox._config import SandboxConfig
from microsandbox._life import Cause, Life, Seen
from microsandbox._state import Record
from microsandbox.errors import AlreadyExists, ImageNotFound, NotRunning, SandboxNotFound, StillRunning
from microsandbox.handle import DEFAULT_GRACE, SandboxHandle
from microsandbox.info import End, SandboxDetails, SandboxInfo, Status
from microsandbox.logs import OUTPUT, LogFilter, LogLine, LogSource, _nanoseconds
from microsandbox.modify import plan
from microsandbox.page import Page, page_of
from microsandbox.progress import ProgressEvent, ProgressPhase
from microsandbox.sandbox import LogOptions, Sandbox
from microsandbox.testing._agent import FakeAgent, Machine
from microsandbox.testing._commands import Command

if TYPE_CHECKING:
    from microsandbox_core.agent import AgentClient

    from microsandbox._attach import Ready
    from microsandbox.audit import AuditChoice, AuditRecord
    from microsandbox.image import ImageArgument
    from microsandbox.metrics import SandboxMetrics
    from microsandbox.modify import Modifications, ModifyPlan
    from microsandbox.network import NetworkPolicy
    from microsandbox.options import CreateOptions

_NOWHERE = Path("/nonexistent/microsandbox-fake")
_NOTHING: tuple[AuditRecord, ...] = ()


@dataclass(slots=True)
class _Kept:
    """A sandbox that was created and not removed."""

    record: Record
    machine: Machine
    life: Life

    @property
    def seen(self) -> Seen:
        return Seen(Status(self.life.status), self.life, self.machine.on)

    def end(self, cause: Cause, reason: str, *, orderly: bool) -> None:
        """End its life, and its existence if it is ephemeral."""
        if not self.machine.on:
            return
        self.machine.switch_off(orderly=orderly)
        self.life = self.life._replace(
            status=Status.STOPPED, since_ns=time.time_ns(), cause=cause, reason=reason
        )
        if self.record.ephemeral:
            _all.pop(self.record.id, None)


_all: dict[str, _Kept] = {}


class FakeSandbox(Sandbox):
    """A `Sandbox` without a VM: the same methods, values and errors, for tests of programs that use one.

    ::

        FakeSandbox.commands["python"] = lambda call: Result(stdout="42\\n")

        async with await FakeSandbox.create(image="python") as sandbox:
            assert (await sandbox.exec("python", ["answer.py"])).stdout_text == "42\\n"

    Its files are in memory. Its commands are those in `commands` when it is created, by their names, and a
    few small ones: cat, echo, env, false, hostname, printenv, pwd, sh (``-c`` and simple commands), sleep,
    true, whoami. Every image is there, unless `images` says which are. All sandboxes are of this process,
    and are gone with it; `reset` removes them. Limits in time, limits of resources and the isolation of
    anything are not imitated.
    """

    commands: ClassVar[dict[str, Command]] = {}
    """Scripted commands of the sandboxes that are created from now on; see `Call`."""
    images: ClassVar[set[str] | None] = None
    """The images that there are, as they are given to `create`; None: all."""

    @classmethod
    def reset(cls) -> None:
        """Remove every sandbox, without a word to what runs there, and what was set on this class."""
        for kept in list(_all.values()):
            if kept.machine.on:
                kept.machine.switch_off(orderly=False)
        _all.clear()
        FakeSandbox.commands = {}
        FakeSandbox.images = None

    # ---------------------------------------------------------------------------------------- making

    @classmethod
    async def create(
        cls,
        name: str | None = None,
        *,
        image: ImageArgument,
        progress: Callable[[ProgressEvent], None] | None = None,
        **options: Unpack[CreateOptions],
    ) -> Self:
        """As `Sandbox.create`."""
        from microsandbox.image import image_text

        given: dict[str, Any] = {**options}
        asked = _checked(given)
        labels = _config.check_labels(given.get("labels") or {})
        if name is not None:
            _config.check_name(name)
        replaced = _config.replacement_grace(
            name, given.get("replace", False), given.get("replace_with_timeout")
        )
        shown = image_text(image)
        if cls.images is not None and shown not in cls.images:
            raise ImageNotFound(f"image {shown!r} is not in the store", hint="add it to FakeSandbox.images")
        there = None if name is None else _find(name)
        if there is not None and replaced is None:
            raise AlreadyExists(
                f"a sandbox named {name!r} exists", hint="choose another name, remove it, or use replace"
            )
        if there is not None:
            there.end(Cause.REPLACED, "it made room for a new sandbox of its name", orderly=True)
            _all.pop(there.record.id, None)
        identifier = os.urandom(8).hex()
        detached = bool(given.get("detached", False))
        ephemeral = given.get("ephemeral")
        record = Record(
            identifier,
            name or f"msb-{identifier[:8]}",
            (name is None and not detached) if ephemeral is None else ephemeral,
            time.time_ns(),
            shown,
            "sha256:" + "0" * 64,
            asked.pack(),
            labels,
        )
        machine = Machine(asked.hostname or record.name, cls.commands)
        kept = _all[identifier] = _Kept(record, machine, _begun())
        await asyncio.sleep(0)
        for phase in (ProgressPhase.BOOT, ProgressPhase.READY):
            if progress is not None:
                progress(ProgressEvent(phase, record.name))
        return cls._of(kept, owned=not detached)

    @classmethod
    async def start(cls, name: str, *, detached: bool = True, cold: bool = False) -> Self:
        kept = _get(name)
        if kept.machine.on:
            raise StillRunning(f"the sandbox {kept.record.name!r} is {kept.life.status}")
        kept.machine.switch_on()
        kept.life = _begun()
        return cls._of(kept, owned=not detached)

    @classmethod
    async def connect(cls, name: str) -> Self:
        kept = _get(name)
        if not kept.machine.on:
            raise NotRunning(f"the sandbox {kept.record.name!r} is not running: {kept.life.reason}")
        return cls._of(kept, owned=False)

    @classmethod
    async def get(cls, name: str) -> FakeSandboxHandle:
        return FakeSandboxHandle._of_kept(_get(name))

    @classmethod
    async def list(
        cls,
        labels: Mapping[str, str] | Sequence[str] = (),
        *,
        cursor: str | None = None,
        limit: int | None = None,
    ) -> Page[SandboxInfo]:
        terms = _config.label_terms(labels)
        chosen = [kept for kept in _all.values() if _config.selects(terms, kept.record.labels)]
        return page_of([info.info_of(kept.record, kept.seen) for kept in chosen], cursor, limit)

    @staticmethod
    async def remove(name: str, *, force: bool = False) -> None:
        _remove(_get(name), force=force)

    @classmethod
    def _of(cls, kept: _Kept, *, owned: bool) -> Self:
        from microsandbox_oci import ImageConfig

        client = cast("AgentClient", FakeAgent(kept.machine))
        sandbox = cls(_NOWHERE, kept.record, client, ImageConfig(), None, None)
        sandbox._kept = kept
        sandbox._owned = owned
        return sandbox

    _kept: _Kept
    _owned: bool

    # ----------------------------------------------------------------------------------------- facts

    @property
    def owns_lifecycle(self) -> bool:
        return self._owned

    @property
    def isolation(self) -> str | None:
        """None: there is none."""
        return None

    @property
    def status(self) -> Status:
        return Status(self._kept.life.status)

    @property
    def ready(self) -> Ready | None:
        return None

    async def metrics(self) -> SandboxMetrics:
        """All zero, and no word of a guest."""
        return _metrics(self._kept)

    async def metrics_stream(self, interval: float | str = 1.0) -> AsyncIterator[SandboxMetrics]:
        seconds = _config.parse_duration(interval, "interval")
        while self._kept.machine.on:
            yield _metrics(self._kept)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._kept.machine.off.wait(), seconds)

    async def modify(self, *, dry_run: bool = False, **changes: Unpack[Modifications]) -> ModifyPlan:
        made = _modify(self._kept, changes, dry_run=dry_run)
        self._record = self._kept.record
        self._config = SandboxConfig.unpack(self._record.config)
        return made

    # ------------------------------------------------------------------------------------------ logs

    async def logs(self, **wanted: Unpack[LogOptions]) -> AsyncIterator[LogLine]:
        async for line in _logs(self._kept, **wanted):
            yield line

    @classmethod
    async def logs_of(cls, name: str, **wanted: Unpack[LogOptions]) -> AsyncIterator[LogLine]:
        async for line in _logs(_get(name), **wanted):
            yield line

    # --------------------------------------------------------------------------------------- network

    async def update_network(self, policy: NetworkPolicy | str) -> None:
        """It has none; only the record changes."""
        _update_network(self._kept, policy)
        self._record = self._kept.record
        self._config = SandboxConfig.unpack(self._record.config)

    async def audit(self, **wanted: Unpack[AuditChoice]) -> AsyncIterator[AuditRecord]:
        """Nothing: there is no network."""
        for record in _NOTHING:
            yield record

    @classmethod
    async def audit_of(cls, name: str, **wanted: Unpack[AuditChoice]) -> AsyncIterator[AuditRecord]:
        """Nothing: there is no network."""
        _get(name)
        for record in _NOTHING:
            yield record

    # ------------------------------------------------------------------------------------------- end

    async def stop(self, timeout: float | str = DEFAULT_GRACE) -> None:
        _config.parse_grace(timeout, "timeout")
        self._kept.end(Cause.REQUESTED, "it was asked to stop", orderly=True)
        await self._client.close()

    async def kill(self) -> None:
        self._kept.end(Cause.KILLED, "it was ended at once", orderly=False)
        await self._client.close()

    async def request_stop(self, timeout: float | str = DEFAULT_GRACE) -> None:
        _config.parse_grace(timeout, "timeout")
        self._kept.end(Cause.REQUESTED, "it was asked to stop", orderly=True)

    async def destroy(self) -> None:
        await self.kill()
        _all.pop(self.id, None)

    def release(self) -> None:
        self._owned = False

    async def detach(self) -> None:
        await self._client.close()
        if self._owned:
            reason = "the program that it belonged to has ended"
            self._kept.end(Cause.CREATOR_GONE, reason, orderly=False)

    async def wait_until_stopped(self) -> None:
        await self._kept.machine.off.wait()


class FakeSandboxHandle(SandboxHandle):
    """A `FakeSandbox` by its name, whatever it is doing."""

    _kept: _Kept

    @classmethod
    def _of_kept(cls, kept: _Kept) -> Self:
        handle = cls(_NOWHERE, kept.record)
        handle._kept = kept
        return handle

    @classmethod
    async def get(cls, name: str) -> Self:
        return cls._of_kept(_get(name))

    @classmethod
    async def list(cls, labels: Mapping[str, str] | Sequence[str] = ()) -> list[Self]:
        terms = _config.label_terms(labels)
        return [cls._of_kept(kept) for kept in _all.values() if _config.selects(terms, kept.record.labels)]

    @property
    def status(self) -> Status:
        return Status(self._kept.life.status)

    @property
    def isolation(self) -> str | None:
        """None: there is none."""
        return None

    @property
    def exists(self) -> bool:
        return self.id in _all

    async def info(self) -> SandboxInfo:
        return info.info_of(self._kept.record, self._kept.seen)

    async def inspect(self) -> SandboxDetails:
        kept = _get(self.id)
        return SandboxDetails(
            info=info.info_of(kept.record, kept.seen),
            config=SandboxConfig.unpack(kept.record.config),
            started_at=datetime.fromtimestamp(kept.life.started_ns / 1e9).astimezone(),
            end=info.end_of(kept.seen),
            directory=_NOWHERE,
            upper=_NOWHERE / "upper.ext4",
            upper_size=None,
            upper_allocated=None,
            console_log=_NOWHERE / "console.log",
            supervisor_log=_NOWHERE / "supervisor.log",
            logs=None,
            agent_socket=_NOWHERE / "agent.sock",
            host_limits=None,
        )

    async def metrics(self) -> SandboxMetrics:
        """All zero, and no word of a guest."""
        return _metrics(_get(self.id))

    async def refresh(self) -> Self:
        self._record = _get(self.id).record
        return self

    async def modify(self, *, dry_run: bool = False, **changes: Unpack[Modifications]) -> ModifyPlan:
        made = _modify(_get(self.id), changes, dry_run=dry_run)
        self._record = self._kept.record
        return made

    def logs(self, **wanted: Unpack[LogOptions]) -> AsyncIterator[LogLine]:
        return FakeSandbox.logs_of(self.id, **wanted)

    def audit(self, **wanted: Unpack[AuditChoice]) -> AsyncIterator[AuditRecord]:
        return FakeSandbox.audit_of(self.id, **wanted)

    async def update_network(self, policy: NetworkPolicy | str) -> None:
        """It has none; only the record changes."""
        _update_network(_get(self.id), policy)
        self._record = self._kept.record

    async def connect(self) -> FakeSandbox:
        return await FakeSandbox.connect(self.id)

    async def start(self, *, detached: bool = True, cold: bool = False) -> FakeSandbox:
        return await FakeSandbox.start(self.id, detached=detached, cold=cold)

    async def stop(self, timeout: float | str = DEFAULT_GRACE) -> None:
        _config.parse_grace(timeout, "timeout")
        self._kept.end(Cause.REQUESTED, "it was asked to stop", orderly=True)

    async def kill(self) -> None:
        self._kept.end(Cause.KILLED, "it was ended at once", orderly=False)

    async def remove(self, *, force: bool = False) -> None:
        _remove(_get(self.id), force=force)

    async def wait_until_stopped(self) -> End | None:
        if self._kept.machine.on:
            await self._kept.machine.off.wait()
        return info.end_of(self._kept.seen) if self.exists else None

    async def ping(self) -> float:
        if not self._kept.machine.on:
            raise NotRunning(f"the sandbox {self.name!r} does not answer: it is {self.status}")
        return await FakeAgent(self._kept.machine).ping()


def _find(name: str) -> _Kept | None:
    by_name = next((kept for kept in _all.values() if kept.record.name == name), None)
    return by_name or _all.get(name)


def _get(name: str) -> _Kept:
    kept = _find(name)
    if kept is None:
        raise _create.not_found(name)
    return kept


def _begun() -> Life:
    now = time.time_ns()
    return _life.Life(Status.RUNNING, now, now)


def _remove(kept: _Kept, *, force: bool) -> None:
    if kept.machine.on and not force:
        raise StillRunning(f"the sandbox {kept.record.name!r} is {kept.life.status}")
    kept.end(Cause.KILLED, "it was ended at once", orderly=False)
    if _all.pop(kept.record.id, None) is None and not kept.record.ephemeral:
        raise SandboxNotFound(f"there is no sandbox named {kept.record.name!r}")


def _metrics(kept: _Kept) -> SandboxMetrics:
    from microsandbox.metrics import ProcessUsage, SandboxMetrics

    if not kept.machine.on:
        raise NotRunning(f"the sandbox {kept.record.name!r} is not running: {kept.life.reason}")
    config = SandboxConfig.unpack(kept.record.config)
    nothing = ProcessUsage(0, 0.0, 0.0, 0.0, 0, None, None, None)
    return SandboxMetrics(
        id=kept.record.id,
        name=kept.record.name,
        image=kept.record.image,
        isolation=None,
        taken_at=datetime.now(UTC),
        uptime=time.monotonic() - kept.machine.started,
        cpus=config.cpus,
        memory=config.memory_mib << 20,
        cpu_percent=None,
        vmm=nothing,
        supervisor=nothing,
        upper_allocated=None,
        upper_size=None,
        network=None,
        host_limits=None,
        guest=None,
        guest_error="it is a fake",
    )


def _modify(kept: _Kept, wanted: Modifications, *, dry_run: bool) -> ModifyPlan:
    changed, made = plan(kept.record, wanted, active=kept.machine.on, dry_run=dry_run)
    if changed is not None:
        kept.record = changed
    return made


def _update_network(kept: _Kept, policy: NetworkPolicy | str) -> None:
    from microsandbox.network import policy_of

    config = SandboxConfig.unpack(kept.record.config)
    network = policy_of(policy).applied_to(config.network)
    kept.record = kept.record._replace(config=config._replace(network=network).pack())


def _checked(given: Mapping[str, Any]) -> SandboxConfig:
    """What was asked for, with the checks of `Sandbox.create`."""
    known = Sandbox.create.__kwdefaults__ or {}
    unknown = sorted(given.keys() - known.keys())
    if unknown:
        raise TypeError(f"FakeSandbox.create() has no parameter {unknown[0]!r}")
    record = Record("", "", False, 0, "", "", SandboxConfig().pack())
    settings = {name: value for name, value in given.items() if name in _SETTINGS and value is not None}
    changed, _ = plan(record, cast("Modifications", settings), active=False, dry_run=False)
    config = SandboxConfig() if changed is None else SandboxConfig.unpack(changed.config)
    if given.get("network") is not None or given.get("ports"):
        from microsandbox.network import network_config

        config = config._replace(network=network_config(given.get("network"), given.get("ports", ())))
    return config


_SETTINGS = frozenset(
    {
        "cpus", "memory", "workdir", "user", "hostname", "entrypoint", "cmd", "env", "require_kvm", "cold",
        "max_duration", "idle_timeout",
    }
)  # fmt: skip


async def _logs(
    kept: _Kept,
    *,
    tail: int | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    sources: Collection[LogSource | str] = OUTPUT,
    grep: re.Pattern[str] | None = None,
    follow: bool = False,
) -> AsyncIterator[LogLine]:
    if tail is not None and tail < 0:
        raise ValueError(f"tail: {tail} is not a number of lines")
    wanted = LogFilter(frozenset(map(LogSource, sources)), _nanoseconds(since), _nanoseconds(until), grep)
    lines = [line for line in kept.machine.log if wanted.takes(line)]
    seen = len(kept.machine.log)
    for line in lines if tail is None else lines[max(0, len(lines) - tail) :]:
        yield line
    while follow and (kept.machine.on or seen < len(kept.machine.log)):
        news = kept.machine.news
        more = kept.machine.log[seen:]
        seen += len(more)
        for line in more:
            if wanted.takes(line):
                yield line
        if not more:
            await news.wait()
