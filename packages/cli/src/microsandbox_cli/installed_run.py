"""What a script of `msb install` calls: the image's command, in its sandbox or in a new one."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from microsandbox import _create
from microsandbox.errors import AlreadyExists, NotRunning, SandboxNotFound
from microsandbox_core import env

if TYPE_CHECKING:
    from microsandbox import Sandbox

LABEL = "microsandbox.command"
"""On the sandbox of a command, with the command's name: what else has the name is not used."""
IDLE_TIMEOUT = "15m"
"""After this time without a command the sandbox stops; the next command starts it."""
_SHELLS = ("sh", "ash", "bash", "dash", "zsh", "fish")


def words(entrypoint: Sequence[str], cmd: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """The command that an image's command line means, without its ENTRYPOINT; empty for its CMD.

    Arguments are for the ENTRYPOINT. Without one they are for the program of CMD, as in `python -V`, but
    where that is a shell they are a command, as in `alpine ls -l`; options are the shell's: `alpine -c 'ls'`.
    """
    if not arguments or entrypoint or not cmd:
        return list(arguments)
    if cmd[0].rpartition("/")[2] in _SHELLS and not arguments[0].startswith("-"):
        return list(arguments)
    return [cmd[0], *arguments]


def run_installed(sandbox: str, image: str, arguments: Sequence[str]) -> None:
    """Run the command, and exit with its code. `sandbox`: empty for a new one."""
    from microsandbox_cli.run import run_new

    if sandbox:
        _run_in(sandbox, image, arguments)
    else:
        config = _create.resolve_image(env.home(), image).config
        run_new(image, words(config.entrypoint, config.cmd, arguments), quiet=True)


def _run_in(name: str, image: str, arguments: Sequence[str]) -> None:
    from microsandbox_cli.attached import run_in_loop
    from microsandbox_cli.run import _attach, _wants_terminal

    terminal = _wants_terminal(False, False, False)

    async def main() -> int:
        sandbox = await _running(name, image)
        try:
            record = await asyncio.to_thread(_create.find, env.home(), sandbox.id)
            config = (await asyncio.to_thread(_create.image_of, env.home(), record)).config
            command = sandbox.command(words(config.entrypoint, config.cmd, arguments), shell=terminal)
            return await _attach(
                sandbox, command, env={}, workdir=None, user=None, timeout=None, stdin=True, terminal=terminal
            )
        finally:
            await sandbox.detach()

    run_in_loop(main)


async def _running(name: str, image: str) -> Sandbox:
    """The command's sandbox, made or started if need be."""
    from microsandbox import Sandbox

    try:
        return await _connected(name)
    except (SandboxNotFound, NotRunning):
        pass  # of those who find it so at once, one makes or starts it, and the others wait
    lock = await asyncio.to_thread(_turn, name)
    try:
        return await _connected(name)
    except SandboxNotFound:
        return await Sandbox.create(
            name, image=image, detached=True, labels={LABEL: name}, idle_timeout=IDLE_TIMEOUT
        )
    except NotRunning:
        return await Sandbox.start(name)
    finally:
        os.close(lock)


async def _connected(name: str) -> Sandbox:
    """The command's sandbox if it runs. Raises `SandboxNotFound`, `NotRunning`, and `AlreadyExists` if the
    name is that of somebody else's."""
    from microsandbox import Sandbox

    record = await asyncio.to_thread(_create.find, env.home(), name)
    if dict(record.labels).get(LABEL) != name:
        raise AlreadyExists(
            f"the sandbox {name!r} is not that of the command {name}",
            hint=f"install the command under another name, or remove the sandbox: msb rm {name}",
        )
    return await Sandbox.connect(name)


def _turn(name: str) -> int:
    """Wait for who makes or starts the sandbox of this command now; a lock, to be closed."""
    path = env.home() / "bin" / f".{name}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor
