"""Forking a sandbox: new ones that go on where it is, or have what is on its disk.

A fork of a sandbox that runs is made in its directory before it is recorded: whoever is killed in between
leaves a directory that belongs to nothing. From the record until the supervisor has the machine running there
is `fork/` in it, by which what is cut off then is known (see `_create.reconcile`).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from microsandbox_core.agent import AgentClient
from microsandbox_core.artifacts import copy_sparse
from microsandbox_core.channel import ChannelError, RequestFailed

from microsandbox import _config, _create, _life, errors
from microsandbox._create import Pending
from microsandbox._directory import SandboxDirectory
from microsandbox._state import Record, State
from microsandbox.errors import AlreadyExists, ConfigError, NotRunning, StateError

if TYPE_CHECKING:
    from microsandbox.sandbox import Sandbox

COUNT_LIMIT = 100
"""Forks that are made at a time."""


class Forked(NamedTuple):
    """How a fork was made. `pause`: seconds for which the source stood still, 0 if it was paused or stopped
    anyway. `memory` and `upper`: bytes that were read meanwhile of its memory and its disk."""

    source: str
    pause: float
    memory: int
    upper: int


class _Copy(NamedTuple):
    """A sandbox that nobody knows of yet: its directory is locked, and has what it is made of."""

    record: Record
    directory: SandboxDirectory
    lock: int


def names_of(name: str, count: int | None) -> list[str]:
    """The names of so many forks: NAME itself, or NAME-1 and so on. Raises `ConfigError`."""
    if count is None:
        return [_config.check_name(name)]
    if not 1 <= count <= COUNT_LIMIT:
        raise ConfigError(f"count: {count} is not between 1 and {COUNT_LIMIT}", hint="for example: --count 3")
    return [_config.check_name(f"{name}-{number}") for number in range(1, count + 1)]


async def fork(home: Path, source: Record, names: list[str]) -> list[Sandbox]:
    """Make forks, all or none; those of a sandbox that does not run are started with copies of its disk.

    Raises `AlreadyExists`, `NotRunning`, `Unsupported`, `SandboxError`, `StateError`, `StartError`.
    """
    from microsandbox.sandbox import _begun

    # Its network policy may have been narrowed since whoever asks has read this.
    source = await asyncio.to_thread(_create.find, home, source.id)
    directory = SandboxDirectory(home, source.id)
    seen = await asyncio.to_thread(_life.look, directory)
    await asyncio.to_thread(_check_free, home, names)
    copies: list[_Copy] = []
    begun: list[Pending] = []
    try:
        if seen.status.active:
            facts = await _copy_running(home, source, names, seen, copies)
        else:
            await asyncio.to_thread(_copy_stopped, home, source, names, copies)
            facts = {"token": b"", "basis": "", "pause_us": 0, "memory": 0, "upper": 0}
        while copies:
            copy = copies.pop(0)
            begun.append(await _begun(partial(_begin, home, copy, facts["token"], facts["basis"])))
    except BaseException:
        await asyncio.shield(asyncio.to_thread(_discard, copies))
        await asyncio.shield(_give_up(begun))
        raise
    forked = Forked(source.name, facts["pause_us"] / 1e6, facts["memory"], facts["upper"])
    return await _adopt(begun, forked)


async def _copy_running(
    home: Path, source: Record, names: list[str], seen: _life.Seen, copies: list[_Copy]
) -> dict[str, Any]:
    if seen.life is None or seen.status not in (_life.Status.RUNNING, _life.Status.PAUSED):
        told = f"the sandbox {source.name!r} cannot fork: it is {seen.status}"
        raise NotRunning(told, hint="try again when it runs, or has stopped")
    source = _as_it_runs(source, seen.life)
    _check_mounts(source)
    await asyncio.to_thread(_prepare, home, source, names, seen.life.vmm_pid, copies)
    facts = await ask(SandboxDirectory(home, source.id), source.name, "fork", into=copies[0].directory.id)
    await asyncio.to_thread(_multiply, copies)
    return facts


def _check_mounts(source: Record) -> None:
    """Raise `Unsupported` if there are any: its kernel holds numbers of files that only its broker knows."""
    targets = [mount.target for mount in _config.SandboxConfig.unpack(source.config).mounts]
    if targets:
        more = f" and {len(targets) - 3} more" if len(targets) > 3 else ""
        raise errors.Unsupported(
            f"the sandbox {source.name!r} cannot fork while it runs: files of the host are open in it,"
            f" at {', '.join(targets[:3])}{more}",
            hint=f"stop it first: a stopped one forks with what it mounts: msb stop {source.name}",
        )


def _as_it_runs(source: Record, life: _life.Life) -> Record:
    """The record with the machine's size in this life: what `modify` has set since counts at the next one."""
    config = _config.SandboxConfig.unpack(source.config)
    config = config._replace(cpus=life.cpus or config.cpus, memory_mib=life.memory_mib or config.memory_mib)
    return source._replace(config=config.pack())


