"""Waiting for the end of a sandbox that takes everything along that could be looked at afterwards."""

from __future__ import annotations

import asyncio
import os

from microsandbox_core.agent import AgentClient, ExitStatus
from microsandbox_core.channel import ChannelError, OutcomeUnknown, RequestFailed

from microsandbox import _attach, _create, _ending, _life
from microsandbox._directory import SandboxDirectory
from microsandbox.info import Cause, End, end_of


async def wait(directory: SandboxDirectory, name: str) -> End | None:
    """Wait until an ephemeral sandbox does not run; how its command ended, None if it had none or was ended
    before that. What a crash leaves behind says why.

    Its supervisor tells the end of the command before it goes, to everybody who has asked by then. Who comes
    later has missed it: raises `SandboxNotFound`.
    """
    pidfd = await _ending.supervisor(directory)
    if pidfd is None:
        raise _create.not_found(name)
    try:
        heard, status = await _outcome(directory, pidfd)
        await _attach.gone(pidfd)
    finally:
        os.close(pidfd)
    if not heard:
        raise _create.not_found(name)
    if status is None:
        return end_of(await asyncio.to_thread(_life.look, directory))
    how = f"with code {status.code}" if status.signal is None else f"by signal {status.signal}"
    code = _life.exit_code_of(status.code, status.signal, timed_out=status.timed_out)
    return End(Cause.COMMAND_ENDED, f"its command ended {how}", None, code)


async def _outcome(directory: SandboxDirectory, pidfd: int) -> tuple[bool, ExitStatus | None]:
    """Whether the supervisor has heard of us before its end, and how the command ended that the sandbox is
    there for; None if nobody can say."""
    heard = False
    while True:
        try:
            async with await AgentClient.connect(directory.socket, timeout=None) as client:
                return True, await client.outcome()
        except RequestFailed:
            return True, None  # it was never started, or the supervisor is an earlier version's
        except OutcomeUnknown:
            heard = True
        except ChannelError:
            pass
        # While it starts there may be nothing yet to connect to, and a guest may be given up for another one.
        life = _life.read(directory)
        if life is None or life.status != _life.Status.STARTING or _attach.wait_gone(pidfd, 0):
            return heard, None
        await asyncio.sleep(_create.HANDOVER_PAUSE)
