"""Ending a sandbox, and waiting for its end, whatever it is doing meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from microsandbox_core.agent import AgentClient
from microsandbox_core.channel import ChannelError, RequestFailed

from microsandbox import _attach, _create, _life
from microsandbox._directory import SandboxDirectory
from microsandbox._state import Record
from microsandbox.errors import SandboxNotFound, StillRunning

SWITCH_OFF_TIME = 5.0
"""Seconds between the end of a sandbox's processes and that of its supervisor, then it is killed."""

_KILL_TIME = 5.0  # seconds for a supervisor to kill its VMM and go


async def supervisor(directory: SandboxDirectory) -> int | None:
    """A pidfd of the supervisor; None if the sandbox does not run.

    While it is being started or removed the lock is held by who does that: then it is waited for.
    """
    while True:
        seen = await asyncio.to_thread(_life.look, directory)
        if not seen.held:
            return None
        pidfd = None if seen.life is None else _life.open_supervisor(seen.life)
        if pidfd is None:
            # It may not have been able to write its record: the disk was full.
            pidfd = _attach.supervisor_of(directory.socket)
        if pidfd is not None:
            return pidfd
        await asyncio.sleep(_create.HANDOVER_PAUSE)


async def stop(directory: SandboxDirectory, grace: float, *, number: int = signal.SIGTERM) -> None:
    """SIGTERM to every process, SIGKILL after `grace` seconds, disk written out, off; or killed.

    One that is still starting is ended at once. Does nothing if it does not run. `number`: the signal that
    ends the supervisor if need be.
    """
    pidfd = await supervisor(directory)
    if pidfd is None:
        return
    try:
        life = _life.read(directory)
        if life is not None and life.status == _life.Status.STARTING:
            await end(pidfd, number)
        else:
            await stop_supervisor(directory, pidfd, grace, number=number)
    finally:
        os.close(pidfd)


async def stop_supervisor(
    directory: SandboxDirectory,
    pidfd: int,
    grace: float,
    *,
    client: AgentClient | None = None,
    number: int = signal.SIGTERM,
) -> None:
    """`stop` for a sandbox whose supervisor is known. `client`: a connection to use instead of a new one."""
    await _shut_down(directory, pidfd, grace, client)
    await end(pidfd, number)


async def _shut_down(
    directory: SandboxDirectory, pidfd: int, grace: float, client: AgentClient | None
) -> None:
    own: AgentClient | None = None
    try:
        async with asyncio.timeout(grace + SWITCH_OFF_TIME):
            try:
                if client is None:
                    client = own = await AgentClient.connect(directory.socket)
                await client.shutdown(grace)
            except (ChannelError, OSError) as error:
                if not _is_ending(directory, error):
                    raise
                await _attach.gone(pidfd)
            async with asyncio.timeout(SWITCH_OFF_TIME):
                await _attach.gone(pidfd)
    except (ChannelError, OSError):  # TimeoutError is one of these
        pass  # the caller kills it
    finally:
        if own is not None:
            await own.close()


def _is_ending(directory: SandboxDirectory, error: Exception) -> bool:
    """Whether a shutdown failed because somebody else, or a limit, had the guest shut down before."""
    if isinstance(error, RequestFailed):
        return error.kind == "shutting_down"
    # The connection was lost, or could not be made: the guest is off, and the supervisor about to go.
    life = _life.read(directory)
    return life is not None and life.status == _life.Status.STOPPING


async def kill(directory: SandboxDirectory, number: int = signal.SIGTERM) -> None:
    """End it at once. `number`: the signal, which says to the supervisor why."""
    pidfd = await supervisor(directory)
    if pidfd is not None:
        try:
            await end(pidfd, number)
        finally:
            os.close(pidfd)


async def end(pidfd: int, number: int = signal.SIGTERM) -> None:
    """Make a supervisor go, and wait for it. Nothing happens if it has gone."""
    _attach.terminate(pidfd, number)
    try:
        async with asyncio.timeout(_KILL_TIME):
            await _attach.gone(pidfd)
    except TimeoutError:
        _attach.terminate(pidfd, signal.SIGKILL)
        await _attach.gone(pidfd)


async def wait(directory: SandboxDirectory) -> None:
    """Wait for the end of the life that goes on now, if there is one."""
    pidfd = await supervisor(directory)
    if pidfd is not None:
        try:
            await _attach.gone(pidfd)
        finally:
            os.close(pidfd)


async def remove(home: Path, record: Record, *, force: bool) -> None:
    """Remove a sandbox and what it has written; with `force` whatever it is doing.

    Raises `SandboxNotFound` if somebody else was faster, `StillRunning`.
    """
    while True:
        try:
            await asyncio.to_thread(_create.forget, home, record)
            return
        except StillRunning:
            if not force:
                raise
        await kill(SandboxDirectory(home, record.id))
        if record.ephemeral:
            # It removes itself, and may have done so by now.
            try:
                await asyncio.to_thread(_create.forget, home, record)
            except SandboxNotFound:
                pass
            return