async def _adopt(begun: list[Pending], forked: Forked) -> list[Sandbox]:
    from microsandbox.sandbox import Sandbox

    made: list[Sandbox] = []
    try:
        while begun:
            # On failure it is removed there.
            sandbox = await Sandbox.adopt(begun.pop(0))
            sandbox.forked = forked
            made.append(sandbox)
    except BaseException:
        await asyncio.shield(_give_up(begun))
        for sandbox in made:
            await asyncio.shield(sandbox.destroy())
        raise
    return made


async def _give_up(begun: list[Pending]) -> None:
    from microsandbox.sandbox import _abandon

    for pending in begun:
        await _abandon(pending)


async def ask(
    directory: SandboxDirectory, name: str, method: str, *, doing: str | None = None, **params: str | bytes
) -> dict[str, Any]:
    """Ask the supervisor of a sandbox that runs for something that it does itself; `doing`: that in words.

    Raises `NotRunning`, `Unsupported`, `SandboxError`.
    """
    try:
        async with await AgentClient.connect(directory.socket) as client:
            return await client.request(method, {**params})
    except RequestFailed as error:
        raise _refused(name, doing or method, error) from error
    except (ChannelError, OSError) as error:
        status = (await asyncio.to_thread(_life.look, directory)).status
        raise NotRunning(
            f"the sandbox {name!r} cannot {doing or method}: it is {status}",
            hint=None if status.active else f"start it: msb start {name}",
        ) from error


def _refused(name: str, doing: str, error: RequestFailed) -> errors.MicrosandboxError:
    hint = error.details.get("hint")
    kinds = {"unsupported": errors.Unsupported, "unknown_method": NotRunning}
    # A supervisor that is not that far passes the request on to the guest, which does not know it.
    why = "it is starting" if error.kind == "unknown_method" else error.message
    kind = kinds.get(error.kind, errors.SandboxError)
    return kind(
        f"the sandbox {name!r} cannot {doing}: {why}",
        hint=hint if isinstance(hint, str) else None,
        code=error.kind,
    )


def _check_free(home: Path, names: list[str]) -> None:
    """Find out before the source has to stand still. Raises `AlreadyExists`."""
    state = State(home)
    try:
        for name in names:
            if state.find(name) is not None:
                raise AlreadyExists(
                    f"a sandbox named {name!r} exists",
                    hint=f"choose another name, or remove it: msb rm {name}",
                )
    finally:
        state.close()


def _new(home: Path, source: Record, name: str) -> _Copy:
    identifier = os.urandom(8).hex()
    directory = SandboxDirectory(home, identifier)
    lock = directory.create()
    # A name of its own, also towards the guest, and nobody whom it would end with. A port of the host leads
    # to one sandbox, which is the source.
    config = _config.SandboxConfig.unpack(source.config)
    config = config._replace(hostname=None, network=config.network._replace(ports=()))
    record = source._replace(
        id=identifier, name=name, ephemeral=False, created_ns=time.time_ns(), config=config.pack()
    )
    return _Copy(record, directory, lock)


def _prepare(home: Path, source: Record, names: list[str], vmm: int, copies: list[_Copy]) -> None:
    """All that can be done while the source runs. Raises `StateError`."""
    from microsandbox_core.vmm.saved import copy_memory

    memory = _config.SandboxConfig.unpack(source.config).memory_mib << 20
    for name in names:
        copies.append(_new(home, source, name))
    for copy in copies:
        with _doing("create", copy.directory.fork):
            copy.directory.fork.mkdir(mode=0o700)
    target = copies[0].directory.fork / "memory"
    with _doing("write", target):
        copy_memory(vmm, memory, target)
    if not source.ephemeral:
        # A pause waits until the disk is written out.
        upper = SandboxDirectory(home, source.id).upper
        with _doing("sync", upper):
            _sync(upper)


def _multiply(copies: list[_Copy]) -> None:
    """Give the others what the first has got. Raises `StateError`."""
    first = copies[0].directory
    for copy in copies[1:]:
        other = copy.directory
        for name in ("memory", "state"):
            with _doing("create", other.fork / name):
                # The same file: its pages are there once for all of them.
                (other.fork / name).hardlink_to(first.fork / name)
        with _doing("write", other.upper):
            copy_sparse(first.upper, other.upper)


def _begin(home: Path, copy: _Copy, token: bytes, basis: str) -> Pending:
    """Record a copy and start its supervisor; on failure nothing of it is left."""
    begun = time.monotonic()
    config = _config.SandboxConfig.unpack(copy.record.config)
    state = State(home)
    lock = copy.lock
    try:
        image = _create.image_of(home, copy.record)
        state.add(copy.record)
        try:
            # Passed on, or closed, in any case.
            passed, lock = lock, -1
            supervisor = _create._launch(
                home, copy.record, config, image, copy.directory, passed, False,
                fork_token=token, fork_basis=basis,
            )  # fmt: skip
        except BaseException:
            state.remove(copy.record.id)
            raise
    except BaseException:
        copy.directory.remove()
        if lock >= 0:
            os.close(lock)
        raise
    finally:
        state.close()
    return Pending(home, copy.record, config, image, copy.directory, supervisor, False, True, begun)


def _copy_stopped(home: Path, source: Record, names: list[str], copies: list[_Copy]) -> None:
    """Copy the disk of a sandbox that does not run, and is kept from running meanwhile.

    Raises `StillRunning`, `StateError`.
    """
    held = _create.hold(home, source.id, by_id=True)
    directory = SandboxDirectory(home, source.id)
    try:
        # While patches wait, the disk is that of a creation that was cut off: it counts for nothing.
        spool = directory.patches.exists()
        for name in names:
            copies.append(_new(home, source, name))
            copy = copies[-1].directory
            found, target = (directory.patches, copy.patches) if spool else (directory.upper, copy.upper)
            if found.exists():
                with _doing("write", target):
                    copy_sparse(found, target)
            mounts = _config.SandboxConfig.unpack(source.config).mounts
            if any(mount.owned for mount in mounts):
                from microsandbox import _owned

                with _doing("copy", directory.path):
                    _owned.copy(directory.path, copy.path, mounts)
            for known in directory.path.glob("workspace-*"):
                with _doing("write", copy.path / known.name):
                    copy_sparse(known, copy.path / known.name)
    finally:
        os.close(held.lock)


def _discard(copies: list[_Copy]) -> None:
    """Remove sandboxes that were not recorded."""
    for copy in copies:
        try:
            copy.directory.remove()
        except StateError:
            pass  # it belongs to nothing: the next command removes it
        os.close(copy.lock)


@contextmanager
def _doing(action: str, path: Path) -> Iterator[None]:
    """Raise `StateError` for an `OSError`."""
    with errors.translated():
        from microsandbox_core.errors import StorageError

        try:
            yield
        except OSError as error:
            raise StorageError.from_os(action, path, error) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
